/* bisup bench: tokens a second of prefill and decode, for a model or a shape with random weights.
 *
 * Measures the forward pass alone, without server or sampling (greedy choice only). A prefill case computes
 * `prompt-tokens` tokens of one sequence in chunks; a decode case then generates with `batch` sequences that each
 * have that prompt. The fastest of `repeat` runs counts, as noise only ever slows down.
 */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "common/alloc.h"
#include "common/clock.h"
#include "common/progress.h"
#include "runtime/forward.h"
#include "runtime/kv_pages.h"
#include "runtime/model/model.h"

typedef struct bench {
    const cfg_options *options;
    rt_model *model;
    const rt_model_config *config;
    kn_backend *backend;
    rt_kv_pages *pages;
    rt_forward *forward;
    int context, max_batch, max_rows, kv_bits;
    int32_t *tokens, *positions, *wanted; /* [max_rows] */
    const int32_t **tables;               /* [max_rows] */
    int32_t *page_numbers; /* [max_batch][pages of the context]; of one kind, as there is no prompt span */
} bench;

typedef struct bench_case {
    int batch;
    double prefill_tok_s, decode_tok_s;
} bench_case;

static kn_type type_of(const char *name) {
    if (!strcmp(name, "f32")) return KN_F32;
    return strcmp(name, "bf16") == 0 ? KN_BF16 : KN_F16;
}

static bis_status open_model(bench *b, bis_error *error) {
    const cfg_options *options = b->options;
    bis_status status;
    if (options->shape) {
        rt_model_config config;
        status = rt_model_config_read(options->shape, &config, error);
        if (!status) status = rt_model_random(&config, type_of(options->type), options->seed, &b->model, error);
    } else {
        status = rt_model_open(options->model, &b->model, error);
    }
    if (status) return status;
    b->config = rt_model_get_config(b->model);
    b->context = options->prompt_tokens + options->generate;
    if (b->context <= b->config->context) return BIS_OK;
    return bis_fail(
        error, BIS_ERR_INVALID,
        "%d prompt tokens and %d generated do not fit the context of %d: lower --prompt-tokens or --generate",
        options->prompt_tokens, options->generate, b->config->context);
}

static bis_status allocate(bench *b, bis_error *error) {
    const cfg_options *options = b->options;
    b->max_batch = 1;
    for (int i = 0; i < options->batch.count; i++) {
        if (options->batch.values[i] > b->max_batch) b->max_batch = options->batch.values[i];
    }
    b->max_rows = options->prefill_chunk > b->max_batch ? options->prefill_chunk : b->max_batch;
    bis_status status = rt_kv_bits(b->config, options->kv_bits, &b->kv_bits, error);
    if (status) return status;
    rt_kv_count one = rt_kv_pages_need(b->kv_bits, 0, b->context);
    rt_kv_count all = {one.full * b->max_batch, one.low * b->max_batch};
    int pages = all.full + all.low;
    status = kn_cpu_open(options->threads, options->cpu_isa, b->context, rt_kv_low_head_dim(b->config, b->kv_bits),
                         &b->backend, error);
    if (!status) status = rt_kv_pages_open(b->config, b->kv_bits, all, &b->pages, error);
    if (!status) {
        status = rt_forward_open(b->model, b->backend, b->max_rows, b->max_batch, b->context, &b->forward, error);
    }
    if (status) return status;
    size_t rows = (size_t)b->max_rows;
    b->tokens = bis_calloc(rows, sizeof *b->tokens);
    b->positions = bis_calloc(rows, sizeof *b->positions);
    b->wanted = bis_calloc(rows, sizeof *b->wanted);
    b->tables = bis_calloc(rows, sizeof *b->tables);
    b->page_numbers = bis_calloc((size_t)pages, sizeof *b->page_numbers);
    if (!b->tokens || !b->positions || !b->wanted || !b->tables || !b->page_numbers) {
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for the benchmark");
    }
    rt_kv_pages_take(b->pages, all, b->page_numbers);
    return BIS_OK;
}

static void close_bench(bench *b) {
    rt_forward_close(b->forward);
    rt_kv_pages_close(b->pages);
    if (b->backend) b->backend->ops->close(b->backend);
    rt_model_close(b->model);
    bis_free(b->tokens);
    bis_free(b->positions);
    bis_free(b->wanted);
    bis_free(b->tables);
    bis_free(b->page_numbers);
}

static const int32_t *pages_of(const bench *b, int sequence) {
    return b->page_numbers + (size_t)sequence * (size_t)rt_kv_pages_for(b->context);
}

/* Any valid ids will do: the work does not depend on them. */
static int32_t prompt_token(const bench *b, int sequence, int position) {
    return (int32_t)(((unsigned)position * 2654435761u + (unsigned)sequence * 40503u) % (unsigned)b->config->vocab);
}

static void prefill(bench *b, int sequence) {
    int total = b->options->prompt_tokens;
    for (int first = 0; first < total; first += b->options->prefill_chunk) {
        int count = total - first < b->options->prefill_chunk ? total - first : b->options->prefill_chunk;
        for (int i = 0; i < count; i++) {
            b->tokens[i] = prompt_token(b, sequence, first + i);
            b->positions[i] = first + i;
            b->tables[i] = pages_of(b, sequence);
        }
        b->wanted[0] = count - 1;
        rt_batch batch = {{count, b->positions, b->tables, NULL}, b->tokens, b->wanted, first + count == total};
        rt_forward_run(b->forward, rt_kv_pages_cache(b->pages), &batch);
    }
}

