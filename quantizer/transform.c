/* Mathematics of the rotations, with P = H D (H the Hadamard transform of size `hidden`, D the signs), all orthonormal:
 *   residual stream  x' = P x                    embedding rows, and columns and biases of o and down, times P
 *   its readers      w . x = (P w) . (P x)       rows of q, k, v, gate, up and of the head, after the norm's gains
 *   values           v' = H_d v in each head     rows and biases of v in runs of head_dim
 *   o's input        a' = (H_n (x) H_d) a        rows of o: H_d came through v, H_n (across heads) is online
 *   down's input     h' = H_f h                  rows of down; online
 * RMSNorm without gains commutes with P, because P keeps lengths. */
#include "quantizer/transform.h"

#include <string.h>

#include "common/alloc.h"

enum { COLUMN_TILE = 8 };

/* What a linear's input was multiplied by, and its output shall be. */
typedef enum qz_input { READS_NORM1, READS_NORM2, READS_HEADS, READS_FFN } qz_input;
typedef enum qz_output { GIVES_PLAIN, GIVES_VALUES, GIVES_RESIDUAL } qz_output;

static const struct linear_part {
    const char *name;
    size_t weight, bias; /* offsets in rt_layer */
    qz_input input;
    qz_output output;
} linear_parts[QZ_LINEARS] = {
    [QZ_Q] = {"self_attn.q_proj", offsetof(rt_layer, q), offsetof(rt_layer, q_bias), READS_NORM1, GIVES_PLAIN},
    [QZ_K] = {"self_attn.k_proj", offsetof(rt_layer, k), offsetof(rt_layer, k_bias), READS_NORM1, GIVES_PLAIN},
    [QZ_V] = {"self_attn.v_proj", offsetof(rt_layer, v), offsetof(rt_layer, v_bias), READS_NORM1, GIVES_VALUES},
    [QZ_O] = {"self_attn.o_proj", offsetof(rt_layer, o), offsetof(rt_layer, o_bias), READS_HEADS, GIVES_RESIDUAL},
    [QZ_GATE] = {"mlp.gate_proj", offsetof(rt_layer, gate), offsetof(rt_layer, gate_bias), READS_NORM2, GIVES_PLAIN},
    [QZ_UP] = {"mlp.up_proj", offsetof(rt_layer, up), offsetof(rt_layer, up_bias), READS_NORM2, GIVES_PLAIN},
    [QZ_DOWN] = {"mlp.down_proj", offsetof(rt_layer, down), offsetof(rt_layer, down_bias), READS_FFN, GIVES_RESIDUAL},
};

struct qz_transform {
    const rt_model *model;
    const rt_model_config *config;
    qz_base base;
    kn_hadamard *hidden, *heads, *head, *ffn; /* QuaRot; NULL otherwise */
    double *signs;                            /* [hidden] */
    double *row, *scratch;                    /* [the widest row] each */
};

/* ---- Weights that are not numbers ---- */

/* The index of the first Inf or NaN; the number of elements where there is none. */
static size_t first_not_finite(const kn_tensor *tensor) {
    size_t count = (size_t)tensor->rows * (size_t)tensor->cols;
    if (tensor->type == KN_F32) {
        const char *at = tensor->data;
        for (size_t i = 0; i < count; i++, at += sizeof(uint32_t)) {
            uint32_t bits;
            memcpy(&bits, at, sizeof bits);
            if ((bits & 0x7f800000u) == 0x7f800000u) return i;
        }
        return count;
    }
    const char *at = tensor->data;
    const uint16_t exponent = tensor->type == KN_F16 ? 0x7c00 : 0x7f80;
    for (size_t i = 0; i < count; i++, at += sizeof(uint16_t)) {
        uint16_t bits;
        memcpy(&bits, at, sizeof bits);
        if ((bits & exponent) == exponent) return i;
    }
    return count;
}

/* layer -1: not in a layer. part: ".weight", ".bias" or "". */
static bis_status check_finite(const kn_tensor *tensor, int layer, const char *name, const char *part,
                               bis_error *error) {
    static const char advice[] = "is not a finite number: the file is damaged or training diverged; use another copy";
    if (!tensor->data) return BIS_OK;
    size_t at = first_not_finite(tensor), cols = (size_t)tensor->cols;
    if (at == (size_t)tensor->rows * cols) return BIS_OK;
    if (layer < 0) {
        return bis_fail(error, BIS_ERR_INVALID, "tensor '%s%s': element [%zu, %zu] %s", name, part, at / cols,
                        at % cols, advice);
    }
    return bis_fail(error, BIS_ERR_INVALID, "layer %d, tensor '%s%s': element [%zu, %zu] %s", layer, name, part,
                    at / cols, at % cols, advice);
}

