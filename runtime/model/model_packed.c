/* The tensors of a quantized model (docs/quantized-model.md), bound where they lie, and the small ones that are read:
 * orders and clips. */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "runtime/model/model_internal.h"

enum { NAME_BYTES = 160 };

kn_weight_format rt_model_packed_format(const rt_model_config *config, rt_site site) {
    const rt_quantization *q = &config->quantization;
    return (kn_weight_format){q->weight_bits, q->group, q->weight_symmetric, q->outliers[site]};
}

/* ---- finding a tensor of a given type and shape ---- */

/* rows 0: a vector. */
typedef struct wanted_tensor {
    const char *suffix;
    rt_stored_type type;
    int rows, cols;
} wanted_tensor;

static void show_wanted(const wanted_tensor *wanted, char text[64]) {
    const char *type = rt_stored_type_name(wanted->type);
    if (wanted->rows) snprintf(text, 64, "%s [%d, %d]", type, wanted->rows, wanted->cols);
    else snprintf(text, 64, "%s [%d]", type, wanted->cols);
}

static void show_stored(const rt_stored_tensor *stored, char text[96]) {
    size_t used = (size_t)snprintf(text, 96, "%s [", rt_stored_type_name(stored->type));
    for (int i = 0; i < stored->dims && used < 96; i++) {
        used += (size_t)snprintf(text + used, 96 - used, "%s%llu", i ? ", " : "", (unsigned long long)stored->shape[i]);
    }
    if (used < 96) snprintf(text + used, 96 - used, "]");
}

static bool is_wanted(const rt_stored_tensor *stored, const wanted_tensor *wanted) {
    if (stored->type != wanted->type) return false;
    if (!wanted->rows) return stored->dims == 1 && stored->shape[0] == (uint64_t)wanted->cols;
    return stored->dims == 2 && stored->shape[0] == (uint64_t)wanted->rows &&
           stored->shape[1] == (uint64_t)wanted->cols;
}

static bis_status find(const rt_model *model, const char *prefix, const char *folder, const wanted_tensor *wanted,
                       const rt_stored_tensor **out, bis_error *error) {
    char name[NAME_BYTES], accepted[64], has[96];
    snprintf(name, sizeof name, "%s%s", prefix, wanted->suffix);
    show_wanted(wanted, accepted);
    const rt_stored_tensor *stored = rt_safetensors_find(model->weights, name);
    if (!stored) {
        return bis_fail(error, BIS_ERR_FORMAT, "%s: tensor '%s' %s is in none of its weight files", folder, name,
                        accepted);
    }
    if (!is_wanted(stored, wanted)) {
        show_stored(stored, has);
        return bis_fail(error, BIS_ERR_FORMAT, "%s: tensor '%s' is %s; config.json asks for %s", stored->file, name,
                        has, accepted);
    }
    *out = stored;
    return BIS_OK;
}

/* ---- linears ---- */

/* F16 numbers, which kernels read at any address. */
static bis_status find_halves(const rt_model *model, const char *name, const char *folder, const wanted_tensor *wanted,
                              const uint16_t **out, bis_error *error) {
    const rt_stored_tensor *stored;
    bis_status status = find(model, name, folder, wanted, &stored, error);
    if (!status) *out = (const uint16_t *)stored->data;
    return status;
}

static bis_status check_zeros(const rt_stored_tensor *zeros, const kn_weight_format *format, bis_error *error) {
    int most = kn_bits_find(format->bits)->levels;
    const uint8_t *values = (const uint8_t *)zeros->data;
    for (size_t i = 0; i < zeros->bytes; i++) {
        if (values[i] <= most) continue;
        return bis_fail(error, BIS_ERR_FORMAT, "%s: tensor '%s' has the zero %d; accepted: 0 to %d", zeros->file,
                        zeros->name, values[i], most);
    }
    return BIS_OK;
}

static bis_status bind_outliers(const rt_model *model, kn_qweight *w, const char *name, const char *folder,
                                bis_error *error) {
    const rt_stored_tensor *codes = NULL;
    wanted_tensor wanted = {".outlier_codes", RT_STORED_I8, w->rows, w->format.outliers};
    wanted_tensor scales = {".outlier_scales", RT_STORED_F16, 0, w->rows};
    bis_status status = find(model, name, folder, &wanted, &codes, error);
    if (!status) status = find_halves(model, name, folder, &scales, &w->outlier_scales, error);
    if (!status) w->outlier_codes = (const int8_t *)codes->data;
    return status;
}

bis_status rt_model_bind_packed(const rt_model *model, const rt_model_part *part, const char *name, const char *folder,
                                bis_error *error) {
    kn_qweight w = {
        .format = rt_model_packed_format(&model->config, part->site), .rows = part->rows, .cols = part->cols};
    int groups = kn_weight_groups(&w.format, w.cols);
    size_t row_bytes = kn_packed_bytes(w.cols - w.format.outliers, w.format.bits);
    wanted_tensor codes = {".codes", RT_STORED_U8, w.rows, (int)row_bytes};
    wanted_tensor scales = {".scales", RT_STORED_F16, w.rows, groups};
    wanted_tensor zeros = {".zeros", RT_STORED_U8, w.rows, groups};
    const rt_stored_tensor *stored_codes = NULL, *stored_zeros = NULL;
    bis_status status = find(model, name, folder, &codes, &stored_codes, error);
    if (!status) status = find_halves(model, name, folder, &scales, &w.scales, error);
    if (!status && !w.format.symmetric) {
        status = find(model, name, folder, &zeros, &stored_zeros, error);
        if (!status) status = check_zeros(stored_zeros, &w.format, error);
        if (!status) w.zeros = (const uint8_t *)stored_zeros->data;
    }
    if (!status && w.format.outliers) status = bind_outliers(model, &w, name, folder, error);
    if (status) return status;
    w.codes = (const uint8_t *)stored_codes->data;
    *part->packed = w;
    return BIS_OK;
}