static int32_t greedy(const float *logits, int vocab) {
    int32_t best = 0;
    for (int i = 1; i < vocab; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    return best;
}

static void decode(bench *b, int batch_size) {
    for (int i = 0; i < batch_size; i++) {
        b->tokens[i] = prompt_token(b, i, 0);
        b->tables[i] = pages_of(b, i);
        b->wanted[i] = i;
    }
    for (int step = 0; step < b->options->generate; step++) {
        for (int i = 0; i < batch_size; i++) b->positions[i] = b->options->prompt_tokens + step;
        rt_batch batch = {{batch_size, b->positions, b->tables, NULL}, b->tokens, b->wanted, batch_size};
        const float *logits = rt_forward_run(b->forward, rt_kv_pages_cache(b->pages), &batch);
        for (int i = 0; i < batch_size; i++) {
            b->tokens[i] = greedy(logits + (size_t)i * (size_t)b->config->vocab, b->config->vocab);
        }
    }
}

static bench_case measure(bench *b, int batch_size, bis_progress *progress, uint64_t *done) {
    bench_case result = {.batch = batch_size};
    for (int run = 0; run < b->options->repeat; run++) {
        for (int sequence = 0; sequence < batch_size; sequence++) {
            double start = bis_now_seconds();
            prefill(b, sequence);
            double speed = b->options->prompt_tokens / (bis_now_seconds() - start);
            if (speed > result.prefill_tok_s) result.prefill_tok_s = speed;
        }
        double start = bis_now_seconds();
        decode(b, batch_size);
        double speed = (double)batch_size * b->options->generate / (bis_now_seconds() - start);
        if (speed > result.decode_tok_s) result.decode_tok_s = speed;
        bis_progress_update(progress, ++*done);
    }
    return result;
}

/* Bytes one decoded token must read: all weights but the embedding's other rows, and the KV before it (at half
 * of the generated length), for one sequence. */
static uint64_t bytes_per_token(const bench *b) {
    uint64_t weights = rt_model_bytes(b->model);
    if (!b->config->tied_embeddings) {
        kn_tensor embedding = rt_model_embedding(b->model);
        weights -= (uint64_t)embedding.rows * (uint64_t)embedding.cols * kn_type_bytes(embedding.type);
    }
    uint64_t tokens = (uint64_t)b->options->prompt_tokens + (uint64_t)b->options->generate / 2;
    return weights + tokens * rt_kv_token_bytes(b->config, b->kv_bits);
}

static void print_case(const bench *b, const bench_case *c, bool first, bis_buf *out) {
    uint64_t bytes = bytes_per_token(b);
    double gb_s = c->batch == 1 ? c->decode_tok_s * (double)bytes / 1e9 : 0;
    if (b->options->json) {
        bis_buf_printf(
            out,
            "%s{\"batch\":%d,\"prompt_tokens\":%d,\"generate\":%d,\"prefill_tok_s\":%.2f,\"decode_tok_s\":%.2f,"
            "\"bytes_per_token\":%llu,\"peak_rss_bytes\":%llu}",
            first ? "" : ",", c->batch, b->options->prompt_tokens, b->options->generate, c->prefill_tok_s,
            c->decode_tok_s, (unsigned long long)bytes, (unsigned long long)cli_peak_memory());
        return;
    }
    bis_buf_printf(out, "%5d %16.1f %15.1f", c->batch, c->prefill_tok_s, c->decode_tok_s);
    if (gb_s > 0) bis_buf_printf(out, " %10.2f GB/s", gb_s);
    bis_buf_putc(out, '\n');
}

static int run_cases(bench *b) {
    const cfg_options *options = b->options;
    const char *name = options->shape ? options->shape : options->model;
    bis_buf out = {0};
    if (options->json) {
        bis_buf_puts(&out, "{\"model\":");
        bis_buf_json_string(&out, name, strlen(name));
        bis_buf_printf(
            &out, ",\"type\":\"%s\",\"parameters\":%llu,\"backend\":\"%s\",\"threads\":%d,\"kv_bits\":%d,\"cases\":[",
            rt_model_type_name(b->model), (unsigned long long)rt_model_parameters(b->model), b->backend->name,
            b->backend->threads, b->kv_bits);
    } else {
        bis_buf_printf(&out, "%s: %.1f M parameters, %s; %s, %d threads; prompt %d, generate %d, %d-bit KV\n", name,
                       (double)rt_model_parameters(b->model) / 1e6, rt_model_type_name(b->model), b->backend->name,
                       b->backend->threads, options->prompt_tokens, options->generate, b->kv_bits);
        bis_buf_printf(&out, "batch  prefill tokens/s  decode tokens/s  weights and KV read\n");
    }
    bis_progress progress;
    uint64_t done = 0;
    bis_progress_start(&progress, "bench", (uint64_t)options->batch.count * (uint64_t)options->repeat, options->json);
    for (int i = 0; i < options->batch.count; i++) {
        bench_case result = measure(b, options->batch.values[i], &progress, &done);
        print_case(b, &result, i == 0, &out);
    }
    bis_progress_finish(&progress);
    if (options->json) bis_buf_puts(&out, "]}\n");
    else bis_buf_printf(&out, "peak memory %.1f MB\n", (double)cli_peak_memory() / 1e6);
    return cli_print(&out);
}

int cli_bench(const cfg_options *options) {
    bench b = {.options = options};
    bis_error error;
    bis_status status = open_model(&b, &error);
    if (!status) status = allocate(&b, &error);
    int exit_status = status ? cli_fail(&error) : run_cases(&b);
    close_bench(&b);
    return exit_status;
}
