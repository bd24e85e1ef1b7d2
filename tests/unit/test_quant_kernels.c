/* The quantized linears and rotations of every CPU variant, with different numbers of threads: against naive integers
 * and doubles, and each row alone against the same row in a batch, bit for bit. (The cache: test_quant_kv.c.) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "kernels/cpu/cpu_kernels.h"
#include "tests/support/quant_data.h"
#include "tests/support/random_data.h"

static const char *const isas[] = {"reference", "avx2", "avx512"};
enum { ISAS = 3 };

static const kn_cpu_kernels *variant(int i) {
    if (i == 0) return kn_cpu_kernels_reference();
    return i == 1 ? kn_cpu_kernels_avx2() : kn_cpu_kernels_avx512();
}

/* NULL where this processor does not have the variant. */
static kn_backend *open_backend(int isa, int threads) {
    kn_backend *backend = NULL;
    bis_error error;
    if (!variant(isa)) return NULL;
    if (kn_cpu_open(threads, isas[isa], 64, 0, &backend, &error)) fail_msg("%s", error.text);
    assert_string_equal(backend->name + 4, isas[isa]);
    return backend;
}

/* Says which variants were checked, so that a pass is not mistaken for a check of all. */
static void test_variants_present(void **state) {
    (void)state;
    for (int i = 0; i < ISAS; i++) print_message("%s: %s\n", isas[i], variant(i) ? "checked" : "not on this processor");
    assert_non_null(variant(0));
}

static void test_inner_kernels(void **state) {
    (void)state;
    enum { ROWS = 5, MOST = 140, STRIDE = 150 };
    float w[MOST + 1], x[ROWS * STRIDE + 1], scales[ROWS * 3];
    int16_t codes[MOST + 1];
    int8_t xs[ROWS * STRIDE + 1];
    for (int i = 0; i < 600; i++) {
        kn_part part = {.x_stride = STRIDE, .rows = 1 + random_below(ROWS), .count = i % (MOST + 1)};
        fill_random(w, MOST + 1);
        fill_random(x, ROWS * STRIDE + 1);
        fill_random(scales, ROWS * 3);
        for (int k = 0; k <= MOST; k++) codes[k] = (int16_t)(i % 2 ? 255 : random_below(511) - 255);
        for (int k = 0; k <= ROWS * STRIDE; k++) xs[k] = (int8_t)(i % 2 ? -128 : random_below(256) - 128);
        for (int v = 0; v < ISAS; v++) {
            if (!variant(v)) continue;
            float lanes[2][ROWS][KN_LANES], out[ROWS];
            int32_t sums[ROWS];
            fill_random(lanes[0][0], ROWS * KN_LANES);
            memcpy(lanes[1], lanes[0], sizeof lanes[1]);
            variant(v)->dot_part(&part, w + 1, x + 1, lanes[0]);
            for (int r = 0; r < ROWS; r++) {
                sums[r] = r * 1000;
                out[r] = (float)r;
                for (int k = 0; k < part.count && r < part.rows; k++) {
                    float *lane = &lanes[1][r][k % KN_LANES];
                    *lane = fmaf(w[1 + k], x[1 + r * STRIDE + k], *lane);
                }
            }
            assert_memory_equal(lanes[0], lanes[1], sizeof lanes[0]);
            variant(v)->dot_codes(&part, codes + 1, xs + 1, sums);
            variant(v)->add_scaled(sums, scales, 3, 0.37f, part.rows, out);
            for (int r = 0; r < ROWS; r++) {
                long expected = r * 1000;
                for (int k = 0; k < part.count && r < part.rows; k++) expected += codes[1 + k] * xs[1 + r * STRIDE + k];
                assert_int_equal(sums[r], expected);
                float scaled = fmaf((float)expected, scales[r * 3] * 0.37f, (float)r);
                assert_true(out[r] == (r < part.rows ? scaled : (float)r));
            }
        }
    }
}

/* Rows of activations with their memory. */
static kn_activations make_activations(kn_act_format format, int rows, int cols) {
    size_t count = (size_t)rows * (size_t)cols, groups = (size_t)kn_act_groups(&format, cols);
    kn_activations a = {.format = format};
    if (format.bits == KN_NOT_QUANTIZED) a.values = test_alloc(count * sizeof *a.values);
    else {
        a.codes = test_alloc(count);
        a.scales = test_alloc((size_t)rows * groups * sizeof *a.scales);
    }
    return a;
}

