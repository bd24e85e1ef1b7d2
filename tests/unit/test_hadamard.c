/* Hadamard-like transforms against their definition: orthonormal, a Kronecker product, invertible, the same in float
 * and double. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "kernels/hadamard.h"
#include "tests/support/random_data.h"

static kn_hadamard *open_size(int size) {
    kn_hadamard *hadamard = NULL;
    bis_error error;
    if (kn_hadamard_open(size, &hadamard, &error)) fail_msg("%s", error.text);
    assert_int_equal(kn_hadamard_size(hadamard), size);
    return hadamard;
}

/* The matrix's column j is the transform of unit vector j. Row-major [size, size], the caller frees. */
static double *matrix_of(const kn_hadamard *hadamard) {
    size_t size = (size_t)kn_hadamard_size(hadamard);
    double *matrix = test_alloc(size * size * sizeof *matrix), *x = test_alloc(size * sizeof *x),
           *scratch = test_alloc(size * sizeof *scratch);
    for (size_t j = 0; j < size; j++) {
        memset(x, 0, size * sizeof *x);
        x[j] = 1;
        kn_hadamard_apply_double(hadamard, x, scratch);
        for (size_t i = 0; i < size; i++) matrix[i * size + j] = x[i];
    }
    free(x);
    free(scratch);
    return matrix;
}

static void check_orthonormal(const double *matrix, int size) {
    for (int i = 0; i < size; i++) {
        for (int j = i; j < size; j++) {
            double sum = 0;
            for (int k = 0; k < size; k++) sum += matrix[i * size + k] * matrix[j * size + k];
            assert_true(fabs(sum - (i == j)) < 1e-12 * size);
        }
    }
}

typedef struct expected_order {
    int size, order;
    bool hadamard; /* the dense factor's entries are all 1 or -1 */
} expected_order;

/* Sizes of models, and the dense factor that the header's rule gives for each. */
static const expected_order cases[] = {
    {1, 1, true},       {2, 1, true},        {4, 1, true},       {64, 1, true},     {128, 1, true},
    {4096, 1, true},    {6, 3, false},       {12, 12, true},     {20, 20, true},    {24, 12, true},
    {28, 28, true},     {36, 36, true},      {44, 44, true},     {60, 60, true},    {68, 68, true},
    {76, 76, true},     {108, 108, true},    {115, 115, false},  {140, 140, true},  {148, 148, true},
    {172, 43, false},   {768, 12, true},     {2816, 44, true},   {5120, 20, true},  {6912, 108, true},
    {11008, 43, false}, {13696, 107, false}, {13824, 108, true}, {14336, 28, true}, {17408, 68, true},
    {18944, 148, true}, {28672, 28, true},   {32768, 1, true},   {3, 3, false},     {7, 7, false}};

enum { CASES = sizeof cases / sizeof *cases, WHOLE_MATRIX_MOST = 256 };

static void test_orders(void **state) {
    (void)state;
    for (int c = 0; c < CASES; c++) {
        kn_hadamard *hadamard = open_size(cases[c].size);
        assert_int_equal(kn_hadamard_order(hadamard), cases[c].order);
        kn_hadamard_close(hadamard);
    }
}

/* Whole matrices of all small sizes: orthonormal, entries of equal magnitude where the factor is a Hadamard matrix,
 * otherwise cas; and the structure H_order (x) W, W[a][b] = (-1)^popcount(a & b). */
static void test_matrices(void **state) {
    (void)state;
    for (int size = 1; size <= WHOLE_MATRIX_MOST; size++) {
        if (size > 64 && size % 4 && size != 115) continue;
        kn_hadamard *hadamard = open_size(size);
        int order = kn_hadamard_order(hadamard), block = size / order;
        double *matrix = matrix_of(hadamard), length = 1 / sqrt(size);
        check_orthonormal(matrix, size);
        bool hartley = order % 2 == 1 && order > 1;
        for (int i = 0; i < size; i++) {
            for (int j = 0; j < size; j++) {
                double value = matrix[i * size + j], dense = matrix[i / block * block * size + j / block * block];
                int sign = __builtin_popcount((unsigned)(i % block) & (unsigned)(j % block)) % 2 ? -1 : 1;
                assert_true(fabs(value - dense * sign) < 1e-12);
                if (!hartley) assert_true(fabs(fabs(value) - length) < 1e-12);
            }
        }
        for (int a = 0; a < order && hartley; a++) {
            for (int b = 0; b < order; b++) {
                double angle = 2 * acos(-1) * a * b / order;
                assert_true(fabs(matrix[a * block * size + b * block] - (cos(angle) + sin(angle)) * length) < 1e-10);
            }
        }
        free(matrix);
        kn_hadamard_close(hadamard);
    }
}

