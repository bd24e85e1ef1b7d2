#include "quantizer/block_file.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "kernels/tensor.h"
#include "quantizer/safetensors_writer.h"

enum { ACT_CLIP_COUNT = QZ_SITES, FIGURES = sizeof(qz_block_figures) / sizeof(double) };

static const char *const linear_names[QZ_LINEARS] = {
    [QZ_Q] = "self_attn.q_proj", [QZ_K] = "self_attn.k_proj", [QZ_V] = "self_attn.v_proj", [QZ_O] = "self_attn.o_proj",
    [QZ_GATE] = "mlp.gate_proj", [QZ_UP] = "mlp.up_proj",     [QZ_DOWN] = "mlp.down_proj",
};

static const char *const order_names[QZ_SITES] = {
    [QZ_SITE_ATTN] = "self_attn.input_order",
    [QZ_SITE_O] = "self_attn.o_proj.input_order",
    [QZ_SITE_FFN] = "mlp.input_order",
};

/* A vector of a block that is stored as F32. */
typedef struct block_vector {
    const char *name;
    qz_real *values; /* NULL: absent */
    int count;
} block_vector;

enum { NORMS = 4 };

static void list_norms(const qz_block *block, block_vector out[NORMS]) {
    const qz_shape *shape = &block->shape;
    out[0] = (block_vector){"input_layernorm.weight", block->norm1, shape->hidden};
    out[1] = (block_vector){"post_attention_layernorm.weight", block->norm2, shape->hidden};
    out[2] = (block_vector){"self_attn.q_norm.weight", block->q_norm, shape->head_dim};
    out[3] = (block_vector){"self_attn.k_norm.weight", block->k_norm, shape->head_dim};
}

static const char *layer_name(int layer, const char *part, char name[QZ_NAME_MAX]) {
    snprintf(name, QZ_NAME_MAX, "model.layers.%d.%s", layer, part);
    return name;
}

const char *qz_linear_name(int layer, qz_linear_id linear, char name[QZ_NAME_MAX]) {
    return layer_name(layer, linear_names[linear], name);
}

static const char *part_name(int layer, qz_linear_id linear, const char *part, char name[QZ_NAME_MAX]) {
    snprintf(name, QZ_NAME_MAX, "model.layers.%d.%s.%s", layer, linear_names[linear], part);
    return name;
}

/* ---- Writing ---- */

static void add_packed(qz_tensors *list, int layer, qz_linear_id linear, const kn_qweight *w) {
    char name[QZ_NAME_MAX];
    const kn_weight_format *format = &w->format;
    uint64_t rows = (uint64_t)w->rows, groups = (uint64_t)kn_weight_groups(format, w->cols);
    uint64_t outliers = (uint64_t)format->outliers;
    qz_tensors_add(list, part_name(layer, linear, "codes", name), RT_STORED_U8, rows,
                   kn_packed_bytes(w->cols - format->outliers, format->bits), w->codes);
    qz_tensors_add(list, part_name(layer, linear, "scales", name), RT_STORED_F16, rows, groups, w->scales);
    if (!format->symmetric) {
        qz_tensors_add(list, part_name(layer, linear, "zeros", name), RT_STORED_U8, rows, groups, w->zeros);
    }
    if (!outliers) return;
    qz_tensors_add(list, part_name(layer, linear, "outlier_codes", name), RT_STORED_I8, rows, outliers,
                   w->outlier_codes);
    qz_tensors_add(list, part_name(layer, linear, "outlier_scales", name), RT_STORED_F16, rows, 0, w->outlier_scales);
}

/* A matrix that is stored as F16, made while it is written. */
typedef struct half_matrix {
    const qz_real *values;
    size_t count;
    const char *name;
} half_matrix;

static bis_status put_half(void *user, qz_sink *sink, bis_error *error) {
    enum { PIECE = 4096 };
    const half_matrix *m = user;
    uint16_t halves[PIECE];
    for (size_t at = 0; at < m->count; at += PIECE) {
        size_t count = m->count - at < PIECE ? m->count - at : PIECE;
        for (size_t i = 0; i < count; i++) {
            float value = (float)m->values[at + i];
            halves[i] = kn_f32_to_f16(value);
            if (!isfinite(kn_f16_to_f32(halves[i]))) {
                return bis_fail(error, BIS_ERR_INVALID, "%s holds %g, which F16 cannot store: quantize the weights",
                                m->name, (double)value);
            }
        }
        if (!qz_sink_put(sink, halves, count * sizeof *halves)) return BIS_OK;
    }
    return BIS_OK;
}

static void add_half(qz_tensors *list, int layer, qz_linear_id linear, const qz_block *block, half_matrix *m) {
    char name[QZ_NAME_MAX];
    uint64_t rows = (uint64_t)qz_linear_rows(&block->shape, linear),
             cols = (uint64_t)qz_linear_cols(&block->shape, linear);
    *m = (half_matrix){block->weight[linear], (size_t)(rows * cols), linear_names[linear]};
    qz_tensor *tensor = qz_tensors_add(list, part_name(layer, linear, "weight", name), RT_STORED_F16, rows, cols, NULL);
    if (!tensor) return;
    tensor->fill = put_half;
    tensor->user = m;
}