static void free_activations(kn_activations *a) {
    free(a->codes);
    free(a->scales);
    free(a->values);
}

static int32_t *random_order(int count) {
    int32_t *order = test_alloc((size_t)count * sizeof *order);
    for (int i = 0; i < count; i++) {
        int other = random_below(i + 1);
        order[i] = order[other];
        order[other] = i;
    }
    return order;
}

static void check_quantize(kn_backend *backend, kn_act_format format, int rows, int cols, const int32_t *order) {
    size_t width = (size_t)cols, groups = (size_t)kn_act_groups(&format, cols);
    float *x = test_alloc((size_t)rows * width * sizeof *x), *row = test_alloc(width * sizeof *row);
    int8_t *codes = test_alloc(width);
    float *scales = test_alloc((groups + 1) * sizeof *scales);
    fill_random(x, (size_t)rows * width);
    kn_activations a = make_activations(format, rows, cols);
    backend->ops->quantize(backend, x, rows, cols, order, &a);
    assert_true(a.rows == rows && a.cols == cols);
    for (size_t r = 0; r < (size_t)rows; r++) {
        for (size_t c = 0; c < width; c++) row[c] = x[r * width + (order ? (size_t)order[c] : c)];
        if (format.bits == KN_NOT_QUANTIZED) {
            assert_memory_equal(a.values + r * width, row, width * sizeof *row);
            continue;
        }
        kn_act_encode(&format, row, cols, codes, scales);
        assert_memory_equal(a.codes + r * width, codes, width);
        assert_memory_equal(a.scales + r * groups, scales, groups * sizeof *scales);
    }
    free_activations(&a);
    free(x);
    free(row);
    free(codes);
    free(scales);
}

static const int act_bits[] = {3, 4, 8, KN_NOT_QUANTIZED}, weight_bits[] = {3, 4, 8}, group_sizes[] = {32, 64, 128};

static void test_quantize(void **state) {
    (void)state;
    for (int isa = 0; isa < ISAS; isa++) {
        for (int threads = 1; threads <= 5; threads += 2) {
            kn_backend *backend = open_backend(isa, threads);
            for (int i = 0; backend && i < 48; i++) {
                kn_act_format format = {act_bits[i % 4], group_sizes[i / 4 % 3], i % 5 < 2 ? 0 : i, 0.9f};
                int cols = format.outliers + 1 + random_below(400), rows = 1 + random_below(i % 3 ? 20 : 80);
                int32_t *order = random_order(cols);
                check_quantize(backend, format, rows, cols, i % 2 ? order : NULL);
                free(order);
            }
            if (backend) backend->ops->close(backend);
        }
    }
}

/* One linear with its input, and what every variant has to give for it. */
typedef struct linear_case {
    quant_matrix m;
    float *bias, *expected; /* [rows, columns] */
    kn_activations x;
    int rows, columns;
} linear_case;

/* Quantized: sums of integers in int64, groups in rising order, outliers last. */
static float naive_quantized(const linear_case *c, int r, int n) {
    const kn_qweight *w = &c->m.weight;
    const kn_weight_format *format = &w->format;
    int low = w->cols - format->outliers, groups = kn_weight_groups(format, w->cols);
    int all = groups + (format->outliers > 0);
    const int8_t *x = c->x.codes + (size_t)r * (size_t)w->cols;
    float sum = 0;
    for (int g = 0; g < all; g++) {
        long dot = 0;
        int first = g < groups ? g * format->group : low, last = g < groups - 1 ? first + format->group : low;
        if (g == groups) last = w->cols;
        float scale = g < groups ? quant_half(w->scales, n * groups + g) : quant_half(w->outlier_scales, n);
        for (int k = first; k < last; k++) {
            long code = lrint(kn_weight_decode(w, n, k) / (double)scale);
            dot += code * x[k];
        }
        sum = fmaf((float)dot, c->x.scales[r * all + g] * scale, sum);
    }
    return sum;
}

