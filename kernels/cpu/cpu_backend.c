/* The CPU backend: splits each operation over the pool's workers and calls the chosen variant's kernels.
 *
 * The split never changes a result, because kernels compute each output element on its own (cpu_kernels.h).
 * Operations too small to be worth waking other threads run on the caller.
 */
#include "kernels/cpu/cpu_backend.h"

#include <sched.h>
#include <stdbool.h>
#include <string.h>

#include "common/alloc.h"

enum {
    THREADS_MAX = 256,
    PARALLEL_WORK = 32 * 1024 /* multiply-adds below which one thread is quicker */
};

/* One operation's arguments, as its workers see them; each operation uses its own part. */
typedef struct cpu_task {
    const kn_cpu_backend *backend;
    const kn_tensor *w;
    const float *x, *bias, *up;
    float *y;
    int rows, width;
} cpu_task;

void kn_cpu_run(kn_cpu_backend *backend, kn_pool_fn fn, void *task, double work) {
    if (work < PARALLEL_WORK) fn(task, 0, 1);
    else kn_pool_run(backend->pool, fn, task);
}

void kn_cpu_split_columns(int columns, int worker, int workers, int *first, int *last) {
    enum { UNIT = 16 };
    kn_pool_split((columns + UNIT - 1) / UNIT, worker, workers, first, last);
    *first *= UNIT;
    *last = *last * UNIT < columns ? *last * UNIT : columns;
}

static void cpu_embed(kn_backend *base, const kn_tensor *table, const int32_t *ids, int rows, float *out) {
    const kn_cpu_backend *backend = (const kn_cpu_backend *)base;
    size_t row_bytes = (size_t)table->cols * kn_type_bytes(table->type);
    for (int r = 0; r < rows; r++) {
        const char *row = (const char *)table->data + (size_t)ids[r] * row_bytes;
        backend->kernels->to_f32[table->type](row, table->cols, out + (size_t)r * (size_t)table->cols);
    }
}

static void cpu_rmsnorm(kn_backend *base, const float *x, const float *weight, float eps, int rows, int width,
                        float *out) {
    const kn_cpu_backend *backend = (const kn_cpu_backend *)base;
    for (size_t at = 0, end = (size_t)rows * (size_t)width; at < end; at += (size_t)width) {
        backend->kernels->rmsnorm(x + at, weight, eps, width, out + at);
    }
}

static void matmul_worker(void *argument, int worker, int workers) {
    const cpu_task *task = argument;
    int first, last, columns = task->w->rows;
    kn_cpu_split_columns(columns, worker, workers, &first, &last);
    kn_matmul_slice slice = {.w = task->w->data,
                             .bias = task->bias,
                             .x = task->x,
                             .y = task->y,
                             .cols = task->w->cols,
                             .first = first,
                             .last = last,
                             .rows = task->rows,
                             .y_stride = (size_t)columns};
    task->backend->kernels->matmul[task->w->type](&slice);
}

static void cpu_matmul(kn_backend *base, const kn_tensor *w, const float *bias, const float *x, int rows, float *y) {
    kn_cpu_backend *backend = (kn_cpu_backend *)base;
    cpu_task task = {.backend = backend, .w = w, .bias = bias, .x = x, .rows = rows, .y = y};
    kn_cpu_run(backend, matmul_worker, &task, (double)rows * w->rows * w->cols);
}

static void cpu_rope(kn_backend *base, const kn_rows *rows, const float *table, int heads, int head_dim, float *x) {
    const kn_cpu_backend *backend = (const kn_cpu_backend *)base;
    int half = head_dim / 2;
    for (int r = 0; r < rows->count; r++) {
        const float *cosines = table + (size_t)rows->position[r] * (size_t)head_dim;
        for (int h = 0; h < heads; h++, x += head_dim) backend->kernels->rope(x, cosines, cosines + half, half);
    }
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
    kn_cpu_backend *backend = (kn_cpu_backend *)base;
    cpu_task task = {.backend = backend, .x = gate, .up = up, .rows = rows, .width = width, .y = out};
    kn_cpu_run(backend, swiglu_worker, &task, 16.0 * rows * width);
}

static void cpu_add(kn_backend *base, float *x, const float *y, int rows, int width) {
    ((const kn_cpu_backend *)base)->kernels->add(x, y, rows * width);
}

static void cpu_close(kn_backend *base) {
    kn_cpu_backend *backend = (kn_cpu_backend *)base;
    kn_pool_close(backend->pool);
    bis_free(backend->scores);
    bis_free(backend->plain);
    bis_free(backend->plain_pages);
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

/* The attention's scratch memory: scores, and where the cache has to be decoded, a sequence in plain F32. */
static bis_status open_scratch(kn_cpu_backend *backend, int threads, int max_context, int low_head_dim,
                               bis_error *error) {
    size_t pages = ((size_t)max_context + KN_PAGE_TOKENS - 1) / KN_PAGE_TOKENS, workers = (size_t)threads;
    backend->score_stride = ((size_t)max_context + KN_LANES - 1) / KN_LANES * KN_LANES;
    backend->scores = bis_alloc_aligned(workers * backend->score_stride * sizeof(float));
    if (!backend->scores) return bis_fail(error, BIS_ERR_NOMEM, "no memory for attention over %d tokens", max_context);
    if (low_head_dim <= 0) return BIS_OK;
    backend->plain_stride = pages * 2 * KN_PAGE_TOKENS * (size_t)low_head_dim;
    backend->plain = bis_alloc_aligned(workers * backend->plain_stride * sizeof(float));
    backend->plain_pages = bis_alloc_aligned(pages * sizeof *backend->plain_pages);
    if (!backend->plain || !backend->plain_pages) {
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for attention over %d quantized tokens", max_context);
    }
    for (size_t i = 0; i < pages; i++) backend->plain_pages[i] = (int32_t)i;
    return BIS_OK;
}

bis_status kn_cpu_open(int threads, const char *isa_limit, int max_context, int low_head_dim, kn_backend **out,
                       bis_error *error) {
    static const kn_ops ops = {.embed = cpu_embed,
                               .rmsnorm = cpu_rmsnorm,
                               .matmul = cpu_matmul,
                               .quantize = kn_cpu_quantize,
                               .qmatmul = kn_cpu_qmatmul,
                               .hadamard = kn_cpu_hadamard,
                               .rope = cpu_rope,
                               .kv_store = kn_cpu_kv_store,
                               .attention = kn_cpu_attention,
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
    kn_cpu_backend *backend = bis_calloc(1, sizeof *backend);
    if (!backend) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the CPU backend");
    backend->kernels = kernels;
    bis_status status = open_scratch(backend, threads, max_context, low_head_dim, error);
    if (!status) status = kn_pool_open(threads, &backend->pool, error);
    if (status) {
        bis_free(backend->scores);
        bis_free(backend->plain);
        bis_free(backend->plain_pages);
        bis_free(backend);
        return status;
    }
    memcpy(backend->name, "cpu ", 4);
    strncpy(backend->name + 4, kernels->name, sizeof backend->name - 5);
    backend->base = (kn_backend){.ops = &ops, .name = backend->name, .threads = threads};
    *out = &backend->base;
    return BIS_OK;
}
