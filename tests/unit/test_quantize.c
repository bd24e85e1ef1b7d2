/* The quantizer's pipeline without the numerics: calibration windows, files of tensors, run folders, the whole
 * command's failures when memory is short. The whole chain is tested through the program (tests/cli/test_quantize.py).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "config/options.h"
#include "kernels/tensor.h"
#include "quantizer/block_file.h"
#include "quantizer/calibration.h"
#include "quantizer/memory_plan.h"
#include "quantizer/method.h"
#include "quantizer/quantize.h"
#include "quantizer/report.h"
#include "quantizer/run_folder.h"
#include "quantizer/safetensors_writer.h"
#include "quantizer/tune.h"
#include "tests/support/scratch.h"

static int tear_down(void **state) {
    (void)state;
    bis_alloc_fail_after(-1);
    return 0;
}

/* ---- Methods ---- */

static void outlier_columns_follow_the_width(void **state) {
    (void)state;
    static const struct {
        int wanted, width, hidden, expected;
    } cases[] = {
        {0, 4096, 4096, 128},   {0, 11008, 4096, 128},   {0, 3584, 3584, 112}, {0, 256, 256, 8},
        {0, 768, 256, 24},      {0, 128, 128, 8},        {0, 20, 20, 8},       {0, 8, 8, 0},
        {128, 4096, 4096, 128}, {128, 11008, 4096, 344}, {16, 768, 256, 48},   {16, 128, 256, 8},
        {128, 256, 256, 128},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(qz_outlier_columns(cases[i].wanted, cases[i].width, cases[i].hidden), cases[i].expected);
    }
}

static void every_method_of_the_command_line_exists(void **state) {
    (void)state;
    static const char *const names[] = {"rtn", "gptq", "atom", "quarot", "bisup-atom", "bisup-quarot"};
    for (int i = 0; i < 6; i++) {
        const qz_method *method = qz_method_find(names[i]);
        assert_non_null(method);
        assert_int_equal(cfg_choice_index(CFG_OPTION_method, names[i]), i);
        assert_true(qz_method_act_clip(method, 8) == 1 && qz_method_weight_clip(method, 8) == 1);
    }
    assert_int_equal(cfg_choice_index(CFG_OPTION_method, "awq"), -1);
    assert_null(qz_method_find("awq"));
}

/* The table of options repeats the tuner's defaults, so that the help shows them. */
static void the_command_lines_defaults_are_the_tuners(void **state) {
    (void)state;
    cfg_options c;
    bis_error error;
    char *arguments[] = {"m", "o", "--calibration", "t"};
    assert_int_equal(cfg_load(CFG_QUANTIZE, 4, arguments, &c, &error), BIS_OK);
    qz_tune_options t = qz_tune_default_options();
    assert_int_equal(c.epochs, t.epochs);
    assert_int_equal(c.batch_samples, t.batch);
    assert_int_equal(c.rank, t.rank);
    assert_true(c.lr_clip == t.lr_clip && c.lr_smooth == t.lr_smooth);
    assert_true(c.lr_low_rank == t.lr_low_rank && c.lr_act_clip == t.lr_act_clip);
    assert_true(c.clip == t.clip && c.smooth == t.smooth && c.low_rank == t.low_rank && c.act_clip == t.act_clip);
    assert_true(c.error_cancelling == t.error_cancelling);
    cfg_options_free(&c);
}

/* ---- Calibration windows ---- */

enum { WINDOWS_MAX = 64 };

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* The smallest distance of two windows' places. */
static uint64_t draw_and_check(uint64_t tokens, int window, int samples, uint64_t seed) {
    uint64_t starts[WINDOWS_MAX], again[WINDOWS_MAX], closest = UINT64_MAX;
    bis_error error;
    if (qz_calibration_draw(tokens, window, samples, seed, starts, &error)) fail_msg("%s", error.text);
    assert_int_equal(qz_calibration_draw(tokens, window, samples, seed, again, &error), BIS_OK);
    assert_memory_equal(starts, again, (size_t)samples * sizeof *starts);
    qsort(starts, (size_t)samples, sizeof *starts, by_value);
    for (int i = 0; i < samples; i++) {
        assert_true(starts[i] + (uint64_t)window <= tokens);
        if (i && starts[i] - starts[i - 1] < closest) closest = starts[i] - starts[i - 1];
    }
    return closest;
}

