/* The simulated block: the golden models' logits as the runtime computes them; prompts; every quantizer equal to
 * kernels/quant.h; and whole quantized blocks against a plain computation that encodes and decodes. */
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
#include "quantizer/fake.h"
#include "quantizer/simulate.h"
#include "runtime/forward.h"
#include "runtime/kv_pages.h"
#include "runtime/rope.h"

enum { CONTEXT = 64, GOLDEN_TOKENS = 24, PROMPT = 7 };

static uint64_t random_state = 1;

static uint64_t random_bits(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return random_state >> 33;
}

static int random_below(int n) { return (int)(random_bits() % (uint64_t)n); }
static float random_float(void) { return ((float)random_bits() / 0x1p30f - 1); }

static void fill(float *x, size_t count, float size, float middle) {
    for (size_t i = 0; i < count; i++) x[i] = middle + size * random_float();
}

static void *allocate(size_t bytes) {
    void *memory = calloc(1, bytes + 1);
    assert_non_null(memory);
    return memory;
}

static float *allocate_floats(size_t count) { return allocate(count * sizeof(float)); }

/* The largest difference, relative to the largest number of b. A NaN counts. */
static double relative_difference(const float *a, const float *b, size_t count) {
    double largest = 0, size = 0;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs((double)a[i] - b[i]);
        if (!(difference <= largest)) largest = difference;
        size = fmax(size, fabs((double)b[i]));
    }
    return largest / size;
}

/* ---- Golden models --------------------------------------------------------------------------- */

static void widen(const kn_tensor *tensor, float *out) {
    if (!out) return;
    for (size_t i = 0; i < (size_t)tensor->rows * (size_t)tensor->cols; i++) out[i] = kn_tensor_get(tensor, i);
}

static qz_block *block_of(const rt_model *model, int index) {
    const rt_model_config *c = rt_model_get_config(model);
    const rt_layer *layer = rt_model_layer(model, index);
    qz_shape shape = {c->hidden, c->ffn, c->heads, c->kv_heads, c->head_dim, c->norm_eps};
    qz_block *block;
    bis_error error = {0};
    if (qz_block_alloc(&shape, layer->q_bias.data != NULL, layer->o_bias.data != NULL, layer->gate_bias.data != NULL,
                       layer->q_norm.data != NULL, &block, &error))
        fail_msg("%s", error.text);
    const kn_tensor *const weights[] = {&layer->q,    &layer->k,  &layer->v,   &layer->o,
                                        &layer->gate, &layer->up, &layer->down};
    const kn_tensor *const biases[] = {&layer->q_bias,    &layer->k_bias,  &layer->v_bias,   &layer->o_bias,
                                       &layer->gate_bias, &layer->up_bias, &layer->down_bias};
    for (int i = 0; i < QZ_LINEARS; i++) {
        widen(weights[i], block->weight[i]);
        widen(biases[i], block->bias[i]);
    }
    widen(&layer->attention_norm, block->norm1);
    widen(&layer->ffn_norm, block->norm2);
    widen(&layer->q_norm, block->q_norm);
    widen(&layer->k_norm, block->k_norm);
    return block;
}

typedef struct golden {
    rt_model *model;
    const rt_model_config *config;
    float *rope_table;
    float *x; /* [GOLDEN_TOKENS, hidden]: the embedded tokens */
    int32_t tokens[GOLDEN_TOKENS];
    qz_spec spec;
} golden;

static golden open_golden(const char *family) {
    golden g = {0};
    char folder[256];
    bis_error error = {0};
    snprintf(folder, sizeof folder, "tests/golden/models/%s", family);
    if (rt_model_open(folder, &g.model, &error)) fail_msg("%s", error.text);
    g.config = rt_model_get_config(g.model);
    g.rope_table = allocate_floats((size_t)CONTEXT * (size_t)g.config->head_dim);
    rt_rope_fill_table(&g.config->rope, g.config->head_dim, CONTEXT, g.rope_table);
    g.x = allocate_floats((size_t)GOLDEN_TOKENS * (size_t)g.config->hidden);
    kn_tensor embedding = rt_model_embedding(g.model);
    for (int t = 0; t < GOLDEN_TOKENS; t++) {
        g.tokens[t] = random_below(g.config->vocab);
        for (int i = 0; i < g.config->hidden; i++) {
            size_t from = (size_t)g.tokens[t] * (size_t)g.config->hidden + (size_t)i;
            g.x[t * g.config->hidden + i] = kn_tensor_get(&embedding, from);
        }
    }
    g.spec = (qz_spec){.weight_bits = 16, .act_bits = 16, .kv_bits = 16, .group = 32};
    return g;
}

