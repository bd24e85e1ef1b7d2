/* Fine-tuning: it lowers the error of blocks it has not seen the samples of; what it returns is what it measured; the
 * same seed gives the same bytes on any number of threads; parts can be switched off; failures leave the block alone.
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
#include "quantizer/tune.h"

enum { SAMPLES = 62, FRESH = 16, TOKENS = 20, PROMPT = 4, HIDDEN = 64, HEAD_DIM = 16 };

static const qz_shape SHAPE = {HIDDEN, 96, 4, 2, HEAD_DIM, 1e-5};

static uint64_t random_state;

static float random_float(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (float)(random_state >> 33) / 0x1p30f - 1;
}

/* About normal. */
static float random_normal(void) { return (random_float() + random_float() + random_float() + random_float()) * 0.87f; }

static float *make(size_t count, float size, float middle) {
    float *x = malloc((count + 1) * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < count; i++) x[i] = middle + size * random_normal();
    return x;
}

typedef struct fixture {
    qz_spec spec;
    qz_block *block;
    qz_pass pass;
    float *rope, *prompt_k, *prompt_v;
    float *x, *target; /* [SAMPLES + FRESH, TOKENS, HIDDEN] */
} fixture;

static void reverse_order(int32_t **order, int width) {
    *order = bis_malloc((size_t)width * sizeof **order);
    assert_non_null(*order);
    for (int i = 0; i < width; i++) (*order)[i] = width - 1 - i;
}

static qz_block *make_block(bool ordered) {
    qz_block *block;
    assert_int_equal(qz_block_alloc(&SHAPE, true, false, false, false, &block, NULL), BIS_OK);
    for (int i = 0; i < QZ_LINEARS; i++) {
        int rows = qz_linear_rows(&SHAPE, (qz_linear_id)i), cols = qz_linear_cols(&SHAPE, (qz_linear_id)i);
        for (int j = 0; j < rows * cols; j++) block->weight[i][j] = random_normal() / sqrtf((float)cols);
        for (int j = 0; j < rows && block->bias[i]; j++) block->bias[i][j] = 0.3f * random_normal();
    }
    for (int i = 0; i < HIDDEN; i++) {
        block->norm1[i] = i % 16 == 3 ? 8 : 1 + 0.2f * random_float(); /* channels larger than others */
        block->norm2[i] = i % 16 == 5 ? 8 : 1 + 0.2f * random_float();
    }
    for (int i = 0; i < QZ_SITE_DOWN && ordered; i++)
        reverse_order(&block->order[i], qz_site_width(&SHAPE, (qz_site)i));
    return block;
}

static qz_spec few_bits(void) {
    return (qz_spec){.weight_bits = 3, .act_bits = 3, .kv_bits = 3, .group = 32, .weight_symmetric = true};
}

static void open_fixture(fixture *f, qz_spec spec, bool ordered) {
    random_state = 5;
    *f = (fixture){.spec = spec, .block = make_block(ordered)};
    size_t keys = (size_t)PROMPT * (size_t)SHAPE.kv_heads * (size_t)HEAD_DIM,
           count = (size_t)(SAMPLES + FRESH) * TOKENS * HIDDEN;
    f->rope = make((size_t)(PROMPT + TOKENS) * HEAD_DIM, 0, 0);
    for (int t = 0; t < PROMPT + TOKENS; t++) {
        for (int i = 0; i < HEAD_DIM / 2; i++) {
            double angle = t * pow(0.1, 2.0 * i / HEAD_DIM);
            f->rope[t * HEAD_DIM + i] = (float)cos(angle);
            f->rope[t * HEAD_DIM + HEAD_DIM / 2 + i] = (float)sin(angle);
        }
    }
    f->prompt_k = make(keys, 1, 0);
    f->prompt_v = make(keys, 1, 0);
    f->x = make(count, 1, 0);
    f->target = make(count, 0, 0);
    f->pass = (qz_pass){.block = f->block, .spec = &f->spec, .rope_table = f->rope};
    f->pass.prompt = (qz_prompt){PROMPT, f->prompt_k, f->prompt_v};
    assert_int_equal(qz_simulate(&f->pass, f->x, SAMPLES + FRESH, TOKENS, f->target, NULL), BIS_OK);
}

static void close_fixture(fixture *f) {
    qz_block_free(f->block);
    float *const owned[] = {f->rope, f->prompt_k, f->prompt_v, f->x, f->target};
    for (int i = 0; i < 5; i++) free(owned[i]);
}

static qz_tune_options short_options(void) {
    qz_tune_options options = qz_tune_default_options();
    options.epochs = 8;
    options.rank = 8;
    options.lr_clip = options.lr_act_clip = 1e-2; /* fewer steps than usual, so larger ones */
    options.lr_smooth = options.lr_low_rank = 4e-3;
    options.seed = 11;
    return options;
}