static void windows_do_not_overlap_where_the_text_is_long_enough(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        assert_true(draw_and_check(1000, 10, 64, seed) >= 10);
        assert_true(draw_and_check(640, 10, 64, seed) >= 10);
        assert_true(draw_and_check(649, 10, 64, seed) >= 10);
        draw_and_check(10, 10, 1, seed);
        draw_and_check(1000, 7, 1, seed);
    }
}

static void windows_overlap_by_half_at_most(void **state) {
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        for (uint64_t tokens = 10 + 63 * 5; tokens < 640; tokens += 13) {
            assert_true(draw_and_check(tokens, 10, 64, seed) >= 5);
        }
        assert_true(draw_and_check(11 + 4 * 6, 11, 5, seed) >= 6);
    }
}

static void seeds_draw_different_windows(void **state) {
    (void)state;
    uint64_t a[8], b[8];
    assert_int_equal(qz_calibration_draw(100000, 10, 8, 1, a, NULL), BIS_OK);
    assert_int_equal(qz_calibration_draw(100000, 10, 8, 2, b, NULL), BIS_OK);
    assert_memory_not_equal(a, b, sizeof a);
}

static void too_little_text_says_what_is_needed(void **state) {
    (void)state;
    uint64_t starts[WINDOWS_MAX];
    bis_error error;
    assert_int_equal(qz_calibration_draw(10 + 63 * 5 - 1, 10, 64, 0, starts, &error), BIS_ERR_INVALID);
    assert_string_equal(error.text,
                        "the calibration text has 324 tokens, but 64 windows of 10 need at least 325 (640 to "
                        "not overlap): give more text, fewer --samples or a shorter --seq-len");
    assert_int_equal(qz_calibration_draw(0, 1, 1, 0, starts, &error), BIS_ERR_INVALID);
}

/* The demo model's tokenizer puts <s> (1) before a text. */
static void read_calibration(const char *text, const char *prompt, int samples, int seq_len, qz_calibration *out) {
    char text_path[256], prompt_path[256];
    rt_tokenizer *tokenizer;
    bis_error error;
    scratch_write_text("text", text);
    snprintf(text_path, sizeof text_path, "%s", scratch_path("text"));
    if (prompt) scratch_write_text("prompt", prompt);
    snprintf(prompt_path, sizeof prompt_path, "%s", scratch_path("prompt"));
    qz_calibration_options options = {text_path, prompt ? prompt_path : NULL, samples, seq_len, 1024, 2048, 0};
    assert_int_equal(rt_tokenizer_open("models/demo", &tokenizer, &error), BIS_OK);
    if (qz_calibration_read(&options, tokenizer, out, &error)) fail_msg("%s", error.text);
    rt_tokenizer_close(tokenizer);
}

static void windows_begin_as_texts_do(void **state) {
    (void)state;
    static const char text[] =
        "One day the little boat went out on the wide sea and saw a big whale. <|im_end|> The end.";
    qz_calibration c, with_prompt;
    scratch_make();
    read_calibration(text, NULL, 3, 8, &c);
    assert_int_equal(c.samples, 3);
    assert_int_equal(c.tokens, 8);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(c.ids[i * 8], 1);
        for (int j = 1; j < 8; j++) assert_int_not_equal(c.ids[i * 8 + j], 1);
    }
    read_calibration(text, "Be kind.", 2, 8, &with_prompt);
    assert_true(with_prompt.prompt_tokens > 1);
    assert_int_equal(with_prompt.prompt[0], 1);
    for (int i = 0; i < 16; i++) assert_int_not_equal(with_prompt.ids[i], 1);
    assert_true(c.text_tokens == with_prompt.text_tokens && c.text_hash == with_prompt.text_hash);
    assert_int_not_equal(with_prompt.prompt_hash, 0);
    qz_calibration_free(&c);
    /* Names of special tokens are these tokens: <|im_end|> is one, so one window of all tokens holds id 4. */
    read_calibration(text, NULL, 1, (int)with_prompt.text_tokens + 1, &c);
    int found = 0;
    for (int i = 0; i < c.tokens; i++) found += c.ids[i] == 4;
    assert_int_equal(found, 1);
    qz_calibration_free(&c);
    qz_calibration_free(&with_prompt);
    scratch_remove();
}

/* ---- Files of tensors ---- */

