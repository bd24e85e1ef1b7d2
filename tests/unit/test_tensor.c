/* Element conversions against an independent definition (the nearest value, ties to even) and the compiler's type. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/tensor.h"

/* GCC has _Float16 on x86-64 and AArch64; Clang 14 announces it on x86-64 without being able to use it. */
#if defined(__FLT16_MANT_DIG__) && !defined(__clang__)
#define HAS_FLOAT16 1
__extension__ typedef _Float16 native_half;
#else
#define HAS_FLOAT16 0
#endif

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The value of a format with `fraction` fraction bits and `exponent` exponent bits, by the book. */
static double defined_value(uint16_t bits, int exponent, int fraction) {
    int e = bits >> fraction & ((1 << exponent) - 1), bias = (1 << (exponent - 1)) - 1;
    double f = bits & ((1 << fraction) - 1), sign = bits >> 15 ? -1 : 1;
    if (e == (1 << exponent) - 1) return f > 0 ? (double)NAN : sign * (double)INFINITY;
    if (e == 0) return sign * ldexp(f, 1 - bias - fraction);
    return sign * ldexp(f + (1 << fraction), e - bias - fraction);
}

/* The nearest multiple of the format's step at this size, ties to even; beyond the largest value: infinity. */
static double defined_rounding(double value, int exponent, int fraction) {
    int bias = (1 << (exponent - 1)) - 1, e;
    if (isnan(value) || isinf(value) || value == 0) return value;
    frexp(value, &e);
    int smallest = 1 - bias;
    int step = (e - 1 > smallest ? e - 1 : smallest) - fraction;
    double rounded = ldexp(nearbyint(ldexp(value, -step)), step);
    double limit = ldexp(1, bias + 1);
    return fabs(rounded) >= limit ? copysign((double)INFINITY, value) : rounded;
}

static void assert_same(double got, double want, uint32_t input) {
    int same = isnan(want) ? isnan(got) : got == want && signbit(got) == signbit(want);
    if (!same) fail_msg("input %08x: got %a, want %a", input, got, want);
}

static void every_f16_becomes_its_value(void **state) {
    (void)state;
    for (uint32_t bits = 0; bits <= 0xffff; bits++) {
        assert_same((double)kn_f16_to_f32((uint16_t)bits), defined_value((uint16_t)bits, 5, 10), bits);
#if HAS_FLOAT16
        uint16_t half = (uint16_t)bits;
        native_half native;
        memcpy(&native, &half, sizeof native);
        assert_same((double)kn_f16_to_f32(half), (double)native, bits);
#endif
    }
}

static void every_bf16_becomes_its_value(void **state) {
    (void)state;
    for (uint32_t bits = 0; bits <= 0xffff; bits++) {
        assert_same((double)kn_bf16_to_f32((uint16_t)bits), defined_value((uint16_t)bits, 8, 7), bits);
    }
}

static void every_16_bit_value_survives_the_way_to_f32_and_back(void **state) {
    (void)state;
    for (uint32_t i = 0; i <= 0xffff; i++) {
        uint16_t bits = (uint16_t)i;
        int is_f16_nan = (bits & 0x7c00) == 0x7c00 && (bits & 0x3ff),
            is_bf16_nan = (bits & 0x7f80) == 0x7f80 && bits & 0x7f;
        if (!is_f16_nan) assert_int_equal(kn_f32_to_f16(kn_f16_to_f32(bits)), bits);
        if (!is_bf16_nan) assert_int_equal(kn_f32_to_bf16(kn_bf16_to_f32(bits)), bits);
    }
}

static void check_rounding(uint32_t bits) {
    float value = float_of(bits);
    assert_same((double)kn_f16_to_f32(kn_f32_to_f16(value)), defined_rounding((double)value, 5, 10), bits);
    assert_same((double)kn_bf16_to_f32(kn_f32_to_bf16(value)), defined_rounding((double)value, 8, 7), bits);
#if HAS_FLOAT16
    native_half native = (native_half)value;
    assert_same((double)kn_f16_to_f32(kn_f32_to_f16(value)), (double)native, bits);
#endif
}