/* Relative squared error of samples [first, first + count): weights as they are, or rounded to nearest. */
static double error_of(const fixture *f, bool round, const float *act_clip, int first, int count) {
    size_t size = (size_t)TOKENS * HIDDEN, from = (size_t)first * size;
    float *y = make((size_t)count * size, 0, 0);
    qz_spec spec = f->spec;
    qz_pass pass = f->pass;
    double sum = 0, all = 0;
    if (!round) spec.weight_bits = 16;
    pass.spec = &spec;
    pass.mode = QZ_QUANTIZED;
    pass.act_clip = act_clip;
    assert_int_equal(qz_simulate(&pass, f->x + from, count, TOKENS, y, NULL), BIS_OK);
    for (size_t i = 0; i < (size_t)count * size; i++) {
        double difference = (double)y[i] - f->target[from + i];
        sum += difference * difference;
        all += (double)f->target[from + i] * f->target[from + i];
    }
    free(y);
    return sum / all;
}

/* Rounds the block to the tuned grids with the kernels' own function. */
static void round_to_grids(fixture *f, const qz_tuned *tuned) {
    for (int i = 0; i < QZ_LINEARS && f->spec.weight_bits != 16; i++) {
        int rows = qz_linear_rows(&SHAPE, (qz_linear_id)i), cols = qz_linear_cols(&SHAPE, (qz_linear_id)i);
        int outliers = f->spec.outliers[qz_site_of((qz_linear_id)i)];
        kn_weight_format format = {f->spec.weight_bits, f->spec.group, f->spec.weight_symmetric, outliers};
        kn_weight_format wide = {8, f->spec.group, true, 0};
        int groups = kn_weight_groups(&format, cols);
        for (int r = 0; r < rows; r++) {
            float *row = f->block->weight[i] + r * cols, low = 0, high = 0, scale;
            int zero = 0;
            for (int c = cols - outliers; c < cols; c++) {
                low = fminf(low, row[c]);
                high = fmaxf(high, row[c]);
            }
            kn_weight_scale(&wide, low, high, &scale, &zero);
            for (int c = cols - outliers; c < cols; c++)
                row[c] = (float)kn_weight_encode(&wide, row[c], scale, zero) * scale;
            for (int c = 0; c < cols - outliers; c++) {
                int at = r * groups + c / f->spec.group;
                scale = tuned->grid[i].scales[at];
                assert_true(scale == kn_f16_to_f32(kn_f32_to_f16(scale)));
                zero = tuned->grid[i].zeros ? tuned->grid[i].zeros[at] : 0;
                row[c] = (float)(kn_weight_encode(&format, row[c], scale, zero) - zero) * scale;
            }
        }
    }
}

static void run(fixture *f, const qz_tune_options *options, qz_tuned *out) {
    bis_error error = {0};
    if (qz_tune(f->block, &f->pass, options, f->x, f->target, SAMPLES, TOKENS, out, &error)) fail_msg("%s", error.text);
}

/* Tunes and returns how much of the fresh samples' error is left; the result's own figures are checked. */
static double check_tuning(qz_spec spec, bool ordered, qz_tune_options options) {
    fixture f;
    qz_tuned tuned;
    open_fixture(&f, spec, ordered);
    options.held_out = 0; /* all samples decide, so that the test can measure the same */
    double before = error_of(&f, true, NULL, 0, SAMPLES), fresh_before = error_of(&f, true, NULL, SAMPLES, FRESH);
    run(&f, &options, &tuned);
    /* products of other shapes have other last bits, which now and then round an activation to its other side */
    double tolerance = spec.act_bits == 16 ? 1e-6 : 1e-3;
    assert_true(fabs(tuned.loss_before - before) <= tolerance * before);
    assert_true(tuned.best_epoch >= 1 && tuned.best_epoch <= options.epochs && tuned.loss_after < tuned.loss_before);
    round_to_grids(&f, &tuned);
    double after = error_of(&f, false, tuned.act_clip, 0, SAMPLES);
    assert_true(fabs(tuned.loss_after - after) <= tolerance * after);
    double fresh_after = error_of(&f, false, tuned.act_clip, SAMPLES, FRESH);
    qz_tuned_free(&tuned);
    close_fixture(&f);
    return fresh_after / fresh_before;
}

