/* config.json: what is read, with which defaults, and what is refused. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/model/model.h"
#include "runtime/model/model_internal.h"
#include "tests/support/scratch.h"

static void assert_text_has(const char *text, const char *part) {
    if (!strstr(text, part)) fail_msg("'%s' does not contain '%s'", text, part);
}

static bis_status parse(const char *text, rt_model_config *config, bis_error *error) {
    return rt_model_config_parse(text, strlen(text), "config.json", config, error);
}

static void parse_well(const char *text, rt_model_config *config) {
    bis_error error;
    if (parse(text, config, &error)) fail_msg("%s: %s", text, error.text);
}

#define SIZES                                                                                                          \
    "\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,"                                             \
    "\"num_attention_heads\":4,\"vocab_size\":100"
#define CONFIG(type, more) "{\"model_type\":\"" type "\"," SIZES more "}"

static void silent_keys_have_the_defaults_of_their_family(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int context, kv_heads, head_dim, bos, eos_count;
        bool qkv_bias, qk_norm;
    } cases[] = {
        {CONFIG("llama", ""), 2048, 4, 16, 1, 1, false, false},
        {CONFIG("mistral", ",\"sliding_window\":null,\"num_key_value_heads\":null"), 131072, 4, 16, 1, 1, false, false},
        {CONFIG("qwen2", ""), 32768, 4, 16, -1, 0, true, false},
        {CONFIG("qwen3", ""), 32768, 4, 128, -1, 0, false, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rt_model_config config;
        parse_well(cases[i].text, &config);
        assert_int_equal(config.context, cases[i].context);
        assert_int_equal(config.kv_heads, cases[i].kv_heads);
        assert_int_equal(config.head_dim, cases[i].head_dim);
        assert_int_equal(config.bos, cases[i].bos);
        assert_int_equal(config.eos_count, cases[i].eos_count);
        assert_int_equal(config.qkv_bias, cases[i].qkv_bias);
        assert_int_equal(config.qk_norm, cases[i].qk_norm);
        assert_true(config.norm_eps == 1e-6f);
        assert_true(config.rope.theta == 10000);
        assert_int_equal(config.rope.scaling, RT_ROPE_PLAIN);
        assert_false(config.tied_embeddings || config.o_bias || config.mlp_bias);
    }
}

static void mistral_without_the_key_has_eight_kv_heads(void **state) {
    (void)state;
    rt_model_config config;
    parse_well("{\"model_type\":\"mistral\",\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,"
               "\"num_attention_heads\":16,\"vocab_size\":100,\"sliding_window\":null}",
               &config);
    assert_int_equal(config.kv_heads, 8);
}

static void spoken_keys_are_read(void **state) {
    (void)state;
    rt_model_config config;
    parse_well(CONFIG("llama", ",\"num_key_value_heads\":2,\"head_dim\":24,\"max_position_embeddings\":77,"
                               "\"rms_norm_eps\":1e-5,\"rope_theta\":500000,\"tie_word_embeddings\":true,"
                               "\"attention_bias\":true,\"mlp_bias\":true,\"bos_token_id\":null,"
                               "\"eos_token_id\":[7,9,7],\"hidden_act\":\"silu\",\"unknown\":{\"a\":[1]}"),
               &config);
    assert_string_equal(config.architecture, "llama");
    assert_int_equal(config.hidden, 64);
    assert_int_equal(config.ffn, 96);
    assert_int_equal(config.layers, 2);
    assert_int_equal(config.heads, 4);
    assert_int_equal(config.vocab, 100);
    assert_int_equal(config.kv_heads, 2);
    assert_int_equal(config.head_dim, 24);
    assert_int_equal(config.context, 77);
    assert_true(config.norm_eps == 1e-5f);
    assert_true(config.rope.theta == 500000);
    assert_true(config.tied_embeddings && config.qkv_bias && config.o_bias && config.mlp_bias);
    assert_int_equal(config.bos, -1);
    assert_int_equal(config.eos_count, 2);
    assert_int_equal(config.eos[0], 7);
    assert_int_equal(config.eos[1], 9);
}

static void the_last_of_two_equal_keys_counts(void **state) {
    (void)state;
    rt_model_config config;
    parse_well(CONFIG("llama", ",\"vocab_size\":200"), &config);
    assert_int_equal(config.vocab, 200);
}

#define LLAMA3_VALUES "\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4"

static void every_spelling_of_rope_scaling_is_read(void **state) {
    (void)state;
    static const struct {
        const char *text;
        rt_rope_scaling scaling;
        double theta, factor;
        int original_context;
    } cases[] = {
        {CONFIG("llama", ",\"rope_scaling\":null"), RT_ROPE_PLAIN, 10000, 1, 0},
        {CONFIG("llama", ",\"rope_scaling\":{\"type\":\"default\"},\"rope_theta\":7"), RT_ROPE_PLAIN, 7, 1, 0},
        {CONFIG("llama", ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.5}"), RT_ROPE_LINEAR, 10000, 2.5, 0},
        {CONFIG("qwen2", ",\"rope_scaling\":{\"rope_type\":\"linear\",\"type\":\"yarn\",\"factor\":2}"), RT_ROPE_LINEAR,
         10000, 2, 0},
        {CONFIG("llama", ",\"rope_scaling\":{\"rope_type\":\"llama3\"," LLAMA3_VALUES
                         ",\"original_max_position_embeddings\":512}"),
         RT_ROPE_LLAMA3, 10000, 8, 512},
        {CONFIG("llama", ",\"max_position_embeddings\":640,\"rope_scaling\":{\"type\":\"llama3\"," LLAMA3_VALUES "}"),
         RT_ROPE_LLAMA3, 10000, 8, 640},
        {CONFIG("qwen3", ",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":1e6}"), RT_ROPE_PLAIN, 1e6, 1,
         0},
        {CONFIG("llama", ",\"rope_theta\":3,\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4,"
                         "\"rope_theta\":5,\"partial_rotary_factor\":1.0}"),
         RT_ROPE_LINEAR, 5, 4, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rt_model_config config;
        parse_well(cases[i].text, &config);
        assert_int_equal(config.rope.scaling, cases[i].scaling);
        assert_true(config.rope.theta == cases[i].theta);
        assert_true(config.rope.factor == cases[i].factor);
        assert_int_equal(config.rope.original_context, cases[i].original_context);
    }
}

static void a_window_that_hides_nothing_is_accepted(void **state) {
    (void)state;
    static const char *const texts[] = {
        CONFIG("mistral", ",\"num_key_value_heads\":4,\"sliding_window\":null"),
        CONFIG("mistral", ",\"num_key_value_heads\":4,\"sliding_window\":4096,\"max_position_embeddings\":4096"),
        CONFIG("mistral", ",\"num_key_value_heads\":4,\"max_position_embeddings\":512"),
        CONFIG("mistral", ",\"num_key_value_heads\":4,\"sliding_window\":16,\"use_sliding_window\":false"),
        CONFIG("qwen2", ",\"sliding_window\":16"),
        CONFIG("qwen2", ",\"sliding_window\":16,\"use_sliding_window\":false"),
        CONFIG("qwen3", ",\"sliding_window\":null,\"use_sliding_window\":true"),
        CONFIG("qwen3", ",\"layer_types\":[\"full_attention\",\"full_attention\"]"),
        CONFIG("llama", ",\"sliding_window\":null"),
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        rt_model_config config;
        parse_well(texts[i], &config);
    }
}

static void what_cannot_be_run_is_refused_with_what_can(void **state) {
    (void)state;
    static const struct {
        const char *text, *said;
    } cases[] = {
        {CONFIG("qwen3_moe", ""), "model_type is \"qwen3_moe\"; accepted: llama, mistral, qwen2, qwen3"},
        {CONFIG("gpt2", ""), "model_type is \"gpt2\""},
        {"{" SIZES "}", "model_type is missing"},
        {"{\"model_type\":5," SIZES "}", "model_type is 5"},
        {CONFIG("mistral", ",\"sliding_window\":1024,\"num_key_value_heads\":4"), "sliding_window is 1024"},
        {CONFIG("mistral", ",\"num_key_value_heads\":4"), "4096 where the key is missing"},
        {CONFIG("mistral", ",\"num_key_value_heads\":4,\"max_position_embeddings\":64,\"sliding_window\":\"no\""),
         "sliding_window is \"no\""},
        {CONFIG("llama", ",\"sliding_window\":0"), "sliding_window is 0"},
        {CONFIG("qwen2", ",\"sliding_window\":1024,\"use_sliding_window\":true"), "sliding_window is 1024"},
        {CONFIG("qwen2", ",\"use_sliding_window\":1"), "use_sliding_window is 1; accepted: true or false"},
        {CONFIG("qwen3", ",\"layer_types\":[\"full_attention\",\"sliding_attention\"]"), "\"sliding_attention\""},
        {CONFIG("llama", ",\"quantization_config\":{\"bits\":4}"),
         "the quant_method of quantization_config is missing"},
        {CONFIG("llama", ",\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4}"),
         "the quant_method of quantization_config is \"gptq\"; accepted: bisup"},
        {CONFIG("llama", ",\"quantization_config\":\"bisup\""), "quantization_config is \"bisup\"; accepted: null"},
        {CONFIG("llama", ",\"hidden_act\":\"gelu\""), "hidden_act is \"gelu\"; accepted: silu"},
        {CONFIG("llama", ",\"hidden_act\":1"), "hidden_act is 1"},
        {CONFIG("llama", ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}"), "accepted: default, linear, llama3"},
        {CONFIG("llama", ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}"), "rope_type is \"yarn\""},
        {CONFIG("llama", ",\"rope_parameters\":{\"rope_type\":\"longrope\"}"), "rope_type is \"longrope\""},
        {CONFIG("llama", ",\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1}}"), "one set of values"},
        {CONFIG("llama", ",\"rope_scaling\":{\"type\":3}"), "rope_type is 3"},
        {CONFIG("llama", ",\"rope_scaling\":\"linear\""), "rope_scaling is \"linear\"; accepted: null or an object"},
        {CONFIG("llama", ",\"rope_scaling\":{\"type\":\"linear\"}"), "factor is missing"},
        {CONFIG("llama", ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}"), "factor is 0.5"},
        {CONFIG("llama", ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8}"), "low_freq_factor is missing"},
        {CONFIG("llama", ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
                         "\"high_freq_factor\":4}"),
         "high_freq_factor is 4; accepted: more than low_freq_factor"},
        {CONFIG("llama", ",\"partial_rotary_factor\":0.5"), "partial_rotary_factor is 0.5"},
        {CONFIG("llama", ",\"rope_theta\":0"), "rope_theta is 0"},
        {CONFIG("llama", ",\"rope_theta\":1e308"), "rope_theta is 1e+308"},
        {CONFIG("llama", ",\"rms_norm_eps\":-1"), "rms_norm_eps is -1"},
        {CONFIG("llama", ",\"rms_norm_eps\":\"1e-5\""), "rms_norm_eps is \"1e-5\""},
        {CONFIG("llama", ",\"num_key_value_heads\":3"), "not a multiple of num_key_value_heads"},
        {CONFIG("llama", ",\"num_key_value_heads\":8"), "not a multiple of num_key_value_heads"},
        {CONFIG("llama", ",\"hidden_size\":66"), "hidden_size is not a multiple of num_attention_heads"},
        {CONFIG("llama", ",\"hidden_size\":2"), "(hidden_size 2, heads 4"},
        {CONFIG("llama", ",\"hidden_size\":60"), "the size of a head is odd"},
        {CONFIG("llama", ",\"head_dim\":15"), "the size of a head is odd"},
        {CONFIG("llama", ",\"hidden_size\":65536,\"num_attention_heads\":2"), "the size of a head is out of range"},
        {CONFIG("llama", ",\"eos_token_id\":100"), "eos_token_id is 100; accepted: token ids below vocab_size"},
        {CONFIG("llama", ",\"eos_token_id\":[1,-1]"), "eos_token_id is -1"},
        {CONFIG("llama", ",\"eos_token_id\":\"2\""), "eos_token_id is \"2\""},
        {CONFIG("llama", ",\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]"), "at most 16 ids"},
        {CONFIG("llama", ",\"bos_token_id\":100"), "bos_token_id is 100; accepted: a whole number from 0 to 99"},
        {CONFIG("llama", ",\"tie_word_embeddings\":\"true\""), "tie_word_embeddings is \"true\""},
        {CONFIG("llama", ",\"attention_bias\":0"), "attention_bias is 0"},
        {CONFIG("llama", ",\"vocab_size\":\"0123456789012345678901234567890123456789012345678901234567890123456789\""),
         "..."},
        {"", "line 1, column 1"},
        {"{\n \"model_type\": \"llama\",\n \"vocab_size\": ,\n}", "line 3"},
        {"[]", "not a JSON object"},
        {"{\"model_type\":\"llama\"} {}", "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rt_model_config config = {.hidden = -7};
        bis_error error;
        bis_status status = parse(cases[i].text, &config, &error);
        if (!status) fail_msg("accepted: %s", cases[i].text);
        assert_true(status == BIS_ERR_FORMAT || status == BIS_ERR_UNSUPPORTED || status == BIS_ERR_LIMIT);
        assert_text_has(error.text, "config.json");
        assert_text_has(error.text, cases[i].said);
        assert_int_equal(config.hidden, -7);
    }
}

/* ---- quantization_config ---- */

