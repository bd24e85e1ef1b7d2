/* Opening quantized folders: what is bound, what is counted, and what a lying or incomplete folder is told. */
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
#include "runtime/model/model.h"
#include "tests/support/quantized_model.h"
#include "tests/support/random_data.h"
#include "tests/support/scratch.h"

static const qm_spec atom = {"qwen2", 72,   136,    2, 4, 2, 24, 70,    256,
                             true,    true, "atom", 3, 3, 3, 32, false, {8, 5, 16, 24}};
static const qm_spec quarot = {"llama", 80,   88,       2, 6, 2, 16, 96,   256,
                               false,   true, "quarot", 4, 4, 4, 64, true, {0, 0, 0, 0}};
static const qm_spec kv_only = {"llama", 80,    88,      2,  6,  2, 16,  96,   256,
                                false,   false, "plain", 16, 16, 2, 128, true, {0, 0, 0, 0}};

static rt_model *open_well(void) {
    rt_model *model = NULL;
    bis_error error;
    if (rt_model_open(scratch_path(""), &model, &error)) fail_msg("%s", error.text);
    return model;
}

/* Every weight as the test's writer decoded it. */
static void check_linear(const qm_linear *expected, const kn_tensor *dense, const kn_qweight *packed) {
    assert_true((dense->data == NULL) != (packed->codes == NULL));
    float row[256];
    for (int r = 0; r < expected->rows; r++) {
        if (packed->codes) kn_weight_decode_row(packed, r, row);
        for (int c = 0; c < expected->cols; c++) {
            size_t at = (size_t)r * (size_t)expected->cols + (size_t)c;
            double got = packed->codes ? (double)row[c] : (double)kn_tensor_get(dense, at);
            assert_true(fabs(got - expected->w[at]) <= 1e-6 * fabs(expected->w[at]));
        }
    }
}

static void check_layer(const qm_layer *expected, const rt_layer *layer) {
    const rt_packed_layer *packed = &layer->packed;
    check_linear(&expected->linear[QM_Q], &layer->q, &packed->q);
    check_linear(&expected->linear[QM_K], &layer->k, &packed->k);
    check_linear(&expected->linear[QM_V], &layer->v, &packed->v);
    check_linear(&expected->linear[QM_O], &layer->o, &packed->o);
    check_linear(&expected->linear[QM_GATE], &layer->gate, &packed->gate);
    check_linear(&expected->linear[QM_UP], &layer->up, &packed->up);
    check_linear(&expected->linear[QM_DOWN], &layer->down, &packed->down);
    int widths[QM_SITES] = {expected->linear[QM_Q].cols, expected->linear[QM_O].cols, expected->linear[QM_UP].cols, 0};
    for (int site = 0; site < QM_SITES; site++) {
        assert_true(packed->act_clip[site] == expected->clip[site]);
        assert_int_equal(packed->order[site] != NULL, expected->order[site] != NULL);
        if (!packed->order[site]) continue;
        assert_memory_equal(packed->order[site], expected->order[site],
                            (size_t)widths[site] * sizeof *packed->order[site]);
    }
}

static void what_is_stored_is_what_is_bound(void **state) {
    (void)state;
    const qm_spec *specs[] = {&atom, &quarot, &kv_only};
    static const char *const types[] = {"W3A3", "W4A4", "W16A16"};
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        qm_model *m = qm_make(specs[i]);
        scratch_make();
        qm_write(m);
        rt_model *model = open_well();
        for (int l = 0; l < specs[i]->layers; l++) check_layer(&m->layers[l], rt_model_layer(model, l));
        assert_string_equal(rt_model_type_name(model), types[i]);
        uint64_t weights = 0, bits = 0;
        for (int t = 0; t < m->tensor_count; t++) {
            if (strstr(m->tensors[t].name, "_proj.") && !strstr(m->tensors[t].name, "bias") &&
                !strstr(m->tensors[t].name, "order"))
                bits += 8 * m->tensors[t].bytes;
        }
        for (int l = 0; l < QM_LINEARS; l++) {
            weights += (uint64_t)m->layers[0].linear[l].rows * (uint64_t)m->layers[0].linear[l].cols;
        }
        weights *= (uint64_t)specs[i]->layers;
        assert_true(fabs(rt_model_bits_per_weight(model) - (double)bits / (double)weights) < 1e-9);
        assert_true(rt_model_parameters(model) > weights);
        rt_model_close(model);
        qm_free(m);
    }
}

/* ---- lies ---- */

typedef struct lie {
    const qm_spec *spec;
    const char *tensor;
    void (*tell)(qm_tensor *tensor);
    const char *said;
} lie;

