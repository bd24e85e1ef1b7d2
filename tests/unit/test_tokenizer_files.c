/* Tokenizer files: what small ones mean, what malformed ones are refused with, and memory running out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/file.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/support/scratch.h"

#define MODEL "{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"\xc4\xa0\":3,\"ab\":4,\"abc\":5},\"merges\":"
#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"
#define FILE_WITH(model, rest) "{\"model\":" model ",\"decoder\":{\"type\":\"ByteLevel\"}" rest "}"
#define GOOD_MODEL MODEL "[\"a b\",\"ab c\"]}"
#define WITH(rest) FILE_WITH(GOOD_MODEL, ",\"pre_tokenizer\":" BYTE_LEVEL rest)
#define SPECIAL(content, id, more) "{\"content\":\"" content "\",\"id\":" id ",\"special\":true" more "}"

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

static const char *folder(void) {
    static char path[1024];
    snprintf(path, sizeof path, "%s", scratch_path(""));
    path[strlen(path) - 1] = '\0';
    return path;
}

static rt_tokenizer *open_folder(void) {
    rt_tokenizer *tokenizer = NULL;
    bis_error error;
    if (rt_tokenizer_open(folder(), &tokenizer, &error)) fail_msg("%s", error.text);
    return tokenizer;
}

static rt_tokenizer *open_json(const char *json) {
    scratch_make();
    scratch_write_text("tokenizer.json", json);
    return open_folder();
}

/* Ids as "1 2 3". */
static void assert_encodes(const rt_tokenizer *tokenizer, const char *text, unsigned flags, const char *expected) {
    rt_tokens tokens = {0};
    bis_buf line = {0};
    bis_error error;
    if (rt_tokenizer_encode(tokenizer, text, strlen(text), flags, &tokens, &error)) fail_msg("%s", error.text);
    for (size_t i = 0; i < tokens.count; i++) bis_buf_printf(&line, i ? " %d" : "%d", tokens.ids[i]);
    assert_string_equal(bis_buf_cstr(&line), expected);
    bis_buf_free(&line);
    rt_tokens_free(&tokens);
}

static void assert_decodes(const rt_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special,
                           const char *expected) {
    bis_buf text = {0};
    assert_int_equal(rt_tokenizer_decode(tokenizer, ids, count, skip_special, &text, NULL), BIS_OK);
    assert_string_equal(bis_buf_cstr(&text), expected);
    bis_buf_free(&text);
}

static void assert_refused(bis_status expected, const char *part) {
    rt_tokenizer *tokenizer = NULL;
    bis_error error = {0};
    bis_status status = rt_tokenizer_open(folder(), &tokenizer, &error);
    if (status != expected)
        fail_msg("status %s, not %s: %s", bis_status_name(status), bis_status_name(expected), error.text);
    if (!strstr(error.text, part)) fail_msg("'%s' does not contain '%s'", error.text, part);
    assert_null(tokenizer);
}

/* ---- what small files mean ---- */

static void merges_run_by_rank_and_from_the_left(void **state) {
    (void)state;
    rt_tokenizer *tokenizer = open_json(WITH(""));
    assert_encodes(tokenizer, "", 0, "");
    assert_encodes(tokenizer, "abc", 0, "5");
    assert_encodes(tokenizer, "abcab c", 0, "5 4 3 2");
    assert_encodes(tokenizer, "cba", 0, "2 1 0");
    rt_tokenizer_close(tokenizer);
    tokenizer =
        open_json(FILE_WITH("{\"vocab\":{\"a\":0,\"aa\":1,\"aaa\":2},\"merges\":[[\"a\",\"a\"],[\"aa\",\"a\"]]}",
                            ",\"pre_tokenizer\":" BYTE_LEVEL));
    assert_encodes(tokenizer, "aaaaa", 0, "1 2");
    assert_encodes(tokenizer, "aaaaaaa", 0, "1 1 2");
    rt_tokenizer_close(tokenizer);
}

