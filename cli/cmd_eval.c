/* bisup eval: perplexity of a text.
 *
 * Protocol, as published results use it: the whole text is encoded once (with the tokens the model expects
 * around a text), cut into windows of `context` tokens that do not overlap, and each window is predicted on its
 * own; its first token is not scored, and a last, shorter window is scored too unless it has a single token.
 * Perplexity is exp of the mean negative log-likelihood of all scored tokens.
 */
#include <math.h>
#include <stdio.h>

#include "cli/cli.h"
#include "common/alloc.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/progress.h"
#include "runtime/forward.h"
#include "runtime/kv_pages.h"
#include "runtime/model/model.h"
#include "runtime/sampler.h"

enum { TEXT_MAX = 1 << 30, LOGIT_ROWS = 64 };

typedef struct evaluation {
    const cfg_options *options;
    rt_model *model;
    const rt_model_config *config;
    rt_tokenizer *tokenizer;
    kn_backend *backend;
    rt_kv_pages *pages;
    rt_forward *forward;
    rt_tokens tokens;
    int context, kv_bits;
    int32_t *page_numbers; /* of one window */
    double nll;            /* sum over scored tokens */
    uint64_t scored;
} evaluation;

static bis_status open_all(evaluation *e, bis_error *error) {
    const cfg_options *options = e->options;
    bis_status status = rt_model_open(options->model, &e->model, error);
    if (!status) status = rt_tokenizer_open(options->model, &e->tokenizer, error);
    if (status) return status;
    e->config = rt_model_get_config(e->model);
    e->context = options->context ? options->context : e->config->context;
    if (e->context < 2 || e->context > e->config->context) {
        return bis_fail(error, BIS_ERR_INVALID, "context is %d: use 2 to %d for this model", e->context,
                        e->config->context);
    }
    status = rt_kv_bits(e->config, options->kv_bits, &e->kv_bits, error);
    if (status) return status;
    rt_kv_count pages = rt_kv_pages_need(e->kv_bits, 0, e->context);
    status = kn_cpu_open(options->threads, options->cpu_isa, e->context, rt_kv_low_head_dim(e->config, e->kv_bits),
                         &e->backend, error);
    if (!status) status = rt_kv_pages_open(e->config, e->kv_bits, pages, &e->pages, error);
    if (!status) status = rt_forward_open(e->model, e->backend, LOGIT_ROWS, LOGIT_ROWS, e->context, &e->forward, error);
    if (status) return status;
    e->page_numbers = bis_calloc((size_t)pages.full + (size_t)pages.low, sizeof *e->page_numbers);
    if (!e->page_numbers) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the evaluation");
    rt_kv_pages_take(e->pages, pages, e->page_numbers);
    return BIS_OK;
}

static bis_status read_tokens(evaluation *e, bis_error *error) {
    bis_buf text = {0};
    bis_status status = bis_read_file(e->options->text, TEXT_MAX, &text, error);
    if (!status) {
        status = rt_tokenizer_encode(e->tokenizer, bis_buf_cstr(&text), text.length, RT_ENCODE_ADD_SPECIAL, &e->tokens,
                                     error);
    }
    bis_buf_free(&text);
    if (status) return status;
    if (e->options->limit && e->tokens.count > (size_t)e->options->limit) e->tokens.count = (size_t)e->options->limit;
    if (e->tokens.count < 2) {
        return bis_fail(error, BIS_ERR_INVALID, "%s has %zu tokens; at least 2 are needed", e->options->text,
                        e->tokens.count);
    }
    for (size_t i = 0; i < e->tokens.count; i++) {
        if (e->tokens.ids[i] >= e->config->vocab) {
            return bis_fail(error, BIS_ERR_FORMAT, "the tokenizer gives id %d, but vocab_size is %d", e->tokens.ids[i],
                            e->config->vocab);
        }
    }
    return BIS_OK;
}

/* Rows [first, first + count) of the window that starts at `window`; scores the tokens that follow them. */
static void score_rows(evaluation *e, size_t window, int first, int count, int window_tokens) {
    int32_t positions[LOGIT_ROWS], wanted[LOGIT_ROWS];
    const int32_t *tables[LOGIT_ROWS];
    for (int i = 0; i < count; i++) {
        positions[i] = first + i;
        wanted[i] = i;
        tables[i] = e->page_numbers;
    }
    const int32_t *ids = e->tokens.ids + window;
    rt_batch batch = {{count, positions, tables, NULL}, ids + first, wanted, count};
    const float *logits = rt_forward_run(e->forward, rt_kv_pages_cache(e->pages), &batch);
    for (int i = 0; i < count && first + i + 1 < window_tokens; i++, logits += e->config->vocab) {
        e->nll += rt_logits_log_sum(logits, e->config->vocab) - (double)logits[ids[first + i + 1]];
        e->scored++;
    }
}

static void score(evaluation *e) {
    bis_progress progress;
    bis_progress_start(&progress, "eval", e->tokens.count, e->options->json);
    for (size_t window = 0; window < e->tokens.count; window += (size_t)e->context) {
        size_t left = e->tokens.count - window;
        int window_tokens = left < (size_t)e->context ? (int)left : e->context;
        for (int first = 0; first < window_tokens - 1; first += LOGIT_ROWS) {
            int rest = window_tokens - first;
            score_rows(e, window, first, rest < LOGIT_ROWS ? rest : LOGIT_ROWS, window_tokens);
            bis_progress_update(&progress, window + (size_t)first);
        }
    }
    bis_progress_finish(&progress);
}

static int print_result(const evaluation *e, double seconds) {
    double mean = e->nll / (double)e->scored;
    bis_buf out = {0};
    if (e->options->json) {
        bis_buf_printf(&out,
                       "{\"tokens\":%llu,\"ppl\":%.6f,\"nll\":%.8f,\"context\":%d,\"kv_bits\":%d,\"seconds\":%.2f}\n",
                       (unsigned long long)e->scored, exp(mean), mean, e->context, e->kv_bits, seconds);
    } else {
        bis_buf_printf(&out, "perplexity %.4f over %llu tokens, windows of %d, %d-bit KV (%.1f s, %.0f tokens/s)\n",
                       exp(mean), (unsigned long long)e->scored, e->context, e->kv_bits, seconds,
                       (double)e->tokens.count / seconds);
    }
    return cli_print(&out);
}

int cli_eval(const cfg_options *options) {
    evaluation e = {.options = options};
    bis_error error;
    bis_status status = open_all(&e, &error);
    if (!status) status = read_tokens(&e, &error);
    int exit_status;
    if (status) {
        exit_status = cli_fail(&error);
    } else {
        double start = bis_now_seconds();
        score(&e);
        exit_status = print_result(&e, bis_now_seconds() - start);
    }
    rt_forward_close(e.forward);
    rt_kv_pages_close(e.pages);
    if (e.backend) e.backend->ops->close(e.backend);
    rt_tokenizer_close(e.tokenizer);
    rt_model_close(e.model);
    rt_tokens_free(&e.tokens);
    bis_free(e.page_numbers);
    return exit_status;
}