#define OUTLIERS(attn, o, ffn, down)                                                                                   \
    "\"outliers\":{\"attn\":" #attn ",\"o\":" #o ",\"ffn\":" #ffn ",\"down\":" #down "}"
/* `more` comes last, so it replaces a key or adds to the model's configuration. */
#define QUANTIZED(more, beside)                                                                                        \
    CONFIG("llama",                                                                                                    \
           beside ",\"quantization_config\":{\"quant_method\":\"bisup\",\"version\":1,\"method\":\"bisup-quarot\","    \
                  "\"base\":\"quarot\",\"weight_bits\":3,\"activation_bits\":4,\"kv_bits\":2,\"group_size\":32,"       \
                  "\"weight_symmetric\":true," OUTLIERS(                                                               \
                      8, 0, 63, 95) ",\"key_before_rope\":false,"                                                      \
                                    "\"key_hadamard\":true,\"heads_hadamard\":true,\"ffn_hadamard\":true" more "}")

static void a_quantization_is_read(void **state) {
    (void)state;
    rt_model_config config;
    parse_well(QUANTIZED("", ""), &config);
    const rt_quantization *q = &config.quantization;
    assert_true(q->present && q->weight_symmetric && q->key_hadamard && q->heads_hadamard && q->ffn_hadamard);
    assert_false(q->key_before_rope);
    assert_string_equal(q->method, "bisup-quarot");
    assert_string_equal(q->base, "quarot");
    assert_int_equal(q->weight_bits, 3);
    assert_int_equal(q->activation_bits, 4);
    assert_int_equal(q->kv_bits, 2);
    assert_int_equal(q->group, 32);
    assert_int_equal(q->outliers[RT_SITE_ATTN], 8);
    assert_int_equal(q->outliers[RT_SITE_O], 0);
    assert_int_equal(q->outliers[RT_SITE_FFN], 63);
    assert_int_equal(q->outliers[RT_SITE_DOWN], 95);
    parse_well(CONFIG("llama", ",\"quantization_config\":null"), &config);
    assert_false(q->present);
    assert_int_equal(q->weight_bits, 16);
    assert_int_equal(q->activation_bits, 16);
    assert_int_equal(q->kv_bits, 16);
    assert_true(q->key_before_rope && !q->key_hadamard && !q->heads_hadamard && !q->ffn_hadamard);
    parse_well(QUANTIZED(",\"weight_bits\":16,\"activation_bits\":16,\"kv_bits\":16,\"method\":\"rtn\"", ""), &config);
    assert_true(q->present);
}

