/* The quantization methods, as a table: what base transforms they use and how they round. */
#ifndef BISUP_QUANTIZER_METHOD_H
#define BISUP_QUANTIZER_METHOD_H

#include "quantizer/transform.h"

typedef struct qz_method {
    const char *name;
    qz_base base;
    bool hessian; /* rounds with GPTQ */
    bool tune;    /* BiSup's fine-tuning comes first */
    /* Below 8 bits: what groups of weights and of activations are clipped to, as a share of their range; 0: searched.
     * Weights: not used after tuning, which learns it. Atom's 0.85 and 0.9 and QuaRot's 0.9 are those of their papers'
     * 4-bit models. */
    double weight_clip;
    float act_clip;
} qz_method;

/* The same at some width: 8 bits have room for the whole range, so clipping only costs. */
double qz_method_weight_clip(const qz_method *method, int bits);
float qz_method_act_clip(const qz_method *method, int bits);

/* NULL for a name that is none: then the caller's table of names is wrong, because users' words are checked before. */
const qz_method *qz_method_find(const char *name);

/* "plain", "atom", "quarot", as a folder's config.json spells it. */
const char *qz_base_name(qz_base base);

/* INT8 columns at the end of an input of `width` columns. wanted: of an input as wide as the hidden size, others in
 * proportion; 0: 128 where the input has 4096 columns or more, else a 32nd of them. Always a multiple of 8, at least 8,
 * at most half the width (rounded down to 8). */
int qz_outlier_columns(int wanted, int width, int hidden);

#endif
