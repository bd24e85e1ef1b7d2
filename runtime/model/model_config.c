/* config.json: keys, defaults and meanings as the Python library of these model families has them. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "runtime/model/metadata.h"
#include "runtime/model/model_internal.h"

enum {
    CONFIG_BYTES_MAX = 1 << 20,
    HIDDEN_MAX = 1 << 17,
    FFN_MAX = 1 << 20,
    HEADS_MAX = 1 << 10,
    HEAD_DIM_MAX = 1 << 10,
    VOCAB_MAX = 1 << 22,
    CONTEXT_MAX = 1 << 26,
    REQUIRED = INT_MIN,
    NO_TOKEN = -1
};

/* What a model_type means where config.json is silent. */
typedef struct family {
    const char *name;
    int context, kv_heads, head_dim; /* 0: as many as heads; hidden / heads */
    int bos, eos;
    int window;         /* sliding_window where that key is missing; 0: none */
    bool window_is_off; /* unless use_sliding_window says true */
    bool qkv_bias, qk_norm;
    bool has_attention_bias, has_mlp_bias; /* whether the keys of these names mean something */
} family;

static const family families[] = {
    {.name = "llama", .context = 2048, .bos = 1, .eos = 2, .has_attention_bias = true, .has_mlp_bias = true},
    {.name = "mistral", .context = 131072, .kv_heads = 8, .bos = 1, .eos = 2, .window = 4096},
    {.name = "qwen2", .context = 32768, .bos = NO_TOKEN, .eos = NO_TOKEN, .window_is_off = true, .qkv_bias = true},
    {.name = "qwen3",
     .context = 32768,
     .head_dim = 128,
     .bos = NO_TOKEN,
     .eos = NO_TOKEN,
     .window_is_off = true,
     .qk_norm = true,
     .has_attention_bias = true},
};

/* The first failure sticks: later reads return their fallback and the caller checks once. */
typedef struct reader {
    const char *path;
    const cJSON *root;
    bis_error *error;
    bis_status status;
} reader;

/* NULL where the key is missing or null, which mean the same for every key but bos and eos. */
static const cJSON *value_of(const cJSON *object, const char *key) {
    const cJSON *item = rt_metadata_get(object, key);
    return cJSON_IsNull(item) ? NULL : item;
}

static void refuse(reader *r, bis_status status, const char *key, const cJSON *item, const char *accepted) {
    char shown[RT_METADATA_SHOWN_MAX];
    if (r->status) return;
    r->status =
        bis_fail(r->error, status, "%s: %s is %s; accepted: %s", r->path, key, rt_metadata_show(item, shown), accepted);
}

static int read_whole(reader *r, const cJSON *object, const char *key, int minimum, int maximum, int fallback) {
    const cJSON *item = value_of(object, key);
    uint64_t value;
    if (!item && fallback != REQUIRED) return fallback;
    if (rt_metadata_whole(item, &value) && value >= (uint64_t)minimum && value <= (uint64_t)maximum) return (int)value;
    char accepted[64];
    snprintf(accepted, sizeof accepted, "a whole number from %d to %d", minimum, maximum);
    refuse(r, BIS_ERR_FORMAT, key, item, accepted);
    return minimum;
}

/* A finite number in [minimum, maximum]; fallback NAN: required. */
static double read_real(reader *r, const cJSON *object, const char *key, double minimum, double maximum,
                        double fallback) {
    const cJSON *item = value_of(object, key);
    if (!item && !isnan(fallback)) return fallback;
    double value;
    if (rt_metadata_number(item, &value) && value >= minimum && value <= maximum) return value;
    char accepted[64];
    snprintf(accepted, sizeof accepted, "a number from %g to %g", minimum, maximum);
    refuse(r, BIS_ERR_FORMAT, key, item, accepted);
    return minimum;
}

