/* Every gradient of the fine-tuner against central finite differences. Compiled, with the quantizer's sources, in
 * double (QZ_DOUBLE), where differences have the digits to tell a wrong term from rounding. Rounding has no derivative,
 * so the block runs without it (QZ_SOFT); what rounding adds is checked by the quantizers' homogeneity. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "quantizer/end_to_end.h"
#include "quantizer/learned.h"
#include "quantizer/random.h"

enum { SAMPLES = 2, TOKENS = 5, PROMPT = 3 };

static const double TOLERANCE = 1e-5;

static uint64_t random_index;

static double random_number(void) { return 2 * qz_random_unit(7, random_index++) - 1; }
static int random_below(int n) { return (int)(qz_random_bits(7, random_index++) % (uint64_t)n); }

static void fill(qz_real *x, size_t count, double size, double middle) {
    for (size_t i = 0; i < count; i++) x[i] = middle + size * random_number();
}

static qz_real *make(size_t count, double size, double middle) {
    qz_real *x = calloc(count + 1, sizeof *x);
    assert_non_null(x);
    fill(x, count, size, middle);
    return x;
}

typedef struct kind {
    const char *name;
    qz_shape shape;
    qz_spec spec;
    bool qkv_bias, other_bias, qk_norm, ordered;
    int prompt;
} kind;

typedef struct fixture {
    qz_block *block;
    qz_spec spec;
    qz_pass pass;
    float act_clip[QZ_SITES];
    qz_real *rope, *prompt_k, *prompt_v, *x, *target;
    qz_run run;
    qz_learned learned;
} fixture;

static void shuffle(int32_t **order, int width) {
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

static qz_block *make_block(const kind *k) {
    qz_block *block;
    assert_int_equal(qz_block_alloc(&k->shape, k->qkv_bias, k->other_bias, k->other_bias, k->qk_norm, &block, NULL),
                     BIS_OK);
    for (int i = 0; i < QZ_LINEARS; i++) {
        int rows = qz_linear_rows(&k->shape, (qz_linear_id)i), cols = qz_linear_cols(&k->shape, (qz_linear_id)i);
        fill(block->weight[i], (size_t)rows * (size_t)cols, 0.5, 0.05);
        if (block->bias[i]) fill(block->bias[i], (size_t)rows, 0.5, 0);
    }
    fill(block->norm1, (size_t)k->shape.hidden, 0.5, 1);
    fill(block->norm2, (size_t)k->shape.hidden, 0.5, 1);
    if (k->qk_norm) {
        fill(block->q_norm, (size_t)k->shape.head_dim, 0.5, 1);
        fill(block->k_norm, (size_t)k->shape.head_dim, 0.5, 1);
    }
    for (int i = 0; i < QZ_SITE_DOWN && k->ordered; i++)
        shuffle(&block->order[i], qz_site_width(&k->shape, (qz_site)i));
    return block;
}

static void make_inputs(fixture *f, const kind *k) {
    size_t keys = (size_t)k->prompt * (size_t)k->shape.kv_heads * (size_t)k->shape.head_dim;
    size_t rows = (size_t)SAMPLES * (size_t)TOKENS * (size_t)k->shape.hidden;
    int half = k->shape.head_dim / 2;
    f->rope = make((size_t)(k->prompt + TOKENS) * (size_t)k->shape.head_dim, 0, 0);
    for (int t = 0; t < k->prompt + TOKENS; t++) {
        for (int i = 0; i < half; i++) {
            f->rope[2 * half * t + i] = cos(t * pow(0.3, i));
            f->rope[2 * half * t + half + i] = sin(t * pow(0.3, i));
        }
    }
    f->prompt_k = make(keys, 1, 0);
    f->prompt_v = make(keys, 1, 0);
    f->x = make(rows, 2, 0);
    f->target = make(rows, 2, 0);
    for (int i = 0; i < QZ_SITES; i++) f->act_clip[i] = 0.75f + 0.05f * (float)i;
}

/* Parameters away from their start, where much would be 0 or equal. */
static void move_parameters(const qz_learned *learned) {
    qz_real *p = learned->parameter;
    fill(p + learned->first[QZ_PART_CLIP], learned->first[QZ_PART_CLIP + 1] - learned->first[QZ_PART_CLIP], 1, 1.5);
    fill(p + learned->first[QZ_PART_SMOOTH], learned->first[QZ_PART_SMOOTH + 1] - learned->first[QZ_PART_SMOOTH], 0.3,
         0);
    fill(p + learned->first[QZ_PART_LOW_RANK], learned->first[QZ_PART_LOW_RANK + 1] - learned->first[QZ_PART_LOW_RANK],
         0.3, 0);
}

