/* Reader of tokenizer.json and of vocab.json + merges.txt: the vocabulary, the merge rules and the
 * added tokens. The components around them are read in tokenizer_components.c.
 */
#include <cjson/cJSON.h>
#include <string.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/utf8.h"
#include "runtime/tokenizer/tokenizer_internal.h"

bis_status rt_read_json_file(const char *path, cJSON **out, bis_error *error) {
    bis_buf file = {0};
    bis_status status = bis_read_file(path, RT_TOKENIZER_FILE_MAX, &file, error);
    if (status) return status;
    const char *stop = NULL;
    cJSON *json = cJSON_ParseWithLengthOpts(bis_buf_cstr(&file), file.length + 1, &stop, 1);
    if (!json) {
        size_t offset = stop && file.data ? (size_t)(stop - file.data) : 0;
        status =
            bis_fail(error, BIS_ERR_FORMAT, "%s is not valid JSON (at byte %zu of %zu)", path, offset, file.length);
    } else if (!bis_utf8_valid(file.data, file.length)) { /* cJSON lets it pass; everything after relies on it */
        status = bis_fail(error, BIS_ERR_FORMAT, "%s is not valid UTF-8", path);
        cJSON_Delete(json);
    } else {
        *out = json;
    }
    bis_buf_free(&file);
    return status;
}

bool rt_json_integer(const cJSON *item, int32_t minimum, int32_t maximum, int32_t *out) {
    if (!cJSON_IsNumber(item)) return false;
    double value = item->valuedouble;
    if (!(value >= minimum && value <= maximum) || value != (double)(int32_t)value) return false;
    *out = (int32_t)value;
    return true;
}

static bis_status read_vocab(rt_tokenizer *tokenizer, const cJSON *vocab, bis_error *error) {
    if (!cJSON_IsObject(vocab)) {
        return bis_fail(error, BIS_ERR_FORMAT, "the vocabulary is missing or not an object of ids by token");
    }
    bis_status status = BIS_OK;
    for (const cJSON *item = vocab->child; !status && item; item = item->next) {
        int32_t id;
        size_t length;
        if (!rt_json_integer(item, 0, RT_VOCAB_MAX - 1, &id)) {
            return bis_fail(error, BIS_ERR_FORMAT, "the id of token '%.80s' is not a whole number from 0 to %d",
                            item->string, RT_VOCAB_MAX - 1);
        }
        if (rt_vocab_text(&tokenizer->vocab, id, &length)) {
            return bis_fail(error, BIS_ERR_FORMAT, "tokens '%.80s' and another one have the same id %d", item->string,
                            id);
        }
        status = rt_vocab_add(&tokenizer->vocab, item->string, strlen(item->string), id, error);
    }
    if (!status && tokenizer->vocab.size == 0) status = bis_fail(error, BIS_ERR_FORMAT, "the vocabulary is empty");
    return status;
}

static bis_status add_merge(rt_tokenizer *tokenizer, const char *left, size_t left_length, const char *right,
                            size_t right_length, uint32_t rank, bis_error *error) {
    char merged[RT_VOCAB_TEXT_MAX];
    int32_t left_id = rt_vocab_find(&tokenizer->vocab, left, left_length);
    int32_t right_id = rt_vocab_find(&tokenizer->vocab, right, right_length);
    int32_t merged_id = -1;
    if (left_id >= 0 && right_id >= 0 && left_length + right_length <= sizeof merged) {
        memcpy(merged, left, left_length);
        memcpy(merged + left_length, right, right_length);
        merged_id = rt_vocab_find(&tokenizer->vocab, merged, left_length + right_length);
    }
    if (merged_id < 0) {
        return bis_fail(error, BIS_ERR_FORMAT, "merge %u ('%.*s' with '%.*s') names a token the vocabulary lacks", rank,
                        left_length > 40 ? 40 : (int)left_length, left, right_length > 40 ? 40 : (int)right_length,
                        right);
    }
    if (!rt_bpe_add(&tokenizer->bpe, left_id, right_id, merged_id, rank)) {
        return bis_fail(error, BIS_ERR_INTERNAL, "more merges than were counted");
    }
    return BIS_OK;
}

/* "a b": two tokens with exactly one space between them. */
static bis_status add_merge_line(rt_tokenizer *tokenizer, const char *line, size_t length, uint32_t rank,
                                 bis_error *error) {
    const char *space = memchr(line, ' ', length);
    if (!space || memchr(space + 1, ' ', length - (size_t)(space + 1 - line))) {
        return bis_fail(error, BIS_ERR_FORMAT, "merge %u ('%.*s') is not two tokens with a space between them", rank,
                        length > 80 ? 80 : (int)length, line);
    }
    size_t left = (size_t)(space - line);
    return add_merge(tokenizer, line, left, space + 1, length - left - 1, rank, error);
}

