/* The model loader: what opens, what is refused in a folder and how it is said; random models. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/log.h"
#include "runtime/model/metadata.h"
#include "runtime/model/model.h"
#include "runtime/model/model_internal.h"
#include "runtime/model/safetensors.h"
#include "tests/support/scratch.h"

static const char models[] = "tests/golden/models/";

static void assert_text_has(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("'%s' does not contain '%s'", text, part);
}

#define SIZES                                                                                                          \
    "\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,"                                             \
    "\"num_attention_heads\":4,\"vocab_size\":100"
#define CONFIG(type, more) "{\"model_type\":\"" type "\"," SIZES more "}"

static void parse_well(const char *text, rt_model_config *config) {
    bis_error error;
    if (rt_model_config_parse(text, strlen(text), "config.json", config, &error)) fail_msg("%s: %s", text, error.text);
}

/* ---- folders ---- */

static rt_model *open_well(const char *folder) {
    rt_model *model = NULL;
    bis_error error;
    if (rt_model_open(folder, &model, &error)) fail_msg("%s: %s", folder, error.text);
    return model;
}

static void assert_open_fails(const char *folder, bis_status want, const char *said) {
    rt_model *model = NULL;
    bis_error error = {.text = ""};
    bis_status status = rt_model_open(folder, &model, &error);
    if (status != want) fail_msg("%s: status '%s', text '%s'", folder, bis_status_name(status), error.text);
    assert_null(model);
    assert_text_has(error.text, said);
}

static void models_of_every_family_open(void **state) {
    (void)state;
    static const struct {
        const char *folder, *architecture, *type;
        uint64_t parameters;
        size_t element;
        bool tied;
    } cases[] = {
        {"llama2-mha", "llama", "F16", 82620, 2, false},
        {"llama3-gqa-rope-f16", "llama", "F16", 44784, 2, false},
        {"llama-linear-rope-sharded", "llama", "BF16", 42480, 2, false},
        {"llama-biases", "llama", "F16", 45488, 2, false},
        {"qwen2-tied", "qwen2", "F32", 41136, 4, true},
        {"qwen3-head-dim-bf16", "qwen3", "BF16", 54864, 2, true},
        {"mistral-no-prefix", "mistral", "F16", 42480, 2, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char folder[256];
        snprintf(folder, sizeof folder, "%s%s", models, cases[i].folder);
        rt_model *model = open_well(folder);
        const rt_model_config *config = rt_model_get_config(model);
        assert_string_equal(config->architecture, cases[i].architecture);
        assert_string_equal(rt_model_type_name(model), cases[i].type);
        assert_int_equal(rt_model_parameters(model), cases[i].parameters);
        assert_int_equal(rt_model_bytes(model), cases[i].parameters * cases[i].element);
        assert_int_equal(config->tied_embeddings, cases[i].tied);
        assert_int_equal(rt_model_head(model).data == rt_model_embedding(model).data, cases[i].tied);
        assert_int_equal(rt_model_head(model).rows, config->vocab);
        assert_int_equal(rt_model_final_norm(model).cols, config->hidden);
        assert_true(rt_model_created(model) > 0);
        const rt_layer *layer = rt_model_layer(model, 1);
        assert_int_equal(layer->q.rows, config->heads * config->head_dim);
        assert_int_equal(layer->k.rows, config->kv_heads * config->head_dim);
        assert_int_equal(layer->down.cols, config->ffn);
        assert_int_equal(layer->q_bias.data != NULL, config->qkv_bias);
        assert_int_equal(layer->o_bias.data != NULL, config->o_bias);
        assert_int_equal(layer->down_bias.data != NULL, config->mlp_bias);
        assert_int_equal(layer->k_norm.data != NULL, config->qk_norm);
        rt_model_close(model);
    }
}

static void published_small_models_open(void **state) {
    (void)state;
    static const struct {
        const char *folder;
        uint64_t parameters;
    } cases[] = {{"data/models/stories260K-hf", 260032}, {"data/models/story-llama-656k", 656000}};
    char config[600];
    snprintf(config, sizeof config, "%s/config.json", shared_path(cases[0].folder));
    FILE *file = fopen(config, "r");
    if (!file) {
        print_message("skipped: no file %s\n", config);
        skip();
    }
    fclose(file);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rt_model *model = open_well(shared_path(cases[i].folder));
        assert_int_equal(rt_model_parameters(model), cases[i].parameters);
        assert_ptr_equal(rt_model_head(model).data, rt_model_embedding(model).data);
        rt_model_close(model);
    }
}

