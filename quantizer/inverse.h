/* The factor of an inverse that GPTQ works with. */
#ifndef BISUP_QUANTIZER_INVERSE_H
#define BISUP_QUANTIZER_INVERSE_H

#include "quantizer/compute.h"

/* a [n, n] row-major, symmetric positive definite, becomes the upper triangular u with inverse(a) = u^T u (zeros below
 * its diagonal). panel: n * qz_inverse_panel() floats of scratch. False where a is not positive definite to the
 * precision of floats (then a is spoilt). */
bool qz_inverse_factor(qz_compute *compute, float *a, int n, float *panel);
int qz_inverse_panel(void);

#endif