static bis_status read_merges(rt_tokenizer *tokenizer, const cJSON *merges, bis_error *error) {
    if (!cJSON_IsArray(merges)) return bis_fail(error, BIS_ERR_FORMAT, "model.merges is missing or not an array");
    size_t count = 0;
    for (const cJSON *item = merges->child; item; item = item->next) count++;
    bis_status status = rt_bpe_reserve(&tokenizer->bpe, count, error);
    uint32_t rank = 0;
    for (const cJSON *item = merges->child; !status && item; item = item->next, rank++) {
        const cJSON *left = cJSON_IsArray(item) ? item->child : NULL, *right = left ? left->next : NULL;
        if (cJSON_IsString(item)) {
            status = add_merge_line(tokenizer, item->valuestring, strlen(item->valuestring), rank, error);
        } else if (cJSON_IsString(left) && cJSON_IsString(right) && !right->next) {
            status = add_merge(tokenizer, left->valuestring, strlen(left->valuestring), right->valuestring,
                               strlen(right->valuestring), rank, error);
        } else {
            status = bis_fail(error, BIS_ERR_FORMAT, "merge %u is neither \"a b\" nor [\"a\", \"b\"]", rank);
        }
    }
    return status;
}

/* A setting that changes results and is not supported unless it has its neutral value. */
static bis_status refuse_setting(const cJSON *model, const char *name, bis_error *error) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(model, name);
    bool neutral = !item || cJSON_IsNull(item) || (cJSON_IsString(item) && !*item->valuestring) ||
                   (cJSON_IsNumber(item) && item->valuedouble == 0);
    return neutral ? BIS_OK : bis_fail(error, BIS_ERR_UNSUPPORTED, "model.%s is not supported", name);
}

static bis_status read_model(rt_tokenizer *tokenizer, const cJSON *model, bis_error *error) {
    if (!cJSON_IsObject(model)) return bis_fail(error, BIS_ERR_FORMAT, "'model' is missing or not an object");
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(model, "type");
    if (type && (!cJSON_IsString(type) || strcmp(type->valuestring, "BPE") != 0)) {
        return bis_fail(error, BIS_ERR_UNSUPPORTED, "model type '%.60s' is not supported: only BPE is",
                        cJSON_IsString(type) ? type->valuestring : "(not a string)");
    }
    bis_status status = refuse_setting(model, "dropout", error);
    if (!status) status = refuse_setting(model, "continuing_subword_prefix", error);
    if (!status) status = refuse_setting(model, "end_of_word_suffix", error);
    if (!status) status = read_vocab(tokenizer, cJSON_GetObjectItemCaseSensitive(model, "vocab"), error);
    if (!status) status = read_merges(tokenizer, cJSON_GetObjectItemCaseSensitive(model, "merges"), error);
    if (status) return status;
    tokenizer->fuse_unknown = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, "fuse_unk"));
    tokenizer->byte_fallback = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, "byte_fallback"));
    tokenizer->ignore_merges = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, "ignore_merges"));
    const cJSON *unknown = cJSON_GetObjectItemCaseSensitive(model, "unk_token");
    if (cJSON_IsString(unknown)) {
        tokenizer->unknown = rt_vocab_find(&tokenizer->vocab, unknown->valuestring, strlen(unknown->valuestring));
    }
    return BIS_OK;
}

static bool is_set(const cJSON *object, const char *name) {
    return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(object, name));
}

static bis_status read_added_tokens(rt_tokenizer *tokenizer, const cJSON *tokens, bis_error *error) {
    if (!tokens || cJSON_IsNull(tokens)) return BIS_OK;
    if (!cJSON_IsArray(tokens)) return bis_fail(error, BIS_ERR_FORMAT, "'added_tokens' is not an array");
    bis_status status = BIS_OK;
    for (const cJSON *item = tokens->child; !status && item; item = item->next) {
        const cJSON *content = cJSON_GetObjectItemCaseSensitive(item, "content");
        rt_added_token flags = {.special = is_set(item, "special"),
                                .normalized = is_set(item, "normalized"),
                                .left_strip = is_set(item, "lstrip"),
                                .right_strip = is_set(item, "rstrip"),
                                .single_word = is_set(item, "single_word")};
        bool valid = cJSON_IsString(content) &&
                     rt_json_integer(cJSON_GetObjectItemCaseSensitive(item, "id"), 0, RT_VOCAB_MAX - 1, &flags.id);
        if (!valid) {
            return bis_fail(error, BIS_ERR_FORMAT, "an entry of 'added_tokens' lacks its content or an id below %d",
                            RT_VOCAB_MAX);
        }
        status = rt_put_added_token(tokenizer, content->valuestring, &flags, error);
    }
    return status;
}