static void close_golden(golden *g) {
    rt_model_close(g->model);
    free(g->rope_table);
    free(g->x);
}

static void head_logits(const golden *g, const float *x, float *logits) {
    kn_tensor norm = rt_model_final_norm(g->model), head = rt_model_head(g->model);
    int hidden = g->config->hidden, vocab = g->config->vocab;
    for (int t = 0; t < GOLDEN_TOKENS; t++) {
        double squares = 0;
        for (int i = 0; i < hidden; i++) squares += (double)x[t * hidden + i] * x[t * hidden + i];
        double inverse = 1 / sqrt(squares / hidden + g->config->norm_eps);
        for (int n = 0; n < vocab; n++) {
            double sum = 0;
            for (int i = 0; i < hidden; i++) {
                sum += x[t * hidden + i] * inverse * kn_tensor_get(&norm, (size_t)i) *
                       kn_tensor_get(&head, (size_t)n * (size_t)hidden + (size_t)i);
            }
            logits[t * vocab + n] = (float)sum;
        }
    }
}

static void runtime_logits(const golden *g, float *logits) {
    kn_backend *backend = NULL;
    rt_forward *forward = NULL;
    rt_kv_pages *pages = NULL;
    int32_t numbers[8] = {0}, positions[GOLDEN_TOKENS];
    const int32_t *tables[GOLDEN_TOKENS];
    bis_error error = {0};
    if (kn_cpu_open(1, "auto", CONTEXT, 0, &backend, &error) ||
        rt_forward_open(g->model, backend, GOLDEN_TOKENS, GOLDEN_TOKENS, CONTEXT, &forward, &error) ||
        rt_kv_pages_open(g->config, 32, (rt_kv_count){rt_kv_pages_for(CONTEXT), 0}, &pages, &error))
        fail_msg("%s", error.text);
    assert_true(rt_kv_pages_take(pages, (rt_kv_count){rt_kv_pages_for(GOLDEN_TOKENS), 0}, numbers));
    for (int i = 0; i < GOLDEN_TOKENS; i++) {
        positions[i] = i;
        tables[i] = numbers;
    }
    rt_batch batch = {.tokens = g->tokens, .logit_rows = positions, .logit_count = GOLDEN_TOKENS};
    batch.rows.count = GOLDEN_TOKENS;
    batch.rows.position = positions;
    batch.rows.pages = tables;
    const float *result = rt_forward_run(forward, rt_kv_pages_cache(pages), &batch);
    memcpy(logits, result, (size_t)GOLDEN_TOKENS * (size_t)g->config->vocab * sizeof *logits);
    rt_forward_close(forward);
    rt_kv_pages_close(pages);
    backend->ops->close(backend);
}

static void test_golden_models_give_the_runtimes_logits(void **state) {
    (void)state;
    static const char *const FAMILIES[] = {
        "llama2-mha", "llama3-gqa-rope-f16", "llama-linear-rope-sharded", "llama-biases",
        "qwen2-tied", "qwen3-head-dim-bf16", "mistral-no-prefix",
    };
    for (size_t f = 0; f < sizeof FAMILIES / sizeof *FAMILIES; f++) {
        golden g = open_golden(FAMILIES[f]);
        size_t count = (size_t)GOLDEN_TOKENS * (size_t)g.config->vocab;
        float *expected = allocate_floats(count), *got = allocate_floats(count);
        bis_error error = {0};
        runtime_logits(&g, expected);
        for (int layer = 0; layer < g.config->layers; layer++) {
            qz_block *block = block_of(g.model, layer);
            qz_pass pass = {.block = block, .spec = &g.spec, .rope_table = g.rope_table};
            if (qz_simulate(&pass, g.x, 1, GOLDEN_TOKENS, g.x, &error)) fail_msg("%s", error.text);
            qz_block_free(block);
        }
        head_logits(&g, g.x, got);
        double difference = relative_difference(got, expected, count);
        if (!(difference < 1e-5)) fail_msg("%s: logits differ by %g", FAMILIES[f], difference);
        free(expected);
        free(got);
        close_golden(&g);
    }
}

