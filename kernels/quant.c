#include "kernels/quant.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/tensor.h"

/* ---- Integer ranges -------------------------------------------------------------------------- */

#define SIGNED_LEAST(b) (-(1 << ((b)-1)))
#define SIGNED_MOST(b) ((1 << ((b)-1)) - 1)
#define LEVELS(b) ((1 << (b)) - 1)
#define ENTRY(b, d)                                                                                                    \
    { .bits = (b), .least = SIGNED_LEAST(b), .most = SIGNED_MOST(b), .divisor = (d), .levels = LEVELS(b) }

/* At 2 and 3 bits the extra negative level is a large part of the range, so a step is half of it wider. */
static const kn_bits bits_table[] = {ENTRY(2, 1.5f), ENTRY(3, 3.5f), ENTRY(4, 7.0f), ENTRY(8, 127.0f)};

enum { OUTLIER_BITS = 8, CODES_A_STEP = 8 };

static_assert(SIGNED_LEAST(OUTLIER_BITS) == INT8_MIN && SIGNED_MOST(OUTLIER_BITS) == INT8_MAX,
              "signed codes of every width fit int8_t");
static_assert(LEVELS(8) == UINT8_MAX, "unsigned codes of every width fit uint8_t");
static_assert(SIGNED_MOST(3) - SIGNED_LEAST(3) == LEVELS(3), "both kinds of codes have as many levels");
static_assert(sizeof(uint64_t) >= 8 * CODES_A_STEP / 8, "a step's bits fit one word at every width");
static_assert((int64_t)KN_GROUP_MAX * LEVELS(8) * -SIGNED_LEAST(8) < INT32_MAX, "a group's sum fits int32_t");

const kn_bits *kn_bits_find(int bits) {
    for (size_t i = 0; i < sizeof bits_table / sizeof *bits_table; i++) {
        if (bits_table[i].bits == bits) return &bits_table[i];
    }
    return NULL;
}

/* Half to even, into [least, most]; what is not a number becomes least. */
static int round_clamped(float x, int least, int most) {
    return (int)fminf(fmaxf(rintf(x), (float)least), (float)most);
}

static const float F16_MOST = 65504;

/* The F16 nearest to a finite or infinite value, without its infinities. */
static uint16_t finite_half(float value) { return kn_f32_to_f16(fminf(fmaxf(value, -F16_MOST), F16_MOST)); }

/* The least F16 that is not below a scale >= 0: rounded down it could cut the largest number off, by many steps where
 * F16 has few bits left (below 6e-5). */
static uint16_t half_scale(float scale) {
    uint16_t bits = finite_half(scale);
    return kn_f16_to_f32(bits) < fminf(scale, F16_MOST) ? (uint16_t)(bits + 1) : bits;
}

/* The largest F16 that is not above a value. */
static uint16_t half_below(float value) {
    uint16_t bits = finite_half(value);
    if (kn_f16_to_f32(bits) <= fmaxf(value, -F16_MOST)) return bits;
    return (uint16_t)(bits & 0x8000 ? bits + 1 : bits - 1);
}

/* A weight's scale, which is never 0. */
static float weight_scale(float scale) { return kn_f16_to_f32(half_scale(fmaxf(scale, 0x1p-24f))); }

/* ---- Bit streams ----------------------------------------------------------------------------- */

size_t kn_packed_bytes(int count, int bits) { return ((size_t)count * (size_t)bits + 7) / 8; }

/* Eight codes fill `bits` whole bytes, so a stream is a row of such steps and the last may be shorter. */
void kn_pack(const uint8_t *codes, int count, int bits, uint8_t *out) {
    for (int i = 0; i < count; i += CODES_A_STEP) {
        int step = count - i < CODES_A_STEP ? count - i : CODES_A_STEP;
        uint64_t word = 0;
        for (int j = 0; j < step; j++) word |= (uint64_t)codes[i + j] << (j * bits);
        for (size_t bytes = kn_packed_bytes(step, bits); bytes > 0; bytes--, word >>= 8) *out++ = (uint8_t)word;
    }
}

void kn_unpack(const uint8_t *stream, int count, int bits, uint8_t *codes) {
    uint64_t mask = (1u << bits) - 1;
    for (int i = 0; i < count; i += CODES_A_STEP) {
        int step = count - i < CODES_A_STEP ? count - i : CODES_A_STEP;
        int bytes = (int)kn_packed_bytes(step, bits);
        uint64_t word = 0;
        for (int j = 0; j < bytes; j++) word |= (uint64_t)*stream++ << (j * 8);
        for (int j = 0; j < step; j++, word >>= bits) codes[i + j] = (uint8_t)(word & mask);
    }
}

