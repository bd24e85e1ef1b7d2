/* Tokenizers of real models: ids against those of other implementations, decoding, special tokens. The data they
 * need is shared, not in the repository; the demo model's tokenizer is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "common/buf.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/utf8.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/support/scratch.h"

static const char demo[] = "models/demo";
static const char llama2[] = "data/tokenizers/llama2-32k";
static const char qwen2[] = "data/tokenizers/qwen2.5";
static const char mistral[] = "data/tokenizers/mistral-32k-chatml-hf";
static const char story[] = "data/models/story-llama-656k";

static rt_tokenizer *open_or_skip(const char *folder) {
    rt_tokenizer *tokenizer = NULL;
    bis_error error = {0};
    bis_status status = rt_tokenizer_open(folder, &tokenizer, &error);
    if (status == BIS_ERR_NOT_FOUND) {
        printf("skipped: %s\n", error.text);
        skip();
    }
    if (status) fail_msg("%s", error.text);
    return tokenizer;
}

/* Llama 3 ships its ranks in tiktoken's form; a helper converts them into the scratch folder, once. */
static const char *llama3_folder(void) {
    static bool tried;
    if (!tried && bis_file_exists(shared_path("data/tokenizers/llama3/tokenizer.model"))) {
        char command[2048];
        snprintf(command, sizeof command, "python3 tools/convert_tiktoken.py '%s' '%s' --family llama3",
                 shared_path("data/tokenizers/llama3/tokenizer.model"), scratch_make());
        if (system(command) != 0) fail_msg("%s failed", command);
    }
    tried = true;
    static char folder[512];
    const char *path = scratch_path("tokenizer.json");
    snprintf(folder, sizeof folder, "%.*s", (int)(strlen(path) - strlen("/tokenizer.json")), path);
    return folder;
}

static int make_scratch(void **state) {
    (void)state;
    scratch_make();
    return 0;
}

static int remove_scratch(void **state) {
    (void)state;
    scratch_remove();
    return 0;
}

static void encode(const rt_tokenizer *tokenizer, const char *text, size_t length, unsigned flags, rt_tokens *out) {
    bis_error error;
    out->count = 0;
    if (rt_tokenizer_encode(tokenizer, text, length, flags, out, &error)) fail_msg("%s", error.text);
}

static void assert_ids(const rt_tokens *tokens, const int32_t *ids, size_t count, const char *text) {
    bool same = tokens->count == count;
    for (size_t i = 0; same && i < count; i++) same = tokens->ids[i] == ids[i];
    if (same) return;
    bis_buf line = {0};
    for (size_t i = 0; i < count; i++) bis_buf_printf(&line, " %d", ids[i]);
    bis_buf_puts(&line, "\n  got:");
    for (size_t i = 0; i < tokens->count; i++) bis_buf_printf(&line, " %d", tokens->ids[i]);
    print_error("'%s'\n  expected:%s\n", text, bis_buf_cstr(&line));
    bis_buf_free(&line);
    fail();
}

/* ---- ids ---- */

static void check_golden_group(const cJSON *group) {
    const char *name = cJSON_GetObjectItem(group, "folder")->valuestring;
    const char *folder = strcmp(name, "llama3") == 0 ? llama3_folder() : name;
    if (strncmp(name, "shared:", 7) == 0) folder = shared_path(name + 7);
    rt_tokenizer *tokenizer = NULL;
    bis_error error;
    bis_status status = rt_tokenizer_open(folder, &tokenizer, &error);
    if (status == BIS_ERR_NOT_FOUND) {
        printf("skipped a part: %s\n", error.text);
        return;
    }
    if (status) fail_msg("%s", error.text);
    rt_tokens tokens = {0};
    int32_t expected[1024];
    const cJSON *item;
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(group, "cases")) {
        const char *text = cJSON_GetObjectItem(item, "text")->valuestring;
        unsigned flags = (unsigned)cJSON_GetObjectItem(item, "flags")->valueint;
        size_t count = 0;
        const cJSON *id;
        cJSON_ArrayForEach(id, cJSON_GetObjectItem(item, "ids")) {
            assert_true(count < sizeof expected / sizeof *expected);
            expected[count++] = id->valueint;
        }
        encode(tokenizer, text, strlen(text), flags, &tokens);
        assert_ids(&tokens, expected, count, text);
    }
    rt_tokens_free(&tokens);
    rt_tokenizer_close(tokenizer);
}