static bis_status put_bytes(void *user, qz_sink *sink, bis_error *error) {
    (void)error;
    int count = *(int *)user;
    for (int i = 0; i < count; i++) {
        unsigned char byte = (unsigned char)(i * 7);
        if (!qz_sink_put(sink, &byte, 1)) break;
    }
    return BIS_OK;
}

static void written_tensors_are_read_again_and_aligned(void **state) {
    (void)state;
    static const uint8_t bytes[3] = {1, 2, 3};
    static const uint16_t halves[2] = {0x3c00, 0x4000};
    static const float floats[2] = {0.5f, -7};
    static const int32_t integers[1] = {-5};
    static const double doubles[1] = {M_PI};
    int filled = 10;
    qz_tensors list = {0};
    bis_error error;
    scratch_make();
    qz_tensors_add(&list, "z.bytes", RT_STORED_U8, 3, 0, bytes);
    qz_tensors_add(&list, "halves", RT_STORED_F16, 1, 2, halves);
    qz_tensors_add(&list, "b.floats", RT_STORED_F32, 2, 1, floats);
    qz_tensors_add(&list, "integers", RT_STORED_I32, 1, 0, integers);
    qz_tensors_add(&list, "a.doubles", RT_STORED_F64, 1, 0, doubles);
    qz_tensor *streamed = qz_tensors_add(&list, "a.streamed", RT_STORED_I8, 5, 2, NULL);
    streamed->fill = put_bytes;
    streamed->user = &filled;
    if (qz_tensors_write(&list, scratch_path("t"), &error)) fail_msg("%s", error.text);
    rt_safetensors *file;
    if (rt_safetensors_open(scratch_path("t"), &file, &error)) fail_msg("%s", error.text);
    assert_int_equal(rt_safetensors_count(file), 6);
    for (size_t i = 0; i < list.count; i++) {
        const qz_tensor *in = &list.items[i];
        const rt_stored_tensor *out = rt_safetensors_find(file, in->name);
        assert_non_null(out);
        assert_int_equal(out->type, in->type);
        assert_int_equal(out->dims, in->dims);
        for (int d = 0; d < in->dims; d++) assert_true(out->shape[d] == in->shape[d]);
        assert_int_equal(out->bytes, qz_tensor_bytes(in));
        size_t elements = (size_t)in->shape[0] * (in->dims == 2 ? (size_t)in->shape[1] : 1);
        assert_int_equal((uintptr_t)out->data % (out->bytes / elements), 0);
        if (in->data) assert_memory_equal(out->data, in->data, out->bytes);
        else assert_int_equal(((const unsigned char *)out->data)[9], 63);
    }
    rt_safetensors_close(file);
    /* A tensor that is given too few or too many bytes leaves no file. */
    for (filled = 9; filled <= 11; filled += 2) {
        assert_int_equal(qz_tensors_write(&list, scratch_path("u"), &error), BIS_ERR_INTERNAL);
        assert_int_equal(access(scratch_path("u"), F_OK), -1);
        assert_int_equal(access(scratch_path("u.new"), F_OK), -1);
    }
    assert_int_equal(qz_tensors_write(&list, "/nowhere/file", &error), BIS_ERR_IO);
    assert_string_equal(error.text, "cannot write /nowhere/file: No such file or directory");
    qz_tensors_free(&list);
    scratch_remove();
}

static void a_full_disk_is_reported_and_leaves_nothing(void **state) {
    (void)state;
    bis_error error;
    if (access("/dev/full", W_OK)) skip();
    scratch_make();
    assert_int_equal(symlink("/dev/full", scratch_path("x.new")), 0);
    assert_int_equal(qz_file_write(scratch_path("x"), "abc", 3, &error), BIS_ERR_IO);
    assert_non_null(strstr(error.text, "No space left on device"));
    assert_int_equal(access(scratch_path("x"), F_OK), -1);
    scratch_remove();
}

/* ---- A block's file ---- */

static float some_number(int i) { return (float)((i * 7919 + 13) % 1009) / 1009.0f - 0.5f; }

static void fill(qz_real *values, int count, int salt) {
    for (int i = 0; values && i < count; i++) values[i] = some_number(i + salt * 31);
}

