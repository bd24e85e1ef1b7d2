/* The conversation part of requests: messages, tools, template variables. */
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "server/openai_parse_internal.h"

static bool refuse_message(srv_parser *parser, int index, const char *member, const char *text) {
    char param[48];
    snprintf(param, sizeof param, "messages[%d]%s%s", index, member ? "." : "", member ? member : "");
    return srv_refuse(parser->error, param, "%s: %s", param, text);
}

/* ---- Contents ---------------------------------------------------------------------------------- */

/* Joins the texts of an array of content parts with line breaks, as one JSON string. */
static bool write_parts(srv_parser *parser, int index, const cJSON *parts, bis_buf *out) {
    bis_buf text = {0};
    bool ok = true;
    const cJSON *part;
    cJSON_ArrayForEach(part, parts) {
        const cJSON *type = cJSON_GetObjectItemCaseSensitive(part, "type");
        const cJSON *value = cJSON_GetObjectItemCaseSensitive(part, "text");
        if (!cJSON_IsObject(part) || !cJSON_IsString(type)) {
            ok = refuse_message(parser, index, "content", "each part must be an object with a type.");
        } else if (strcmp(type->valuestring, "text") != 0) {
            ok = refuse_message(parser, index, "content",
                                "only parts of type text are supported: this model reads text.");
        } else if (!cJSON_IsString(value)) {
            ok = refuse_message(parser, index, "content", "a part of type text needs a text.");
        }
        if (!ok) break;
        if (part != parts->child) bis_buf_putc(&text, '\n');
        bis_buf_puts(&text, value->valuestring);
    }
    if (ok) bis_buf_json_string(out, bis_buf_cstr(&text), text.length);
    if (ok && text.failed) ok = srv_refuse_memory(parser->error);
    bis_buf_free(&text);
    return ok;
}

static bool write_content(srv_parser *parser, int index, const cJSON *content, bool may_be_null, bis_buf *out) {
    if (cJSON_IsString(content)) return bis_buf_json_string(out, content->valuestring, strlen(content->valuestring));
    if (cJSON_IsArray(content) && content->child) return write_parts(parser, index, content, out);
    if (cJSON_IsNull(content) && may_be_null) return bis_buf_puts(out, "null");
    return refuse_message(parser, index, "content", "must be a string or an array of text parts.");
}

/* ---- Tool calls -------------------------------------------------------------------------------- */

/* Templates expect a call's arguments as an object; the API carries them as a string of JSON. */
static bool expand_arguments(srv_parser *parser, int index, cJSON *call) {
    cJSON *function = cJSON_GetObjectItemCaseSensitive(call, "function");
    if (!cJSON_IsObject(call) || !cJSON_IsObject(function) ||
        !cJSON_IsString(cJSON_GetObjectItemCaseSensitive(function, "name")))
        return refuse_message(parser, index, "tool_calls", "each call must be an object with a function and its name.");
    const cJSON *arguments = cJSON_GetObjectItemCaseSensitive(function, "arguments");
    if (!cJSON_IsString(arguments)) return true;
    size_t length = strlen(arguments->valuestring);
    if (srv_json_check(arguments->valuestring, length, NULL, 0, NULL) != BIS_OK) return true; /* stays a string */
    cJSON *object = cJSON_ParseWithLength(arguments->valuestring, length);
    if (!cJSON_IsObject(object)) {
        cJSON_Delete(object);
        return true;
    }
    if (cJSON_ReplaceItemInObjectCaseSensitive(function, "arguments", object)) return true;
    cJSON_Delete(object);
    return srv_refuse_memory(parser->error);
}

static bool expand_calls(srv_parser *parser, int index, cJSON *calls) {
    if (!cJSON_IsArray(calls)) return refuse_message(parser, index, "tool_calls", "must be an array.");
    for (cJSON *call = calls->child; call; call = call->next) {
        if (!expand_arguments(parser, index, call)) return false;
    }
    return true;
}

static bool write_member(srv_parser *parser, int index, const cJSON *member, bis_buf *out) {
    cJSON *copy = cJSON_Duplicate(member, 1);
    if (!copy) return srv_refuse_memory(parser->error);
    bool ok = strcmp(member->string, "tool_calls") != 0 || cJSON_IsNull(member) || expand_calls(parser, index, copy);
    char *text = ok ? cJSON_PrintUnformatted(copy) : NULL;
    if (text) bis_buf_puts(out, text);
    else if (ok) ok = srv_refuse_memory(parser->error);
    cJSON_free(text);
    cJSON_Delete(copy);
    return ok;
}

/* ---- Messages ---------------------------------------------------------------------------------- */

static const char *known_role(const cJSON *role) {
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    if (!cJSON_IsString(role)) return NULL;
    if (strcmp(role->valuestring, "developer") == 0) return "system";
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (strcmp(role->valuestring, roles[i]) == 0) return roles[i];
    return NULL;
}

