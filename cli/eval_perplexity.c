/* bisup eval --task perplexity: how well a text is predicted, and how far from a reference model. */
#include <string.h>

#include "cli/eval.h"
#include "common/clock.h"
#include "common/file.h"
#include "evaluation/windows.h"

enum { TEXT_MAX = 1 << 30 };

/* As transformers reads a text: with the tokens around it, and names of special tokens are these tokens. */
static const unsigned TEXT_FLAGS = RT_ENCODE_ADD_SPECIAL | RT_ENCODE_PARSE_SPECIAL;

/* A reference that reads the text as other tokens cannot be compared, although its vocabulary is as large. */
static bis_status check_reference_tokens(const eval_run *run, const bis_buf *text, const rt_tokens *tokens,
                                         bis_error *error) {
    rt_tokenizer *tokenizer;
    bis_error none;
    if (!run->reference || rt_tokenizer_open(run->options->reference, &tokenizer, &none)) return BIS_OK;
    rt_tokens other = {0};
    bis_status status = rt_tokenizer_encode(tokenizer, bis_buf_cstr(text), text->length, TEXT_FLAGS, &other, error);
    bool same = !status && other.count == tokens->count &&
                (!other.count || !memcmp(other.ids, tokens->ids, other.count * sizeof *other.ids));
    if (!status && !same) {
        status = bis_fail(error, BIS_ERR_INVALID,
                          "the vocabularies of %s and of the reference %s differ: they read %s as different tokens",
                          run->options->model, run->options->reference, run->options->text);
    }
    rt_tokens_free(&other);
    rt_tokenizer_close(tokenizer);
    return status;
}

static bis_status read_tokens(const eval_run *run, rt_tokens *tokens, bis_error *error) {
    const cfg_options *options = run->options;
    bis_buf text = {0};
    bis_status status = bis_read_file(options->text, TEXT_MAX, &text, error);
    if (!status) {
        status = rt_tokenizer_encode(run->tokenizer, bis_buf_cstr(&text), text.length, TEXT_FLAGS, tokens, error);
    }
    if (!status) status = check_reference_tokens(run, &text, tokens, error);
    bis_buf_free(&text);
    if (status) return status;
    if (options->limit && tokens->count > (size_t)options->limit) tokens->count = (size_t)options->limit;
    if (tokens->count < 2) {
        return bis_fail(error, BIS_ERR_INVALID, "%s has %zu tokens; at least 2 are needed", options->text,
                        tokens->count);
    }
    int vocab = rt_model_get_config(run->model)->vocab;
    for (size_t i = 0; i < tokens->count; i++) {
        if (tokens->ids[i] < vocab) continue;
        return bis_fail(error, BIS_ERR_FORMAT, "the tokenizer gives id %d, but vocab_size is %d", tokens->ids[i],
                        vocab);
    }
    return BIS_OK;
}

static bis_status choose_window(const eval_run *run, int *window, bis_error *error) {
    int room;
    bis_status status = eval_room(run, &room, error);
    if (status) return status;
    *window = run->options->context ? run->options->context : room;
    if (*window >= 2 && *window <= room) return BIS_OK;
    if (!run->prompt.count) {
        return bis_fail(error, BIS_ERR_INVALID, "context is %d: use 2 to %d for this model", *window, room);
    }
    return bis_fail(error, BIS_ERR_INVALID, "context is %d: use 2 to %d, which this model has beside the prompt of %zu",
                    *window, room, run->prompt.count);
}

typedef struct result {
    ev_column columns[EVAL_PROMPTS];
    ev_summary summaries[EVAL_PROMPTS];
    rt_tokens tokens;
    int window;
    double seconds;
} result;

