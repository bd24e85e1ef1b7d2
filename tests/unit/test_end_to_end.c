/* The end-to-end stage: it begins where tuning block by block ended, it lowers the divergence of windows it has not
 * seen, its figures are those of the folded blocks, and one seed gives the same bytes on any number of threads. (Its
 * gradients: test_gradients.c.)
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "kernels/tensor.h"
#include "quantizer/end_to_end.h"
#include "quantizer/gptq.h"

enum { LAYERS = 2, WINDOWS = 96, FRESH = 12, TOKENS = 16, PROMPT = 3, HIDDEN = 32, HEAD_DIM = 8, VOCAB = 50 };

static const qz_shape SHAPE = {HIDDEN, 48, 4, 2, HEAD_DIM, 1e-5};

static uint64_t random_state;

static float random_float(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (float)(random_state >> 33) / 0x1p30f - 1;
}

static float *make(size_t count, float size, float middle) {
    float *x = malloc((count + 1) * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < count; i++) x[i] = middle + size * random_float();
    return x;
}

/* A model of random blocks, tuned block by block. */
typedef struct fixture {
    qz_compute *compute;
    qz_spec spec;
    qz_tune_options options, end_options;
    qz_end_block blocks[LAYERS];
    qz_end_input input;
    float *rope, *embedded, *x, *final; /* [WINDOWS + FRESH, TOKENS, HIDDEN] */
    float *head, *norm, *prompt_k[LAYERS], *prompt_v[LAYERS];
    float clip[QZ_SITES];
    size_t count;
    double tuned_loss[LAYERS];
} fixture;

static const size_t ALL = (size_t)(WINDOWS + FRESH) * TOKENS * HIDDEN;

/* The same for the same layer. */
static qz_block *make_block(bool ordered, int layer) {
    qz_block *block;
    random_state = 100 + (uint64_t)layer;
    assert_int_equal(qz_block_alloc(&SHAPE, true, false, false, false, &block, NULL), BIS_OK);
    for (int i = 0; i < QZ_LINEARS; i++) {
        int rows = qz_linear_rows(&SHAPE, (qz_linear_id)i), cols = qz_linear_cols(&SHAPE, (qz_linear_id)i);
        for (int j = 0; j < rows * cols; j++) block->weight[i][j] = 1.5f * random_float() / sqrtf((float)cols);
        for (int j = 0; j < rows && block->bias[i]; j++) block->bias[i][j] = 0.3f * random_float();
    }
    for (int i = 0; i < HIDDEN; i++) {
        block->norm1[i] = i % 16 == 3 ? 4 : 1 + 0.2f * random_float();
        block->norm2[i] = i % 16 == 5 ? 4 : 1 + 0.2f * random_float();
    }
    for (int site = 0; site < QZ_SITE_DOWN && ordered; site++) {
        int width = qz_site_width(&SHAPE, (qz_site)site);
        block->order[site] = bis_malloc((size_t)width * sizeof(int32_t));
        assert_non_null(block->order[site]);
        for (int i = 0; i < width; i++) block->order[site][i] = width - 1 - i;
    }
    return block;
}

static void make_data(fixture *f) {
    f->rope = make((size_t)(PROMPT + TOKENS) * HEAD_DIM, 0, 0);
    for (int t = 0; t < PROMPT + TOKENS; t++) {
        for (int i = 0; i < HEAD_DIM / 2; i++) {
            double angle = t * pow(0.1, 2.0 * i / HEAD_DIM);
            f->rope[t * HEAD_DIM + i] = (float)cos(angle);
            f->rope[t * HEAD_DIM + HEAD_DIM / 2 + i] = (float)sin(angle);
        }
    }
    float *table = make((size_t)VOCAB * HIDDEN, 2, 0);
    f->embedded = make(ALL, 0, 0);
    for (size_t row = 0; row < ALL / HIDDEN; row++) {
        int token = (int)((random_float() + 1) / 2 * VOCAB) % VOCAB;
        memcpy(f->embedded + row * HIDDEN, table + (size_t)token * HIDDEN, HIDDEN * sizeof *table);
    }
    free(table);
    f->x = make(ALL, 0, 0);
    f->final = make(ALL, 0, 0);
    memcpy(f->x, f->embedded, ALL * sizeof *f->x);
    memcpy(f->final, f->embedded, ALL * sizeof *f->x);
    f->norm = make(HIDDEN, 0.3f, 1);
    f->head = make((size_t)VOCAB * HIDDEN, 0.5f, 0);
    size_t keys = (size_t)PROMPT * (size_t)SHAPE.kv_heads * HEAD_DIM;
    for (int i = 0; i < LAYERS; i++) {
        f->prompt_k[i] = make(keys, 1, 0);
        f->prompt_v[i] = make(keys, 1, 0);
    }
    for (int i = 0; i < QZ_SITES; i++) f->clip[i] = 0.9f;
}