static qz_block *make_block(const qz_shape *shape) {
    qz_block *block;
    bis_error error;
    assert_int_equal(qz_block_alloc(shape, true, false, true, true, &block, &error), BIS_OK);
    for (int l = 0; l < QZ_LINEARS; l++) {
        int rows = qz_linear_rows(shape, (qz_linear_id)l), cols = qz_linear_cols(shape, (qz_linear_id)l);
        fill(block->weight[l], rows * cols, l);
        fill(block->bias[l], rows, l + 10);
    }
    fill(block->norm1, shape->hidden, 20);
    fill(block->norm2, shape->hidden, 21);
    fill(block->q_norm, shape->head_dim, 22);
    fill(block->k_norm, shape->head_dim, 23);
    block->order[QZ_SITE_O] = bis_calloc((size_t)qz_site_width(shape, QZ_SITE_O), sizeof(int32_t));
    assert_non_null(block->order[QZ_SITE_O]);
    for (int i = 0; i < qz_site_width(shape, QZ_SITE_O); i++)
        block->order[QZ_SITE_O][i] = (i + 5) % qz_site_width(shape, QZ_SITE_O);
    return block;
}

static void check_block_file(const qz_spec *spec) {
    static const qz_shape shape = {40, 72, 4, 2, 12, 1e-5}; /* ragged groups everywhere */
    static const float clip[QZ_SITES] = {0.9f, 0.8f, 1, 0.7f};
    qz_block *block = make_block(&shape), *read = NULL;
    qz_packed packed[QZ_LINEARS] = {0};
    qz_block_figures figures = {.loss_before = 0.25, .best_epoch = 3}, figures_read;
    float clip_read[QZ_SITES];
    bis_error error;
    for (int l = 0; l < QZ_LINEARS && spec->weight_bits < KN_NOT_QUANTIZED; l++) {
        qz_linear_id id = (qz_linear_id)l;
        qz_round_options options = {
            .format = {spec->weight_bits, spec->group, spec->weight_symmetric, spec->outliers[qz_site_of(id)]},
            .clip = 1};
        if (qz_round(block->weight[l], qz_linear_rows(&shape, id), qz_linear_cols(&shape, id), &options, &packed[l],
                     &error)) {
            fail_msg("%s", error.text);
        }
    }
    if (qz_block_file_write(scratch_path("b"), 7, block, spec, packed, clip, &figures, &error))
        fail_msg("%s", error.text);
    if (qz_block_file_read(scratch_path("b"), 7, block, spec, &read, clip_read, &figures_read, &error)) {
        fail_msg("%s", error.text);
    }
    assert_memory_equal(clip, clip_read, sizeof clip);
    assert_memory_equal(&figures, &figures_read, sizeof figures);
    double bytes = 0;
    for (int l = 0; l < QZ_LINEARS; l++) {
        qz_linear_id id = (qz_linear_id)l;
        int rows = qz_linear_rows(&shape, id), cols = qz_linear_cols(&shape, id);
        kn_weight_format format = {spec->weight_bits, spec->group, spec->weight_symmetric,
                                   spec->outliers[qz_site_of(id)]};
        bool half = spec->weight_bits == KN_NOT_QUANTIZED;
        bytes += half ? 2.0 * rows * cols : (double)kn_weight_bytes(&format, rows, cols);
        for (int i = 0; i < rows * cols; i++) { /* qz_round left the decoded values in the block */
            float expected = half ? kn_f16_to_f32(kn_f32_to_f16(block->weight[l][i])) : block->weight[l][i];
            assert_true(read->weight[l][i] == expected);
        }
        assert_true(!block->bias[l] == !read->bias[l]);
        if (block->bias[l]) assert_memory_equal(block->bias[l], read->bias[l], (size_t)rows * sizeof(float));
        qz_packed_free(&packed[l]);
    }
    assert_true(figures.linear_bytes == bytes);
    assert_memory_equal(block->norm1, read->norm1, 40 * sizeof(float));
    assert_memory_equal(block->k_norm, read->k_norm, 12 * sizeof(float));
    assert_memory_equal(block->order[QZ_SITE_O], read->order[QZ_SITE_O], 48 * sizeof(int32_t));
    assert_null(read->order[QZ_SITE_FFN]);
    qz_block_free(read);
    /* Another layer's, or other formats: refused, with the file's name. */
    read = NULL;
    assert_int_equal(qz_block_file_read(scratch_path("b"), 8, block, spec, &read, clip_read, &figures_read, &error),
                     BIS_ERR_FORMAT);
    assert_non_null(strstr(error.text, scratch_path("b")));
    qz_spec other = *spec;
    other.weight_bits = spec->weight_bits == 4 ? 3 : 4;
    assert_int_equal(qz_block_file_read(scratch_path("b"), 7, block, &other, &read, clip_read, &figures_read, &error),
                     BIS_ERR_FORMAT);
    assert_null(read);
    qz_block_free(block);
}