static void drop(qm_tensor *t) { t->dropped = true; }
static void shorten(qm_tensor *t) {
    t->shape[t->dims - 1]--;
    t->bytes = (size_t)t->shape[0] * (size_t)(t->dims == 2 ? t->shape[1] : 1) * (size_t)t->element;
}
static void flatten(qm_tensor *t) {
    t->shape[0] *= t->shape[1];
    t->dims = 1;
}
static void call_it(qm_tensor *t, const char *dtype) { snprintf(t->dtype, sizeof t->dtype, "%s", dtype); }
static void call_i8(qm_tensor *t) { call_it(t, "I8"); }
static void call_u8(qm_tensor *t) { call_it(t, "U8"); }
static void call_bf16(qm_tensor *t) { call_it(t, "BF16"); }
static void call_f32(qm_tensor *t) { call_it(t, "F32"); }
static void set_last_byte(qm_tensor *t) { t->data[t->bytes - 1] = 8; } /* one above the largest zero at 3 bits */
static void repeat_channel(qm_tensor *t) { memcpy(t->data, t->data + 4, 4); }
static void set_number(qm_tensor *t, float value) { memcpy(t->data + 8, &value, sizeof value); }
static void set_zero(qm_tensor *t) { set_number(t, 0); }
static void set_large(qm_tensor *t) { set_number(t, 1.01f); }
static void set_nan(qm_tensor *t) { set_number(t, NAN); }
static void set_channel(qm_tensor *t, int32_t channel) { memcpy(t->data + 8, &channel, sizeof channel); }
static void set_negative(qm_tensor *t) { set_channel(t, -1); }
static void set_beyond(qm_tensor *t) { set_channel(t, 72); }

#define LAYER "model.layers.1."

static const lie lies[] = {
    {&atom, LAYER "self_attn.q_proj.codes", drop, "q_proj.codes' U8 [96, 24] is in none of its weight files"},
    {&atom, LAYER "self_attn.k_proj.scales", drop, "k_proj.scales' F16 [48, 2] is in none"},
    {&atom, LAYER "self_attn.v_proj.zeros", drop, "v_proj.zeros' U8 [48, 2] is in none"},
    {&atom, LAYER "self_attn.o_proj.outlier_codes", drop, "o_proj.outlier_codes' I8 [72, 5] is in none"},
    {&atom, LAYER "mlp.down_proj.outlier_scales", drop, "down_proj.outlier_scales' F16 [72] is in none"},
    {&atom, LAYER "self_attn.input_order", drop, "self_attn.input_order' I32 [72] is in none"},
    {&atom, LAYER "self_attn.o_proj.input_order", drop, "o_proj.input_order' I32 [96] is in none"},
    {&atom, LAYER "mlp.input_order", drop, "mlp.input_order' I32 [72] is in none"},
    {&quarot, LAYER "act_clip", drop, "act_clip' F32 [4] is in none"},
    {&kv_only, LAYER "mlp.up_proj.weight", drop, "up_proj.weight' [88, 80] is in none"},
    {&atom, LAYER "self_attn.q_proj.codes", shorten, "q_proj.codes' is U8 [96, 23]; config.json asks for U8 [96, 24]"},
    {&atom, LAYER "mlp.gate_proj.codes", flatten, "gate_proj.codes' is U8 [2856]; config.json asks for U8 [136, 21]"},
    {&quarot, LAYER "mlp.down_proj.scales", shorten, "config.json asks for F16 [80, 2]"},
    {&atom, LAYER "mlp.up_proj.outlier_scales", shorten,
     "outlier_scales' is F16 [135]; config.json asks for F16 [136]"},
    {&atom, LAYER "mlp.input_order", shorten, "mlp.input_order' is I32 [71]; config.json asks for I32 [72]"},
    {&atom, LAYER "act_clip", shorten, "act_clip' is F32 [3]; config.json asks for F32 [4]"},
    {&atom, LAYER "self_attn.q_proj.codes", call_i8, "is I8 [96, 24]; config.json asks for U8 [96, 24]"},
    {&atom, LAYER "self_attn.q_proj.outlier_codes", call_u8, "is U8 [96, 8]; config.json asks for I8 [96, 8]"},
    {&quarot, LAYER "self_attn.q_proj.scales", call_bf16, "is BF16 [96, 2]; config.json asks for F16 [96, 2]"},
    {&atom, LAYER "self_attn.input_order", call_f32, "is F32 [72]; config.json asks for I32 [72]"},
    {&atom, LAYER "self_attn.k_proj.zeros", set_last_byte, "k_proj.zeros' has the zero 8; accepted: 0 to 7"},
    {&atom, LAYER "self_attn.input_order", repeat_channel, "is not an order: entry 1 is"},
    {&atom, LAYER "mlp.input_order", set_negative, "is not an order: entry 2 is -1, which is no channel"},
    {&atom, LAYER "mlp.input_order", set_beyond, "is not an order: entry 2 is 72, which is no channel"},
    {&quarot, LAYER "act_clip", set_zero, "act_clip' holds 0; accepted: above 0, at most 1"},
    {&quarot, LAYER "act_clip", set_large, "act_clip' holds 1.01"},
    {&quarot, LAYER "act_clip", set_nan, "act_clip' holds"},
};