static void open_fixture(fixture *f, const kind *k, qz_mode mode) {
    *f = (fixture){.block = make_block(k), .spec = k->spec};
    make_inputs(f, k);
    f->pass = (qz_pass){.block = f->block, .spec = &f->spec, .mode = mode};
    f->pass.act_clip = f->act_clip;
    f->pass.rope_table = f->rope;
    f->pass.prompt = (qz_prompt){k->prompt, f->prompt_k, f->prompt_v};
    qz_tune_options options = {.clip = true, .smooth = true, .low_rank = true, .act_clip = true, .rank = 2, .seed = 3};
    assert_int_equal(qz_learned_open(&f->pass, &options, &f->learned, NULL), BIS_OK);
    assert_int_equal(qz_run_open(&f->pass, SAMPLES, TOKENS, true, &f->run, NULL), BIS_OK);
    move_parameters(&f->learned);
}

static void close_fixture(fixture *f) {
    qz_learned_close(&f->learned);
    qz_run_close(&f->run);
    qz_block_free(f->block);
    qz_real *const owned[] = {f->rope, f->prompt_k, f->prompt_v, f->x, f->target};
    for (int i = 0; i < 5; i++) free(owned[i]);
}

static const double PENALTY = 0.1;

/* Half the squared error plus the penalty (whose gradients land where backward will clear them). */
static double loss(fixture *f) {
    qz_learned_prepare(&f->learned, &f->run);
    qz_run_forward(&f->run, f->x, SAMPLES);
    double sum = 0;
    for (int i = 0; i < SAMPLES * TOKENS * f->block->shape.hidden; i++) {
        double difference = f->run.tape.output[i] - f->target[i];
        sum += difference * difference / 2;
    }
    return sum + qz_learned_penalty(&f->learned, PENALTY);
}

static void gradients(fixture *f) {
    loss(f);
    for (int i = 0; i < SAMPLES * TOKENS * f->block->shape.hidden; i++) f->run.tape.output[i] -= f->target[i];
    qz_learned_backward(&f->learned, &f->run, f->run.tape.output);
    qz_learned_penalty(&f->learned, PENALTY);
}

static double difference_quotient(fixture *f, qz_real *number, double step) {
    qz_real kept = *number;
    *number = kept + step;
    double above = loss(f);
    *number = kept - step;
    double below = loss(f);
    *number = kept;
    return (above - below) / (2 * step);
}

/* Of numbers[first] .. numbers[last - 1]. */
static void check_range(fixture *f, qz_real *numbers, const qz_real *gradient, size_t first, size_t last,
                        const char *kind_name, const char *what, int *retries) {
    double squares = 0;
    for (size_t i = first; i < last; i++) squares += gradient[i] * gradient[i];
    double usual = sqrt(squares / (double)(last - first));
    if (!(usual > 0)) fail_msg("%s: all gradients of %s are 0", kind_name, what);
    for (size_t i = first; i < last; i++) {
        double size = TOLERANCE * (fabs(gradient[i]) + usual), measured = difference_quotient(f, &numbers[i], 1e-5);
        if (fabs(measured - gradient[i]) <= size) continue;
        /* a number may pass the edge of its clamp between the two points: then not in between nearer ones */
        (*retries)++;
        measured = difference_quotient(f, &numbers[i], 1e-7);
        if (fabs(measured - gradient[i]) <= size) continue;
        fail_msg("%s: gradient %zu of %s is %.10g, differences give %.10g", kind_name, i - first, what, gradient[i],
                 measured);
    }
}