static void a_blocks_file_gives_back_the_decoded_block(void **state) {
    (void)state;
    qz_spec specs[] = {
        {.weight_bits = 3, .act_bits = 3, .kv_bits = 3, .group = 32, .weight_symmetric = true},
        {.weight_bits = 4, .act_bits = 4, .kv_bits = 4, .group = 32, .weight_symmetric = false},
        {.weight_bits = 3,
         .act_bits = 4,
         .kv_bits = 4,
         .group = 64,
         .weight_symmetric = true,
         .outliers = {8, 8, 8, 16}},
        {.weight_bits = 8, .act_bits = 8, .kv_bits = 8, .group = 128, .outliers = {8, 8, 8, 16}},
        {.weight_bits = 16, .act_bits = 16, .kv_bits = 3, .group = 128},
    };
    scratch_make();
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) check_block_file(&specs[i]);
    scratch_remove();
}

static void weights_that_f16_cannot_hold_are_refused(void **state) {
    (void)state;
    static const qz_shape shape = {8, 16, 2, 1, 4, 1e-5};
    static const float clip[QZ_SITES] = {1, 1, 1, 1};
    qz_spec spec = {.weight_bits = 16, .act_bits = 16, .kv_bits = 16, .group = 128};
    qz_block *block = make_block(&shape);
    qz_packed packed[QZ_LINEARS] = {0};
    qz_block_figures figures = {0};
    bis_error error;
    scratch_make();
    block->weight[QZ_UP][5] = 70000;
    assert_int_equal(qz_block_file_write(scratch_path("b"), 0, block, &spec, packed, clip, &figures, &error),
                     BIS_ERR_INVALID);
    assert_string_equal(error.text, "mlp.up_proj holds 70000, which F16 cannot store: quantize the weights");
    assert_int_equal(access(scratch_path("b"), F_OK), -1);
    qz_block_free(block);
    scratch_remove();
}

/* ---- Run folders ---- */

static bis_buf text_of(const char *text) {
    bis_buf buf = {0};
    assert_true(bis_buf_puts(&buf, text));
    return buf;
}

/* Runs a command in the scratch folder. */
static void shell(const char *command) {
    bis_buf line = {0};
    assert_true(bis_buf_printf(&line, "cd '%s'; %s", scratch_path("."), command));
    assert_int_equal(system(bis_buf_cstr(&line)), 0);
    bis_buf_free(&line);
}

/* "SCRATCH/name", in memory that two calls share. */
static const char *inside(const char *name) {
    static char paths[2][256];
    static int turn;
    turn = !turn;
    snprintf(paths[turn], sizeof paths[turn], "%s", scratch_path(name));
    return paths[turn];
}

static void a_run_goes_on_only_with_the_same_identity(void **state) {
    (void)state;
    bis_buf mine = text_of("{\"a\":1}"), other = text_of("{\"a\":2}");
    qz_run_folder folder, second;
    bis_error error;
    char path[PATH_MAX], out[256];
    scratch_make();
    snprintf(out, sizeof out, "%s", scratch_path("out"));
    if (qz_run_folder_open(out, false, &mine, &folder, &error)) fail_msg("%s", error.text);
    assert_int_equal(qz_run_folder_file(&folder, QZ_FILE_BLOCK, 0, path, &error), BIS_OK);
    assert_int_equal(qz_file_write(path, "block", 5, &error), BIS_OK);
    assert_int_equal(qz_run_folder_open(out, false, &mine, &second, &error), BIS_ERR_BUSY); /* it is locked */
    close(folder.lock);                                                                     /* the process was killed */
    assert_int_equal(qz_run_folder_open(out, false, &other, &second, &error), BIS_ERR_INVALID);
    assert_non_null(strstr(error.text, "--force"));
    assert_int_equal(access(path, F_OK), 0);
    if (qz_run_folder_open(out, false, &mine, &second, &error)) fail_msg("%s", error.text);
    assert_int_equal(access(path, F_OK), 0);
    close(second.lock);
    if (qz_run_folder_open(out, true, &other, &second, &error)) fail_msg("%s", error.text);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(access(out, F_OK), -1);
    assert_int_equal(bis_join_path(second.result, "bisup_report.json", path, sizeof path, &error), BIS_OK);
    assert_int_equal(qz_file_write(path, "{}", 2, &error), BIS_OK);
    if (qz_run_folder_finish(&second, &error)) fail_msg("%s", error.text);
    assert_int_equal(access(scratch_path("out.partial"), F_OK), -1);
    assert_int_equal(access(scratch_path("out/bisup_report.json"), F_OK), 0);
    bis_buf_free(&mine);
    bis_buf_free(&other);
    shell("rm -rf out");
    scratch_remove();
}