/* Rows after a prompt's keys and values give what they give inside one sequence, also with Hadamards (which change the
 * keys' basis, and here also what the o and down linears read: both sides alike). */
static void check_prompt(const char *family, bool rotated) {
    golden g = open_golden(family);
    int hidden = g.config->hidden, keys = g.config->kv_heads * g.config->head_dim;
    g.spec.key_hadamard = g.spec.heads_hadamard = g.spec.ffn_hadamard = rotated;
    g.spec.key_before_rope = !rotated;
    size_t count = (size_t)GOLDEN_TOKENS * (size_t)hidden;
    float *whole = allocate_floats(count), *parts = allocate_floats(count);
    float *k = allocate_floats((size_t)PROMPT * (size_t)keys), *v = allocate_floats((size_t)PROMPT * (size_t)keys);
    bis_error error = {0};
    memcpy(whole, g.x, count * sizeof *whole);
    memcpy(parts, g.x, count * sizeof *parts);
    for (int layer = 0; layer < g.config->layers; layer++) {
        qz_block *block = block_of(g.model, layer);
        qz_pass pass = {.block = block, .spec = &g.spec, .rope_table = g.rope_table};
        if (qz_simulate(&pass, whole, 1, GOLDEN_TOKENS, whole, &error) ||
            qz_simulate_prompt(NULL, block, &g.spec, g.rope_table, parts, PROMPT, k, v, parts, &error))
            fail_msg("%s", error.text);
        pass.prompt = (qz_prompt){PROMPT, k, v};
        float *rest = parts + PROMPT * hidden;
        if (qz_simulate(&pass, rest, 1, GOLDEN_TOKENS - PROMPT, rest, &error)) fail_msg("%s", error.text);
        qz_block_free(block);
    }
    double difference = relative_difference(parts, whole, count);
    if (!(difference < 1e-5)) fail_msg("%s: rows after a prompt differ by %g", family, difference);
    free(whole);
    free(parts);
    free(k);
    free(v);
    close_golden(&g);
}

static void test_prompt_is_the_sequences_beginning(void **state) {
    (void)state;
    check_prompt("llama3-gqa-rope-f16", false);
    check_prompt("llama3-gqa-rope-f16", true);
    check_prompt("qwen2-tied", false);
    check_prompt("qwen3-head-dim-bf16", true);
}

/* ---- Quantizers ------------------------------------------------------------------------------ */

static const int BITS[] = {2, 3, 4, 8};

static const qz_loops *loops_variant(int i) {
    switch (i) {
    case 0: return qz_loops_baseline();
    case 1: return qz_loops_avx2();
    default: return qz_loops_avx512();
    }
}

/* Numbers with groups of zeros, of one sign, on exact halves of a step, very small and very large ones. */
static void fill_awkward(float *x, int count) {
    float size = random_below(4) ? 1 : random_below(2) ? 1e-7f : 3e4f, middle = (float)(random_below(3) - 1) * size;
    int kind = random_below(5);
    for (int i = 0; i < count; i++) {
        x[i] = size * random_float() + (random_below(2) ? middle : 0);
        if (kind == 0) x[i] = 0;
        if (kind == 1) x[i] = (float)(random_below(15) - 7) / 2;
        if (kind == 2) x[i] = fabsf(x[i]);
    }
}

static void check_act(const qz_loops *loops, int bits, int cols, int outliers) {
    float x[300] = {0}, expected[300], got[300], scales[16];
    int8_t codes[300];
    kn_act_format format = {bits, 32, outliers, 1 - 0.3f * fabsf(random_float())};
    fill_awkward(x, cols);
    kn_act_encode(&format, x, cols, codes, scales);
    int low = cols - outliers, groups = (low + 31) / 32;
    for (int c = 0; c < cols; c++) expected[c] = (float)codes[c] * scales[c < low ? c / 32 : groups];
    qz_fake_act act = {loops, kn_bits_find(bits), 32, outliers, format.clip, false};
    qz_fake_act_row(&act, x, cols, got);
    for (int c = 0; c < cols; c++) assert_true(got[c] == expected[c]);
}

static void check_kv(const qz_loops *loops, int bits, int width) {
    float x[300], expected[300], got[300];
    uint8_t stream[300];
    uint16_t scale, minimum;
    fill_awkward(x, width);
    kn_kv_encode(bits, x, width, stream, &scale, &minimum);
    kn_kv_decode(bits, stream, scale, minimum, width, expected);
    qz_fake_kv kv = {loops, kn_bits_find(bits), false};
    qz_fake_kv_head(&kv, x, width, got);
    for (int c = 0; c < width; c++) assert_true(got[c] == expected[c]);
}

