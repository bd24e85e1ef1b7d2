/* Element types and the weight matrices that kernels read. */
#ifndef BISUP_KERNELS_TENSOR_H
#define BISUP_KERNELS_TENSOR_H

#include <stddef.h>
#include <stdint.h>

typedef enum kn_type { KN_F32, KN_F16, KN_BF16, KN_TYPE_COUNT } kn_type;

/* Bytes of one element: 4, 2, 2. */
size_t kn_type_bytes(kn_type type);
/* "F32", "F16", "BF16", as safetensors spells them. */
const char *kn_type_name(kn_type type);

/* A row-major matrix [rows, cols] or, with rows == 1, a vector of cols elements. Memory is borrowed and
 * need not be aligned (a mapped file gives no promise). data == NULL: the tensor is absent. */
typedef struct kn_tensor {
    const void *data;
    kn_type type;
    int rows, cols;
} kn_tensor;

/* Scalar conversions; IEEE, round to nearest even, subnormals kept, NaN stays NaN. */
float kn_f16_to_f32(uint16_t bits);
uint16_t kn_f32_to_f16(float value);
float kn_bf16_to_f32(uint16_t bits);
uint16_t kn_f32_to_bf16(float value);

/* Element `index` of a tensor of any type. */
float kn_tensor_get(const kn_tensor *tensor, size_t index);

#endif