/* ---- Opening ---- */

static uint64_t next_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static int widest_row(const rt_model_config *c) {
    int widest = c->heads * c->head_dim;
    if (c->hidden > widest) widest = c->hidden;
    return c->ffn > widest ? c->ffn : widest;
}

static bis_status open_rotations(qz_transform *self, uint64_t seed, bis_error *error) {
    const rt_model_config *c = self->config;
    size_t widest = (size_t)widest_row(c);
    self->signs = bis_calloc((size_t)c->hidden, sizeof(double));
    self->row = bis_calloc(widest, sizeof(double));
    self->scratch = bis_calloc(widest, sizeof(double));
    if (!self->signs || !self->row || !self->scratch) {
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for the rotations");
    }
    for (int i = 0; i < c->hidden; i++) self->signs[i] = next_random(&seed) >> 63 ? -1 : 1;
    bis_status status = kn_hadamard_open(c->hidden, &self->hidden, error);
    if (!status) status = kn_hadamard_open(c->heads, &self->heads, error);
    if (!status) status = kn_hadamard_open(c->head_dim, &self->head, error);
    if (!status) status = kn_hadamard_open(c->ffn, &self->ffn, error);
    return status;
}

static bis_status check_outside_layers(const rt_model *model, bis_error *error) {
    kn_tensor embedding = rt_model_embedding(model), norm = rt_model_final_norm(model), head = rt_model_head(model);
    bis_status status = check_finite(&embedding, -1, "embed_tokens", ".weight", error);
    if (!status) status = check_finite(&norm, -1, "norm", ".weight", error);
    if (!status && !rt_model_get_config(model)->tied_embeddings) {
        status = check_finite(&head, -1, "lm_head", ".weight", error);
    }
    return status;
}

bis_status qz_transform_open(const rt_model *model, qz_base base, uint64_t seed, qz_transform **out, bis_error *error) {
    bis_status status = check_outside_layers(model, error);
    if (status) return status;
    qz_transform *self = bis_calloc(1, sizeof *self);
    if (!self) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the transforms");
    self->model = model;
    self->config = rt_model_get_config(model);
    self->base = base;
    if (base == QZ_BASE_QUAROT) status = open_rotations(self, seed, error);
    if (status) qz_transform_close(self);
    else *out = self;
    return status;
}

void qz_transform_close(qz_transform *transform) {
    if (!transform) return;
    kn_hadamard_close(transform->hidden);
    kn_hadamard_close(transform->heads);
    kn_hadamard_close(transform->head);
    kn_hadamard_close(transform->ffn);
    bis_free(transform->signs);
    bis_free(transform->row);
    bis_free(transform->scratch);
    bis_free(transform);
}

qz_shape qz_transform_shape(const qz_transform *transform) {
    const rt_model_config *c = transform->config;
    return (qz_shape){c->hidden, c->ffn, c->heads, c->kv_heads, c->head_dim, c->norm_eps};
}

void qz_transform_set_spec(const qz_transform *transform, qz_spec *spec) {
    bool rotated = transform->base == QZ_BASE_QUAROT;
    spec->key_before_rope = !rotated;
    spec->key_hadamard = rotated;
    spec->heads_hadamard = rotated;
    spec->ffn_hadamard = rotated;
}

/* ---- Rotating rows ---- */

/* x <- P x. gains (may be NULL) are multiplied in first. */
static void rotate_residual(const qz_transform *self, const kn_tensor *gains, double *x) {
    for (int i = 0; i < self->config->hidden; i++) {
        x[i] *= self->signs[i];
        if (gains) x[i] *= kn_tensor_get(gains, (size_t)i);
    }
    kn_hadamard_apply_double(self->hidden, x, self->scratch);
}

/* x <- (H_heads (x) H_head_dim) x */
static void rotate_heads(const qz_transform *self, double *x) {
    int heads = self->config->heads, width = self->config->head_dim;
    double *across = self->row;
    for (int h = 0; h < heads; h++) {
        kn_hadamard_apply_double(self->head, x + (size_t)h * (size_t)width, self->scratch);
    }
    for (int i = 0; i < width; i++) {
        for (int h = 0; h < heads; h++) across[h] = x[h * width + i];
        kn_hadamard_apply_double(self->heads, across, self->scratch);
        for (int h = 0; h < heads; h++) x[h * width + i] = across[h];
    }
}

