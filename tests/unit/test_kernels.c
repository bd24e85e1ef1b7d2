/* Every CPU variant against the scalar reference, bit for bit, on random shapes with tails and misaligned
 * pointers; the reference against double precision and against OpenBLAS. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <cblas.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/pool.h"
#include "tests/support/random_data.h"

/* A random matrix of the type, at an address that is aligned to nothing. *memory is to be freed. */
static kn_tensor random_tensor(kn_type type, int rows, int cols, void **memory) {
    size_t count = (size_t)rows * (size_t)cols, bytes = kn_type_bytes(type);
    *memory = test_alloc(count * bytes + 1);
    char *data = (char *)*memory + 1;
    for (size_t i = 0; i < count; i++) {
        float value = random_float();
        uint16_t half = type == KN_F16 ? kn_f32_to_f16(value) : kn_f32_to_bf16(value);
        if (type == KN_F32) memcpy(data + i * 4, &value, 4);
        else memcpy(data + i * 2, &half, 2);
    }
    return (kn_tensor){data, type, rows, cols};
}

static const kn_cpu_kernels *variant(int i) {
    switch (i) {
    case 0: return kn_cpu_kernels_avx2();
    case 1: return kn_cpu_kernels_avx512();
    default: return NULL;
    }
}

enum { VARIANTS = 2 };

/* Says which variants this machine could not run, so that a pass is not mistaken for a check of all. */
static void test_variants_present(void **state) {
    (void)state;
    for (int i = 0; i < VARIANTS; i++) {
        if (variant(i)) print_message("checked: %s\n", variant(i)->name);
        else print_message("not checked, this processor does not have it: %s\n", i ? "avx512" : "avx2");
    }
    assert_string_equal(kn_cpu_kernels_reference()->name, "reference");
}

static void check_matmul(const kn_cpu_kernels *kernels, kn_type type, int rows, int columns, int cols) {
    void *memory;
    kn_tensor w = random_tensor(type, columns, cols, &memory);
    float *x = test_alloc((size_t)rows * (size_t)cols * 4), *bias = test_alloc((size_t)columns * 4);
    size_t outputs = (size_t)rows * (size_t)columns;
    float *expected = test_alloc(outputs * 4), *got = test_alloc(outputs * 4);
    fill_random(x, (size_t)rows * (size_t)cols);
    fill_random(bias, (size_t)columns);
    int first = random_below(columns), last = first + 1 + random_below(columns - first);
    kn_matmul_slice slice = {.w = w.data, .bias = random_below(2) ? bias : NULL, .x = x, .cols = cols, .rows = rows};
    slice.first = first;
    slice.last = last;
    slice.y_stride = (size_t)columns;
    slice.y = expected;
    kn_cpu_kernels_reference()->matmul[type](&slice);
    slice.y = got;
    kernels->matmul[type](&slice);
    assert_memory_equal(got, expected, outputs * 4); /* outside [first, last) both are still zero */
    free(memory);
    free(x);
    free(bias);
    free(expected);
    free(got);
}

static void test_matmul_variants(void **state) {
    (void)state;
    for (int v = 0; v < VARIANTS; v++) {
        if (!variant(v)) continue;
        for (int type = 0; type < KN_TYPE_COUNT; type++) {
            for (int i = 0; i < 60; i++) {
                check_matmul(variant(v), (kn_type)type, 1 + random_below(70), 1 + random_below(40),
                             1 + random_below(90));
            }
            check_matmul(variant(v), (kn_type)type, 1, 17, 2048);
            check_matmul(variant(v), (kn_type)type, 131, 9, 64);
        }
    }
}

