/* The transforms of the base methods preserve the function: logits through transformed embedding, blocks, final norm
 * and head are those of the runtime, for a tiny model of every family and for FFN sizes of real models. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "quantizer/simulate.h"
#include "quantizer/transform.h"
#include "runtime/forward.h"
#include "runtime/kv_pages.h"
#include "runtime/model/safetensors.h"
#include "runtime/rope.h"
#include "tests/support/random_data.h"

enum { MAX_TOKENS = 64 };

static const char *const FAMILIES[] = {
    "llama2-mha", "llama3-gqa-rope-f16", "llama-linear-rope-sharded", "llama-biases",
    "qwen2-tied", "qwen3-head-dim-bf16", "mistral-no-prefix",
};
enum { FAMILY_COUNT = sizeof FAMILIES / sizeof *FAMILIES };

static rt_model *open_family(const char *family) {
    char folder[256];
    rt_model *model;
    bis_error error = {0};
    snprintf(folder, sizeof folder, "tests/golden/models/%s", family);
    if (rt_model_open(folder, &model, &error)) fail_msg("%s", error.text);
    return model;
}

/* ---- The runtime's logits ---- */

static float *runtime_logits(const rt_model *model, const int32_t *tokens, int count) {
    size_t all = (size_t)count * (size_t)rt_model_get_config(model)->vocab;
    kn_backend *backend;
    rt_forward *forward;
    rt_kv_pages *pages;
    bis_error error = {0};
    int32_t positions[MAX_TOKENS], wanted[MAX_TOKENS], numbers[MAX_TOKENS];
    const int32_t *tables[MAX_TOKENS];
    if (kn_cpu_open(1, "auto", MAX_TOKENS, 0, &backend, &error)) fail_msg("%s", error.text);
    if (rt_forward_open(model, backend, MAX_TOKENS, MAX_TOKENS, MAX_TOKENS, &forward, &error)) {
        fail_msg("%s", error.text);
    }
    rt_kv_count needed = {.full = rt_kv_pages_for(count)};
    if (rt_kv_pages_open(rt_model_get_config(model), 32, needed, &pages, &error)) fail_msg("%s", error.text);
    assert_true(rt_kv_pages_take(pages, needed, numbers));
    for (int i = 0; i < count; i++) {
        positions[i] = wanted[i] = i;
        tables[i] = numbers;
    }
    rt_batch batch = {{.count = count, .position = positions, .pages = tables}, tokens, wanted, count};
    float *out = test_alloc(all * sizeof *out);
    memcpy(out, rt_forward_run(forward, rt_kv_pages_cache(pages), &batch), all * sizeof *out);
    rt_forward_close(forward);
    rt_kv_pages_close(pages);
    backend->ops->close(backend);
    return out;
}

/* ---- The same through the transforms ---- */

typedef struct treatment {
    qz_base base;
    bool reorder, smooth;
} treatment;

static void reorder_at_random(qz_block *block) {
    double *importance[QZ_SITES];
    bis_error error = {0};
    for (int site = 0; site < QZ_SITES; site++) {
        int width = qz_site_width(&block->shape, (qz_site)site);
        importance[site] = test_alloc((size_t)width * sizeof(double));
        for (int i = 0; i < width; i++) importance[site][i] = random_below(width); /* with equal ones */
    }
    if (qz_reorder_block(block, (const double *const *)importance, &error)) fail_msg("%s", error.text);
    for (int site = 0; site < QZ_SITES; site++) free(importance[site]);
}

/* What tuning folds in: norms divided, and the columns of the linears that read them multiplied, by one vector. */
static void smooth_at_random(qz_block *block) {
    for (int site = QZ_SITE_ATTN; site <= QZ_SITE_FFN; site += QZ_SITE_FFN - QZ_SITE_ATTN) {
        int width = block->shape.hidden;
        float *by = test_alloc((size_t)width * sizeof *by), *norm = site == QZ_SITE_ATTN ? block->norm1 : block->norm2;
        for (int i = 0; i < width; i++) by[i] = expf(random_float() * 0.5f);
        for (int i = 0; i < width; i++) norm[i] /= by[i];
        for (int l = 0; l < QZ_LINEARS; l++) {
            if (qz_site_of((qz_linear_id)l) != (qz_site)site) continue;
            for (int r = 0; r < qz_linear_rows(&block->shape, (qz_linear_id)l); r++) {
                for (int c = 0; c < width; c++) {
                    int channel = block->order[site] ? block->order[site][c] : c;
                    block->weight[l][r * width + c] *= by[channel];
                }
            }
        }
        free(by);
    }
}