static void rotate_input(const qz_transform *self, const rt_layer *layer, qz_input input, double *x) {
    switch (input) {
    case READS_NORM1: rotate_residual(self, &layer->attention_norm, x); break;
    case READS_NORM2: rotate_residual(self, &layer->ffn_norm, x); break;
    case READS_HEADS: rotate_heads(self, x); break;
    case READS_FFN: kn_hadamard_apply_double(self->ffn, x, self->scratch); break;
    }
}

/* Outputs are rotated in runs of so many rows. */
static int output_run(const qz_transform *self, qz_output output) {
    switch (output) {
    case GIVES_VALUES: return self->config->head_dim;
    case GIVES_RESIDUAL: return self->config->hidden;
    case GIVES_PLAIN: break;
    }
    return 1;
}

static void rotate_output(const qz_transform *self, qz_output output, double *y) {
    if (output == GIVES_VALUES) kn_hadamard_apply_double(self->head, y, self->scratch);
    else if (output == GIVES_RESIDUAL) rotate_residual(self, NULL, y);
}

/* rotate_output of each column of run [rows, cols]; tile holds COLUMN_TILE columns. */
static void rotate_columns(const qz_transform *self, qz_output output, double *run, int rows, int cols, double *tile) {
    for (int first = 0; first < cols; first += COLUMN_TILE) {
        int count = cols - first < COLUMN_TILE ? cols - first : COLUMN_TILE;
        for (int r = 0; r < rows; r++) {
            const double *from = run + (size_t)r * (size_t)cols + first;
            for (int c = 0; c < count; c++) tile[(size_t)c * (size_t)rows + (size_t)r] = from[c];
        }
        for (int c = 0; c < count; c++) rotate_output(self, output, tile + (size_t)c * (size_t)rows);
        for (int r = 0; r < rows; r++) {
            double *to = run + (size_t)r * (size_t)cols + first;
            for (int c = 0; c < count; c++) to[c] = tile[(size_t)c * (size_t)rows + (size_t)r];
        }
    }
}

/* ---- Blocks ---- */

static void widen(const kn_tensor *tensor, size_t first, size_t count, qz_real *out) {
    for (size_t i = 0; i < count; i++) out[i] = kn_tensor_get(tensor, first + i);
}

static bis_status rotate_weight(const qz_transform *self, const rt_layer *layer, const struct linear_part *part,
                                const kn_tensor *weight, qz_real *out, bis_error *error) {
    int run_rows = output_run(self, part->output), cols = weight->cols;
    size_t run_size = (size_t)run_rows * (size_t)cols;
    double *run = bis_calloc(run_size, sizeof *run);
    double *tile = bis_calloc((size_t)run_rows * COLUMN_TILE, sizeof *tile);
    if (!run || !tile) {
        bis_free(run);
        bis_free(tile);
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for rotating %s: it takes %.1f MB", part->name,
                        (double)run_size * 8e-6);
    }
    for (int first = 0; first < weight->rows; first += run_rows) {
        size_t start = (size_t)first * (size_t)cols;
        for (size_t i = 0; i < run_size; i++) run[i] = kn_tensor_get(weight, start + i);
        for (int r = 0; r < run_rows; r++) rotate_input(self, layer, part->input, run + (size_t)r * (size_t)cols);
        if (run_rows > 1) rotate_columns(self, part->output, run, run_rows, cols, tile);
        for (size_t i = 0; i < run_size; i++) out[start + i] = (qz_real)run[i];
    }
    bis_free(run);
    bis_free(tile);
    return BIS_OK;
}

static void rotate_bias(const qz_transform *self, qz_output output, const kn_tensor *bias, qz_real *out) {
    int run = output_run(self, output);
    double *x = self->row;
    for (int first = 0; first < bias->cols; first += run) {
        for (int i = 0; i < run; i++) x[i] = kn_tensor_get(bias, (size_t)first + (size_t)i);
        rotate_output(self, output, x);
        for (int i = 0; i < run; i++) out[first + i] = (qz_real)x[i];
    }
}