static void a_wrong_quantization_is_refused_with_what_is_right(void **state) {
    (void)state;
    static const struct {
        const char *text, *said;
    } cases[] = {
        {QUANTIZED(",\"quant_method\":\"awq\"", ""), "quant_method of quantization_config is \"awq\"; accepted: bisup"},
        {QUANTIZED(",\"version\":2", ""), "version is 2; accepted: a whole number from 1 to 1"},
        {QUANTIZED(",\"method\":\"magic\"", ""),
         "method is \"magic\"; accepted: rtn, gptq, atom, quarot, bisup-atom, bisup-quarot"},
        {QUANTIZED(",\"method\":null", ""), "method is missing"},
        {QUANTIZED(",\"base\":\"Atom\"", ""), "base is \"Atom\"; accepted: plain, atom, quarot"},
        {QUANTIZED(",\"weight_bits\":2", ""), "weight_bits is 2; accepted: 3, 4, 8, 16"},
        {QUANTIZED(",\"weight_bits\":\"3\"", ""), "weight_bits is \"3\""},
        {QUANTIZED(",\"activation_bits\":32", ""), "activation_bits is 32; accepted: 3, 4, 8, 16"},
        {QUANTIZED(",\"kv_bits\":5", ""), "kv_bits is 5; accepted: 2, 3, 4, 8, 16"},
        {QUANTIZED(",\"kv_bits\":3.5", ""), "kv_bits is 3.5"},
        {QUANTIZED(",\"group_size\":16", ""), "group_size is 16; accepted: 32, 64, 128"},
        {QUANTIZED(",\"group_size\":-128", ""), "group_size is -128"},
        {QUANTIZED(",\"weight_symmetric\":1", ""), "weight_symmetric is 1; accepted: true or false"},
        {QUANTIZED(",\"outliers\":8", ""), "outliers is 8; accepted: an object with attn, o, ffn and down"},
        {QUANTIZED("," OUTLIERS(64, 0, 0, 0), ""), "outliers.attn is 64; accepted: a whole number from 0 to 63"},
        {QUANTIZED("," OUTLIERS(0, -1, 0, 0), ""), "outliers.o is -1"},
        {QUANTIZED("," OUTLIERS(0, 0, 1e300, 0), ""), "outliers.ffn is 1e+300"},
        {QUANTIZED("," OUTLIERS(0, 0, 0, 96), ""), "outliers.down is 96; accepted: a whole number from 0 to 95"},
        {QUANTIZED(",\"outliers\":{\"attn\":0}", ""), "outliers.o is missing"},
        {QUANTIZED(",\"key_before_rope\":null", ""), "key_before_rope is missing; accepted: true or false"},
        {QUANTIZED(",\"key_hadamard\":\"yes\"", ""), "key_hadamard is \"yes\""},
        {QUANTIZED(",\"heads_hadamard\":0", ""), "heads_hadamard is 0"},
        {QUANTIZED(",\"ffn_hadamard\":{}", ""), "ffn_hadamard is an object"},
        {QUANTIZED(",\"key_before_rope\":true", ""), "key_hadamard is true; accepted: false, because key_before_rope"},
        {QUANTIZED(",\"weight_bits\":16", ""), "activation_bits is 4; accepted: 16, because weight_bits is 16"},
        {QUANTIZED("", ",\"tie_word_embeddings\":true"), "tie_word_embeddings is true; accepted: false"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rt_model_config config = {.hidden = -7};
        bis_error error;
        bis_status status = parse(cases[i].text, &config, &error);
        if (!status) fail_msg("accepted: %s", cases[i].text);
        assert_true(status == BIS_ERR_FORMAT || status == BIS_ERR_UNSUPPORTED);
        assert_text_has(error.text, "config.json: ");
        assert_text_has(error.text, cases[i].said);
        assert_null(strchr(error.text, '\n'));
        assert_int_equal(config.hidden, -7);
    }
}

static void absurd_sizes_are_refused_for_every_key(void **state) {
    (void)state;
    static const char *const keys[] = {"hidden_size",         "intermediate_size", "num_hidden_layers",
                                       "num_attention_heads", "vocab_size",        "max_position_embeddings",
                                       "num_key_value_heads", "head_dim"};
    static const char *const values[] = {
        "0", "-1", "2147483648", "9223372036854775808", "1e308", "1.5", "\"1\"", "true", "[64]", "{}", "1e-9", "-0.5"};
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            char text[512];
            snprintf(text, sizeof text, "{\"model_type\":\"llama\"," SIZES ",\"%s\":%s}", keys[k], values[v]);
            rt_model_config config;
            bis_error error;
            if (!parse(text, &config, &error)) fail_msg("accepted: %s", text);
            assert_text_has(error.text, keys[k]);
            assert_text_has(error.text, "accepted: a whole number from 1 to");
        }
    }
}