static void test_tuning_lowers_the_error_of_fresh_samples(void **state) {
    (void)state;
    double left = check_tuning(few_bits(), false, short_options());
    print_message("plain W3A3KV3: %.2f of the error left\n", left);
    assert_true(left < 0.7);
    qz_spec atom = few_bits();
    atom.key_before_rope = true;
    atom.weight_symmetric = false;
    for (int i = 0; i < QZ_SITES; i++) atom.outliers[i] = 4;
    left = check_tuning(atom, true, short_options());
    print_message("with an order and outlier columns, asymmetric: %.2f\n", left);
    assert_true(left < 0.7);
    qz_spec rotated = few_bits();
    rotated.key_hadamard = rotated.heads_hadamard = rotated.ffn_hadamard = true;
    left = check_tuning(rotated, false, short_options());
    print_message("with Hadamards: %.2f\n", left);
    assert_true(left < 0.8);
    qz_spec weights = few_bits();
    weights.act_bits = weights.kv_bits = 16;
    left = check_tuning(weights, false, short_options());
    print_message("weights alone: %.2f\n", left);
    assert_true(left < 0.85);
}

static void test_each_part_can_be_switched_off(void **state) {
    (void)state;
    for (int part = 0; part < 4; part++) {
        qz_tune_options without = short_options(), alone = short_options();
        bool *const first[] = {&without.clip, &without.smooth, &without.low_rank, &without.act_clip};
        bool *const second[] = {&alone.clip, &alone.smooth, &alone.low_rank, &alone.act_clip};
        for (int i = 0; i < 4; i++) *second[i] = i == part;
        *first[part] = false;
        /* alone where it matters: compensation and clips of weights cannot help what few bits do to activations */
        qz_spec spec = few_bits();
        if (part == 0 || part == 2) spec.act_bits = spec.kv_bits = 16;
        if (part == 3) spec.weight_bits = 16;
        double most = check_tuning(few_bits(), false, without), one = check_tuning(spec, false, alone);
        print_message("part %d: without it %.2f of the error left, with it alone %.2f\n", part, most, one);
        assert_true(most < 0.95 && one < 0.98);
    }
}

/* Everything a tuning returns, as one number for each call. */
static uint64_t digest(const fixture *f, const qz_tuned *tuned) {
    uint64_t hash = 14695981039346656037u;
#define ADD(data, bytes)                                                                                               \
    for (size_t b_ = 0; b_ < (bytes); b_++) hash = (hash ^ ((const uint8_t *)(data))[b_]) * 1099511628211u
    for (int i = 0; i < QZ_LINEARS; i++) {
        int rows = qz_linear_rows(&SHAPE, (qz_linear_id)i), cols = qz_linear_cols(&SHAPE, (qz_linear_id)i);
        kn_weight_format format = {3, f->spec.group, true, f->spec.outliers[qz_site_of((qz_linear_id)i)]};
        size_t count = (size_t)rows * (size_t)kn_weight_groups(&format, cols);
        ADD(f->block->weight[i], (size_t)rows * (size_t)cols * sizeof(float));
        if (tuned->grid[i].scales) ADD(tuned->grid[i].scales, count * sizeof(float));
        if (tuned->grid[i].zeros) ADD(tuned->grid[i].zeros, count);
    }
    ADD(f->block->norm1, HIDDEN * sizeof(float));
    ADD(f->block->norm2, HIDDEN * sizeof(float));
    ADD(tuned->act_clip, sizeof tuned->act_clip);
    ADD(&tuned->loss_after, sizeof tuned->loss_after);
#undef ADD
    return hash;
}

static uint64_t digest_of(int threads, uint64_t seed) {
    fixture f;
    qz_tuned tuned;
    qz_compute *compute = NULL;
    qz_spec spec = few_bits();
    qz_tune_options options = short_options();
    spec.weight_symmetric = false;
    options.epochs = 2;
    options.seed = seed;
    open_fixture(&f, spec, false);
    if (threads) assert_int_equal(qz_compute_open(threads, &compute, NULL), BIS_OK);
    f.pass.compute = compute;
    run(&f, &options, &tuned);
    assert_true(tuned.best_epoch > 0);
    uint64_t result = digest(&f, &tuned);
    qz_tuned_free(&tuned);
    close_fixture(&f);
    qz_compute_close(compute);
    return result;
}

static void test_one_seed_gives_one_result_on_any_threads(void **state) {
    (void)state;
    uint64_t first = digest_of(0, 1);
    for (int threads = 0; threads <= 3; threads++) assert_true(digest_of(threads, 1) == first);
    assert_true(digest_of(0, 2) != first);
}

static void check_start_kept(qz_tune_options options) {
    fixture f;
    qz_tuned tuned, nothing = {0};
    float clips[QZ_SITES] = {0.8f, 0.9f, 1, 0.7f};
    open_fixture(&f, few_bits(), false);
    f.pass.act_clip = clips;
    double before = error_of(&f, true, clips, 0, SAMPLES);
    uint64_t block = digest(&f, &nothing);
    run(&f, &options, &tuned);
    assert_true(digest(&f, &nothing) == block);
    assert_int_equal(tuned.best_epoch, 0);
    assert_true(tuned.loss_after == tuned.loss_before);
    assert_memory_equal(tuned.act_clip, clips, sizeof clips);
    round_to_grids(&f, &tuned);
    assert_true(error_of(&f, false, clips, 0, SAMPLES) == before);
    qz_tuned_free(&tuned);
    close_fixture(&f);
}