/* The reference itself: within float rounding of a sum in double, and of OpenBLAS. */
static void test_matmul_reference_is_a_matrix_product(void **state) {
    (void)state;
    enum { ROWS = 5, COLUMNS = 7, COLS = 131 };
    float w[COLUMNS * COLS], x[ROWS * COLS], y[ROWS * COLUMNS], blas[ROWS * COLUMNS];
    fill_random(w, COLUMNS * COLS);
    fill_random(x, ROWS * COLS);
    kn_matmul_slice slice = {.w = w, .x = x, .y = y, .cols = COLS, .last = COLUMNS, .rows = ROWS, .y_stride = COLUMNS};
    kn_cpu_kernels_reference()->matmul[KN_F32](&slice);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, ROWS, COLUMNS, COLS, 1, x, COLS, w, COLS, 0, blas, COLUMNS);
    for (int r = 0; r < ROWS; r++) {
        for (int n = 0; n < COLUMNS; n++) {
            double sum = 0;
            for (int k = 0; k < COLS; k++) sum += (double)w[n * COLS + k] * x[r * COLS + k];
            assert_float_equal(y[r * COLUMNS + n], sum, 1e-4);
            assert_float_equal(blas[r * COLUMNS + n], sum, 1e-4);
        }
    }
}

/* A small cache with shuffled pages and one sequence. */
typedef struct test_cache {
    kn_kv_cache cache;
    int32_t pages[8];
} test_cache;

static test_cache make_cache(kn_type type, int kv_heads, int head_dim, int layers) {
    test_cache t = {.cache = {.type = type, .layers = layers, .kv_heads = kv_heads, .head_dim = head_dim, .pages = 8},
                    .pages = {5, 0, 7, 2, 1, 6, 3, 4}};
    size_t bytes = kn_kv_page_bytes(&t.cache) * 8;
    t.cache.data = test_alloc(bytes);
    for (size_t i = 0; i < bytes / kn_type_bytes(type); i++) {
        if (type == KN_F32) ((float *)t.cache.data)[i] = random_float();
        else ((uint16_t *)t.cache.data)[i] = kn_f32_to_f16(random_float());
    }
    return t;
}

static void check_attention(const kn_cpu_kernels *kernels, kn_type type, int count, int head_dim) {
    test_cache t = make_cache(type, 1, head_dim, 1);
    float *q = test_alloc((size_t)head_dim * 4), *expected = test_alloc((size_t)head_dim * 4);
    float *got = test_alloc((size_t)head_dim * 4), scores[8 * KN_PAGE_TOKENS];
    fill_random(q, (size_t)head_dim);
    kn_attention_head head = {.q = q,
                              .cache = t.cache.data,
                              .page_stride = kn_kv_page_bytes(&t.cache),
                              .value_offset = kn_kv_head_bytes(&t.cache),
                              .pages = t.pages,
                              .count = count,
                              .head_dim = head_dim,
                              .scale = 0.3f,
                              .scores = scores,
                              .out = expected};
    kn_cpu_kernels_reference()->attention[type](&head);
    head.out = got;
    kernels->attention[type](&head);
    assert_memory_equal(got, expected, (size_t)head_dim * 4);
    free(t.cache.data);
    free(q);
    free(expected);
    free(got);
}

static void test_attention_variants(void **state) {
    (void)state;
    static const int head_dims[] = {2, 6, 16, 24, 64, 80, 100, 128, 256};
    for (int v = 0; v < VARIANTS; v++) {
        if (!variant(v)) continue;
        for (size_t d = 0; d < sizeof head_dims / sizeof *head_dims; d++) {
            for (int count = 1; count <= 8 * KN_PAGE_TOKENS; count += 1 + random_below(9)) {
                check_attention(variant(v), KN_F32, count, head_dims[d]);
                check_attention(variant(v), KN_F16, count, head_dims[d]);
            }
        }
    }
}