static void check_kind(const kind *k) {
    static const char *const names[QZ_LINEARS] = {"q", "k", "v", "o", "gate", "up", "down"};
    fixture f;
    open_fixture(&f, k, QZ_SOFT);
    const qz_learned *l = &f.learned;
    size_t count = l->first[QZ_PARTS];
    size_t inputs = (size_t)SAMPLES * TOKENS * (size_t)k->shape.hidden;
    qz_real *gradient = make(count, 0, 0), *input_gradient = make(inputs, 0, 0);
    int retries = 0;
    gradients(&f);
    memcpy(gradient, l->gradient, count * sizeof *gradient);
    memcpy(input_gradient, f.run.tape.output, inputs * sizeof *input_gradient);
    check_range(&f, f.x, input_gradient, 0, inputs, k->name, "x", &retries);
    for (int i = 0; i < QZ_LINEARS; i++) {
        size_t clips = (size_t)qz_linear_rows(&k->shape, (qz_linear_id)i) * (size_t)l->groups[i];
        size_t rows = (size_t)qz_linear_rows(&k->shape, (qz_linear_id)i) * (size_t)l->rank[i];
        if (l->has[QZ_PART_CLIP]) {
            check_range(&f, l->parameter, gradient, l->high[i], l->high[i] + clips, k->name, names[i], &retries);
            check_range(&f, l->parameter, gradient, l->low[i], l->low[i] + clips, k->name, names[i], &retries);
        }
        check_range(&f, l->parameter, gradient, l->a[i], l->b[i], k->name, names[i], &retries);
        check_range(&f, l->parameter, gradient, l->b[i], l->b[i] + rows, k->name, names[i], &retries);
    }
    for (int i = 0; i < QZ_NORM_SITES; i++) {
        size_t hidden = (size_t)k->shape.hidden;
        check_range(&f, l->parameter, gradient, l->log_x[i], l->log_x[i] + hidden, k->name, "s_x", &retries);
        check_range(&f, l->parameter, gradient, l->log_w[i], l->log_w[i] + hidden, k->name, "s_w", &retries);
    }
    if (l->has[QZ_PART_ACT_CLIP])
        check_range(&f, l->parameter, gradient, l->clip, l->clip + QZ_SITES, k->name, "act clips", &retries);
    print_message("%s: %zu gradients; %d beside an edge\n", k->name, count + inputs, retries);
    assert_true(retries * 50 < (int)(count + inputs));
    free(gradient);
    free(input_gradient);
    close_fixture(&f);
}

static void test_gradients_of_a_plain_block(void **state) {
    (void)state;
    kind k = {.name = "plain", .shape = {24, 40, 4, 2, 6, 1e-5}, .prompt = PROMPT};
    k.spec = (qz_spec){.weight_bits = 4, .act_bits = 4, .kv_bits = 4, .group = 10, .key_before_rope = true};
    k.qkv_bias = true;
    check_kind(&k);
}

static void test_gradients_of_an_atom_block(void **state) {
    (void)state;
    kind k = {.name = "atom", .shape = {24, 36, 4, 2, 6, 1e-5}, .prompt = PROMPT};
    k.spec = (qz_spec){.weight_bits = 3, .act_bits = 3, .kv_bits = 3, .group = 8, .key_before_rope = true};
    k.spec.weight_symmetric = true;
    for (int i = 0; i < QZ_SITES; i++) k.spec.outliers[i] = 3 + i;
    k.other_bias = k.ordered = true;
    check_kind(&k);
    k.name = "atom on qwen3, asymmetric";
    k.spec.weight_symmetric = false;
    k.qk_norm = true;
    check_kind(&k);
}

static void test_gradients_of_a_quarot_block(void **state) {
    (void)state;
    kind k = {.name = "quarot", .shape = {24, 40, 12, 4, 6, 1e-5}, .prompt = PROMPT}; /* 12, 6, 40: dense factors */
    k.spec = (qz_spec){.weight_bits = 3, .act_bits = 3, .kv_bits = 3, .group = 16, .weight_symmetric = true};
    k.spec.key_hadamard = k.spec.heads_hadamard = k.spec.ffn_hadamard = true;
    k.qkv_bias = k.other_bias = true;
    check_kind(&k);
    k.name = "quarot on qwen3";
    k.qk_norm = true;
    check_kind(&k);
}

