#include "tests/support/quant_data.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/tensor.h"
#include "tests/support/random_data.h"

float quant_half(const uint16_t *halves, int index) {
    uint16_t bits;
    memcpy(&bits, (const char *)halves + (size_t)index * sizeof bits, sizeof bits);
    return kn_f16_to_f32(bits);
}

static void put_half(char *halves, int index, float value) {
    uint16_t bits = kn_f32_to_f16(value);
    memcpy(halves + (size_t)index * sizeof bits, &bits, sizeof bits);
}

/* One range as the format says: its codes as stored, and its scale and zero. */
static void encode_range(const kn_weight_format *format, const float *w, int count, uint8_t *codes, float *scale,
                         int *zero) {
    float low = 0, high = 0;
    for (int i = 0; i < count; i++) {
        low = fminf(low, w[i]);
        high = fmaxf(high, w[i]);
    }
    kn_weight_scale(format, low, high, scale, zero);
    int offset = format->symmetric ? 1 << (format->bits - 1) : 0;
    for (int i = 0; i < count; i++) codes[i] = (uint8_t)(kn_weight_encode(format, w[i], *scale, *zero) + offset);
}

quant_matrix quant_matrix_make(kn_weight_format format, const float *w, int rows, int cols) {
    int low = cols - format.outliers, groups = (low + format.group - 1) / format.group;
    size_t stride = ((size_t)low * (size_t)format.bits + 7) / 8;
    size_t sizes[5] = {(size_t)rows * stride, (size_t)rows * (size_t)groups * 2, (size_t)rows * (size_t)groups,
                       (size_t)rows * (size_t)format.outliers, (size_t)rows * 2};
    if (format.symmetric) sizes[2] = 0;
    if (!format.outliers) sizes[4] = 0;
    quant_matrix m = {.weight = {.format = format, .rows = rows, .cols = cols}};
    char *at[5];
    for (int i = 0; i < 5; i++) {
        m.bytes += sizes[i];
        m.memory[i] = test_alloc(sizes[i] + 1);
        at[i] = (char *)m.memory[i] + 1;
    }
    uint8_t *codes = test_alloc((size_t)cols);
    kn_weight_format outliers = {.bits = 8, .group = format.group, .symmetric = true};
    for (int r = 0; r < rows; r++, w += cols) {
        float scale;
        int zero;
        for (int g = 0, first = 0; g < groups; g++, first += format.group) {
            int count = low - first < format.group ? low - first : format.group;
            encode_range(&format, w + first, count, codes + first, &scale, &zero);
            put_half(at[1], r * groups + g, scale);
            if (!format.symmetric) at[2][r * groups + g] = (char)zero;
        }
        kn_pack(codes, low, format.bits, (uint8_t *)at[0] + (size_t)r * stride);
        if (!format.outliers) continue;
        encode_range(&outliers, w + low, format.outliers, codes, &scale, &zero);
        for (int i = 0; i < format.outliers; i++) at[3][r * format.outliers + i] = (char)(codes[i] - 128);
        put_half(at[4], r, scale);
    }
    free(codes);
    m.weight.codes = (const uint8_t *)at[0];
    m.weight.scales = (const uint16_t *)(const void *)at[1];
    if (!format.symmetric) m.weight.zeros = (const uint8_t *)at[2];
    if (!format.outliers) return m;
    m.weight.outlier_codes = (const int8_t *)at[3];
    m.weight.outlier_scales = (const uint16_t *)(const void *)at[4];
    return m;
}

void quant_matrix_free(quant_matrix *matrix) {
    for (int i = 0; i < 5; i++) free(matrix->memory[i]);
    *matrix = (quant_matrix){0};
}
