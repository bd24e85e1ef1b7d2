/* The formats of quantized weights, activations and KV caches against naive computations in double: every width, group,
 * kind, and ragged size. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/quant.h"
#include "kernels/tensor.h"
#include "tests/support/quant_data.h"
#include "tests/support/random_data.h"

static const double HALF_STEP = 0.5 * (1 + 1e-5); /* a quotient in float may round over the middle */

static void test_bits(void **state) {
    (void)state;
    static const int known[] = {2, 3, 4, 8};
    size_t found = 0;
    for (int bits = -1; bits <= 32; bits++) {
        const kn_bits *entry = kn_bits_find(bits);
        if (found == 4 || bits != known[found]) {
            assert_null(entry);
            continue;
        }
        found++;
        assert_int_equal(entry->bits, bits);
        assert_int_equal(entry->least, -(int)pow(2, bits - 1));
        assert_int_equal(entry->most, (int)pow(2, bits - 1) - 1);
        assert_int_equal(entry->levels, (int)pow(2, bits) - 1);
    }
    assert_true(kn_bits_find(3)->divisor == 3.5f && kn_bits_find(4)->divisor == 7 && kn_bits_find(8)->divisor == 127);
}

/* A stream is what a writer of single bits makes; nothing is written beyond it; unused bits are 0. */
static void test_streams(void **state) {
    (void)state;
    for (int bits = 1; bits <= 8; bits++) {
        for (int count = 0; count <= 130; count++) {
            uint8_t codes[130] = {0}, back[131], stream[132], expected[132];
            memset(stream, 0xa5, sizeof stream);
            memset(expected, 0xa5, sizeof expected);
            memset(back, 0x5a, sizeof back);
            for (int i = 0; i < count; i++) codes[i] = (uint8_t)random_below(1 << bits);
            size_t bytes = kn_packed_bytes(count, bits);
            assert_int_equal(bytes, (count * bits + 7) / 8);
            memset(expected, 0, bytes);
            for (int bit = 0; bit < count * bits; bit++) {
                if (codes[bit / bits] >> bit % bits & 1) expected[bit / 8] |= (uint8_t)(1 << bit % 8);
            }
            kn_pack(codes, count, bits, stream);
            assert_memory_equal(stream, expected, sizeof stream);
            kn_unpack(stream, count, bits, back);
            assert_memory_equal(back, codes, (size_t)count);
            assert_int_equal(back[count], 0x5a);
        }
    }
}

/* One element of a packed matrix, read bit by bit and computed in double. */
static double naive_element(const kn_qweight *w, int row, int col, int *integer) {
    int low = w->cols - w->format.outliers, bits = w->format.bits;
    if (col >= low) {
        *integer = (int)w->outlier_codes[row * w->format.outliers + col - low];
        return (double)*integer * quant_half(w->outlier_scales, row);
    }
    const uint8_t *stream = w->codes + (size_t)row * (size_t)((low * bits + 7) / 8);
    int code = 0, groups = (low + w->format.group - 1) / w->format.group, at = row * groups + col / w->format.group;
    for (int b = 0; b < bits; b++) {
        int bit = col * bits + b;
        code |= (stream[bit / 8] >> bit % 8 & 1) << b;
    }
    *integer = code - (w->format.symmetric ? 1 << (bits - 1) : w->zeros[at]);
    return (double)*integer * quant_half(w->scales, at);
}

static void check_part(const kn_qweight *w, int row, const float *values, const int16_t *codes) {
    int low = w->cols - w->format.outliers, first = random_below(w->cols);
    if (first < low) first = first / 8 * 8;
    int count = random_below(w->cols - first + 1);
    float *part = test_alloc((size_t)(count + 1) * sizeof *part);
    int16_t *integers = test_alloc((size_t)(count + 1) * sizeof *integers);
    kn_weight_decode_part(w, row, first, count, part);
    kn_weight_decode_codes_part(w, row, first, count, integers);
    assert_memory_equal(part, values + first, (size_t)count * sizeof *part);
    assert_memory_equal(integers, codes + first, (size_t)count * sizeof *integers);
    assert_true(part[count] == 0 && integers[count] == 0);
    free(part);
    free(integers);
}