static void a_folder_that_is_none_is_explained(void **state) {
    (void)state;
    assert_open_fails("no/such/folder", BIS_ERR_NOT_FOUND, "no such model folder: no/such/folder");
    assert_open_fails("Makefile", BIS_ERR_INVALID, "Makefile is a file; give the folder it lies in");
    assert_open_fails("tests/unit", BIS_ERR_NOT_FOUND, "tests/unit holds no config.json");
    assert_open_fails("", BIS_ERR_NOT_FOUND, "no such model folder");
    const char *folder = scratch_make();
    scratch_write_text("config.json", CONFIG("llama", ""));
    assert_open_fails(folder, BIS_ERR_NOT_FOUND, "neither model.safetensors nor");
    scratch_write_text("config.json", "{");
    assert_open_fails(folder, BIS_ERR_FORMAT, "config.json: not valid JSON");
    scratch_write_text("config.json", CONFIG("llama", ""));
    scratch_write_text("model.safetensors", "not a model at all");
    assert_open_fails(folder, BIS_ERR_FORMAT, "model.safetensors is not a safetensors file");
}

/* ---- folders made from a fixture with one thing changed ---- */

typedef struct change {
    const char *drop;       /* tensors whose names contain this are left out; NULL: none */
    const char *drop_exact; /* the tensor of this name is left out; NULL: none */
    const char *tensor;     /* the one that the rest is about; NULL: none */
    const char *new_dtype;  /* NULL: as it was */
    const char *new_shape;  /* NULL: as it was, e.g. "[2,3]" */
    const char *duplicate;  /* a further name under which it is stored again, its bytes xor `flip` */
    unsigned char flip;
} change;

static void put_entry(bis_buf *header, bis_buf *data, const char *name, const rt_stored_tensor *tensor,
                      const change *edit, unsigned char flip) {
    bool is_edited = edit->tensor && !strcmp(edit->tensor, tensor->name);
    const char *dtype = is_edited && edit->new_dtype ? edit->new_dtype : rt_stored_type_name(tensor->type);
    bis_buf_printf(header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":", header->length > 1 ? "," : "", name, dtype);
    if (is_edited && edit->new_shape) bis_buf_puts(header, edit->new_shape);
    else {
        for (int i = 0; i < tensor->dims; i++) {
            bis_buf_printf(header, "%c%llu", i ? ',' : '[', (unsigned long long)tensor->shape[i]);
        }
        bis_buf_putc(header, ']');
    }
    bis_buf_printf(header, ",\"data_offsets\":[%zu,%zu]}", data->length, data->length + tensor->bytes);
    for (size_t i = 0; i < tensor->bytes; i++) {
        bis_buf_putc(data, (char)(((const unsigned char *)tensor->data)[i] ^ flip));
    }
}

static void write_changed(const rt_safetensors *source, const change *edit) {
    bis_buf header = {0}, data = {0}, image = {0};
    bis_buf_putc(&header, '{');
    for (size_t i = 0; i < rt_safetensors_count(source); i++) {
        const rt_stored_tensor *tensor = rt_safetensors_at(source, i);
        bool is_edited = edit->tensor && !strcmp(edit->tensor, tensor->name);
        if (edit->drop && strstr(tensor->name, edit->drop)) continue;
        if (edit->drop_exact && !strcmp(tensor->name, edit->drop_exact)) continue;
        put_entry(&header, &data, tensor->name, tensor, edit, 0);
        if (is_edited && edit->duplicate) put_entry(&header, &data, edit->duplicate, tensor, edit, edit->flip);
    }
    bis_buf_putc(&header, '}');
    for (int i = 0; i < 8; i++) bis_buf_putc(&image, (char)((uint64_t)header.length >> (8 * i) & 0xff));
    bis_buf_append(&image, header.data, header.length);
    bis_buf_append(&image, data.data, data.length);
    assert_false(image.failed || header.failed || data.failed);
    scratch_write("model.safetensors", image.data, image.length);
    bis_buf_free(&header);
    bis_buf_free(&data);
    bis_buf_free(&image);
}

/* Opens a fixture's tensors and puts its config.json into a new scratch folder. */
static const char *begin_changes(const char *fixture, rt_safetensors **source) {
    char path[256];
    bis_error error;
    snprintf(path, sizeof path, "%s%s", models, fixture);
    if (rt_safetensors_open_folder(path, source, &error)) fail_msg("%s", error.text);
    snprintf(path, sizeof path, "%s%s/config.json", models, fixture);
    cJSON *config;
    if (rt_metadata_read(path, 1 << 20, &config, &error)) fail_msg("%s", error.text);
    char *printed = cJSON_PrintUnformatted(config);
    cJSON_Delete(config);
    const char *folder = scratch_make();
    scratch_write_text("config.json", printed);
    cJSON_free(printed);
    return folder;
}