static void test_gradients_without_quantizers_or_prompt(void **state) {
    (void)state;
    kind k = {.name = "16 bits", .shape = {16, 20, 3, 1, 8, 1e-5}};
    k.spec = (qz_spec){.weight_bits = 16, .act_bits = 16, .kv_bits = 16, .group = 32};
    check_kind(&k);
    k.name = "weights only";
    k.spec.weight_bits = 4;
    check_kind(&k);
    k.name = "activations only";
    k.spec = (qz_spec){.weight_bits = 16, .act_bits = 8, .kv_bits = 16, .group = 32};
    k.spec.outliers[QZ_SITE_FFN] = 4;
    check_kind(&k);
}

/* Shared between threads, the same bits. */
static void test_threads_change_no_gradient(void **state) {
    (void)state;
    kind k = {.name = "threads", .shape = {200, 300, 4, 2, 50, 1e-5}, .prompt = PROMPT};
    k.spec = (qz_spec){.weight_bits = 3, .act_bits = 3, .kv_bits = 3, .group = 32, .weight_symmetric = true};
    k.ordered = true;
    fixture f;
    open_fixture(&f, &k, QZ_SOFT);
    size_t bytes = f.learned.first[QZ_PARTS] * sizeof(qz_real);
    qz_real *expected = make(f.learned.first[QZ_PARTS], 0, 0);
    gradients(&f);
    memcpy(expected, f.learned.gradient, bytes);
    for (int threads = 1; threads <= 3; threads++) {
        qz_compute *compute;
        assert_int_equal(qz_compute_open(threads, &compute, NULL), BIS_OK);
        f.pass.compute = compute;
        qz_run_close(&f.run); /* has scratch memory for one thread */
        assert_int_equal(qz_run_open(&f.pass, SAMPLES, TOKENS, true, &f.run, NULL), BIS_OK);
        gradients(&f);
        assert_memory_equal(f.learned.gradient, expected, bytes);
        qz_compute_close(compute);
    }
    free(expected);
    f.pass.compute = NULL;
    close_fixture(&f);
}

/* Longer than attention's block of queries, one layer kind, few parameters: log s_x reaches all that came before. */
static void test_gradients_of_long_samples(void **state) {
    (void)state;
    enum { LONG = 150 };
    kind k = {.name = "long", .shape = {8, 8, 2, 1, 4, 1e-5}, .prompt = PROMPT};
    k.spec = (qz_spec){.weight_bits = 16, .act_bits = 16, .kv_bits = 16, .group = 32};
    fixture f;
    open_fixture(&f, &k, QZ_SOFT);
    qz_run_close(&f.run);
    free(f.x);
    free(f.rope);
    f.x = make((size_t)LONG * 8, 2, 0);
    f.rope = make((size_t)(LONG + PROMPT) * 4, 1, 0);
    f.pass.rope_table = f.rope;
    assert_int_equal(qz_run_open(&f.pass, 1, LONG, true, &f.run, NULL), BIS_OK);
    for (int pass = 0; pass < 16; pass++) {
        size_t at = f.learned.log_x[0] + (size_t)pass;
        double sums[2], step = 1e-5;
        qz_real kept = f.learned.parameter[at], *output = f.run.tape.output;
        for (int side = 0; side < 2; side++) {
            f.learned.parameter[at] = kept + (side ? -step : step);
            qz_learned_prepare(&f.learned, &f.run);
            qz_run_forward(&f.run, f.x, 1);
            sums[side] = 0;
            for (int i = 0; i < LONG * 8; i++) sums[side] += sin(i) * output[i];
        }
        f.learned.parameter[at] = kept;
        qz_learned_prepare(&f.learned, &f.run);
        qz_run_forward(&f.run, f.x, 1);
        for (int i = 0; i < LONG * 8; i++) output[i] = sin(i);
        qz_learned_backward(&f.learned, &f.run, output);
        double measured = (sums[0] - sums[1]) / (2 * step);
        assert_true(fabs(measured - f.learned.gradient[at]) <= TOLERANCE * (fabs(measured) + 1e-2));
    }
    close_fixture(&f);
}

/* ---- End to end ------------------------------------------------------------------------------ */