/* The product of the values in double, and the sum of its terms' magnitudes. */
static double naive_product(const linear_case *c, int r, int n, double *magnitude) {
    const kn_qweight *w = &c->m.weight;
    int low = w->cols - w->format.outliers, groups = kn_weight_groups(&w->format, w->cols);
    int all = groups + (w->format.outliers > 0);
    double sum = 0;
    *magnitude = 0;
    for (int k = 0; k < w->cols; k++) {
        int at = r * w->cols + k, group = k < low ? k / w->format.group : groups;
        double x = c->x.values ? c->x.values[at] : (double)c->x.codes[at] * c->x.scales[r * all + group];
        double term = x * kn_weight_decode(w, n, k);
        sum += term;
        *magnitude += fabs(term);
    }
    return sum;
}

static void expect_plain(linear_case *c) { /* not quantized: the bits of the F32 matrix product */
    const kn_qweight *w = &c->m.weight;
    size_t cols = (size_t)w->cols;
    float *decoded = test_alloc((size_t)w->rows * cols * sizeof *decoded);
    for (int n = 0; n < w->rows; n++) {
        for (int k = 0; k < w->cols; k++) decoded[(size_t)n * cols + (size_t)k] = kn_weight_decode(w, n, k);
    }
    kn_matmul_slice slice = {.w = decoded, .bias = c->bias, .x = c->x.values, .y = c->expected, .cols = w->cols};
    slice.last = w->rows;
    slice.rows = c->rows;
    slice.y_stride = (size_t)w->rows;
    kn_cpu_kernels_reference()->matmul[KN_F32](&slice);
    free(decoded);
}

static linear_case make_linear(kn_weight_format format, int bits, int rows, int columns, int cols) {
    linear_case c = {.rows = rows, .columns = columns};
    size_t in = (size_t)rows * (size_t)cols, weights = (size_t)columns * (size_t)cols;
    float *w = test_alloc(weights * sizeof *w), *x = test_alloc(in * sizeof *x);
    fill_random(w, weights);
    fill_random(x, in);
    c.m = quant_matrix_make(format, w, columns, cols);
    kn_act_format act = {bits, format.group, format.outliers, 0.9f};
    c.x = make_activations(act, rows, cols);
    c.x.rows = rows;
    c.x.cols = cols;
    int groups = kn_act_groups(&act, cols);
    for (int r = 0; r < rows; r++) {
        float *row = x + (size_t)r * (size_t)cols;
        if (c.x.values) memcpy(c.x.values + (size_t)r * (size_t)cols, row, (size_t)cols * sizeof *row);
        else kn_act_encode(&act, row, cols, c.x.codes + (size_t)r * (size_t)cols, c.x.scales + r * groups);
    }
    free(w);
    free(x);
    c.expected = test_alloc((size_t)rows * (size_t)columns * sizeof *c.expected);
    if (random_below(2)) {
        c.bias = test_alloc((size_t)columns * sizeof *c.bias);
        fill_random(c.bias, (size_t)columns);
    }
    if (c.x.values) expect_plain(&c);
    for (int r = 0; r < rows; r++) {
        for (int n = 0; n < columns; n++) {
            float *y = &c.expected[r * columns + n];
            if (!c.x.values) *y = naive_quantized(&c, r, n) + (c.bias ? c.bias[n] : 0);
            double magnitude, exact = naive_product(&c, r, n, &magnitude) + (c.bias ? c.bias[n] : 0);
            assert_true(fabs(*y - exact) <= 2e-6 * (magnitude + 1));
        }
    }
    return c;
}

static void free_linear(linear_case *c) {
    quant_matrix_free(&c->m);
    free_activations(&c->x);
    free(c->bias);
    free(c->expected);
}

static void check_linear(const linear_case *c, kn_backend *backend) {
    size_t columns = (size_t)c->columns, outputs = (size_t)c->rows * columns, cols = (size_t)c->m.weight.cols;
    float *y = test_alloc((outputs + 1) * sizeof *y);
    y[outputs] = 5;
    backend->ops->qmatmul(backend, &c->m.weight, c->bias, &c->x, y);
    assert_memory_equal(y, c->expected, outputs * sizeof *y);
    assert_true(y[outputs] == 5);
    size_t groups = (size_t)kn_act_groups(&c->x.format, c->m.weight.cols);
    for (size_t r = 0; r < (size_t)c->rows; r++) {
        kn_activations one = c->x;
        one.rows = 1;
        if (one.values) one.values += r * cols;
        else {
            one.codes += r * cols;
            one.scales += r * groups;
        }
        memset(y, 0xff, columns * sizeof *y);
        backend->ops->qmatmul(backend, &c->m.weight, c->bias, &one, y);
        assert_memory_equal(y, c->expected + r * columns, columns * sizeof *y);
    }
    free(y);
}