static bool read_flag(reader *r, const char *key, bool fallback) {
    const cJSON *item = value_of(r->root, key);
    if (!item) return fallback;
    if (!cJSON_IsBool(item)) refuse(r, BIS_ERR_FORMAT, key, item, "true or false");
    return cJSON_IsTrue(item);
}

static const family *read_family(reader *r) {
    const cJSON *item = value_of(r->root, "model_type");
    for (size_t i = 0; cJSON_IsString(item) && i < sizeof families / sizeof *families; i++) {
        if (!strcmp(item->valuestring, families[i].name)) return &families[i];
    }
    refuse(r, BIS_ERR_UNSUPPORTED, "model_type", item,
           "llama, mistral, qwen2, qwen3 (dense decoders; no mixture of experts)");
    return NULL;
}

static void read_sizes(reader *r, const family *kind, rt_model_config *config) {
    config->hidden = read_whole(r, r->root, "hidden_size", 1, HIDDEN_MAX, REQUIRED);
    config->ffn = read_whole(r, r->root, "intermediate_size", 1, FFN_MAX, REQUIRED);
    config->layers = read_whole(r, r->root, "num_hidden_layers", 1, RT_MODEL_LAYERS_MAX, REQUIRED);
    config->heads = read_whole(r, r->root, "num_attention_heads", 1, HEADS_MAX, REQUIRED);
    config->vocab = read_whole(r, r->root, "vocab_size", 1, VOCAB_MAX, REQUIRED);
    config->context = read_whole(r, r->root, "max_position_embeddings", 1, CONTEXT_MAX, kind->context);
    config->norm_eps = (float)read_real(r, r->root, "rms_norm_eps", 1e-30, 1, 1e-6);
    bool silent = !rt_metadata_get(r->root, "num_key_value_heads");
    int kv_heads = silent && kind->kv_heads ? kind->kv_heads : config->heads;
    config->kv_heads = read_whole(r, r->root, "num_key_value_heads", 1, HEADS_MAX, kv_heads);
    int head_dim = kind->head_dim ? kind->head_dim : config->hidden / config->heads;
    bool derived = !kind->head_dim && !value_of(r->root, "head_dim");
    config->head_dim = read_whole(r, r->root, "head_dim", 1, HEAD_DIM_MAX, head_dim);
    if (r->status) return;
    const char *wrong = NULL;
    if (config->heads % config->kv_heads) wrong = "num_attention_heads is not a multiple of num_key_value_heads";
    else if (derived && config->hidden % config->heads) wrong = "hidden_size is not a multiple of num_attention_heads";
    else if (config->head_dim % 2) wrong = "the size of a head is odd";
    else if (config->head_dim < 1 || config->head_dim > HEAD_DIM_MAX) wrong = "the size of a head is out of range";
    if (!wrong) return;
    r->status = bis_fail(r->error, BIS_ERR_FORMAT, "%s: %s (hidden_size %d, heads %d, KV heads %d, head_dim %d)",
                         r->path, wrong, config->hidden, config->heads, config->kv_heads, config->head_dim);
}

static void read_switches(reader *r, const family *kind, rt_model_config *config) {
    const cJSON *activation = value_of(r->root, "hidden_act");
    bool silu = cJSON_IsString(activation) &&
                (!strcmp(activation->valuestring, "silu") || !strcmp(activation->valuestring, "swish"));
    if (activation && !silu) refuse(r, BIS_ERR_UNSUPPORTED, "hidden_act", activation, "silu");
    const cJSON *quantization = value_of(r->root, "quantization_config");
    if (quantization) {
        refuse(r, BIS_ERR_UNSUPPORTED, "quantization_config", quantization,
               "no such key (weights in F32, F16 or BF16; take the model's unquantized folder)");
    }
    bool attention_bias = kind->has_attention_bias && read_flag(r, "attention_bias", false);
    config->tied_embeddings = read_flag(r, "tie_word_embeddings", false);
    config->qkv_bias = kind->qkv_bias || attention_bias;
    config->o_bias = attention_bias;
    config->mlp_bias = kind->has_mlp_bias && read_flag(r, "mlp_bias", false);
    config->qk_norm = kind->qk_norm;
}