static const char *const changed_fixtures[] = {"llama-biases", "qwen2-tied", "qwen3-head-dim-bf16",
                                               "mistral-no-prefix"};

static void every_missing_tensor_is_named(void **state) {
    (void)state;
    for (size_t f = 0; f < sizeof changed_fixtures / sizeof *changed_fixtures; f++) {
        rt_safetensors *source;
        const char *folder = begin_changes(changed_fixtures[f], &source);
        for (size_t i = 0; i < rt_safetensors_count(source); i++) {
            const char *name = rt_safetensors_at(source, i)->name;
            change drop = {.drop_exact = name};
            write_changed(source, &drop);
            /* The tied matrix is asked for by its usual name, whichever name it was stored under. */
            bool is_tied = !strncmp(changed_fixtures[f], "qwen2", 5) && !strcmp(name, "lm_head.weight");
            assert_open_fails(folder, BIS_ERR_FORMAT, is_tied ? "'model.embed_tokens.weight'" : name);
        }
        rt_safetensors_close(source);
    }
}

static void every_wrong_shape_is_named_with_both_shapes(void **state) {
    (void)state;
    for (size_t f = 0; f < sizeof changed_fixtures / sizeof *changed_fixtures; f++) {
        rt_safetensors *source;
        const char *folder = begin_changes(changed_fixtures[f], &source);
        for (size_t i = 0; i < rt_safetensors_count(source); i++) {
            const rt_stored_tensor *tensor = rt_safetensors_at(source, i);
            unsigned long long first = tensor->shape[0], second = tensor->dims > 1 ? tensor->shape[1] : 1;
            char half[64], flat[64], got[64];
            snprintf(half, sizeof half, "[%llu,%llu]", first / 2, second * 2);
            snprintf(flat, sizeof flat, "[%llu]", first * second);
            snprintf(got, sizeof got, "the shape [%llu, %llu]", first / 2, second * 2);
            change reshape = {.tensor = tensor->name, .new_shape = half};
            write_changed(source, &reshape);
            assert_open_fails(folder, BIS_ERR_FORMAT, got);
            assert_open_fails(folder, BIS_ERR_FORMAT, tensor->name);
            if (tensor->dims < 2) continue;
            reshape.new_shape = flat;
            write_changed(source, &reshape);
            assert_open_fails(folder, BIS_ERR_FORMAT, "config.json asks for");
        }
        rt_safetensors_close(source);
    }
}

static void an_unsupported_type_is_named(void **state) {
    (void)state;
    rt_safetensors *source;
    const char *folder = begin_changes("llama-biases", &source);
    change retype = {.tensor = "model.layers.1.mlp.up_proj.weight", .new_dtype = "I16"};
    write_changed(source, &retype);
    assert_open_fails(folder, BIS_ERR_UNSUPPORTED,
                      "'model.layers.1.mlp.up_proj.weight' is stored as I16; accepted: F32");
    rt_safetensors_close(source);
}

static void types_may_differ_between_tensors(void **state) {
    (void)state;
    rt_safetensors *source;
    const char *folder = begin_changes("llama-biases", &source);
    change retype = {.tensor = "model.layers.0.self_attn.q_proj.weight", .new_dtype = "BF16"};
    write_changed(source, &retype);
    rt_model *model = open_well(folder);
    assert_int_equal(rt_model_layer(model, 0)->q.type, KN_BF16);
    assert_int_equal(rt_model_layer(model, 1)->q.type, KN_F16);
    assert_string_equal(rt_model_type_name(model), "F16");
    rt_model_close(model);
    rt_safetensors_close(source);
}

static void qwen2_biases_are_all_there_or_none(void **state) {
    (void)state;
    rt_safetensors *source;
    const char *folder = begin_changes("qwen2-tied", &source);
    change drop = {.drop = ".bias"};
    write_changed(source, &drop);
    rt_model *model = open_well(folder);
    assert_false(rt_model_get_config(model)->qkv_bias);
    assert_null(rt_model_layer(model, 0)->q_bias.data);
    rt_model_close(model);
    drop.drop = "layers.1.self_attn.k_proj.bias";
    write_changed(source, &drop);
    assert_open_fails(folder, BIS_ERR_FORMAT, "'model.layers.1.self_attn.k_proj.bias'");
    rt_safetensors_close(source);
}