static float sigmoid(float x) { return 1 / (1 + (float)exp(-x)); }

static void check_weight(const qz_loops *loops, kn_weight_format format, int cols, bool clipped) {
    float w[300] = {0}, got[300], scales[16], high[16], low[16];
    uint8_t zeros[16];
    fill_awkward(w, cols);
    fill(high, 16, 4, 2);
    fill(low, 16, 4, 2);
    qz_fake_weight weight = {loops, kn_bits_find(format.bits), format, false};
    qz_fake_weight_row(&weight, w, cols, clipped ? high : NULL, clipped ? low : NULL, got, scales, zeros);
    int columns = cols - format.outliers, zero;
    for (int first = 0; first < cols;) {
        bool outlier = first >= columns;
        kn_weight_format part = format;
        if (outlier) part.bits = 8;
        part.symmetric = outlier || format.symmetric;
        int group = first / format.group, end = outlier ? cols : (group + 1) * format.group;
        if (!outlier && end > columns) end = columns;
        float least = 0, most = 0, scale;
        for (int c = first; c < end; c++) {
            least = fminf(least, w[c]);
            most = fmaxf(most, w[c]);
        }
        if (clipped && !outlier) {
            least *= sigmoid(low[group]);
            most *= sigmoid(high[group]);
        }
        kn_weight_scale(&part, least, most, &scale, &zero);
        if (!outlier) assert_true(scales[group] == scale && zeros[group] == zero);
        for (; first < end; first++) {
            int code = kn_weight_encode(&part, w[first], scale, zero);
            assert_true(got[first] == (float)(code - zero) * scale);
        }
    }
}

static void test_quantizers_have_the_kernels_values(void **state) {
    (void)state;
    for (int v = 0; v < 3; v++) {
        const qz_loops *loops = loops_variant(v);
        if (!loops) {
            print_message("not checked, this processor does not have it: %s\n", v == 1 ? "avx2" : "avx512");
            continue;
        }
        for (int i = 0; i < 400; i++) {
            int bits = BITS[1 + random_below(3)], outliers = random_below(2) * (1 + random_below(20));
            check_act(loops, bits, 1 + outliers + random_below(200), outliers);
            check_kv(loops, BITS[random_below(4)], 1 + random_below(130));
            kn_weight_format format = {bits, 32, random_below(2), outliers};
            check_weight(loops, format, 1 + outliers + random_below(200), random_below(2));
        }
    }
}

/* ---- Whole blocks ---------------------------------------------------------------------------- */

typedef struct plain_case {
    qz_block *block;
    qz_spec spec;
    float act_clip[QZ_SITES];
    float *rope_table, *prompt_k, *prompt_v;
    int prompt, tokens;
} plain_case;

static const qz_shape SHAPE = {48, 80, 4, 2, 12, 1e-5};

static void make_order(int32_t **order, int width) {
    int32_t *made = bis_malloc((size_t)width * sizeof *made);
    assert_non_null(made);
    for (int i = 0; i < width; i++) made[i] = i;
    for (int i = width - 1; i > 0; i--) {
        int j = random_below(i + 1);
        int32_t kept = made[i];
        made[i] = made[j];
        made[j] = kept;
    }
    *order = made;
}

