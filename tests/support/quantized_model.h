/* Quantized model folders for tests: random weights, encoded here by the scalar definitions of kernels/quant.h and
 * written by a small safetensors writer, together with the decoded numbers for a reference computation. */
#ifndef BISUP_TESTS_QUANTIZED_MODEL_H
#define BISUP_TESTS_QUANTIZED_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/buf.h"

enum { QM_Q, QM_K, QM_V, QM_O, QM_GATE, QM_UP, QM_DOWN, QM_LINEARS };
enum { QM_ATTN, QM_O_INPUT, QM_FFN, QM_DOWN_INPUT, QM_SITES };

typedef struct qm_spec {
    const char *type; /* model_type: llama, qwen2, qwen3 */
    int hidden, ffn, layers, heads, kv_heads, head_dim, vocab, context;
    bool tied, biases; /* biases: all that the type may have */
    const char *base;  /* plain, atom, quarot */
    int weight_bits, activation_bits, kv_bits, group;
    bool symmetric;
    int outliers[QM_SITES];
} qm_spec;

typedef struct qm_linear {
    int rows, cols;
    double *w;    /* decoded [rows, cols] */
    double *bias; /* or NULL */
} qm_linear;

typedef struct qm_layer {
    qm_linear linear[QM_LINEARS];
    double *norm1, *norm2, *q_norm, *k_norm; /* q_norm, k_norm: or NULL */
    int32_t *order[QM_SITES];                /* NULL: natural */
    float clip[QM_SITES];
} qm_layer;

typedef struct qm_tensor {
    char name[96], dtype[8];
    int dims, shape[2], element;
    unsigned char *data;
    size_t bytes;
    bool dropped; /* not written */
} qm_tensor;

typedef struct qm_model {
    qm_spec spec;
    qm_layer *layers;
    double *embedding, *head, *final_norm;
    qm_tensor *tensors;
    int tensor_count;
} qm_model;

/* The next numbers of random_data.h decide the weights. */
qm_model *qm_make(const qm_spec *spec);
void qm_free(qm_model *model);

qm_tensor *qm_find(qm_model *model, const char *name); /* ends the program where there is none */
void qm_config(const qm_spec *spec, bis_buf *out);     /* config.json */

/* Writes config.json and model.safetensors into the scratch folder. */
void qm_write(const qm_model *model);
/* Also the demo model's tokenizer, for vocabularies at least as large. */
void qm_write_tokenizer(void);

#endif
