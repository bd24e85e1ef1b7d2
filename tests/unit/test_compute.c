/* Matrix products of the quantizer: right for all kinds of operands, the same bits on any number of threads, and with
 * OpenBLAS's buffers under our lock. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quantizer/compute.h"
#include "tests/support/random_data.h"

static qz_compute *open_compute(int threads) {
    qz_compute *compute;
    bis_error error = {0};
    if (qz_compute_open(threads, &compute, &error)) fail_msg("%s", error.text);
    return compute;
}

static float at(qz_matrix matrix, int row, int col) {
    return matrix.transposed ? matrix.data[col * matrix.stride + row] : matrix.data[row * matrix.stride + col];
}

static void check_product(qz_compute *compute, const int size[3], int transposed, float beta) {
    int m = size[0], n = size[1], k = size[2];
    qz_matrix a = {NULL, (transposed & 1 ? m : k) + 3, transposed & 1};
    qz_matrix b = {NULL, (transposed & 2 ? k : n) + 1, (transposed & 2) != 0};
    size_t a_size = (size_t)a.stride * (size_t)(a.transposed ? k : m),
           b_size = (size_t)b.stride * (size_t)(b.transposed ? n : k);
    size_t c_size = (size_t)m * (size_t)(n + 2);
    float *values_a = test_alloc(a_size * sizeof(float)), *values_b = test_alloc(b_size * sizeof(float));
    float *c = test_alloc(c_size * sizeof(float)), *before = test_alloc(c_size * sizeof(float));
    fill_random(values_a, a_size);
    fill_random(values_b, b_size);
    fill_random(c, c_size);
    memcpy(before, c, c_size * sizeof *c);
    a.data = values_a;
    b.data = values_b;
    qz_gemm(compute, m, n, k, 0.5f, a, b, beta, c, n + 2);
    for (int i = 0; i < m; i++) {
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int l = 0; l < k; l++) sum += (double)at(a, i, l) * at(b, l, j);
            sum = 0.5 * sum + beta * before[i * (n + 2) + j];
            assert_true(fabs(sum - c[i * (n + 2) + j]) <= 1e-5 * (k + 10));
        }
        for (int j = n; j < n + 2; j++) assert_true(c[i * (n + 2) + j] == before[i * (n + 2) + j]);
    }
    free(values_a);
    free(values_b);
    free(c);
    free(before);
}

static void test_products_are_right(void **state) {
    (void)state;
    static const int sizes[][3] = {{1, 1, 1}, {3, 130, 7}, {129, 5, 64}, {300, 33, 20}, {128, 128, 1}};
    qz_compute *computes[] = {NULL, open_compute(1), open_compute(3)};
    for (int c = 0; c < 3; c++) {
        for (int s = 0; s < 5; s++) {
            for (int transposed = 0; transposed < 4; transposed++) {
                check_product(computes[c], sizes[s], transposed, 0);
                check_product(computes[c], sizes[s], transposed, 1);
            }
        }
    }
    assert_true(qz_compute_operations(computes[1]) > 0);
    qz_compute_close(computes[1]);
    qz_compute_close(computes[2]);
}

/* Sizes at which OpenBLAS takes a buffer. Without a lock two threads would share one now and then. */
static void test_threads_do_not_disturb_each_other(void **state) {
    (void)state;
    enum { M = 520, N = 110, K = 110, TIMES = 150 };
    float *a = test_alloc(M * K * sizeof *a), *b = test_alloc(K * N * sizeof *b);
    float *expected = test_alloc(M * N * sizeof *expected), *c = test_alloc(M * N * sizeof *c);
    fill_random(a, M * K);
    fill_random(b, K * N);
    qz_gemm(NULL, M, N, K, 1, (qz_matrix){a, K, false}, (qz_matrix){b, N, false}, 0, expected, N);
    qz_compute *compute = open_compute(4);
    for (int i = 0; i < TIMES; i++) {
        qz_gemm(compute, M, N, K, 1, (qz_matrix){a, K, false}, (qz_matrix){b, N, false}, 0, c, N);
        assert_memory_equal(c, expected, M * N * sizeof *c);
    }
    qz_compute_close(compute);
    free(a);
    free(b);
    free(c);
    free(expected);
}

/* What the test above can only make likely: OpenBLAS's own calls for a buffer find our function. */
static void test_the_lock_is_in_place(void **state) {
    (void)state;
    static const char marker = 0; /* something of this program */
    Dl_info found = {0}, own = {0};
    void *function = dlsym(RTLD_DEFAULT, "blas_memory_alloc");
    assert_non_null(function);
    assert_true(dladdr(function, &found) != 0 && dladdr(&marker, &own) != 0);
    assert_ptr_equal(found.dli_fbase, own.dli_fbase);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products_are_right),
        cmocka_unit_test(test_threads_do_not_disturb_each_other),
        cmocka_unit_test(test_the_lock_is_in_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
