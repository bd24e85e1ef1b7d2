#include "runtime/template/chat.h"

#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/file.h"
#include "runtime/template/jinja_value.h"

enum { CONFIG_MAX = 64 << 20, PATH_BUFFER = 4096, TOKENS_MAX = 8 };

typedef struct token_text {
    char *name, *text;
} token_text;

struct rt_chat {
    rt_jinja *usual, *with_tools; /* with_tools: NULL when the model has one template for both */
    char *text;                   /* of the usual template */
    token_text tokens[TOKENS_MAX];
    size_t token_count;
};

/* ---- Opening ---- */

static bis_status fail_memory(bis_error *error) {
    return bis_fail(error, BIS_ERR_NOMEM, "no memory for the chat template");
}

void rt_chat_close(rt_chat *chat) {
    if (!chat) return;
    rt_jinja_free(chat->usual);
    rt_jinja_free(chat->with_tools);
    bis_free(chat->text);
    for (size_t i = 0; i < chat->token_count; i++) {
        bis_free(chat->tokens[i].name);
        bis_free(chat->tokens[i].text);
    }
    bis_free(chat);
}

const char *rt_chat_template_text(const rt_chat *chat) { return chat->text; }

/* As in transformers, a token that the model does not have is an undefined variable, not an empty one. */
static bis_status add_token(rt_chat *chat, const char *name, const char *text, bis_error *error) {
    if (!text || !*text || chat->token_count == TOKENS_MAX) return BIS_OK;
    for (size_t i = 0; i < chat->token_count; i++) {
        if (!strcmp(chat->tokens[i].name, name)) return BIS_OK;
    }
    token_text *token = &chat->tokens[chat->token_count++];
    *token = (token_text){bis_strdup(name), bis_strdup(text)};
    return token->name && token->text ? BIS_OK : fail_memory(error);
}

static bis_status set_template(rt_chat *chat, const char *name, const char *text, bis_error *error) {
    chat->text = bis_strdup(text);
    if (!chat->text) return fail_memory(error);
    return rt_jinja_parse(name, text, strlen(text), &chat->usual, error);
}

bis_status rt_chat_open_text(const char *name, const char *template_text, const char *bos_text, const char *eos_text,
                             rt_chat **out, bis_error *error) {
    rt_chat *chat = bis_calloc(1, sizeof *chat);
    if (!chat) return fail_memory(error);
    bis_status status = add_token(chat, "bos_token", bos_text, error);
    if (!status) status = add_token(chat, "eos_token", eos_text, error);
    if (!status) status = set_template(chat, name, template_text, error);
    if (status) rt_chat_close(chat);
    else *out = chat;
    return status;
}

/* A file that must be text; `out` stays empty when there is no such file. */
static bis_status read_text(const char *folder, const char *name, size_t limit, bis_buf *out, bis_error *error) {
    char path[PATH_BUFFER];
    bis_status status = bis_join_path(folder, name, path, sizeof path, error);
    if (status || !bis_file_exists(path)) return status;
    status = bis_read_file(path, limit, out, error);
    if (!status && strlen(bis_buf_cstr(out)) != out->length) {
        status = bis_fail(error, BIS_ERR_FORMAT, "%s contains a NUL byte, so it is not text", path);
    }
    return status;
}

/* The text of a config entry: a string, or an object with "content" (how added tokens are written). */
static const rt_jstr *entry_text(rt_jrun *run, rt_jval config, const char *name) {
    const rt_jval *value = rt_jdict_find(run, config.as.dict, name);
    if (value && value->type == RT_J_DICT) value = rt_jdict_find(run, value->as.dict, "content");
    return value && value->type == RT_J_STRING ? value->as.string : NULL;
}

static bis_status add_config_tokens(rt_chat *chat, rt_jrun *run, rt_jval config, bis_error *error) {
    static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                        "pad_token", "cls_token", "mask_token"};
    bis_status status = BIS_OK;
    for (size_t i = 0; !status && i < sizeof names / sizeof *names; i++) {
        const rt_jstr *text = entry_text(run, config, names[i]);
        if (text) status = add_token(chat, names[i], rt_jcstr(run, text), error);
    }
    return status;
}

