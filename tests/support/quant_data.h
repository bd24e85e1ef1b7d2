/* Quantized matrices for tests: made by the scalar encoder, at addresses that are aligned to nothing, as in a mapped
 * file. */
#ifndef BISUP_TESTS_QUANT_DATA_H
#define BISUP_TESTS_QUANT_DATA_H

#include "kernels/quant.h"

typedef struct quant_matrix {
    kn_qweight weight;
    size_t bytes; /* of all its arrays */
    void *memory[5];
} quant_matrix;

/* w [rows, cols], outlier columns last; each group's whole range, rounded to nearest. */
quant_matrix quant_matrix_make(kn_weight_format format, const float *w, int rows, int cols);
void quant_matrix_free(quant_matrix *matrix);

/* Element `index` of F16 numbers at any address. */
float quant_half(const uint16_t *halves, int index);

#endif
