/* The components of a tokenizer.json around its model: normalizer, pre-tokenizer, post-processor and
 * decoder. What is not known is refused by name, because leaving it out would change token ids.
 */
#include <cjson/cJSON.h>
#include <string.h>

#include "runtime/tokenizer/tokenizer_internal.h"

enum { NESTING_MAX = 8 };

static const cJSON *member(const cJSON *object, const char *name) {
    return cJSON_GetObjectItemCaseSensitive(object, name);
}

/* A string member, or NULL. */
static const char *text_member(const cJSON *object, const char *name) {
    const cJSON *item = member(object, name);
    return cJSON_IsString(item) ? item->valuestring : NULL;
}

static bool flag_member(const cJSON *object, const char *name, bool otherwise) {
    const cJSON *item = member(object, name);
    return cJSON_IsBool(item) ? cJSON_IsTrue(item) : otherwise;
}

static bool is_absent(const cJSON *item) { return !item || cJSON_IsNull(item); }

static bis_status refuse(const char *role, const char *type, bis_error *error) {
    return bis_fail(error, BIS_ERR_UNSUPPORTED, "%s '%.60s' is not supported", role, type ? type : "(without a type)");
}

static bis_status no_memory(bis_error *error) { return bis_fail(error, BIS_ERR_NOMEM, "no memory for the tokenizer"); }

/* Runs `read` over a component, or over each part of a Sequence. */
typedef bis_status (*component_reader)(rt_tokenizer *tokenizer, const cJSON *json, const char *type, bis_error *error);

static bis_status read_component(rt_tokenizer *tokenizer, const cJSON *json, const char *role, const char *list_name,
                                 component_reader read, int depth, bis_error *error) {
    const char *type = text_member(json, "type");
    if (!type || depth > NESTING_MAX) return refuse(role, type, error);
    if (strcmp(type, "Sequence") != 0) return read(tokenizer, json, type, error);
    const cJSON *list = member(json, list_name);
    if (!cJSON_IsArray(list)) {
        return bis_fail(error, BIS_ERR_FORMAT, "%s 'Sequence' lacks its list '%s'", role, list_name);
    }
    bis_status status = BIS_OK;
    for (const cJSON *item = list->child; !status && item; item = item->next) {
        status = read_component(tokenizer, item, role, list_name, read, depth + 1, error);
    }
    return status;
}

/* ---- normalizer ---- */

static bis_status read_normal_step(rt_tokenizer *tokenizer, const cJSON *json, const char *type, bis_error *error) {
    static const struct {
        const char *name;
        rt_normal_kind kind;
    } forms[] = {{"NFC", RT_NORMAL_NFC}, {"NFD", RT_NORMAL_NFD}, {"NFKC", RT_NORMAL_NFKC}, {"NFKD", RT_NORMAL_NFKD}};
    rt_normalizer *normalizer = &tokenizer->normalizer;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        if (strcmp(type, forms[i].name) == 0) {
            return rt_normalizer_add(normalizer, forms[i].kind, NULL, NULL) ? BIS_OK : no_memory(error);
        }
    }
    if (strcmp(type, "Prepend") == 0) {
        const char *text = text_member(json, "prepend");
        if (!text) return bis_fail(error, BIS_ERR_FORMAT, "normalizer 'Prepend' lacks its text");
        return rt_normalizer_add(normalizer, RT_NORMAL_PREPEND, NULL, text) ? BIS_OK : no_memory(error);
    }
    if (strcmp(type, "Replace") == 0) {
        const char *from = text_member(member(json, "pattern"), "String"), *to = text_member(json, "content");
        if (!from || !*from || !to) return refuse("normalizer", "Replace with a pattern that is not a string", error);
        return rt_normalizer_add(normalizer, RT_NORMAL_REPLACE, from, to) ? BIS_OK : no_memory(error);
    }
    return refuse("normalizer", type, error);
}

bis_status rt_read_normalizer(rt_tokenizer *tokenizer, const cJSON *json, bis_error *error) {
    if (is_absent(json)) return BIS_OK;
    return read_component(tokenizer, json, "normalizer", "normalizers", read_normal_step, 0, error);
}

/* ---- pre-tokenizer ---- */