static void gives_the_ids_of_the_python_libraries(void **state) {
    (void)state;
    bis_buf file = {0};
    bis_error error;
    if (bis_read_file("tests/golden/tokenizer_cases.json", 1 << 20, &file, &error)) fail_msg("%s", error.text);
    cJSON *json = cJSON_ParseWithLength(file.data, file.length);
    assert_non_null(json);
    const cJSON *group;
    cJSON_ArrayForEach(group, json) check_golden_group(group);
    cJSON_Delete(json);
    bis_buf_free(&file);
}

/* Two files side by side: texts between separator lines, and a line of ids for each. */
static void check_text_files(const char *folder, const char *name) {
    static const char separator[] = "\n__ggml_vocab_test__\n";
    rt_tokenizer *tokenizer = open_or_skip(folder);
    bis_buf texts = {0}, ids = {0};
    bis_error error;
    char path[256];
    snprintf(path, sizeof path, "data/tokenizers/llamacpp-golden/ggml-vocab-%s.gguf.inp", name);
    if (bis_read_file(shared_path(path), 1 << 20, &texts, &error)) fail_msg("%s", error.text);
    memcpy(path + strlen(path) - 3, "out", 3);
    if (bis_read_file(shared_path(path), 1 << 20, &ids, &error)) fail_msg("%s", error.text);
    rt_tokens tokens = {0};
    int cases = 0;
    char *line = ids.data;
    for (const char *text = texts.data, *next; text; text = next, cases++) {
        const char *end = strstr(text, separator);
        size_t length = end ? (size_t)(end - text) : strlen(text);
        next = end ? end + strlen(separator) : NULL;
        int32_t expected[256];
        size_t count = 0;
        for (char *stop; *line && *line != '\n'; line = stop) {
            long id = strtol(line, &stop, 10);
            if (stop == line) break;
            expected[count++] = (int32_t)id;
        }
        line = strchr(line, '\n') ? strchr(line, '\n') + 1 : line + strlen(line);
        encode(tokenizer, text, length, 0, &tokens);
        assert_ids(&tokens, expected, count, text);
    }
    assert_int_equal(cases, 47);
    rt_tokens_free(&tokens);
    bis_buf_free(&texts);
    bis_buf_free(&ids);
    rt_tokenizer_close(tokenizer);
}

static void llama2_passes_the_llamacpp_cases(void **state) {
    (void)state;
    check_text_files(shared_path(llama2), "llama-spm");
}

static void llama3_passes_the_llamacpp_cases(void **state) {
    (void)state;
    check_text_files(llama3_folder(), "llama-bpe");
}

static void qwen2_passes_the_llamacpp_cases(void **state) {
    (void)state;
    check_text_files(shared_path(qwen2), "qwen2");
}

static void a_chat_has_no_dummy_prefix_inside(void **state) {
    (void)state;
    static const char chat[] = "<s><|im_start|>system\nYou are<|im_end|>\n<|im_start|>user\nHi";
    rt_tokenizer *tokenizer = open_or_skip(demo);
    rt_tokens tokens = {0};
    int32_t mark = rt_tokenizer_find(tokenizer, "\xe2\x96\x81");
    assert_true(mark >= 0);
    encode(tokenizer, chat, strlen(chat), RT_ENCODE_PARSE_SPECIAL, &tokens);
    assert_int_equal(tokens.ids[0], rt_tokenizer_bos(tokenizer));
    assert_int_equal(tokens.ids[1], rt_tokenizer_find(tokenizer, "<|im_start|>"));
    char text[RT_TOKEN_TEXT_MAX];
    for (size_t i = 1; i < tokens.count; i++) {
        bool after_marker = rt_tokenizer_is_special(tokenizer, tokens.ids[i - 1]) ||
                            tokens.ids[i - 1] == rt_tokenizer_find(tokenizer, "\n");
        assert_int_not_equal(tokens.ids[i], mark);
        if (after_marker && rt_tokenizer_token_bytes(tokenizer, tokens.ids[i], text))
            assert_int_not_equal(text[0], ' ');
    }
    rt_tokens_free(&tokens);
    rt_tokenizer_close(tokenizer);
}