static plain_case make_case(qz_spec spec, bool qwen3, bool ordered) {
    plain_case c = {.spec = spec, .prompt = 5, .tokens = 9};
    bis_error error = {0};
    if (qz_block_alloc(&SHAPE, true, qwen3, qwen3, qwen3, &c.block, &error)) fail_msg("%s", error.text);
    for (int i = 0; i < QZ_LINEARS; i++) {
        qz_linear_id linear = (qz_linear_id)i;
        int rows = qz_linear_rows(&SHAPE, linear);
        fill(c.block->weight[i], (size_t)rows * (size_t)qz_linear_cols(&SHAPE, linear), 0.3f, 0.01f);
        if (c.block->bias[i]) fill(c.block->bias[i], (size_t)rows, 0.3f, 0);
    }
    fill(c.block->norm1, (size_t)SHAPE.hidden, 0.5f, 1);
    fill(c.block->norm2, (size_t)SHAPE.hidden, 0.5f, 1);
    if (qwen3) {
        fill(c.block->q_norm, (size_t)SHAPE.head_dim, 0.5f, 1);
        fill(c.block->k_norm, (size_t)SHAPE.head_dim, 0.5f, 1);
    }
    for (int i = 0; i < QZ_SITE_DOWN && ordered; i++) make_order(&c.block->order[i], qz_site_width(&SHAPE, (qz_site)i));
    for (int i = 0; i < QZ_SITES; i++) c.act_clip[i] = 0.8f + 0.05f * (float)i;
    int keys = c.prompt * SHAPE.kv_heads * SHAPE.head_dim;
    c.rope_table = allocate_floats((size_t)(c.prompt + c.tokens) * (size_t)SHAPE.head_dim);
    rt_rope_config rope = {.theta = 100};
    rt_rope_fill_table(&rope, SHAPE.head_dim, c.prompt + c.tokens, c.rope_table);
    c.prompt_k = allocate_floats((size_t)keys);
    c.prompt_v = allocate_floats((size_t)keys);
    fill(c.prompt_k, (size_t)keys, 2, 0);
    fill(c.prompt_v, (size_t)keys, 2, 0);
    return c;
}

static void free_case(plain_case *c) {
    qz_block_free(c->block);
    free(c->rope_table);
    free(c->prompt_k);
    free(c->prompt_v);
}

static void plain_site(const plain_case *c, qz_site site, float *x) {
    int width = qz_site_width(&SHAPE, site), low = width - c->spec.outliers[site], group = c->spec.group;
    const int32_t *order = c->block->order[site];
    float ordered[256] = {0}, scales[16];
    int8_t codes[256];
    for (int i = 0; i < width; i++) ordered[i] = x[order ? order[i] : i];
    kn_act_format format = {c->spec.act_bits, group, c->spec.outliers[site], c->act_clip[site]};
    memcpy(x, ordered, (size_t)width * sizeof *x);
    if (c->spec.act_bits == 16) return;
    kn_act_encode(&format, ordered, width, codes, scales);
    for (int i = 0; i < width; i++) x[i] = (float)codes[i] * scales[i < low ? i / group : (low + group - 1) / group];
}

static void plain_norm(const float *x, const float *gain, int width, float *out) {
    double squares = 0;
    for (int i = 0; i < width; i++) squares += (double)x[i] * x[i];
    double inverse = 1 / sqrt(squares / width + SHAPE.norm_eps);
    for (int i = 0; i < width; i++) out[i] = (float)(x[i] * inverse * gain[i]);
}

/* The weights are rounded already. */
static void plain_linear(const plain_case *c, qz_linear_id linear, const float *x, float *y) {
    int rows = qz_linear_rows(&SHAPE, linear), cols = qz_linear_cols(&SHAPE, linear);
    for (int n = 0; n < rows; n++) {
        double sum = c->block->bias[linear] ? c->block->bias[linear][n] : 0;
        for (int i = 0; i < cols; i++) sum += (double)x[i] * c->block->weight[linear][n * cols + i];
        y[n] = (float)sum;
    }
}

static void plain_rotate(const plain_case *c, int position, float *x) {
    int half = SHAPE.head_dim / 2;
    const float *table = c->rope_table + position * SHAPE.head_dim;
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * table[i] - b * table[half + i];
        x[i + half] = b * table[i] + a * table[half + i];
    }
}

static void plain_hadamard(bool wanted, int size, int stride, float *x) {
    float vector[256] = {0}, scratch[256];
    kn_hadamard *hadamard;
    if (!wanted) return;
    assert_int_equal(kn_hadamard_open(size, &hadamard, NULL), BIS_OK);
    for (int at = 0; at < stride; at++) {
        for (int i = 0; i < size; i++) vector[i] = x[at + i * stride];
        kn_hadamard_apply(hadamard, vector, scratch);
        for (int i = 0; i < size; i++) x[at + i * stride] = vector[i];
    }
    kn_hadamard_close(hadamard);
}

static void plain_kv(const plain_case *c, float *x) {
    uint8_t stream[64];
    uint16_t scale, minimum;
    if (c->spec.kv_bits == 16) return;
    kn_kv_encode(c->spec.kv_bits, x, SHAPE.head_dim, stream, &scale, &minimum);
    kn_kv_decode(c->spec.kv_bits, stream, scale, minimum, SHAPE.head_dim, x);
}