static void test_qmatmul(void **state) {
    (void)state;
    kn_backend *backends[ISAS][3];
    for (int isa = 0; isa < ISAS; isa++) {
        for (int t = 0; t < 3; t++) backends[isa][t] = open_backend(isa, 1 + 2 * t);
    }
    for (int i = 0; i < 96; i++) {
        kn_weight_format format = {weight_bits[i % 3], group_sizes[i / 3 % 3], i % 2 == 0, 0};
        if (i % 4 > 1) format.outliers = 1 + random_below(i % 8 == 3 ? 300 : 24);
        int low = i % 5 == 0 ? format.group * (1 + random_below(4)) : 1 + random_below(600);
        int rows = i % 6 == 0 ? 60 + random_below(80) : 1 + random_below(9),
            columns = 1 + random_below(i % 6 ? 70 : 20);
        linear_case c = make_linear(format, act_bits[i / 2 % 4], rows, columns, low + format.outliers);
        for (int b = 0; b < ISAS * 3; b++) {
            if (backends[b / 3][b % 3]) check_linear(&c, backends[b / 3][b % 3]);
        }
        free_linear(&c);
    }
    for (int b = 0; b < ISAS * 3; b++) {
        if (backends[b / 3][b % 3]) backends[b / 3][b % 3]->ops->close(backends[b / 3][b % 3]);
    }
}

/* Rows of several vectors, one after the other (stride 1) or interleaved. */
static void check_hadamard(kn_backend *backend, int size, int stride, int rows, int vectors) {
    kn_hadamard *hadamard = NULL;
    bis_error error;
    if (kn_hadamard_open(size, &hadamard, &error)) fail_msg("%s", error.text);
    size_t width = (size_t)size * (size_t)(stride > 1 ? stride : vectors), count = (size_t)rows * width;
    float *x = test_alloc((count + 1) * sizeof *x), *expected = test_alloc((count + 1) * sizeof *expected);
    float *one = test_alloc((size_t)size * sizeof *one), *scratch = test_alloc((size_t)size * sizeof *scratch);
    fill_random(x, count + 1);
    memcpy(expected, x, (count + 1) * sizeof *x);
    for (size_t r = 0; r < (size_t)rows; r++) {
        for (size_t v = 0; v < width / (size_t)size; v++) {
            float *first = expected + r * width + (stride > 1 ? v : v * (size_t)size);
            for (size_t k = 0; k < (size_t)size; k++) one[k] = first[k * (size_t)stride];
            kn_hadamard_apply(hadamard, one, scratch);
            for (size_t k = 0; k < (size_t)size; k++) first[k * (size_t)stride] = one[k];
        }
    }
    backend->ops->hadamard(backend, hadamard, stride, rows, (int)width, x);
    assert_memory_equal(x, expected, (count + 1) * sizeof *x);
    free(x);
    free(expected);
    free(one);
    free(scratch);
    kn_hadamard_close(hadamard);
}

static void test_hadamard_op(void **state) {
    (void)state;
    for (int threads = 1; threads <= 5; threads += 2) {
        kn_backend *backend = open_backend(0, threads);
        check_hadamard(backend, 64, 1, 70, 12); /* each head */
        check_hadamard(backend, 12, 64, 70, 0); /* across heads */
        check_hadamard(backend, 32, 128, 9, 0);
        check_hadamard(backend, 768, 1, 33, 1);
        check_hadamard(backend, 11008, 1, 3, 1); /* an FFN's width */
        check_hadamard(backend, 6, 80, 5, 0);
        check_hadamard(backend, 1, 16, 3, 0);
        check_hadamard(backend, 28, 1, 1, 1);
        backend->ops->close(backend);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_variants_present), cmocka_unit_test(test_inner_kernels), cmocka_unit_test(test_quantize),
        cmocka_unit_test(test_qmatmul),          cmocka_unit_test(test_hadamard_op),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
