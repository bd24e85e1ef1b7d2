#include "runtime/model/model.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"
#include "runtime/model/model_internal.h"

enum { NAME_MAX_BYTES = 128 };

/* ---- the parts of a layer, in the order of the forward pass ---- */

typedef enum part_width { ONE, HEAD, HIDDEN, FFN, QUERIES, KEYS } part_width;
typedef enum part_presence { ALWAYS, QKV_BIAS, O_BIAS, MLP_BIAS, QK_NORM } part_presence;

static const struct layer_part {
    const char *name;
    size_t offset; /* of the slot in rt_layer */
    part_width rows, cols;
    part_presence presence;
    bool is_norm;
    size_t packed; /* a linear's other slot, where its quantized form goes; 0: no linear */
    rt_site site;
} layer_parts[] = {
    {"input_layernorm.weight", offsetof(rt_layer, attention_norm), ONE, HIDDEN, ALWAYS, .is_norm = true},
    {"self_attn.q_proj.weight", offsetof(rt_layer, q), QUERIES, HIDDEN, ALWAYS, .packed = offsetof(rt_layer, packed.q),
     .site = RT_SITE_ATTN},
    {"self_attn.k_proj.weight", offsetof(rt_layer, k), KEYS, HIDDEN, ALWAYS, .packed = offsetof(rt_layer, packed.k),
     .site = RT_SITE_ATTN},
    {"self_attn.v_proj.weight", offsetof(rt_layer, v), KEYS, HIDDEN, ALWAYS, .packed = offsetof(rt_layer, packed.v),
     .site = RT_SITE_ATTN},
    {"self_attn.q_proj.bias", offsetof(rt_layer, q_bias), ONE, QUERIES, QKV_BIAS, .is_norm = false},
    {"self_attn.k_proj.bias", offsetof(rt_layer, k_bias), ONE, KEYS, QKV_BIAS, .is_norm = false},
    {"self_attn.v_proj.bias", offsetof(rt_layer, v_bias), ONE, KEYS, QKV_BIAS, .is_norm = false},
    {"self_attn.q_norm.weight", offsetof(rt_layer, q_norm), ONE, HEAD, QK_NORM, .is_norm = true},
    {"self_attn.k_norm.weight", offsetof(rt_layer, k_norm), ONE, HEAD, QK_NORM, .is_norm = true},
    {"self_attn.o_proj.weight", offsetof(rt_layer, o), HIDDEN, QUERIES, ALWAYS, .packed = offsetof(rt_layer, packed.o),
     .site = RT_SITE_O},
    {"self_attn.o_proj.bias", offsetof(rt_layer, o_bias), ONE, HIDDEN, O_BIAS, .is_norm = false},
    {"post_attention_layernorm.weight", offsetof(rt_layer, ffn_norm), ONE, HIDDEN, ALWAYS, .is_norm = true},
    {"mlp.gate_proj.weight", offsetof(rt_layer, gate), FFN, HIDDEN, ALWAYS, .packed = offsetof(rt_layer, packed.gate),
     .site = RT_SITE_FFN},
    {"mlp.up_proj.weight", offsetof(rt_layer, up), FFN, HIDDEN, ALWAYS, .packed = offsetof(rt_layer, packed.up),
     .site = RT_SITE_FFN},
    {"mlp.gate_proj.bias", offsetof(rt_layer, gate_bias), ONE, FFN, MLP_BIAS, .is_norm = false},
    {"mlp.up_proj.bias", offsetof(rt_layer, up_bias), ONE, FFN, MLP_BIAS, .is_norm = false},
    {"mlp.down_proj.weight", offsetof(rt_layer, down), HIDDEN, FFN, ALWAYS, .packed = offsetof(rt_layer, packed.down),
     .site = RT_SITE_DOWN},
    {"mlp.down_proj.bias", offsetof(rt_layer, down_bias), ONE, HIDDEN, MLP_BIAS, .is_norm = false},
};

static int elements(const rt_model_config *config, part_width width) {
    switch (width) {
    case HEAD: return config->head_dim;
    case HIDDEN: return config->hidden;
    case FFN: return config->ffn;
    case QUERIES: return config->heads * config->head_dim;
    case KEYS: return config->kv_heads * config->head_dim;
    case ONE: break;
    }
    return 1;
}

static bool is_present(const rt_model_config *config, part_presence presence) {
    switch (presence) {
    case QKV_BIAS: return config->qkv_bias;
    case O_BIAS: return config->o_bias;
    case MLP_BIAS: return config->mlp_bias;
    case QK_NORM: return config->qk_norm;
    case ALWAYS: break;
    }
    return true;
}

