/* config.json: keys, defaults and meanings as the Python library of these model families has them. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "runtime/model/config_reader.h"
#include "runtime/model/model_internal.h"

enum {
    CONFIG_BYTES_MAX = 1 << 20,
    HIDDEN_MAX = 1 << 17,
    FFN_MAX = 1 << 20,
    HEADS_MAX = 1 << 10,
    HEAD_DIM_MAX = 1 << 10,
    VOCAB_MAX = 1 << 22,
    CONTEXT_MAX = 1 << 26,
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

static const family *read_family(rt_config_reader *r) {
    const cJSON *item = rt_config_value(r->root, "model_type");
    for (size_t i = 0; cJSON_IsString(item) && i < sizeof families / sizeof *families; i++) {
        if (!strcmp(item->valuestring, families[i].name)) return &families[i];
    }
    rt_config_refuse(r, BIS_ERR_UNSUPPORTED, "model_type", item,
                     "llama, mistral, qwen2, qwen3 (dense decoders; no mixture of experts)");
    return NULL;
}

static void read_sizes(rt_config_reader *r, const family *kind, rt_model_config *config) {
    config->hidden = rt_config_whole(r, r->root, "hidden_size", 1, HIDDEN_MAX, RT_CONFIG_REQUIRED);
    config->ffn = rt_config_whole(r, r->root, "intermediate_size", 1, FFN_MAX, RT_CONFIG_REQUIRED);
    config->layers = rt_config_whole(r, r->root, "num_hidden_layers", 1, RT_MODEL_LAYERS_MAX, RT_CONFIG_REQUIRED);
    config->heads = rt_config_whole(r, r->root, "num_attention_heads", 1, HEADS_MAX, RT_CONFIG_REQUIRED);
    config->vocab = rt_config_whole(r, r->root, "vocab_size", 1, VOCAB_MAX, RT_CONFIG_REQUIRED);
    config->context = rt_config_whole(r, r->root, "max_position_embeddings", 1, CONTEXT_MAX, kind->context);
    config->norm_eps = (float)rt_config_real(r, r->root, "rms_norm_eps", 1e-30, 1, 1e-6);
    bool silent = !rt_metadata_get(r->root, "num_key_value_heads");
    int kv_heads = silent && kind->kv_heads ? kind->kv_heads : config->heads;
    config->kv_heads = rt_config_whole(r, r->root, "num_key_value_heads", 1, HEADS_MAX, kv_heads);
    int head_dim = kind->head_dim ? kind->head_dim : config->hidden / config->heads;
    bool derived = !kind->head_dim && !rt_config_value(r->root, "head_dim");
    config->head_dim = rt_config_whole(r, r->root, "head_dim", 1, HEAD_DIM_MAX, head_dim);
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

static void read_switches(rt_config_reader *r, const family *kind, rt_model_config *config) {
    const cJSON *activation = rt_config_value(r->root, "hidden_act");
    bool silu = cJSON_IsString(activation) &&
                (!strcmp(activation->valuestring, "silu") || !strcmp(activation->valuestring, "swish"));
    if (activation && !silu) rt_config_refuse(r, BIS_ERR_UNSUPPORTED, "hidden_act", activation, "silu");
    bool attention_bias = kind->has_attention_bias && rt_config_flag(r, r->root, "attention_bias", false);
    config->tied_embeddings = rt_config_flag(r, r->root, "tie_word_embeddings", false);
    config->qkv_bias = kind->qkv_bias || attention_bias;
    config->o_bias = attention_bias;
    config->mlp_bias = kind->has_mlp_bias && rt_config_flag(r, r->root, "mlp_bias", false);
    config->qk_norm = kind->qk_norm;
}

/* A window at least as long as the context never hides a token, so it is no window. */
static void check_window(rt_config_reader *r, const family *kind, const rt_model_config *config) {
    const cJSON *types = rt_config_value(r->root, "layer_types"), *type;
    cJSON_ArrayForEach(type, types) {
        if (!cJSON_IsString(type) || strcmp(type->valuestring, "full_attention") != 0) {
            rt_config_refuse(r, BIS_ERR_UNSUPPORTED, "an entry of layer_types", type, "\"full_attention\"");
        }
    }
    if (!rt_config_flag(r, r->root, "use_sliding_window", !kind->window_is_off)) return;
    const cJSON *item = rt_metadata_get(r->root, "sliding_window");
    double window = -1;
    if (!item) window = kind->window;
    else (void)rt_metadata_number(item, &window);
    if (cJSON_IsNull(item) || (!item && !kind->window) || window >= config->context) return;
    char accepted[192];
    snprintf(accepted, sizeof accepted,
             "null, or at least max_position_embeddings (%d); a sliding window is not supported%s", config->context,
             item ? "" : " (this model_type has one of 4096 where the key is missing)");
    rt_config_refuse(r, BIS_ERR_UNSUPPORTED, "sliding_window", item, accepted);
}

/* ---- rotary positions ---- */

static void read_llama3(rt_config_reader *r, const cJSON *object, const rt_model_config *config, rt_rope_config *rope) {
    rope->scaling = RT_ROPE_LLAMA3;
    rope->low_freq_factor = rt_config_real(r, object, "low_freq_factor", 1e-6, 1e6, NAN);
    rope->high_freq_factor = rt_config_real(r, object, "high_freq_factor", 1e-6, 1e6, NAN);
    rope->original_context =
        rt_config_whole(r, object, "original_max_position_embeddings", 1, CONTEXT_MAX, config->context);
    if (rope->low_freq_factor < rope->high_freq_factor) return;
    rt_config_refuse(r, BIS_ERR_FORMAT, "high_freq_factor", rt_config_value(object, "high_freq_factor"),
                     "more than low_freq_factor");
}

