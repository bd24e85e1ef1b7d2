/* The forward pass of quantized models against an independent one in double, written from the order of operations in
 * quantizer/block.h; and the same bits however the rows are cut into calls and mixed.
 *
 * The two cannot agree exactly: where a number lies within a rounding error of the border between two codes, float and
 * double choose different ones, and all that follows differs a little. That happens to few numbers, so the median of
 * the rows' relative errors is compared, with a bound that every mistake in the order of operations exceeds several
 * times: each mistake is made on purpose in the reference, and must be noticed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/hadamard.h"
#include "runtime/forward.h"
#include "runtime/kv_pages.h"
#include "tests/support/quantized_model.h"
#include "tests/support/random_data.h"
#include "tests/support/scratch.h"

enum { TOKENS = 41, CONTEXT = 64, PAGES_MAX = 16, WIDTH_MAX = 256 };

/* Wider where activations have 8 bits: borders are many there, and one number on the other side of one at an early
 * token moves more of them, until all is as far off as 8-bit rounding is from none. */
static const double bounds[] = {2e-3, 1e-2};

typedef enum mistake {
    NO_MISTAKE,
    KEY_ON_THE_OTHER_SIDE_OF_ROPE,
    NO_KEY_HADAMARD,
    NO_HEADS_HADAMARD,
    NO_FFN_HADAMARD,
    NATURAL_ORDER,
    NO_CLIP,
    OUTLIERS_LIKE_THE_REST,
    NO_SPAN,
    VALUES_NOT_QUANTIZED,
    MISTAKES
} mistake;

/* ---- the reference --------------------------------------------------------------------------- */

typedef struct reference {
    const qm_model *m;
    int kv_bits, span;
    mistake mistake;
    bool quarot, key_before_rope;
    double *x;                       /* [TOKENS, hidden] */
    double *q, *k, *v, *o;           /* [TOKENS, heads * head_dim] */
    kn_hadamard *head, *heads, *ffn; /* QuaRot */
} reference;

static void rmsnorm(const double *x, const double *weight, int width, double *out) {
    double sum = 0;
    for (int i = 0; i < width; i++) sum += x[i] * x[i];
    double scale = 1 / sqrt(sum / width + (double)1e-5f);
    for (int i = 0; i < width; i++) out[i] = x[i] * scale * weight[i];
}

static void multiply(const qm_linear *linear, const double *x, double *out) {
    for (int r = 0; r < linear->rows; r++) {
        double sum = linear->bias ? linear->bias[r] : 0;
        for (int c = 0; c < linear->cols; c++) sum += linear->w[(size_t)r * (size_t)linear->cols + (size_t)c] * x[c];
        out[r] = sum;
    }
}

/* x becomes the input that a site's linears read. */
static void make_input(const reference *r, const qm_layer *layer, int site, int width, double *x) {
    const qm_spec *spec = &r->m->spec;
    float ordered[WIDTH_MAX] = {0}, scales[WIDTH_MAX];
    int8_t codes[WIDTH_MAX];
    double natural[WIDTH_MAX] = {0};
    const int32_t *order = r->mistake == NATURAL_ORDER ? NULL : layer->order[site];
    memcpy(natural, x, (size_t)width * sizeof *x);
    for (int c = 0; c < width; c++) x[c] = natural[order ? order[c] : c];
    if (spec->activation_bits == 16) return;
    int outliers = r->mistake == OUTLIERS_LIKE_THE_REST ? 0 : spec->outliers[site];
    float clip = r->mistake == NO_CLIP ? 1 : layer->clip[site];
    kn_act_format format = {spec->activation_bits, spec->group, outliers, clip};
    for (int c = 0; c < width; c++) ordered[c] = (float)x[c];
    kn_act_encode(&format, ordered, width, codes, scales);
    int low = width - outliers, groups = (low + spec->group - 1) / spec->group;
    for (int c = 0; c < width; c++) x[c] = codes[c] * (double)scales[c < low ? c / spec->group : groups];
}

static void rope(double *x, int position, int head_dim) {
    int half = head_dim / 2;
    for (int i = 0; i < half; i++) {
        double angle = position * pow(10000, -2.0 * i / head_dim), a = x[i], b = x[half + i];
        x[i] = a * cos(angle) - b * sin(angle);
        x[half + i] = b * cos(angle) + a * sin(angle);
    }
}