static bis_status measure(eval_run *run, result *r, bis_error *error) {
    bis_status status = choose_window(run, &r->window, error);
    if (!status) status = read_tokens(run, &r->tokens, error);
    if (!status) status = eval_open_lanes(run, r->window, error);
    if (status) return status;
    int count = run->columns.count;
    for (int i = 0; i < count; i++) {
        r->columns[i] = (ev_column){.lane = run->lanes[i], .reference = run->reference_lanes[i]};
    }
    bis_progress progress;
    double start = bis_now_seconds();
    bis_progress_start(&progress, "eval", r->tokens.count, run->options->json);
    status = ev_windows_run(r->columns, count, r->tokens.ids, r->tokens.count, r->window, &progress, error);
    bis_progress_finish(&progress);
    r->seconds = bis_now_seconds() - start;
    for (int i = 0; i < count && !status; i++) ev_metrics_summarise(&r->columns[i].metrics, &r->summaries[i]);
    return status;
}

static void json_column(const eval_run *run, const result *r, int column, bis_buf *out) {
    const ev_summary *s = &r->summaries[column];
    const struct {
        const char *name;
        double value;
    } compared[] = {{"ppl_reference", s->ppl_reference},
                    {"kl", s->kl},
                    {"kl_stderr", s->kl_stderr},
                    {"kl_p99", s->kl_p99},
                    {"top1", s->top1}};
    eval_json_prompt(out, &run->columns, column, run->prompt.count, run->kv_bits);
    bis_buf_printf(out, ",\"tokens\":%llu,", (unsigned long long)s->tokens);
    eval_json_number(out, "ppl", s->ppl);
    bis_buf_putc(out, ',');
    eval_json_number(out, "nll", s->nll);
    for (size_t i = 0; s->compared && i < sizeof compared / sizeof *compared; i++) {
        bis_buf_putc(out, ',');
        eval_json_number(out, compared[i].name, compared[i].value);
    }
}

static void print_json(const eval_run *run, const result *r, bis_buf *out) {
    bis_buf_puts(out, "{\"task\":\"perplexity\",");
    json_column(run, r, 0, out);
    bis_buf_printf(out, ",\"context\":%d,\"seconds\":%.2f,\"columns\":[", r->window, r->seconds);
    for (int i = 0; i < run->columns.count; i++) {
        bis_buf_puts(out, i ? ",{" : "{");
        json_column(run, r, i, out);
        bis_buf_putc(out, '}');
    }
    bis_buf_puts(out, "]}\n");
}

static void print_table(const eval_run *run, const result *r, bis_buf *out) {
    const cfg_options *options = run->options;
    double read = (double)r->tokens.count * run->columns.count;
    bis_buf_printf(out, "%s, KV %d bits, on %s: %llu tokens scored in windows of %d", options->model, run->kv_bits,
                   options->text, (unsigned long long)r->summaries[0].tokens, r->window);
    if (run->columns.named) bis_buf_printf(out, " after a prompt of %zu", run->prompt.count);
    bis_buf_printf(out, " (%.1f s, %.0f tokens/s)\n", r->seconds, read / r->seconds);
    if (run->reference) bis_buf_printf(out, "reference %s, KV 32 bits, same prompt\n", options->reference);
    bis_buf_puts(out, "prompt KV  perplexity");
    if (run->reference) bis_buf_puts(out, "  reference    mean KL  (std. error)   99 % KL  same top-1");
    bis_buf_putc(out, '\n');
    for (int i = 0; i < run->columns.count; i++) {
        const ev_summary *s = &r->summaries[i];
        bis_buf_printf(out, "%-9s  %10.4f", eval_column_name(&run->columns, i), s->ppl);
        if (s->compared) {
            bis_buf_printf(out, "  %9.4f  %9.6f  (%9.6f)  %9.6f    %6.2f %%", s->ppl_reference, s->kl, s->kl_stderr,
                           s->kl_p99, 100 * s->top1);
        }
        bis_buf_putc(out, '\n');
    }
}

int eval_perplexity(eval_run *run) {
    result r = {0};
    bis_error error;
    bis_buf out = {0};
    int exit_status;
    if (measure(run, &r, &error)) {
        exit_status = cli_fail(&error);
    } else {
        if (run->options->json) print_json(run, &r, &out);
        else print_table(run, &r, &out);
        exit_status = cli_print(&out);
    }
    for (int i = 0; i < EVAL_PROMPTS; i++) ev_metrics_free(&r.columns[i].metrics);
    rt_tokens_free(&r.tokens);
    return exit_status;
}
