/* The CPU backend: splits each operation over the pool's workers and calls the chosen variant's kernels.
 *
 * The split never changes a result, because kernels compute each output element on its own (cpu_kernels.h).
 * Operations too small to be worth waking other threads run on the caller.
 */
#include <math.h>
#include <sched.h>
#include <stdbool.h>
#include <string.h>

#include "common/alloc.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/pool.h"

enum {
    THREADS_MAX = 256,
    COLUMN_UNIT = 16,         /* output columns are handed out in units of this */
    PARALLEL_WORK = 32 * 1024 /* multiply-adds below which one thread is quicker */
};

typedef struct cpu_backend {
    kn_backend base;
    const kn_cpu_kernels *kernels;
    kn_pool *pool;
    float *scores; /* [threads, score_stride] */
    size_t score_stride;
    char name[32];
} cpu_backend;

/* One operation's arguments, as its workers see them; each operation uses its own part. */
typedef struct cpu_task {
    const cpu_backend *backend;
    const kn_tensor *w;
    const float *x, *bias, *up;
    float *y;
    int rows, width;
    const kn_kv_cache *cache;
    const kn_rows *where;
    int layer, heads;
} cpu_task;

size_t kn_kv_head_bytes(const kn_kv_cache *cache) {
    return (size_t)KN_PAGE_TOKENS * (size_t)cache->head_dim * kn_type_bytes(cache->type);
}

size_t kn_kv_page_bytes(const kn_kv_cache *cache) {
    return kn_kv_head_bytes(cache) * (size_t)cache->kv_heads * 2 * (size_t)cache->layers;
}

/* Offset of KV head `head`'s K in a page; its V lies value_offset() further. */
static size_t key_offset(const kn_kv_cache *cache, int layer, int head) {
    return ((size_t)layer * 2 * (size_t)cache->kv_heads + (size_t)head) * kn_kv_head_bytes(cache);
}

static size_t value_offset(const kn_kv_cache *cache) { return kn_kv_head_bytes(cache) * (size_t)cache->kv_heads; }

static void run(cpu_backend *backend, kn_pool_fn fn, cpu_task *task, double work) {
    if (work < PARALLEL_WORK) fn(task, 0, 1);
    else kn_pool_run(backend->pool, fn, task);
}

static void cpu_embed(kn_backend *base, const kn_tensor *table, const int32_t *ids, int rows, float *out) {
    const cpu_backend *backend = (const cpu_backend *)base;
    size_t row_bytes = (size_t)table->cols * kn_type_bytes(table->type);
    for (int r = 0; r < rows; r++) {
        const char *row = (const char *)table->data + (size_t)ids[r] * row_bytes;
        backend->kernels->to_f32[table->type](row, table->cols, out + (size_t)r * (size_t)table->cols);
    }
}

static void cpu_rmsnorm(kn_backend *base, const float *x, const float *weight, float eps, int rows, int width,
                        float *out) {
    const cpu_backend *backend = (const cpu_backend *)base;
    for (size_t at = 0, end = (size_t)rows * (size_t)width; at < end; at += (size_t)width) {
        backend->kernels->rmsnorm(x + at, weight, eps, width, out + at);
    }
}

static void matmul_worker(void *argument, int worker, int workers) {
    const cpu_task *task = argument;
    int first, last, columns = task->w->rows;
    kn_pool_split((columns + COLUMN_UNIT - 1) / COLUMN_UNIT, worker, workers, &first, &last);
    kn_matmul_slice slice = {.w = task->w->data,
                             .bias = task->bias,
                             .x = task->x,
                             .y = task->y,
                             .cols = task->w->cols,
                             .first = first * COLUMN_UNIT,
                             .last = last * COLUMN_UNIT < columns ? last * COLUMN_UNIT : columns,
                             .rows = task->rows,
                             .y_stride = (size_t)columns};
    task->backend->kernels->matmul[task->w->type](&slice);
}