static void sizes_may_not_be_left_out(void **state) {
    (void)state;
    static const char *const keys[] = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                       "vocab_size"};
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        char text[512], said[64];
        snprintf(text, sizeof text, "{\"model_type\":\"llama\"," SIZES ",\"%s\":null}", keys[k]);
        rt_model_config config;
        bis_error error;
        assert_int_equal(parse(text, &config, &error), BIS_ERR_FORMAT);
        snprintf(said, sizeof said, "%s is missing", keys[k]);
        assert_text_has(error.text, said);
    }
}

static void a_config_cut_anywhere_is_refused(void **state) {
    (void)state;
    static const char text[] = CONFIG("llama", ",\"eos_token_id\":[1,2],\"rope_scaling\":null");
    for (size_t length = 0; length < sizeof text - 1; length++) {
        rt_model_config config;
        assert_int_equal(rt_model_config_parse(text, length, "config.json", &config, NULL), BIS_ERR_FORMAT);
    }
}

static void published_configs_are_read_or_refused_as_mixtures(void **state) {
    (void)state;
    char folder[512];
    snprintf(folder, sizeof folder, "%s", shared_path("data/configs"));
    DIR *entries = opendir(folder);
    if (!entries) {
        print_message("skipped: no folder %s\n", folder);
        skip();
        return; /* not reached */
    }
    int seen = 0;
    const struct dirent *entry;
    while ((entry = readdir(entries))) {
        if (!strstr(entry->d_name, ".config.json")) continue;
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        rt_model_config config;
        bis_error error = {.text = ""};
        bis_status status = rt_model_config_read(path, &config, &error);
        bool is_mixture = strstr(path, "A3B") != NULL;
        if (status != (is_mixture ? BIS_ERR_UNSUPPORTED : BIS_OK)) fail_msg("%s: %s", path, error.text);
        if (is_mixture) assert_text_has(error.text, "qwen3_moe");
        seen++;
    }
    closedir(entries);
    assert_true(seen >= 10);
}

