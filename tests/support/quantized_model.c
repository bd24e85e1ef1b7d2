#include "tests/support/quantized_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "kernels/quant.h"
#include "kernels/tensor.h"
#include "tests/support/random_data.h"
#include "tests/support/scratch.h"

enum { TENSORS_MAX = 512, FILE_MAX = 1 << 26 };

static const char *const linear_names[QM_LINEARS] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                                     "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                                     "mlp.down_proj"};
static const int linear_sites[QM_LINEARS] = {QM_ATTN, QM_ATTN, QM_ATTN, QM_O_INPUT, QM_FFN, QM_FFN, QM_DOWN_INPUT};

static void give_up(const char *what) {
    (void)fprintf(stderr, "cannot make a quantized model: %s\n", what);
    exit(2);
}

static bool is_base(const qm_spec *spec, const char *base) { return !strcmp(spec->base, base); }

static int site_width(const qm_spec *spec, int site) {
    if (site == QM_DOWN_INPUT) return spec->ffn;
    return site == QM_O_INPUT ? spec->heads * spec->head_dim : spec->hidden;
}

static int linear_rows(const qm_spec *spec, int linear) {
    switch (linear) {
    case QM_Q: return spec->heads * spec->head_dim;
    case QM_K:
    case QM_V: return spec->kv_heads * spec->head_dim;
    case QM_GATE:
    case QM_UP: return spec->ffn;
    default: return spec->hidden;
    }
}

static bool has_bias(const qm_spec *spec, int linear) {
    if (!spec->biases) return false;
    if (linear <= QM_V) return true;
    return !strcmp(spec->type, "llama");
}

/* ---- tensors ---- */

/* rows 0: a vector. The data is zero. */
static void *add(qm_model *m, const char *name, const char *dtype, int element, int rows, int cols) {
    if (m->tensor_count == TENSORS_MAX) give_up("too many tensors");
    qm_tensor *tensor = &m->tensors[m->tensor_count++];
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    snprintf(tensor->dtype, sizeof tensor->dtype, "%s", dtype);
    tensor->element = element;
    tensor->dims = rows ? 2 : 1;
    tensor->shape[0] = rows ? rows : cols;
    tensor->shape[1] = cols;
    tensor->bytes = (size_t)(rows ? rows : 1) * (size_t)cols * (size_t)element;
    tensor->data = test_alloc(tensor->bytes);
    return tensor->data;
}

static double *doubles(int count) { return test_alloc((size_t)count * sizeof(double)); }

/* An F32 vector near `middle`, which is also returned as doubles. */
static double *add_vector(qm_model *m, const char *name, int count, float middle, float spread) {
    float *stored = add(m, name, "F32", sizeof *stored, 0, count);
    double *values = doubles(count);
    for (int i = 0; i < count; i++) values[i] = stored[i] = middle + spread * random_float();
    return values;
}

/* A matrix of F16 numbers. */
static double *add_dense(qm_model *m, const char *name, int rows, int cols, float spread) {
    uint16_t *stored = add(m, name, "F16", sizeof *stored, rows, cols);
    double *values = doubles(rows * cols);
    for (int i = 0; i < rows * cols; i++) {
        stored[i] = kn_f32_to_f16(spread * random_float());
        values[i] = kn_f16_to_f32(stored[i]);
    }
    return values;
}

/* One code into a row's bit stream, bit by bit. */
static void put_code(unsigned char *row, int index, int bits, int code) {
    for (int b = 0; b < bits; b++) {
        int at = index * bits + b;
        if (code >> b & 1) row[at / 8] |= (unsigned char)(1u << at % 8);
    }
}

typedef struct packed_parts {
    unsigned char *codes, *zeros;
    uint16_t *scales, *outlier_scales;
    signed char *outlier_codes;
} packed_parts;