static void plain_logits(const qz_head *head, const qz_real *x, double *logits) {
    double squares = 0;
    for (int i = 0; i < head->hidden; i++) squares += x[i] * x[i] / head->hidden;
    for (int v = 0; v < head->vocab; v++) {
        logits[v] = 0;
        for (int i = 0; i < head->hidden; i++) {
            logits[v] += x[i] / sqrt(squares + head->norm_eps) * head->norm[i] * head->weight[v * head->hidden + i];
        }
    }
}

enum { VOCAB = 37 };

/* The sum over rows, computed plainly. */
static double plain_divergence(const qz_head *head, const qz_real *original, const qz_real *quantized, int rows) {
    double t[VOCAB], y[VOCAB], sum = 0;
    assert_true(head->vocab <= VOCAB);
    for (int r = 0; r < rows; r++) {
        double all_t = 0, all_y = 0;
        plain_logits(head, original + r * head->hidden, t);
        plain_logits(head, quantized + r * head->hidden, y);
        for (int v = 0; v < head->vocab; v++) {
            all_t += exp(t[v]);
            all_y += exp(y[v]);
        }
        for (int v = 0; v < head->vocab; v++) sum += exp(t[v]) / all_t * (t[v] - log(all_t) - y[v] + log(all_y));
    }
    return sum;
}

static void test_gradients_of_the_divergence(void **state) {
    (void)state;
    enum { ROWS = 3, WIDTH = 20 };
    qz_head head = {WIDTH, VOCAB, 1e-5, make(WIDTH, 0.5, 1), make((size_t)VOCAB * WIDTH, 0.7, 0)};
    qz_real *original = make((size_t)ROWS * WIDTH, 2, 0), *x = make((size_t)ROWS * WIDTH, 2, 0);
    qz_real *gradient = make((size_t)ROWS * WIDTH, 0, 0);
    qz_divergence *divergence;
    assert_int_equal(qz_divergence_open(NULL, &head, &divergence, NULL), BIS_OK);
    double sum = qz_divergence_rows(divergence, original, x, ROWS, 0.5, gradient);
    assert_true(sum > 1 && fabs(sum - plain_divergence(&head, original, x, ROWS)) < 1e-10);
    assert_true(qz_divergence_rows(divergence, original, x, ROWS, 7, NULL) == sum);
    for (int i = 0; i < ROWS * WIDTH; i++) {
        const double step = 1e-5;
        qz_real kept = x[i];
        x[i] = kept + step;
        double above = plain_divergence(&head, original, x, ROWS);
        x[i] = kept - step;
        double below = plain_divergence(&head, original, x, ROWS);
        x[i] = kept;
        assert_true(fabs((above - below) / (2 * step) * 0.5 - gradient[i]) < 1e-8);
    }
    qz_divergence_close(divergence);
    free((void *)head.norm);
    free((void *)head.weight);
    free(original);
    free(x);
    free(gradient);
}

enum { CHAIN = 3, WINDOWS = 4 };

/* A model without quantizers, so that its divergence from another one has gradients. */
typedef struct chain {
    fixture layer[CHAIN];
    qz_end_block blocks[CHAIN];
    qz_end_input input;
    qz_tune_options options;
    size_t count;
} chain;

static void open_chain(chain *c) {
    kind k = {.name = "chain", .shape = {16, 20, 4, 2, 4, 1e-5}, .prompt = PROMPT, .ordered = true};
    k.spec = (qz_spec){.weight_bits = 16, .act_bits = 16, .kv_bits = 16, .group = 32, .key_before_rope = true};
    *c = (chain){.options = {.clip = true, .smooth = true, .low_rank = true, .act_clip = true, .rank = 2}};
    for (int i = 0; i < CHAIN; i++) {
        fixture *f = &c->layer[i];
        open_fixture(f, &k, QZ_QUANTIZED);
        c->blocks[i] = (qz_end_block){f->block, f->pass.prompt, f->learned.parameter};
    }
    size_t windows = (size_t)WINDOWS * TOKENS * (size_t)k.shape.hidden;
    c->count = c->layer[0].learned.first[QZ_PARTS];
    c->input = (qz_end_input){.spec = &c->layer[0].spec,
                              .rope_table = c->layer[0].rope,
                              .blocks = c->blocks,
                              .layers = CHAIN,
                              .samples = WINDOWS,
                              .tokens = TOKENS,
                              .x = make(windows, 2, 0),
                              .final = make(windows, 2, 0)};
    c->input.head = (qz_head){k.shape.hidden, VOCAB, 1e-5, make(16, 0.5, 1), make((size_t)VOCAB * 16, 0.7, 0)};
}

