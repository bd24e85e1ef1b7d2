/* bisup eval: opens what a measurement needs, and starts it. The protocols are in docs/evaluation.md. */
#include <string.h>

#include "cli/eval.h"
#include "common/file.h"
#include "runtime/kv_pages.h"

enum { PROMPT_MAX = 1 << 24, REFERENCE_KV_BITS = 32 };

/* ---- Columns --------------------------------------------------------------------------------- */

eval_columns eval_choose_columns(const cfg_options *options, int kv_bits, bool with_prompt, bool with_none) {
    eval_columns columns = {.named = with_prompt};
    if (!with_prompt) {
        columns.prompts[columns.count++] = EVAL_PROMPT_NONE;
        return columns;
    }
    bool all = !strcmp(options->eval_prompt_kv, "all");
    for (eval_prompt prompt = EVAL_PROMPT_FULL; prompt < EVAL_PROMPTS; prompt++) {
        bool differs = prompt == EVAL_PROMPT_FULL || (prompt == EVAL_PROMPT_LOW ? rt_kv_is_low(kv_bits) : with_none);
        bool wanted = all ? differs : !strcmp(options->eval_prompt_kv, eval_prompt_name(prompt));
        if (wanted) columns.prompts[columns.count++] = prompt;
    }
    return columns;
}

const char *eval_prompt_name(eval_prompt prompt) {
    static const char *const names[EVAL_PROMPTS] = {
        [EVAL_PROMPT_FULL] = "fp16", [EVAL_PROMPT_LOW] = "low", [EVAL_PROMPT_NONE] = "none"};
    return names[prompt];
}

const char *eval_column_name(const eval_columns *columns, int column) {
    return columns->named ? eval_prompt_name(columns->prompts[column]) : "-";
}

/* ---- Opening --------------------------------------------------------------------------------- */

static bis_status check_reference(const eval_run *run, bis_error *error) {
    int vocab = rt_model_get_config(run->model)->vocab, other = rt_model_get_config(run->reference)->vocab;
    if (vocab == other) return BIS_OK;
    return bis_fail(error, BIS_ERR_INVALID,
                    "%s has a vocabulary of %d, but the reference %s one of %d: they have no "
                    "distance",
                    run->options->model, vocab, run->options->reference, other);
}

static bis_status read_prompt(eval_run *run, bis_error *error) {
    const char *path = run->options->prompt_file;
    bis_buf text = {0};
    bis_status status = bis_read_file(path, PROMPT_MAX, &text, error);
    if (!status) {
        status = rt_tokenizer_encode(run->tokenizer, bis_buf_cstr(&text), text.length,
                                     RT_ENCODE_ADD_SPECIAL | RT_ENCODE_PARSE_SPECIAL, &run->prompt, error);
    }
    bis_buf_free(&text);
    if (status) return status;
    if (!run->prompt.count) return bis_fail(error, BIS_ERR_INVALID, "%s: the prompt has no tokens", path);
    int vocab = rt_model_get_config(run->model)->vocab;
    for (size_t i = 0; i < run->prompt.count; i++) {
        if (run->prompt.ids[i] < vocab) continue;
        return bis_fail(error, BIS_ERR_FORMAT, "the tokenizer gives id %d, but vocab_size is %d", run->prompt.ids[i],
                        vocab);
    }
    return BIS_OK;
}

bis_status eval_open(const cfg_options *options, eval_run *run, bis_error *error) {
    *run = (eval_run){.options = options};
    bis_status status = rt_model_open(options->model, &run->model, error);
    if (!status) status = rt_tokenizer_open(options->model, &run->tokenizer, error);
    if (!status && options->reference) status = rt_model_open(options->reference, &run->reference, error);
    if (!status && run->reference) status = check_reference(run, error);
    if (!status && options->prompt_file) status = read_prompt(run, error);
    if (!status) status = rt_kv_bits(rt_model_get_config(run->model), options->kv_bits, &run->kv_bits, error);
    if (status) return status;
    run->columns = eval_choose_columns(options, run->kv_bits, options->prompt_file != NULL, true);
    return BIS_OK;
}