static bool write_message(srv_parser *parser, int index, const cJSON *message, bis_buf *out) {
    if (!cJSON_IsObject(message)) return refuse_message(parser, index, NULL, "must be an object.");
    const char *role = known_role(cJSON_GetObjectItemCaseSensitive(message, "role"));
    if (!role) return refuse_message(parser, index, "role", "must be system, developer, user, assistant or tool.");
    const cJSON *calls = cJSON_GetObjectItemCaseSensitive(message, "tool_calls");
    bool may_be_null = strcmp(role, "assistant") == 0 && cJSON_IsArray(calls) && calls->child;
    bool has_content = false, has_role = false;
    bis_buf_putc(out, '{');
    const cJSON *member;
    cJSON_ArrayForEach(member, message) {
        bool is_role = strcmp(member->string, "role") == 0, is_content = strcmp(member->string, "content") == 0;
        if ((is_role && has_role) || (is_content && has_content))
            return refuse_message(parser, index, member->string, "is given twice.");
        has_role |= is_role;
        has_content |= is_content;
        if (member != message->child) bis_buf_putc(out, ',');
        bis_buf_json_string(out, member->string, strlen(member->string));
        bis_buf_putc(out, ':');
        bool ok = is_role      ? bis_buf_json_string(out, role, strlen(role))
                  : is_content ? write_content(parser, index, member, may_be_null, out)
                               : write_member(parser, index, member, out);
        if (!ok) return false;
    }
    bis_buf_putc(out, '}');
    return has_content || may_be_null ? true : refuse_message(parser, index, "content", "is missing.");
}

bool srv_parse_messages(srv_parser *parser, const char *name, const cJSON *value) {
    if (!cJSON_IsArray(value) || !value->child)
        return srv_refuse(parser->error, name, "messages must be an array with at least one message.");
    if (cJSON_GetArraySize(value) > SRV_MESSAGES_MAX)
        return srv_refuse(parser->error, name, "messages may have at most %d entries.", SRV_MESSAGES_MAX);
    bis_buf out = {0};
    bis_buf_putc(&out, '[');
    int index = 0;
    const cJSON *message;
    bool ok = true;
    cJSON_ArrayForEach(message, value) {
        if (index > 0) bis_buf_putc(&out, ',');
        ok = write_message(parser, index++, message, &out);
        if (!ok) break;
    }
    bis_buf_putc(&out, ']');
    if (out.failed) ok = srv_refuse_memory(parser->error);
    if (!ok) {
        bis_buf_free(&out);
        return false;
    }
    parser->conversation->messages = out.data;
    parser->has_messages = true;
    return true;
}

/* ---- Tools and variables ----------------------------------------------------------------------- */

/* Keeps the text as the client wrote it, because numbers would not survive a tree unchanged. */
static bool keep_slice(srv_parser *parser, const char *name, int slice, char **out) {
    if (!parser->slices[slice].start)
        return srv_refuse(parser->error, name, "Write the name %s without escapes.", name);
    *out = bis_strndup(parser->slices[slice].start, parser->slices[slice].length);
    return *out ? true : srv_refuse_memory(parser->error);
}

bool srv_parse_tools(srv_parser *parser, const char *name, const cJSON *value) {
    if (!cJSON_IsArray(value) || cJSON_GetArraySize(value) > SRV_TOOLS_MAX)
        return srv_refuse(parser->error, name, "tools must be an array of at most %d tools.", SRV_TOOLS_MAX);
    const cJSON *tool;
    cJSON_ArrayForEach(tool, value) {
        const cJSON *function = cJSON_GetObjectItemCaseSensitive(tool, "function");
        if (!cJSON_IsObject(tool) || !cJSON_IsString(cJSON_GetObjectItemCaseSensitive(function, "name")))
            return srv_refuse(parser->error, name, "each tool must be an object with a function and its name.");
    }
    return value->child ? keep_slice(parser, name, SLICE_TOOLS, &parser->conversation->tools) : true;
}

bool srv_parse_tool_choice(srv_parser *parser, const char *name, const cJSON *value) {
    if (cJSON_IsString(value) && strcmp(value->valuestring, "none") == 0) {
        parser->hide_tools = true;
        return true;
    }
    if (cJSON_IsString(value) && strcmp(value->valuestring, "auto") == 0) return true;
    return srv_refuse(parser->error, name, "tool_choice can be \"none\" or \"auto\": a call cannot be enforced.");
}

bool srv_parse_variables(srv_parser *parser, const char *name, const cJSON *value) {
    if (!cJSON_IsObject(value)) return srv_refuse(parser->error, name, "%s must be an object.", name);
    return keep_slice(parser, name, SLICE_VARIABLES, &parser->conversation->variables);
}

void srv_conversation_free(srv_conversation *conversation) {
    bis_free(conversation->messages);
    bis_free(conversation->tools);
    bis_free(conversation->variables);
    *conversation = (srv_conversation){0};
}