static void check_weights(kn_weight_format format, int rows, int low) {
    int cols = low + format.outliers;
    float *w = test_alloc((size_t)rows * (size_t)cols * sizeof *w), *row = test_alloc((size_t)cols * sizeof *row);
    int16_t *codes = test_alloc((size_t)cols * sizeof *codes);
    float magnitude = powf(10, (float)(random_below(5) - 3)), shift = (float)random_below(3) - 1;
    for (int i = 0; i < rows * cols; i++) w[i] = (random_float() + shift) * magnitude;
    quant_matrix m = quant_matrix_make(format, w, rows, cols);
    assert_int_equal(kn_weight_bytes(&format, rows, cols), m.bytes);
    for (int r = 0; r < rows; r++) {
        kn_weight_decode_row(&m.weight, r, row);
        kn_weight_decode_codes(&m.weight, r, codes);
        for (int c = 0; c < cols; c++) {
            int integer;
            double expected = naive_element(&m.weight, r, c, &integer), step;
            assert_true(row[c] == (float)expected);
            assert_true(kn_weight_decode(&m.weight, r, c) == row[c]);
            assert_int_equal(codes[c], integer);
            if (c >= low) step = quant_half(m.weight.outlier_scales, r);
            else step = quant_half(m.weight.scales, r * kn_weight_groups(&format, cols) + c / format.group);
            assert_true(fabs(expected - w[r * cols + c]) <= HALF_STEP * step);
        }
        check_part(&m.weight, r, row, codes);
    }
    quant_matrix_free(&m);
    free(w);
    free(row);
    free(codes);
}

static void test_weights(void **state) {
    (void)state;
    static const int bits[] = {3, 4, 8}, groups[] = {32, 64, 128}, outliers[] = {0, 1, 8, 130};
    static const int widths[] = {1, 7, 8, 31, 32, 33, 64, 96, 127, 128, 129, 200, 256, 300};
    for (size_t b = 0; b < 3; b++) {
        for (size_t g = 0; g < 3; g++) {
            for (size_t o = 0; o < 4; o++) {
                for (size_t w = 0; w < sizeof widths / sizeof *widths; w++) {
                    check_weights((kn_weight_format){bits[b], groups[g], true, outliers[o]}, 3, widths[w]);
                    check_weights((kn_weight_format){bits[b], groups[g], false, outliers[o]}, 3, widths[w]);
                }
            }
        }
    }
    /* Outliers alone. */
    check_weights((kn_weight_format){4, 32, true, 40}, 2, 0);
}

/* Scales are F16 numbers, no more than one of those steps too large, and zero is exact. */
static void test_weight_scale(void **state) {
    (void)state;
    static const int widths[] = {3, 4, 8};
    for (int i = 0; i < 6000; i++) {
        kn_weight_format format = {widths[i % 3], 128, i % 2 == 0, 0};
        const kn_bits *range = kn_bits_find(format.bits);
        double size = pow(10, random_below(14) - 8);
        float low = (float)(random_float() * size), high = low + (float)(fabsf(random_float()) * size), scale;
        int zero;
        kn_weight_scale(&format, low, high, &scale, &zero);
        double least = fmin(low, 0), most = fmax(high, 0);
        double ideal = format.symmetric ? fmax(-least, most) / range->divisor : (most - least) / range->levels;
        assert_true(kn_f16_to_f32(kn_f32_to_f16(scale)) == scale && scale > 0);
        assert_true(scale >= fmin(ideal, 65504) * (1 - 1e-6));
        assert_true(scale <= ideal * (1 + 0x1p-10) + 0x1p-24);
        assert_in_range(zero, 0, format.symmetric ? 0 : range->levels);
        assert_int_equal(kn_weight_encode(&format, 0, scale, zero), zero);
        for (int k = 0; k <= 10 && ideal < 65000; k++) {
            float w = (float)(least + (most - least) * k / 10);
            int code = kn_weight_encode(&format, w, scale, zero);
            assert_in_range(code - (format.symmetric ? range->least : 0), 0, range->levels);
            assert_true(fabs((double)(code - zero) * scale - w) <= HALF_STEP * scale);
        }
        assert_int_equal(kn_weight_encode(&format, -INFINITY, scale, zero), format.symmetric ? range->least : 0);
        assert_int_equal(kn_weight_encode(&format, INFINITY, scale, zero),
                         format.symmetric ? range->most : range->levels);
    }
}