static void expect_refused(const char *model, const char *out, bool force, const char *says) {
    bis_error error = {0};
    assert_int_equal(qz_run_folder_check(model, out, force, &error), BIS_ERR_INVALID);
    if (!strstr(error.text, says)) fail_msg("%s", error.text);
}

static void only_safe_places_are_written(void **state) {
    (void)state;
    bis_error error;
    scratch_make();
    shell("mkdir m m/in empty old old/sub ours && touch m/config.json old/x ours/bisup_report.json && ln -s m link");
    expect_refused(inside("m"), inside("m"), true, "lie in each other");
    expect_refused(inside("m"), inside("m/new"), true, "lie in each other");
    expect_refused(inside("m"), inside("m/in/new"), true, "lie in each other");
    expect_refused(inside("m"), inside("link/new"), true, "lie in each other");
    expect_refused(inside("m"), inside("."), true, "lie in each other");
    expect_refused(inside("m"), inside("old"), true, "no quantized model");
    expect_refused(inside("m"), inside("m/config.json"), true, "lie in each other");
    expect_refused(inside("m"), inside("ours"), false, "--force");
    expect_refused(inside("m"), inside("old/x"), true, "no folder");
    expect_refused(inside("m"), "", true, "cannot be the folder");
    assert_int_equal(qz_run_folder_check(inside("m"), inside("ours"), true, &error), BIS_OK);
    assert_int_equal(qz_run_folder_check(inside("m"), inside("empty///"), false, &error), BIS_OK);
    assert_int_equal(qz_run_folder_check(inside("m"), inside("new"), false, &error), BIS_OK);
    assert_int_equal(qz_run_folder_check(inside("m"), inside("m-w4"), false, &error), BIS_OK);
    assert_int_equal(qz_run_folder_check(inside("m"), inside("none/new"), false, &error), BIS_ERR_IO);
    shell("rm -rf m empty old ours link");
    scratch_remove();
}

static void a_forced_run_replaces_only_when_it_is_done(void **state) {
    (void)state;
    bis_buf identity = text_of("{}");
    qz_run_folder folder;
    bis_error error;
    char path[PATH_MAX], out[256];
    scratch_make();
    snprintf(out, sizeof out, "%s", scratch_path("out"));
    shell("mkdir out && touch out/bisup_report.json out/old");
    if (qz_run_folder_open(out, true, &identity, &folder, &error)) fail_msg("%s", error.text);
    assert_int_equal(access(scratch_path("out/old"), F_OK), 0);
    assert_int_equal(bis_join_path(folder.result, "new", path, sizeof path, &error), BIS_OK);
    assert_int_equal(qz_file_write(path, "{}", 2, &error), BIS_OK);
    if (qz_run_folder_finish(&folder, &error)) fail_msg("%s", error.text);
    assert_int_equal(access(scratch_path("out/old"), F_OK), -1);
    assert_int_equal(access(scratch_path("out/new"), F_OK), 0);
    assert_int_equal(access(scratch_path("out.partial"), F_OK), -1);
    bis_buf_free(&identity);
    shell("rm -rf out");
    scratch_remove();
}

/* ---- Memory ---- */

static void a_seven_billion_model_fits_in_24_gigabytes(void **state) {
    (void)state;
    qz_spec spec = {.weight_bits = 3, .act_bits = 3, .kv_bits = 3, .group = 128};
    qz_tune_options tune = qz_tune_default_options();
    tune.rank = 32;
    qz_plan_input input = {.shape = {4096, 11008, 32, 32, 128, 1e-5},
                           .method = qz_method_find("bisup-quarot"),
                           .spec = &spec,
                           .gptq = true,
                           .samples = 128,
                           .tokens = 2048,
                           .tune = &tune,
                           .layers = 32,
                           .vocab = 32000,
                           .threads = 16};
    qz_memory_plan plan = qz_plan_memory(&input);
    bis_error error;
    assert_true(plan.activations == 3ull * 128 * 2048 * 4096 * 4);
    assert_int_equal(qz_plan_check(&plan, 24000000000u, &error), BIS_OK);
    assert_int_equal(qz_plan_check(&plan, plan.total - 1, &error), BIS_ERR_NOMEM);
    assert_non_null(strstr(error.text, "--samples"));
    assert_true(plan.end_to_end == 0);
    /* with the end-to-end stage, its 6.5 billion weights, and what it trains, must fit beside the activations */
    input.end_to_end = true;
    uint64_t alone = plan.total, weights = 32ull * (4 * 4096ull * 4096 + 3 * 4096ull * 11008);
    plan = qz_plan_memory(&input);
    assert_true(plan.total == alone);
    assert_true(plan.end_to_end > plan.activations + 4 * weights && plan.end_to_end < plan.activations + 8 * weights);
}