static void read_rope_object(rt_config_reader *r, const cJSON *object, const char *key, const rt_model_config *config,
                             rt_rope_config *rope) {
    const cJSON *type = rt_config_value(object, "rope_type"), *member;
    if (!type) type = rt_config_value(object, "type");
    cJSON_ArrayForEach(member, object) {
        if (cJSON_IsObject(member))
            rt_config_refuse(r, BIS_ERR_UNSUPPORTED, key, object, "one set of values for all layers");
    }
    const char *name = "default";
    if (type) name = cJSON_IsString(type) ? type->valuestring : "";
    if (!strcmp(name, "linear") || !strcmp(name, "llama3")) {
        rope->factor = rt_config_real(r, object, "factor", 1, 1e6, NAN);
        if (!strcmp(name, "llama3")) read_llama3(r, object, config, rope);
        else rope->scaling = RT_ROPE_LINEAR;
    } else if (strcmp(name, "default") != 0) {
        rt_config_refuse(r, BIS_ERR_UNSUPPORTED, "the rope_type", type, "default, linear, llama3");
    }
}

/* rope_scaling with rope_theta beside it, or the newer rope_parameters with rope_theta inside; the inner wins. */
static void read_rope(rt_config_reader *r, rt_model_config *config) {
    rt_rope_config *rope = &config->rope;
    const char *key = rt_config_value(r->root, "rope_scaling") ? "rope_scaling" : "rope_parameters";
    const cJSON *object = rt_config_value(r->root, key);
    *rope = (rt_rope_config){.scaling = RT_ROPE_PLAIN, .factor = 1};
    rope->theta = rt_config_real(r, r->root, "rope_theta", 1, 1e12, 10000);
    double partial = rt_config_real(r, r->root, "partial_rotary_factor", 0, 1, 1);
    if (object && !cJSON_IsObject(object)) rt_config_refuse(r, BIS_ERR_FORMAT, key, object, "null or an object");
    if (cJSON_IsObject(object)) {
        rope->theta = rt_config_real(r, object, "rope_theta", 1, 1e12, rope->theta);
        partial = rt_config_real(r, object, "partial_rotary_factor", 0, 1, partial);
        read_rope_object(r, object, key, config, rope);
    }
    if (partial == 1 || r->status) return;
    r->status =
        bis_fail(r->error, BIS_ERR_UNSUPPORTED, "%s: partial_rotary_factor is %g; accepted: 1", r->path, partial);
}

/* ---- special tokens ---- */

static void add_eos(rt_config_reader *r, const cJSON *item, rt_model_config *config) {
    uint64_t id;
    if (!rt_metadata_whole(item, &id) || id >= (uint64_t)config->vocab) {
        rt_config_refuse(r, BIS_ERR_FORMAT, "eos_token_id", item, "token ids below vocab_size, one or a list");
        return;
    }
    for (int i = 0; i < config->eos_count; i++) {
        if (config->eos[i] == (int32_t)id) return;
    }
    if (config->eos_count < RT_MODEL_EOS_MAX) config->eos[config->eos_count++] = (int32_t)id;
    else rt_config_refuse(r, BIS_ERR_LIMIT, "eos_token_id", item, "at most 16 ids");
}

static void add_eos_of(rt_config_reader *r, const cJSON *item, rt_model_config *config) {
    const cJSON *entry;
    if (cJSON_IsArray(item)) {
        cJSON_ArrayForEach(entry, item) add_eos(r, entry, config);
    } else if (item && !cJSON_IsNull(item)) {
        add_eos(r, item, config);
    }
}

/* A missing key means the family's default, null means that there is none. */
static void read_tokens(rt_config_reader *r, const family *kind, rt_model_config *config) {
    const cJSON *bos = rt_metadata_get(r->root, "bos_token_id"), *eos = rt_metadata_get(r->root, "eos_token_id");
    int silent_bos = !bos && kind->bos < config->vocab ? kind->bos : NO_TOKEN;
    config->bos = rt_config_whole(r, r->root, "bos_token_id", 0, config->vocab - 1, silent_bos);
    add_eos_of(r, eos, config);
    if (!eos && kind->eos >= 0 && kind->eos < config->vocab) config->eos[config->eos_count++] = kind->eos;
}

static bis_status read_config(const char *path, const cJSON *root, rt_model_config *out, bis_error *error) {
    rt_config_reader r = {.path = path, .root = root, .error = error};
    rt_model_config config = {0};
    const family *kind = read_family(&r);
    if (!kind) return r.status;
    snprintf(config.architecture, sizeof config.architecture, "%s", kind->name);
    read_sizes(&r, kind, &config);
    read_switches(&r, kind, &config);
    check_window(&r, kind, &config);
    read_rope(&r, &config);
    rt_quantization_read(&r, &config);
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
    rt_config_reader r = {.path = path, .root = root, .error = error};
    rt_model_config extended = *config;
    add_eos_of(&r, rt_metadata_get(root, "eos_token_id"), &extended);
    if (!r.status) *config = extended;
    cJSON_Delete(root);
    return r.status;
}