/* As the reference implementation: equal copies are one matrix, different ones are two. */
static void a_tied_model_that_stores_both_matrices_uses_what_is_stored(void **state) {
    (void)state;
    rt_safetensors *source;
    const char *folder = begin_changes("qwen2-tied", &source);
    change copy = {.tensor = "lm_head.weight", .duplicate = "model.embed_tokens.weight"};
    write_changed(source, &copy);
    rt_model *model = open_well(folder);
    assert_true(rt_model_get_config(model)->tied_embeddings);
    assert_ptr_equal(rt_model_head(model).data, rt_model_embedding(model).data);
    assert_int_equal(rt_model_parameters(model), 41136);
    rt_model_close(model);
    copy.flip = 1;
    write_changed(source, &copy);
    model = open_well(folder);
    assert_false(rt_model_get_config(model)->tied_embeddings);
    assert_ptr_not_equal(rt_model_head(model).data, rt_model_embedding(model).data);
    assert_int_equal(rt_model_parameters(model), 41136 + 80 * 48);
    rt_model_close(model);
    rt_safetensors_close(source);
}

static void an_untied_model_without_head_is_told_about_tying(void **state) {
    (void)state;
    rt_safetensors *source;
    const char *folder = begin_changes("llama-biases", &source);
    change drop = {.drop = "lm_head.weight"};
    write_changed(source, &drop);
    assert_open_fails(folder, BIS_ERR_FORMAT, "config.json must set tie_word_embeddings");
    rt_safetensors_close(source);
}

static void unused_tensors_are_left_alone(void **state) {
    (void)state;
    rt_safetensors *source;
    const char *folder = begin_changes("mistral-no-prefix", &source);
    change copy = {.tensor = "norm.weight", .duplicate = "layers.0.self_attn.rotary_emb.inv_freq"};
    write_changed(source, &copy);
    rt_model *model = open_well(folder);
    assert_int_equal(rt_model_parameters(model), 42480);
    rt_model_close(model);
    rt_safetensors_close(source);
}

static void generation_config_adds_end_tokens(void **state) {
    (void)state;
    rt_safetensors *source;
    const char *folder = begin_changes("llama-biases", &source);
    write_changed(source, &(change){0});
    scratch_write_text("generation_config.json", "{\"eos_token_id\":[5,2,6],\"temperature\":0.6}");
    rt_model *model = open_well(folder);
    const rt_model_config *config = rt_model_get_config(model);
    assert_int_equal(config->eos_count, 3);
    assert_int_equal(config->eos[0], 2);
    assert_int_equal(config->eos[1], 5);
    assert_int_equal(config->eos[2], 6);
    rt_model_close(model);
    scratch_write_text("generation_config.json", "{}");
    rt_model_close(open_well(folder));
    scratch_write_text("generation_config.json", "{\"eos_token_id\":80}");
    assert_open_fails(folder, BIS_ERR_FORMAT, "generation_config.json: eos_token_id is 80");
    scratch_write_text("generation_config.json", "{");
    assert_open_fails(folder, BIS_ERR_FORMAT, "generation_config.json: not valid JSON");
    rt_safetensors_close(source);
}

/* Fails the first allocation, then the second, and so on until the model opens. */
static void every_failed_allocation_is_reported(void **state) {
    (void)state;
    long failures = 0;
    for (;; failures++) {
        rt_model *model = NULL;
        bis_error error;
        bis_alloc_fail_after(failures);
        bis_status status = rt_model_open("tests/golden/models/llama-linear-rope-sharded", &model, &error);
        bis_alloc_fail_after(-1);
        if (!status) {
            rt_model_close(model);
            break;
        }
        assert_null(model);
        assert_true(status == BIS_ERR_NOMEM || status == BIS_ERR_FORMAT);
        assert_text_has(error.text, "no memory");
    }
    assert_true(failures > 80);
}

/* ---- random models ---- */

static rt_model *make_random(const char *text, kn_type type, uint64_t seed) {
    rt_model_config config;
    parse_well(text, &config);
    rt_model *model = NULL;
    bis_error error;
    if (rt_model_random(&config, type, seed, &model, &error)) fail_msg("%s", error.text);
    return model;
}

