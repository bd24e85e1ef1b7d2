/* The inner loops of the simulated block: on one row, one head or one group, on the calling thread.
 *
 * Compiled from one source (loops_template.h) for several instruction sets. What works on single elements gives the
 * same bits in all of them; sums may differ in their order.
 */
#ifndef BISUP_QUANTIZER_LOOPS_H
#define BISUP_QUANTIZER_LOOPS_H

#include "quantizer/block.h"

/* One quantizer: y = clamp(rint((x - offset) / scale), least, most) * scale + offset. soft: without rint. */
typedef struct qz_step {
    qz_real scale, offset, least, most;
    bool soft;
} qz_step;

/* One step of Adam over a range of parameters. */
typedef struct qz_adam {
    qz_real rate;              /* learning rate, with the first moment's bias correction */
    qz_real second_correction; /* 1 / (1 - beta2^step) */
    qz_real gradient_factor;   /* gradient-norm clipping */
    qz_real first_decay, second_decay, epsilon;
} qz_adam;

typedef struct qz_loops {
    const char *name;
    void (*range)(const qz_real *x, int count, qz_real *low, qz_real *high); /* count >= 1 */
    /* out may be x */
    void (*quantize)(const qz_step *step, const qz_real *x, int count, qz_real *out);
    /* gradient: of y on entry, of x on exit (straight through where not clamped, 0 elsewhere). scale_sum: gradient of
     * the scale with offset fixed; clipped_sum: sum of y's gradients where clamped. */
    void (*quantize_backward)(const qz_step *step, const qz_real *x, int count, qz_real *gradient, qz_real *scale_sum,
                              qz_real *clipped_sum);
    /* out = x * inverse * gain, inverse = 1 / sqrt(mean(x^2) + eps), which is returned; out may be x */
    qz_real (*norm)(const qz_real *x, const qz_real *gain, qz_real eps, int count, qz_real *out);
    /* adds to dx the gradient of norm()'s x */
    void (*norm_backward)(const qz_real *x, const qz_real *gain, qz_real eps, int count, const qz_real *gradient,
                          qz_real *dx);
    /* rotates pairs (i, i + half) by the angles whose cosines, then sines, are in table; direction -1: back */
    void (*rotate)(const qz_real *table, int half, qz_real direction, qz_real *x);
    void (*softmax)(qz_real *x, int count, qz_real factor);                                   /* of factor * x */
    void (*softmax_backward)(const qz_real *p, int count, qz_real factor, qz_real *gradient); /* in place */
    /* Kullback-Leibler divergence of softmax(x) from softmax(target); x becomes its gradient times factor. target is
     * used up. */
    double (*divergence)(qz_real *target, qz_real *x, int count, qz_real factor);
    void (*swiglu)(const qz_real *gate, const qz_real *up, int count, qz_real *out); /* out may be gate */
    /* d_gate may be gradient */
    void (*swiglu_backward)(const qz_real *gate, const qz_real *up, int count, const qz_real *gradient, qz_real *d_gate,
                            qz_real *d_up);
    void (*add)(qz_real *x, const qz_real *y, int count);                          /* x += y */
    void (*multiply)(const qz_real *x, const qz_real *y, int count, qz_real *out); /* out may be x */
    void (*add_products)(const qz_real *x, const qz_real *y, qz_real factor, int count,
                         qz_real *out);                                                          /* out += f x y */
    double (*squared_error)(const qz_real *x, const qz_real *y, int count, qz_real *difference); /* NULL allowed */
    void (*adam)(const qz_adam *adam, int count, const qz_real *gradient, qz_real *first, qz_real *second,
                 qz_real *parameter);
} qz_loops;

/* The best set that this processor has. */
const qz_loops *qz_loops_get(void);

const qz_loops *qz_loops_baseline(void);
const qz_loops *qz_loops_avx2(void);   /* NULL where not compiled in or not supported here */
const qz_loops *qz_loops_avx512(void); /* the same */

#endif