/* Around every representable value, every midpoint between two, and the first bits beyond both. */
static void f32_rounds_to_the_nearest_at_every_boundary(void **state) {
    (void)state;
    for (uint32_t i = 0; i <= 0xffff; i++) {
        uint16_t bits = (uint16_t)i;
        float next = kn_f16_to_f32((uint16_t)(bits + 1)), here = kn_f16_to_f32(bits);
        float halfway = (float)(((double)here + (double)next) / 2);
        uint32_t places[] = {bits_of(here), bits_of(halfway), i << 16, i << 16 | 0x8000};
        for (size_t p = 0; p < sizeof places / sizeof *places; p++) {
            for (uint32_t nudge = 0; nudge < 3; nudge++) check_rounding(places[p] + nudge - 1);
        }
    }
}

static void f32_rounds_to_the_nearest_all_over_its_range(void **state) {
    (void)state;
    const uint64_t stride = 4099; /* a prime: about a million values, every low bit pattern */
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += stride) check_rounding((uint32_t)bits);
}

static void conversions_keep_zero_signs_infinities_and_nan(void **state) {
    (void)state;
    assert_int_equal(kn_f32_to_f16(-0.0f), 0x8000);
    assert_int_equal(kn_f32_to_bf16(-0.0f), 0x8000);
    assert_int_equal(kn_f32_to_f16(INFINITY), 0x7c00);
    assert_int_equal(kn_f32_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(kn_f32_to_bf16(INFINITY), 0x7f80);
    assert_int_equal(kn_f32_to_f16(65519.0f), 0x7bff);
    assert_int_equal(kn_f32_to_f16(65520.0f), 0x7c00);
    assert_true(isnan(kn_f16_to_f32(kn_f32_to_f16(float_of(0x7f800001)))));
    assert_true(isnan(kn_bf16_to_f32(kn_f32_to_bf16(float_of(0x7f800001)))));
}

static void elements_are_read_from_any_address(void **state) {
    (void)state;
    unsigned char memory[1 + 2 * sizeof(float)];
    const float singles[] = {1.5f, -2.25f};
    const uint16_t halves[] = {0x3e00, 0xc080}, brains[] = {0x3fc0, 0xc010};
    const void *const sources[] = {singles, halves, brains};
    for (int type = 0; type < KN_TYPE_COUNT; type++) {
        kn_tensor tensor = {memory + 1, (kn_type)type, 1, 2};
        memcpy(memory + 1, sources[type], 2 * kn_type_bytes(tensor.type));
        assert_true(kn_tensor_get(&tensor, 0) == 1.5f);
        assert_true(kn_tensor_get(&tensor, 1) == -2.25f);
    }
}

static void types_have_sizes_and_names(void **state) {
    (void)state;
    assert_int_equal(kn_type_bytes(KN_F32), 4);
    assert_int_equal(kn_type_bytes(KN_F16), 2);
    assert_int_equal(kn_type_bytes(KN_BF16), 2);
    assert_string_equal(kn_type_name(KN_F32), "F32");
    assert_string_equal(kn_type_name(KN_F16), "F16");
    assert_string_equal(kn_type_name(KN_BF16), "BF16");
    assert_string_equal(kn_type_name(KN_TYPE_COUNT), "unknown");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_f16_becomes_its_value),
        cmocka_unit_test(every_bf16_becomes_its_value),
        cmocka_unit_test(every_16_bit_value_survives_the_way_to_f32_and_back),
        cmocka_unit_test(f32_rounds_to_the_nearest_at_every_boundary),
        cmocka_unit_test(f32_rounds_to_the_nearest_all_over_its_range),
        cmocka_unit_test(conversions_keep_zero_signs_infinities_and_nan),
        cmocka_unit_test(elements_are_read_from_any_address),
        cmocka_unit_test(types_have_sizes_and_names),
    };
    return cmocka_run_group_tests_name("tensor", tests, NULL, NULL);
}