static qz_pass pass_of(const fixture *f, int layer) {
    return (qz_pass){.compute = f->compute,
                     .block = f->blocks[layer].block,
                     .spec = &f->spec,
                     .mode = QZ_QUANTIZED,
                     .act_clip = f->clip,
                     .rope_table = f->rope,
                     .prompt = f->blocks[layer].prompt};
}

/* Tunes a block on f->x towards its own output, and carries both models' activations on. */
static void tune_layer(fixture *f, int layer) {
    float *target = make(ALL, 0, 0);
    qz_tuned tuned = {0};
    qz_pass pass = pass_of(f, layer), plain = pass;
    plain.mode = QZ_FLOAT;
    assert_int_equal(qz_simulate(&plain, f->x, WINDOWS + FRESH, TOKENS, target, NULL), BIS_OK);
    assert_int_equal(qz_simulate(&plain, f->final, WINDOWS + FRESH, TOKENS, f->final, NULL), BIS_OK);
    bis_error error = {0};
    if (qz_tune_parameters(&pass, &f->options, f->x, target, WINDOWS, TOKENS, &f->blocks[layer].parameter, &f->count,
                           &tuned, &error))
        fail_msg("%s", error.text);
    f->tuned_loss[layer] = tuned.loss_after;
    assert_true(tuned.best_epoch > 0 && tuned.loss_after < tuned.loss_before && !tuned.grid[0].scales);
    assert_int_equal(qz_end_simulate(&f->input, &f->options, layer, f->x, WINDOWS + FRESH, f->x, NULL, NULL, NULL),
                     BIS_OK);
    free(target);
}

static void open_fixture(fixture *f, bool ordered, int threads, uint64_t seed) {
    random_state = 5;
    *f = (fixture){.options = qz_tune_default_options()};
    if (threads) assert_int_equal(qz_compute_open(threads, &f->compute, NULL), BIS_OK);
    f->spec = (qz_spec){.weight_bits = 3, .act_bits = 4, .kv_bits = 3, .group = 32, .weight_symmetric = !ordered};
    f->spec.key_before_rope = ordered;
    f->spec.heads_hadamard = f->spec.key_hadamard = !ordered;
    for (int i = 0; i < QZ_SITES && ordered; i++) f->spec.outliers[i] = 8;
    f->options.epochs = 4;
    f->options.rank = 4;
    f->options.lr_clip = f->options.lr_act_clip = 1e-2;
    f->options.lr_smooth = f->options.lr_low_rank = 4e-3;
    f->options.seed = seed;
    f->end_options = f->options;
    f->end_options.epochs = 6;
    make_data(f);
    for (int i = 0; i < LAYERS; i++) {
        f->blocks[i].block = make_block(ordered, i);
        f->blocks[i].prompt = (qz_prompt){PROMPT, f->prompt_k[i], f->prompt_v[i]};
    }
    f->input = (qz_end_input){.compute = f->compute,
                              .spec = &f->spec,
                              .act_clip = f->clip,
                              .rope_table = f->rope,
                              .blocks = f->blocks,
                              .layers = LAYERS,
                              .head = {HIDDEN, VOCAB, 1e-5, f->norm, f->head},
                              .x = f->embedded,
                              .final = f->final,
                              .samples = WINDOWS,
                              .tokens = TOKENS};
    for (int i = 0; i < LAYERS; i++) tune_layer(f, i);
}

static void close_fixture(fixture *f) {
    for (int i = 0; i < LAYERS; i++) {
        qz_block_free(f->blocks[i].block);
        bis_free(f->blocks[i].parameter);
        free(f->prompt_k[i]);
        free(f->prompt_v[i]);
    }
    float *const owned[] = {f->rope, f->embedded, f->x, f->final, f->head, f->norm};
    for (int i = 0; i < 6; i++) free(owned[i]);
    qz_compute_close(f->compute);
}

