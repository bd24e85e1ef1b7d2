/* Sixteen floats in two AVX2 registers: the vector type kernels_template.h is written in. */
#ifndef BISUP_KERNELS_VEC16_AVX2_H
#define BISUP_KERNELS_VEC16_AVX2_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct v16 {
    __m256 lo, hi;
} v16;

#define V16_TILE_ROWS 2 /* 4 accumulators of two registers and 6 operand registers of 16 */
#define V16_TILE_COLS 2
#define V16_ROW_COLS 4 /* rows of w against a single row of x: 8 accumulators hide the FMA's latency */

static inline v16 v16_zero(void) { return (v16){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline v16 v16_set(float value) { return (v16){_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
static inline v16 v16_load(const float *p) { return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void v16_store(float *p, v16 a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
/* The first count < 16 elements; the others are zero. */
static inline v16 v16_load_part(const float *p, int count) {
    float whole[16] = {0};
    memcpy(whole, p, (size_t)count * sizeof *whole);
    return v16_load(whole);
}
static inline void v16_store_part(float *p, int count, v16 a) {
    float whole[16];
    v16_store(whole, a);
    memcpy(p, whole, (size_t)count * sizeof *whole);
}

#define V16_EACH(name, operation)                                                                                      \
    static inline v16 name(v16 a, v16 b) { return (v16){operation(a.lo, b.lo), operation(a.hi, b.hi)}; }
V16_EACH(v16_add, _mm256_add_ps)
V16_EACH(v16_mul, _mm256_mul_ps)
V16_EACH(v16_div, _mm256_div_ps)
V16_EACH(v16_max, _mm256_max_ps)
V16_EACH(v16_min, _mm256_min_ps)
#undef V16_EACH

static inline v16 v16_fma(v16 a, v16 b, v16 c) {
    return (v16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static inline v16 v16_negate(v16 a) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (v16){_mm256_xor_ps(a.lo, sign), _mm256_xor_ps(a.hi, sign)};
}
static inline v16 v16_round(v16 a) {
    enum { NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    return (v16){_mm256_round_ps(a.lo, NEAREST), _mm256_round_ps(a.hi, NEAREST)};
}
static inline __m256 v16_scale_half(__m256 a, __m256 n) {
    __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), exponent));
}
/* a * 2^n for whole n and results that are normal numbers. */
static inline v16 v16_scale(v16 a, v16 n) { return (v16){v16_scale_half(a.lo, n.lo), v16_scale_half(a.hi, n.hi)}; }

static inline v16 v16_load_f16(const void *p) {
    const __m128i *halves = p;
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
static inline v16 v16_load_f16_part(const void *p, int count) {
    unsigned short whole[16] = {0};
    memcpy(whole, p, (size_t)count * sizeof *whole);
    return v16_load_f16(whole);
}
static inline __m256 v16_of_bf16(__m128i bits) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
static inline v16 v16_load_bf16(const void *p) {
    const __m128i *halves = p;
    return (v16){v16_of_bf16(_mm_loadu_si128(halves)), v16_of_bf16(_mm_loadu_si128(halves + 1))};
}
static inline v16 v16_load_bf16_part(const void *p, int count) {
    unsigned short whole[16] = {0};
    memcpy(whole, p, (size_t)count * sizeof *whole);
    return v16_load_bf16(whole);
}
static inline void v16_store_f16(void *p, v16 a) {
    __m128i *halves = p;
    _mm_storeu_si128(halves, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}

static inline __m256i v16_products(const int16_t *w, const int8_t *x) {
    __m256i xs = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)x));
    return _mm256_madd_epi16(_mm256_loadu_si256((const __m256i *)(const void *)w), xs);
}
/* The exact sum of w[k] * x[k] for |w| < 2^8: pairs of products are added before they are widened. */
static inline int32_t v16_dot_codes(const int16_t *w, const int8_t *x, int count) {
    __m256i sums = _mm256_setzero_si256();
    int k = 0;
    for (; k + 16 <= count; k += 16) sums = _mm256_add_epi32(sums, v16_products(w + k, x + k));
    if (k < count) {
        int16_t ws[16] = {0};
        int8_t xs[16] = {0};
        memcpy(ws, w + k, (size_t)(count - k) * sizeof *ws);
        memcpy(xs, x + k, (size_t)(count - k));
        sums = _mm256_add_epi32(sums, v16_products(ws, xs));
    }
    __m128i s4 = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    __m128i s2 = _mm_add_epi32(s4, _mm_unpackhi_epi64(s4, s4));
    return _mm_cvtsi128_si32(_mm_add_epi32(s2, _mm_shuffle_epi32(s2, 1)));
}

/* The tree of cpu_kernels.h: l with l+8, then l+4, l+2, l+1. */
static inline float v16_sum(v16 a) {
    __m256 s8 = _mm256_add_ps(a.lo, a.hi);
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}

#endif
