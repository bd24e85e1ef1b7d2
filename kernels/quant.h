/* Quantization formats: what the numbers of quantized weights, activations and KV caches mean, and the scalar
 * code that encodes and decodes them. This is the definition; every fast kernel is tested against it.
 *
 * Weights [rows, cols]: the first cols - outliers columns are low-bit, in groups of `group` columns along the
 * row (the last group may be shorter); the last `outliers` columns (Atom) are INT8, one scale a row.
 *   symmetric   w = code * scale, code in [-2^(b-1), 2^(b-1) - 1], stored as code + 2^(b-1)
 *   asymmetric  w = (code - zero) * scale, code and zero in [0, 2^b - 1]
 * Scales are F16, rounded up, so that a whole range stays within half a step. On disk and in kn_qweight codes are a
 * little-endian bit stream: element i of a row occupies bits [i*b, (i+1)*b) of the row; each row starts at a byte.
 *
 * Activations (one row = one token): symmetric, one F32 scale a token and group of the same columns; the outlier
 * columns are one INT8 group. bits 16: not quantized (F32 stays F32).
 *
 * KV cache: asymmetric, one F16 scale (rounded up) and F16 minimum (rounded down) a token and head:
 * x = code * scale + minimum.
 *
 * A quantized product is exact inside a group: sum of int8 * int8 in int32. Groups are added in rising order as
 * acc = fmaf((float)dot, x_scale * w_scale, acc), the outlier group last. So the order depends on the shape alone.
 */
#ifndef BISUP_KERNELS_QUANT_H
#define BISUP_KERNELS_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KN_GROUP_MAX = 128, KN_NOT_QUANTIZED = 16 };

/* ---- Integer ranges -------------------------------------------------------------------------- */

/* What a bit width is. The table is in quant.c; widths 2, 3, 4 and 8 have an entry (2: KV only). */
typedef struct kn_bits {
    int bits;
    int least, most; /* symmetric codes: -2^(b-1) .. 2^(b-1)-1 */
    float divisor;   /* symmetric scale = largest magnitude / divisor: 2^(b-1)-1 at 4 and 8 bits; at 3 bits 3.5, because
                        the negative extra level is worth using there */
    int levels;      /* asymmetric: largest code, 2^b - 1 */
} kn_bits;

/* NULL for a width that has no entry. */
const kn_bits *kn_bits_find(int bits);

/* ---- Bit streams ----------------------------------------------------------------------------- */

/* Bytes of `count` codes of `bits` bits. */
size_t kn_packed_bytes(int count, int bits);
/* codes[i] in [0, 2^bits - 1] to and from a bit stream; pack writes all kn_packed_bytes(count, bits) bytes. */
void kn_pack(const uint8_t *codes, int count, int bits, uint8_t *out);
void kn_unpack(const uint8_t *stream, int count, int bits, uint8_t *codes);

/* ---- Weights --------------------------------------------------------------------------------- */

typedef struct kn_weight_format {
    int bits;  /* 3, 4, 8 */
    int group; /* 32, 64, 128 */
    bool symmetric;
    int outliers; /* INT8 columns at the end; 0: none */
} kn_weight_format;

/* A quantized matrix. Memory is borrowed (a mapped file); codes == NULL: absent. */
typedef struct kn_qweight {
    kn_weight_format format;
    int rows, cols;
    const uint8_t *codes;           /* [rows, kn_packed_bytes(cols - outliers, bits)] */
    const uint16_t *scales;         /* F16 [rows, groups] */
    const uint8_t *zeros;           /* [rows, groups]; NULL when symmetric */
    const int8_t *outlier_codes;    /* [rows, outliers] */
    const uint16_t *outlier_scales; /* F16 [rows] */
} kn_qweight;

/* Groups of the low-bit columns of a row of `cols` columns. */
int kn_weight_groups(const kn_weight_format *format, int cols);
/* All bytes of a matrix of this format, for size accounting. */
size_t kn_weight_bytes(const kn_weight_format *format, int rows, int cols);

/* The scale (as F16 stores it) and zero of one group for a clipped range: low <= 0 <= high (enforced by the
 * function: it widens the range to include 0). Symmetric: uses max(|low|, |high|), zero 0. A range of 0 gives scale 1.
 */
void kn_weight_scale(const kn_weight_format *format, float low, float high, float *scale, int *zero);
/* The code of one weight under a scale and zero, round half to even, clamped; symmetric codes are signed here. */
int kn_weight_encode(const kn_weight_format *format, float w, float scale, int zero);
/* The value of one element of a packed matrix. */
float kn_weight_decode(const kn_qweight *weight, int row, int col);
/* A whole row as F32 [cols], the same values. */
void kn_weight_decode_row(const kn_qweight *weight, int row, float *out);
/* A whole row as integers [cols]: code (symmetric) or code - zero (asymmetric, within -255..255), outliers last. */
void kn_weight_decode_codes(const kn_qweight *weight, int row, int16_t *out);
/* The scale of low-bit group `group` of a row; group == kn_weight_groups: of its outliers. */
float kn_weight_scale_at(const kn_qweight *weight, int row, int group);
/* Columns [first, first + count) of what decode_row and decode_codes give; a `first` among the low-bit columns is a
 * multiple of 8. */
void kn_weight_decode_part(const kn_qweight *weight, int row, int first, int count, float *out);
void kn_weight_decode_codes_part(const kn_qweight *weight, int row, int first, int count, int16_t *out);

/* ---- Activations ----------------------------------------------------------------------------- */

typedef struct kn_act_format {
    int bits;     /* 3, 4, 8, or KN_NOT_QUANTIZED */
    int group;    /* as the weights' */
    int outliers; /* INT8 columns at the end, as the weights' */
    float clip;   /* (0, 1]: scales are taken from clip * largest magnitude (not for outliers) */
} kn_act_format;

/* One row: codes int8 [cols], scales F32 [kn_weight_groups + (outliers > 0)]. bits must have an entry. A group of
 * zeros gets scale 1. code = clamp(rint(x / scale)). */
void kn_act_encode(const kn_act_format *format, const float *x, int cols, int8_t *codes, float *scales);
/* The same of x[order[0]], x[order[1]], ... (order NULL: x). */
void kn_act_encode_ordered(const kn_act_format *format, const float *x, const int32_t *order, int cols, int8_t *codes,
                           float *scales);
/* Scales of a row: kn_weight_groups + (outliers > 0). */
int kn_act_groups(const kn_act_format *format, int cols);

/* ---- KV cache -------------------------------------------------------------------------------- */

/* One head's K or V of one token: `width` numbers. scale and minimum are F16 values and rounded before the codes
 * are chosen. bits 2, 3, 4, 8. */
void kn_kv_encode(int bits, const float *x, int width, uint8_t *stream, uint16_t *scale, uint16_t *minimum);
void kn_kv_decode(int bits, const uint8_t *stream, uint16_t scale, uint16_t minimum, int width, float *out);

#endif