static void random_weights_are_normal_and_norms_one(void **state) {
    (void)state;
    for (int type = 0; type < KN_TYPE_COUNT; type++) {
        rt_model *model = make_random(CONFIG("qwen3", ",\"tie_word_embeddings\":true"), (kn_type)type, 1);
        const rt_layer *layer = rt_model_layer(model, 1);
        size_t count = (size_t)layer->q.rows * (size_t)layer->q.cols;
        double sum = 0, squares = 0;
        for (size_t i = 0; i < count; i++) {
            double value = (double)kn_tensor_get(&layer->q, i);
            sum += value;
            squares += value * value;
        }
        assert_int_equal(count, 512 * 64);
        assert_true(fabs(sum / (double)count) < 0.0005);
        assert_true(fabs(sqrt(squares / (double)count) - 0.02) < 0.0005);
        assert_true(kn_tensor_get(&layer->k_norm, 127) == 1.0f);
        assert_null(layer->q_bias.data);
        assert_string_equal(rt_model_type_name(model), kn_type_name((kn_type)type));
        assert_int_equal(rt_model_bytes(model), rt_model_parameters(model) * kn_type_bytes((kn_type)type));
        assert_ptr_equal(rt_model_head(model).data, rt_model_embedding(model).data);
        assert_int_equal(rt_model_created(model), 0);
        rt_model_close(model);
    }
}

static void the_same_seed_makes_the_same_weights(void **state) {
    (void)state;
    static const char text[] = CONFIG("llama", ",\"attention_bias\":true,\"mlp_bias\":true");
    rt_model *first = make_random(text, KN_F16, 7), *again = make_random(text, KN_F16, 7);
    rt_model *other = make_random(text, KN_F16, 8);
    kn_tensor a = rt_model_head(first), b = rt_model_head(again), c = rt_model_head(other);
    size_t bytes = (size_t)a.rows * (size_t)a.cols * 2;
    assert_memory_equal(a.data, b.data, bytes);
    assert_memory_not_equal(a.data, c.data, bytes);
    assert_memory_not_equal(a.data, rt_model_embedding(first).data, bytes);
    assert_non_null(rt_model_layer(first, 0)->down_bias.data);
    rt_model_close(first);
    rt_model_close(again);
    rt_model_close(other);
}

static void a_random_model_that_cannot_fit_is_refused_with_a_figure(void **state) {
    (void)state;
    rt_model_config config;
    parse_well("{\"model_type\":\"llama\",\"hidden_size\":131072,\"intermediate_size\":1048576,"
               "\"num_hidden_layers\":256,\"num_attention_heads\":1024,\"vocab_size\":4194304}",
               &config);
    rt_model *model = NULL;
    bis_error error;
    assert_int_equal(rt_model_random(&config, KN_F32, 1, &model, &error), BIS_ERR_NOMEM);
    assert_text_has(error.text, "GB");
    assert_int_equal(rt_model_random(&config, KN_TYPE_COUNT, 1, &model, &error), BIS_ERR_INVALID);
    assert_null(model);
}

static void failed_allocations_of_a_random_model_are_reported(void **state) {
    (void)state;
    rt_model_config config;
    parse_well(CONFIG("llama", ""), &config);
    for (long failures = 0; failures < 4; failures++) {
        rt_model *model = NULL;
        bis_alloc_fail_after(failures);
        bis_status status = rt_model_random(&config, KN_F16, 1, &model, NULL);
        bis_alloc_fail_after(-1);
        assert_int_equal(status, BIS_ERR_NOMEM);
        assert_null(model);
    }
}

static int remove_scratch(void **state) {
    (void)state;
    scratch_remove();
    return 0;
}

int main(void) {
    cJSON_Hooks hooks = {bis_malloc, bis_free};
    cJSON_InitHooks(&hooks);
    bis_log_set_level(BIS_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(models_of_every_family_open),
        cmocka_unit_test(published_small_models_open),
        cmocka_unit_test(a_folder_that_is_none_is_explained),
        cmocka_unit_test(every_missing_tensor_is_named),
        cmocka_unit_test(every_wrong_shape_is_named_with_both_shapes),
        cmocka_unit_test(an_unsupported_type_is_named),
        cmocka_unit_test(types_may_differ_between_tensors),
        cmocka_unit_test(qwen2_biases_are_all_there_or_none),
        cmocka_unit_test(a_tied_model_that_stores_both_matrices_uses_what_is_stored),
        cmocka_unit_test(an_untied_model_without_head_is_told_about_tying),
        cmocka_unit_test(unused_tensors_are_left_alone),
        cmocka_unit_test(generation_config_adds_end_tokens),
        cmocka_unit_test(every_failed_allocation_is_reported),
        cmocka_unit_test(random_weights_are_normal_and_norms_one),
        cmocka_unit_test(the_same_seed_makes_the_same_weights),
        cmocka_unit_test(a_random_model_that_cannot_fit_is_refused_with_a_figure),
        cmocka_unit_test(failed_allocations_of_a_random_model_are_reported),
    };
    return cmocka_run_group_tests_name("model", tests, NULL, remove_scratch);
}