bis_status eval_room(const eval_run *run, int *room, bis_error *error) {
    int context = rt_model_get_config(run->model)->context;
    int other = run->reference ? rt_model_get_config(run->reference)->context : context;
    if (other < context) context = other;
    if (run->prompt.count + 2 > (size_t)context) {
        return bis_fail(error, BIS_ERR_LIMIT,
                        "the prompt of %zu tokens leaves no room in the context of %d: shorten %s", run->prompt.count,
                        context, run->options->prompt_file);
    }
    *room = context - (int)run->prompt.count;
    return BIS_OK;
}

/* A lane of the reference with the column's prompt: an earlier column's, or a new one. */
static bis_status open_reference_lane(eval_run *run, int column, const int32_t *prompt, int prompt_count,
                                      bis_error *error) {
    for (int earlier = 0; earlier < column; earlier++) {
        if (ev_lane_prefix_count(run->reference_lanes[earlier]) != prompt_count) continue;
        run->reference_lanes[column] = run->reference_lanes[earlier];
        return BIS_OK;
    }
    ev_kv kv = {.bits = REFERENCE_KV_BITS, .full_prefix = true};
    return ev_lane_open(run->reference_runner, kv, prompt, prompt_count, &run->reference_lanes[column], error);
}

static bis_status open_column(eval_run *run, int column, bis_error *error) {
    eval_prompt prompt = run->columns.prompts[column];
    int count = prompt == EVAL_PROMPT_NONE ? 0 : (int)run->prompt.count;
    ev_kv kv = {.bits = run->kv_bits, .full_prefix = prompt == EVAL_PROMPT_FULL};
    bis_status status = ev_lane_open(run->runner, kv, run->prompt.ids, count, &run->lanes[column], error);
    if (status || !run->reference) return status;
    return open_reference_lane(run, column, run->prompt.ids, count, error);
}

bis_status eval_open_lanes(eval_run *run, int room, bis_error *error) {
    const cfg_options *options = run->options;
    int positions = room + (int)run->prompt.count;
    int low_head_dim = rt_kv_low_head_dim(rt_model_get_config(run->model), run->kv_bits);
    bis_status status = kn_cpu_open(options->threads, options->cpu_isa, positions, low_head_dim, &run->backend, error);
    if (!status) status = ev_runner_open(run->model, run->backend, positions, &run->runner, error);
    if (!status && run->reference) {
        status = ev_runner_open(run->reference, run->backend, positions, &run->reference_runner, error);
    }
    for (int i = 0; i < run->columns.count && !status; i++) status = open_column(run, i, error);
    return status;
}

void eval_close(eval_run *run) {
    for (int i = 0; i < run->columns.count; i++) {
        ev_lane_close(run->lanes[i]);
        bool shared = false;
        for (int earlier = 0; earlier < i; earlier++) {
            shared |= run->reference_lanes[earlier] == run->reference_lanes[i];
        }
        if (!shared) ev_lane_close(run->reference_lanes[i]);
    }
    ev_runner_close(run->runner);
    ev_runner_close(run->reference_runner);
    if (run->backend) run->backend->ops->close(run->backend);
    rt_tokenizer_close(run->tokenizer);
    rt_model_close(run->model);
    rt_model_close(run->reference);
    rt_tokens_free(&run->prompt);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

void eval_json_number(bis_buf *out, const char *name, double value) {
    if (value - value == 0) bis_buf_printf(out, "\"%s\":%.10g", name, value);
    else bis_buf_printf(out, "\"%s\":null", name); /* infinite or not a number: JSON has no word for it */
}

void eval_json_prompt(bis_buf *out, const eval_columns *columns, int column, size_t prompt_tokens, int kv_bits) {
    if (columns->named) bis_buf_printf(out, "\"prompt_kv\":\"%s\",", eval_column_name(columns, column));
    else bis_buf_puts(out, "\"prompt_kv\":null,");
    bis_buf_printf(out, "\"prompt_tokens\":%zu,\"kv_bits\":%d",
                   columns->prompts[column] == EVAL_PROMPT_NONE ? (size_t)0 : prompt_tokens, kv_bits);
}

int cli_eval(const cfg_options *options) {
    if (!strcmp(options->task, "facts")) return eval_facts(options);
    eval_run run;
    bis_error error;
    int exit_status;
    if (eval_open(options, &run, &error)) exit_status = cli_fail(&error);
    else if (!strcmp(options->task, "perplexity")) exit_status = eval_perplexity(&run);
    else exit_status = eval_choices(&run, !strcmp(options->task, "mmlu") ? EV_MMLU : EV_HELLASWAG);
    eval_close(&run);
    return exit_status;
}
