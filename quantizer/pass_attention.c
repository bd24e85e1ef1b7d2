/* Causal attention over [prompt ; own tokens] by matrix products, and its gradient.
 *
 * Forward, a piece of work is one head of one sample; backward, one KV head with all query heads that read it, so that
 * sums over those have one order. Queries are taken in blocks: a block needs the scores of the keys up to its last row
 * only, and the gradient computes probabilities again instead of keeping them.
 */
#include <string.h>

#include <math.h>

#include "quantizer/pass.h"

enum { QUERY_BLOCK = 64 };

size_t qz_run_attention_scratch(const qz_pass *pass, int tokens) {
    return (size_t)2 * QUERY_BLOCK * (size_t)(pass->prompt.tokens + tokens);
}

/* One block of query rows of one head of one sample. */
typedef struct query_block {
    int first, rows;          /* inside the sample */
    int prompt, keys, stride; /* keys: the prompt's and own ones that the last row sees; stride of a row of scores */
    size_t query, key;        /* where the block's queries, and the sample's keys of this head, start */
    int query_stride, key_stride, width;
    qz_matrix prompt_k, prompt_v, k, v;
    qz_real scale;
} query_block;

static query_block block_of(const qz_run *run, int sample, int head, int first) {
    const qz_pass *pass = run->pass;
    const qz_shape *shape = &pass->block->shape;
    int kv_head = head / (shape->heads / shape->kv_heads), width = shape->head_dim;
    query_block b = {.first = first, .width = width, .prompt = pass->prompt.tokens};
    b.rows = run->tokens - first < QUERY_BLOCK ? run->tokens - first : QUERY_BLOCK;
    b.keys = b.prompt + first + b.rows;
    b.stride = b.prompt + run->tokens;
    b.query_stride = shape->heads * width;
    b.key_stride = shape->kv_heads * width;
    size_t row = (size_t)sample * (size_t)run->tokens;
    b.query = (row + (size_t)first) * (size_t)b.query_stride + (size_t)head * (size_t)width;
    b.key = row * (size_t)b.key_stride + (size_t)kv_head * (size_t)width;
    b.k = (qz_matrix){run->tape.k + b.key, b.key_stride, false};
    b.v = (qz_matrix){run->tape.v + b.key, b.key_stride, false};
    if (b.prompt) {
        b.prompt_k = (qz_matrix){pass->prompt.k + (size_t)kv_head * (size_t)width, b.key_stride, false};
        b.prompt_v = (qz_matrix){pass->prompt.v + (size_t)kv_head * (size_t)width, b.key_stride, false};
    }
    b.scale = 1 / (qz_real)sqrt(width);
    return b;
}

/* out [rows, keys] = x [rows, width] times keys (or values) transposed, the prompt's first. */
static void against_keys(const query_block *b, const qz_real *x, qz_matrix prompt, qz_matrix own, qz_real *out) {
    qz_matrix left = {x, b->query_stride, false};
    prompt.transposed = own.transposed = true;
    if (b->prompt) qz_gemm(NULL, b->rows, b->prompt, b->width, 1, left, prompt, 0, out, b->stride);
    qz_gemm(NULL, b->rows, b->keys - b->prompt, b->width, 1, left, own, 0, out + b->prompt, b->stride);
}

/* out [rows, width] = weights [rows, keys] times values (or keys). */
static void weigh(const query_block *b, const qz_real *weights, qz_matrix prompt, qz_matrix own, qz_real *out) {
    qz_matrix left = {weights, b->stride, false}, right = {weights + b->prompt, b->stride, false};
    if (b->prompt) qz_gemm(NULL, b->rows, b->width, b->prompt, 1, left, prompt, 0, out, b->query_stride);
    qz_gemm(NULL, b->rows, b->width, b->keys - b->prompt, 1, right, own, b->prompt ? 1 : 0, out, b->query_stride);
}

/* Row r of a block sees the prompt and own tokens up to itself; what is beyond has probability 0. */
static void probabilities(const qz_run *run, const query_block *b, qz_real *scores) {
    against_keys(b, run->tape.q + b->query, b->prompt_k, b->k, scores);
    for (int r = 0; r < b->rows; r++) {
        qz_real *row = scores + (size_t)r * (size_t)b->stride;
        int seen = b->prompt + b->first + r + 1;
        run->loops->softmax(row, seen, b->scale);
        memset(row + seen, 0, (size_t)(b->keys - seen) * sizeof *row);
    }
}

static void attend(void *argument, int first, int last, int worker) {
    const qz_run *run = argument;
    int heads = run->pass->block->shape.heads;
    qz_real *scores = qz_run_scratch(run, worker);
    for (int piece = first; piece < last; piece++) {
        for (int at = 0; at < run->tokens; at += QUERY_BLOCK) {
            query_block b = block_of(run, piece / heads, piece % heads, at);
            probabilities(run, &b, scores);
            weigh(&b, scores, b.prompt_v, b.v, run->tape.site[QZ_SITE_O] + b.query);
        }
    }
}

void qz_run_attention(qz_run *run) {
    qz_parallel(run->pass->compute, run->samples * run->pass->block->shape.heads, 1, attend, run);
}

/* out [own keys, width] += the transpose of weights [rows, own keys] times x [rows, width] */
static void collect(const query_block *b, const qz_real *weights, const qz_real *x, qz_real *out) {
    qz_matrix left = {weights + b->prompt, b->stride, true}, right = {x, b->query_stride, false};
    qz_gemm(NULL, b->keys - b->prompt, b->width, b->rows, 1, left, right, 1, out, b->key_stride);
}

static void clear_head(const qz_run *run, size_t key, qz_real *x) {
    const qz_shape *shape = &run->pass->block->shape;
    for (int t = 0; t < run->tokens; t++) {
        memset(x + key + (size_t)t * (size_t)(shape->kv_heads * shape->head_dim), 0,
               (size_t)shape->head_dim * sizeof *x);
    }
}

static void attend_backward(void *argument, int first, int last, int worker) {
    const qz_run *run = argument;
    const qz_shape *shape = &run->pass->block->shape;
    const qz_back *back = &run->back;
    int group = shape->heads / shape->kv_heads;
    qz_real *scores = qz_run_scratch(run, worker);
    qz_real *gradient = scores + (size_t)QUERY_BLOCK * (size_t)(run->pass->prompt.tokens + run->tokens);
    for (int piece = first; piece < last; piece++) {
        int sample = piece / shape->kv_heads, head = piece % shape->kv_heads * group;
        size_t key = block_of(run, sample, head, 0).key;
        clear_head(run, key, back->k);
        clear_head(run, key, back->v);
        for (int h = head; h < head + group; h++) {
            for (int at = 0; at < run->tokens; at += QUERY_BLOCK) {
                query_block b = block_of(run, sample, h, at);
                const qz_real *d_output = back->wide + b.query;
                probabilities(run, &b, scores);
                collect(&b, scores, d_output, back->v + key);
                against_keys(&b, d_output, b.prompt_v, b.v, gradient);
                for (int r = 0; r < b.rows; r++) {
                    size_t row = (size_t)r * (size_t)b.stride;
                    run->loops->softmax_backward(scores + row, b.keys, b.scale, gradient + row);
                }
                weigh(&b, gradient, b.prompt_k, b.k, back->q + b.query);
                collect(&b, gradient, run->tape.q + b.query, back->k + key);
            }
        }
    }
}

void qz_run_attention_backward(qz_run *run) {
    qz_parallel(run->pass->compute, run->samples * run->pass->block->shape.kv_heads, 1, attend_backward, run);
}