/* x becomes what the cache gives back. */
static void store(const reference *r, int token, double *x) {
    int width = r->m->spec.head_dim, bits = r->kv_bits;
    float single[WIDTH_MAX] = {0};
    for (int i = 0; i < width; i++) single[i] = (float)x[i];
    if (bits < 16 && token >= (r->mistake == NO_SPAN ? 0 : r->span)) {
        uint8_t stream[WIDTH_MAX];
        uint16_t scale, minimum;
        kn_kv_encode(bits, single, width, stream, &scale, &minimum);
        kn_kv_decode(bits, stream, scale, minimum, width, single);
    } else if (bits != 32) {
        for (int i = 0; i < width; i++) single[i] = kn_f16_to_f32(kn_f32_to_f16(single[i]));
    }
    for (int i = 0; i < width; i++) x[i] = single[i];
}

/* x[0], x[stride], ... */
static void transform(const kn_hadamard *hadamard, int stride, double *x) {
    double vector[WIDTH_MAX] = {0}, scratch[WIDTH_MAX];
    int size = kn_hadamard_size(hadamard);
    for (int i = 0; i < size; i++) vector[i] = x[i * stride];
    kn_hadamard_apply_double(hadamard, vector, scratch);
    for (int i = 0; i < size; i++) x[i * stride] = vector[i];
}

static void keep_key(const reference *r, int token, double *k) {
    int width = r->m->spec.head_dim;
    bool before = r->kv_bits < 16 && r->key_before_rope;
    if (r->mistake == KEY_ON_THE_OTHER_SIDE_OF_ROPE) before = !before;
    bool rotated = r->quarot && r->mistake != NO_KEY_HADAMARD;
    if (before) store(r, token, k);
    rope(k, token, width);
    if (rotated) transform(r->head, 1, k);
    if (!before) store(r, token, k);
}

static void attend(const reference *r, int token) {
    const qm_spec *s = &r->m->spec;
    int width = s->head_dim, group = s->heads / s->kv_heads;
    size_t q_row = (size_t)s->heads * (size_t)width, kv_row = (size_t)s->kv_heads * (size_t)width;
    for (int h = 0; h < s->heads; h++) {
        double weights[TOKENS] = {0}, most = -INFINITY, sum = 0;
        const double *q = r->q + (size_t)token * q_row + (size_t)h * (size_t)width;
        double *out = r->o + (size_t)token * q_row + (size_t)h * (size_t)width;
        size_t head = (size_t)h / (size_t)group * (size_t)width;
        for (int t = 0; t <= token; t++) {
            double dot = 0;
            for (int i = 0; i < width; i++) dot += q[i] * r->k[(size_t)t * kv_row + head + (size_t)i];
            weights[t] = dot / sqrt(width);
            most = fmax(most, weights[t]);
        }
        for (int t = 0; t <= token; t++) sum += weights[t] = exp(weights[t] - most);
        for (int i = 0; i < width; i++) {
            out[i] = 0;
            for (int t = 0; t <= token; t++) out[i] += weights[t] / sum * r->v[(size_t)t * kv_row + head + (size_t)i];
        }
    }
}

static void keys_and_values(const reference *r, const qm_layer *layer, int token) {
    const qm_spec *s = &r->m->spec;
    int width = s->head_dim;
    double input[WIDTH_MAX] = {0};
    double *q = r->q + (size_t)token * (size_t)s->heads * (size_t)width;
    double *k = r->k + (size_t)token * (size_t)s->kv_heads * (size_t)width;
    double *v = r->v + (size_t)token * (size_t)s->kv_heads * (size_t)width;
    rmsnorm(r->x + (size_t)token * (size_t)s->hidden, layer->norm1, s->hidden, input);
    make_input(r, layer, QM_ATTN, s->hidden, input);
    multiply(&layer->linear[QM_Q], input, q);
    multiply(&layer->linear[QM_K], input, k);
    multiply(&layer->linear[QM_V], input, v);
    for (int h = 0; h < s->heads; h++, q += width) {
        if (layer->q_norm) rmsnorm(q, layer->q_norm, width, q);
        rope(q, token, width);
        if (r->quarot && r->mistake != NO_KEY_HADAMARD) transform(r->head, 1, q);
    }
    for (int h = 0; h < s->kv_heads; h++, k += width, v += width) {
        if (layer->k_norm) rmsnorm(k, layer->k_norm, width, k);
        keep_key(r, token, k);
        if (r->mistake != VALUES_NOT_QUANTIZED) store(r, token, v);
    }
}