static void plain_heads(const plain_case *c, int position, const float *gain, int heads, bool key, float *x) {
    for (int h = 0; h < heads; h++) {
        float *head = x + h * SHAPE.head_dim;
        if (gain) plain_norm(head, gain, SHAPE.head_dim, head);
        if (key && c->spec.key_before_rope) plain_kv(c, head);
        plain_rotate(c, position, head);
        plain_hadamard(c->spec.key_hadamard, SHAPE.head_dim, 1, head);
        if (key && !c->spec.key_before_rope) plain_kv(c, head);
    }
}

/* One query head against the first `count` of keys and values [count, kv_heads, head_dim]. */
static void plain_attention(const float *q, const float *k, const float *v, int count, float *out) {
    double weights[32], sum = 0;
    int width = SHAPE.head_dim, stride = SHAPE.kv_heads * width;
    for (int t = 0; t < count; t++) {
        double score = 0;
        for (int i = 0; i < width; i++) score += (double)q[i] * k[t * stride + i];
        sum += weights[t] = exp(score / sqrt(width));
    }
    for (int i = 0; i < width; i++) {
        double value = 0;
        for (int t = 0; t < count; t++) value += weights[t] / sum * v[t * stride + i];
        out[i] = (float)value;
    }
}

/* A token's row after the block; k and v hold the prompt's and grow. */
static void plain_row(const plain_case *c, int position, float *x, float *k, float *v) {
    float a[256] = {0}, q[256] = {0}, made[256] = {0}, up[256] = {0};
    const qz_block *block = c->block;
    int width = SHAPE.head_dim, stride = SHAPE.kv_heads * width;
    float *own_k = k + position * stride, *own_v = v + position * stride;
    plain_norm(x, block->norm1, SHAPE.hidden, a);
    plain_site(c, QZ_SITE_ATTN, a);
    plain_linear(c, QZ_Q, a, q);
    plain_linear(c, QZ_K, a, own_k);
    plain_linear(c, QZ_V, a, own_v);
    plain_heads(c, position, block->q_norm, SHAPE.heads, false, q);
    plain_heads(c, position, block->k_norm, SHAPE.kv_heads, true, own_k);
    for (int h = 0; h < SHAPE.kv_heads; h++) plain_kv(c, own_v + h * width);
    for (int h = 0; h < SHAPE.heads; h++) {
        int from = h / (SHAPE.heads / SHAPE.kv_heads) * width;
        plain_attention(q + h * width, k + from, v + from, position + 1, made + h * width);
    }
    plain_hadamard(c->spec.heads_hadamard, SHAPE.heads, width, made);
    plain_site(c, QZ_SITE_O, made);
    plain_linear(c, QZ_O, made, a);
    for (int i = 0; i < SHAPE.hidden; i++) x[i] += a[i];
    plain_norm(x, block->norm2, SHAPE.hidden, a);
    plain_site(c, QZ_SITE_FFN, a);
    plain_linear(c, QZ_GATE, a, made);
    plain_linear(c, QZ_UP, a, up);
    for (int i = 0; i < SHAPE.ffn; i++) made[i] = (float)(made[i] / (1 + exp(-made[i])) * up[i]);
    plain_hadamard(c->spec.ffn_hadamard, SHAPE.ffn, 1, made);
    plain_site(c, QZ_SITE_DOWN, made);
    plain_linear(c, QZ_DOWN, made, a);
    for (int i = 0; i < SHAPE.hidden; i++) x[i] += a[i];
}

static void round_weights(const plain_case *c) {
    for (int i = 0; i < QZ_LINEARS && c->spec.weight_bits != 16; i++) {
        int rows = qz_linear_rows(&SHAPE, (qz_linear_id)i), cols = qz_linear_cols(&SHAPE, (qz_linear_id)i);
        qz_fake_weight weight = {.loops = qz_loops_baseline(), .bits = kn_bits_find(c->spec.weight_bits)};
        qz_fake_weight_format(&c->spec, qz_site_of((qz_linear_id)i), &weight.format);
        for (int r = 0; r < rows; r++) {
            float *row = c->block->weight[i] + r * cols;
            qz_fake_weight_row(&weight, row, cols, NULL, NULL, row, NULL, NULL);
        }
    }
}

