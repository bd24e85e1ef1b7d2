/* The KV cache on the CPU: storing, and attention over plain or quantized pages.
 *
 * Pages that attention cannot read as they are (codes, or keys from before RoPE) are first decoded to F32 pages of one
 * KV head of one sequence, which the F32 kernel then reads: once for all rows of a sequence that follow each other.
 */
#include <limits.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kernels/cpu/cpu_backend.h"

typedef struct kv_task {
    const kn_cpu_backend *backend;
    const kn_kv_cache *cache;
    const kn_rows *rows;
    int layer, heads;
    const float *k, *v, *q;
    float *out;
} kv_task;

/* Offset of KV head `head`'s K in a page whose heads have `head_bytes`; its V lies kv_heads heads further. */
static size_t key_offset(const kn_kv_cache *cache, int layer, int head, size_t head_bytes) {
    return ((size_t)layer * 2 * (size_t)cache->kv_heads + (size_t)head) * head_bytes;
}

/* Tokens of row r's sequence that are in full pages. */
static int prompt_span(const kn_kv_cache *cache, const kn_rows *rows, int r) {
    if (!cache->low_bits) return INT_MAX;
    return rows->prompt ? rows->prompt[r] : 0;
}

/* Where token t of a sequence is: K of KV head 0 of a layer, in a full page or (low) in a low page. */
typedef struct kv_place {
    char *key;
    size_t head_bytes;
    int slot; /* in the page */
    bool low;
} kv_place;

static kv_place find_token(const kn_kv_cache *cache, const int32_t *pages, int prompt, int layer, int t) {
    kv_place place = {.low = t >= prompt};
    int page = t / KN_PAGE_TOKENS;
    place.slot = t % KN_PAGE_TOKENS;
    if (place.low) {
        page = (prompt + KN_PAGE_TOKENS - 1) / KN_PAGE_TOKENS + (t - prompt) / KN_PAGE_TOKENS;
        place.slot = (t - prompt) % KN_PAGE_TOKENS;
    }
    size_t page_bytes = place.low ? kn_kv_low_page_bytes(cache) : kn_kv_page_bytes(cache);
    place.head_bytes = place.low ? kn_kv_low_head_bytes(cache) : kn_kv_head_bytes(cache);
    place.key = (char *)(place.low ? cache->low_data : cache->data) + (size_t)pages[page] * page_bytes +
                key_offset(cache, layer, 0, place.head_bytes);
    return place;
}

/* The parts of one token in a low page's head. */
typedef struct low_token {
    uint8_t *stream;
    char *scale, *minimum;
} low_token;

static low_token find_low(const kn_kv_cache *cache, char *head, int slot) {
    size_t stream = kn_packed_bytes(cache->head_dim, cache->low_bits), index = (size_t)slot;
    char *scales = head + KN_PAGE_TOKENS * stream;
    return (low_token){.stream = (uint8_t *)head + index * stream,
                       .scale = scales + index * sizeof(uint16_t),
                       .minimum = scales + (KN_PAGE_TOKENS + index) * sizeof(uint16_t)};
}

static void store_head(const kv_task *task, const kv_place *place, const float *values, char *head) {
    const kn_kv_cache *cache = task->cache;
    if (place->low) {
        uint16_t scale, minimum;
        low_token at = find_low(cache, head, place->slot);
        kn_kv_encode(cache->low_bits, values, cache->head_dim, at.stream, &scale, &minimum);
        memcpy(at.scale, &scale, sizeof scale);
        memcpy(at.minimum, &minimum, sizeof minimum);
        return;
    }
    size_t bytes = (size_t)cache->head_dim * kn_type_bytes(cache->type);
    char *at = head + (size_t)place->slot * bytes;
    if (cache->type == KN_F16) task->backend->kernels->to_f16(values, cache->head_dim, at);
    else memcpy(at, values, bytes);
}

static void store_worker(void *argument, int worker, int workers) {
    const kv_task *task = argument;
    const kn_kv_cache *cache = task->cache;
    int first, last;
    kn_pool_split(task->rows->count, worker, workers, &first, &last);
    for (int r = first; r < last; r++) {
        size_t dim = (size_t)cache->head_dim, heads = (size_t)cache->kv_heads, at = (size_t)r * heads * dim;
        kv_place place = find_token(cache, task->rows->pages[r], prompt_span(cache, task->rows, r), task->layer,
                                    task->rows->position[r]);
        for (size_t h = 0; h < heads; h++, at += dim) {
            store_head(task, &place, task->k + at, place.key + h * place.head_bytes);
            store_head(task, &place, task->v + at, place.key + (heads + h) * place.head_bytes);
        }
    }
}

void kn_cpu_kv_store(kn_backend *base, const kn_kv_cache *cache, int layer, const kn_rows *rows, const float *k,
                     const float *v) {
    enum { COPYING = 1, ENCODING = 32 }; /* a number's cost in multiply-adds */
    kn_cpu_backend *backend = (kn_cpu_backend *)base;
    kv_task task = {.backend = backend, .cache = cache, .layer = layer, .rows = rows, .k = k, .v = v};
    double numbers = 2.0 * rows->count * cache->kv_heads * cache->head_dim;
    kn_cpu_run(backend, store_worker, &task, numbers * (cache->low_bits ? ENCODING : COPYING));
}