static void finish_layer(const reference *r, const qm_layer *layer, int token) {
    const qm_spec *s = &r->m->spec;
    int queries = s->heads * s->head_dim;
    double *x = r->x + (size_t)token * (size_t)s->hidden, *o = r->o + (size_t)token * (size_t)queries;
    double input[WIDTH_MAX] = {0}, gate[WIDTH_MAX] = {0}, up[WIDTH_MAX] = {0}, out[WIDTH_MAX] = {0};
    attend(r, token);
    for (int i = 0; r->quarot && r->mistake != NO_HEADS_HADAMARD && i < s->head_dim; i++) {
        transform(r->heads, s->head_dim, o + i);
    }
    make_input(r, layer, QM_O_INPUT, queries, o);
    multiply(&layer->linear[QM_O], o, out);
    for (int i = 0; i < s->hidden; i++) x[i] += out[i];
    rmsnorm(x, layer->norm2, s->hidden, input);
    make_input(r, layer, QM_FFN, s->hidden, input);
    multiply(&layer->linear[QM_GATE], input, gate);
    multiply(&layer->linear[QM_UP], input, up);
    for (int i = 0; i < s->ffn; i++) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
    if (r->quarot && r->mistake != NO_FFN_HADAMARD) transform(r->ffn, 1, gate);
    make_input(r, layer, QM_DOWN_INPUT, s->ffn, gate);
    multiply(&layer->linear[QM_DOWN], gate, out);
    for (int i = 0; i < s->hidden; i++) x[i] += out[i];
}

static kn_hadamard *open_hadamard(int size) {
    kn_hadamard *hadamard;
    bis_error error;
    if (kn_hadamard_open(size, &hadamard, &error)) fail_msg("%s", error.text);
    return hadamard;
}

/* logits [TOKENS, vocab] */
static void run_reference(const qm_model *m, int kv_bits, int span, mistake wrong, const int32_t *tokens,
                          double *logits) {
    const qm_spec *s = &m->spec;
    size_t hidden = (size_t)s->hidden, queries = (size_t)s->heads * (size_t)s->head_dim;
    reference r = {.m = m, .kv_bits = kv_bits, .span = span, .mistake = wrong};
    r.quarot = !strcmp(s->base, "quarot");
    r.key_before_rope = !r.quarot;
    r.head = open_hadamard(s->head_dim);
    r.heads = open_hadamard(s->heads);
    r.ffn = open_hadamard(s->ffn);
    r.x = test_alloc(TOKENS * hidden * sizeof *r.x);
    double *memory = test_alloc(4 * TOKENS * queries * sizeof *memory);
    r.q = memory;
    r.k = r.q + TOKENS * queries;
    r.v = r.k + TOKENS * queries;
    r.o = r.v + TOKENS * queries;
    for (int t = 0; t < TOKENS; t++) {
        memcpy(r.x + (size_t)t * hidden, m->embedding + (size_t)tokens[t] * hidden, hidden * sizeof *r.x);
    }
    for (int i = 0; i < s->layers; i++) {
        for (int t = 0; t < TOKENS; t++) keys_and_values(&r, &m->layers[i], t);
        for (int t = 0; t < TOKENS; t++) finish_layer(&r, &m->layers[i], t);
    }
    qm_linear head = {.rows = s->vocab, .cols = s->hidden, .w = m->head};
    for (int t = 0; t < TOKENS; t++) {
        double input[WIDTH_MAX] = {0};
        rmsnorm(r.x + (size_t)t * hidden, m->final_norm, s->hidden, input);
        multiply(&head, input, logits + (size_t)t * (size_t)s->vocab);
    }
    kn_hadamard_close(r.head);
    kn_hadamard_close(r.heads);
    kn_hadamard_close(r.ffn);
    free(r.x);
    free(memory);
}

/* ---- the runtime ----------------------------------------------------------------------------- */

typedef struct runner {
    rt_model *model;
    kn_backend *backend;
    rt_forward *forward;
    rt_kv_pages *pages;
    int kv_bits;
} runner;

