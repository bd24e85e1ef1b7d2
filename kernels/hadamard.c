#include "kernels/hadamard.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "common/alloc.h"

struct kn_hadamard {
    int size, order;
    double scale;   /* 1 / sqrt(size) */
    double *dense;  /* [order, order], not normalised: rows of length sqrt(order) */
    float *dense32; /* the same numbers, rounded */
};

enum { RUN = 16 };

#define REAL float
#define NAME(name) name##_float
#include "kernels/hadamard_template.h"
#undef REAL
#undef NAME
#define REAL double
#define NAME(name) name##_double
#include "kernels/hadamard_template.h"

static bool is_prime(int n) {
    if (n < 2) return false;
    for (int d = 2; d <= n / d; d++) {
        if (n % d == 0) return false;
    }
    return true;
}

/* The prime that Paley's first construction (order q + 1, q = 3 mod 4) or his second (order 2 (q + 1), q = 1 mod 4)
 * makes a Hadamard matrix of this order from; 0 where there is none. *second says which. */
static int paley_prime(int order, bool *second) {
    int q = order - 1;
    *second = false;
    if (q % 4 == 3 && is_prime(q)) return q;
    *second = true;
    q = order / 2 - 1;
    return order % 2 == 0 && q % 4 == 1 && is_prime(q) ? q : 0;
}

/* residue[a] = 1 where a is a nonzero square modulo q, -1 where it is none, 0 for a = 0. */
static void fill_residues(int q, signed char *residue) {
    memset(residue, -1, (size_t)q);
    residue[0] = 0;
    for (long long a = 1; a < q; a++) residue[a * a % q] = 1;
}

/* Entry of the bordered matrix of residues [0 1; c Q], Q[i][j] = residue(i - j), c = 1 where it is symmetric
 * (q = 1 mod 4) and -1 where it is skew: the matrix of order q + 1 that both constructions start from. */
static int conference(const signed char *residue, int q, int i, int j) {
    if (i == 0) return j == 0 ? 0 : 1;
    if (j == 0) return q % 4 == 1 ? 1 : -1;
    return residue[((i - j) % q + q) % q];
}

static void fill_paley(int q, bool second, int order, const signed char *residue, double *out) {
    static const int spread[2][2] = {{1, 1}, {1, -1}}, diagonal[2][2] = {{1, -1}, {-1, -1}};
    for (int i = 0; i < order; i++) {
        for (int j = 0; j < order; j++) {
            int value;
            if (!second) value = i == j ? 1 : conference(residue, q, i, j);
            else if (i / 2 == j / 2) value = diagonal[i % 2][j % 2];
            else value = conference(residue, q, i / 2, j / 2) * spread[i % 2][j % 2];
            *out++ = value;
        }
    }
}

static void fill_hartley(int order, double *out) {
    static const double TWO_PI = 6.283185307179586476925;
    for (long long i = 0; i < order; i++) {
        for (long long j = 0; j < order; j++) {
            double angle = TWO_PI * (double)(i * j % order) / order;
            *out++ = cos(angle) + sin(angle);
        }
    }
}

/* The order of the dense factor, and its prime (0: Hartley, or no dense factor). */
static int choose_order(int size, int *q, bool *second) {
    int odd = size;
    while (odd % 2 == 0) odd /= 2;
    *q = 0;
    if (odd == 1) return 1;
    for (long long order = odd; order <= KN_HADAMARD_PALEY_MAX && size % order == 0; order *= 2) {
        *q = paley_prime((int)order, second);
        if (*q) return (int)order;
    }
    return odd;
}

static bis_status fill_dense(kn_hadamard *self, int q, bool second) {
    size_t count = (size_t)self->order * (size_t)self->order;
    signed char *residue = bis_malloc((size_t)q + 1);
    self->dense = bis_calloc(count, sizeof *self->dense);
    self->dense32 = bis_calloc(count, sizeof *self->dense32);
    if (!residue || !self->dense || !self->dense32) {
        bis_free(residue);
        return BIS_ERR_NOMEM;
    }
    if (q) {
        fill_residues(q, residue);
        fill_paley(q, second, self->order, residue, self->dense);
    } else {
        fill_hartley(self->order, self->dense);
    }
    for (size_t i = 0; i < count; i++) self->dense32[i] = (float)self->dense[i];
    bis_free(residue);
    return BIS_OK;
}

bis_status kn_hadamard_open(int size, kn_hadamard **out, bis_error *error) {
    if (size < 1) return bis_fail(error, BIS_ERR_INVALID, "no Hadamard transform has %d numbers: use 1 or more", size);
    bool second = false;
    int q, order = choose_order(size, &q, &second);
    if (order > KN_HADAMARD_ORDER_MAX) {
        return bis_fail(error, BIS_ERR_UNSUPPORTED,
                        "a Hadamard transform of %d numbers needs a dense factor of %d: at most %d are supported", size,
                        order, KN_HADAMARD_ORDER_MAX);
    }
    kn_hadamard *self = bis_calloc(1, sizeof *self);
    if (!self) return bis_fail(error, BIS_ERR_NOMEM, "no memory for a Hadamard transform of %d numbers", size);
    self->size = size;
    self->order = order;
    self->scale = 1 / sqrt(size);
    if (order > 1 && fill_dense(self, q, second)) {
        kn_hadamard_close(self);
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for a Hadamard transform of %d numbers", size);
    }
    *out = self;
    return BIS_OK;
}

void kn_hadamard_close(kn_hadamard *hadamard) {
    if (!hadamard) return;
    bis_free(hadamard->dense);
    bis_free(hadamard->dense32);
    bis_free(hadamard);
}

int kn_hadamard_size(const kn_hadamard *hadamard) { return hadamard->size; }
int kn_hadamard_order(const kn_hadamard *hadamard) { return hadamard->order; }

void kn_hadamard_apply(const kn_hadamard *hadamard, float *x, float *scratch) {
    transform_float(hadamard, hadamard->dense32, false, 1, x, scratch, (size_t)hadamard->size);
}

void kn_hadamard_apply_strided(const kn_hadamard *hadamard, int stride, float *x, float *scratch) {
    transform_float(hadamard, hadamard->dense32, false, (size_t)stride, x, scratch, KN_HADAMARD_SCRATCH);
}

void kn_hadamard_apply_inverse(const kn_hadamard *hadamard, float *x, float *scratch) {
    transform_float(hadamard, hadamard->dense32, true, 1, x, scratch, (size_t)hadamard->size);
}

void kn_hadamard_apply_double(const kn_hadamard *hadamard, double *x, double *scratch) {
    transform_double(hadamard, hadamard->dense, false, 1, x, scratch, (size_t)hadamard->size);
}

void kn_hadamard_apply_inverse_double(const kn_hadamard *hadamard, double *x, double *scratch) {
    transform_double(hadamard, hadamard->dense, true, 1, x, scratch, (size_t)hadamard->size);
}