/* A window at least as long as the context never hides a token, so it is no window. */
static void check_window(reader *r, const family *kind, const rt_model_config *config) {
    const cJSON *types = value_of(r->root, "layer_types"), *type;
    cJSON_ArrayForEach(type, types) {
        if (!cJSON_IsString(type) || strcmp(type->valuestring, "full_attention") != 0) {
            refuse(r, BIS_ERR_UNSUPPORTED, "an entry of layer_types", type, "\"full_attention\"");
        }
    }
    if (!read_flag(r, "use_sliding_window", !kind->window_is_off)) return;
    const cJSON *item = rt_metadata_get(r->root, "sliding_window");
    double window = -1;
    if (!item) window = kind->window;
    else (void)rt_metadata_number(item, &window);
    if (cJSON_IsNull(item) || (!item && !kind->window) || window >= config->context) return;
    char accepted[192];
    snprintf(accepted, sizeof accepted,
             "null, or at least max_position_embeddings (%d); a sliding window is not supported%s", config->context,
             item ? "" : " (this model_type has one of 4096 where the key is missing)");
    refuse(r, BIS_ERR_UNSUPPORTED, "sliding_window", item, accepted);
}

/* ---- rotary positions ---- */

static void read_llama3(reader *r, const cJSON *object, const rt_model_config *config, rt_rope_config *rope) {
    rope->scaling = RT_ROPE_LLAMA3;
    rope->low_freq_factor = read_real(r, object, "low_freq_factor", 1e-6, 1e6, NAN);
    rope->high_freq_factor = read_real(r, object, "high_freq_factor", 1e-6, 1e6, NAN);
    rope->original_context = read_whole(r, object, "original_max_position_embeddings", 1, CONTEXT_MAX, config->context);
    if (rope->low_freq_factor < rope->high_freq_factor) return;
    refuse(r, BIS_ERR_FORMAT, "high_freq_factor", value_of(object, "high_freq_factor"), "more than low_freq_factor");
}

static void read_rope_object(reader *r, const cJSON *object, const char *key, const rt_model_config *config,
                             rt_rope_config *rope) {
    const cJSON *type = value_of(object, "rope_type"), *member;
    if (!type) type = value_of(object, "type");
    cJSON_ArrayForEach(member, object) {
        if (cJSON_IsObject(member)) refuse(r, BIS_ERR_UNSUPPORTED, key, object, "one set of values for all layers");
    }
    const char *name = "default";
    if (type) name = cJSON_IsString(type) ? type->valuestring : "";
    if (!strcmp(name, "linear") || !strcmp(name, "llama3")) {
        rope->factor = read_real(r, object, "factor", 1, 1e6, NAN);
        if (!strcmp(name, "llama3")) read_llama3(r, object, config, rope);
        else rope->scaling = RT_ROPE_LINEAR;
    } else if (strcmp(name, "default") != 0) {
        refuse(r, BIS_ERR_UNSUPPORTED, "the rope_type", type, "default, linear, llama3");
    }
}

/* rope_scaling with rope_theta beside it, or the newer rope_parameters with rope_theta inside; the inner wins. */
static void read_rope(reader *r, rt_model_config *config) {
    rt_rope_config *rope = &config->rope;
    const char *key = value_of(r->root, "rope_scaling") ? "rope_scaling" : "rope_parameters";
    const cJSON *object = value_of(r->root, key);
    *rope = (rt_rope_config){.scaling = RT_ROPE_PLAIN, .factor = 1};
    rope->theta = read_real(r, r->root, "rope_theta", 1, 1e12, 10000);
    double partial = read_real(r, r->root, "partial_rotary_factor", 0, 1, 1);
    if (object && !cJSON_IsObject(object)) refuse(r, BIS_ERR_FORMAT, key, object, "null or an object");
    if (cJSON_IsObject(object)) {
        rope->theta = read_real(r, object, "rope_theta", 1, 1e12, rope->theta);
        partial = read_real(r, object, "partial_rotary_factor", 0, 1, partial);
        read_rope_object(r, object, key, config, rope);
    }
    if (partial == 1 || r->status) return;
    r->status =
        bis_fail(r->error, BIS_ERR_UNSUPPORTED, "%s: partial_rotary_factor is %g; accepted: 1", r->path, partial);
}

