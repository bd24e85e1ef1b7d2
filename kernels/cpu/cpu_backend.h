/* What the files of the CPU backend share: the backend itself, and the operations that stand in files of their own. */
#ifndef BISUP_KERNELS_CPU_BACKEND_H
#define BISUP_KERNELS_CPU_BACKEND_H

#include "kernels/backend.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/pool.h"

typedef struct kn_cpu_backend {
    kn_backend base;
    const kn_cpu_kernels *kernels;
    kn_pool *pool;
    float *scores; /* [threads, score_stride] */
    size_t score_stride;
    float *plain; /* [threads, plain_stride]: one KV head of one sequence as F32 pages of that head alone */
    size_t plain_stride;
    int32_t *plain_pages; /* 0, 1, 2, ...: their numbers */
    char name[32];
} kn_cpu_backend;

/* Runs fn on all threads, or on the caller alone where it has fewer than some thousand multiply-adds of work. */
void kn_cpu_run(kn_cpu_backend *backend, kn_pool_fn fn, void *task, double work);
/* A worker's output columns [*first, *last): none when first >= last. */
void kn_cpu_split_columns(int columns, int worker, int workers, int *first, int *last);

/* cpu_quant.c */
void kn_cpu_quantize(kn_backend *base, const float *x, int rows, int cols, const int32_t *order, kn_activations *out);
void kn_cpu_qmatmul(kn_backend *base, const kn_qweight *w, const float *bias, const kn_activations *x, float *y);
void kn_cpu_hadamard(kn_backend *base, const kn_hadamard *hadamard, int stride, int rows, int width, float *x);
/* cpu_kv.c */
void kn_cpu_kv_store(kn_backend *base, const kn_kv_cache *cache, int layer, const kn_rows *rows, const float *k,
                     const float *v);
void kn_cpu_attention(kn_backend *base, const kn_kv_cache *cache, int layer, const kn_rows *rows, const float *q,
                      int heads, float *out);

#endif