static void encode_group(const kn_weight_format *format, const float *w, int first, int last, unsigned char *row,
                         uint16_t *stored_scale, unsigned char *stored_zero, double *decoded) {
    float low = 0, high = 0, scale;
    int zero;
    for (int c = first; c < last; c++) {
        low = fminf(low, w[c]);
        high = fmaxf(high, w[c]);
    }
    kn_weight_scale(format, low, high, &scale, &zero);
    *stored_scale = kn_f32_to_f16(scale);
    if (stored_zero) *stored_zero = (unsigned char)zero;
    for (int c = first; c < last; c++) {
        int code = kn_weight_encode(format, w[c], scale, zero);
        put_code(row, c, format->bits, format->symmetric ? code + (1 << (format->bits - 1)) : code);
        decoded[c] = (code - zero) * (double)scale;
    }
}

static void encode_outliers(const kn_weight_format *format, const float *w, int cols, signed char *codes,
                            uint16_t *stored_scale, double *decoded) {
    float largest = 0;
    for (int c = cols - format->outliers; c < cols; c++) largest = fmaxf(largest, fabsf(w[c]));
    *stored_scale = kn_f32_to_f16(largest / 126);
    float scale = kn_f16_to_f32(*stored_scale);
    for (int c = cols - format->outliers; c < cols; c++) {
        int code = (int)rintf(w[c] / scale);
        *codes++ = (signed char)code;
        decoded[c] = code * (double)scale;
    }
}

static void add_packed(qm_model *m, const char *prefix, const kn_weight_format *format, qm_linear *linear,
                       float spread) {
    int rows = linear->rows, cols = linear->cols, low = cols - format->outliers;
    int groups = (low + format->group - 1) / format->group, row_bytes = (low * format->bits + 7) / 8;
    char name[96];
    packed_parts parts = {0};
    snprintf(name, sizeof name, "%s.codes", prefix);
    parts.codes = add(m, name, "U8", 1, rows, row_bytes);
    snprintf(name, sizeof name, "%s.scales", prefix);
    parts.scales = add(m, name, "F16", 2, rows, groups);
    snprintf(name, sizeof name, "%s.zeros", prefix);
    if (!format->symmetric) parts.zeros = add(m, name, "U8", 1, rows, groups);
    snprintf(name, sizeof name, "%s.outlier_codes", prefix);
    if (format->outliers) parts.outlier_codes = add(m, name, "I8", 1, rows, format->outliers);
    snprintf(name, sizeof name, "%s.outlier_scales", prefix);
    if (format->outliers) parts.outlier_scales = add(m, name, "F16", 2, 0, rows);
    linear->w = doubles(rows * cols);
    float *w = test_alloc((size_t)cols * sizeof *w);
    for (int r = 0; r < rows; r++) {
        double *decoded = linear->w + (size_t)r * (size_t)cols;
        for (int c = 0; c < cols; c++) w[c] = spread * random_float();
        for (int g = 0; g < groups; g++) {
            int last = (g + 1) * format->group < low ? (g + 1) * format->group : low, at = r * groups + g;
            encode_group(format, w, g * format->group, last, parts.codes + r * row_bytes, &parts.scales[at],
                         parts.zeros ? &parts.zeros[at] : NULL, decoded);
        }
        if (!format->outliers) continue;
        encode_outliers(format, w, cols, parts.outlier_codes + r * format->outliers, &parts.outlier_scales[r], decoded);
    }
    free(w);
}

static int32_t *add_order(qm_model *m, const char *name, int count) {
    int32_t *stored = add(m, name, "I32", sizeof *stored, 0, count);
    int32_t *order = test_alloc((size_t)count * sizeof *order);
    for (int i = 0; i < count; i++) { /* a random permutation, grown by one at a time */
        int place = random_below(i + 1);
        order[i] = order[place];
        order[place] = i;
    }
    memcpy(stored, order, (size_t)count * sizeof *order);
    return order;
}

/* ---- layers ---- */

