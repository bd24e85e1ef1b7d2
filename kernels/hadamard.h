/* Orthonormal Hadamard-like transforms of any even size, for rotations (QuaRot, arXiv 2404.00456).
 *
 * size = order * 2^k: the fast Walsh-Hadamard transform over the powers of two, and a dense factor H_order: a Hadamard
 * matrix built by Paley's constructions where the order has one here (1, 2, 12, 20, 28, 36, 44, 60, 68, 76, 108, 140,
 * 148, ...), otherwise the orthonormal Hartley matrix cas(2 pi i j / n) / sqrt(n), which exists for every n. Which of
 * these is used depends on the size alone: the smallest Hadamard factor up to KN_HADAMARD_PALEY_MAX; where there is
 * none, the Hartley factor of the size's odd part. (Without a limit 11008 = 43 * 256 would be 5504 * 2, because
 * 5503 is a prime.) The matrix is H = H_order (x) W_(2^k), scaled to be orthonormal. It need not be symmetric.
 */
#ifndef BISUP_KERNELS_HADAMARD_H
#define BISUP_KERNELS_HADAMARD_H

#include "common/status.h"

enum {
    KN_HADAMARD_PALEY_MAX = 256,  /* a dense factor costs as many multiplications a number as its order */
    KN_HADAMARD_ORDER_MAX = 2048, /* of any dense factor; its matrix is held in float and double */
    KN_HADAMARD_SCRATCH = 8 * KN_HADAMARD_ORDER_MAX
};

typedef struct kn_hadamard kn_hadamard;

/* Immutable after opening. BIS_ERR_INVALID for a size below 1, BIS_ERR_UNSUPPORTED for one whose dense factor would be
 * larger than KN_HADAMARD_ORDER_MAX. */
bis_status kn_hadamard_open(int size, kn_hadamard **out, bis_error *error);
void kn_hadamard_close(kn_hadamard *hadamard); /* NULL is allowed */
int kn_hadamard_size(const kn_hadamard *hadamard);
int kn_hadamard_order(const kn_hadamard *hadamard); /* of the dense factor; 1: none */

/* x <- x H^T in place for one row of `size` numbers, that is y[i] = sum_j H[i][j] x[j]. Deterministic scalar order
 * (the definition for F32 kernels): butterflies a + b, a - b inside each run of 2^k numbers, from neighbours to halves;
 * then for each number a sum over the runs in rising order, from 0, of dense entry (1, -1, or the cas itself) times
 * number, product and sum each rounded; then one multiplication by 1 / sqrt(size). scratch: `size` numbers. */
void kn_hadamard_apply(const kn_hadamard *hadamard, float *x, float *scratch);
/* The same, to the bit, for each of the `stride` vectors x[i], x[i + stride], x[i + 2 stride], ... with i < stride, of
 * size * stride numbers. scratch: KN_HADAMARD_SCRATCH numbers, whatever the size. */
void kn_hadamard_apply_strided(const kn_hadamard *hadamard, int stride, float *x, float *scratch);
/* The same in double, for fusing into weights, and its inverse x <- x H (the transpose). */
void kn_hadamard_apply_double(const kn_hadamard *hadamard, double *x, double *scratch);
void kn_hadamard_apply_inverse_double(const kn_hadamard *hadamard, double *x, double *scratch);
/* The inverse in F32 (backward pass of the fine-tuner). */
void kn_hadamard_apply_inverse(const kn_hadamard *hadamard, float *x, float *scratch);

#endif