static void special_tokens_in_plain_text_stay_text(void **state) {
    (void)state;
    const char *folders[] = {demo, qwen2, mistral, llama2, story};
    static const char text[] = "a<|im_end|>b</s>c<s><|im_start|><unk><|end_story|> d";
    for (size_t f = 0; f < sizeof folders / sizeof *folders; f++) {
        rt_tokenizer *tokenizer = open_or_skip(f == 0 ? demo : shared_path(folders[f]));
        rt_tokens tokens = {0};
        bis_buf back = {0};
        encode(tokenizer, text, strlen(text), 0, &tokens);
        for (size_t i = 0; i < tokens.count; i++) {
            bool special = rt_tokenizer_is_special(tokenizer, tokens.ids[i]);
            if (special && f != 4) fail_msg("%s: special token %d", folders[f], tokens.ids[i]);
        }
        assert_int_equal(rt_tokenizer_decode(tokenizer, tokens.ids, tokens.count, false, &back, NULL), BIS_OK);
        if (f != 4) assert_string_equal(bis_buf_cstr(&back), text); /* its vocabulary has no '<' and no bytes */
        bis_buf_free(&back);
        rt_tokens_free(&tokens);
        rt_tokenizer_close(tokenizer);
    }
}

/* ---- decoding ---- */

static uint32_t next_random(uint64_t *seed) {
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*seed >> 33);
}

static void check_joined_pieces(const rt_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special) {
    bis_buf whole = {0}, joined = {0};
    rt_decoder decoder;
    char piece[RT_DECODER_TEXT_MAX];
    rt_decoder_start(&decoder, tokenizer, skip_special);
    for (size_t i = 0; i < count; i++) {
        size_t length = rt_decoder_push(&decoder, ids[i], piece);
        assert_true(bis_utf8_valid(piece, length));
        bis_buf_append(&joined, piece, length);
    }
    bis_buf_append(&joined, piece, rt_decoder_finish(&decoder, piece));
    assert_int_equal(rt_tokenizer_decode(tokenizer, ids, count, skip_special, &whole, NULL), BIS_OK);
    assert_true(bis_utf8_valid(bis_buf_cstr(&whole), whole.length));
    const char *text = bis_buf_cstr(&joined);
    if (joined.length == whole.length + 1 && *text == ' ') text++; /* the whole text lost its dummy prefix */
    assert_string_equal(text, bis_buf_cstr(&whole));
    bis_buf_free(&whole);
    bis_buf_free(&joined);
}

static void pieces_join_to_the_whole_text(void **state) {
    (void)state;
    static const char text[] = "\xe6\x88\x91\xe6\x83\xb3\xf0\x9f\x9a\x80\xf0\x9f\x98\xb6\xe2\x80\x8d\xf0\x9f\x8c\xab "
                               "\xe1\x9e\x80\xe1\x9e\xb6\xe1\x9e\x93\xf4\x8f\xbf\xbf";
    const char *folders[] = {demo, qwen2, mistral, llama2, story};
    for (size_t f = 0; f < sizeof folders / sizeof *folders; f++) {
        rt_tokenizer *tokenizer = open_or_skip(f == 0 ? demo : shared_path(folders[f]));
        uint64_t seed = 7;
        rt_tokens tokens = {0};
        encode(tokenizer, text, strlen(text), 0, &tokens);
        for (size_t cut = 0; cut <= tokens.count; cut++) check_joined_pieces(tokenizer, tokens.ids, cut, false);
        for (int round = 0; round < 400; round++) {
            int32_t ids[24];
            size_t count = next_random(&seed) % 24;
            for (size_t i = 0; i < count; i++) {
                /* Byte tokens often, so that characters are cut in all places. */
                bool common = next_random(&seed) % 2;
                uint32_t range =
                    common && tokens.count ? (uint32_t)tokens.count : (uint32_t)rt_tokenizer_vocab_size(tokenizer);
                uint32_t pick = next_random(&seed) % range;
                ids[i] = common && tokens.count ? tokens.ids[pick] : (int32_t)pick;
            }
            check_joined_pieces(tokenizer, ids, count, round % 2);
        }
        rt_tokens_free(&tokens);
        rt_tokenizer_close(tokenizer);
    }
}