static bis_status read_split(rt_tokenizer *tokenizer, const cJSON *json, bis_error *error) {
    static const struct {
        const char *name;
        rt_split_behaviour behaviour;
    } behaviours[] = {{"Isolated", RT_SPLIT_ISOLATED},
                      {"Removed", RT_SPLIT_REMOVED},
                      {"MergedWithPrevious", RT_SPLIT_MERGED_WITH_PREVIOUS},
                      {"MergedWithNext", RT_SPLIT_MERGED_WITH_NEXT},
                      {"Contiguous", RT_SPLIT_CONTIGUOUS}};
    const cJSON *pattern = member(json, "pattern");
    const char *regex = text_member(pattern, "Regex"), *literal = text_member(pattern, "String");
    const char *name = text_member(json, "behavior");
    if ((!regex && !literal) || !name) {
        return bis_fail(error, BIS_ERR_FORMAT, "pre-tokenizer 'Split' lacks its pattern or behavior");
    }
    for (size_t i = 0; i < sizeof behaviours / sizeof *behaviours; i++) {
        if (strcmp(name, behaviours[i].name) == 0) {
            return rt_pretokenizer_split(&tokenizer->pretokenizer, regex ? regex : literal, !regex,
                                         flag_member(json, "invert", false), behaviours[i].behaviour, error);
        }
    }
    return refuse("pre-tokenizer", name, error);
}

static bis_status read_byte_level(rt_tokenizer *tokenizer, const cJSON *json, bis_error *error) {
    tokenizer->type = RT_TYPE_BYTE_BPE;
    bis_status status = BIS_OK;
    if (flag_member(json, "add_prefix_space", true)) {
        status = rt_pretokenizer_prefix(&tokenizer->pretokenizer, " ", RT_PREFIX_EVERY, error);
    }
    if (status || !flag_member(json, "use_regex", true)) return status;
    return rt_pretokenizer_split(&tokenizer->pretokenizer, RT_GPT2_WORDS, false, false, RT_SPLIT_ISOLATED, error);
}

/* The newer files say prepend_scheme, the older ones add_prefix_space. False: no prefix. */
static bool metaspace_prefix(const cJSON *json, rt_prefix_rule *rule) {
    const char *scheme = text_member(json, "prepend_scheme");
    *rule = scheme && strcmp(scheme, "first") == 0 ? RT_PREFIX_FIRST : RT_PREFIX_EVERY;
    return scheme ? strcmp(scheme, "never") != 0 : flag_member(json, "add_prefix_space", true);
}

static bis_status read_metaspace(rt_tokenizer *tokenizer, const cJSON *json, bis_error *error) {
    const char *mark = text_member(json, "replacement");
    rt_prefix_rule rule;
    if (!mark || !*mark) return bis_fail(error, BIS_ERR_FORMAT, "pre-tokenizer 'Metaspace' lacks its replacement");
    bis_status status = rt_pretokenizer_replace_space(&tokenizer->pretokenizer, mark, error);
    if (!status && metaspace_prefix(json, &rule)) {
        status = rt_pretokenizer_prefix(&tokenizer->pretokenizer, mark, rule, error);
    }
    if (status || !flag_member(json, "split", true)) return status;
    return rt_pretokenizer_split(&tokenizer->pretokenizer, mark, true, false, RT_SPLIT_MERGED_WITH_NEXT, error);
}

static bis_status read_pre_step(rt_tokenizer *tokenizer, const cJSON *json, const char *type, bis_error *error) {
    if (tokenizer->type == RT_TYPE_BYTE_BPE) {
        return bis_fail(error, BIS_ERR_UNSUPPORTED, "pre-tokenizer '%.60s' after 'ByteLevel' is not supported", type);
    }
    if (strcmp(type, "Split") == 0) return read_split(tokenizer, json, error);
    if (strcmp(type, "ByteLevel") == 0) return read_byte_level(tokenizer, json, error);
    if (strcmp(type, "Metaspace") == 0) return read_metaspace(tokenizer, json, error);
    if (strcmp(type, "Digits") == 0) {
        bool each = flag_member(json, "individual_digits", false);
        return rt_pretokenizer_split(&tokenizer->pretokenizer, "\\p{N}", false, false,
                                     each ? RT_SPLIT_ISOLATED : RT_SPLIT_CONTIGUOUS, error);
    }
    return refuse("pre-tokenizer", type, error);
}

bis_status rt_read_pretokenizer(rt_tokenizer *tokenizer, const cJSON *json, bis_error *error) {
    if (is_absent(json)) return BIS_OK;
    return read_component(tokenizer, json, "pre-tokenizer", "pretokenizers", read_pre_step, 0, error);
}

/* ---- post-processor ---- */