static void close_chain(chain *c) {
    for (int i = 0; i < CHAIN; i++) close_fixture(&c->layer[i]);
    const void *const owned[] = {c->input.x, c->input.final, c->input.head.norm, c->input.head.weight};
    for (int i = 0; i < 4; i++) free((void *)owned[i]);
}

/* Mean over all tokens, and the penalty, window after window through the layers. */
static double chain_loss(chain *c) {
    int rows = WINDOWS * TOKENS, hidden = c->input.head.hidden;
    size_t bytes = (size_t)rows * (size_t)hidden * sizeof(qz_real);
    qz_real *x = malloc(bytes);
    assert_non_null(x);
    memcpy(x, c->input.x, bytes);
    double sum = 0;
    for (int i = 0; i < CHAIN; i++) {
        fixture *f = &c->layer[i];
        qz_learned_prepare(&f->learned, &f->run);
        for (int w = 0; w < WINDOWS; w += SAMPLES) {
            qz_real *at = x + (size_t)w * TOKENS * (size_t)hidden;
            qz_run_forward(&f->run, at, SAMPLES);
            memcpy(at, f->run.tape.output, bytes / WINDOWS * SAMPLES);
        }
        sum += qz_learned_penalty(&f->learned, c->options.smooth_penalty);
    }
    sum += plain_divergence(&c->input.head, c->input.final, x, rows) / rows;
    free(x);
    return sum;
}

/* AdamW's first step moves each parameter by its rate against the sign of its gradient; all windows are one batch. So
 * one step of the stage tells the signs of all its gradients, through all layers. */
static void test_the_first_step_of_the_stage_follows_the_gradient(void **state) {
    (void)state;
    chain c;
    qz_end_result result;
    int checked = 0, tiny = 0;
    const double step_size = 1e-6 / 1.05; /* the rate is still rising */
    open_chain(&c);
    c.options.epochs = 1;
    c.options.batch = WINDOWS;
    c.options.smooth_penalty = PENALTY;
    c.options.lr_smooth = c.options.lr_low_rank = 1e-6;
    double gradient[CHAIN][512] = {{0}};
    assert_true(c.count && c.count <= 512);
    for (int i = 0; i < CHAIN; i++) {
        for (size_t j = 0; j < c.count; j++) {
            qz_real *number = &c.blocks[i].parameter[j], kept = *number;
            const double step = 1e-5;
            *number = kept + step;
            double above = chain_loss(&c);
            *number = kept - step;
            double below = chain_loss(&c);
            *number = kept;
            gradient[i][j] = (above - below) / (2 * step);
        }
    }
    qz_real *before = make(CHAIN * c.count, 0, 0);
    for (int i = 0; i < CHAIN; i++)
        memcpy(before + (size_t)i * c.count, c.blocks[i].parameter, c.count * sizeof *before);
    assert_int_equal(qz_end_to_end(&c.input, &c.options, &result, NULL), BIS_OK);
    assert_true(result.best_epoch == 1 && result.after < result.before);
    for (int i = 0; i < CHAIN; i++) {
        for (size_t j = 0; j < c.count; j++) {
            double moved = c.blocks[i].parameter[j] - before[(size_t)i * c.count + j];
            if (fabs(gradient[i][j]) < 1e-6) { /* below what differences can tell */
                tiny++;
                continue;
            }
            checked++;
            if (fabs(moved + copysign(step_size, gradient[i][j])) > 1e-2 * step_size)
                fail_msg("layer %d: parameter %zu with gradient %g moved by %g", i, j, gradient[i][j], moved);
        }
    }
    print_message("end to end: %d signs of gradients, %d of 0\n", checked, tiny);
    assert_true(tiny * 20 < checked);
    free(before);
    close_chain(&c);
}

/* ---- With rounding --------------------------------------------------------------------------- */

static double dot(const qz_real *a, const qz_real *b, int count) {
    double sum = 0;
    for (int i = 0; i < count; i++) sum += a[i] * b[i];
    return sum;
}

