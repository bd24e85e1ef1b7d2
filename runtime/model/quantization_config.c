/* quantization_config of config.json (docs/quantized-model.md): strict, because a folder that says something else than
 * what was done to it computes without error and answers nonsense. */
#include <stdio.h>
#include <string.h>

#include "runtime/model/config_reader.h"
#include "runtime/model/model_internal.h"

enum { FORMAT_VERSION = 1, WIDTHS_MAX = 8 };

static const char object_name[] = "quantization_config";

/* One of a list of words, copied to `out`. */
static void read_word(rt_config_reader *r, const cJSON *object, const char *key, const char *const *words,
                      char out[RT_QUANTIZATION_NAME_MAX]) {
    const cJSON *item = rt_config_value(object, key);
    char accepted[96] = "";
    size_t used = 0;
    for (int i = 0; words[i]; i++) {
        if (cJSON_IsString(item) && !strcmp(item->valuestring, words[i])) {
            snprintf(out, RT_QUANTIZATION_NAME_MAX, "%s", words[i]);
            return;
        }
        if (used < sizeof accepted) {
            used += (size_t)snprintf(accepted + used, sizeof accepted - used, "%s%s", i ? ", " : "", words[i]);
        }
    }
    rt_config_refuse(r, BIS_ERR_UNSUPPORTED, key, item, accepted);
}

/* One of a list of numbers that ends with 0. */
static int read_width(rt_config_reader *r, const cJSON *object, const char *key, const int *widths) {
    const cJSON *item = rt_config_value(object, key);
    uint64_t value;
    char accepted[64] = "";
    size_t used = 0;
    bool whole = rt_metadata_whole(item, &value);
    for (int i = 0; i < WIDTHS_MAX && widths[i]; i++) {
        if (whole && value == (uint64_t)widths[i]) return widths[i];
        if (used < sizeof accepted) {
            used += (size_t)snprintf(accepted + used, sizeof accepted - used, "%s%d", i ? ", " : "", widths[i]);
        }
    }
    rt_config_refuse(r, BIS_ERR_UNSUPPORTED, key, item, accepted);
    return widths[0];
}

static void read_outliers(rt_config_reader *r, const cJSON *object, rt_model_config *config) {
    static const char *const keys[RT_SITE_COUNT] = {"attn", "o", "ffn", "down"};
    const cJSON *outliers = rt_config_value(object, "outliers");
    if (!cJSON_IsObject(outliers)) {
        rt_config_refuse(r, BIS_ERR_FORMAT, "outliers", outliers, "an object with attn, o, ffn and down");
        return;
    }
    for (int site = 0; site < RT_SITE_COUNT; site++) {
        const cJSON *item = rt_config_value(outliers, keys[site]);
        int most = rt_model_site_width(config, (rt_site)site) - 1;
        uint64_t value;
        if (rt_metadata_whole(item, &value) && value <= (uint64_t)most) {
            config->quantization.outliers[site] = (int)value;
            continue;
        }
        char key[32], accepted[64];
        snprintf(key, sizeof key, "outliers.%s", keys[site]);
        snprintf(accepted, sizeof accepted, "a whole number from 0 to %d", most);
        rt_config_refuse(r, BIS_ERR_FORMAT, key, item, accepted);
    }
}

static void read_switches(rt_config_reader *r, const cJSON *object, rt_quantization *q) {
    q->key_before_rope = rt_config_required_flag(r, object, "key_before_rope");
    q->key_hadamard = rt_config_required_flag(r, object, "key_hadamard");
    q->heads_hadamard = rt_config_required_flag(r, object, "heads_hadamard");
    q->ffn_hadamard = rt_config_required_flag(r, object, "ffn_hadamard");
}

/* Each value may be right and their combination not. */
static void check_combination(rt_config_reader *r, const cJSON *object, const rt_model_config *config) {
    const rt_quantization *q = &config->quantization;
    if (q->weight_bits == KN_NOT_QUANTIZED && q->activation_bits != KN_NOT_QUANTIZED) {
        rt_config_refuse(r, BIS_ERR_UNSUPPORTED, "activation_bits", rt_config_value(object, "activation_bits"),
                         "16, because weight_bits is 16");
    }
    if (q->key_before_rope && q->key_hadamard) {
        rt_config_refuse(r, BIS_ERR_UNSUPPORTED, "key_hadamard", rt_config_value(object, "key_hadamard"),
                         "false, because key_before_rope is true and this transform follows RoPE");
    }
    if (!strcmp(q->base, "quarot") && config->tied_embeddings) {
        rt_config_refuse(r, BIS_ERR_FORMAT, "tie_word_embeddings", rt_metadata_get(r->root, "tie_word_embeddings"),
                         "false, because the base is quarot, which rotates embedding and head differently");
    }
}

rt_quantization rt_quantization_none(void) {
    return (rt_quantization){.weight_bits = KN_NOT_QUANTIZED,
                             .activation_bits = KN_NOT_QUANTIZED,
                             .kv_bits = KN_NOT_QUANTIZED,
                             .key_before_rope = true};
}

void rt_quantization_read(rt_config_reader *r, rt_model_config *config) {
    static const char *const methods[] = {"rtn", "gptq", "atom", "quarot", "bisup-atom", "bisup-quarot", NULL};
    static const char *const bases[] = {"plain", "atom", "quarot", NULL};
    static const int weight_widths[] = {3, 4, 8, KN_NOT_QUANTIZED, 0}, groups[] = {32, 64, KN_GROUP_MAX, 0},
                     kv_widths[] = {2, 3, 4, 8, KN_NOT_QUANTIZED, 0};
    rt_quantization *q = &config->quantization;
    *q = rt_quantization_none();
    const cJSON *object = rt_config_value(r->root, object_name);
    if (!object || r->status) return;
    if (!cJSON_IsObject(object)) {
        rt_config_refuse(r, BIS_ERR_FORMAT, object_name, object, "null or an object");
        return;
    }
    const cJSON *by = rt_config_value(object, "quant_method");
    if (!cJSON_IsString(by) || strcmp(by->valuestring, "bisup") != 0) {
        rt_config_refuse(r, BIS_ERR_UNSUPPORTED, "the quant_method of quantization_config", by,
                         "bisup (for another method's model, take its unquantized folder)");
        return;
    }
    rt_config_whole(r, object, "version", FORMAT_VERSION, FORMAT_VERSION, RT_CONFIG_REQUIRED);
    q->present = true;
    read_word(r, object, "method", methods, q->method);
    read_word(r, object, "base", bases, q->base);
    q->weight_bits = read_width(r, object, "weight_bits", weight_widths);
    q->activation_bits = read_width(r, object, "activation_bits", weight_widths);
    q->kv_bits = read_width(r, object, "kv_bits", kv_widths);
    q->group = read_width(r, object, "group_size", groups);
    q->weight_symmetric = rt_config_required_flag(r, object, "weight_symmetric");
    read_outliers(r, object, config);
    read_switches(r, object, q);
    if (!r->status) check_combination(r, object, config);
}