static void cpu_matmul(kn_backend *base, const kn_tensor *w, const float *bias, const float *x, int rows, float *y) {
    cpu_backend *backend = (cpu_backend *)base;
    cpu_task task = {.backend = backend, .w = w, .bias = bias, .x = x, .rows = rows, .y = y};
    run(backend, matmul_worker, &task, (double)rows * w->rows * w->cols);
}

static void cpu_rope(kn_backend *base, const kn_rows *rows, const float *table, int heads, int head_dim, float *x) {
    const cpu_backend *backend = (const cpu_backend *)base;
    int half = head_dim / 2;
    for (int r = 0; r < rows->count; r++) {
        const float *cosines = table + (size_t)rows->position[r] * (size_t)head_dim;
        for (int h = 0; h < heads; h++, x += head_dim) backend->kernels->rope(x, cosines, cosines + half, half);
    }
}

static void store_head(const cpu_backend *backend, const kn_kv_cache *cache, const float *values, char *at) {
    if (cache->type == KN_F16) backend->kernels->to_f16(values, cache->head_dim, at);
    else memcpy(at, values, (size_t)cache->head_dim * sizeof *values);
}

static void cpu_kv_store(kn_backend *base, const kn_kv_cache *cache, int layer, const kn_rows *rows, const float *k,
                         const float *v) {
    const cpu_backend *backend = (const cpu_backend *)base;
    size_t page_bytes = kn_kv_page_bytes(cache), token_bytes = kn_kv_head_bytes(cache) / KN_PAGE_TOKENS;
    for (int r = 0; r < rows->count; r++) {
        int position = rows->position[r];
        char *page = (char *)cache->data + (size_t)rows->pages[r][position / KN_PAGE_TOKENS] * page_bytes;
        for (int h = 0; h < cache->kv_heads; h++, k += cache->head_dim, v += cache->head_dim) {
            char *at = page + key_offset(cache, layer, h) + (size_t)(position % KN_PAGE_TOKENS) * token_bytes;
            store_head(backend, cache, k, at);
            store_head(backend, cache, v, at + value_offset(cache));
        }
    }
}

/* Unit u is one KV head's group of query heads of one row. Workers take every workers-th unit, because
 * later rows of a prompt cost more. */
static void attention_worker(void *argument, int worker, int workers) {
    const cpu_task *task = argument;
    const kn_kv_cache *cache = task->cache;
    const cpu_backend *backend = task->backend;
    int group = task->heads / cache->kv_heads, units = task->where->count * cache->kv_heads;
    for (int unit = worker; unit < units; unit += workers) {
        int row = unit / cache->kv_heads, kv_head = unit % cache->kv_heads;
        kn_attention_head head = {.cache = (const char *)cache->data + key_offset(cache, task->layer, kv_head),
                                  .page_stride = kn_kv_page_bytes(cache),
                                  .value_offset = value_offset(cache),
                                  .pages = task->where->pages[row],
                                  .count = task->where->position[row] + 1,
                                  .head_dim = cache->head_dim,
                                  .scale = 1.0f / sqrtf((float)cache->head_dim),
                                  .scores = backend->scores + (size_t)worker * backend->score_stride};
        size_t at = ((size_t)row * (size_t)task->heads + (size_t)(kv_head * group)) * (size_t)cache->head_dim;
        for (int g = 0; g < group; g++, at += (size_t)cache->head_dim) {
            head.q = task->x + at;
            head.out = task->y + at;
            backend->kernels->attention[cache->type](&head);
        }
    }
}

static void cpu_attention(kn_backend *base, const kn_kv_cache *cache, int layer, const kn_rows *rows, const float *q,
                          int heads, float *out) {
    cpu_backend *backend = (cpu_backend *)base;
    double tokens = 0;
    for (int r = 0; r < rows->count; r++) tokens += rows->position[r] + 1;
    cpu_task task = {
        .backend = backend, .cache = cache, .layer = layer, .where = rows, .x = q, .heads = heads, .y = out};
    run(backend, attention_worker, &task, 2 * tokens * heads * cache->head_dim);
}

