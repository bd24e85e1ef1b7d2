/* The simulated block: forward with quantizers, for targets, for Hessians, for carrying activations on. */
#ifndef BISUP_QUANTIZER_SIMULATE_H
#define BISUP_QUANTIZER_SIMULATE_H

#include "quantizer/compute.h"

/* How a pass treats quantizers. QZ_SOFT clamps but does not round: differentiable, for gradient tests only. */
typedef enum qz_mode { QZ_FLOAT, QZ_QUANTIZED, QZ_SOFT } qz_mode;

/* Called with a site's input as its linears read it (ordered, transformed, quantized): x [rows, width]. */
typedef void (*qz_observer)(void *user, qz_site site, const qz_real *x, int rows, int width);

typedef struct qz_pass {
    qz_compute *compute; /* NULL: this thread only */
    const qz_block *block;
    const qz_spec *spec;
    qz_mode mode;
    const float *act_clip;     /* [QZ_SITES]; NULL: all 1. Multiplies the largest magnitude of low-bit groups */
    const qz_real *rope_table; /* [max position, head_dim]: head_dim/2 cosines, then as many sines (runtime/rope.h) */
    qz_prompt prompt;          /* of this layer; its tokens stand at positions 0 .. tokens-1, the rows after them */
    qz_observer observe;       /* may be NULL */
    void *observe_user;
} qz_pass;

/* y = block(x), x and y [samples, tokens, hidden], each sample a sequence of its own that continues the prompt.
 * In QZ_QUANTIZED weights are rounded to nearest on the fly as spec.weight_bits says, each group's whole range; set
 * weight_bits to 16 for weights that are on their grid already. y may be x. Memory for one sample at a time. */
bis_status qz_simulate(const qz_pass *pass, const qz_real *x, int samples, int tokens, qz_real *y, bis_error *error);

/* K and V of a sequence at full precision in the run-time basis (for qz_prompt): k and v [tokens, kv_heads, head_dim];
 * y (may be NULL) receives the block's output in QZ_FLOAT. */
bis_status qz_simulate_prompt(qz_compute *compute, const qz_block *block, const qz_spec *spec,
                              const qz_real *rope_table, const qz_real *x, int tokens, qz_real *k, qz_real *v,
                              qz_real *y, bis_error *error);

#endif
