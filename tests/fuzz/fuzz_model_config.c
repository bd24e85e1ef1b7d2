/* Fuzzes config.json: whatever is accepted must keep the promises that the forward pass relies on. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "runtime/model/model_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool keeps_promises(const rt_model_config *config) {
    const int sizes[] = {config->hidden,   config->ffn,      config->layers, config->heads,
                         config->kv_heads, config->head_dim, config->vocab,  config->context};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (sizes[i] < 1 || sizes[i] > 1 << 26) return false;
    }
    if (config->layers > RT_MODEL_LAYERS_MAX || config->heads % config->kv_heads || config->head_dim % 2) return false;
    if (config->eos_count < 0 || config->eos_count > RT_MODEL_EOS_MAX) return false;
    for (int i = 0; i < config->eos_count; i++) {
        if (config->eos[i] < 0 || config->eos[i] >= config->vocab) return false;
    }
    if (config->bos < -1 || config->bos >= config->vocab) return false;
    const rt_rope_config *rope = &config->rope;
    bool is_llama3 = rope->scaling == RT_ROPE_LLAMA3;
    return config->norm_eps > 0 && isfinite(rope->theta) && rope->theta >= 1 && rope->factor >= 1 &&
           (!is_llama3 || (rope->low_freq_factor < rope->high_freq_factor && rope->original_context > 0));
}

/* What the loader and the kernels take for granted of a quantization. */
static bool quantization_keeps_promises(const rt_model_config *config) {
    const rt_quantization *q = &config->quantization;
    const int widths[] = {q->weight_bits, q->activation_bits, q->kv_bits};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        if (widths[i] != KN_NOT_QUANTIZED && !kn_bits_find(widths[i])) return false;
    }
    if (!q->present) return q->weight_bits == KN_NOT_QUANTIZED && q->activation_bits == KN_NOT_QUANTIZED;
    for (int site = 0; site < RT_SITE_COUNT; site++) {
        if (q->outliers[site] < 0 || q->outliers[site] >= rt_model_site_width(config, (rt_site)site)) return false;
    }
    return q->group >= 32 && q->group <= KN_GROUP_MAX && !(q->key_before_rope && q->key_hadamard) &&
           (q->weight_bits != KN_NOT_QUANTIZED || q->activation_bits == KN_NOT_QUANTIZED);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    rt_model_config config;
    bis_error error;
    bis_status status = rt_model_config_parse((const char *)data, size, "fuzz", &config, &error);
    if (!status && !(keeps_promises(&config) && quantization_keeps_promises(&config))) abort();
    return 0;
}
