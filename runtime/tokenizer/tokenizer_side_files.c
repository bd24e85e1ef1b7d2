/* The files beside a tokenizer: tokenizer_config.json, special_tokens_map.json, added_tokens.json,
 * config.json and generation_config.json. They name bos and eos, add tokens and set flags.
 */
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"
#include "runtime/tokenizer/tokenizer_internal.h"

static bis_status no_memory(bis_error *error) {
    return bis_fail(error, BIS_ERR_NOMEM, "no memory for the tokenizer's settings");
}

static const cJSON *member(const cJSON *object, const char *name) {
    return cJSON_GetObjectItemCaseSensitive(object, name);
}

static bool is_absent(const cJSON *item) { return !item || cJSON_IsNull(item); }

static bis_status read_flag(const cJSON *json, const char *name, int *out, bis_error *error) {
    const cJSON *item = member(json, name);
    if (is_absent(item)) return BIS_OK;
    if (!cJSON_IsBool(item)) return bis_fail(error, BIS_ERR_FORMAT, "'%s' is neither true nor false", name);
    *out = cJSON_IsTrue(item);
    return BIS_OK;
}

static bool is_set(const cJSON *object, const char *name) { return cJSON_IsTrue(member(object, name)); }

/* Adds a token from "text" or {"content": "text", flags}. A `name` is for the error text. */
static bis_status add_token(rt_side *side, const cJSON *item, const char *name, int32_t id, bool special,
                            bis_error *error) {
    const cJSON *content = cJSON_IsObject(item) ? member(item, "content") : item;
    if (!cJSON_IsString(content)) {
        return bis_fail(error, BIS_ERR_FORMAT, "'%.60s' is neither a token's text nor an object with its content",
                        name);
    }
    if (side->token_count == side->token_capacity) {
        size_t capacity = side->token_capacity ? side->token_capacity * 2 : 16;
        rt_side_token *tokens = bis_reallocarray(side->tokens, capacity, sizeof *tokens);
        if (!tokens) return no_memory(error);
        side->tokens = tokens;
        side->token_capacity = capacity;
    }
    char *copy = bis_strdup(content->valuestring);
    if (!copy) return no_memory(error);
    side->tokens[side->token_count++] = (rt_side_token){.content = copy,
                                                        .id = id,
                                                        .special = special || is_set(item, "special"),
                                                        .normalized = is_set(item, "normalized"),
                                                        .left_strip = is_set(item, "lstrip"),
                                                        .right_strip = is_set(item, "rstrip"),
                                                        .single_word = is_set(item, "single_word")};
    return BIS_OK;
}

static bis_status read_added_tokens_decoder(rt_side *side, const cJSON *tokens, bis_error *error) {
    if (is_absent(tokens)) return BIS_OK;
    if (!cJSON_IsObject(tokens)) return bis_fail(error, BIS_ERR_FORMAT, "'added_tokens_decoder' is not an object");
    bis_status status = BIS_OK;
    for (const cJSON *item = tokens->child; !status && item; item = item->next) {
        char *end;
        long id = strtol(item->string, &end, 10);
        if (end == item->string || *end || id < 0 || id >= RT_VOCAB_MAX) {
            return bis_fail(error, BIS_ERR_FORMAT, "'added_tokens_decoder' has the key '%.60s', which is no token id",
                            item->string);
        }
        status = add_token(side, item, "added_tokens_decoder", (int32_t)id, false, error);
        if (!status) side->tokens[side->token_count - 1].defines = true;
    }
    return status;
}

/* A token named by its role. Keeps what an earlier file said. */
static bis_status read_role(rt_side *side, const cJSON *json, const char *name, char **text, bis_error *error) {
    const cJSON *item = member(json, name);
    if (is_absent(item)) return BIS_OK;
    bis_status status = add_token(side, item, name, -1, true, error);
    if (status || !text || *text) return status;
    *text = bis_strdup(side->tokens[side->token_count - 1].content);
    return *text ? BIS_OK : no_memory(error);
}

static bis_status read_token_list(rt_side *side, const cJSON *json, const char *name, bis_error *error) {
    const cJSON *list = member(json, name);
    if (is_absent(list) || cJSON_IsObject(list)) return BIS_OK; /* an object names roles of other model families */
    if (!cJSON_IsArray(list)) return bis_fail(error, BIS_ERR_FORMAT, "'%s' is not a list of tokens", name);
    bis_status status = BIS_OK;
    for (const cJSON *item = list->child; !status && item; item = item->next) {
        status = add_token(side, item, name, -1, true, error);
    }
    return status;
}