static void byte_tokens_become_characters_only_when_complete(void **state) {
    (void)state;
    rt_tokenizer *tokenizer = open_or_skip(demo);
    static const struct {
        const char *tokens[4];
        const char *expected[5]; /* after each token, then at the end */
    } cases[] = {
        {{"<0xE6>", "<0x88>", "<0x91>"}, {"", "", "\xe6\x88\x91", ""}},
        {{"<0xF0>", "<0x9F>", "<0x9A>", "<0x80>"}, {"", "", "", "\xf0\x9f\x9a\x80", ""}},
        {{"<0xE6>", "<0x88>", "x"}, {"", "", "\xef\xbf\xbd\xef\xbf\xbdx", ""}},
        {{"<0xE6>", "<0x88>"}, {"", "", "\xef\xbf\xbd\xef\xbf\xbd"}},
        {{"<0xFF>", "<0x41>"}, {"\xef\xbf\xbd", "A", ""}},
        {{"<0xED>", "<0xA0>", "<0x80>"}, {"", "\xef\xbf\xbd\xef\xbf\xbd", "\xef\xbf\xbd", ""}},
        {{"<|im_end|>", "<0x41>"}, {"", "A", ""}},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        rt_decoder decoder;
        char text[RT_DECODER_TEXT_MAX + 1];
        rt_decoder_start(&decoder, tokenizer, true);
        size_t i = 0;
        for (; i < 4 && cases[c].tokens[i]; i++) {
            text[rt_decoder_push(&decoder, rt_tokenizer_find(tokenizer, cases[c].tokens[i]), text)] = '\0';
            assert_string_equal(text, cases[c].expected[i]);
        }
        text[rt_decoder_finish(&decoder, text)] = '\0';
        assert_string_equal(text, cases[c].expected[i]);
    }
    rt_tokenizer_close(tokenizer);
}

static void any_bytes_survive_a_round_trip(void **state) {
    (void)state;
    static const char text[] = "ok \xff\xfe\x00 caf\xc3\xa9 \xc3 \xe6\x88 \xf0\x9f\x9a\x80\n\n  end\xed\xa0\x80";
    const char *folders[] = {demo, qwen2, llama2};
    for (size_t f = 0; f < sizeof folders / sizeof *folders; f++) {
        rt_tokenizer *tokenizer = open_or_skip(f == 0 ? demo : shared_path(folders[f]));
        rt_tokens tokens = {0};
        bis_buf back = {0};
        char bytes[RT_TOKEN_TEXT_MAX];
        encode(tokenizer, text, sizeof text - 1, 0, &tokens);
        for (size_t i = 0; i < tokens.count; i++) {
            bis_buf_append(&back, bytes, rt_tokenizer_token_bytes(tokenizer, tokens.ids[i], bytes));
        }
        size_t prefix = *back.data == ' '; /* the dummy prefix */
        assert_int_equal(back.length - prefix, sizeof text - 1);
        assert_memory_equal(back.data + prefix, text, sizeof text - 1);
        bis_buf_free(&back);
        rt_tokens_free(&tokens);
        rt_tokenizer_close(tokenizer);
    }
}

/* ---- what it knows, and how fast it is ---- */

