/* Rounding a matrix to its grid: to nearest, or GPTQ (arXiv 2210.17323), which spreads each column's rounding error
 * over the columns not yet rounded, by the inverse Hessian of the inputs.
 */
#ifndef BISUP_QUANTIZER_GPTQ_H
#define BISUP_QUANTIZER_GPTQ_H

#include "common/status.h"
#include "kernels/quant.h"
#include "quantizer/tune.h"

/* A packed matrix that owns its arrays. */
typedef struct qz_packed {
    kn_qweight weight;
    void *memory;
} qz_packed;

void qz_packed_free(qz_packed *packed); /* frees what it points to */

/* Sum over rows of x x^T, [width, width] row-major F32 (BLAS; upper and lower triangle both filled by
 * qz_hessian_finish). */
typedef struct qz_hessian {
    qz_compute *compute; /* borrowed; NULL: this thread only */
    int width;
    uint64_t rows;
    float *sum;
} qz_hessian;

bis_status qz_hessian_open(qz_compute *compute, int width, qz_hessian *out, bis_error *error);
void qz_hessian_add(qz_hessian *hessian, const float *x, int rows);
void qz_hessian_finish(qz_hessian *hessian); /* divides by rows, completes the symmetric half */
void qz_hessian_free(qz_hessian *hessian);

typedef struct qz_round_options {
    kn_weight_format format;
    const qz_grid
        *grid; /* frozen scales; NULL: chosen here from each group's range (GPTQ: when it reaches the group) */
    double
        clip; /* without a grid: the range is multiplied by this; 0: the best of 0.5 .. 1 by squared error, per group */
    const qz_hessian *hessian; /* NULL: round to nearest */
    double damp;               /* share of the mean diagonal added to it: 0.01 */
} qz_round_options;

/* Rounds w [rows, cols] (outlier columns last), which becomes the decoded values, and fills *out. A Hessian that is not
 * positive definite after ten times more damping is BIS_ERR_INVALID with a text that says what to do (more
 * calibration). */
bis_status qz_round(float *w, int rows, int cols, const qz_round_options *options, qz_packed *out, bis_error *error);

#endif