/* ---- inputs ---- */

bool rt_model_has_orders(const rt_model_config *config) { return !strcmp(config->quantization.base, "atom"); }

bis_status rt_model_allocate_orders(rt_model *model, bis_error *error) {
    const rt_model_config *config = &model->config;
    if (!rt_model_has_orders(config)) return BIS_OK;
    size_t layer_size = 0;
    for (int site = 0; site < RT_SITE_DOWN; site++) layer_size += (size_t)rt_model_site_width(config, (rt_site)site);
    model->orders = bis_calloc((size_t)config->layers * layer_size, sizeof *model->orders);
    if (!model->orders) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the orders of the model's channels");
    int32_t *next = model->orders;
    for (int i = 0; i < config->layers; i++) {
        for (int site = 0; site < RT_SITE_DOWN; site++) {
            model->layers[i].packed.order[site] = next;
            next += rt_model_site_width(config, (rt_site)site);
        }
    }
    return BIS_OK;
}

/* Copies an order and checks that each channel comes once. seen: `count` marks, all false, and so again on success. */
static bis_status copy_order(const rt_stored_tensor *stored, int count, int32_t *order, bool *seen, bis_error *error) {
    memcpy(order, stored->data, (size_t)count * sizeof *order);
    for (int c = 0; c < count; c++) {
        bool inside = order[c] >= 0 && order[c] < count;
        if (!inside || seen[order[c]]) {
            return bis_fail(error, BIS_ERR_FORMAT, "%s: tensor '%s' is not an order: entry %d is %d, which is %s",
                            stored->file, stored->name, c, order[c], inside ? "there already" : "no channel");
        }
        seen[order[c]] = true;
    }
    memset(seen, 0, (size_t)count * sizeof *seen);
    return BIS_OK;
}

/* The layer's orders, one after the other, in memory that may be written while the model is made. */
static int32_t *orders_of(const rt_model *model, int layer) {
    return model->orders + (model->layers[layer].packed.order[RT_SITE_ATTN] - model->orders);
}

static bis_status read_orders(rt_model *model, int layer, const char *prefix, const char *folder, bis_error *error) {
    static const char *const suffixes[RT_SITE_COUNT] = {
        [RT_SITE_ATTN] = "self_attn.input_order",
        [RT_SITE_O] = "self_attn.o_proj.input_order",
        [RT_SITE_FFN] = "mlp.input_order",
    };
    int32_t *next = orders_of(model, layer);
    int widest = model->config.hidden;
    int queries = rt_model_site_width(&model->config, RT_SITE_O);
    if (queries > widest) widest = queries;
    bool *seen = bis_calloc((size_t)widest, sizeof *seen);
    if (!seen) return bis_fail(error, BIS_ERR_NOMEM, "no memory to check the orders of the model's channels");
    bis_status status = BIS_OK;
    for (int site = 0; !status && site < RT_SITE_DOWN; site++) {
        int width = rt_model_site_width(&model->config, (rt_site)site);
        wanted_tensor wanted = {suffixes[site], RT_STORED_I32, 0, width};
        const rt_stored_tensor *stored = NULL;
        status = find(model, prefix, folder, &wanted, &stored, error);
        if (!status) status = copy_order(stored, width, next, seen, error);
        next += width;
    }
    bis_free(seen);
    return status;
}

bis_status rt_model_read_inputs(rt_model *model, int layer, const char *prefix, const char *folder, bis_error *error) {
    wanted_tensor wanted = {"act_clip", RT_STORED_F32, 0, RT_SITE_COUNT};
    const rt_stored_tensor *stored = NULL;
    bis_status status = find(model, prefix, folder, &wanted, &stored, error);
    if (status) return status;
    float *clip = model->layers[layer].packed.act_clip;
    memcpy(clip, stored->data, sizeof model->layers[layer].packed.act_clip);
    for (int site = 0; site < RT_SITE_COUNT; site++) {
        if (clip[site] > 0 && clip[site] <= 1) continue;
        return bis_fail(error, BIS_ERR_FORMAT, "%s: tensor '%s' holds %g; accepted: above 0, at most 1", stored->file,
                        stored->name, (double)clip[site]);
    }
    return rt_model_has_orders(&model->config) ? read_orders(model, layer, prefix, folder, error) : BIS_OK;
}

void rt_model_random_inputs(rt_model *model) {
    for (int layer = 0; layer < model->config.layers; layer++) {
        for (int site = 0; site < RT_SITE_COUNT; site++) model->layers[layer].packed.act_clip[site] = 1;
        if (!rt_model_has_orders(&model->config)) continue;
        int32_t *next = orders_of(model, layer);
        for (int site = 0; site < RT_SITE_DOWN; site++) {
            int width = rt_model_site_width(&model->config, (rt_site)site);
            for (int c = 0; c < width; c++) *next++ = width - 1 - c;
        }
    }
}