static void run_blocks(const qz_transform *transform, const rt_model *model, treatment how, float *x, int tokens) {
    const rt_model_config *c = rt_model_get_config(model);
    float *rope = test_alloc((size_t)tokens * (size_t)c->head_dim * sizeof *rope);
    rt_rope_fill_table(&c->rope, c->head_dim, tokens, rope);
    qz_spec spec = {.weight_bits = 16, .act_bits = 16, .kv_bits = 16, .group = 32};
    qz_transform_set_spec(transform, &spec);
    for (int layer = 0; layer < c->layers; layer++) {
        qz_block *block;
        bis_error error = {0};
        if (qz_transform_block(transform, layer, &block, &error)) fail_msg("%s", error.text);
        if (how.reorder) reorder_at_random(block);
        if (how.smooth) smooth_at_random(block);
        qz_pass pass = {.block = block, .spec = &spec, .mode = QZ_FLOAT, .rope_table = rope};
        if (qz_simulate(&pass, x, 1, tokens, x, &error)) fail_msg("%s", error.text);
        qz_block_free(block);
    }
    free(rope);
}

/* logits[t][v] = sum of head[v] * rmsnorm(x[t]), the head by ranges of rows of different sizes */
static void run_head(const qz_transform *transform, const rt_model_config *c, const float *x, int tokens,
                     float *logits) {
    size_t hidden = (size_t)c->hidden;
    float *norm = test_alloc(hidden * sizeof *norm), *rows = test_alloc(7 * hidden * sizeof *rows);
    qz_transform_final_norm(transform, norm);
    for (int first = 0, count; first < c->vocab; first += count) {
        count = 1 + first % 7 < c->vocab - first ? 1 + first % 7 : c->vocab - first;
        qz_transform_head(transform, first, count, rows);
        for (int t = 0; t < tokens; t++) {
            double squares = 0;
            for (size_t i = 0; i < hidden; i++)
                squares += (double)x[t * c->hidden + (int)i] * x[t * c->hidden + (int)i];
            double scale = 1 / sqrt(squares / c->hidden + c->norm_eps);
            for (int v = 0; v < count; v++) {
                double sum = 0;
                for (size_t i = 0; i < hidden; i++) {
                    sum += (double)rows[(size_t)v * hidden + i] * norm[i] * x[(size_t)t * hidden + i];
                }
                logits[t * c->vocab + first + v] = (float)(sum * scale);
            }
        }
    }
    free(norm);
    free(rows);
}

static float *transformed_logits(const rt_model *model, treatment how, const int32_t *tokens, int count) {
    const rt_model_config *c = rt_model_get_config(model);
    size_t hidden = (size_t)c->hidden;
    qz_transform *transform;
    bis_error error = {0};
    if (qz_transform_open(model, how.base, 7, &transform, &error)) fail_msg("%s", error.text);
    float *x = test_alloc((size_t)count * hidden * sizeof *x);
    float *logits = test_alloc((size_t)count * (size_t)c->vocab * sizeof *logits);
    for (int t = 0; t < count; t++) qz_transform_embedding(transform, tokens[t], 1, x + (size_t)t * hidden);
    run_blocks(transform, model, how, x, count);
    run_head(transform, c, x, count, logits);
    qz_transform_close(transform);
    free(x);
    return logits;
}

static double relative_difference(const float *a, const float *b, size_t count) {
    double worst = 0, largest = 0;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs((double)a[i] - b[i]);
        if (!(difference <= worst)) worst = difference; /* a NaN counts */
        largest = fmax(largest, fabs((double)a[i]));
    }
    return worst / largest;
}

static const treatment TREATMENTS[] = {
    {QZ_BASE_PLAIN, false, false}, {QZ_BASE_PLAIN, false, true},   {QZ_BASE_ATOM, true, false},
    {QZ_BASE_ATOM, true, true},    {QZ_BASE_QUAROT, false, false}, {QZ_BASE_QUAROT, false, true},
};
enum { TREATMENT_COUNT = sizeof TREATMENTS / sizeof *TREATMENTS };