static void test_start_is_kept_where_nothing_is_better(void **state) {
    (void)state;
    qz_tune_options off = short_options(), none = short_options(), wild = short_options();
    off.clip = off.smooth = off.low_rank = off.act_clip = false;
    check_start_kept(off);
    none.epochs = 0;
    check_start_kept(none);
    wild.epochs = 2;
    wild.lr_low_rank = 1e3; /* ruins the block */
    check_start_kept(wild);
    wild.lr_low_rank = wild.lr_smooth = 1e30; /* no longer finite */
    check_start_kept(wild);
}

static int steps_seen;

static void count_step(void *user, int done, int total) {
    assert_ptr_equal(user, &steps_seen);
    steps_seen++;
    assert_int_equal(done, steps_seen);
    assert_int_equal(total, 3 * 14);
}

/* 62 samples, 8 held out: 54 in batches of 4 are 14 steps, the last with two samples. */
static void test_steps_are_told(void **state) {
    (void)state;
    fixture f;
    qz_tuned tuned;
    qz_tune_options options = short_options();
    options.epochs = 3;
    options.on_step = count_step;
    options.on_step_user = &steps_seen;
    open_fixture(&f, few_bits(), false);
    run(&f, &options, &tuned);
    assert_int_equal(steps_seen, 42);
    qz_tuned_free(&tuned);
    close_fixture(&f);
}

static void test_16_bits_have_no_grid(void **state) {
    (void)state;
    fixture f;
    qz_tuned tuned;
    qz_spec spec = few_bits();
    qz_tune_options options = short_options();
    spec.weight_bits = 16;
    options.epochs = 2;
    open_fixture(&f, spec, false);
    run(&f, &options, &tuned);
    for (int i = 0; i < QZ_LINEARS; i++) assert_true(!tuned.grid[i].scales && !tuned.grid[i].zeros);
    assert_true(tuned.loss_after < tuned.loss_before);
    qz_tuned_free(&tuned);
    close_fixture(&f);
}

static void test_bad_options_are_refused(void **state) {
    (void)state;
    fixture f;
    open_fixture(&f, few_bits(), false);
    for (int i = 0; i < 6; i++) {
        qz_tuned tuned = {.best_epoch = 77};
        qz_tune_options bad = short_options();
        bis_error error = {0};
        if (i == 0) bad.batch = 0;
        if (i == 1) bad.epochs = -1;
        if (i == 2) bad.rank = -1;
        if (i == 3) bad.held_out = 1;
        if (i == 4) bad.held_out = NAN;
        int samples = i == 5 ? 0 : SAMPLES;
        assert_int_equal(qz_tune(f.block, &f.pass, &bad, f.x, f.target, samples, TOKENS, &tuned, &error),
                         BIS_ERR_INVALID);
        assert_true(error.text[0] && tuned.best_epoch == 77);
    }
    close_fixture(&f);
}

static void test_allocation_failures_leave_the_block_alone(void **state) {
    (void)state;
    fixture f;
    qz_tuned tuned = {0}, nothing = {0};
    qz_tune_options options = short_options();
    qz_spec spec = few_bits();
    options.epochs = 1;
    spec.weight_symmetric = false;
    spec.key_hadamard = spec.heads_hadamard = spec.ffn_hadamard = true;
    open_fixture(&f, spec, false);
    uint64_t before = digest(&f, &nothing);
    int failures = 0;
    for (;; failures++) {
        bis_alloc_fail_after(failures);
        bis_status status = qz_tune(f.block, &f.pass, &options, f.x, f.target, 2, TOKENS, &tuned, NULL);
        bis_alloc_fail_after(-1);
        if (!status) break;
        assert_int_equal(status, BIS_ERR_NOMEM);
        assert_true(digest(&f, &nothing) == before && !tuned.grid[0].scales);
    }
    assert_true(failures > 30);
    qz_tuned_free(&tuned);
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tuning_lowers_the_error_of_fresh_samples),
        cmocka_unit_test(test_each_part_can_be_switched_off),
        cmocka_unit_test(test_one_seed_gives_one_result_on_any_threads),
        cmocka_unit_test(test_start_is_kept_where_nothing_is_better),
        cmocka_unit_test(test_steps_are_told),
        cmocka_unit_test(test_16_bits_have_no_grid),
        cmocka_unit_test(test_bad_options_are_refused),
        cmocka_unit_test(test_allocation_failures_leave_the_block_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