int rt_model_site_width(const rt_model_config *config, rt_site site) {
    switch (site) {
    case RT_SITE_O: return elements(config, QUERIES);
    case RT_SITE_DOWN: return config->ffn;
    default: return config->hidden;
    }
}

static bis_status walk_layer(rt_model *model, int layer, rt_model_visit *visit, void *context, bis_error *error) {
    const rt_model_config *config = &model->config;
    bool quantized = config->quantization.weight_bits != KN_NOT_QUANTIZED;
    for (size_t i = 0; i < sizeof layer_parts / sizeof *layer_parts; i++) {
        const struct layer_part *listed = &layer_parts[i];
        if (!is_present(config, listed->presence)) continue;
        rt_model_part part = {.name = listed->name,
                              .layer = layer,
                              .rows = elements(config, listed->rows),
                              .cols = elements(config, listed->cols),
                              .is_norm = listed->is_norm,
                              .is_linear = listed->packed != 0,
                              .site = listed->site,
                              .slot = (kn_tensor *)((char *)&model->layers[layer] + listed->offset)};
        if (part.is_linear && quantized) {
            part.packed = (kn_qweight *)((char *)&model->layers[layer] + listed->packed);
        }
        bis_status status = visit(&part, context, error);
        if (status) return status;
    }
    return BIS_OK;
}

bis_status rt_model_walk(rt_model *model, rt_model_visit *visit, void *context, bis_error *error) {
    const rt_model_config *config = &model->config;
    int vocab = config->vocab, hidden = config->hidden;
    rt_model_part embedding = {"embed_tokens.weight", -1, vocab, hidden, .slot = &model->embedding};
    rt_model_part norm = {"norm.weight", -1, 1, hidden, .is_norm = true, .slot = &model->final_norm};
    rt_model_part head = {"lm_head.weight", -1, vocab, hidden, .slot = &model->head};
    bis_status status = visit(&embedding, context, error);
    for (int i = 0; !status && i < config->layers; i++) status = walk_layer(model, i, visit, context, error);
    if (!status) status = visit(&norm, context, error);
    if (!status && !config->tied_embeddings) status = visit(&head, context, error);
    return status;
}

/* ---- making and completing ---- */

rt_model *rt_model_make(const rt_model_config *config, bis_error *error) {
    rt_model *model = bis_calloc(1, sizeof *model);
    if (model) model->layers = bis_calloc((size_t)config->layers, sizeof *model->layers);
    if (!model || !model->layers) {
        bis_free(model);
        bis_fail(error, BIS_ERR_NOMEM, "no memory for the list of %d layers", config->layers);
        return NULL;
    }
    model->config = *config;
    if (!config->quantization.present) model->config.quantization = rt_quantization_none();
    if (rt_model_allocate_orders(model, error)) {
        rt_model_close(model);
        return NULL;
    }
    return model;
}

typedef struct totals {
    uint64_t parameters, bytes, of_type[KN_TYPE_COUNT], linear_weights, linear_bytes;
} totals;

static bis_status count(const rt_model_part *part, void *context, bis_error *error) {
    (void)error;
    totals *sum = context;
    uint64_t size = (uint64_t)part->rows * (uint64_t)part->cols;
    uint64_t bytes = part->packed ? kn_weight_bytes(&part->packed->format, part->rows, part->cols)
                                  : size * kn_type_bytes(part->slot->type);
    sum->parameters += size;
    sum->bytes += bytes;
    if (!part->packed) sum->of_type[part->slot->type] += size;
    if (part->is_linear) sum->linear_weights += size;
    if (part->is_linear) sum->linear_bytes += bytes;
    return BIS_OK;
}

void rt_model_complete(rt_model *model) {
    totals sum = {0};
    (void)rt_model_walk(model, count, &sum, NULL); /* counting cannot fail */
    model->parameters = sum.parameters;
    model->bytes = sum.bytes;
    model->linear_weights = sum.linear_weights;
    model->linear_bytes = sum.linear_bytes;
    for (int i = 0; i < KN_TYPE_COUNT; i++) {
        if (sum.of_type[i] > sum.of_type[model->type]) model->type = (kn_type)i;
    }
    const rt_quantization *q = &model->config.quantization;
    if (q->present) snprintf(model->type_name, sizeof model->type_name, "W%dA%d", q->weight_bits, q->activation_bits);
    if (model->config.tied_embeddings) model->head = model->embedding;
}

/* ---- binding the parts to stored tensors ---- */

typedef struct weight_binding {
    const rt_model *model;
    const rt_safetensors *weights;
    const char *folder;
    const char *prefix;    /* "model." or "" */
    const char *embedding; /* full name */
} weight_binding;