static void check_preserved(const rt_model *model, const char *name, const int32_t *tokens, int count) {
    size_t all = (size_t)count * (size_t)rt_model_get_config(model)->vocab;
    float *expected = runtime_logits(model, tokens, count);
    for (int i = 0; i < TREATMENT_COUNT; i++) {
        float *logits = transformed_logits(model, TREATMENTS[i], tokens, count);
        double difference = relative_difference(expected, logits, all);
        print_message("%-28s base %d%s%s: %.1e\n", name, TREATMENTS[i].base, TREATMENTS[i].reorder ? ", reordered" : "",
                      TREATMENTS[i].smooth ? ", smoothed" : "", difference);
        assert_true(difference <= 1e-5);
        free(logits);
    }
    free(expected);
}

static void test_families_keep_their_logits(void **state) {
    (void)state;
    for (int f = 0; f < FAMILY_COUNT; f++) {
        rt_model *model = open_family(FAMILIES[f]);
        int32_t tokens[24];
        for (int i = 0; i < 24; i++) tokens[i] = random_below(rt_model_get_config(model)->vocab);
        check_preserved(model, FAMILIES[f], tokens, 24);
        rt_model_close(model);
    }
}

/* rt_model_random's norms and biases are all alike or small: larger ones show an error sooner. */
static void draw_vector(kn_tensor tensor, float around, float deviation) {
    float *values = (float *)(uintptr_t)tensor.data; /* the test's own model, in memory */
    for (int i = 0; tensor.data && i < tensor.cols; i++) values[i] = around + deviation * random_float();
}

static rt_model *random_model(const rt_model_config *config) {
    rt_model *model;
    bis_error error = {0};
    if (rt_model_random(config, KN_F32, 3, &model, &error)) fail_msg("%s", error.text);
    for (int i = 0; i < config->layers; i++) {
        const rt_layer *layer = rt_model_layer(model, i);
        draw_vector(layer->attention_norm, 1, 0.3f);
        draw_vector(layer->ffn_norm, 1, 0.3f);
        draw_vector(layer->q_norm, 1, 0.3f);
        draw_vector(layer->k_norm, 1, 0.3f);
        draw_vector(layer->q_bias, 0, 0.1f);
        draw_vector(layer->k_bias, 0, 0.1f);
        draw_vector(layer->v_bias, 0, 0.1f);
        draw_vector(layer->o_bias, 0, 0.1f);
        draw_vector(layer->gate_bias, 0, 0.1f);
        draw_vector(layer->up_bias, 0, 0.1f);
        draw_vector(layer->down_bias, 0, 0.1f);
    }
    draw_vector(rt_model_final_norm(model), 1, 0.3f);
    return model;
}

static rt_model_config small_config(const char *architecture, int ffn) {
    rt_model_config config = {.hidden = 32,
                              .ffn = ffn,
                              .layers = 1,
                              .heads = 4,
                              .kv_heads = 2,
                              .head_dim = 8,
                              .vocab = 50,
                              .context = MAX_TOKENS,
                              .norm_eps = 1e-5f,
                              .rope = {.theta = 10000},
                              .bos = -1};
    snprintf(config.architecture, sizeof config.architecture, "%s", architecture);
    return config;
}

/* Hadamard sizes with dense factors, also of numbers of heads (28 = Qwen2-7B, 7 and 5 need Hartley's matrix). */
static void test_real_ffn_sizes_keep_the_logits(void **state) {
    (void)state;
    rt_model_config configs[] = {small_config("llama", 11008),   small_config("llama", 13696),
                                 small_config("qwen2", 18944),   small_config("qwen3", 11008),
                                 small_config("llama", 107 * 8), small_config("qwen2", 4864)};
    configs[1].hidden = 40;
    configs[2].qkv_bias = configs[2].tied_embeddings = true;
    configs[2].heads = 28;
    configs[2].kv_heads = 4;
    configs[3].qk_norm = configs[3].tied_embeddings = true;
    configs[3].head_dim = 12;
    configs[4].qkv_bias = configs[4].o_bias = configs[4].mlp_bias = true;
    configs[4].layers = 2;
    configs[4].heads = 5;
    configs[4].kv_heads = 1;
    configs[4].hidden = 36;
    configs[5].qkv_bias = configs[5].tied_embeddings = true;
    configs[5].heads = 14;
    configs[5].kv_heads = 7;
    configs[5].layers = 2;
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
        rt_model *model = random_model(&configs[i]);
        int32_t tokens[12];
        char name[64];
        for (int t = 0; t < 12; t++) tokens[t] = random_below(configs[i].vocab);
        snprintf(name, sizeof name, "%.15s, ffn %d, %d heads", configs[i].architecture, configs[i].ffn,
                 configs[i].heads);
        check_preserved(model, name, tokens, 12);
        rt_model_close(model);
    }
}