static runner open_runner(const char *isa, int threads, int kv_bits) {
    runner r = {0};
    bis_error error = {0};
    char folder[256];
    snprintf(folder, sizeof folder, "%s", scratch_path(""));
    if (rt_model_open(folder, &r.model, &error)) fail_msg("%s", error.text);
    const rt_model_config *config = rt_model_get_config(r.model);
    if (rt_kv_bits(config, kv_bits, &r.kv_bits, &error)) fail_msg("%s", error.text);
    int low_head_dim = rt_kv_low_head_dim(config, r.kv_bits);
    if (kn_cpu_open(threads, isa, CONTEXT, low_head_dim, &r.backend, &error)) fail_msg("%s", error.text);
    if (rt_forward_open(r.model, r.backend, 3 * TOKENS, 3 * TOKENS, CONTEXT, &r.forward, &error)) {
        fail_msg("%s", error.text);
    }
    rt_kv_count count = {PAGES_MAX, rt_kv_is_low(r.kv_bits) ? PAGES_MAX : 0};
    if (rt_kv_pages_open(config, r.kv_bits, count, &r.pages, &error)) fail_msg("%s", error.text);
    return r;
}

static void close_runner(runner *r) {
    rt_forward_close(r->forward);
    rt_kv_pages_close(r->pages);
    r->backend->ops->close(r->backend);
    rt_model_close(r->model);
}

/* Rows [first, first + count) of one sequence whose pages are given; the logits of all of them. */
static const float *run_rows(runner *r, const int32_t *tokens, int first, int count, int span, const int32_t *pages) {
    int32_t positions[TOKENS], wanted[TOKENS], spans[TOKENS];
    const int32_t *tables[TOKENS];
    for (int i = 0; i < count; i++) {
        positions[i] = first + i;
        wanted[i] = i;
        tables[i] = pages;
        spans[i] = span;
    }
    rt_batch batch = {{count, positions, tables, spans}, tokens + first, wanted, count};
    return rt_forward_run(r->forward, rt_kv_pages_cache(r->pages), &batch);
}

/* All rows at once; pages are taken and given back. */
static const float *run_all(runner *r, const int32_t *tokens, int span) {
    int32_t pages[PAGES_MAX];
    rt_kv_count need = rt_kv_pages_need(r->kv_bits, span, TOKENS);
    assert_true(rt_kv_pages_take(r->pages, need, pages));
    const float *logits = run_rows(r, tokens, 0, TOKENS, span, pages);
    rt_kv_pages_give_back(r->pages, need, pages);
    return logits;
}

/* ---- comparing ------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median of the errors of rows from `first` on, relative to the row's length; infinite where anything is not a
 * number. */
static double median_error(const float *got, const double *expected, int first, int vocab) {
    double errors[TOKENS] = {0};
    got += first * vocab;
    expected += first * vocab;
    for (int t = first; t < TOKENS; t++) {
        double error = 0, length = 0;
        for (int i = 0; i < vocab; i++, got++, expected++) {
            error += (*got - *expected) * (*got - *expected);
            length += *expected * *expected;
        }
        errors[t] = sqrt(error / length);
        if (!(errors[t] >= 0)) return INFINITY;
    }
    qsort(errors + first, (size_t)(TOKENS - first), sizeof *errors, by_value);
    return errors[(first + TOKENS) / 2];
}

/* Sizes that leave ragged groups and odd factors; GQA; biases; norms; tied or not. */
static const qm_spec shapes[] = {
    {"llama", 80, 88, 2, 6, 2, 16, 96, 256, false, true, "plain", 0, 0, 0, 32, true, {0, 0, 0, 0}},
    {"qwen2", 72, 136, 2, 4, 2, 24, 70, 256, true, true, "atom", 0, 0, 0, 32, false, {8, 5, 16, 24}},
    {"llama", 96, 80, 2, 4, 4, 16, 64, 256, false, false, "atom", 0, 0, 0, 64, true, {16, 0, 1, 40}},
    {"qwen3", 80, 172, 2, 6, 3, 16, 90, 256, false, false, "quarot", 0, 0, 0, 32, true, {0, 0, 0, 0}},
    {"qwen2", 96, 88, 2, 4, 1, 24, 64, 256, false, true, "quarot", 0, 0, 0, 128, false, {0, 8, 0, 8}},
};
static const int widths[][3] = {{3, 3, 3}, {4, 4, 4}, {8, 8, 8}, {4, 16, 16}, {16, 16, 2}, {3, 8, 32}};
static const int spans[] = {0, 1, 16, 21, TOKENS};