static void lies_are_told_in_one_line(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        qm_model *m = qm_make(lies[i].spec);
        lies[i].tell(qm_find(m, lies[i].tensor));
        scratch_make();
        qm_write(m);
        qm_free(m);
        rt_model *model = NULL;
        bis_error error = {.text = ""};
        bis_status status = rt_model_open(scratch_path(""), &model, &error);
        if (status != BIS_ERR_FORMAT || !strstr(error.text, lies[i].said) || strchr(error.text, '\n')) {
            fail_msg("%s: status '%s', text '%s'", lies[i].said, bis_status_name(status), error.text);
        }
        assert_null(model);
    }
}

static void a_file_cut_anywhere_is_refused(void **state) {
    (void)state;
    qm_model *m = qm_make(&atom);
    scratch_make();
    qm_write(m);
    qm_free(m);
    char path[512];
    snprintf(path, sizeof path, "%s", scratch_path("model.safetensors"));
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    enum { BYTES_MAX = 1 << 20 };
    char *image = test_alloc(BYTES_MAX);
    size_t size = fread(image, 1, BYTES_MAX, file);
    fclose(file);
    assert_in_range(size, 1000, BYTES_MAX - 1);
    for (size_t length = 0; length < size; length += 997) {
        scratch_write("model.safetensors", image, length);
        rt_model *model = NULL;
        bis_error error;
        assert_int_equal(rt_model_open(scratch_path(""), &model, &error), BIS_ERR_FORMAT);
        assert_null(model);
    }
    free(image);
}

static void every_failed_allocation_is_reported(void **state) {
    (void)state;
    qm_model *m = qm_make(&atom);
    scratch_make();
    qm_write(m);
    qm_free(m);
    long n = 0;
    for (;; n++) {
        rt_model *model = NULL;
        bis_error error;
        bis_alloc_fail_after(n);
        bis_status status = rt_model_open(scratch_path(""), &model, &error);
        bis_alloc_fail_after(-1);
        if (!status) {
            rt_model_close(model);
            break;
        }
        assert_null(model);
    }
    assert_true(n > 5);
}

static void check_random(const kn_qweight *w) {
    float row[256];
    double sum = 0, squares = 0, count = (double)w->rows * w->cols;
    for (int r = 0; r < w->rows; r++) {
        kn_weight_decode_row(w, r, row);
        for (int c = 0; c < w->cols; c++) {
            sum += row[c];
            squares += (double)row[c] * row[c];
        }
    }
    assert_true(fabs(sum / count) < 0.006); /* codes and their zero are half a step apart */
    assert_in_range((int)(1e4 * sqrt(squares / count)), 190, 240);
}

static void random_weights_of_a_quantized_shape(void **state) {
    (void)state;
    const qm_spec *specs[] = {&atom, &quarot};
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        rt_model_config config;
        rt_model *random = NULL;
        bis_error error;
        qm_model *m = qm_make(specs[i]);
        scratch_make();
        qm_write(m);
        qm_free(m);
        assert_int_equal(rt_model_config_read(scratch_path("config.json"), &config, &error), BIS_OK);
        if (rt_model_random(&config, KN_F16, 1, &random, &error)) fail_msg("%s", error.text);
        rt_model *stored = open_well();
        assert_int_equal(rt_model_parameters(random), rt_model_parameters(stored));
        assert_true(rt_model_bits_per_weight(random) == rt_model_bits_per_weight(stored));
        assert_string_equal(rt_model_type_name(random), rt_model_type_name(stored));
        const rt_packed_layer *layer = &rt_model_layer(random, 1)->packed;
        check_random(&layer->q);
        check_random(&layer->down);
        assert_true(layer->act_clip[RT_SITE_DOWN] == 1);
        assert_int_equal(layer->order[RT_SITE_O] != NULL, specs[i] == &atom);
        for (int c = 0; layer->order[RT_SITE_O] && c < 96; c++) assert_int_equal(layer->order[RT_SITE_O][c], 95 - c);
        rt_model_close(stored);
        rt_model_close(random);
    }
}

static int remove_scratch(void **state) {
    (void)state;
    scratch_remove();
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_stored_is_what_is_bound),     cmocka_unit_test(lies_are_told_in_one_line),
        cmocka_unit_test(a_file_cut_anywhere_is_refused),      cmocka_unit_test(every_failed_allocation_is_reported),
        cmocka_unit_test(random_weights_of_a_quantized_shape),
    };
    return cmocka_run_group_tests(tests, NULL, remove_scratch);
}