static void add_vectors(qz_tensors *list, int layer, const qz_block *block) {
    char name[QZ_NAME_MAX];
    block_vector norms[NORMS];
    list_norms(block, norms);
    for (int i = 0; i < NORMS; i++) {
        if (!norms[i].values) continue;
        qz_tensors_add(list, layer_name(layer, norms[i].name, name), RT_STORED_F32, (uint64_t)norms[i].count, 0,
                       norms[i].values);
    }
    for (qz_linear_id l = 0; l < QZ_LINEARS; l++) {
        if (!block->bias[l]) continue;
        qz_tensors_add(list, part_name(layer, l, "bias", name), RT_STORED_F32,
                       (uint64_t)qz_linear_rows(&block->shape, l), 0, block->bias[l]);
    }
    for (qz_site site = 0; site < QZ_SITES; site++) {
        if (!block->order[site] || !order_names[site]) continue;
        qz_tensors_add(list, layer_name(layer, order_names[site], name), RT_STORED_I32,
                       (uint64_t)qz_site_width(&block->shape, site), 0, block->order[site]);
    }
}

bis_status qz_block_file_write(const char *path, int layer, const qz_block *block, const qz_spec *spec,
                               const qz_packed packed[QZ_LINEARS], const float act_clip[QZ_SITES],
                               qz_block_figures *figures, bis_error *error) {
    char name[QZ_NAME_MAX];
    qz_tensors list = {0};
    half_matrix halves[QZ_LINEARS];
    figures->linear_bytes = figures->linear_weights = 0;
    for (qz_linear_id l = 0; l < QZ_LINEARS; l++) {
        size_t before = list.count;
        if (spec->weight_bits == KN_NOT_QUANTIZED) add_half(&list, layer, l, block, &halves[l]);
        else add_packed(&list, layer, l, &packed[l].weight);
        for (size_t i = before; i < list.count; i++) figures->linear_bytes += (double)qz_tensor_bytes(&list.items[i]);
        figures->linear_weights += (double)qz_linear_rows(&block->shape, l) * qz_linear_cols(&block->shape, l);
    }
    add_vectors(&list, layer, block);
    qz_tensors_add(&list, layer_name(layer, "act_clip", name), RT_STORED_F32, ACT_CLIP_COUNT, 0, act_clip);
    qz_tensors_add(&list, QZ_FIGURES_TENSOR, RT_STORED_F64, FIGURES, 0, figures);
    bis_status status = qz_tensors_write(&list, path, error);
    qz_tensors_free(&list);
    return status;
}

/* ---- Reading ---- */

static bis_status take_tensor(const rt_safetensors *file, const char *name, rt_stored_type type, uint64_t rows,
                              uint64_t cols, const void **out, bis_error *error) {
    const rt_stored_tensor *tensor = rt_safetensors_find(file, name);
    int dims = cols ? 2 : 1;
    if (!tensor) return bis_fail(error, BIS_ERR_FORMAT, "tensor '%s' is missing", name);
    if (tensor->type != type || tensor->dims != dims || tensor->shape[0] != rows ||
        (dims == 2 && tensor->shape[1] != cols)) {
        return bis_fail(error, BIS_ERR_FORMAT, "tensor '%s' has another type or shape than this run writes", name);
    }
    *out = tensor->data;
    return BIS_OK;
}

static bis_status take_copy(const rt_safetensors *file, const char *name, rt_stored_type type, int count, void *out,
                            bis_error *error) {
    const void *data = NULL;
    bis_status status = take_tensor(file, name, type, (uint64_t)count, 0, &data, error);
    size_t size = type == RT_STORED_F64 ? sizeof(double) : sizeof(float);
    if (!status) memcpy(out, data, (size_t)count * size);
    return status;
}

static bis_status read_half(const rt_safetensors *file, int layer, qz_linear_id l, qz_block *block, bis_error *error) {
    char name[QZ_NAME_MAX];
    const void *data = NULL;
    size_t rows = (size_t)qz_linear_rows(&block->shape, l), cols = (size_t)qz_linear_cols(&block->shape, l);
    bis_status status = take_tensor(file, part_name(layer, l, "weight", name), RT_STORED_F16, rows, cols, &data, error);
    for (size_t i = 0; !status && i < rows * cols; i++) {
        uint16_t half;
        memcpy(&half, (const char *)data + 2 * i, sizeof half);
        block->weight[l][i] = (qz_real)kn_f16_to_f32(half);
    }
    return status;
}