/* ---- Weights --------------------------------------------------------------------------------- */

static int low_columns(const kn_weight_format *format, int cols) { return cols - format->outliers; }

int kn_weight_groups(const kn_weight_format *format, int cols) {
    return (low_columns(format, cols) + format->group - 1) / format->group;
}

size_t kn_weight_bytes(const kn_weight_format *format, int rows, int cols) {
    size_t groups = (size_t)kn_weight_groups(format, cols);
    size_t row = kn_packed_bytes(low_columns(format, cols), format->bits) + groups * sizeof(uint16_t);
    if (!format->symmetric) row += groups;
    if (format->outliers) row += (size_t)format->outliers + sizeof(uint16_t);
    return (size_t)rows * row;
}

void kn_weight_scale(const kn_weight_format *format, float low, float high, float *scale, int *zero) {
    const kn_bits *range = kn_bits_find(format->bits);
    low = fminf(low, 0);
    high = fmaxf(high, 0);
    *zero = 0;
    *scale = 1;
    if (low == 0 && high == 0) return;
    if (format->symmetric) {
        *scale = weight_scale(fmaxf(-low, high) / range->divisor);
        return;
    }
    *scale = weight_scale((high - low) / (float)range->levels);
    *zero = round_clamped(-low / *scale, 0, range->levels);
}

int kn_weight_encode(const kn_weight_format *format, float w, float scale, int zero) {
    const kn_bits *range = kn_bits_find(format->bits);
    if (format->symmetric) return round_clamped(w / scale, range->least, range->most);
    return zero + round_clamped(w / scale, -zero, range->levels - zero);
}

/* Element `index` of F16 numbers that a mapped file may hold at any address. */
static float half_at(const uint16_t *halves, size_t index) {
    uint16_t bits;
    memcpy(&bits, (const char *)halves + index * sizeof bits, sizeof bits);
    return kn_f16_to_f32(bits);
}

float kn_weight_scale_at(const kn_qweight *weight, int row, int group) {
    int groups = kn_weight_groups(&weight->format, weight->cols);
    if (group == groups) return half_at(weight->outlier_scales, (size_t)row);
    return half_at(weight->scales, (size_t)row * (size_t)groups + (size_t)group);
}

/* What is subtracted from a stored code of row `row`, group `group`. */
static int code_offset(const kn_qweight *weight, int row, int group, int groups) {
    if (weight->format.symmetric) return 1 << (weight->format.bits - 1);
    return weight->zeros[(size_t)row * (size_t)groups + (size_t)group];
}

void kn_weight_decode_codes_part(const kn_qweight *weight, int row, int first, int count, int16_t *out) {
    const kn_weight_format *format = &weight->format;
    int low = low_columns(format, weight->cols), groups = kn_weight_groups(format, weight->cols), last = first + count;
    const uint8_t *stream = weight->codes + (size_t)row * kn_packed_bytes(low, format->bits);
    int col = first;
    while (col < last && col < low) {
        uint8_t codes[KN_GROUP_MAX];
        int group = col / format->group, end = (group + 1) * format->group;
        if (end > low) end = low;
        if (end > last) end = last;
        kn_unpack(stream + kn_packed_bytes(col, format->bits), end - col, format->bits, codes);
        int offset = code_offset(weight, row, group, groups);
        for (int i = 0; col < end; i++, col++) *out++ = (int16_t)(codes[i] - offset);
    }
    size_t outliers_at = (size_t)row * (size_t)format->outliers;
    for (; col < last; col++) *out++ = (int16_t)weight->outlier_codes[outliers_at + (size_t)(col - low)];
}

void kn_weight_decode_part(const kn_qweight *weight, int row, int first, int count, float *out) {
    const kn_weight_format *format = &weight->format;
    int low = low_columns(format, weight->cols), groups = kn_weight_groups(format, weight->cols), last = first + count;
    for (int col = first; col < last;) {
        int16_t codes[KN_GROUP_MAX];
        int end = col < low ? (col / format->group + 1) * format->group : col + KN_GROUP_MAX;
        if (col < low && end > low) end = low;
        if (end > last) end = last;
        float scale = kn_weight_scale_at(weight, row, col < low ? col / format->group : groups);
        kn_weight_decode_codes_part(weight, row, col, end - col, codes);
        for (int i = 0; col < end; i++, col++) *out++ = (float)codes[i] * scale;
    }
}

void kn_weight_decode_codes(const kn_qweight *weight, int row, int16_t *out) {
    kn_weight_decode_codes_part(weight, row, 0, weight->cols, out);
}

