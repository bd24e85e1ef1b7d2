/* No inverse is formed. With J the reversal of rows and columns, J a J = l l^T (Cholesky), so a = r r^T with r = J l J
 * upper triangular, and inverse(a) = u^T u with u = inverse(r) = J inverse(l) J. One factorization and one inversion of
 * a triangle: half the work of inverting and factoring again, and with smaller errors. Reversing both rows and columns
 * is reversing the whole array.
 *
 * Both steps go by blocks so that nearly all work is in products, which run on all threads (Debian's serial LAPACK
 * uses one); LAPACK does the blocks on the diagonal. */
#include "quantizer/inverse.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 128 };

/* LAPACK, as OpenBLAS exports it: column-major, so that its upper triangle is our lower one. The last arguments are
 * the lengths that Fortran compilers pass for character arguments. */
void spotrf_(const char *uplo, const int *n, float *a, const int *lda, int *info, size_t uplo_length);
void strtri_(const char *uplo, const char *diag, const int *n, float *a, const int *lda, int *info, size_t uplo_length,
             size_t diag_length);

int qz_inverse_panel(void) { return BLOCK; }

/* The lower triangle of a [size, size] becomes its Cholesky factor. */
static bool factor_diagonal(float *a, int size, int stride) {
    int info;
    spotrf_("U", &size, a, &stride, &info, 1);
    for (int i = 0; i < size && !info; i++) {
        float pivot = a[(size_t)i * (size_t)stride + (size_t)i];
        if (!(pivot > 0) || !isfinite(pivot)) info = i + 1;
    }
    return info == 0;
}

static bool invert_diagonal(float *a, int size, int stride) {
    int info;
    strtri_("U", "N", &size, a, &stride, &info, 1, 1);
    return info == 0;
}

/* inverse [size, size] = the inverse of the lower triangle of a; zeros above. */
static bool copy_inverse(const float *a, int size, int stride, float *inverse) {
    memset(inverse, 0, (size_t)size * (size_t)size * sizeof *inverse);
    for (int i = 0; i < size; i++) {
        memcpy(inverse + (size_t)i * (size_t)size, a + (size_t)i * (size_t)stride, ((size_t)i + 1) * sizeof *inverse);
    }
    return invert_diagonal(inverse, size, size);
}

static void copy_rows(const float *from, int from_stride, int rows, int cols, float *to, int to_stride) {
    for (int r = 0; r < rows; r++) {
        memcpy(to + (size_t)r * (size_t)to_stride, from + (size_t)r * (size_t)from_stride, (size_t)cols * sizeof *to);
    }
}

static int block_at(int at, int n) { return n - at < BLOCK ? n - at : BLOCK; }

/* The lower triangle of a becomes l with a = l l^T, one block of columns after the other. */
static bool cholesky(qz_compute *compute, float *a, int n, float *panel) {
    float inverse[BLOCK * BLOCK];
    size_t stride = (size_t)n;
    for (int at = 0; at < n; at += BLOCK) {
        int size = block_at(at, n), below = n - at - size;
        float *row = a + (size_t)at * stride, *diagonal = row + at;
        if (at) {
            qz_gemm(compute, size + below, size, at, -1, (qz_matrix){row, n, false}, (qz_matrix){row, n, true}, 1,
                    diagonal, n);
        }
        if (!factor_diagonal(diagonal, size, n)) return false;
        if (!below) break;
        if (!copy_inverse(diagonal, size, n, inverse)) return false;
        float *under = diagonal + (size_t)size * stride;
        copy_rows(under, n, below, size, panel, size);
        qz_gemm(compute, below, size, size, 1, (qz_matrix){panel, size, false}, (qz_matrix){inverse, size, true}, 0,
                under, n);
    }
    return true;
}

/* The lower triangle l of a becomes its inverse x. When the rows of block i are reached they hold
 * s = sum of l[i, k] x[k, .] over the blocks k < i, and x[i, .] = -inverse(l[i, i]) s; then the blocks below get their
 * share of x[i, .]. */
static bool invert_triangle(qz_compute *compute, float *a, int n, float *panel) {
    float inverse[BLOCK * BLOCK];
    size_t stride = (size_t)n;
    for (int at = 0; at < n; at += BLOCK) {
        int size = block_at(at, n), below = n - at - size;
        float *row = a + (size_t)at * stride, *diagonal = row + at;
        if (!copy_inverse(diagonal, size, n, inverse)) return false;
        if (at) {
            copy_rows(row, n, size, at, panel, at);
            qz_gemm(compute, size, at, size, -1, (qz_matrix){inverse, size, false}, (qz_matrix){panel, at, false}, 0,
                    row, n);
        }
        copy_rows(inverse, size, size, size, diagonal, n);
        if (!below) break;
        float *under = diagonal + (size_t)size * stride;
        copy_rows(under, n, below, size, panel, size);
        for (int r = 0; r < below; r++) memset(under + (size_t)r * stride, 0, (size_t)size * sizeof *under);
        qz_gemm(compute, below, at + size, size, 1, (qz_matrix){panel, size, false}, (qz_matrix){row, n, false}, 1,
                under - at, n);
    }
    return true;
}

static void reverse(float *a, int n) {
    for (size_t i = 0, j = (size_t)n * (size_t)n - 1; i < j; i++, j--) {
        float other = a[i];
        a[i] = a[j];
        a[j] = other;
    }
}

bool qz_inverse_factor(qz_compute *compute, float *a, int n, float *panel) {
    reverse(a, n);
    if (!cholesky(compute, a, n, panel) || !invert_triangle(compute, a, n, panel)) return false;
    for (int r = 0; r < n; r++) {
        float *row = a + (size_t)r * (size_t)n;
        memset(row + r + 1, 0, (size_t)(n - r - 1) * sizeof *row);
        if (!isfinite(row[r])) return false;
    }
    reverse(a, n);
    return true;
}