/* ---- special tokens ---- */

static void add_eos(reader *r, const cJSON *item, rt_model_config *config) {
    uint64_t id;
    if (!rt_metadata_whole(item, &id) || id >= (uint64_t)config->vocab) {
        refuse(r, BIS_ERR_FORMAT, "eos_token_id", item, "token ids below vocab_size, one or a list");
        return;
    }
    for (int i = 0; i < config->eos_count; i++) {
        if (config->eos[i] == (int32_t)id) return;
    }
    if (config->eos_count < RT_MODEL_EOS_MAX) config->eos[config->eos_count++] = (int32_t)id;
    else refuse(r, BIS_ERR_LIMIT, "eos_token_id", item, "at most 16 ids");
}

static void add_eos_of(reader *r, const cJSON *item, rt_model_config *config) {
    const cJSON *entry;
    if (cJSON_IsArray(item)) {
        cJSON_ArrayForEach(entry, item) add_eos(r, entry, config);
    } else if (item && !cJSON_IsNull(item)) {
        add_eos(r, item, config);
    }
}

/* A missing key means the family's default, null means that there is none. */
static void read_tokens(reader *r, const family *kind, rt_model_config *config) {
    const cJSON *bos = rt_metadata_get(r->root, "bos_token_id"), *eos = rt_metadata_get(r->root, "eos_token_id");
    int silent_bos = !bos && kind->bos < config->vocab ? kind->bos : NO_TOKEN;
    config->bos = read_whole(r, r->root, "bos_token_id", 0, config->vocab - 1, silent_bos);
    add_eos_of(r, eos, config);
    if (!eos && kind->eos >= 0 && kind->eos < config->vocab) config->eos[config->eos_count++] = kind->eos;
}

static bis_status read_config(const char *path, const cJSON *root, rt_model_config *out, bis_error *error) {
    reader r = {.path = path, .root = root, .error = error};
    rt_model_config config = {0};
    const family *kind = read_family(&r);
    if (!kind) return r.status;
    snprintf(config.architecture, sizeof config.architecture, "%s", kind->name);
    read_sizes(&r, kind, &config);
    read_switches(&r, kind, &config);
    check_window(&r, kind, &config);
    read_rope(&r, &config);
    read_tokens(&r, kind, &config);
    if (!r.status) *out = config;
    return r.status;
}

bis_status rt_model_config_parse(const char *text, size_t length, const char *name, rt_model_config *out,
                                 bis_error *error) {
    cJSON *root;
    bis_status status = rt_metadata_parse(text, length, name, &root, error);
    if (status) return status;
    status = read_config(name, root, out, error);
    cJSON_Delete(root);
    return status;
}

bis_status rt_model_config_read(const char *path, rt_model_config *out, bis_error *error) {
    cJSON *root;
    bis_status status = rt_metadata_read(path, CONFIG_BYTES_MAX, &root, error);
    if (status) return status;
    status = read_config(path, root, out, error);
    cJSON_Delete(root);
    return status;
}

bis_status rt_model_config_add_eos(const char *path, rt_model_config *config, bis_error *error) {
    cJSON *root;
    bis_status status = rt_metadata_read(path, CONFIG_BYTES_MAX, &root, error);
    if (status) return status;
    reader r = {.path = path, .root = root, .error = error};
    rt_model_config extended = *config;
    add_eos_of(&r, rt_metadata_get(root, "eos_token_id"), &extended);
    if (!r.status) *config = extended;
    cJSON_Delete(root);
    return r.status;
}
