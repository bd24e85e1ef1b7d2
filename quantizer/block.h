/* One decoder block in floating point, as the quantizer sees it: after a base method's transforms, with its
 * quantizers simulated, forward and backward.
 *
 * The mathematics equals the runtime's (runtime/forward.c) with one difference: quantized numbers are simulated by
 * floats with the same values. Order of operations of a block, x [tokens, hidden] of one sequence:
 *   a = rmsnorm(x) * norm1          input of q, k, v: columns in the order attn_order, quantized (site QZ_SITE_ATTN)
 *   q, k, v = linear(a) + bias; Q/K norms (Qwen3) over each head
 *   KV, key_before_rope:  k <- quantize(k), then RoPE on q and k            (Atom)
 *   KV, otherwise:        RoPE on q and k, head Hadamard on q and k where key_hadamard is set, then k <- quantize(k)
 * (QuaRot) v <- quantize(v) o = attention over [prompt K, V at full precision ; k, v of this sequence], causal o:
 * Hadamard across heads where heads_hadamard is set; columns in o_order; quantized (QZ_SITE_O); x += linear_o f =
 * rmsnorm(x) * norm2; columns in ffn_order; quantized (QZ_SITE_FFN) h = silu(gate(f)) * up(f); Hadamard of size ffn
 * where ffn_hadamard is set; quantized (QZ_SITE_DOWN); x += linear_down (The order of down_proj's input is folded into
 * gate's and up's rows.)
 *
 * Numbers are qz_real: float, or double when compiled with QZ_DOUBLE (the gradient tests).
 */
#ifndef BISUP_QUANTIZER_BLOCK_H
#define BISUP_QUANTIZER_BLOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"
#include "kernels/hadamard.h"
#include "kernels/quant.h"

#ifdef QZ_DOUBLE
typedef double qz_real;
#else
typedef float qz_real;
#endif

typedef enum qz_linear_id { QZ_Q, QZ_K, QZ_V, QZ_O, QZ_GATE, QZ_UP, QZ_DOWN, QZ_LINEARS } qz_linear_id;
typedef enum qz_site { QZ_SITE_ATTN, QZ_SITE_O, QZ_SITE_FFN, QZ_SITE_DOWN, QZ_SITES } qz_site;

/* The site whose quantized numbers a linear reads. */
qz_site qz_site_of(qz_linear_id linear);

typedef struct qz_shape {
    int hidden, ffn, heads, kv_heads, head_dim;
    double norm_eps;
} qz_shape;

int qz_linear_rows(const qz_shape *shape, qz_linear_id linear);
int qz_linear_cols(const qz_shape *shape, qz_linear_id linear);
int qz_site_width(const qz_shape *shape, qz_site site); /* = cols of the linears that read it */

/* What is quantized and how. 16 bits: not quantized. */
typedef struct qz_spec {
    int weight_bits, act_bits, kv_bits;
    int group;
    bool weight_symmetric;
    int outliers[QZ_SITES]; /* INT8 columns at the end of each site's input; 0: none */
    bool key_before_rope, key_hadamard, heads_hadamard, ffn_hadamard;
} qz_spec;

/* The weights of a block, all owned by the block. Absent vectors are NULL. */
typedef struct qz_block {
    qz_shape shape;
    qz_real *weight[QZ_LINEARS]; /* [rows, cols], columns already in the site's order */
    qz_real *bias[QZ_LINEARS];   /* [rows] or NULL */
    qz_real *norm1, *norm2;      /* [hidden], in natural order */
    qz_real *q_norm, *k_norm;    /* [head_dim] or NULL */
    int32_t
        *order[QZ_SITES]; /* site input column c is natural channel order[c]; NULL: natural. Never for QZ_SITE_DOWN. */
} qz_block;

bis_status qz_block_alloc(const qz_shape *shape, bool qkv_bias, bool o_bias, bool mlp_bias, bool qk_norm,
                          qz_block **out, bis_error *error);
void qz_block_free(qz_block *block); /* NULL is allowed */

/* K and V of prompt tokens at full precision, in the run-time basis: as attention uses them (after RoPE and Hadamard).
 */
typedef struct qz_prompt {
    int tokens;           /* 0: none */
    const qz_real *k, *v; /* [tokens, kv_heads, head_dim] */
} qz_prompt;

#endif