/* Mean KL a token of windows [first, first + count) whose last outputs are x, computed plainly. */
static double divergence(const fixture *f, const float *x, int first, int count) {
    double sum = 0;
    for (int r = first * TOKENS; r < (first + count) * TOKENS; r++) {
        double logits[2][VOCAB], all[2] = {0};
        for (int side = 0; side < 2; side++) {
            const float *row = (side ? x : f->final) + (size_t)r * HIDDEN;
            double squares = 0;
            for (int i = 0; i < HIDDEN; i++) squares += (double)row[i] * row[i] / HIDDEN;
            for (int v = 0; v < VOCAB; v++) {
                logits[side][v] = 0;
                for (int i = 0; i < HIDDEN; i++)
                    logits[side][v] += row[i] / sqrt(squares + 1e-5) * f->norm[i] * f->head[v * HIDDEN + i];
                all[side] += exp(logits[side][v]);
            }
        }
        for (int v = 0; v < VOCAB; v++) {
            double p = logits[0][v] - log(all[0]), q = logits[1][v] - log(all[1]);
            sum += exp(p) * (p - q);
        }
    }
    return sum / count / TOKENS;
}

/* Folds what was learned, rounds with the packer, and carries the embedded windows through what it decodes to. */
static void written_model(fixture *f, float *x) {
    memcpy(x, f->embedded, ALL * sizeof *x);
    for (int layer = 0; layer < LAYERS; layer++) {
        qz_tuned tuned;
        qz_block *block = f->blocks[layer].block;
        assert_int_equal(qz_end_fold(&f->input, &f->options, layer, &tuned, NULL), BIS_OK);
        for (int i = 0; i < QZ_LINEARS; i++) {
            qz_packed packed = {0};
            qz_linear_id linear = (qz_linear_id)i;
            int outliers = f->spec.outliers[qz_site_of(linear)];
            qz_round_options round = {.format = {3, f->spec.group, f->spec.weight_symmetric, outliers},
                                      .grid = &tuned.grid[i]};
            assert_int_equal(qz_round(block->weight[i], qz_linear_rows(&SHAPE, linear), qz_linear_cols(&SHAPE, linear),
                                      &round, &packed, NULL),
                             BIS_OK);
            qz_packed_free(&packed);
        }
        qz_spec spec = f->spec;
        qz_pass pass = pass_of(f, layer);
        spec.weight_bits = 16;
        pass.spec = &spec;
        pass.act_clip = tuned.act_clip;
        assert_int_equal(qz_simulate(&pass, x, WINDOWS + FRESH, TOKENS, x, NULL), BIS_OK);
        qz_tuned_free(&tuned);
    }
}

/* f->x came through the blocks as tuning left them. */
static void check_stage(bool ordered) {
    fixture f;
    qz_end_result result;
    bis_error error = {0};
    open_fixture(&f, ordered, 0, 11);
    f.end_options.held_out = 0; /* all windows decide, so that the test can measure the same */
    double before = divergence(&f, f.x, 0, WINDOWS), fresh_before = divergence(&f, f.x, WINDOWS, FRESH);
    if (qz_end_to_end(&f.input, &f.end_options, &result, &error)) fail_msg("%s", error.text);
    /* batches of other sizes have other last bits, which now and then round an activation to its other side */
    assert_true(fabs(result.before - before) < 2e-3 * before);
    assert_true(result.best_epoch > 0);
    float *x = make(ALL, 0, 0);
    written_model(&f, x);
    double after = divergence(&f, x, 0, WINDOWS), fresh_after = divergence(&f, x, WINDOWS, FRESH);
    print_message("KL from %.4f to %.4f, of fresh windows from %.4f to %.4f\n", before, after, fresh_before,
                  fresh_after);
    assert_true(fabs(result.after - after) < 2e-3 * after);
    assert_true(after < 0.85 * before && fresh_after < 0.95 * fresh_before);
    free(x);
    close_fixture(&f);
}

static void test_the_stage_lowers_the_divergence_of_fresh_windows(void **state) {
    (void)state;
    check_stage(false);
    check_stage(true);
}

/* Without an epoch the written blocks give the very bits that the activations had after tuning; and these are what
 * tuning measured and qz_tune folds. */
static void check_begin(bool ordered) {
    fixture f;
    qz_end_result result;
    qz_tuned tuned;
    open_fixture(&f, ordered, 0, 11);
    float *x = make(ALL, 0, 0), *target = make(ALL, 0, 0);
    qz_block *twin = make_block(ordered, 0);
    qz_pass pass = pass_of(&f, 0), plain = pass;
    plain.mode = QZ_FLOAT;
    assert_int_equal(qz_simulate(&plain, f.embedded, WINDOWS, TOKENS, target, NULL), BIS_OK);
    assert_int_equal(qz_tune(twin, &pass, &f.options, f.embedded, target, WINDOWS, TOKENS, &tuned, NULL), BIS_OK);
    assert_true(tuned.loss_after == f.tuned_loss[0]);

    f.end_options.epochs = 0;
    assert_int_equal(qz_end_to_end(&f.input, &f.end_options, &result, NULL), BIS_OK);
    assert_true(result.best_epoch == 0 && result.after == result.before);
    written_model(&f, x);
    assert_memory_equal(x, f.x, ALL * sizeof *x);
    assert_memory_equal(twin->norm1, f.blocks[0].block->norm1, HIDDEN * sizeof(float));
    qz_tuned_free(&tuned);
    qz_block_free(twin);
    free(x);
    free(target);
    close_fixture(&f);
}

