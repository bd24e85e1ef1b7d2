/* How far the quantized model's next-token probabilities are from the original's, with gradient: final norm, head, and
 * the Kullback-Leibler divergence, piece of rows by piece, so that no logits of a whole window are ever in memory.
 */
#ifndef BISUP_QUANTIZER_DIVERGENCE_H
#define BISUP_QUANTIZER_DIVERGENCE_H

#include "quantizer/compute.h"

/* Borrowed. Logits are rmsnorm(x) * norm times the head transposed, for both models. */
typedef struct qz_head {
    int hidden, vocab;
    double norm_eps;
    const qz_real *norm, *weight; /* [hidden], [vocab, hidden] */
} qz_head;

typedef struct qz_divergence qz_divergence;

bis_status qz_divergence_open(qz_compute *compute, const qz_head *head, qz_divergence **out, bis_error *error);
void qz_divergence_close(qz_divergence *divergence); /* NULL is allowed */

/* What it needs beside the head. */
uint64_t qz_divergence_bytes(int hidden, int vocab);

/* The sum over rows of KL(original || quantized), from the last blocks' outputs `original` and `quantized` [rows,
 * hidden]. gradient [rows, hidden] (NULL: none): of the sum times factor, for `quantized`. */
double qz_divergence_rows(qz_divergence *divergence, const qz_real *original, const qz_real *quantized, int rows,
                          qz_real factor, qz_real *gradient);

#endif