static void check_case(qz_spec spec, bool qwen3, bool ordered) {
    enum { SAMPLES = 2 };
    plain_case c = make_case(spec, qwen3, ordered);
    int size = c.tokens * SHAPE.hidden, keys = SHAPE.kv_heads * SHAPE.head_dim;
    float *x = allocate_floats((size_t)SAMPLES * (size_t)size), *y = allocate_floats((size_t)SAMPLES * (size_t)size);
    float *k = allocate_floats((size_t)(c.prompt + c.tokens) * (size_t)keys);
    float *v = allocate_floats((size_t)(c.prompt + c.tokens) * (size_t)keys);
    bis_error error = {0};
    fill(x, (size_t)SAMPLES * (size_t)size, 2, 0);
    qz_pass pass = {.block = c.block, .spec = &c.spec, .mode = QZ_QUANTIZED, .act_clip = c.act_clip};
    pass.rope_table = c.rope_table;
    pass.prompt = (qz_prompt){c.prompt, c.prompt_k, c.prompt_v};
    if (qz_simulate(&pass, x, SAMPLES, c.tokens, y, &error)) fail_msg("%s", error.text);
    round_weights(&c);
    for (int s = 0; s < SAMPLES; s++) {
        memcpy(k, c.prompt_k, (size_t)c.prompt * (size_t)keys * sizeof *k);
        memcpy(v, c.prompt_v, (size_t)c.prompt * (size_t)keys * sizeof *v);
        for (int t = 0; t < c.tokens; t++) plain_row(&c, c.prompt + t, x + s * size + t * SHAPE.hidden, k, v);
    }
    double difference = relative_difference(y, x, (size_t)SAMPLES * (size_t)size);
    if (!(difference < 1e-5)) fail_msg("a block differs from the plain computation by %g", difference);
    free(x);
    free(y);
    free(k);
    free(v);
    free_case(&c);
}

static void test_quantized_blocks_equal_a_plain_computation(void **state) {
    (void)state;
    qz_spec plain = {.weight_bits = 4, .act_bits = 8, .kv_bits = 4, .group = 32, .weight_symmetric = false};
    check_case(plain, false, false);
    qz_spec atom = {.weight_bits = 3, .act_bits = 4, .kv_bits = 3, .group = 32, .weight_symmetric = true};
    atom.key_before_rope = true;
    for (int i = 0; i < QZ_SITES; i++) atom.outliers[i] = 3 + i;
    check_case(atom, false, true);
    check_case(atom, true, true);
    qz_spec quarot = {.weight_bits = 3, .act_bits = 3, .kv_bits = 2, .group = 32, .weight_symmetric = true};
    quarot.key_hadamard = quarot.heads_hadamard = quarot.ffn_hadamard = true;
    check_case(quarot, true, false);
    quarot.act_bits = quarot.kv_bits = 16;
    check_case(quarot, false, false);
}

typedef struct seen {
    float *x[QZ_SITES];
    int calls[QZ_SITES], rows[QZ_SITES];
} seen;

static void keep_seen(void *user, qz_site site, const qz_real *x, int rows, int width) {
    seen *s = user;
    assert_int_equal(width, qz_site_width(&SHAPE, site));
    memcpy(s->x[site] + (size_t)s->rows[site] * (size_t)width, x, (size_t)rows * (size_t)width * sizeof *x);
    s->calls[site]++;
    s->rows[site] += rows;
}