static void test_weight_scale_edges(void **state) {
    (void)state;
    kn_weight_format symmetric = {4, 128, true, 0}, asymmetric = {4, 128, false, 0};
    float scale;
    int zero;
    kn_weight_scale(&symmetric, 0, 0, &scale, &zero);
    assert_true(scale == 1 && zero == 0);
    kn_weight_scale(&asymmetric, 0, 0, &scale, &zero);
    assert_true(scale == 1 && zero == 0);
    kn_weight_scale(&asymmetric, 3, 15, &scale, &zero); /* widened to 0 .. 15 */
    assert_true(scale == 1 && zero == 0);
    kn_weight_scale(&asymmetric, -15, -3, &scale, &zero);
    assert_true(scale == 1 && zero == 15);
    kn_weight_scale(&asymmetric, -5, 10, &scale, &zero);
    assert_true(scale == 1 && zero == 5);
    kn_weight_scale(&symmetric, -3.5f, 7, &scale, &zero);
    assert_true(scale == 1 && zero == 0);
    static const float ties[] = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 7.4f, 7.6f, -8.6f, 3.49f};
    static const int rounded[] = {0, 2, 2, 0, -2, -2, 7, 7, -8, 3};
    for (int i = 0; i < 10; i++) assert_int_equal(kn_weight_encode(&symmetric, ties[i], 1, 0), rounded[i]);
    kn_weight_scale(&symmetric, -1e-45f, 1e-45f, &scale, &zero);
    assert_true(scale == 0x1p-24f);
    kn_weight_scale(&asymmetric, -1e38f, 1e38f, &scale, &zero);
    assert_true(scale == 65504);
    kn_weight_format three = {3, 128, true, 0};
    kn_weight_scale(&three, -7, 7, &scale, &zero);
    assert_true(scale == 2);
    assert_int_equal(kn_weight_encode(&three, -7, scale, zero), -4); /* the level that only the negative side has */
    assert_int_equal(kn_weight_encode(&three, 7, scale, zero), 3);
}

static void check_activations(kn_act_format format, int cols) {
    int groups = kn_act_groups(&format, cols), low = cols - format.outliers;
    float *x = test_alloc((size_t)cols * sizeof *x), *gathered = test_alloc((size_t)cols * sizeof *gathered);
    int32_t *order = test_alloc((size_t)cols * sizeof *order);
    int8_t *codes = test_alloc((size_t)cols), *ordered = test_alloc((size_t)cols);
    float *scales = test_alloc((size_t)(groups + 1) * sizeof *scales);
    float *scales2 = test_alloc((size_t)(groups + 1) * sizeof *scales2);
    fill_random(x, (size_t)cols);
    for (int c = low; c < cols; c++) x[c] *= 30;
    bool zeros = low > format.group; /* the first group */
    for (int c = 0; c < format.group && zeros; c++) x[c] = 0;
    kn_act_encode(&format, x, cols, codes, scales);
    assert_true(scales[groups] == 0);
    for (int g = 0; g < groups; g++) {
        bool outliers = g * format.group >= low;
        int first = outliers ? low : g * format.group, last = outliers ? cols : first + format.group;
        if (!outliers && last > low) last = low;
        const kn_bits *range = kn_bits_find(outliers ? 8 : format.bits);
        double largest = 0, clip = outliers ? 1 : format.clip;
        for (int c = first; c < last; c++) largest = fmax(largest, fabs(x[c]));
        if (zeros && g == 0) assert_true(scales[g] == 1);
        else assert_true(fabs(scales[g] / (clip * largest / range->divisor) - 1) < 1e-6);
        for (int c = first; c < last; c++) {
            double clamped = fmin(fmax(x[c] / (double)scales[g], range->least), range->most);
            assert_true(fabs(codes[c] - clamped) <= HALF_STEP);
        }
    }
    for (int c = 0; c < cols; c++) order[c] = c;
    for (int c = cols - 1; c > 0; c--) {
        int other = random_below(c + 1);
        int32_t kept = order[c];
        order[c] = order[other];
        order[other] = kept;
    }
    for (int c = 0; c < cols; c++) gathered[c] = x[order[c]];
    kn_act_encode(&format, gathered, cols, codes, scales);
    kn_act_encode_ordered(&format, x, order, cols, ordered, scales2);
    assert_memory_equal(codes, ordered, (size_t)cols);
    assert_memory_equal(scales, scales2, (size_t)groups * sizeof *scales);
    free(x);
    free(gathered);
    free(order);
    free(codes);
    free(ordered);
    free(scales);
    free(scales2);
}