static bis_status fail_missing(const weight_binding *binding, const rt_model_part *part, const char *name,
                               bis_error *error) {
    bool is_head = part->layer < 0 && !strcmp(part->name, "lm_head.weight");
    return bis_fail(error, BIS_ERR_FORMAT, "%s: tensor '%s' [%d, %d] is in none of its weight files%s", binding->folder,
                    name, part->rows, part->cols,
                    is_head ? " (if the model shares its embedding, config.json must set tie_word_embeddings)" : "");
}

static void show_shape(const rt_stored_tensor *tensor, char *text, size_t size) {
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < tensor->dims && used < size; i++) {
        int n = snprintf(text + used, size - used, "%s%llu", i ? ", " : "", (unsigned long long)tensor->shape[i]);
        used += n > 0 ? (size_t)n : 0;
    }
}

static bool has_shape(const rt_stored_tensor *tensor, const rt_model_part *part) {
    uint64_t rows = (uint64_t)part->rows, cols = (uint64_t)part->cols;
    bool is_vector = part->is_norm || strstr(part->name, ".bias");
    if (is_vector) return tensor->dims == 1 && tensor->shape[0] == cols;
    return tensor->dims == 2 && tensor->shape[0] == rows && tensor->shape[1] == cols;
}

static bis_status bind_tensor(const rt_stored_tensor *stored, const rt_model_part *part, bis_error *error) {
    if (!has_shape(stored, part)) {
        char shape[80];
        show_shape(stored, shape, sizeof shape);
        return bis_fail(error, BIS_ERR_FORMAT,
                        "%s: tensor '%s' has the shape [%s]; config.json asks for %d rows of %d (a vector: 1 row)",
                        stored->file, stored->name, shape, part->rows, part->cols);
    }
    kn_type type;
    switch (stored->type) {
    case RT_STORED_F32: type = KN_F32; break;
    case RT_STORED_F16: type = KN_F16; break;
    case RT_STORED_BF16: type = KN_BF16; break;
    default:
        return bis_fail(error, BIS_ERR_UNSUPPORTED, "%s: tensor '%s' is stored as %s; accepted: F32, F16, BF16",
                        stored->file, stored->name, rt_stored_type_name(stored->type));
    }
    *part->slot = (kn_tensor){stored->data, type, part->rows, part->cols};
    return BIS_OK;
}

static void make_name(const weight_binding *binding, const rt_model_part *part, char name[NAME_MAX_BYTES]) {
    bool is_outside = !strcmp(part->name, "lm_head.weight");
    if (part->layer >= 0) snprintf(name, NAME_MAX_BYTES, "%slayers.%d.%s", binding->prefix, part->layer, part->name);
    else snprintf(name, NAME_MAX_BYTES, "%s%s", is_outside ? "" : binding->prefix, part->name);
}

static bis_status bind_part(const rt_model_part *part, void *context, bis_error *error) {
    const weight_binding *binding = context;
    char name[NAME_MAX_BYTES];
    make_name(binding, part, name);
    if (part->packed) {
        name[strlen(name) - strlen(".weight")] = '\0';
        return rt_model_bind_packed(binding->model, part, name, binding->folder, error);
    }
    bool is_embedding = part->layer < 0 && !strcmp(part->name, "embed_tokens.weight");
    const rt_stored_tensor *stored = rt_safetensors_find(binding->weights, is_embedding ? binding->embedding : name);
    return stored ? bind_tensor(stored, part, error) : fail_missing(binding, part, name, error);
}

static const rt_stored_tensor *find_in_layer(const weight_binding *binding, int layer, const char *name) {
    rt_model_part part = {.name = name, .layer = layer};
    char full[NAME_MAX_BYTES];
    make_name(binding, &part, full);
    return rt_safetensors_find(binding->weights, full);
}

/* Either name may hold the shared matrix. Where both are stored they must be the same for the model to be
 * tied; if they differ, both are used, whatever the configuration says. */
static void settle_embedding(rt_model *model, weight_binding *binding) {
    const char *full = *binding->prefix ? "model.embed_tokens.weight" : "embed_tokens.weight";
    const rt_stored_tensor *embedding = rt_safetensors_find(binding->weights, full);
    const rt_stored_tensor *head = rt_safetensors_find(binding->weights, "lm_head.weight");
    binding->embedding = full;
    if (!model->config.tied_embeddings || !head) return;
    if (!embedding) {
        binding->embedding = "lm_head.weight";
        return;
    }
    bool same = head->type == embedding->type && head->bytes == embedding->bytes &&
                !memcmp(head->data, embedding->data, head->bytes);
    if (!same) bis_warn("%s: tie_word_embeddings is set, but lm_head.weight differs and is used", binding->folder);
    model->config.tied_embeddings = same;
}

/* Qwen2 has Q, K and V biases though no key says so: the tensors decide. Elsewhere the configuration decides, and
 * what it does not name is left out, as the reference implementation does. */
