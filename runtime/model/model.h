/* A model folder in Hugging Face form: its configuration and its mapped weights.
 *
 * Covers decoder-only transformers of the Llama and Qwen families: LlamaForCausalLM, MistralForCausalLM (no
 * sliding window), Qwen2ForCausalLM (QKV bias), Qwen3ForCausalLM (Q/K norm). One structure describes
 * them all; forward.h runs it. Weights stay where they are in the mapped files and in their stored type.
 * Immutable after opening; any thread may read.
 */
#ifndef BISUP_RUNTIME_MODEL_H
#define BISUP_RUNTIME_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"
#include "kernels/quant.h"
#include "kernels/tensor.h"

enum { RT_MODEL_LAYERS_MAX = 256, RT_MODEL_EOS_MAX = 16, RT_QUANTIZATION_NAME_MAX = 16 };

typedef enum rt_rope_scaling { RT_ROPE_PLAIN, RT_ROPE_LINEAR, RT_ROPE_LLAMA3 } rt_rope_scaling;

typedef struct rt_rope_config {
    rt_rope_scaling scaling;
    double theta;
    double factor;                            /* linear, llama3 */
    double low_freq_factor, high_freq_factor; /* llama3 */
    int original_context;                     /* llama3: original_max_position_embeddings */
} rt_rope_config;

/* The four inputs of a layer's linears: of q, k and v; of o; of gate and up; of down. */
typedef enum rt_site { RT_SITE_ATTN, RT_SITE_O, RT_SITE_FFN, RT_SITE_DOWN, RT_SITE_COUNT } rt_site;

/* quantization_config (docs/quantized-model.md). A model without it: present false, KN_NOT_QUANTIZED bits, no
 * transforms, and a low-bit K cache would be quantized before RoPE, where its channels are most alike. */
typedef struct rt_quantization {
    bool present;
    char method[RT_QUANTIZATION_NAME_MAX], base[RT_QUANTIZATION_NAME_MAX];
    int weight_bits, activation_bits, kv_bits; /* kv_bits: what a cache has when nobody asks for another width */
    int group;
    bool weight_symmetric;
    int outliers[RT_SITE_COUNT]; /* INT8 columns at the end of a site's input */
    bool key_before_rope, key_hadamard, heads_hadamard, ffn_hadamard;
} rt_quantization;

typedef struct rt_model_config {
    char architecture[16]; /* model_type: "llama", "mistral", "qwen2", "qwen3" */
    int hidden, ffn, layers, heads, kv_heads, head_dim, vocab, context;
    float norm_eps;
    rt_rope_config rope;
    bool tied_embeddings;
    bool qkv_bias, o_bias, mlp_bias, qk_norm;
    int32_t bos, eos[RT_MODEL_EOS_MAX]; /* bos -1: none */
    int eos_count;
    rt_quantization quantization;
} rt_model_config;

/* Columns of the linears that read a site. */
int rt_model_site_width(const rt_model_config *config, rt_site site);

/* What a quantized layer has in place of the matrices q ... down (codes NULL: that matrix is not quantized), and how
 * its linears' inputs are made: channel order[c] is column c of a site's input (NULL: natural order). */
typedef struct rt_packed_layer {
    kn_qweight q, k, v, o, gate, up, down;
    const int32_t *order[RT_SITE_COUNT];
    float act_clip[RT_SITE_COUNT];
} rt_packed_layer;

/* Weight matrices are [outputs, inputs]. Absent parts (biases, Q/K norms, and matrices that
 * are quantized: see packed) have data == NULL. */
typedef struct rt_layer {
    kn_tensor attention_norm, ffn_norm; /* [hidden] */
    kn_tensor q, k, v, o;               /* [heads*head_dim | kv_heads*head_dim, hidden]; o [hidden, heads*head_dim] */
    kn_tensor q_bias, k_bias, v_bias, o_bias;
    kn_tensor q_norm, k_norm; /* [head_dim] */
    kn_tensor gate, up, down; /* [ffn, hidden], [hidden, ffn] */
    kn_tensor gate_bias, up_bias, down_bias;
    rt_packed_layer packed;
} rt_layer;

typedef struct rt_model rt_model;

/* Reads and checks config.json alone: every size positive and bounded, heads divisible by KV heads, an even
 * head size, known architecture, activation "silu", rope_scaling (or the newer rope_parameters) of a known
 * type, no sliding window (use_sliding_window false, or sliding_window null), no
 * quantization_config of another program. Errors name the file, the key, its value and what is accepted. `path` is the
 * file. */
bis_status rt_model_config_read(const char *path, rt_model_config *out, bis_error *error);

/* Opens config.json and model.safetensors or model.safetensors.index.json with its shards. Checks that every
 * tensor exists with the right shape and a supported type (F32, F16, BF16; quantized tensors as the format says) and
 * lies inside its file, that orders are permutations, and that zeros and clips are in range. */
bis_status rt_model_open(const char *folder, rt_model **out, bis_error *error);

/* A model with random weights (normal, deviation 0.02, norms 1) of the given shape and type, made in memory:
 * for `bisup bench --shape` and tests. Same seed, same weights. Where
 * quantization_config says so, matrices are random codes. */
bis_status rt_model_random(const rt_model_config *config, kn_type type, uint64_t seed, rt_model **out,
                           bis_error *error);

void rt_model_close(rt_model *model); /* NULL is allowed */

const rt_model_config *rt_model_get_config(const rt_model *model);
const rt_layer *rt_model_layer(const rt_model *model, int layer);
kn_tensor rt_model_embedding(const rt_model *model); /* [vocab, hidden] */
kn_tensor rt_model_final_norm(const rt_model *model);
kn_tensor rt_model_head(const rt_model *model);         /* [vocab, hidden]; the embedding where tied */
uint64_t rt_model_parameters(const rt_model *model);    /* tied matrices counted once */
uint64_t rt_model_bytes(const rt_model *model);         /* of tensors in use */
const char *rt_model_type_name(const rt_model *model);  /* type of most parameters; quantized: such as "W3A3" */
double rt_model_bits_per_weight(const rt_model *model); /* of the layers' matrices, with scales, zeros, outliers */
int64_t rt_model_created(const rt_model *model);        /* Unix time of the newest weight file; 0 for random */

#endif