/* Observers see each site once a sample, and the numbers that the linears multiply. */
static void test_observers_see_what_linears_read(void **state) {
    (void)state;
    enum { SAMPLES = 3 };
    qz_spec spec = {.weight_bits = 16, .act_bits = 3, .kv_bits = 3, .group = 32, .weight_symmetric = true};
    plain_case c = make_case(spec, false, true);
    int rows = SAMPLES * c.tokens;
    float *x = allocate_floats((size_t)rows * (size_t)SHAPE.hidden),
          *y = allocate_floats((size_t)rows * (size_t)SHAPE.hidden);
    seen s = {0};
    for (int i = 0; i < QZ_SITES; i++)
        s.x[i] = allocate_floats((size_t)rows * (size_t)qz_site_width(&SHAPE, (qz_site)i));
    fill(x, (size_t)rows * (size_t)SHAPE.hidden, 2, 0);
    qz_pass pass = {.block = c.block, .spec = &c.spec, .mode = QZ_QUANTIZED, .act_clip = c.act_clip};
    pass.rope_table = c.rope_table;
    pass.observe = keep_seen;
    pass.observe_user = &s;
    assert_int_equal(qz_simulate(&pass, x, SAMPLES, c.tokens, y, NULL), BIS_OK);
    for (int i = 0; i < QZ_SITES; i++) {
        assert_int_equal(s.calls[i], SAMPLES);
        assert_int_equal(s.rows[i], rows);
    }
    for (int r = 0; r < rows; r++) {
        float a[256], out[256];
        plain_norm(x + r * SHAPE.hidden, c.block->norm1, SHAPE.hidden, a);
        plain_site(&c, QZ_SITE_ATTN, a);
        assert_true(relative_difference(s.x[QZ_SITE_ATTN] + r * SHAPE.hidden, a, (size_t)SHAPE.hidden) < 1e-6);
        plain_linear(&c, QZ_O, s.x[QZ_SITE_O] + r * 48, a);
        plain_linear(&c, QZ_DOWN, s.x[QZ_SITE_DOWN] + r * SHAPE.ffn, out);
        for (int i = 0; i < SHAPE.hidden; i++) out[i] += a[i] + x[r * SHAPE.hidden + i];
        assert_true(relative_difference(y + r * SHAPE.hidden, out, (size_t)SHAPE.hidden) < 1e-5);
    }
    for (int i = 0; i < QZ_SITES; i++) free(s.x[i]);
    free(x);
    free(y);
    free_case(&c);
}

static void test_bad_specs_are_refused(void **state) {
    (void)state;
    qz_spec good = {.weight_bits = 3, .act_bits = 3, .kv_bits = 3, .group = 32, .weight_symmetric = true};
    plain_case c = make_case(good, false, false);
    float x[48] = {0};
    bis_error error;
    qz_pass pass = {.block = c.block, .mode = QZ_QUANTIZED, .rope_table = c.rope_table};
    for (int i = 0; i < 5; i++) {
        qz_spec bad = good;
        if (i == 0) bad.weight_bits = 5;
        if (i == 1) bad.act_bits = 1;
        if (i == 2) bad.kv_bits = 0;
        if (i == 3) bad.group = 0;
        if (i == 4) bad.outliers[QZ_SITE_O] = 48;
        pass.spec = &bad;
        error.text[0] = 0;
        assert_int_equal(qz_simulate(&pass, x, 1, 1, x, &error), BIS_ERR_INVALID);
        assert_true(error.text[0] != 0);
    }
    free_case(&c);
}

static void test_allocation_failures_are_reported(void **state) {
    (void)state;
    qz_spec spec = {.weight_bits = 3, .act_bits = 3, .kv_bits = 3, .group = 32, .weight_symmetric = true};
    spec.key_hadamard = spec.heads_hadamard = spec.ffn_hadamard = true;
    plain_case c = make_case(spec, true, false);
    float *x = allocate_floats((size_t)c.tokens * (size_t)SHAPE.hidden),
          *y = allocate_floats((size_t)c.tokens * (size_t)SHAPE.hidden);
    qz_pass pass = {.block = c.block, .spec = &c.spec, .mode = QZ_QUANTIZED, .rope_table = c.rope_table};
    int failures = 0;
    for (;; failures++) {
        bis_alloc_fail_after(failures);
        bis_status status = qz_simulate(&pass, x, 1, c.tokens, y, NULL);
        bis_alloc_fail_after(-1);
        if (!status) break;
        assert_int_equal(status, BIS_ERR_NOMEM);
    }
    assert_true(failures >= 5);
    qz_block *block = NULL;
    for (failures = 0;; failures++) {
        bis_alloc_fail_after(failures);
        bis_status status = qz_block_alloc(&SHAPE, true, true, true, true, &block, NULL);
        bis_alloc_fail_after(-1);
        if (!status) break;
        assert_null(block);
    }
    assert_int_equal(failures, 1 + 2 * QZ_LINEARS + 4);
    qz_block_free(block);
    free(x);
    free(y);
    free_case(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_models_give_the_runtimes_logits),
        cmocka_unit_test(test_prompt_is_the_sequences_beginning),
        cmocka_unit_test(test_quantizers_have_the_kernels_values),
        cmocka_unit_test(test_quantized_blocks_equal_a_plain_computation),
        cmocka_unit_test(test_observers_see_what_linears_read),
        cmocka_unit_test(test_bad_specs_are_refused),
        cmocka_unit_test(test_allocation_failures_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