static qm_spec spec_of(size_t shape, size_t width) {
    qm_spec spec = shapes[shape];
    spec.weight_bits = widths[width][0];
    spec.activation_bits = widths[width][1];
    spec.kv_bits = widths[width][2] == 32 ? 16 : widths[width][2]; /* 32 only by choice of the user */
    return spec;
}

static void make_tokens(int vocab, int32_t *tokens) {
    for (int t = 0; t < TOKENS; t++) tokens[t] = random_below(vocab);
}

static void compare(runner *r, const qm_model *m, const char *isa, int kv_bits, const int32_t *tokens) {
    const qm_spec *s = &m->spec;
    double *expected = test_alloc(TOKENS * (size_t)s->vocab * sizeof *expected);
    for (size_t i = 0; i < sizeof spans / sizeof *spans; i++) {
        if (kv_bits >= 16 && i) break;
        run_reference(m, kv_bits, spans[i], NO_MISTAKE, tokens, expected);
        double error = median_error(run_all(r, tokens, spans[i]), expected, 0, s->vocab);
        if (!(error < bounds[s->activation_bits == 8])) {
            fail_msg("%s %s W%dA%dKV%d span %d on %s: error %g", s->base, s->type, s->weight_bits, s->activation_bits,
                     kv_bits, spans[i], isa, error);
        }
    }
    free(expected);
}

static void logits_agree_with_a_reference_in_double(void **state) {
    (void)state;
    static const char *const isas[] = {"auto", "reference"};
    scratch_make();
    for (size_t shape = 0; shape < sizeof shapes / sizeof *shapes; shape++) {
        for (size_t width = 0; width < sizeof widths / sizeof *widths; width++) {
            qm_spec spec = spec_of(shape, width);
            qm_model *m = qm_make(&spec);
            int32_t tokens[TOKENS];
            make_tokens(spec.vocab, tokens);
            qm_write(m);
            for (size_t i = 0; i < sizeof isas / sizeof *isas; i++) {
                runner r = open_runner(isas[i], 2, widths[width][2]);
                compare(&r, m, isas[i], r.kv_bits, tokens);
                close_runner(&r);
            }
            qm_free(m);
        }
    }
}

static bool matters(const qm_spec *s, mistake wrong) {
    bool quarot = !strcmp(s->base, "quarot"), atom = !strcmp(s->base, "atom");
    switch (wrong) {
    case NO_KEY_HADAMARD:
    case NO_HEADS_HADAMARD:
    case NO_FFN_HADAMARD: return quarot;
    case NATURAL_ORDER: return atom;
    case OUTLIERS_LIKE_THE_REST: return s->outliers[QM_ATTN] || s->outliers[QM_O_INPUT];
    default: return true;
    }
}

static void every_mistake_in_the_order_is_noticed(void **state) {
    (void)state;
    const int span = 16; /* the rows after it count, as the others do not see low-bit keys */
    scratch_make();
    for (size_t shape = 0; shape < sizeof shapes / sizeof *shapes; shape++) {
        qm_spec spec = spec_of(shape, 0);
        qm_model *m = qm_make(&spec);
        int32_t tokens[TOKENS];
        make_tokens(spec.vocab, tokens);
        qm_write(m);
        runner r = open_runner("auto", 2, 0);
        assert_int_equal(r.kv_bits, spec.kv_bits);
        const float *logits = run_all(&r, tokens, span);
        double *expected = test_alloc(TOKENS * (size_t)spec.vocab * sizeof *expected);
        for (int wrong = NO_MISTAKE + 1; wrong < MISTAKES; wrong++) {
            if (!matters(&spec, (mistake)wrong)) continue;
            run_reference(m, spec.kv_bits, span, (mistake)wrong, tokens, expected);
            double error = median_error(logits, expected, span, spec.vocab);
            if (!(error > 50 * bounds[0])) fail_msg("%s %s: mistake %d gives %g", spec.base, spec.type, wrong, error);
        }
        free(expected);
        close_runner(&r);
        qm_free(m);
    }
}

/* ---- the same bits --------------------------------------------------------------------------- */

