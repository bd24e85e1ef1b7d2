/* The CPU variants' inner kernels: single-threaded, on slices of an operation's work.
 *
 * Every variant computes the same sums in the same order, so all give the same bits (tested):
 *   - A dot product over k has 16 partial sums; partial sum l takes the k with k % 16 == l in rising order,
 *     each with one fused multiply-add; they are added as a tree: l with l+8, l+4, l+2, l+1.
 *   - exp is the polynomial described in kernels_reference.c.
 * That order depends on nothing but the length, which gives the row independence backend.h promises.
 */
#ifndef BISUP_KERNELS_CPU_KERNELS_H
#define BISUP_KERNELS_CPU_KERNELS_H

#include <stddef.h>

#include "kernels/backend.h"

/* One slice of a matrix product: y[r * y_stride + n] for r < rows and first <= n < last. */
typedef struct kn_matmul_slice {
    const void *w; /* [*, cols] row-major */
    const float *bias;
    const float *x; /* [rows, cols] */
    float *y;
    int cols, first, last, rows;
    size_t y_stride;
} kn_matmul_slice;

/* One query head of one row against `count` cached tokens of its KV head. */
typedef struct kn_attention_head {
    const float *q;      /* [head_dim] */
    const char *cache;   /* K of this layer and KV head in page 0 */
    size_t page_stride;  /* bytes from page to page */
    size_t value_offset; /* bytes from K to V */
    const int32_t *pages;
    int count, head_dim;
    float scale;
    float *scores; /* scratch [count rounded up to 16] */
    float *out;    /* [head_dim] */
} kn_attention_head;

enum { KN_LANES = 16 };

/* The sum of a dot product's partial sums, which it overwrites. */
static inline float kn_tree_sum(float lanes[KN_LANES]) {
    for (int width = KN_LANES / 2; width > 0; width /= 2) {
        for (int l = 0; l < width; l++) lanes[l] += lanes[l + width];
    }
    return lanes[0];
}

/* A part [0, count) of the columns of one row of weights against rows of activations that are x_stride apart. */
typedef struct kn_part {
    size_t x_stride;
    int rows, count;
} kn_part;

typedef struct kn_cpu_kernels {
    const char *name;
    void (*matmul[KN_TYPE_COUNT])(const kn_matmul_slice *slice);
    void (*attention[KN_TYPE_COUNT])(const kn_attention_head *head); /* F32, F16 */
    void (*rmsnorm)(const float *x, const float *weight, float eps, int width, float *out);
    void (*rope)(float *head, const float *cosines, const float *sines, int half);
    void (*swiglu)(const float *gate, const float *up, int width, float *out);
    void (*add)(float *x, const float *y, int width);
    void (*to_f32[KN_TYPE_COUNT])(const void *in, int count, float *out);
    void (*to_f16)(const float *in, int count, void *out);
    /* lanes[r][k % 16] += w[k] * x[r][k]: the partial sums of dot products, a part that starts at a multiple of 16 */
    void (*dot_part)(const kn_part *part, const float *w, const float *x, float (*lanes)[KN_LANES]);
    /* sums[r] += sum over k of w[k] * x[r][k] */
    void (*dot_codes)(const kn_part *part, const int16_t *w, const int8_t *x, int32_t *sums);
    /* out[r] = fmaf(sums[r], x_scales[r * stride] * w_scale, out[r]) */
    void (*add_scaled)(const int32_t *sums, const float *x_scales, size_t stride, float w_scale, int rows, float *out);
} kn_cpu_kernels;

const kn_cpu_kernels *kn_cpu_kernels_reference(void);
const kn_cpu_kernels *kn_cpu_kernels_avx2(void);   /* NULL where not compiled in or not supported here */
const kn_cpu_kernels *kn_cpu_kernels_avx512(void); /* the same */

#endif