/* ---- What a transform says and makes ---- */

static qz_transform *open_or_fail(const rt_model *model, qz_base base, uint64_t seed) {
    qz_transform *transform;
    bis_error error = {0};
    if (qz_transform_open(model, base, seed, &transform, &error)) fail_msg("%s", error.text);
    return transform;
}

static qz_block *block_or_fail(const qz_transform *transform, int layer) {
    qz_block *block;
    bis_error error = {0};
    if (qz_transform_block(transform, layer, &block, &error)) fail_msg("%s", error.text);
    return block;
}

static void test_plain_weights_are_the_stored_ones(void **state) {
    (void)state;
    for (int f = 0; f < FAMILY_COUNT; f++) {
        rt_model *model = open_family(FAMILIES[f]);
        const rt_layer *layer = rt_model_layer(model, 1);
        const kn_tensor weights[] = {layer->q, layer->k, layer->v, layer->o, layer->gate, layer->up, layer->down};
        const kn_tensor biases[] = {layer->q_bias,    layer->k_bias,  layer->v_bias,   layer->o_bias,
                                    layer->gate_bias, layer->up_bias, layer->down_bias};
        for (int base = QZ_BASE_PLAIN; base <= QZ_BASE_ATOM; base++) {
            qz_transform *transform = open_or_fail(model, (qz_base)base, 1);
            qz_block *block = block_or_fail(transform, 1);
            for (int l = 0; l < QZ_LINEARS; l++) {
                size_t count = (size_t)weights[l].rows * (size_t)weights[l].cols;
                for (size_t i = 0; i < count; i++) assert_true(block->weight[l][i] == kn_tensor_get(&weights[l], i));
                assert_int_equal(!block->bias[l], !biases[l].data);
                for (int i = 0; biases[l].data && i < biases[l].cols; i++) {
                    assert_true(block->bias[l][i] == kn_tensor_get(&biases[l], (size_t)i));
                }
            }
            assert_int_equal(!block->q_norm, !layer->q_norm.data);
            for (int i = 0; i < block->shape.hidden; i++) {
                assert_true(block->norm1[i] == kn_tensor_get(&layer->attention_norm, (size_t)i));
                assert_true(block->norm2[i] == kn_tensor_get(&layer->ffn_norm, (size_t)i));
            }
            assert_int_equal(qz_transform_tied(transform), rt_model_get_config(model)->tied_embeddings);
            qz_block_free(block);
            qz_transform_close(transform);
        }
        rt_model_close(model);
    }
}

static void test_rotation_depends_on_the_seed_alone(void **state) {
    (void)state;
    rt_model *model = open_family("qwen2-tied");
    qz_transform *first = open_or_fail(model, QZ_BASE_QUAROT, 1), *again = open_or_fail(model, QZ_BASE_QUAROT, 1),
                 *other = open_or_fail(model, QZ_BASE_QUAROT, 2);
    float rows[3][3 * 48];
    qz_transform_embedding(first, 5, 3, rows[0]);
    qz_transform_embedding(again, 5, 3, rows[1]);
    qz_transform_embedding(other, 5, 3, rows[2]);
    assert_memory_equal(rows[0], rows[1], sizeof rows[0]);
    assert_memory_not_equal(rows[0], rows[2], sizeof rows[0]);
    qz_transform_embedding(first, 7, 1, rows[1]); /* a row does not depend on its range */
    assert_memory_equal(rows[0] + 2 * 48, rows[1], 48 * sizeof(float));
    qz_block *a = block_or_fail(first, 0), *b = block_or_fail(again, 0);
    for (int l = 0; l < QZ_LINEARS; l++) {
        size_t bytes = (size_t)qz_linear_rows(&a->shape, (qz_linear_id)l) *
                       (size_t)qz_linear_cols(&a->shape, (qz_linear_id)l) * sizeof(float);
        assert_memory_equal(a->weight[l], b->weight[l], bytes);
    }
    for (int i = 0; i < 48; i++) assert_true(a->norm1[i] == 1 && a->norm2[i] == 1);
    assert_false(qz_transform_tied(first));
    qz_block_free(a);
    qz_block_free(b);
    qz_transform_close(first);
    qz_transform_close(again);
    qz_transform_close(other);
    rt_model_close(model);
}