/* All query heads of one KV head for one row; `head` tells where the keys are. */
static void attend_row(const kv_task *task, kn_type type, int row, int kv_head, kn_attention_head *head) {
    const kn_kv_cache *cache = task->cache;
    int group = task->heads / cache->kv_heads;
    head->count = task->rows->position[row] + 1;
    head->head_dim = cache->head_dim;
    head->scale = 1.0f / sqrtf((float)cache->head_dim);
    size_t at = ((size_t)row * (size_t)task->heads + (size_t)(kv_head * group)) * (size_t)cache->head_dim;
    for (int g = 0; g < group; g++, at += (size_t)cache->head_dim) {
        head->q = task->q + at;
        head->out = task->out + at;
        task->backend->kernels->attention[type](head);
    }
}

/* Unit u is one KV head's group of query heads of one row. Workers take every workers-th unit, because
 * later rows of a prompt cost more. */
static void attention_worker(void *argument, int worker, int workers) {
    const kv_task *task = argument;
    const kn_kv_cache *cache = task->cache;
    size_t head_bytes = kn_kv_head_bytes(cache);
    int units = task->rows->count * cache->kv_heads;
    for (int unit = worker; unit < units; unit += workers) {
        int row = unit / cache->kv_heads, kv_head = unit % cache->kv_heads;
        kn_attention_head head = {.cache =
                                      (const char *)cache->data + key_offset(cache, task->layer, kv_head, head_bytes),
                                  .page_stride = kn_kv_page_bytes(cache),
                                  .value_offset = head_bytes * (size_t)cache->kv_heads,
                                  .pages = task->rows->pages[row],
                                  .scores = task->backend->scores + (size_t)worker * task->backend->score_stride};
        attend_row(task, cache->type, row, kv_head, &head);
    }
}

static void load_head(const kv_task *task, const kv_place *place, char *head, float *out) {
    const kn_kv_cache *cache = task->cache;
    if (place->low) {
        uint16_t scale, minimum;
        low_token at = find_low(cache, head, place->slot);
        memcpy(&scale, at.scale, sizeof scale);
        memcpy(&minimum, at.minimum, sizeof minimum);
        kn_kv_decode(cache->low_bits, at.stream, scale, minimum, cache->head_dim, out);
        return;
    }
    size_t bytes = (size_t)cache->head_dim * kn_type_bytes(cache->type);
    task->backend->kernels->to_f32[cache->type](head + (size_t)place->slot * bytes, cache->head_dim, out);
}

/* Tokens 0 .. count - 1 of row r's sequence as attention needs them, in F32 pages of [K, V][token][head_dim]. */
static void load_sequence(const kv_task *task, int r, int kv_head, int count, float *out) {
    const kn_kv_cache *cache = task->cache;
    size_t dim = (size_t)cache->head_dim, half = dim / 2;
    int prompt = prompt_span(cache, task->rows, r);
    for (int t = 0; t < count; t++) {
        kv_place place = find_token(cache, task->rows->pages[r], prompt, task->layer, t);
        char *key = place.key + (size_t)kv_head * place.head_bytes;
        float *k = out + ((size_t)(t / KN_PAGE_TOKENS) * 2 * KN_PAGE_TOKENS + (size_t)(t % KN_PAGE_TOKENS)) * dim;
        load_head(task, &place, key, k);
        load_head(task, &place, key + (size_t)cache->kv_heads * place.head_bytes, k + KN_PAGE_TOKENS * dim);
        if (!cache->key_table) continue;
        const float *cosines = cache->key_table + (size_t)t * dim;
        task->backend->kernels->rope(k, cosines, cosines + half, (int)half);
    }
}

/* The end of the run of rows from `first` on that are of one sequence; *tokens: how many tokens they read. */
static int run_end(const kv_task *task, int first, int *tokens) {
    const kn_rows *rows = task->rows;
    int prompt = prompt_span(task->cache, rows, first), r = first;
    *tokens = 0;
    for (; r < rows->count && rows->pages[r] == rows->pages[first]; r++) {
        if (prompt_span(task->cache, rows, r) != prompt) break;
        if (rows->position[r] >= *tokens) *tokens = rows->position[r] + 1;
    }
    return r;
}

/* A unit is one KV head of one run of rows. */
static void decoded_worker(void *argument, int worker, int workers) {
    const kv_task *task = argument;
    const kn_cpu_backend *backend = task->backend;
    size_t dim = (size_t)task->cache->head_dim;
    float *plain = backend->plain + (size_t)worker * backend->plain_stride;
    int unit = 0, tokens;
    for (int first = 0, last; first < task->rows->count; first = last) {
        last = run_end(task, first, &tokens);
        for (int kv_head = 0; kv_head < task->cache->kv_heads; kv_head++) {
            if (unit++ % workers != worker) continue;
            load_sequence(task, first, kv_head, tokens, plain);
            kn_attention_head head = {.cache = (const char *)plain,
                                      .page_stride = 2 * KN_PAGE_TOKENS * dim * sizeof *plain,
                                      .value_offset = KN_PAGE_TOKENS * dim * sizeof *plain,
                                      .pages = backend->plain_pages,
                                      .scores = backend->scores + (size_t)worker * backend->score_stride};
            for (int r = first; r < last; r++) attend_row(task, KN_F32, r, kv_head, &head);
        }
    }
}

void kn_cpu_attention(kn_backend *base, const kn_kv_cache *cache, int layer, const kn_rows *rows, const float *q,
                      int heads, float *out) {
    kn_cpu_backend *backend = (kn_cpu_backend *)base;
    double tokens = 0;
    for (int r = 0; r < rows->count; r++) tokens += rows->position[r] + 1;
    kv_task task = {.backend = backend, .cache = cache, .layer = layer, .rows = rows, .q = q, .heads = heads};
    task.out = out;
    bool decode = cache->low_bits || cache->key_table;
    kn_cpu_run(backend, decode ? decoded_worker : attention_worker, &task, 2 * tokens * heads * cache->head_dim);
}