/* The special tokens by role, as tokenizer_config.json and special_tokens_map.json both have them. */
static bis_status read_roles(rt_side *side, const cJSON *json, bis_error *error) {
    bool null_bos = side->has_bos_entry && !side->bos_text; /* an earlier "bos_token": null stands */
    bis_status status = null_bos ? BIS_OK : read_role(side, json, "bos_token", &side->bos_text, error);
    if (member(json, "bos_token")) side->has_bos_entry = true;
    if (!status) status = read_role(side, json, "eos_token", &side->eos_text, error);
    if (!status) status = read_role(side, json, "unk_token", NULL, error);
    if (!status) status = read_role(side, json, "pad_token", NULL, error);
    if (!status) status = read_token_list(side, json, "additional_special_tokens", error);
    if (!status) status = read_token_list(side, json, "extra_special_tokens", error);
    return status;
}

static bis_status read_tokenizer_config(rt_side *side, const cJSON *json, bis_error *error) {
    const cJSON *name = member(json, "tokenizer_class");
    if (cJSON_IsString(name) && !(side->tokenizer_class = bis_strdup(name->valuestring))) return no_memory(error);
    bis_status status = read_flag(json, "legacy", &side->legacy, error);
    if (!status) status = read_flag(json, "add_prefix_space", &side->add_prefix_space, error);
    if (!status) status = read_flag(json, "add_bos_token", &side->add_bos, error);
    if (!status) status = read_flag(json, "add_eos_token", &side->add_eos, error);
    if (!status) status = read_added_tokens_decoder(side, member(json, "added_tokens_decoder"), error);
    if (!status) status = read_roles(side, json, error);
    return status;
}

static bis_status read_added_tokens(rt_side *side, const cJSON *json, bis_error *error) {
    bis_status status = BIS_OK;
    for (const cJSON *item = json->child; !status && item; item = item->next) {
        int32_t id;
        if (!item->string || !rt_json_integer(item, 0, RT_VOCAB_MAX - 1, &id)) {
            return bis_fail(error, BIS_ERR_FORMAT, "the id of '%.60s' is not a whole number from 0 to %d",
                            item->string ? item->string : "", RT_VOCAB_MAX - 1);
        }
        cJSON text = {.type = cJSON_String, .valuestring = item->string};
        status = add_token(side, &text, item->string, id, false, error);
    }
    return status;
}

/* A number, a list of numbers, or null. */
static bis_status read_eos_ids(rt_side *side, const cJSON *json, bis_error *error) {
    const cJSON *eos = member(json, "eos_token_id");
    if (is_absent(eos)) return BIS_OK;
    for (const cJSON *item = cJSON_IsArray(eos) ? eos->child : eos; item; item = item->next) {
        int32_t id;
        if (!rt_json_integer(item, -1, INT32_MAX, &id)) {
            return bis_fail(error, BIS_ERR_FORMAT, "'eos_token_id' is not a token id or a list of them");
        }
        if (side->eos_count < RT_EOS_MAX) side->eos_ids[side->eos_count++] = id;
        if (item == eos) break;
    }
    return BIS_OK;
}

static bis_status read_model_config(rt_side *side, const cJSON *json, bis_error *error) {
    const cJSON *bos = member(json, "bos_token_id");
    if (!is_absent(bos) && !rt_json_integer(bos, -1, INT32_MAX, &side->bos_id)) {
        return bis_fail(error, BIS_ERR_FORMAT, "'bos_token_id' is not a token id");
    }
    return read_eos_ids(side, json, error);
}

bis_status rt_side_read(const char *folder, rt_side *side, bis_error *error) {
    static const struct {
        const char *name;
        bis_status (*read)(rt_side *side, const cJSON *json, bis_error *error);
    } files[] = {{"tokenizer_config.json", read_tokenizer_config},
                 {"added_tokens.json", read_added_tokens},
                 {"special_tokens_map.json", read_roles},
                 {"generation_config.json", read_eos_ids},
                 {"config.json", read_model_config}};
    enum { PATH_BYTES = 4096 };
    char path[PATH_BYTES];
    bis_status status = BIS_OK;
    for (size_t i = 0; !status && i < sizeof files / sizeof *files; i++) {
        status = bis_join_path(folder, files[i].name, path, sizeof path, error);
        if (status || !bis_file_exists(path)) continue;
        cJSON *json = NULL;
        status = rt_read_json_file(path, &json, error);
        if (status) return status;
        if (!cJSON_IsObject(json)) status = bis_fail(error, BIS_ERR_FORMAT, "it is not a JSON object");
        else status = files[i].read(side, json, error);
        cJSON_Delete(json);
        if (status) return bis_fail_within(error, "%s", path);
    }
    return status;
}

void rt_side_free(rt_side *side) {
    for (size_t i = 0; i < side->token_count; i++) bis_free(side->tokens[i].content);
    bis_free(side->tokens);
    bis_free(side->tokenizer_class);
    bis_free(side->bos_text);
    bis_free(side->eos_text);
}

