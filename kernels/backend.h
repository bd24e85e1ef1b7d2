/* The operations a device offers to the forward pass, as a small table of functions.
 *
 * Invariants that every backend keeps (tests enumerate backends and variants):
 *   - Rows are independent: what is computed for one row (token) is bit for bit the same whatever other
 *     rows are in the call, and however many threads or blocks share the work. Each sum's order depends
 *     only on the weights' shape or on the row's own position.
 *   - Attention reads keys and values as they are stored in the cache, also for rows of the same call.
 *   - No operation allocates.
 * One thread (the engine's) calls a backend; operations finish in order and, for the host, before returning.
 * Activations are F32, rows are contiguous: x[row * width + i].
 */
#ifndef BISUP_KERNELS_BACKEND_H
#define BISUP_KERNELS_BACKEND_H

#include <stdint.h>

#include "common/status.h"
#include "kernels/tensor.h"

enum { KN_PAGE_TOKENS = 16 };

/* A paged KV cache. A page holds KN_PAGE_TOKENS tokens of all layers:
 * page -> layer -> (K, then V) -> KV head -> token -> head_dim elements of `type` (F32 or F16). */
typedef struct kn_kv_cache {
    void *data;
    kn_type type;
    int layers, kv_heads, head_dim, pages;
} kn_kv_cache;

size_t kn_kv_head_bytes(const kn_kv_cache *cache); /* one KV head's K (or V) of one page */
size_t kn_kv_page_bytes(const kn_kv_cache *cache); /* a whole page, all layers */

/* Where the rows of a call stand: row r is the token at position[r] of the sequence whose page numbers are
 * pages[r][0 ...]: token t of the sequence lives in page pages[r][t / KN_PAGE_TOKENS]. */
typedef struct kn_rows {
    int count;
    const int32_t *position;
    const int32_t *const *pages;
} kn_rows;

typedef struct kn_backend kn_backend;

typedef struct kn_ops {
    /* out[r] = F32 of row ids[r] of table [vocab, width]. */
    void (*embed)(kn_backend *backend, const kn_tensor *table, const int32_t *ids, int rows, float *out);
    /* out[r][i] = x[r][i] / sqrt(mean_i(x[r][i]^2) + eps) * weight[i]; out may be x. */
    void (*rmsnorm)(kn_backend *backend, const float *x, const float *weight, float eps, int rows, int width,
                    float *out);
    /* y[r][n] = sum_k x[r][k] * w[n][k] (+ bias[n] where bias is not NULL); y must not overlap x. */
    void (*matmul)(kn_backend *backend, const kn_tensor *w, const float *bias, const float *x, int rows, float *y);
    /* Rotates pairs (i, i + head_dim/2) of each head of x [rows, heads, head_dim] in place. table holds, for
     * each position, head_dim/2 cosines and then head_dim/2 sines. */
    void (*rope)(kn_backend *backend, const kn_rows *rows, const float *table, int heads, int head_dim, float *x);
    /* Stores k and v [rows, kv_heads, head_dim] at each row's position in its page of `layer`. */
    void (*kv_store)(kn_backend *backend, const kn_kv_cache *cache, int layer, const kn_rows *rows, const float *k,
                     const float *v);
    /* out [rows, heads, head_dim]: softmax(q.k / sqrt(head_dim)) v over positions 0..position[r] of the row's
     * sequence. heads is a multiple of kv_heads; query head h reads KV head h / (heads / kv_heads). */
    void (*attention)(kn_backend *backend, const kn_kv_cache *cache, int layer, const kn_rows *rows, const float *q,
                      int heads, float *out);
    /* out[i] = gate[i] / (1 + exp(-gate[i])) * up[i]; out may be gate. */
    void (*swiglu)(kn_backend *backend, const float *gate, const float *up, int rows, int width, float *out);
    /* x[i] += y[i] */
    void (*add)(kn_backend *backend, float *x, const float *y, int rows, int width);
    void (*close)(kn_backend *backend);
} kn_ops;

struct kn_backend {
    const kn_ops *ops;
    const char *name; /* "cpu avx512" */
    int threads;
};

/* The CPU backend. threads 0: one per core this process may use. isa_limit: "auto", "reference", "avx2" or
 * "avx512"; the best variant at most this that the processor has. max_context: the most positions a sequence
 * will have (the attention's score rows are allocated here). Close with backend->ops->close. */
bis_status kn_cpu_open(int threads, const char *isa_limit, int max_context, kn_backend **out, bis_error *error);

#endif