static qz_options tuned_run(const char *out, const char *calibration) {
    qz_options options = {.model = "models/demo",
                          .out = out,
                          .method = "bisup-quarot",
                          .weight_bits = 4,
                          .act_bits = 4,
                          .kv_bits = 4,
                          .group = 32,
                          .calibration = calibration,
                          .samples = 4,
                          .seq_len = 16,
                          .tune = qz_tune_default_options(),
                          .end_to_end = true,
                          .end_to_end_epochs = 1,
                          .lr_end_to_end = 0.3,
                          .threads = 1,
                          .quiet = true};
    options.tune.epochs = 1;
    return options;
}

/* OUT.partial as a run of these options leaves it that was ended after its first block. */
static void begin_run(const qz_options *options) {
    rt_tokenizer *tokenizer;
    qz_calibration calibration;
    qz_run_folder folder;
    bis_buf identity = {0};
    bis_error error;
    qz_calibration_options windows = {.text = options->calibration,
                                      .samples = options->samples,
                                      .seq_len = options->seq_len,
                                      .context = 1024,
                                      .vocab = 2048,
                                      .seed = options->seed};
    assert_int_equal(rt_tokenizer_open(options->model, &tokenizer, &error), BIS_OK);
    assert_int_equal(qz_calibration_read(&windows, tokenizer, &calibration, &error), BIS_OK);
    assert_int_equal(qz_report_identity(options, &calibration, &identity, &error), BIS_OK);
    assert_int_equal(qz_run_folder_open(options->out, false, &identity, &folder, &error), BIS_OK);
    qz_run_folder_leave(&folder);
    shell("touch out.partial/block-000.tuned");
    bis_buf_free(&identity);
    qz_calibration_free(&calibration);
    rt_tokenizer_close(tokenizer);
}

/* A run that was begun with the stage does not change its result where memory has become short, and loses nothing. */
static void a_run_with_the_stage_waits_for_memory(void **state) {
    (void)state;
    bis_error error;
    qz_summary summary;
    char out[256], calibration[256];
    scratch_make();
    snprintf(out, sizeof out, "%s", scratch_path("out"));
    snprintf(calibration, sizeof calibration, "%s", scratch_path("text"));
    shell("for i in 1 2 3 4 5 6 7 8 9; do echo Once upon a time, in $i houses, there lived a cat; done > text");
    qz_options options = tuned_run(out, calibration);
    begin_run(&options);
    options.memory = 60000000; /* enough without the stage */
    assert_int_equal(qz_quantize(&options, &summary, &error), BIS_ERR_NOMEM);
    assert_non_null(strstr(error.text, "--no-end-to-end"));
    shell("test -e out.partial/block-000.tuned && test ! -e out && rm -r out.partial");
    if (qz_quantize(&options, &summary, &error)) fail_msg("%s", error.text);
    assert_true(summary.end_to_end_left_out);
    qz_summary_free(&summary);
    shell("rm -rf out text");
    scratch_remove();
}