/* "chat_template": a list of {"name": ..., "template": ...}. */
static bis_status set_named_templates(rt_chat *chat, rt_jrun *run, const rt_jlist *list, const char *source,
                                      bis_error *error) {
    const char *usual = NULL, *with_tools = NULL;
    for (size_t i = 0; i < list->count; i++) {
        if (list->items[i].type != RT_J_DICT) continue;
        const rt_jstr *name = entry_text(run, list->items[i], "name");
        const rt_jstr *text = entry_text(run, list->items[i], "template");
        if (!name || !text) continue;
        if (!usual || !strcmp(rt_jcstr(run, name), "default")) usual = rt_jcstr(run, text);
        if (!strcmp(rt_jcstr(run, name), "tool_use")) with_tools = rt_jcstr(run, text);
    }
    if (!usual) return bis_fail(error, BIS_ERR_FORMAT, "%s: its chat_template list has no template", source);
    bis_status status = set_template(chat, source, usual, error);
    if (!status && with_tools) {
        status = rt_jinja_parse("tool_use", with_tools, strlen(with_tools), &chat->with_tools, error);
    }
    return status;
}

static bis_status read_config(rt_chat *chat, const char *json, bis_error *error) {
    static const char source[] = "tokenizer_config.json";
    rt_jrun *run = rt_jrun_new(source);
    if (!run) return fail_memory(error);
    rt_jval config = rt_jparse_json(run, json, source);
    if (!run->status && config.type != RT_J_DICT) {
        rt_jfail_raw(run, BIS_ERR_FORMAT, "%s must hold a JSON object", source);
    }
    bis_status status = BIS_OK;
    if (!run->status) {
        status = add_config_tokens(chat, run, config, error);
        const rt_jval *value = rt_jdict_find(run, config.as.dict, "chat_template");
        if (status || chat->usual || !value || value->type == RT_J_NONE) {
        } else if (value->type == RT_J_STRING) {
            status = set_template(chat, source, rt_jcstr(run, value->as.string), error);
        } else if (value->type == RT_J_LIST) {
            status = set_named_templates(chat, run, value->as.list, source, error);
        } else {
            status = bis_fail(error, BIS_ERR_FORMAT, "%s: chat_template must be a string or a list", source);
        }
    }
    if (run->status) status = bis_fail(error, run->status, "%s", run->error.text);
    rt_jrun_free(run);
    return status;
}

static bis_status open_files(rt_chat *chat, const char *folder, bis_error *error) {
    bis_buf template_text = {0}, config = {0};
    bis_status status = read_text(folder, "chat_template.jinja", RT_JINJA_SOURCE_MAX, &template_text, error);
    if (!status && template_text.data) {
        status = set_template(chat, "chat_template.jinja", template_text.data, error);
    }
    if (!status) status = read_text(folder, "tokenizer_config.json", CONFIG_MAX, &config, error);
    if (!status && config.data) status = read_config(chat, config.data, error);
    bis_buf_free(&template_text);
    bis_buf_free(&config);
    if (status == BIS_ERR_INVALID) { /* here it is a file that is wrong, not a request */
        if (error) error->status = BIS_ERR_FORMAT;
        status = BIS_ERR_FORMAT;
    }
    return status;
}

bis_status rt_chat_open(const char *folder, const rt_tokenizer *tokenizer, rt_chat **out, bis_error *error) {
    rt_chat *chat = bis_calloc(1, sizeof *chat);
    if (!chat) return fail_memory(error);
    bis_status status = add_token(chat, "bos_token", rt_tokenizer_bos_text(tokenizer), error);
    if (!status) status = add_token(chat, "eos_token", rt_tokenizer_eos_text(tokenizer), error);
    if (!status) status = open_files(chat, folder, error);
    if (status == BIS_OK && chat->usual) {
        *out = chat;
        return BIS_OK;
    }
    rt_chat_close(chat);
    if (status == BIS_OK) *out = NULL;
    return status;
}

/* ---- Rendering ---- */

/* Entries of a message that stay as they are in a variant: templates check them. */
static bool is_structure(rt_jval key) {
    static const char *const names[] = {"role", "type", "id", "tool_call_id"};
    for (size_t i = 0; key.type == RT_J_STRING && i < sizeof names / sizeof *names; i++) {
        const rt_jstr *name = key.as.string;
        if (name->length == strlen(names[i]) && !memcmp(name->bytes, names[i], name->length)) return true;
    }
    return false;
}

/* The same value with other words: every text in it is replaced. */
static rt_jval vary(rt_jrun *run, rt_jval value, rt_jval words) {
    if (value.type == RT_J_STRING) return words;
    if (value.type == RT_J_LIST) {
        rt_jlist *list = rt_jlist_new(run, value.as.list->count);
        for (size_t i = 0; i < value.as.list->count; i++) {
            rt_jlist_add(run, list, vary(run, value.as.list->items[i], words));
        }
        return rt_jlist_value(list, RT_J_LIST);
    }
    if (value.type != RT_J_DICT) return value;
    rt_jdict *dict = rt_jdict_new(run);
    for (size_t i = 0; i < value.as.dict->count; i++) {
        const rt_jentry *entry = &value.as.dict->entries[i];
        rt_jdict_set(run, dict, entry->key, is_structure(entry->key) ? entry->value : vary(run, entry->value, words));
    }
    return rt_jdict_value(dict);
}