static void swiglu_worker(void *argument, int worker, int workers) {
    const cpu_task *task = argument;
    int first, last;
    kn_pool_split(task->rows, worker, workers, &first, &last);
    for (int i = first; i < last; i++) {
        size_t at = (size_t)i * (size_t)task->width;
        task->backend->kernels->swiglu(task->x + at, task->up + at, task->width, task->y + at);
    }
}

static void cpu_swiglu(kn_backend *base, const float *gate, const float *up, int rows, int width, float *out) {
    cpu_backend *backend = (cpu_backend *)base;
    cpu_task task = {.backend = backend, .x = gate, .up = up, .rows = rows, .width = width, .y = out};
    run(backend, swiglu_worker, &task, 16.0 * rows * width);
}

static void cpu_add(kn_backend *base, float *x, const float *y, int rows, int width) {
    ((const cpu_backend *)base)->kernels->add(x, y, rows * width);
}

static void cpu_close(kn_backend *base) {
    cpu_backend *backend = (cpu_backend *)base;
    kn_pool_close(backend->pool);
    bis_free(backend->scores);
    bis_free(backend);
}

static int cores_of_process(void) {
    cpu_set_t set;
    int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return count > 0 ? count : 1;
}

static const kn_cpu_kernels *choose_kernels(const char *limit, bis_error *error) {
    bool automatic = !strcmp(limit, "auto"), avx512 = !strcmp(limit, "avx512"), avx2 = !strcmp(limit, "avx2");
    if (!automatic && !avx512 && !avx2 && strcmp(limit, "reference") != 0) {
        bis_fail(error, BIS_ERR_INVALID, "cpu-isa is '%.40s': use auto, reference, avx2 or avx512", limit);
        return NULL;
    }
    const kn_cpu_kernels *kernels = NULL;
    if (automatic || avx512) kernels = kn_cpu_kernels_avx512();
    if (!kernels && (automatic || avx512 || avx2)) kernels = kn_cpu_kernels_avx2();
    return kernels ? kernels : kn_cpu_kernels_reference();
}

bis_status kn_cpu_open(int threads, const char *isa_limit, int max_context, int low_head_dim, kn_backend **out,
                       bis_error *error) {
    (void)low_head_dim; /* the low-bit operations come next */
    static const kn_ops ops = {.embed = cpu_embed,
                               .rmsnorm = cpu_rmsnorm,
                               .matmul = cpu_matmul,
                               .rope = cpu_rope,
                               .kv_store = cpu_kv_store,
                               .attention = cpu_attention,
                               .swiglu = cpu_swiglu,
                               .add = cpu_add,
                               .close = cpu_close};
    if (threads < 0 || threads > THREADS_MAX) {
        return bis_fail(error, BIS_ERR_INVALID, "threads is %d: use 1 to %d, or 0 for one per core", threads,
                        THREADS_MAX);
    }
    const kn_cpu_kernels *kernels = choose_kernels(isa_limit, error);
    if (!kernels) return BIS_ERR_INVALID;
    if (threads == 0) threads = cores_of_process();
    cpu_backend *backend = bis_calloc(1, sizeof *backend);
    if (!backend) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the CPU backend");
    backend->kernels = kernels;
    backend->score_stride = ((size_t)max_context + 15) / 16 * 16;
    backend->scores = bis_alloc_aligned((size_t)threads * backend->score_stride * sizeof(float));
    bis_status status = BIS_OK;
    if (!backend->scores)
        status = bis_fail(error, BIS_ERR_NOMEM, "no memory for attention over %d tokens", max_context);
    if (!status) status = kn_pool_open(threads, &backend->pool, error);
    if (status) {
        bis_free(backend->scores);
        bis_free(backend);
        return status;
    }
    memcpy(backend->name, "cpu ", 4);
    strncpy(backend->name + 4, kernels->name, sizeof backend->name - 5);
    backend->base = (kn_backend){.ops = &ops, .name = backend->name, .threads = threads};
    *out = &backend->base;
    return BIS_OK;
}