static bis_status make_linear(const qz_transform *self, int index, qz_linear_id linear, qz_block *block,
                              bis_error *error) {
    const struct linear_part *part = &linear_parts[linear];
    const rt_layer *layer = rt_model_layer(self->model, index);
    const kn_tensor *weight = (const kn_tensor *)(const void *)((const char *)layer + part->weight);
    const kn_tensor *bias = (const kn_tensor *)(const void *)((const char *)layer + part->bias);
    bis_status status = check_finite(weight, index, part->name, ".weight", error);
    if (!status) status = check_finite(bias, index, part->name, ".bias", error);
    if (status) return status;
    bool rotated = self->base == QZ_BASE_QUAROT;
    if (block->bias[linear] && bias->data) {
        if (rotated) rotate_bias(self, part->output, bias, block->bias[linear]);
        else widen(bias, 0, (size_t)bias->cols, block->bias[linear]);
    }
    if (rotated) return rotate_weight(self, layer, part, weight, block->weight[linear], error);
    widen(weight, 0, (size_t)weight->rows * (size_t)weight->cols, block->weight[linear]);
    return BIS_OK;
}

/* folded: the gains went into the linears that read them. */
static bis_status make_norm(const kn_tensor *gains, int layer, const char *name, bool folded, qz_real *out,
                            bis_error *error) {
    bis_status status = check_finite(gains, layer, name, ".weight", error);
    if (status || !gains->data) return status;
    if (!folded) widen(gains, 0, (size_t)gains->cols, out);
    else
        for (int i = 0; i < gains->cols; i++) out[i] = 1;
    return BIS_OK;
}

static bis_status fill_block(const qz_transform *self, int index, qz_block *block, bis_error *error) {
    const rt_layer *layer = rt_model_layer(self->model, index);
    bool rotated = self->base == QZ_BASE_QUAROT;
    bis_status status = make_norm(&layer->attention_norm, index, "input_layernorm", rotated, block->norm1, error);
    if (!status) {
        status = make_norm(&layer->ffn_norm, index, "post_attention_layernorm", rotated, block->norm2, error);
    }
    if (!status) status = make_norm(&layer->q_norm, index, "self_attn.q_norm", false, block->q_norm, error);
    if (!status) status = make_norm(&layer->k_norm, index, "self_attn.k_norm", false, block->k_norm, error);
    for (int i = 0; !status && i < QZ_LINEARS; i++) status = make_linear(self, index, (qz_linear_id)i, block, error);
    return status;
}

bis_status qz_transform_block(const qz_transform *transform, int layer, qz_block **out, bis_error *error) {
    const rt_model_config *c = transform->config;
    qz_shape shape = qz_transform_shape(transform);
    qz_block *block;
    bis_status status = qz_block_alloc(&shape, c->qkv_bias, c->o_bias, c->mlp_bias, c->qk_norm, &block, error);
    if (status) return status;
    status = fill_block(transform, layer, block, error);
    if (status) qz_block_free(block);
    else *out = block;
    return status;
}

/* ---- Outside the blocks ---- */

static void make_rows(const qz_transform *self, const kn_tensor *table, const kn_tensor *gains, int first, int count,
                      float *out) {
    size_t hidden = (size_t)self->config->hidden;
    for (int r = 0; r < count; r++, out += hidden) {
        size_t start = (size_t)(first + r) * hidden;
        if (self->base != QZ_BASE_QUAROT) {
            for (size_t i = 0; i < hidden; i++) out[i] = kn_tensor_get(table, start + i);
            continue;
        }
        for (size_t i = 0; i < hidden; i++) self->row[i] = kn_tensor_get(table, start + i);
        rotate_residual(self, gains, self->row);
        for (size_t i = 0; i < hidden; i++) out[i] = (float)self->row[i];
    }
}

void qz_transform_embedding(const qz_transform *transform, int first, int count, float *out) {
    kn_tensor embedding = rt_model_embedding(transform->model);
    make_rows(transform, &embedding, NULL, first, count, out);
}

void qz_transform_head(const qz_transform *transform, int first, int count, float *out) {
    kn_tensor head = rt_model_head(transform->model), gains = rt_model_final_norm(transform->model);
    make_rows(transform, &head, &gains, first, count, out);
}

void qz_transform_final_norm(const qz_transform *transform, float *out) {
    kn_tensor gains = rt_model_final_norm(transform->model);
    bool folded = transform->base == QZ_BASE_QUAROT;
    for (int i = 0; i < gains.cols; i++) out[i] = folded ? 1 : kn_tensor_get(&gains, (size_t)i);
}

bool qz_transform_tied(const qz_transform *transform) {
    return transform->config->tied_embeddings && transform->base != QZ_BASE_QUAROT;
}
