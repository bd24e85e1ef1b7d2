/* Sixteen floats in one AVX-512 register: the vector type kernels_template.h is written in. */
#ifndef BISUP_KERNELS_VEC16_AVX512_H
#define BISUP_KERNELS_VEC16_AVX512_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

typedef __m512 v16;

#define V16_TILE_ROWS 4 /* rows of x and of w in one register tile: 16 accumulators and 5 operands of 32 registers */
#define V16_TILE_COLS 4
#define V16_ROW_COLS 8 /* rows of w against a single row of x: enough sums in flight to hide the FMA's latency */

static inline __mmask16 v16_mask(int count) { return (__mmask16)((1u << count) - 1); }

static inline v16 v16_zero(void) { return _mm512_setzero_ps(); }
static inline v16 v16_set(float value) { return _mm512_set1_ps(value); }
static inline v16 v16_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v16_store(float *p, v16 a) { _mm512_storeu_ps(p, a); }
/* The first count < 16 elements; the others are zero. */
static inline v16 v16_load_part(const float *p, int count) { return _mm512_maskz_loadu_ps(v16_mask(count), p); }
static inline void v16_store_part(float *p, int count, v16 a) { _mm512_mask_storeu_ps(p, v16_mask(count), a); }

static inline v16 v16_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
static inline v16 v16_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
static inline v16 v16_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
static inline v16 v16_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
static inline v16 v16_min(v16 a, v16 b) { return _mm512_min_ps(a, b); }
static inline v16 v16_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
static inline v16 v16_negate(v16 a) {
    return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(a), _mm512_set1_epi32((int)0x80000000u)));
}
static inline v16 v16_round(v16 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* a * 2^n for whole n and results that are normal numbers. */
static inline v16 v16_scale(v16 a, v16 n) {
    __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), exponent));
}

static inline v16 v16_load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline v16 v16_load_f16_part(const void *p, int count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(v16_mask(count), p));
}
static inline v16 v16_of_bf16(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
static inline v16 v16_load_bf16(const void *p) { return v16_of_bf16(_mm256_loadu_si256((const __m256i *)p)); }
static inline v16 v16_load_bf16_part(const void *p, int count) {
    return v16_of_bf16(_mm256_maskz_loadu_epi16(v16_mask(count), p));
}
static inline void v16_store_f16(void *p, v16 a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

/* The exact sum of w[k] * x[k] for |w| < 2^8: pairs of products are added before they are widened. */
static inline int32_t v16_dot_codes(const int16_t *w, const int8_t *x, int count) {
    __m512i sums = _mm512_setzero_si512();
    int k = 0;
    for (; k + 32 <= count; k += 32) {
        __m512i xs = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(x + k)));
        sums = _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_loadu_si512(w + k), xs));
    }
    if (k < count) {
        __mmask32 mask = (1u << (count - k)) - 1;
        __m512i xs = _mm512_cvtepi8_epi16(_mm256_maskz_loadu_epi8(mask, x + k));
        sums = _mm512_add_epi32(sums, _mm512_madd_epi16(_mm512_maskz_loadu_epi16(mask, w + k), xs));
    }
    return _mm512_reduce_add_epi32(sums);
}

/* The tree of cpu_kernels.h: l with l+8, then l+4, l+2, l+1. */
static inline float v16_sum(v16 a) {
    __m256 high = _mm512_extractf32x8_ps(a, 1);
    __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(a), high);
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}

#endif
