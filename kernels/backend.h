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
#include "kernels/hadamard.h"
#include "kernels/quant.h"
#include "kernels/tensor.h"

enum { KN_PAGE_TOKENS = 16 };

/* A paged KV cache with one or two pools of pages. A page holds KN_PAGE_TOKENS tokens of all layers:
 *   full pages   page -> layer -> (K, then V) -> KV head -> token -> head_dim elements of `type` (F32 or F16)
 *   low pages    page -> layer -> (K, then V) -> KV head -> KN_PAGE_TOKENS streams of codes (kn_packed_bytes(head_dim,
 *                low_bits) each), then KN_PAGE_TOKENS F16 scales, then KN_PAGE_TOKENS F16 minima (quant.h)
 * low_bits 0: all tokens are in full pages. Otherwise a sequence's first tokens, its prompt span (kn_rows.prompt), are
 * in full pages and the others in low pages.
 * Where key_table is not NULL (Atom), K is stored as it was before RoPE, in both kinds, and attention rotates what it
 * reads by this table (as the rope operation's). */
typedef struct kn_kv_cache {
    void *data; /* full pages */
    kn_type type;
    int layers, kv_heads, head_dim, pages;
    int low_bits; /* 0, 2, 3, 4, 8 */
    void *low_data;
    int low_pages;
    const float *key_table;
} kn_kv_cache;

size_t kn_kv_head_bytes(const kn_kv_cache *cache);     /* one KV head's K (or V) of one full page */
size_t kn_kv_page_bytes(const kn_kv_cache *cache);     /* a whole full page, all layers */
size_t kn_kv_low_head_bytes(const kn_kv_cache *cache); /* the same of low pages; 0 where there are none */
size_t kn_kv_low_page_bytes(const kn_kv_cache *cache);

/* Where the rows of a call stand: row r is the token at position[r] of the sequence whose page numbers are
 * pages[r][0 ...]. The prompt span of a sequence is its first P = prompt[r] tokens (P = 0 where prompt is NULL; all
 * tokens when the cache has no low pages): token t < P lives in full page pages[r][t / KN_PAGE_TOKENS], token t >= P in
 * low page pages[r][F + (t - P) / KN_PAGE_TOKENS], F = ceil(P / KN_PAGE_TOKENS): the two kinds never share a page. */
typedef struct kn_rows {
    int count;
    const int32_t *position;
    const int32_t *const *pages;
    const int32_t *prompt;
} kn_rows;

/* Rows of activations as a quantized linear reads them; memory is the caller's. Where format.bits is
 * KN_NOT_QUANTIZED, `values` holds F32 [rows, cols] and the codes are not used. */
typedef struct kn_activations {
    kn_act_format format;
    int rows, cols;
    int8_t *codes; /* [rows, cols] */
    float *scales; /* [rows, kn_weight_groups + (outliers > 0)] */
    float *values;
} kn_activations;

typedef struct kn_backend kn_backend;

typedef struct kn_ops {
    /* out[r] = F32 of row ids[r] of table [vocab, width]. */
    void (*embed)(kn_backend *backend, const kn_tensor *table, const int32_t *ids, int rows, float *out);
    /* out[r][i] = x[r][i] / sqrt(mean_i(x[r][i]^2) + eps) * weight[i]; out may be x. */
    void (*rmsnorm)(kn_backend *backend, const float *x, const float *weight, float eps, int rows, int width,
                    float *out);
    /* y[r][n] = sum_k x[r][k] * w[n][k] (+ bias[n] where bias is not NULL); y must not overlap x. */
    void (*matmul)(kn_backend *backend, const kn_tensor *w, const float *bias, const float *x, int rows, float *y);
    /* Quantizes x [rows, cols] for qmatmul: column c of the result is x[r][order[c]] (order NULL: x[r][c]), then
     * kn_act_encode; not quantized: copied. Uses out->format and the buffers, fills rows and cols. */
    void (*quantize)(kn_backend *backend, const float *x, int rows, int cols, const int32_t *order,
                     kn_activations *out);
    /* y[r][n] = sum over k of x[r][k] * w[n][k] (+ bias[n]), with quantized weights. Quantized activations: exact
     * integer sums in groups, as quant.h defines. Not quantized: the F32 dot product with the decoded weight row. */
    void (*qmatmul)(kn_backend *backend, const kn_qweight *w, const float *bias, const kn_activations *x, float *y);
    /* Hadamard transforms (hadamard.h) in place, of vectors inside rows of x [rows, width]. stride 1: each run of
     * `size` consecutive numbers (width / size of them a row). stride s > 1: for each i < s, the numbers i, i + s, i +
     * 2s, ... of a row (size * s = width): with s = head_dim this is the transform across heads. */
    void (*hadamard)(kn_backend *backend, const kn_hadamard *hadamard, int stride, int rows, int width, float *x);
    /* Rotates pairs (i, i + head_dim/2) of each head of x [rows, heads, head_dim] in place. table holds, for
     * each position, head_dim/2 cosines and then head_dim/2 sines. */
    void (*rope)(kn_backend *backend, const kn_rows *rows, const float *table, int heads, int head_dim, float *x);
    /* Stores k and v [rows, kv_heads, head_dim] at each row's position in its page of `layer`, in that page's
     * precision. */
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

/* The CPU backend. low_head_dim: head size of a cache that attention has to decode first (low pages, or a key_table);
 * 0 where there is none. threads 0: one per core this process may use. isa_limit: "auto", "reference", "avx2" or
 * "avx512"; the best variant at most this that the processor has. max_context: the most positions a sequence
 * will have (the attention's score rows are allocated here). Close with backend->ops->close. */
bis_status kn_cpu_open(int threads, const char *isa_limit, int max_context, int low_head_dim, kn_backend **out,
                       bis_error *error);

#endif
