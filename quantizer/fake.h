/* Simulated quantizers of a row, forward and backward: floats that have the values of the numbers of kernels/quant.h,
 * exactly so in float (tests/unit/test_simulate.c).
 *
 * Backward: rounding counts as the identity (straight through). All else is differentiated, scales included: by the
 * clip and by the largest number of the group that they come from. So without rounding (soft) gradients are exact.
 */
#ifndef BISUP_QUANTIZER_FAKE_H
#define BISUP_QUANTIZER_FAKE_H

#include "quantizer/loops.h"

/* The input of a linear: groups of low-bit columns, then `outliers` columns as one INT8 group without a clip. */
typedef struct qz_fake_act {
    const qz_loops *loops;
    const kn_bits *bits; /* NULL: not quantized, and nothing below is called */
    int group, outliers;
    qz_real clip;
    bool soft;
} qz_fake_act;

void qz_fake_act_row(const qz_fake_act *act, const qz_real *x, int cols, qz_real *out); /* out may be x */
/* gradient: of the result on entry, of x on exit. Returns the gradient of clip. */
qz_real qz_fake_act_backward(const qz_fake_act *act, const qz_real *x, int cols, qz_real *gradient);

/* Keys or values of one head of one token. */
typedef struct qz_fake_kv {
    const qz_loops *loops;
    const kn_bits *bits;
    bool soft;
} qz_fake_kv;

void qz_fake_kv_head(const qz_fake_kv *kv, const qz_real *x, int width, qz_real *out); /* out may be x */
void qz_fake_kv_backward(const qz_fake_kv *kv, const qz_real *x, int width, qz_real *gradient);

/* A row of weights. Its clips are sigmoids of logits, one for the greatest and one for the least number of each group;
 * logits NULL: no clip. */
typedef struct qz_fake_weight {
    const qz_loops *loops;
    const kn_bits *bits;
    kn_weight_format format;
    bool soft;
} qz_fake_weight;

/* out may be w. scales and zeros (either may be NULL) receive each group's; not when soft. */
void qz_fake_weight_row(const qz_fake_weight *weight, const qz_real *w, int cols, const qz_real *high_logits,
                        const qz_real *low_logits, qz_real *out, float *scales, uint8_t *zeros);
/* gradient: of the result on entry, of w on exit. d_high and d_low (NULL exactly when the logits are): written, of the
 * logits. */
void qz_fake_weight_backward(const qz_fake_weight *weight, const qz_real *w, int cols, const qz_real *high_logits,
                             const qz_real *low_logits, qz_real *gradient, qz_real *d_high, qz_real *d_low);

/* The format of the linears that read `site`. */
void qz_fake_weight_format(const qz_spec *spec, qz_site site, kn_weight_format *format);

#endif