static void settle_biases(rt_model *model, const weight_binding *binding) {
    static const char *const names[] = {"self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"};
    bool stored = false;
    for (int layer = 0; layer < model->config.layers; layer++) {
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            stored = stored || find_in_layer(binding, layer, names[i]);
        }
    }
    if (!strcmp(model->config.architecture, "qwen2")) model->config.qkv_bias = stored;
    else if (stored && !model->config.qkv_bias) {
        bis_warn("%s: attention biases are stored but config.json does not set attention_bias: they are not used",
                 binding->folder);
    }
}

/* A model saved without its head has the names of its parts without "model.". */
static const char *find_prefix(const rt_safetensors *weights) {
    static const char usual[] = "model.";
    for (size_t i = 0; i < rt_safetensors_count(weights); i++) {
        if (!strncmp(rt_safetensors_at(weights, i)->name, usual, strlen(usual))) return usual;
    }
    return "";
}

static bis_status bind_weights(rt_model *model, const char *folder, bis_error *error) {
    weight_binding binding = {
        .model = model, .weights = model->weights, .folder = folder, .prefix = find_prefix(model->weights)};
    settle_embedding(model, &binding);
    settle_biases(model, &binding);
    bis_status status = rt_model_walk(model, bind_part, &binding, error);
    for (int i = 0; !status && model->config.quantization.present && i < model->config.layers; i++) {
        char prefix[NAME_MAX_BYTES];
        snprintf(prefix, sizeof prefix, "%slayers.%d.", binding.prefix, i);
        status = rt_model_read_inputs(model, i, prefix, folder, error);
    }
    if (!status) rt_model_complete(model);
    return status;
}

/* ---- opening ---- */

static bis_status check_folder(const char *folder, const char *config_path, bis_error *error) {
    static const char expected[] = "a model folder holds config.json, model.safetensors and the tokenizer's files";
    struct stat info;
    if (stat(folder, &info)) return bis_fail(error, BIS_ERR_NOT_FOUND, "no such model folder: %s", folder);
    if (!S_ISDIR(info.st_mode)) {
        return bis_fail(error, BIS_ERR_INVALID, "%s is a file; give the folder it lies in: %s", folder, expected);
    }
    if (bis_file_exists(config_path)) return BIS_OK;
    return bis_fail(error, BIS_ERR_NOT_FOUND, "%s holds no config.json that can be read: %s", folder, expected);
}

static bis_status read_metadata(const char *folder, rt_model_config *config, bis_error *error) {
    char path[PATH_MAX];
    bis_status status = bis_join_path(folder, "config.json", path, sizeof path, error);
    if (!status) status = check_folder(folder, path, error);
    if (!status) status = rt_model_config_read(path, config, error);
    if (!status) status = bis_join_path(folder, "generation_config.json", path, sizeof path, error);
    if (!status && bis_file_exists(path)) status = rt_model_config_add_eos(path, config, error);
    return status;
}

bis_status rt_model_open(const char *folder, rt_model **out, bis_error *error) {
    rt_model_config config;
    bis_status status = read_metadata(folder, &config, error);
    if (status) return status;
    rt_model *model = rt_model_make(&config, error);
    if (!model) return BIS_ERR_NOMEM;
    status = rt_safetensors_open_folder(folder, &model->weights, error);
    if (!status) status = bind_weights(model, folder, error);
    if (status) rt_model_close(model);
    else *out = model;
    return status;
}

void rt_model_close(rt_model *model) {
    if (!model) return;
    rt_safetensors_close(model->weights);
    bis_free(model->memory);
    bis_free(model->orders);
    bis_free(model->layers);
    bis_free(model);
}

/* ---- what a model tells ---- */

const rt_model_config *rt_model_get_config(const rt_model *model) { return &model->config; }
const rt_layer *rt_model_layer(const rt_model *model, int layer) { return &model->layers[layer]; }
kn_tensor rt_model_embedding(const rt_model *model) { return model->embedding; }
kn_tensor rt_model_final_norm(const rt_model *model) { return model->final_norm; }
kn_tensor rt_model_head(const rt_model *model) { return model->head; }
uint64_t rt_model_parameters(const rt_model *model) { return model->parameters; }
uint64_t rt_model_bytes(const rt_model *model) { return model->bytes; }
const char *rt_model_type_name(const rt_model *model) {
    return model->config.quantization.present ? model->type_name : kn_type_name(model->type);
}
double rt_model_bits_per_weight(const rt_model *model) {
    return 8 * (double)model->linear_bytes / (double)model->linear_weights;
}
int64_t rt_model_created(const rt_model *model) { return model->weights ? rt_safetensors_modified(model->weights) : 0; }