bis_status rt_load_tokenizer_json(rt_tokenizer *tokenizer, const char *path, bis_error *error) {
    cJSON *json = NULL;
    bis_status status = rt_read_json_file(path, &json, error);
    if (status) return status;
    tokenizer->type = RT_TYPE_BPE; /* a ByteLevel pre-tokenizer makes it RT_TYPE_BYTE_BPE */
    status = read_model(tokenizer, cJSON_GetObjectItemCaseSensitive(json, "model"), error);
    if (!status) {
        status = read_added_tokens(tokenizer, cJSON_GetObjectItemCaseSensitive(json, "added_tokens"), error);
    }
    if (!status) {
        status = rt_read_normalizer(tokenizer, cJSON_GetObjectItemCaseSensitive(json, "normalizer"), error);
    }
    if (!status) {
        status = rt_read_pretokenizer(tokenizer, cJSON_GetObjectItemCaseSensitive(json, "pre_tokenizer"), error);
    }
    if (!status) {
        status = rt_read_post_processor(tokenizer, cJSON_GetObjectItemCaseSensitive(json, "post_processor"), error);
    }
    if (!status) status = rt_read_decoder(tokenizer, cJSON_GetObjectItemCaseSensitive(json, "decoder"), error);
    cJSON_Delete(json);
    return status ? bis_fail_within(error, "%s", path) : BIS_OK;
}

/* Merges are counted first, so that their table is made once. Comment lines open with "#version". */
static bis_status read_merges_text(rt_tokenizer *tokenizer, const char *text, size_t length, bis_error *error) {
    size_t lines = 1;
    for (size_t i = 0; i < length; i++) lines += text[i] == '\n';
    bis_status status = rt_bpe_reserve(&tokenizer->bpe, lines, error);
    uint32_t rank = 0;
    for (size_t at = 0; !status && at < length;) {
        const char *line = text + at, *newline = memchr(line, '\n', length - at);
        size_t line_length = newline ? (size_t)(newline - line) : length - at;
        at += line_length + 1;
        if (line_length > 0 && line[line_length - 1] == '\r') line_length--;
        if (line_length == 0 || (line_length >= 8 && memcmp(line, "#version", 8) == 0)) continue;
        status = add_merge_line(tokenizer, line, line_length, rank++, error);
    }
    return status;
}

/* What the tokenizer classes that ship these two files do in code rather than in a file. */
static bis_status set_class_rules(rt_tokenizer *tokenizer, const rt_side *side, bis_error *error) {
    static const char qwen2[] =
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
        "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    const char *name = side->tokenizer_class ? side->tokenizer_class : "Qwen2Tokenizer";
    bool is_qwen2 = strncmp(name, "Qwen2Tokenizer", 14) == 0, is_gpt2 = strncmp(name, "GPT2Tokenizer", 13) == 0;
    if (!is_qwen2 && !is_gpt2) {
        return bis_fail(error, BIS_ERR_UNSUPPORTED,
                        "tokenizer_class '%.60s' is not known with vocab.json and merges.txt: add a tokenizer.json",
                        name);
    }
    if (is_qwen2 && !rt_normalizer_add(&tokenizer->normalizer, RT_NORMAL_NFC, NULL, NULL)) {
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for the tokenizer");
    }
    bis_status status = BIS_OK;
    if (side->add_prefix_space == 1) {
        status = rt_pretokenizer_prefix(&tokenizer->pretokenizer, " ", RT_PREFIX_EVERY, error);
    }
    if (status) return status;
    return rt_pretokenizer_split(&tokenizer->pretokenizer, is_qwen2 ? qwen2 : RT_GPT2_WORDS, false, false,
                                 RT_SPLIT_ISOLATED, error);
}

bis_status rt_load_vocab_merges(rt_tokenizer *tokenizer, const char *folder, const rt_side *side, bis_error *error) {
    enum { PATH_BYTES = 4096 };
    char path[PATH_BYTES];
    cJSON *json = NULL;
    bis_buf merges = {0};
    tokenizer->type = RT_TYPE_BYTE_BPE;
    tokenizer->decode.byte_level = true;
    bis_status status = bis_join_path(folder, "vocab.json", path, sizeof path, error);
    if (!status) status = rt_read_json_file(path, &json, error);
    if (status) return status;
    status = read_vocab(tokenizer, json, error);
    cJSON_Delete(json);
    if (status) return bis_fail_within(error, "%s", path);
    status = bis_join_path(folder, "merges.txt", path, sizeof path, error);
    if (!status) status = bis_read_file(path, RT_TOKENIZER_FILE_MAX, &merges, error);
    if (status) return status;
    status = read_merges_text(tokenizer, bis_buf_cstr(&merges), merges.length, error);
    bis_buf_free(&merges);
    if (status) return bis_fail_within(error, "%s", path);
    return set_class_rules(tokenizer, side, error);
}