static void make_linear(qm_model *m, int index, int which) {
    const qm_spec *spec = &m->spec;
    int site = linear_sites[which];
    qm_linear *linear = &m->layers[index].linear[which];
    linear->rows = linear_rows(spec, which);
    linear->cols = site_width(spec, site);
    float spread = 1 / sqrtf((float)linear->cols);
    kn_weight_format format = {spec->weight_bits, spec->group, spec->symmetric, spec->outliers[site]};
    char prefix[64], name[96];
    snprintf(prefix, sizeof prefix, "model.layers.%d.%s", index, linear_names[which]);
    snprintf(name, sizeof name, "%s.weight", prefix);
    if (spec->weight_bits == KN_NOT_QUANTIZED) linear->w = add_dense(m, name, linear->rows, linear->cols, spread);
    else add_packed(m, prefix, &format, linear, spread);
    snprintf(name, sizeof name, "%s.bias", prefix);
    if (has_bias(spec, which)) linear->bias = add_vector(m, name, linear->rows, 0, 0.3f);
}

static void make_layer(qm_model *m, int index) {
    static const char *const order_names[QM_SITES] = {"self_attn.input_order", "self_attn.o_proj.input_order",
                                                      "mlp.input_order", NULL};
    const qm_spec *spec = &m->spec;
    qm_layer *layer = &m->layers[index];
    char name[96];
    for (int which = 0; which < QM_LINEARS; which++) make_linear(m, index, which);
    snprintf(name, sizeof name, "model.layers.%d.input_layernorm.weight", index);
    layer->norm1 = add_vector(m, name, spec->hidden, 1, 0.2f);
    snprintf(name, sizeof name, "model.layers.%d.post_attention_layernorm.weight", index);
    layer->norm2 = add_vector(m, name, spec->hidden, 1, 0.2f);
    if (!strcmp(spec->type, "qwen3")) {
        snprintf(name, sizeof name, "model.layers.%d.self_attn.q_norm.weight", index);
        layer->q_norm = add_vector(m, name, spec->head_dim, 1, 0.2f);
        snprintf(name, sizeof name, "model.layers.%d.self_attn.k_norm.weight", index);
        layer->k_norm = add_vector(m, name, spec->head_dim, 1, 0.2f);
    }
    for (int site = 0; site < QM_SITES; site++) {
        if (!is_base(spec, "atom") || !order_names[site]) continue;
        snprintf(name, sizeof name, "model.layers.%d.%s", index, order_names[site]);
        layer->order[site] = add_order(m, name, site_width(spec, site));
    }
    snprintf(name, sizeof name, "model.layers.%d.act_clip", index);
    float *clip = add(m, name, "F32", sizeof *clip, 0, QM_SITES);
    for (int site = 0; site < QM_SITES; site++) layer->clip[site] = clip[site] = 0.7f + 0.07f * (float)site;
}

qm_model *qm_make(const qm_spec *spec) {
    qm_model *m = test_alloc(sizeof *m);
    m->spec = *spec;
    m->layers = test_alloc((size_t)spec->layers * sizeof *m->layers);
    m->tensors = test_alloc(TENSORS_MAX * sizeof *m->tensors);
    m->embedding = add_dense(m, "model.embed_tokens.weight", spec->vocab, spec->hidden, 0.7f);
    for (int i = 0; i < spec->layers; i++) make_layer(m, i);
    m->final_norm = add_vector(m, "model.norm.weight", spec->hidden, 1, 0.2f);
    m->head = m->embedding;
    if (!spec->tied) m->head = add_dense(m, "lm_head.weight", spec->vocab, spec->hidden, 0.2f);
    return m;
}

static void free_layer(qm_layer *layer) {
    for (int i = 0; i < QM_LINEARS; i++) {
        free(layer->linear[i].w);
        free(layer->linear[i].bias);
    }
    for (int i = 0; i < QM_SITES; i++) free(layer->order[i]);
    free(layer->norm1);
    free(layer->norm2);
    free(layer->q_norm);
    free(layer->k_norm);
}

void qm_free(qm_model *model) {
    for (int i = 0; i < model->spec.layers; i++) free_layer(&model->layers[i]);
    for (int i = 0; i < model->tensor_count; i++) free(model->tensors[i].data);
    if (model->head != model->embedding) free(model->head);
    free(model->embedding);
    free(model->final_norm);
    free(model->tensors);
    free(model->layers);
    free(model);
}

qm_tensor *qm_find(qm_model *model, const char *name) {
    for (int i = 0; i < model->tensor_count; i++) {
        if (!strcmp(model->tensors[i].name, name)) return &model->tensors[i];
    }
    give_up(name);
    return NULL;
}