static void bos_and_eos_come_from_the_side_files(void **state) {
    (void)state;
    const struct {
        const char *folder;
        int32_t bos;
        const char *bos_text, *eos_text, *kind;
        int32_t eos[4];
        size_t eos_count;
    } cases[] = {
        {demo, 1, "<s>", "<|im_end|>", "sentencepiece", {2, 4}, 2},
        {qwen2, -1, "", "<|im_end|>", "byte-level BPE", {151645, 151643}, 2},
        {mistral, 1, "<s>", "<|im_end|>", "BPE with byte fallback", {32000}, 1},
        {story, 1, "<|start_story|>", "<|end_story|>", "BPE with byte fallback", {2}, 1},
        {llama2, 1, "<s>", "</s>", "sentencepiece", {2}, 1},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        rt_tokenizer *tokenizer = open_or_skip(c == 0 ? demo : shared_path(cases[c].folder));
        int32_t eos[RT_EOS_MAX];
        assert_int_equal(rt_tokenizer_bos(tokenizer), cases[c].bos);
        assert_string_equal(rt_tokenizer_bos_text(tokenizer), cases[c].bos_text);
        assert_string_equal(rt_tokenizer_eos_text(tokenizer), cases[c].eos_text);
        assert_string_equal(rt_tokenizer_kind(tokenizer), cases[c].kind);
        assert_int_equal(rt_tokenizer_eos(tokenizer, eos), cases[c].eos_count);
        assert_memory_equal(eos, cases[c].eos, cases[c].eos_count * sizeof *eos);
        for (size_t i = 0; i < cases[c].eos_count; i++) assert_true(rt_tokenizer_is_special(tokenizer, eos[i]));
        rt_tokenizer_close(tokenizer);
    }
}

static void ids_outside_the_vocabulary_are_refused(void **state) {
    (void)state;
    rt_tokenizer *tokenizer = open_or_skip(demo);
    const int32_t wrong[] = {-1, rt_tokenizer_vocab_size(tokenizer), INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        bis_buf text = {0};
        bis_error error;
        char bytes[RT_TOKEN_TEXT_MAX];
        assert_int_equal(rt_tokenizer_decode(tokenizer, &wrong[i], 1, false, &text, &error), BIS_ERR_INVALID);
        assert_int_equal(rt_tokenizer_token_bytes(tokenizer, wrong[i], bytes), 0);
        assert_false(rt_tokenizer_is_special(tokenizer, wrong[i]));
        bis_buf_free(&text);
    }
    rt_tokenizer_close(tokenizer);
}

static void one_endless_word_takes_no_longer_than_text(void **state) {
    (void)state;
    enum { BYTES = 1 << 20, SECONDS_MAX = 20 }; /* a quadratic encoder takes hours */
    const char *folders[] = {demo, qwen2, mistral};
    static const char *const units[] = {"a", " ", "<|im_start", "\xe6\x88\x91", "a\xff", "\n "};
    char *text = malloc(BYTES);
    assert_non_null(text);
    for (size_t f = 0; f < sizeof folders / sizeof *folders; f++) {
        rt_tokenizer *tokenizer = open_or_skip(f == 0 ? demo : shared_path(folders[f]));
        rt_tokens tokens = {0};
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            size_t unit = strlen(units[u]), length = BYTES / 2 / unit * unit;
            for (size_t at = 0; at < length; at += unit) memcpy(text + at, units[u], unit);
            double start = bis_now_seconds();
            encode(tokenizer, text, length, RT_ENCODE_PARSE_SPECIAL, &tokens);
            assert_true(tokens.count > 0);
            assert_true(bis_now_seconds() - start < SECONDS_MAX);
        }
        rt_tokens_free(&tokens);
        rt_tokenizer_close(tokenizer);
    }
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_the_ids_of_the_python_libraries),
        cmocka_unit_test(llama2_passes_the_llamacpp_cases),
        cmocka_unit_test(llama3_passes_the_llamacpp_cases),
        cmocka_unit_test(qwen2_passes_the_llamacpp_cases),
        cmocka_unit_test(a_chat_has_no_dummy_prefix_inside),
        cmocka_unit_test(special_tokens_in_plain_text_stay_text),
        cmocka_unit_test(pieces_join_to_the_whole_text),
        cmocka_unit_test(byte_tokens_become_characters_only_when_complete),
        cmocka_unit_test(any_bytes_survive_a_round_trip),
        cmocka_unit_test(bos_and_eos_come_from_the_side_files),
        cmocka_unit_test(ids_outside_the_vocabulary_are_refused),
        cmocka_unit_test(one_endless_word_takes_no_longer_than_text),
    };
    return cmocka_run_group_tests(tests, make_scratch, remove_scratch);
}