static void test_the_stage_begins_where_tuning_ended(void **state) {
    (void)state;
    check_begin(false);
    check_begin(true);
}

static uint64_t digest_of(int threads, uint64_t seed) {
    fixture f;
    qz_end_result result;
    uint64_t hash = 14695981039346656037u;
    open_fixture(&f, false, threads, seed);
    f.end_options.epochs = 4;
    assert_int_equal(qz_end_to_end(&f.input, &f.end_options, &result, NULL), BIS_OK);
    assert_true(result.best_epoch > 0);
    for (int i = 0; i < LAYERS; i++) {
        const uint8_t *bytes = (const uint8_t *)f.blocks[i].parameter;
        for (size_t b = 0; b < f.count * sizeof(float); b++) hash = (hash ^ bytes[b]) * 1099511628211u;
    }
    for (size_t b = 0; b < sizeof result.after; b++) hash = (hash ^ ((uint8_t *)&result.after)[b]) * 1099511628211u;
    close_fixture(&f);
    return hash;
}

static void test_one_seed_gives_one_result_on_any_threads(void **state) {
    (void)state;
    uint64_t first = digest_of(0, 1);
    for (int threads = 1; threads <= 3; threads++) assert_true(digest_of(threads, 1) == first);
    assert_true(digest_of(0, 2) != first);
}

static void check_start_kept(fixture *f, double rate, int epochs) {
    qz_tune_options wild = f->end_options;
    qz_end_result result;
    float *kept[LAYERS];
    wild.epochs = epochs;
    wild.lr_low_rank = wild.lr_smooth = rate;
    for (int i = 0; i < LAYERS; i++) {
        kept[i] = make(f->count, 0, 0);
        memcpy(kept[i], f->blocks[i].parameter, f->count * sizeof(float));
    }
    assert_int_equal(qz_end_to_end(&f->input, &wild, &result, NULL), BIS_OK);
    assert_true(result.best_epoch == 0 && result.after == result.before && result.before > 0);
    for (int i = 0; i < LAYERS; i++) {
        assert_memory_equal(kept[i], f->blocks[i].parameter, f->count * sizeof(float));
        free(kept[i]);
    }
}

static void test_the_start_is_kept_where_nothing_is_better(void **state) {
    (void)state;
    fixture f;
    open_fixture(&f, false, 0, 11);
    check_start_kept(&f, 1e2, 2);  /* ruins the model */
    check_start_kept(&f, 1e30, 2); /* no longer finite */
    close_fixture(&f);
}

static void test_allocation_failures_change_nothing(void **state) {
    (void)state;
    fixture f;
    qz_end_result result = {.best_epoch = 77};
    bis_error error;
    open_fixture(&f, false, 0, 11);
    float *kept = make(f.count, 0, 0);
    memcpy(kept, f.blocks[1].parameter, f.count * sizeof *kept);
    f.input.samples = 3;
    f.end_options.epochs = 1;
    int failures = 0;
    for (;; failures++) {
        bis_alloc_fail_after(failures);
        bis_status status = qz_end_to_end(&f.input, &f.end_options, &result, &error);
        bis_alloc_fail_after(-1);
        if (!status) break;
        assert_int_equal(status, BIS_ERR_NOMEM);
        assert_true(result.best_epoch == 77 && error.text[0]);
        assert_memory_equal(kept, f.blocks[1].parameter, f.count * sizeof *kept);
    }
    assert_true(failures > 10);
    f.end_options.batch = 0;
    assert_int_equal(qz_end_to_end(&f.input, &f.end_options, &result, &error), BIS_ERR_INVALID);
    free(kept);
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_stage_lowers_the_divergence_of_fresh_windows),
        cmocka_unit_test(test_the_stage_begins_where_tuning_ended),
        cmocka_unit_test(test_one_seed_gives_one_result_on_any_threads),
        cmocka_unit_test(test_the_start_is_kept_where_nothing_is_better),
        cmocka_unit_test(test_allocation_failures_change_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