/* Where all blocks do not fit, the stage is left out, and the result is that of a run without it. */
static void the_stage_is_left_out_without_memory(void **state) {
    (void)state;
    bis_error error;
    bis_buf text = {0};
    char out[256], plain[256], calibration[256];
    scratch_make();
    snprintf(out, sizeof out, "%s", scratch_path("out"));
    snprintf(plain, sizeof plain, "%s", scratch_path("plain"));
    snprintf(calibration, sizeof calibration, "%s", scratch_path("text"));
    for (int i = 0; i < 9; i++) bis_buf_printf(&text, "Once upon a time, in %d houses, there lived a cat.\n", i);
    assert_int_equal(qz_file_write(calibration, text.data, text.length, &error), BIS_OK);
    bis_buf_free(&text);
    qz_options options = tuned_run(out, calibration);
    qz_summary summary;
    if (qz_quantize(&options, &summary, &error)) fail_msg("%s", error.text);
    assert_true(summary.end_to_end && !summary.end_to_end_left_out && summary.kl_before > 0);
    assert_true(summary.kl_after <= summary.kl_before && summary.plan.total == summary.plan.end_to_end);
    options.memory = summary.plan.end_to_end - 1;
    options.force = true;
    qz_summary_free(&summary);
    if (qz_quantize(&options, &summary, &error)) fail_msg("%s", error.text);
    assert_true(!summary.end_to_end && summary.end_to_end_left_out && summary.plan.total <= options.memory);
    qz_summary_free(&summary);
    options.out = plain;
    options.end_to_end = false;
    if (qz_quantize(&options, &summary, &error)) fail_msg("%s", error.text);
    assert_true(!summary.end_to_end && !summary.end_to_end_left_out);
    shell("test -s out/config.json && cmp out/model.safetensors plain/model.safetensors");

    /* Another run's block in the folder, with --force: nothing of it decides. */
    options = tuned_run(out, calibration);
    options.force = true;
    shell("mkdir out.partial && touch out.partial/block-000.safetensors out.partial/run.json");
    qz_summary_free(&summary);
    if (qz_quantize(&options, &summary, &error)) fail_msg("%s", error.text);
    assert_true(summary.end_to_end && !summary.end_to_end_left_out);
    options.memory = 1000;
    assert_int_equal(qz_quantize(&options, &summary, &error), BIS_ERR_NOMEM);
    shell("rm -rf out plain text");
    qz_summary_free(&summary);
    scratch_remove();
}

/* ---- Allocation failures ---- */

/* Every allocation of a whole run fails in turn: an error, and nothing is left. */
static void a_run_without_memory_leaves_nothing(void **state) {
    (void)state;
    bis_error error;
    char out[256];
    scratch_make();
    snprintf(out, sizeof out, "%s", scratch_path("out"));
    qz_options options = {.model = "tests/golden/models/qwen2-tied",
                          .out = out,
                          .method = "rtn",
                          .weight_bits = 4,
                          .act_bits = 4,
                          .kv_bits = 4,
                          .group = 32,
                          .threads = 1,
                          .quiet = true};
    qz_summary summary;
    for (long successes = 0;; successes++) {
        bis_alloc_fail_after(successes);
        bis_status status = qz_quantize(&options, &summary, &error);
        bis_alloc_fail_after(-1);
        if (!status) break;
        if (status != BIS_ERR_NOMEM) fail_msg("after %ld allocations: %s", successes, error.text);
        assert_int_equal(access(out, F_OK), -1);
        assert_int_equal(access(scratch_path("out.partial"), F_OK), -1);
        assert_true(successes < 100000);
    }
    assert_true(summary.bits_per_weight > 4 && summary.bits_per_weight < 5);
    qz_summary_free(&summary);
    shell("rm -rf out");
    scratch_remove();
}

#define TEST(name) cmocka_unit_test_teardown(name, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(outlier_columns_follow_the_width),
        TEST(every_method_of_the_command_line_exists),
        TEST(the_command_lines_defaults_are_the_tuners),
        TEST(windows_do_not_overlap_where_the_text_is_long_enough),
        TEST(windows_overlap_by_half_at_most),
        TEST(seeds_draw_different_windows),
        TEST(too_little_text_says_what_is_needed),
        TEST(windows_begin_as_texts_do),
        TEST(written_tensors_are_read_again_and_aligned),
        TEST(a_full_disk_is_reported_and_leaves_nothing),
        TEST(a_blocks_file_gives_back_the_decoded_block),
        TEST(weights_that_f16_cannot_hold_are_refused),
        TEST(a_run_goes_on_only_with_the_same_identity),
        TEST(only_safe_places_are_written),
        TEST(a_forced_run_replaces_only_when_it_is_done),
        TEST(a_seven_billion_model_fits_in_24_gigabytes),
        TEST(the_stage_is_left_out_without_memory),
        TEST(a_run_with_the_stage_waits_for_memory),
        TEST(a_run_without_memory_leaves_nothing),
    };
    return cmocka_run_group_tests_name("quantize", tests, NULL, NULL);
}