static void test_specs_of_the_bases(void **state) {
    (void)state;
    rt_model *model = open_family("llama2-mha");
    for (int base = QZ_BASE_PLAIN; base <= QZ_BASE_QUAROT; base++) {
        qz_transform *transform = open_or_fail(model, (qz_base)base, 1);
        bool rotated = base == QZ_BASE_QUAROT;
        qz_spec spec = {.key_before_rope = rotated, .key_hadamard = !rotated, .heads_hadamard = !rotated};
        qz_transform_set_spec(transform, &spec);
        assert_int_equal(spec.key_before_rope, !rotated);
        assert_int_equal(spec.key_hadamard, rotated);
        assert_int_equal(spec.heads_hadamard, rotated);
        assert_int_equal(spec.ffn_hadamard, rotated);
        qz_shape shape = qz_transform_shape(transform);
        assert_true(shape.hidden == 60 && shape.ffn == 115 && shape.heads == 3 && shape.kv_heads == 3 &&
                    shape.head_dim == 20 && fabs(shape.norm_eps - 1e-5) < 1e-10);
        qz_transform_close(transform);
    }
    rt_model_close(model);
}

/* ---- Reordering ---- */

static void test_columns_are_sorted_by_importance(void **state) {
    (void)state;
    rt_model *model = open_family("llama-biases");
    qz_transform *transform = open_or_fail(model, QZ_BASE_ATOM, 1);
    qz_block *block = block_or_fail(transform, 0), *before = block_or_fail(transform, 0);
    const qz_shape *shape = &block->shape;
    double values[QZ_SITES][80];
    const double *importance[QZ_SITES] = {values[0], values[1], values[2], values[3]};
    int32_t down[80];
    bis_error error = {0};
    for (int site = 0; site < QZ_SITES; site++) {
        for (int i = 0; i < 80; i++) values[site][i] = random_below(20);
    }
    values[QZ_SITE_O][3] = NAN;
    assert_int_equal(qz_reorder_block(block, importance, &error), BIS_ERR_INVALID);
    assert_non_null(strstr(error.text, "channel 3 of the input of o"));
    assert_null(block->order[QZ_SITE_ATTN]);
    values[QZ_SITE_O][3] = 1;
    assert_int_equal(qz_reorder_block(block, importance, &error), BIS_OK);
    assert_null(block->order[QZ_SITE_DOWN]);
    for (int site = 0; site < QZ_SITES; site++) {
        int width = qz_site_width(shape, (qz_site)site), n = 0;
        int32_t order[80]; /* by counting: rising, equal ones in their own order */
        for (int value = 0; value < 20; value++) {
            for (int i = 0; i < width; i++) {
                if (values[site][i] == value) order[n++] = i;
            }
        }
        assert_int_equal(n, width);
        if (site == QZ_SITE_DOWN) memcpy(down, order, sizeof down);
        else assert_memory_equal(block->order[site], order, (size_t)width * sizeof *order);
        for (int l = 0; l < QZ_LINEARS; l++) {
            if (qz_site_of((qz_linear_id)l) != (qz_site)site || l == QZ_GATE || l == QZ_UP) continue;
            for (int i = 0; i < qz_linear_rows(shape, (qz_linear_id)l) * width; i++) {
                assert_true(block->weight[l][i] == before->weight[l][i / width * width + order[i % width]]);
            }
        }
    }
    for (int l = QZ_GATE; l <= QZ_UP; l++) {
        for (int i = 0; i < shape->ffn * shape->hidden; i++) {
            int row = down[i / shape->hidden], col = block->order[QZ_SITE_FFN][i % shape->hidden];
            assert_true(block->weight[l][i] == before->weight[l][row * shape->hidden + col]);
        }
        for (int i = 0; i < shape->ffn; i++) assert_true(block->bias[l][i] == before->bias[l][down[i]]);
    }
    assert_int_equal(qz_reorder_block(block, importance, &error), BIS_ERR_INVALID); /* orders do not add up */
    qz_block_free(block);
    qz_block_free(before);
    qz_transform_close(transform);
    rt_model_close(model);
}

