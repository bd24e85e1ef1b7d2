/* bisup eval --task hellaswag, mmlu and facts. */
#include <string.h>

#include "cli/eval.h"
#include "common/alloc.h"
#include "evaluation/fact_answers.h"

enum { FACTS_BATCH = 16 };

static double share(int right, int count) { return count ? (double)right / count : 0; }

/* ---- Multiple choice ------------------------------------------------------------------------- */

static void json_score(const ev_score *score, bis_buf *out) {
    bis_buf_printf(out, "\"items\":%d,", score->questions);
    eval_json_number(out, "accuracy", share(score->right, score->questions));
    bis_buf_putc(out, ',');
    eval_json_number(out, "accuracy_norm", share(score->right_norm, score->questions));
}

static void json_choices(const eval_run *run, const ev_choice_result *result, int column, bis_buf *out) {
    uint64_t count = (uint64_t)result->total.questions;
    eval_json_prompt(out, &run->columns, column, run->prompt.count, run->kv_bits);
    bis_buf_putc(out, ',');
    json_score(&result->total, out);
    bis_buf_putc(out, ',');
    eval_json_number(out, "stderr", ev_share_stderr((uint64_t)result->total.right, count));
    bis_buf_putc(out, ',');
    eval_json_number(out, "stderr_norm", ev_share_stderr((uint64_t)result->total.right_norm, count));
    bis_buf_printf(out, ",\"fewer_shots\":%d,\"shortened\":%d", result->fewer_shots, result->shortened);
}

static void json_groups(const ev_task *task, const ev_choice_result *result, bis_buf *out) {
    bis_buf_puts(out, ",\"groups\":{");
    for (size_t i = 0; i < task->group_count; i++) {
        if (i) bis_buf_putc(out, ',');
        bis_buf_json_string(out, task->groups[i].name, strlen(task->groups[i].name));
        bis_buf_puts(out, ":{");
        json_score(&result->groups[i], out);
        bis_buf_putc(out, '}');
    }
    bis_buf_putc(out, '}');
}

static void print_choices_json(const eval_run *run, const ev_task *task, const ev_choice_result *results,
                               bis_buf *out) {
    bis_buf_printf(out, "{\"task\":\"%s\",", run->options->task);
    json_choices(run, &results[0], 0, out);
    bis_buf_puts(out, ",\"columns\":[");
    for (int i = 0; i < run->columns.count; i++) {
        bis_buf_puts(out, i ? ",{" : "{");
        json_choices(run, &results[i], i, out);
        json_groups(task, &results[i], out);
        bis_buf_putc(out, '}');
    }
    bis_buf_puts(out, "]}\n");
}

static void print_choices_table(const eval_run *run, const ev_task *task, const ev_choice_result *results,
                                bis_buf *out) {
    const ev_score *total = &results[0].total;
    bis_buf_printf(out, "%s, KV %d bits, %s: %d questions", run->options->model, run->kv_bits, run->options->task,
                   total->questions);
    if (task->kind == EV_MMLU) bis_buf_printf(out, " from %zu subjects", task->group_count);
    if (results[0].fewer_shots) bis_buf_printf(out, ", %d with fewer examples to fit", results[0].fewer_shots);
    if (results[0].shortened) bis_buf_printf(out, ", %d shortened", results[0].shortened);
    bis_buf_puts(out, "\nprompt KV   accuracy  (std. error)  accuracy_norm  (std. error)\n");
    for (int i = 0; i < run->columns.count; i++) {
        const ev_score *score = &results[i].total;
        uint64_t count = (uint64_t)score->questions;
        bis_buf_printf(out, "%-9s  %7.2f %%  (%7.2f %%)      %7.2f %%  (%7.2f %%)\n",
                       eval_column_name(&run->columns, i), 100 * share(score->right, score->questions),
                       100 * ev_share_stderr((uint64_t)score->right, count),
                       100 * share(score->right_norm, score->questions),
                       100 * ev_share_stderr((uint64_t)score->right_norm, count));
    }
}

static bis_status measure_choices(eval_run *run, const ev_task *task, ev_choice_result *results, bis_error *error) {
    int room;
    bis_status status = eval_room(run, &room, error);
    if (!status) status = eval_open_lanes(run, room, error);
    if (status) return status;
    bis_progress progress;
    bis_progress_start(&progress, run->options->task, task->count * (uint64_t)run->columns.count, run->options->json);
    for (int i = 0; i < run->columns.count && !status; i++) {
        results[i].groups = bis_calloc(task->group_count, sizeof *results[i].groups);
        if (!results[i].groups) {
            status = bis_fail(error, BIS_ERR_NOMEM, "no memory for the scores");
        } else {
            status = ev_choice_run(task, run->tokenizer, run->lanes[i], &results[i], &progress, (size_t)i * task->count,
                                   error);
        }
    }
    bis_progress_finish(&progress);
    return status;
}