enum { COUNT = 48, OUTLIERS = 5 };

/* A quantizer whose scale follows its input is homogeneous: q(c x) = c q(x). So gradient(x) . x must be g . q(x) with
 * rounding as well, and for keys and values, which also follow shifts, the sum of gradient(x) must be that of g. The
 * scales' roundings to F16 are kept out by ranges that are exact in it. */
static void check_homogeneous(const qz_real *x, const qz_real *y, const qz_real *g, const qz_real *gradient) {
    assert_true(fabs(dot(gradient, x, COUNT) - dot(g, y, COUNT)) < 1e-10);
}

static void exact_range(qz_real *x, int first, int last, double low, double high) {
    for (int i = first; i < last; i++) x[i] = low + (high - low) * (random_number() + 1) / 2;
    x[first + (last - first) / 2] = low;
    x[last - 1] = high;
}

static void test_rounded_quantizers_are_homogeneous(void **state) {
    (void)state;
    qz_real x[COUNT], y[COUNT], g[COUNT], gradient[COUNT];
    for (int i = 0; i < 200; i++) {
        int bits = 3 + i % 2, levels = (1 << bits) - 1;
        fill(g, COUNT, 1, 0);
        fill(x, COUNT, 3, 0.5);
        qz_fake_act act = {qz_loops_get(), kn_bits_find(bits), 16, OUTLIERS, 0.6 + 0.4 * (i % 10) / 10, false};
        memcpy(gradient, g, sizeof g);
        qz_fake_act_row(&act, x, COUNT, y);
        qz_fake_act_backward(&act, x, COUNT, gradient);
        check_homogeneous(x, y, g, gradient);

        qz_fake_kv kv = {qz_loops_get(), kn_bits_find(bits), false};
        double low = (double)(random_below(9) - 4) / 4;
        exact_range(x, 0, COUNT, low, low + levels * 0.25);
        memcpy(gradient, g, sizeof g);
        qz_fake_kv_head(&kv, x, COUNT, y);
        qz_fake_kv_backward(&kv, x, COUNT, gradient);
        check_homogeneous(x, y, g, gradient);
        double sum = 0;
        for (int c = 0; c < COUNT; c++) sum += gradient[c] - g[c];
        assert_true(fabs(sum) < 1e-10);

        bool symmetric = i % 4 < 2;
        qz_fake_weight weight = {.loops = qz_loops_get(), .bits = kn_bits_find(bits)};
        weight.format = (kn_weight_format){bits, 16, symmetric, OUTLIERS};
        double largest = kn_bits_find(bits)->divisor * 0.25, shift = (double)(1 + random_below(levels - 1)) * 0.25;
        for (int at = 0; at < COUNT - OUTLIERS; at += 16) {
            int end = at + 16 < COUNT - OUTLIERS ? at + 16 : COUNT - OUTLIERS;
            if (symmetric) exact_range(x, at, end, i % 8 < 4 ? -largest : -0.5, i % 8 < 4 ? 0.5 : largest);
            else exact_range(x, at, end, 0.125 - shift, 0.125 - shift + levels * 0.25);
        }
        exact_range(x, COUNT - OUTLIERS, COUNT, -127.0 / 64, 1);
        memcpy(gradient, g, sizeof g);
        qz_fake_weight_row(&weight, x, COUNT, NULL, NULL, y, NULL, NULL);
        qz_fake_weight_backward(&weight, x, COUNT, NULL, NULL, gradient, NULL, NULL);
        check_homogeneous(x, y, g, gradient);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients_of_a_plain_block),
        cmocka_unit_test(test_gradients_of_an_atom_block),
        cmocka_unit_test(test_gradients_of_a_quarot_block),
        cmocka_unit_test(test_gradients_without_quantizers_or_prompt),
        cmocka_unit_test(test_threads_change_no_gradient),
        cmocka_unit_test(test_gradients_of_long_samples),
        cmocka_unit_test(test_gradients_of_the_divergence),
        cmocka_unit_test(test_the_first_step_of_the_stage_follows_the_gradient),
        cmocka_unit_test(test_rounded_quantizers_are_homogeneous),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