/* ---- Failures ---- */

static void poke(kn_tensor tensor, size_t index, float value) {
    memcpy((char *)(uintptr_t)tensor.data + index * sizeof value, &value, sizeof value);
}

static void test_weights_that_are_not_numbers_are_refused(void **state) {
    (void)state;
    rt_model_config config = small_config("qwen2", 64);
    config.qkv_bias = config.qk_norm = true;
    config.layers = 2;
    rt_model *model = random_model(&config);
    const rt_layer *layer = rt_model_layer(model, 1);
    const struct {
        kn_tensor tensor;
        size_t at;
        const char *text;
    } cases[] = {
        {layer->q, 5, "layer 1, tensor 'self_attn.q_proj.weight': element [0, 5]"},
        {layer->down, 64 * 7 + 2, "layer 1, tensor 'mlp.down_proj.weight': element [7, 2]"},
        {layer->v_bias, 3, "layer 1, tensor 'self_attn.v_proj.bias': element [0, 3]"},
        {layer->ffn_norm, 31, "layer 1, tensor 'post_attention_layernorm.weight': element [0, 31]"},
        {layer->k_norm, 1, "layer 1, tensor 'self_attn.k_norm.weight': element [0, 1]"},
        {rt_model_embedding(model), 32 * 49 + 31, "tensor 'embed_tokens.weight': element [49, 31]"},
        {rt_model_head(model), 33, "tensor 'lm_head.weight': element [1, 1]"},
        {rt_model_final_norm(model), 0, "tensor 'norm.weight': element [0, 0]"},
    };
    static const float values[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float kept = kn_tensor_get(&cases[i].tensor, cases[i].at);
        poke(cases[i].tensor, cases[i].at, values[i % 3]);
        for (int base = QZ_BASE_PLAIN; base <= QZ_BASE_QUAROT; base++) {
            qz_transform *transform = NULL;
            qz_block *block = NULL;
            bis_error error = {0};
            bis_status status = qz_transform_open(model, (qz_base)base, 1, &transform, &error);
            if (!status) {
                assert_int_equal(qz_transform_block(transform, 0, &block, &error), BIS_OK);
                qz_block_free(block);
                block = NULL;
                status = qz_transform_block(transform, 1, &block, &error);
            }
            assert_int_equal(status, BIS_ERR_INVALID);
            if (!strstr(error.text, cases[i].text)) fail_msg("'%s' lacks '%s'", error.text, cases[i].text);
            assert_null(block);
            qz_transform_close(transform);
        }
        poke(cases[i].tensor, cases[i].at, kept);
    }
    rt_model_close(model);
}

static bis_status transform_all(const rt_model *model, qz_base base, bis_error *error) {
    qz_transform *transform = NULL;
    qz_block *block = NULL;
    static const double importance[80];
    const double *const sites[QZ_SITES] = {importance, importance, importance, importance};
    bis_status status = qz_transform_open(model, base, 1, &transform, error);
    if (!status) status = qz_transform_block(transform, 0, &block, error);
    if (!status) status = qz_reorder_block(block, sites, error);
    qz_block_free(block);
    qz_transform_close(transform);
    return status;
}

static void test_failing_allocations_are_reported(void **state) {
    (void)state;
    rt_model *model = open_family("llama-biases");
    for (int base = QZ_BASE_PLAIN; base <= QZ_BASE_QUAROT; base++) {
        int failures = 0;
        for (bis_status status = BIS_ERR_NOMEM; status; failures++) {
            bis_error error = {0};
            bis_alloc_fail_after(failures);
            status = transform_all(model, (qz_base)base, &error);
            bis_alloc_fail_after(-1);
            assert_true(status == BIS_OK || (status == BIS_ERR_NOMEM && strlen(error.text) > 10));
        }
        assert_true(failures > 15);
    }
    rt_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families_keep_their_logits),
        cmocka_unit_test(test_real_ffn_sizes_keep_the_logits),
        cmocka_unit_test(test_plain_weights_are_the_stored_ones),
        cmocka_unit_test(test_rotation_depends_on_the_seed_alone),
        cmocka_unit_test(test_specs_of_the_bases),
        cmocka_unit_test(test_columns_are_sorted_by_importance),
        cmocka_unit_test(test_weights_that_are_not_numbers_are_refused),
        cmocka_unit_test(test_failing_allocations_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
