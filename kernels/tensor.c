#include "kernels/tensor.h"

#include <string.h>

size_t kn_type_bytes(kn_type type) { return type == KN_F32 ? 4 : 2; }

const char *kn_type_name(kn_type type) {
    static const char *const names[] = {"F32", "F16", "BF16"};
    return (unsigned)type < KN_TYPE_COUNT ? names[type] : "unknown";
}

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

float kn_f16_to_f32(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 0x1f, fraction = bits & 0x3ff;
    if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13 | (fraction ? 0x400000 : 0));
    if (exponent) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
    float magnitude = (float)fraction * 0x1p-24f; /* zero and subnormals, exact */
    return sign ? -magnitude : magnitude;
}

uint16_t kn_f32_to_f16(float value) {
    uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and more round to infinity */
    if (magnitude < 0x38800000) {                                  /* below 2^-14: adding 0.5 rounds to 2^-24 steps */
        uint32_t rounded = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
        return (uint16_t)(sign | rounded);
    }
    uint32_t odd = magnitude >> 13 & 1;
    return (uint16_t)(sign | (magnitude - 0x38000000 + 0xfff + odd) >> 13);
}

float kn_bf16_to_f32(uint16_t bits) { return float_of((uint32_t)bits << 16); }

uint16_t kn_f32_to_bf16(float value) {
    uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float kn_tensor_get(const kn_tensor *tensor, size_t index) {
    const char *at = (const char *)tensor->data + index * kn_type_bytes(tensor->type);
    if (tensor->type == KN_F32) {
        float value;
        memcpy(&value, at, sizeof value);
        return value;
    }
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    return tensor->type == KN_F16 ? kn_f16_to_f32(bits) : kn_bf16_to_f32(bits);
}