/* Messages whose text is the application's own. */
static bool is_system(rt_jrun *run, rt_jval message) {
    const rt_jstr *role = entry_text(run, message, "role");
    if (!role) return false;
    const char *name = rt_jcstr(run, role);
    return !strcmp(name, "system") || !strcmp(name, "developer");
}

/* `words`: NULL for the real conversation, else what all others than the system say in this variant. */
static bis_status set_messages(rt_jrun *run, const char *json, const char *words) {
    rt_jval messages = rt_jparse_json(run, json, "messages");
    if (!run->status && messages.type != RT_J_LIST) {
        rt_jfail_raw(run, BIS_ERR_INVALID, "messages must be a JSON array of objects");
    }
    rt_jval said = words ? rt_jstring_from(run, words) : rt_jnone();
    for (size_t i = 0; !run->status && i < messages.as.list->count; i++) {
        rt_jval *message = &messages.as.list->items[i];
        if (message->type != RT_J_DICT) {
            rt_jfail_raw(run, BIS_ERR_INVALID, "messages[%zu] must be an object", i);
        } else if (words && !is_system(run, *message)) *message = vary(run, *message, said);
    }
    rt_jdict_set(run, run->variables, rt_jstring_from(run, "messages"), messages);
    return run->status;
}

static bis_status set_variables(const rt_chat *chat, const rt_chat_input *input, const char *words, rt_jrun *run,
                                bis_error *error) {
    bis_status status = BIS_OK;
    for (size_t i = 0; !status && i < chat->token_count; i++) {
        status = rt_jinja_set_text(run, chat->tokens[i].name, chat->tokens[i].text, error);
    }
    if (!status) status = rt_jinja_set_json(run, "tools", input->tools_json ? input->tools_json : "null", error);
    if (!status) status = rt_jinja_set_json(run, "documents", "null", error);
    if (!status) status = rt_jinja_set_bool(run, "add_generation_prompt", input->add_generation_prompt, error);
    if (!status && input->variables_json) status = rt_jinja_set_members(run, input->variables_json, error);
    if (status) return status;
    const rt_jval *tools = rt_jdict_find(run, run->variables, "tools");
    if (tools && tools->type != RT_J_LIST && tools->type != RT_J_NONE) {
        return bis_fail(error, BIS_ERR_INVALID, "tools must be a JSON array");
    }
    if (set_messages(run, input->messages_json, words)) return bis_fail(error, run->status, "%s", run->error.text);
    return BIS_OK;
}

static bis_status render(const rt_chat *chat, const rt_chat_input *input, const char *words, bis_buf *out,
                         bis_error *error) {
    rt_jrun *run;
    const rt_jinja *jinja = input->tools_json && chat->with_tools ? chat->with_tools : chat->usual;
    bis_status status = rt_jinja_begin(jinja, &run, error);
    if (status) return status;
    status = set_variables(chat, input, words, run, error);
    if (!status) status = rt_jinja_render(run, out, error);
    rt_jinja_end(run);
    return status;
}

static size_t common_prefix(const char *a, size_t a_length, const char *b, size_t b_length) {
    size_t n = 0;
    while (n < a_length && n < b_length && a[n] == b[n]) n++;
    return n;
}

/* The two variants differ from each other wherever someone's words are printed, also where the real ones
 * happen to begin like one of them. A template that refuses a variant just gives no span. */
static size_t find_system_end(const rt_chat *chat, const rt_chat_input *input, const char *text, size_t length) {
    static const char *const words[] = {"Xq variant one", "Zk variant two"};
    for (size_t i = 0; i < 2; i++) {
        bis_buf variant = {0};
        if (render(chat, input, words[i], &variant, NULL)) length = 0;
        else length = common_prefix(text, length, bis_buf_cstr(&variant), variant.length);
        bis_buf_free(&variant);
    }
    return length;
}

bis_status rt_chat_render(const rt_chat *chat, const rt_chat_input *input, bis_buf *out, size_t *system_end,
                          bis_error *error) {
    size_t start = out->length;
    bis_status status = render(chat, input, NULL, out, error);
    if (status || !system_end) return status;
    const char *text = bis_buf_cstr(out) + start;
    size_t length = out->length - start, end = find_system_end(chat, input, text, length);
    while (end > 0 && end < length && ((unsigned char)text[end] & 0xc0) == 0x80) end--; /* not inside a character */
    *system_end = end;
    return BIS_OK;
}