int eval_choices(eval_run *run, ev_task_kind kind) {
    ev_task task = {0};
    ev_choice_result results[EVAL_PROMPTS] = {0};
    bis_error error;
    bis_buf out = {0};
    int exit_status;
    bis_status status = ev_task_open(kind, run->options->data, &task, &error);
    ev_task_limit(&task, (size_t)run->options->limit);
    if (!status) status = measure_choices(run, &task, results, &error);
    if (status) {
        exit_status = cli_fail(&error);
    } else {
        if (run->options->json) print_choices_json(run, &task, results, &out);
        else print_choices_table(run, &task, results, &out);
        exit_status = cli_print(&out);
    }
    for (int i = 0; i < EVAL_PROMPTS; i++) bis_free(results[i].groups);
    ev_task_free(&task);
    return exit_status;
}

/* ---- Facts ----------------------------------------------------------------------------------- */

static bis_status ask_facts(rt_engine *engine, const cfg_options *options, const ev_facts *facts,
                            const eval_columns *columns, size_t *exact, bis_error *error) {
    bis_progress progress;
    bis_status status = BIS_OK;
    bis_progress_start(&progress, "facts", facts->count * (uint64_t)columns->count, options->json);
    for (int i = 0; i < columns->count && !status; i++) {
        status = ev_facts_run(engine, facts, columns->prompts[i] == EVAL_PROMPT_FULL, &exact[i], &progress,
                              (size_t)i * facts->count, error);
    }
    bis_progress_finish(&progress);
    return status;
}

static void json_facts(const eval_columns *columns, int column, int kv_bits, size_t exact, size_t count, bis_buf *out) {
    bis_buf_printf(out, "\"prompt_kv\":\"%s\",\"kv_bits\":%d,\"items\":%zu,\"exact\":%zu,",
                   eval_column_name(columns, column), kv_bits, count, exact);
    eval_json_number(out, "accuracy", (double)exact / (double)count);
    bis_buf_putc(out, ',');
    eval_json_number(out, "stderr", ev_share_stderr(exact, count));
}

static int print_facts(const cfg_options *options, const eval_columns *columns, int kv_bits, const size_t *exact,
                       size_t count) {
    bis_buf out = {0};
    if (options->json) {
        bis_buf_puts(&out, "{\"task\":\"facts\",");
        json_facts(columns, 0, kv_bits, exact[0], count, &out);
        bis_buf_puts(&out, ",\"columns\":[");
        for (int i = 0; i < columns->count; i++) {
            bis_buf_puts(&out, i ? ",{" : "{");
            json_facts(columns, i, kv_bits, exact[i], count, &out);
            bis_buf_putc(&out, '}');
        }
        bis_buf_puts(&out, "]}\n");
        return cli_print(&out);
    }
    bis_buf_printf(&out, "%s, KV %d bits: %zu questions\nprompt KV  exact answers\n", options->model, kv_bits, count);
    for (int i = 0; i < columns->count; i++) {
        bis_buf_printf(&out, "%-9s  %zu of %zu (%.1f %%, std. error %.1f %%)\n", eval_column_name(columns, i), exact[i],
                       count, 100 * (double)exact[i] / (double)count, 100 * ev_share_stderr(exact[i], count));
    }
    return cli_print(&out);
}

int eval_facts(const cfg_options *options) {
    ev_facts facts = {0};
    rt_engine *engine = NULL;
    bis_error error;
    size_t exact[EVAL_PROMPTS] = {0};
    int exit_status;
    eval_columns columns = {0};
    rt_engine_info info = {0};
    rt_engine_options engine_options = cli_engine_options(options);
    engine_options.max_batch = FACTS_BATCH;
    engine_options.prompt_kv_low = false; /* each request says by its span */
    engine_options.max_queue = EV_FACTS_IN_FLIGHT;
    bis_status status = ev_facts_open(options->data, &facts, &error);
    ev_facts_limit(&facts, (size_t)options->limit);
    if (!status) status = rt_engine_open(&engine_options, &engine, &error);
    if (!status) {
        rt_engine_get_info(engine, &info);
        columns = eval_choose_columns(options, info.kv_bits, true, false);
        status = ask_facts(engine, options, &facts, &columns, exact, &error);
    }
    if (status) exit_status = cli_fail(&error);
    else exit_status = print_facts(options, &columns, info.kv_bits, exact, facts.count);
    if (engine) rt_engine_close(engine);
    ev_facts_free(&facts);
    return exit_status;
}