/* Attention through the backend (store, pages, groups of heads) against a plain computation in double. */
static void test_attention_is_attention(void **state) {
    (void)state;
    enum { HEADS = 6, KV_HEADS = 2, DIM = 10, TOKENS = 37, LAYER = 1 };
    kn_backend *backend;
    bis_error error;
    assert_int_equal(kn_cpu_open(2, "auto", 128, 0, &backend, &error), BIS_OK);
    test_cache t = make_cache(KN_F32, KV_HEADS, DIM, 2);
    static float k[TOKENS * KV_HEADS * DIM], v[TOKENS * KV_HEADS * DIM], q[TOKENS * HEADS * DIM],
        out[TOKENS * HEADS * DIM];
    fill_random(k, TOKENS * KV_HEADS * DIM);
    fill_random(v, TOKENS * KV_HEADS * DIM);
    fill_random(q, TOKENS * HEADS * DIM);
    int32_t positions[TOKENS];
    const int32_t *pages[TOKENS];
    for (int i = 0; i < TOKENS; i++) {
        positions[i] = i;
        pages[i] = t.pages;
    }
    kn_rows rows = {TOKENS, positions, pages, NULL};
    backend->ops->kv_store(backend, &t.cache, LAYER, &rows, k, v);
    backend->ops->attention(backend, &t.cache, LAYER, &rows, q, HEADS, out);
    for (int r = 0; r < TOKENS; r++) {
        for (int h = 0; h < HEADS; h++) {
            double weight[TOKENS], total = 0, sums[DIM] = {0};
            for (int s = 0; s <= r; s++) {
                double score = 0;
                for (int d = 0; d < DIM; d++) {
                    score += (double)q[(r * HEADS + h) * DIM + d] * k[(s * KV_HEADS + h / 3) * DIM + d];
                }
                weight[s] = exp(score / sqrt(DIM));
                total += weight[s];
                for (int d = 0; d < DIM; d++) sums[d] += weight[s] * v[(s * KV_HEADS + h / 3) * DIM + d];
            }
            for (int d = 0; d < DIM; d++) {
                assert_float_equal(out[(r * HEADS + h) * DIM + d], sums[d] / total, 2e-5);
            }
        }
    }
    backend->ops->close(backend);
    free(t.cache.data);
}

static void test_small_operations_variants(void **state) {
    (void)state;
    const kn_cpu_kernels *reference = kn_cpu_kernels_reference();
    static float x[300], y[300], weight[300], expected[300], got[300];
    static uint16_t halves_expected[300], halves_got[300];
    for (int v = 0; v < VARIANTS; v++) {
        const kn_cpu_kernels *kernels = variant(v);
        for (int width = 2; kernels && width < 290; width += 2) {
            fill_random(x, 300);
            fill_random(y, 300);
            fill_random(weight, 300);
            reference->rmsnorm(x + 1, weight, 1e-5f, width, expected);
            kernels->rmsnorm(x + 1, weight, 1e-5f, width, got);
            assert_memory_equal(got, expected, sizeof got);
            for (int i = 0; i < width; i++) x[i] *= 30;
            reference->swiglu(x, y, width, expected);
            kernels->swiglu(x, y, width, got);
            assert_memory_equal(got, expected, sizeof got);
            memcpy(expected, x, sizeof x);
            memcpy(got, x, sizeof x);
            reference->rope(expected, y, weight, width / 2);
            kernels->rope(got, y, weight, width / 2);
            assert_memory_equal(got, expected, sizeof got);
            reference->add(expected, y, width);
            kernels->add(got, y, width);
            assert_memory_equal(got, expected, sizeof got);
            reference->to_f16(x + 1, width, halves_expected);
            kernels->to_f16(x + 1, width, halves_got);
            assert_memory_equal(halves_got, halves_expected, sizeof halves_got);
            for (int type = KN_F16; type <= KN_BF16; type++) {
                reference->to_f32[type](halves_expected + 1, width - 1, expected);
                kernels->to_f32[type](halves_expected + 1, width - 1, got);
                assert_memory_equal(got, expected, sizeof got);
            }
        }
    }
}

/* silu over the whole range, against double: covers the exponential. */
static void test_swiglu_accuracy(void **state) {
    (void)state;
    for (float g = -80; g < 80; g += 0.0137f) {
        float one = 1, out;
        kn_cpu_kernels_reference()->swiglu(&g, &one, 1, &out);
        double expected = g / (1 + exp(-(double)g));
        assert_true(fabs(out - expected) <= 4e-7 * fabs(expected) + 1e-30);
    }
    float edges[] = {-200, 200, -1e30f, 1e30f}, ones[] = {1, 1, 1, 1}, out[4];
    kn_cpu_kernels_reference()->swiglu(edges, ones, 4, out);
    assert_float_equal(out[0], 0, 1e-30);
    assert_float_equal(out[1], 200, 0);
    assert_float_equal(out[2], 0, 1e-7);
    assert_true(out[3] == 1e30f);
}