static bis_status add_template_ids(rt_tokenizer *tokenizer, const cJSON *template, const char *name, bool before,
                                   bis_error *error) {
    const cJSON *ids = member(member(member(template, "special_tokens"), name), "ids");
    int32_t *list = before ? tokenizer->prefix : tokenizer->suffix;
    size_t *count = before ? &tokenizer->prefix_count : &tokenizer->suffix_count;
    if (!cJSON_IsArray(ids)) {
        return bis_fail(error, BIS_ERR_FORMAT, "post-processor 'TemplateProcessing' does not define '%.60s'", name);
    }
    for (const cJSON *item = ids->child; item; item = item->next) {
        if (*count == RT_TEMPLATE_MAX || !rt_json_integer(item, 0, tokenizer->vocab.size - 1, &list[*count])) {
            return bis_fail(error, BIS_ERR_FORMAT,
                            "post-processor 'TemplateProcessing': the ids of '%.60s' are outside the vocabulary or "
                            "more than %d",
                            name, RT_TEMPLATE_MAX);
        }
        ++*count;
    }
    return BIS_OK;
}

static bis_status read_post_step(rt_tokenizer *tokenizer, const cJSON *json, const char *type, bis_error *error) {
    if (strcmp(type, "ByteLevel") == 0) return BIS_OK; /* concerns offsets only */
    if (strcmp(type, "TemplateProcessing") != 0) return refuse("post-processor", type, error);
    const cJSON *single = member(json, "single");
    if (!cJSON_IsArray(single)) {
        return bis_fail(error, BIS_ERR_FORMAT, "post-processor 'TemplateProcessing' lacks its list 'single'");
    }
    bool before = true;
    tokenizer->prefix_count = tokenizer->suffix_count = 0;
    bis_status status = BIS_OK;
    for (const cJSON *item = single->child; !status && item; item = item->next) {
        const char *name = text_member(member(item, "SpecialToken"), "id");
        if (name) status = add_template_ids(tokenizer, json, name, before, error);
        else before = false;
    }
    return status;
}

bis_status rt_read_post_processor(rt_tokenizer *tokenizer, const cJSON *json, bis_error *error) {
    if (is_absent(json)) return BIS_OK;
    return read_component(tokenizer, json, "post-processor", "processors", read_post_step, 0, error);
}

/* ---- decoder ---- */

static bis_status add_replacement(rt_decode_rules *rules, const char *from, const char *to, bis_error *error) {
    bool fits = from && *from && to && strlen(from) < RT_REPLACE_TEXT_MAX && strlen(to) <= strlen(from) &&
                rules->replace_count < RT_REPLACE_MAX;
    if (!fits) return refuse("decoder", "Replace other than of a short string by a shorter one", error);
    memcpy(rules->replace[rules->replace_count].from, from, strlen(from) + 1);
    memcpy(rules->replace[rules->replace_count].to, to, strlen(to) + 1);
    rules->replace_count++;
    return BIS_OK;
}

static bis_status read_decode_step(rt_tokenizer *tokenizer, const cJSON *json, const char *type, bis_error *error) {
    rt_decode_rules *rules = &tokenizer->decode;
    if (strcmp(type, "ByteLevel") == 0) rules->byte_level = true;
    else if (strcmp(type, "ByteFallback") == 0) rules->byte_fallback = true;
    else if (strcmp(type, "Replace") == 0) {
        return add_replacement(rules, text_member(member(json, "pattern"), "String"), text_member(json, "content"),
                               error);
    } else if (strcmp(type, "Metaspace") == 0) {
        rt_prefix_rule ignored;
        rules->first_token_strip = metaspace_prefix(json, &ignored);
        return add_replacement(rules, text_member(json, "replacement"), " ", error);
    } else if (strcmp(type, "Strip") == 0) {
        const char *what = text_member(json, "content");
        int32_t start = 0, stop = 0;
        bool valid = what && what[0] && !what[1] && rt_json_integer(member(json, "start"), 0, 1 << 20, &start) &&
                     rt_json_integer(member(json, "stop"), 0, 0, &stop) && rules->strip_count == 0;
        if (!valid) return refuse("decoder", "Strip other than of one ASCII character at the start", error);
        rules->strip = what[0];
        rules->strip_count = (size_t)start;
    } else if (strcmp(type, "Fuse") != 0) { /* joins the tokens' texts, as decoding here always does */
        return refuse("decoder", type, error);
    }
    return BIS_OK;
}

bis_status rt_read_decoder(rt_tokenizer *tokenizer, const cJSON *json, bis_error *error) {
    if (is_absent(json)) return refuse("decoder", "null", error);
    return read_component(tokenizer, json, "decoder", "decoders", read_decode_step, 0, error);
}