/* ---- files ---- */

static const char *boolean(bool value) { return value ? "true" : "false"; }

void qm_config(const qm_spec *s, bis_buf *out) {
    bool quarot = is_base(s, "quarot"), llama = !strcmp(s->type, "llama");
    bis_buf_printf(out,
                   "{\"model_type\":\"%s\",\"hidden_size\":%d,\"intermediate_size\":%d,\"num_hidden_layers\":%d,"
                   "\"num_attention_heads\":%d,\"num_key_value_heads\":%d,\"head_dim\":%d,\"vocab_size\":%d,"
                   "\"max_position_embeddings\":%d,\"rms_norm_eps\":1e-5,\"rope_theta\":10000,\"bos_token_id\":1,"
                   "\"eos_token_id\":2,\"tie_word_embeddings\":%s,\"attention_bias\":%s,\"mlp_bias\":%s,",
                   s->type, s->hidden, s->ffn, s->layers, s->heads, s->kv_heads, s->head_dim, s->vocab, s->context,
                   boolean(s->tied), boolean(llama && s->biases), boolean(llama && s->biases));
    bis_buf_printf(
        out,
        "\"quantization_config\":{\"quant_method\":\"bisup\",\"version\":1,\"method\":\"%s\",\"base\":\"%s\","
        "\"weight_bits\":%d,\"activation_bits\":%d,\"kv_bits\":%d,\"group_size\":%d,"
        "\"weight_symmetric\":%s,\"outliers\":{\"attn\":%d,\"o\":%d,\"ffn\":%d,\"down\":%d},",
        is_base(s, "plain") ? "rtn" : s->base, s->base, s->weight_bits, s->activation_bits, s->kv_bits, s->group,
        boolean(s->symmetric), s->outliers[0], s->outliers[1], s->outliers[2], s->outliers[3]);
    bis_buf_printf(out, "\"key_before_rope\":%s,\"key_hadamard\":%s,\"heads_hadamard\":%s,\"ffn_hadamard\":%s}}",
                   boolean(!quarot), boolean(quarot), boolean(quarot), boolean(quarot));
}

static void put_entry(const qm_tensor *tensor, bis_buf *header, bis_buf *data) {
    bis_buf_printf(header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%d", header->length > 1 ? "," : "", tensor->name,
                   tensor->dtype, tensor->shape[0]);
    if (tensor->dims == 2) bis_buf_printf(header, ",%d", tensor->shape[1]);
    bis_buf_printf(header, "],\"data_offsets\":[%zu,%zu]}", data->length, data->length + tensor->bytes);
    bis_buf_append(data, (const char *)tensor->data, tensor->bytes);
}

void qm_write(const qm_model *model) {
    bis_buf config = {0}, header = {0}, data = {0}, image = {0};
    qm_config(&model->spec, &config);
    scratch_write("config.json", config.data, config.length);
    bis_buf_putc(&header, '{');
    for (int i = 0; i < model->tensor_count; i++) {
        if (!model->tensors[i].dropped) put_entry(&model->tensors[i], &header, &data);
    }
    bis_buf_putc(&header, '}');
    for (int i = 0; i < 8; i++) bis_buf_putc(&image, (char)((uint64_t)header.length >> (8 * i) & 0xff));
    bis_buf_append(&image, header.data, header.length);
    bis_buf_append(&image, data.data, data.length);
    if (config.failed || header.failed || data.failed || image.failed) give_up("no memory");
    scratch_write("model.safetensors", image.data, image.length);
    bis_buf_free(&config);
    bis_buf_free(&header);
    bis_buf_free(&data);
    bis_buf_free(&image);
}

void qm_write_tokenizer(void) {
    static const char *const names[] = {"tokenizer.model", "tokenizer_config.json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        bis_buf text = {0};
        bis_error error;
        char path[64];
        snprintf(path, sizeof path, "models/demo/%s", names[i]);
        if (bis_read_file(path, FILE_MAX, &text, &error)) give_up(error.text);
        scratch_write(names[i], text.data, text.length);
        bis_buf_free(&text);
    }
}