static bis_status read_packed(const rt_safetensors *file, int layer, qz_linear_id l, const qz_spec *spec,
                              qz_block *block, bis_error *error) {
    char name[QZ_NAME_MAX];
    int rows = qz_linear_rows(&block->shape, l), cols = qz_linear_cols(&block->shape, l);
    kn_qweight w = {{spec->weight_bits, spec->group, spec->weight_symmetric, spec->outliers[qz_site_of(l)]},
                    rows,
                    cols,
                    NULL,
                    NULL,
                    NULL,
                    NULL,
                    NULL};
    const void *codes = NULL, *scales = NULL, *zeros = NULL, *outlier_codes = NULL, *outlier_scales = NULL;
    uint64_t n = (uint64_t)rows, groups = (uint64_t)kn_weight_groups(&w.format, cols);
    uint64_t outliers = (uint64_t)w.format.outliers;
    bis_status status = take_tensor(file, part_name(layer, l, "codes", name), RT_STORED_U8, n,
                                    kn_packed_bytes(cols - w.format.outliers, w.format.bits), &codes, error);
    if (!status) {
        status = take_tensor(file, part_name(layer, l, "scales", name), RT_STORED_F16, n, groups, &scales, error);
    }
    if (!status && !w.format.symmetric) {
        status = take_tensor(file, part_name(layer, l, "zeros", name), RT_STORED_U8, n, groups, &zeros, error);
    }
    if (!status && outliers) {
        status = take_tensor(file, part_name(layer, l, "outlier_codes", name), RT_STORED_I8, n, outliers,
                             &outlier_codes, error);
    }
    if (!status && outliers) {
        status =
            take_tensor(file, part_name(layer, l, "outlier_scales", name), RT_STORED_F16, n, 0, &outlier_scales, error);
    }
    if (status) return status;
    w.codes = codes;
    w.scales = scales;
    w.zeros = zeros;
    w.outlier_codes = outlier_codes;
    w.outlier_scales = outlier_scales;
    for (int row = 0; row < rows; row++) {
        kn_weight_decode_row(&w, row, block->weight[l] + (size_t)row * (size_t)cols);
    }
    return BIS_OK;
}

static bis_status read_vectors(const rt_safetensors *file, int layer, qz_block *block, bis_error *error) {
    char name[QZ_NAME_MAX];
    block_vector norms[NORMS];
    bis_status status = BIS_OK;
    list_norms(block, norms);
    for (int i = 0; i < NORMS && !status; i++) {
        if (!norms[i].values) continue;
        status = take_copy(file, layer_name(layer, norms[i].name, name), RT_STORED_F32, norms[i].count, norms[i].values,
                           error);
    }
    for (qz_linear_id l = 0; l < QZ_LINEARS && !status; l++) {
        if (!block->bias[l]) continue;
        status = take_copy(file, part_name(layer, l, "bias", name), RT_STORED_F32, qz_linear_rows(&block->shape, l),
                           block->bias[l], error);
    }
    return status;
}

static bis_status read_orders(const rt_safetensors *file, int layer, qz_block *block, bis_error *error) {
    char name[QZ_NAME_MAX];
    bis_status status = BIS_OK;
    for (qz_site site = 0; site < QZ_SITES && !status; site++) {
        if (!order_names[site] || !rt_safetensors_find(file, layer_name(layer, order_names[site], name))) continue;
        int width = qz_site_width(&block->shape, site);
        bis_free(block->order[site]);
        block->order[site] = bis_calloc((size_t)width, sizeof(int32_t));
        if (!block->order[site]) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the order of columns");
        status = take_copy(file, name, RT_STORED_I32, width, block->order[site], error);
        for (int i = 0; !status && i < width; i++) {
            if (block->order[site][i] >= 0 && block->order[site][i] < width) continue;
            status = bis_fail(error, BIS_ERR_FORMAT, "tensor '%s' names a column that is not there", name);
        }
    }
    return status;
}

bis_status qz_block_file_read(const char *path, int layer, const qz_block *like, const qz_spec *spec, qz_block **out,
                              float act_clip[QZ_SITES], qz_block_figures *figures, bis_error *error) {
    char name[QZ_NAME_MAX];
    rt_safetensors *file = NULL;
    qz_block *block = NULL;
    bis_status status = rt_safetensors_open(path, &file, error);
    if (status) return status;
    status = qz_block_alloc(&like->shape, like->bias[QZ_Q] != NULL, like->bias[QZ_O] != NULL,
                            like->bias[QZ_DOWN] != NULL, like->q_norm != NULL, &block, error);
    for (qz_linear_id l = 0; l < QZ_LINEARS && !status; l++) {
        status = spec->weight_bits == KN_NOT_QUANTIZED ? read_half(file, layer, l, block, error)
                                                       : read_packed(file, layer, l, spec, block, error);
    }
    if (!status) status = read_vectors(file, layer, block, error);
    if (!status) status = read_orders(file, layer, block, error);
    if (!status) {
        status = take_copy(file, layer_name(layer, "act_clip", name), RT_STORED_F32, ACT_CLIP_COUNT, act_clip, error);
    }
    if (!status) status = take_copy(file, QZ_FIGURES_TENSOR, RT_STORED_F64, FIGURES, figures, error);
    rt_safetensors_close(file);
    if (status) {
        qz_block_free(block);
        return bis_fail_within(error, "%s (remove its folder to begin anew)", path);
    }
    *out = block;
    return BIS_OK;
}