static void ignore_merges_looks_the_whole_word_up_first(void **state) {
    (void)state;
    static const char model[] = "{\"model\":{\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"\xc4\xa0"
                                "ab\":3,\"\xc4\xa0\":4},"
                                "\"merges\":[\"a b\"],\"ignore_merges\":%s},\"pre_tokenizer\":" BYTE_LEVEL
                                ",\"decoder\":{\"type\":\"ByteLevel\"}}";
    char json[512];
    snprintf(json, sizeof json, model, "true");
    rt_tokenizer *tokenizer = open_json(json);
    assert_encodes(tokenizer, "ab ab", 0, "2 3");
    rt_tokenizer_close(tokenizer);
    snprintf(json, sizeof json, model, "false");
    tokenizer = open_json(json);
    assert_encodes(tokenizer, "ab ab", 0, "2 4 2");
    rt_tokenizer_close(tokenizer);
}

static void added_tokens_follow_their_flags(void **state) {
    (void)state;
    static const char *const tokens[] = {
        "{\"content\":\"<b>\",\"id\":6,\"special\":true,\"lstrip\":true}",
        "{\"content\":\"<b\",\"id\":7,\"special\":true,\"rstrip\":true}",
        "{\"content\":\"ca\",\"id\":8,\"special\":false,\"single_word\":true}",
        "{\"content\":\"cc\",\"id\":9,\"special\":false}",
    };
    char json[1024];
    snprintf(json, sizeof json, WITH(",\"added_tokens\":[%s,%s,%s,%s]"), tokens[0], tokens[1], tokens[2], tokens[3]);
    rt_tokenizer *tokenizer = open_json(json);
    const struct {
        const char *text;
        unsigned flags;
        const char *ids;
    } cases[] = {
        {"a  <b>a", RT_ENCODE_PARSE_SPECIAL, "0 6 0"},  /* the longest token, and the space before it */
        {"a <b a", RT_ENCODE_PARSE_SPECIAL, "0 3 7 0"}, /* the space after it */
        {"a  <b>a", 0, "0 3 3 1 0"},                    /* plain text; '<' and '>' are in no vocabulary */
        {"ca bca ca", 0, "8 3 1 2 0 3 8"},              /* only as a word of its own */
        {"accca", 0, "0 9 2 0"},                        /* not special: always matched */
        {"<b><b> <b>", RT_ENCODE_PARSE_SPECIAL, "6 6 6"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_encodes(tokenizer, cases[i].text, cases[i].flags, cases[i].ids);
    }
    const int32_t ids[] = {0, 6, 9, 1};
    assert_decodes(tokenizer, ids, 4, false, "a<b>ccb");
    assert_decodes(tokenizer, ids, 4, true, "accb");
    rt_tokenizer_close(tokenizer);
}

static void templates_and_explicit_flags_add_bos_and_eos(void **state) {
    (void)state;
    static const char json[] = WITH(",\"added_tokens\":[" SPECIAL("<s>", "6", "") "," SPECIAL(
        "</s>", "7", "") "],"
                         "\"post_processor\":{\"type\":\"Sequence\",\"processors\":[{\"type\":\"ByteLevel\"},"
                         "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}},{"
                         "\"Sequence\":{\"id\":\"A\"}}],"
                         "\"special_tokens\":{\"<s>\":{\"ids\":[6]}}}]}");
    rt_tokenizer *tokenizer = open_json(json);
    assert_encodes(tokenizer, "a", RT_ENCODE_ADD_SPECIAL, "6 0");
    assert_encodes(tokenizer, "a", 0, "0");
    assert_int_equal(rt_tokenizer_bos(tokenizer), 6);
    rt_tokenizer_close(tokenizer);
    scratch_write_text(
        "tokenizer_config.json",
        "{\"bos_token\":\"<s>\",\"eos_token\":{\"content\":\"</s>\"},\"add_bos_token\":false,\"add_eos_token\":true}");
    tokenizer = open_folder();
    assert_encodes(tokenizer, "a", RT_ENCODE_ADD_SPECIAL, "0 7");
    assert_string_equal(rt_tokenizer_eos_text(tokenizer), "</s>");
    rt_tokenizer_close(tokenizer);
}

static void side_files_name_bos_and_eos(void **state) {
    (void)state;
    scratch_make();
    scratch_write_text("tokenizer.json", WITH(""));
    scratch_write_text("added_tokens.json", "{\"<|im_end|>\":10,\"<e>\":11,\"<f>\":12}");
    scratch_write_text("special_tokens_map.json",
                       "{\"additional_special_tokens\":[\"<|im_end|>\",{\"content\":\"<f>\"}]}");
    scratch_write_text("tokenizer_config.json", "{\"bos_token\":null,\"eos_token\":\"<e>\",\"chat_template\":\"x\"}");
    scratch_write_text("generation_config.json", "{\"eos_token_id\":[12,5,900]}");
    scratch_write_text("config.json", "{\"bos_token_id\":1,\"eos_token_id\":5}");
    rt_tokenizer *tokenizer = open_folder();
    static const int32_t expected[] = {12, 5, 11, 10}; /* 900 does not exist */
    int32_t eos[RT_EOS_MAX];
    assert_int_equal(rt_tokenizer_eos(tokenizer, eos), 4);
    assert_memory_equal(eos, expected, sizeof expected);
    assert_int_equal(rt_tokenizer_bos(tokenizer), -1); /* null in tokenizer_config.json outranks config.json */
    assert_int_equal(rt_tokenizer_vocab_size(tokenizer), 13);
    assert_true(rt_tokenizer_is_special(tokenizer, 10));
    char text[RT_TOKEN_TEXT_MAX];
    assert_int_equal(rt_tokenizer_token_bytes(tokenizer, 8, text), 0); /* a hole */
    rt_tokenizer_close(tokenizer);
}

static void vocab_and_merges_make_a_tokenizer(void **state) {
    (void)state;
    scratch_make();
    scratch_write_text("vocab.json", "{\"a\":0,\"b\":1,\"ab\":2,\"1\":3,\"\xc4\xa0\":4,\"\xc3\x83\":5,\"\xc2\xa9\":6}");
    scratch_write_text("merges.txt", "#version: 0.2\r\na b\r\n\r\n");
    rt_tokenizer *tokenizer = open_folder();
    assert_encodes(tokenizer, "ab 11ab", 0, "2 4 3 3 2");
    assert_encodes(tokenizer, "e\xcc\x81", 0, "5 6"); /* composed first */
    rt_tokenizer_close(tokenizer);
    scratch_write_text("tokenizer_config.json", "{\"tokenizer_class\":\"BertTokenizer\"}");
    assert_refused(BIS_ERR_UNSUPPORTED, "'BertTokenizer'");
    scratch_write_text("tokenizer_config.json", "{\"tokenizer_class\":\"GPT2Tokenizer\"}");
    scratch_write_text("merges.txt", "a b c\n");
    assert_refused(BIS_ERR_FORMAT, "merges.txt: merge 0 ('a b c')");
    scratch_write_text("merges.txt", "a z\n");
    assert_refused(BIS_ERR_FORMAT, "names a token the vocabulary lacks");
}

static void characters_fall_back_to_bytes_or_unknown(void **state) {
    (void)state;
    static const char json[] =
        "{\"model\":{\"vocab\":{\"<unk>\":0,\"\xe2\x96\x81\":1,\"a\":2,\"\xe2\x96\x81"
        "a\":3%s},\"merges\":[\"\xe2\x96\x81 a\"],"
        "\"unk_token\":\"<unk>\",\"fuse_unk\":%s,\"byte_fallback\":true},"
        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\xe2\x96\x81\"},"
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\xe2\x96\x81\"}]},"
        "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":"
        "\"\xe2\x96\x81\"},"
        "\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" "
        "\",\"start\":1,"
        "\"stop\":0}]}}";
    char text[2048];
    snprintf(text, sizeof text, json, ",\"<0xC3>\":4,\"<0xA9>\":5", "true");
    rt_tokenizer *tokenizer = open_json(text);
    assert_encodes(tokenizer, "a a\xc3\xa9", 0, "3 3 4 5");
    assert_encodes(tokenizer, "zza", 0, "1 0 2");
    assert_encodes(tokenizer, "\xff", 0, "1 0"); /* U+FFFD, as not every byte has a token */
    const int32_t ids[] = {3, 3, 4, 5};
    assert_decodes(tokenizer, ids, 4, false, "a a\xc3\xa9");
    assert_decodes(tokenizer, ids, 3, false, "a a\xef\xbf\xbd");
    rt_tokenizer_close(tokenizer);
    snprintf(text, sizeof text, json, "", "false");
    tokenizer = open_json(text);
    assert_encodes(tokenizer, "zz", 0, "1 0 0");
    rt_tokenizer_close(tokenizer);
}

/* ---- what is refused ---- */

static void malformed_tokenizer_json_is_refused_with_its_reason(void **state) {
    (void)state;
    static const struct {
        const char *json;
        bis_status status;
        const char *part;
    } cases[] = {
        {"", BIS_ERR_FORMAT, "not valid JSON"},
        {"{\"model\":", BIS_ERR_FORMAT, "not valid JSON"},
        {WITH("") "x", BIS_ERR_FORMAT, "not valid JSON"},
        {"[]", BIS_ERR_FORMAT, "'model' is missing"},
        {"{\"model\":7}", BIS_ERR_FORMAT, "'model' is missing"},
        {"{\"model\":{\"type\":\"Unigram\"}}", BIS_ERR_UNSUPPORTED, "model type 'Unigram'"},
        {"{\"model\":{\"type\":null}}", BIS_ERR_UNSUPPORTED, "model type"},
        {"{\"model\":{\"type\":\"BPE\"}}", BIS_ERR_FORMAT, "vocabulary is missing"},
        {"{\"model\":{\"vocab\":[]}}", BIS_ERR_FORMAT, "vocabulary is missing"},
        {"{\"model\":{\"vocab\":{}}}", BIS_ERR_FORMAT, "vocabulary is empty"},
        {"{\"model\":{\"vocab\":{\"a\":-1}}}", BIS_ERR_FORMAT, "id of token 'a'"},
        {"{\"model\":{\"vocab\":{\"a\":1.5}}}", BIS_ERR_FORMAT, "id of token 'a'"},
        {"{\"model\":{\"vocab\":{\"a\":1e300}}}", BIS_ERR_FORMAT, "id of token 'a'"},
        {"{\"model\":{\"vocab\":{\"a\":4194304}}}", BIS_ERR_FORMAT, "id of token 'a'"},
        {"{\"model\":{\"vocab\":{\"a\":\"0\"}}}", BIS_ERR_FORMAT, "id of token 'a'"},
        {"{\"model\":{\"vocab\":{\"a\":0,\"b\":0}}}", BIS_ERR_FORMAT, "same id 0"},
        {"{\"model\":{\"vocab\":{\"a\":0,\"a\":1}}}", BIS_ERR_FORMAT, "listed twice"},
        {"{\"model\":{\"vocab\":{\"\xff\":0}}}", BIS_ERR_FORMAT, "not valid UTF-8"},
        {WITH(",\"normalizer\":{\"type\":\"Prepend\",\"prepend\":\"\xff\"}"), BIS_ERR_FORMAT, "not valid UTF-8"},
        {FILE_WITH("{\"vocab\":{\"a\":0}}", ""), BIS_ERR_FORMAT, "model.merges"},
        {FILE_WITH(MODEL "7}", ""), BIS_ERR_FORMAT, "model.merges"},
        {FILE_WITH(MODEL "[\"a z\"]}", ""), BIS_ERR_FORMAT, "merge 0 ('a' with 'z')"},
        {FILE_WITH(MODEL "[\"a c\"]}", ""), BIS_ERR_FORMAT, "merge 0 ('a' with 'c')"},
        {FILE_WITH(MODEL "[\"ab\"]}", ""), BIS_ERR_FORMAT, "not two tokens"},
        {FILE_WITH(MODEL "[\"a b\",\"a b c\"]}", ""), BIS_ERR_FORMAT, "merge 1"},
        {FILE_WITH(MODEL "[[\"a\"]]}", ""), BIS_ERR_FORMAT, "merge 0 is neither"},
        {FILE_WITH(MODEL "[[\"a\",\"b\",\"c\"]]}", ""), BIS_ERR_FORMAT, "merge 0 is neither"},
        {FILE_WITH(MODEL "[[\"a\",1]]}", ""), BIS_ERR_FORMAT, "merge 0 is neither"},
        {FILE_WITH(MODEL "[],\"dropout\":0.1}", ""), BIS_ERR_UNSUPPORTED, "model.dropout"},
        {FILE_WITH(MODEL "[],\"end_of_word_suffix\":\"</w>\"}", ""), BIS_ERR_UNSUPPORTED, "end_of_word_suffix"},
        {WITH(",\"added_tokens\":{}"), BIS_ERR_FORMAT, "'added_tokens' is not an array"},
        {WITH(",\"added_tokens\":[7]"), BIS_ERR_FORMAT, "an entry of 'added_tokens'"},
        {WITH(",\"added_tokens\":[{\"content\":\"x\"}]"), BIS_ERR_FORMAT, "an entry of 'added_tokens'"},
        {WITH(",\"added_tokens\":[" SPECIAL("x", "4194304", "") "]"), BIS_ERR_FORMAT, "an entry of 'added_tokens'"},
        {WITH(",\"added_tokens\":[" SPECIAL("", "9", "") "]"), BIS_ERR_FORMAT, "added token 9 is empty"},
        {WITH(",\"normalizer\":7"), BIS_ERR_UNSUPPORTED, "normalizer '(without a type)'"},
        {WITH(",\"normalizer\":{\"type\":\"BertNormalizer\"}"), BIS_ERR_UNSUPPORTED, "normalizer 'BertNormalizer'"},
        {WITH(",\"normalizer\":{\"type\":\"Sequence\"}"), BIS_ERR_FORMAT, "lacks its list 'normalizers'"},
        {WITH(",\"normalizer\":{\"type\":\"Prepend\"}"), BIS_ERR_FORMAT, "'Prepend' lacks"},
        {WITH(",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"b\"}"),
         BIS_ERR_UNSUPPORTED, "normalizer 'Replace"},
        {FILE_WITH(GOOD_MODEL, ",\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"}"), BIS_ERR_UNSUPPORTED,
         "pre-tokenizer 'BertPreTokenizer'"},
        {FILE_WITH(GOOD_MODEL, ",\"pre_tokenizer\":{\"type\":\"Split\"}"), BIS_ERR_FORMAT, "'Split' lacks"},
        {FILE_WITH(GOOD_MODEL,
                   ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}"),
         BIS_ERR_FORMAT, "split pattern '('"},
        {FILE_WITH(GOOD_MODEL,
                   ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Odd\"}"),
         BIS_ERR_UNSUPPORTED, "'Odd'"},
        {FILE_WITH(GOOD_MODEL, ",\"pre_tokenizer\":{\"type\":\"Metaspace\"}"), BIS_ERR_FORMAT, "'Metaspace' lacks"},
        {FILE_WITH(GOOD_MODEL, ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[" BYTE_LEVEL
                               ",{\"type\":\"Digits\"}]}"),
         BIS_ERR_UNSUPPORTED, "'Digits' after 'ByteLevel'"},
        {WITH(",\"post_processor\":{\"type\":\"RobertaProcessing\"}"), BIS_ERR_UNSUPPORTED, "'RobertaProcessing'"},
        {WITH(",\"post_processor\":{\"type\":\"TemplateProcessing\"}"), BIS_ERR_FORMAT, "lacks its list 'single'"},
        {WITH(",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}]}"),
         BIS_ERR_FORMAT, "does not define 'x'"},
        {WITH(",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}],"
              "\"special_tokens\":{\"x\":{\"ids\":[6]}}}"),
         BIS_ERR_FORMAT, "outside the vocabulary"},
        {"{\"model\":" GOOD_MODEL "}", BIS_ERR_UNSUPPORTED, "decoder 'null'"},
        {"{\"model\":" GOOD_MODEL ",\"decoder\":{\"type\":\"WordPiece\"}}", BIS_ERR_UNSUPPORTED, "decoder 'WordPiece'"},
        {"{\"model\":" GOOD_MODEL ",\"decoder\":{\"type\":\"Strip\",\"content\":\" \",\"start\":0,\"stop\":1}}",
         BIS_ERR_UNSUPPORTED, "decoder 'Strip"},
        {"{\"model\":" GOOD_MODEL
         ",\"decoder\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"long\"}}",
         BIS_ERR_UNSUPPORTED, "decoder 'Replace"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        scratch_make();
        scratch_write_text("tokenizer.json", cases[i].json);
        assert_refused(cases[i].status, cases[i].part);
        assert_refused(cases[i].status, "tokenizer.json");
    }
}

static void every_truncation_of_a_file_is_refused(void **state) {
    (void)state;
    static const char json[] = WITH(",\"added_tokens\":[" SPECIAL("<s>", "6", "") "]");
    scratch_make();
    for (size_t length = 0; length < sizeof json - 1; length++) {
        scratch_write("tokenizer.json", json, length);
        assert_refused(BIS_ERR_FORMAT, "tokenizer.json is not valid JSON");
    }
}

static void malformed_side_files_are_refused_with_their_reason(void **state) {
    (void)state;
    static const struct {
        const char *name, *json, *part;
    } cases[] = {
        {"tokenizer_config.json", "{", "not valid JSON"},
        {"tokenizer_config.json", "[]", "not a JSON object"},
        {"tokenizer_config.json", "{\"legacy\":\"yes\"}", "'legacy' is neither"},
        {"tokenizer_config.json", "{\"add_bos_token\":1}", "'add_bos_token' is neither"},
        {"tokenizer_config.json", "{\"bos_token\":5}", "'bos_token' is neither"},
        {"tokenizer_config.json", "{\"eos_token\":{\"text\":\"x\"}}", "'eos_token' is neither"},
        {"tokenizer_config.json", "{\"added_tokens_decoder\":[]}", "'added_tokens_decoder' is not an object"},
        {"tokenizer_config.json", "{\"added_tokens_decoder\":{\"x\":\"y\"}}", "'x', which is no token id"},
        {"tokenizer_config.json", "{\"added_tokens_decoder\":{\"99999999999\":\"y\"}}", "which is no token id"},
        {"tokenizer_config.json", "{\"additional_special_tokens\":\"x\"}", "not a list of tokens"},
        {"added_tokens.json", "{\"x\":-3}", "the id of 'x'"},
        {"generation_config.json", "{\"eos_token_id\":\"x\"}", "'eos_token_id'"},
        {"generation_config.json", "{\"eos_token_id\":[1,null]}", "'eos_token_id'"},
        {"config.json", "{\"bos_token_id\":0.5}", "'bos_token_id'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        scratch_make();
        scratch_write_text("tokenizer.json", WITH(""));
        scratch_write_text(cases[i].name, cases[i].json);
        assert_refused(BIS_ERR_FORMAT, cases[i].part);
        assert_refused(BIS_ERR_FORMAT, cases[i].name);
    }
}

static void a_folder_without_a_tokenizer_says_what_is_needed(void **state) {
    (void)state;
    scratch_make();
    assert_refused(BIS_ERR_NOT_FOUND, "tokenizer.json, tokenizer.model, or vocab.json with merges.txt");
    rt_tokenizer *tokenizer = NULL;
    bis_error error;
    assert_int_equal(rt_tokenizer_open("/no/such/folder", &tokenizer, &error), BIS_ERR_NOT_FOUND);
}

static void damaged_sentencepiece_models_are_refused_or_work(void **state) {
    (void)state;
    bis_buf model = {0};
    bis_error error;
    if (bis_read_file("models/demo/tokenizer.model", 1 << 20, &model, &error)) fail_msg("%s", error.text);
    scratch_make();
    scratch_write_text("tokenizer.model", "IQ== 0\nIg== 1\n");
    assert_refused(BIS_ERR_FORMAT, "not a SentencePiece model");
    for (size_t length = 0; length < model.length; length += 997) {
        scratch_write("tokenizer.model", model.data, length);
        assert_refused(BIS_ERR_FORMAT, "tokenizer.model");
    }
    for (size_t at = 0; at < model.length; at += 1499) {
        rt_tokenizer *tokenizer = NULL;
        model.data[at] ^= 0x55;
        scratch_write("tokenizer.model", model.data, model.length);
        if (rt_tokenizer_open(folder(), &tokenizer, &error) == BIS_OK) {
            rt_tokens tokens = {0};
            assert_int_equal(rt_tokenizer_encode(tokenizer, "Hello world", 11, 0, &tokens, &error), BIS_OK);
            rt_tokens_free(&tokens);
            rt_tokenizer_close(tokenizer);
        }
        model.data[at] ^= 0x55;
    }
    bis_buf_free(&model);
}

/* ---- memory running out ---- */

/* Opens, encodes and decodes; the allocation after `successes` others fails. True: all went well. */
static bool try_with_failure(long successes) {
    static const char text[] = "ab <s>abc \xc3\xa9\xff b";
    rt_tokenizer *tokenizer = NULL;
    rt_tokens tokens = {0};
    bis_buf back = {0};
    bis_error error = {0};
    bis_alloc_fail_after(successes);
    bis_status status = rt_tokenizer_open(folder(), &tokenizer, &error);
    if (!status) status = rt_tokenizer_encode(tokenizer, text, sizeof text - 1, 3, &tokens, &error);
    if (!status) status = rt_tokenizer_decode(tokenizer, tokens.ids, tokens.count, false, &back, &error);
    bis_alloc_fail_after(-1);
    if (status) {
        assert_int_equal(status, BIS_ERR_NOMEM);
        assert_true(strlen(error.text) > 0);
    }
    bis_buf_free(&back);
    rt_tokens_free(&tokens);
    rt_tokenizer_close(tokenizer);
    return status == BIS_OK;
}

static void assert_every_failure_is_reported(long at_least) {
    long n = 0;
    while (!try_with_failure(n)) assert_true(++n < 20000);
    assert_true(n >= at_least);
}

static void running_out_of_memory_is_reported_everywhere(void **state) {
    (void)state;
    scratch_make();
    scratch_write_text("tokenizer_config.json",
                       "{\"bos_token\":\"<s>\",\"eos_token\":\"abc\",\"tokenizer_class\":\"Qwen2Tokenizer\","
                       "\"added_tokens_decoder\":{\"6\":{\"content\":\"<s>\",\"special\":true,\"normalized\":true}}}");
    scratch_write_text("vocab.json", "{\"a\":0,\"b\":1,\"c\":2,\"\xc4\xa0\":3,\"ab\":4,\"abc\":5}");
    scratch_write_text("merges.txt", "a b\nab c\n");
    assert_every_failure_is_reported(20);
    scratch_write_text(
        "tokenizer.json",
        FILE_WITH(GOOD_MODEL, ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\"z\"},\"content\":\"y\"},"
                              "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
                              "{\"type\":\"Metaspace\",\"replacement\":\" \"}," BYTE_LEVEL "]}"));
    assert_every_failure_is_reported(20);
}

static void running_out_of_memory_in_sentencepiece_is_reported(void **state) {
    (void)state;
    bis_buf model = {0};
    bis_error error;
    if (bis_read_file("models/demo/tokenizer.model", 1 << 20, &model, &error)) fail_msg("%s", error.text);
    scratch_make();
    scratch_write("tokenizer.model", model.data, model.length);
    bis_buf_free(&model);
    assert_every_failure_is_reported(20);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merges_run_by_rank_and_from_the_left),
        cmocka_unit_test(ignore_merges_looks_the_whole_word_up_first),
        cmocka_unit_test(added_tokens_follow_their_flags),
        cmocka_unit_test(templates_and_explicit_flags_add_bos_and_eos),
        cmocka_unit_test(side_files_name_bos_and_eos),
        cmocka_unit_test(vocab_and_merges_make_a_tokenizer),
        cmocka_unit_test(characters_fall_back_to_bytes_or_unknown),
        cmocka_unit_test(malformed_tokenizer_json_is_refused_with_its_reason),
        cmocka_unit_test(every_truncation_of_a_file_is_refused),
        cmocka_unit_test(malformed_side_files_are_refused_with_their_reason),
        cmocka_unit_test(a_folder_without_a_tokenizer_says_what_is_needed),
        cmocka_unit_test(damaged_sentencepiece_models_are_refused_or_work),
        cmocka_unit_test(running_out_of_memory_is_reported_everywhere),
        cmocka_unit_test(running_out_of_memory_in_sentencepiece_is_reported),
    };
    return cmocka_run_group_tests(tests, make_scratch, remove_scratch);
}