void kn_weight_decode_row(const kn_qweight *weight, int row, float *out) {
    kn_weight_decode_part(weight, row, 0, weight->cols, out);
}

/* On its own path through the bit stream, so that it can serve as a check of the row functions. */
float kn_weight_decode(const kn_qweight *weight, int row, int col) {
    const kn_weight_format *format = &weight->format;
    int low = low_columns(format, weight->cols), groups = kn_weight_groups(format, weight->cols);
    if (col >= low) {
        size_t at = (size_t)row * (size_t)format->outliers + (size_t)(col - low);
        return (float)weight->outlier_codes[at] * kn_weight_scale_at(weight, row, groups);
    }
    size_t row_bytes = kn_packed_bytes(low, format->bits), bit = (size_t)col * (size_t)format->bits;
    const uint8_t *stream = weight->codes + (size_t)row * row_bytes;
    unsigned pair = stream[bit / 8];
    if (bit / 8 + 1 < row_bytes) pair |= (unsigned)stream[bit / 8 + 1] << 8;
    int code = (int)(pair >> bit % 8 & ((1u << format->bits) - 1)), group = col / format->group;
    return (float)(code - code_offset(weight, row, group, groups)) * kn_weight_scale_at(weight, row, group);
}

/* ---- Activations ----------------------------------------------------------------------------- */

int kn_act_groups(const kn_act_format *format, int cols) {
    int low = cols - format->outliers;
    return (low + format->group - 1) / format->group + (format->outliers > 0);
}

/* Columns [first, last) as one group; returns its scale. */
static float encode_group(const kn_bits *range, float clip, const float *x, const int32_t *order, int first, int last,
                          int8_t *codes) {
    float largest = 0;
    for (int c = first; c < last; c++) largest = fmaxf(largest, fabsf(x[order ? order[c] : c]));
    float scale = clip * largest / range->divisor;
    if (!(scale > 0)) scale = 1;
    for (int c = first; c < last; c++) {
        codes[c] = (int8_t)round_clamped(x[order ? order[c] : c] / scale, range->least, range->most);
    }
    return scale;
}

void kn_act_encode_ordered(const kn_act_format *format, const float *x, const int32_t *order, int cols, int8_t *codes,
                           float *scales) {
    const kn_bits *range = kn_bits_find(format->bits);
    int low = cols - format->outliers;
    for (int first = 0; first < low; first += format->group) {
        int last = low - first < format->group ? low : first + format->group;
        *scales++ = encode_group(range, format->clip, x, order, first, last, codes);
    }
    if (format->outliers) *scales = encode_group(kn_bits_find(OUTLIER_BITS), 1, x, order, low, cols, codes);
}

void kn_act_encode(const kn_act_format *format, const float *x, int cols, int8_t *codes, float *scales) {
    kn_act_encode_ordered(format, x, NULL, cols, codes, scales);
}

/* ---- KV cache -------------------------------------------------------------------------------- */

/* The minimum is rounded down and the step, chosen after that, up: all numbers stay within half a step. */
void kn_kv_encode(int bits, const float *x, int width, uint8_t *stream, uint16_t *scale, uint16_t *minimum) {
    int levels = kn_bits_find(bits)->levels;
    float least = x[0], most = x[0];
    for (int i = 1; i < width; i++) {
        least = fminf(least, x[i]);
        most = fmaxf(most, x[i]);
    }
    *minimum = half_below(least);
    least = kn_f16_to_f32(*minimum);
    *scale = half_scale(fmaxf(most - least, 0) / (float)levels);
    float step = *scale ? kn_f16_to_f32(*scale) : 1; /* 0: all numbers are `least`, or below it */
    for (int i = 0; i < width; i += CODES_A_STEP) {
        uint8_t codes[CODES_A_STEP];
        int count = width - i < CODES_A_STEP ? width - i : CODES_A_STEP;
        for (int j = 0; j < count; j++) {
            codes[j] = (uint8_t)round_clamped((x[i + j] - least) / step, 0, levels);
        }
        kn_pack(codes, count, bits, stream + kn_packed_bytes(i, bits));
    }
}

void kn_kv_decode(int bits, const uint8_t *stream, uint16_t scale, uint16_t minimum, int width, float *out) {
    float step = kn_f16_to_f32(scale), least = kn_f16_to_f32(minimum);
    for (int i = 0; i < width; i += CODES_A_STEP) {
        uint8_t codes[CODES_A_STEP];
        int count = width - i < CODES_A_STEP ? width - i : CODES_A_STEP;
        kn_unpack(stream + kn_packed_bytes(i, bits), count, bits, codes);
        for (int j = 0; j < count; j++) out[i + j] = (float)codes[j] * step + least;
    }
}