static bis_status apply_token(rt_tokenizer *tokenizer, const rt_side_token *token, bis_error *error) {
    int32_t known = rt_vocab_find(&tokenizer->vocab, token->content, strlen(token->content));
    if (token->id < 0 && known < 0) return BIS_OK; /* a role the vocabulary has no token for */
    rt_added_token flags = {.id = known >= 0 ? known : token->id,
                            .special = token->special,
                            .normalized = token->normalized,
                            .left_strip = token->left_strip,
                            .right_strip = token->right_strip,
                            .single_word = token->single_word};
    const rt_added_token *earlier = rt_added_find(&tokenizer->added, flags.id);
    if (earlier && !token->defines) { /* a token named again stays as it was defined */
        flags = *earlier;
        flags.special |= token->special;
    }
    return rt_put_added_token(tokenizer, token->content, &flags, error);
}

static void add_eos(rt_tokenizer *tokenizer, int32_t id) {
    if (id < 0) return;
    if (id >= tokenizer->vocab.size) {
        bis_warn("eos_token_id %d is outside the vocabulary of %d tokens and is ignored", id, tokenizer->vocab.size);
        return;
    }
    for (size_t i = 0; i < tokenizer->eos_count; i++) {
        if (tokenizer->eos[i] == id) return;
    }
    if (tokenizer->eos_count < RT_EOS_MAX) tokenizer->eos[tokenizer->eos_count++] = id;
}

static void collect_eos(const rt_side *side, rt_tokenizer *tokenizer) {
    static const char *const well_known[] = {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>",
                                             "<|endoftext|>"};
    for (size_t i = 0; i < side->eos_count; i++) add_eos(tokenizer, side->eos_ids[i]);
    if (side->eos_text) add_eos(tokenizer, rt_tokenizer_find(tokenizer, side->eos_text));
    for (size_t i = 0; i < sizeof well_known / sizeof *well_known; i++) {
        int32_t id = rt_tokenizer_find(tokenizer, well_known[i]);
        if (id >= 0 && rt_tokenizer_is_special(tokenizer, id)) add_eos(tokenizer, id);
    }
}

static void choose_bos(const rt_side *side, rt_tokenizer *tokenizer) {
    if (side->has_bos_entry) {
        tokenizer->bos = side->bos_text ? rt_tokenizer_find(tokenizer, side->bos_text) : -1;
    } else if (tokenizer->bos < 0 && tokenizer->prefix_count == 1) {
        tokenizer->bos = tokenizer->prefix[0];
    } else if (tokenizer->bos < 0 && side->bos_id < tokenizer->vocab.size) {
        tokenizer->bos = side->bos_id;
    }
}

/* tokenizer.json has a template of its own, which only explicit flags replace; SentencePiece models
 * begin with bos unless told otherwise. */
static void choose_template(const rt_side *side, rt_tokenizer *tokenizer) {
    bool is_spm = tokenizer->type == RT_TYPE_SENTENCEPIECE;
    if (!is_spm && side->add_bos < 0 && side->add_eos < 0) return;
    int32_t eos = side->eos_text ? rt_tokenizer_find(tokenizer, side->eos_text) : -1;
    if (eos < 0 && is_spm) eos = rt_spm_eos(tokenizer->spm);
    bool wants_bos = is_spm ? side->add_bos != 0 : side->add_bos == 1;
    tokenizer->prefix_count = tokenizer->suffix_count = 0;
    if (wants_bos && tokenizer->bos >= 0) tokenizer->prefix[tokenizer->prefix_count++] = tokenizer->bos;
    if (side->add_eos == 1 && eos >= 0) tokenizer->suffix[tokenizer->suffix_count++] = eos;
}

static bis_status copy_text(const rt_tokenizer *tokenizer, int32_t id, const char *given, char **out,
                            bis_error *error) {
    size_t length = given ? strlen(given) : 0;
    const char *text = given ? given : rt_vocab_text(&tokenizer->vocab, id, &length);
    if (!text) return BIS_OK;
    *out = bis_strndup(text, length);
    return *out ? BIS_OK : no_memory(error);
}

bis_status rt_side_apply(const rt_side *side, rt_tokenizer *tokenizer, bis_error *error) {
    bis_status status = BIS_OK;
    for (size_t i = 0; !status && i < side->token_count; i++) status = apply_token(tokenizer, &side->tokens[i], error);
    if (status) return status;
    choose_bos(side, tokenizer);
    choose_template(side, tokenizer);
    collect_eos(side, tokenizer);
    status = copy_text(tokenizer, tokenizer->bos, side->bos_text, &tokenizer->bos_text, error);
    if (status) return status;
    int32_t eos = tokenizer->eos_count ? tokenizer->eos[0] : -1;
    return copy_text(tokenizer, eos, side->eos_text, &tokenizer->eos_text, error);
}
