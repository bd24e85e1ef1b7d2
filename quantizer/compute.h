/* The quantizer's door to matrix products and to several threads. A device library (cuBLAS) can take BLAS's place
 * behind these functions.
 *
 * Work is cut into pieces whose size does not depend on the number of threads, and a BLAS that computes each piece on
 * one thread: same inputs, same bits, on any number of threads of one kind of processor.
 */
#ifndef BISUP_QUANTIZER_COMPUTE_H
#define BISUP_QUANTIZER_COMPUTE_H

#include "quantizer/block.h"

typedef struct qz_compute qz_compute;

/* threads 0: one per core this process may use. */
bis_status qz_compute_open(int threads, qz_compute **out, bis_error *error);
void qz_compute_close(qz_compute *compute); /* NULL is allowed */
int qz_compute_threads(const qz_compute *compute);

/* A row-major matrix whose rows are `stride` numbers apart; transposed: it is read as its transpose. */
typedef struct qz_matrix {
    const qz_real *data;
    int stride;
    bool transposed;
} qz_matrix;

/* c [m, n] (rows c_stride apart) = alpha * a [m, k] * b [k, n] + beta * c. compute NULL: on this thread only. */
void qz_gemm(qz_compute *compute, int m, int n, int k, qz_real alpha, qz_matrix a, qz_matrix b, qz_real beta,
             qz_real *c, int c_stride);

/* Calls fn(argument, first, last, worker) for pieces of [0, count) of at most `grain`, on all threads; worker tells
 * which thread (0 .. qz_compute_threads() - 1), for scratch memory. Not to be nested. */
typedef void (*qz_range_fn)(void *argument, int first, int last, int worker);
void qz_parallel(qz_compute *compute, int count, int grain, qz_range_fn fn, void *argument);

/* Floating-point operations done by qz_gemm so far, for figures. */
double qz_compute_operations(const qz_compute *compute);

#endif