static void the_shapes_for_measuring_have_their_size(void **state) {
    (void)state;
    rt_model_config config;
    bis_error error;
    if (rt_model_config_read("tools/shapes/1.1b.json", &config, &error)) fail_msg("%s", error.text);
    assert_int_equal(config.hidden, 2048);
    assert_int_equal(config.kv_heads, 4);
    if (rt_model_config_read("tools/shapes/110m.json", &config, &error)) fail_msg("%s", error.text);
    rt_model *model;
    if (rt_model_random(&config, KN_F16, 1, &model, &error)) fail_msg("%s", error.text);
    assert_int_equal(rt_model_parameters(model) / 1000000, 109);
    rt_model_close(model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(silent_keys_have_the_defaults_of_their_family),
        cmocka_unit_test(mistral_without_the_key_has_eight_kv_heads),
        cmocka_unit_test(spoken_keys_are_read),
        cmocka_unit_test(the_last_of_two_equal_keys_counts),
        cmocka_unit_test(every_spelling_of_rope_scaling_is_read),
        cmocka_unit_test(a_window_that_hides_nothing_is_accepted),
        cmocka_unit_test(what_cannot_be_run_is_refused_with_what_can),
        cmocka_unit_test(a_quantization_is_read),
        cmocka_unit_test(a_wrong_quantization_is_refused_with_what_is_right),
        cmocka_unit_test(absurd_sizes_are_refused_for_every_key),
        cmocka_unit_test(sizes_may_not_be_left_out),
        cmocka_unit_test(a_config_cut_anywhere_is_refused),
        cmocka_unit_test(published_configs_are_read_or_refused_as_mixtures),
        cmocka_unit_test(the_shapes_for_measuring_have_their_size),
    };
    return cmocka_run_group_tests_name("model_config", tests, NULL, NULL);
}