static void check_chunks(runner *r, const int32_t *tokens, int span, const float *whole, int vocab) {
    for (int chunk = 1; chunk <= 17; chunk += 8) {
        int32_t pages[PAGES_MAX];
        rt_kv_count need = rt_kv_pages_need(r->kv_bits, span, TOKENS);
        assert_true(rt_kv_pages_take(r->pages, need, pages));
        for (int first = 0; first < TOKENS; first += chunk) {
            int count = TOKENS - first < chunk ? TOKENS - first : chunk;
            const float *logits = run_rows(r, tokens, first, count, span, pages);
            assert_memory_equal(logits, whole + first * vocab, (size_t)(count * vocab) * sizeof *logits);
        }
        rt_kv_pages_give_back(r->pages, need, pages);
    }
}

/* Rows of three sequences with different spans in one call; the middle one is the known one. */
static void check_company(runner *r, const int32_t *known, int span, const float *whole, int vocab) {
    int32_t pages[3][PAGES_MAX], tokens[3 * TOKENS], positions[3 * TOKENS], wanted[3 * TOKENS], prompt[3 * TOKENS];
    const int32_t *tables[3 * TOKENS];
    int of_sequence[3] = {5, span, 17}, n = 0;
    for (int s = 0; s < 3; s++) {
        assert_true(rt_kv_pages_take(r->pages, rt_kv_pages_need(r->kv_bits, of_sequence[s], TOKENS), pages[s]));
    }
    for (int t = 0; t < TOKENS; t++) {
        for (int s = 0; s < 3; s++, n++) {
            tokens[n] = s == 1 ? known[t] : (known[t] + s + t) % vocab;
            positions[n] = t;
            tables[n] = pages[s];
            prompt[n] = of_sequence[s];
            wanted[n] = n;
        }
    }
    rt_batch batch = {{n, positions, tables, prompt}, tokens, wanted, n};
    const float *logits = rt_forward_run(r->forward, rt_kv_pages_cache(r->pages), &batch);
    for (int t = 0; t < TOKENS; t++) {
        assert_memory_equal(logits + (3 * t + 1) * vocab, whole + t * vocab, (size_t)vocab * sizeof *logits);
    }
    for (int s = 0; s < 3; s++) {
        rt_kv_pages_give_back(r->pages, rt_kv_pages_need(r->kv_bits, of_sequence[s], TOKENS), pages[s]);
    }
}

static void check_bits(const qm_spec *spec, int kv_bits, int span) {
    static const char *const isas[] = {"auto", "avx2", "reference"};
    int32_t tokens[TOKENS];
    make_tokens(spec->vocab, tokens);
    float *whole = NULL;
    for (int threads = 1; threads <= 3; threads++) {
        runner r = open_runner(isas[threads - 1], threads, kv_bits);
        size_t bytes = TOKENS * (size_t)spec->vocab * sizeof *whole;
        const float *logits = run_all(&r, tokens, span);
        if (!whole) whole = memcpy(test_alloc(bytes), logits, bytes);
        assert_memory_equal(logits, whole, bytes);
        check_chunks(&r, tokens, span, whole, spec->vocab);
        check_company(&r, tokens, span, whole, spec->vocab);
        assert_int_equal(rt_kv_pages_free(r.pages).full, PAGES_MAX);
        assert_int_equal(rt_kv_pages_free(r.pages).low, rt_kv_pages_total(r.pages).low);
        close_runner(&r);
    }
    free(whole);
}

static void rows_are_bit_identical_however_computed(void **state) {
    (void)state;
    static const int kv_widths[] = {2, 3, 4, 8, 16, 32};
    scratch_make();
    for (size_t shape = 0; shape < sizeof shapes / sizeof *shapes; shape++) {
        qm_spec spec = spec_of(shape, shape % 3);
        qm_model *m = qm_make(&spec);
        qm_write(m);
        for (size_t i = 0; i < sizeof kv_widths / sizeof *kv_widths; i++) {
            check_bits(&spec, kv_widths[i], spans[(shape + i) % 5]);
        }
        qm_free(m);
    }
}

static int remove_scratch(void **state) {
    (void)state;
    scratch_remove();
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_agree_with_a_reference_in_double),
        cmocka_unit_test(every_mistake_in_the_order_is_noticed),
        cmocka_unit_test(rows_are_bit_identical_however_computed),
    };
    return cmocka_run_group_tests(tests, NULL, remove_scratch);
}