/* Every size: inner products are kept (H^T H = 1 on random vectors), both inverses, float as double. */
static void test_vectors(void **state) {
    (void)state;
    for (int c = 0; c < CASES; c++) {
        int size = cases[c].size;
        size_t n = (size_t)size;
        kn_hadamard *hadamard = open_size(size);
        double *x = test_alloc(n * sizeof *x), *y = test_alloc(n * sizeof *y), *kept = test_alloc(n * sizeof *kept);
        double *scratch = test_alloc(n * sizeof *scratch);
        float *f = test_alloc(n * sizeof *f), *g = test_alloc(n * sizeof *g);
        for (size_t i = 0; i < n; i++) {
            f[i] = random_float();
            kept[i] = x[i] = f[i];
            y[i] = random_float();
        }
        double product = 0, norm = 0, product_after = 0, norm_after = 0;
        for (size_t i = 0; i < n; i++) {
            product += x[i] * y[i];
            norm += x[i] * x[i];
        }
        kn_hadamard_apply_double(hadamard, x, scratch);
        kn_hadamard_apply_double(hadamard, y, scratch);
        kn_hadamard_apply(hadamard, f, g);
        for (size_t i = 0; i < n; i++) {
            product_after += x[i] * y[i];
            norm_after += x[i] * x[i];
            assert_true(fabs(f[i] - x[i]) < 2e-5);
        }
        assert_true(fabs(product - product_after) < 1e-11 * norm && fabs(norm - norm_after) < 1e-11 * norm);
        kn_hadamard_apply_inverse_double(hadamard, x, scratch);
        kn_hadamard_apply_inverse(hadamard, f, g);
        for (size_t i = 0; i < n; i++) {
            assert_true(fabs(x[i] - kept[i]) < 1e-11);
            assert_true(fabs(f[i] - kept[i]) < 4e-5);
        }
        free(x);
        free(y);
        free(kept);
        free(scratch);
        free(f);
        free(g);
        kn_hadamard_close(hadamard);
    }
}

/* Interleaved vectors have the bits of each vector alone. */
static void test_strided(void **state) {
    (void)state;
    static const int sizes[] = {1, 2, 6, 8, 12, 28, 32, 40, 115, 172, 5120}, strides[] = {1, 2, 7, 16, 64, 80};
    static float scratch[KN_HADAMARD_SCRATCH];
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        kn_hadamard *hadamard = open_size(sizes[s]);
        size_t size = (size_t)sizes[s];
        for (size_t t = 0; t < sizeof strides / sizeof *strides; t++) {
            size_t stride = (size_t)strides[t];
            float *x = test_alloc(size * stride * sizeof *x), *one = test_alloc(size * sizeof *one);
            float *expected = test_alloc(size * stride * sizeof *expected), *other = test_alloc(size * sizeof *other);
            fill_random(x, size * stride);
            for (size_t i = 0; i < stride; i++) {
                for (size_t k = 0; k < size; k++) one[k] = x[k * stride + i];
                kn_hadamard_apply(hadamard, one, other);
                for (size_t k = 0; k < size; k++) expected[k * stride + i] = one[k];
            }
            kn_hadamard_apply_strided(hadamard, (int)stride, x, scratch);
            assert_memory_equal(x, expected, size * stride * sizeof *x);
            free(x);
            free(one);
            free(expected);
            free(other);
        }
        kn_hadamard_close(hadamard);
    }
}

static void test_refusals(void **state) {
    (void)state;
    kn_hadamard *hadamard = NULL;
    bis_error error;
    assert_int_equal(kn_hadamard_open(0, &hadamard, &error), BIS_ERR_INVALID);
    assert_int_equal(kn_hadamard_open(-4, &hadamard, &error), BIS_ERR_INVALID);
    assert_int_equal(kn_hadamard_open(2 * 4099, &hadamard, &error), BIS_ERR_UNSUPPORTED);
    assert_non_null(strstr(error.text, "4099"));
    for (long allowed = 0; allowed < 4; allowed++) {
        bis_alloc_fail_after(allowed);
        assert_int_equal(kn_hadamard_open(24, &hadamard, &error), BIS_ERR_NOMEM);
        assert_null(hadamard);
    }
    bis_alloc_fail_after(4);
    assert_int_equal(kn_hadamard_open(24, &hadamard, &error), BIS_OK);
    bis_alloc_fail_after(-1);
    kn_hadamard_close(hadamard);
    kn_hadamard_close(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_orders),  cmocka_unit_test(test_matrices), cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_strided), cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