static void test_rows_do_not_depend_on_neighbours_or_threads(void **state) {
    (void)state;
    enum { ROWS = 70, COLUMNS = 200, COLS = 333 };
    bis_error error;
    for (int type = 0; type < KN_TYPE_COUNT; type++) {
        void *memory;
        kn_tensor w = random_tensor((kn_type)type, COLUMNS, COLS, &memory);
        static float x[ROWS * COLS], alone[COLUMNS], together[ROWS * COLUMNS];
        fill_random(x, ROWS * COLS);
        for (int threads = 1; threads <= 5; threads += 2) {
            kn_backend *backend;
            assert_int_equal(kn_cpu_open(threads, "auto", 16, 0, &backend, &error), BIS_OK);
            backend->ops->matmul(backend, &w, NULL, x, ROWS, together);
            for (int r = 0; r < ROWS; r++) {
                backend->ops->matmul(backend, &w, NULL, x + r * COLS, 1, alone);
                assert_memory_equal(alone, together + r * COLUMNS, sizeof alone);
            }
            backend->ops->close(backend);
        }
        free(memory);
    }
}

typedef struct pool_check {
    int seen[8];
    int calls;
} pool_check;

static void pool_task(void *task, int worker, int workers) {
    pool_check *check = task;
    check->seen[worker] += workers;
}

static void test_pool_runs_every_worker_once(void **state) {
    (void)state;
    for (int threads = 1; threads <= 7; threads++) {
        kn_pool *pool;
        bis_error error;
        assert_int_equal(kn_pool_open(threads, &pool, &error), BIS_OK);
        assert_int_equal(kn_pool_threads(pool), threads);
        pool_check check = {0};
        for (int i = 0; i < 500; i++) kn_pool_run(pool, pool_task, &check);
        for (int w = 0; w < 8; w++) assert_int_equal(check.seen[w], w < threads ? 500 * threads : 0);
        kn_pool_close(pool);
    }
    for (int units = 0; units < 40; units++) {
        for (int workers = 1; workers < 9; workers++) {
            int expected_first = 0, first, last;
            for (int w = 0; w < workers; w++) {
                kn_pool_split(units, w, workers, &first, &last);
                assert_int_equal(first, expected_first);
                assert_in_range(last - first, units / workers, units / workers + 1);
                expected_first = last;
            }
            assert_int_equal(expected_first, units);
        }
    }
}

static void test_backend_refuses_bad_options(void **state) {
    (void)state;
    kn_backend *backend;
    bis_error error;
    assert_int_equal(kn_cpu_open(1, "sse9", 16, 0, &backend, &error), BIS_ERR_INVALID);
    assert_non_null(strstr(error.text, "sse9"));
    assert_int_equal(kn_cpu_open(-1, "auto", 16, 0, &backend, &error), BIS_ERR_INVALID);
    assert_int_equal(kn_cpu_open(100000, "auto", 16, 0, &backend, &error), BIS_ERR_INVALID);
    assert_int_equal(kn_cpu_open(2, "reference", 16, 0, &backend, &error), BIS_OK);
    assert_string_equal(backend->name, "cpu reference");
    backend->ops->close(backend);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_variants_present),
        cmocka_unit_test(test_matmul_variants),
        cmocka_unit_test(test_matmul_reference_is_a_matrix_product),
        cmocka_unit_test(test_attention_variants),
        cmocka_unit_test(test_attention_is_attention),
        cmocka_unit_test(test_small_operations_variants),
        cmocka_unit_test(test_swiglu_accuracy),
        cmocka_unit_test(test_rows_do_not_depend_on_neighbours_or_threads),
        cmocka_unit_test(test_pool_runs_every_worker_once),
        cmocka_unit_test(test_backend_refuses_bad_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