static void test_activations(void **state) {
    (void)state;
    static const int bits[] = {3, 4, 8}, groups[] = {32, 64, 128}, outliers[] = {0, 8, 130};
    for (size_t b = 0; b < 3; b++) {
        for (size_t g = 0; g < 3; g++) {
            for (size_t o = 0; o < 3; o++) {
                for (int low = 1; low < 300; low += 1 + random_below(40)) {
                    check_activations((kn_act_format){bits[b], groups[g], outliers[o], 0.9f}, low + outliers[o]);
                    check_activations((kn_act_format){bits[b], groups[g], outliers[o], 1}, low + outliers[o]);
                }
            }
        }
    }
    /* Half to even, clipping on both sides, and numbers that are none. */
    kn_act_format format = {4, 32, 0, 0.5f};
    float x[] = {14, -14, 0.5f, 1.5f, 2.5f, -0.5f, -2.5f, -7.6f}, scale;
    int8_t codes[8];
    kn_act_encode(&format, x, 8, codes, &scale);
    static const int8_t expected[] = {7, -8, 0, 2, 2, 0, -2, -8};
    assert_true(scale == 1);
    assert_memory_equal(codes, expected, 8);
    float broken[] = {NAN, INFINITY, -INFINITY, 1};
    kn_act_encode(&format, broken, 4, codes, &scale);
    for (int i = 0; i < 4; i++) assert_in_range(codes[i] + 8, 0, 15);
}

static void test_kv(void **state) {
    (void)state;
    static const int widths[] = {2, 3, 4, 8};
    for (int i = 0; i < 8000; i++) {
        int bits = widths[i % 4], width = 1 + random_below(256), levels = (1 << bits) - 1;
        float x[256] = {0}, out[257], size = powf(10, (float)(random_below(9) - 5)), shift = random_float() * 8;
        for (int k = 0; k < width; k++) x[k] = (random_float() + shift) * size;
        if (i % 16 < 4) {
            for (int k = 0; k < width; k++) x[k] = x[0];
        }
        uint8_t stream[260], codes[256];
        uint16_t scale, minimum;
        memset(stream, 0xa5, sizeof stream);
        out[width] = 77;
        kn_kv_encode(bits, x, width, stream, &scale, &minimum);
        kn_kv_decode(bits, stream, scale, minimum, width, out);
        assert_int_equal(stream[kn_packed_bytes(width, bits)], 0xa5);
        assert_true(out[width] == 77);
        double step = kn_f16_to_f32(scale), least = kn_f16_to_f32(minimum);
        double lowest = x[0], highest = x[0];
        for (int k = 0; k < width; k++) {
            lowest = fmin(lowest, x[k]);
            highest = fmax(highest, x[k]);
        }
        assert_true(least <= lowest && lowest - least <= fabs(lowest) * 0x1p-10 + 0x1p-24);
        assert_true(step <= (highest - least) / levels * (1 + 0x1p-10) + 0x1p-24);
        kn_unpack(stream, width, bits, codes);
        for (int k = 0; k < width; k++) {
            double expected = codes[k] * step + least;
            assert_true(fabs(out[k] - expected) <= 1e-6 * (fabs(least) + levels * step));
            assert_true(fabs(expected - x[k]) <= HALF_STEP * step + 1e-7 * fabs(least));
        }
    }
    /* Beyond F16: the largest it has, never infinity. */
    float huge[] = {-1e6f, 0, 1e6f}, out[3];
    uint8_t stream[8];
    uint16_t scale, minimum;
    kn_kv_encode(4, huge, 3, stream, &scale, &minimum);
    kn_kv_decode(4, stream, scale, minimum, 3, out);
    assert_true(out[0] == -65504 && fabsf(out[1]) < 40000 && out[2] > 900000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits),
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_weight_scale),
        cmocka_unit_test(test_weight_scale_edges),
        cmocka_unit_test(test_activations),
        cmocka_unit_test(test_kv),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
