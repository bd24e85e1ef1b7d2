#include "server/openai_parse.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"
#include "server/openai_parse_internal.h"

enum { NAME_MAX_BYTES = 512, DEFAULT_COMPLETION_TOKENS = 16, FIELDS_MAX = 48 };

static const double WHOLE_MAX = 9007199254740991.0; /* 2^53 - 1: every whole number up to here is exact */

/* ---- Errors ------------------------------------------------------------------------------------ */

bool srv_refuse(srv_api_error *error, const char *param, const char *format, ...) {
    *error = (srv_api_error){.status = 400, .type = "invalid_request_error"};
    if (param) snprintf(error->param, sizeof error->param, "%s", param);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    error->message[bis_utf8_complete_prefix(error->message, strlen(error->message))] = '\0';
    return false;
}

bool srv_refuse_memory(srv_api_error *error) {
    srv_refuse(error, NULL, "The server has no memory for this request at the moment.");
    error->status = 503;
    error->type = "server_error";
    return false;
}

/* ---- Values ------------------------------------------------------------------------------------ */

bool srv_json_whole(const cJSON *value, double least, double most, int64_t *out) {
    if (!cJSON_IsNumber(value)) return false;
    double number = value->valuedouble;
    if (!(number >= least && number <= most) || number != floor(number)) return false;
    *out = (int64_t)number;
    return true;
}

/* Fields that need no function of their own. */
typedef enum kind { INT, FLOAT, BOOL, TEXT, IGNORED_TEXT, CUSTOM } kind;

enum { CHAT = 1, COMPLETION = 2, BOTH = 3 };

typedef struct field {
    const char *name;
    unsigned apis; /* of srv_generate; BOTH elsewhere */
    kind kind;
    size_t offset;
    double least, most;
    srv_field_fn set;
} field;

static bool set_text(srv_parser *parser, const field *f, const cJSON *value) {
    if (!cJSON_IsString(value)) return srv_refuse(parser->error, f->name, "%s must be a string.", f->name);
    if (strlen(value->valuestring) > NAME_MAX_BYTES)
        return srv_refuse(parser->error, f->name, "%s may have at most %d bytes.", f->name, NAME_MAX_BYTES);
    if (f->kind == IGNORED_TEXT) return true;
    char **out = (char **)((char *)parser->out + f->offset);
    *out = bis_strdup(value->valuestring);
    return *out ? true : srv_refuse_memory(parser->error);
}

static bool set_field(srv_parser *parser, const field *f, const cJSON *value) {
    char *at = (char *)parser->out + f->offset;
    int64_t whole;
    switch (f->kind) {
    case INT:
        if (!srv_json_whole(value, f->least, f->most, &whole))
            return srv_refuse(parser->error, f->name, "%s must be a whole number from %.0f to %.0f.", f->name, f->least,
                              f->most);
        *(int *)at = (int)whole;
        return true;
    case FLOAT:
        if (!cJSON_IsNumber(value) || !(value->valuedouble >= f->least && value->valuedouble <= f->most))
            return srv_refuse(parser->error, f->name, "%s must be a number from %g to %g.", f->name, f->least, f->most);
        *(float *)at = (float)value->valuedouble;
        return true;
    case BOOL:
        if (!cJSON_IsBool(value)) return srv_refuse(parser->error, f->name, "%s must be true or false.", f->name);
        *(bool *)at = cJSON_IsTrue(value);
        return true;
    case TEXT:
    case IGNORED_TEXT: return set_text(parser, f, value);
    case CUSTOM: return f->set(parser, f->name, value);
    }
    return false;
}

/* Sets every known member of the object; each may be given once, and null counts as absent. */
static bool set_fields(srv_parser *parser, const cJSON *object, const field *fields, size_t count, unsigned api) {
    bool seen[FIELDS_MAX] = {false};
    const cJSON *member;
    cJSON_ArrayForEach(member, object) {
        size_t i = 0;
        while (i < count && (!(fields[i].apis & api) || strcmp(fields[i].name, member->string) != 0)) i++;
        if (i == count) continue;
        if (seen[i]) return srv_refuse(parser->error, member->string, "%s is given twice.", member->string);
        seen[i] = true;
        if (!cJSON_IsNull(member) && !set_field(parser, &fields[i], member)) return false;
    }
    return true;
}

/* The body's tree, a JSON object; NULL and *parser->error otherwise. */
static cJSON *parse_body(srv_parser *parser, const char *body, size_t length) {
    parser->slices[SLICE_TOOLS].key = "tools";
    parser->slices[SLICE_VARIABLES].key = "chat_template_kwargs";
    bis_error problem;
    if (srv_json_check(body, length, parser->slices, SLICE_COUNT, &problem) != BIS_OK) {
        srv_refuse(parser->error, NULL, "%s", problem.text);
        return NULL;
    }
    cJSON *root = cJSON_ParseWithLength(body, length);
    if (!root) srv_refuse_memory(parser->error); /* the text itself was checked */
    else if (!cJSON_IsObject(root)) srv_refuse(parser->error, NULL, "The request body must be a JSON object.");
    if (root && cJSON_IsObject(root)) return root;
    cJSON_Delete(root);
    return NULL;
}

/* ---- Fields of generation requests ------------------------------------------------------------- */

static bool set_seed(srv_parser *parser, const char *name, const cJSON *value) {
    int64_t whole;
    if (!srv_json_whole(value, 0, WHOLE_MAX, &whole))
        return srv_refuse(parser->error, name, "seed must be a whole number from 0 to %.0f.", WHOLE_MAX);
    parser->generate->sampling.seed = (uint64_t)whole;
    parser->generate->has_seed = true;
    return true;
}

static bool set_one_stop(srv_parser *parser, const char *name, const cJSON *value) {
    srv_generate *g = parser->generate;
    if (!cJSON_IsString(value)) return srv_refuse(parser->error, name, "stop must be a string or an array of strings.");
    size_t length = strlen(value->valuestring);
    if (length == 0 || length >= RT_STOP_STRING_BYTES)
        return srv_refuse(parser->error, name, "a stop string must have 1 to %d bytes.", RT_STOP_STRING_BYTES - 1);
    g->stop[g->stop_count] = bis_strdup(value->valuestring);
    if (!g->stop[g->stop_count]) return srv_refuse_memory(parser->error);
    g->stop_count++;
    return true;
}

static bool set_stop(srv_parser *parser, const char *name, const cJSON *value) {
    if (!cJSON_IsArray(value)) return set_one_stop(parser, name, value);
    if (cJSON_GetArraySize(value) > RT_STOP_STRINGS_MAX)
        return srv_refuse(parser->error, name, "stop may have at most %d strings.", RT_STOP_STRINGS_MAX);
    const cJSON *item;
    cJSON_ArrayForEach(item, value) {
        if (!set_one_stop(parser, name, item)) return false;
    }
    return true;
}

static bool set_stop_tokens(srv_parser *parser, const char *name, const cJSON *value) {
    srv_generate *g = parser->generate;
    if (!cJSON_IsArray(value) || cJSON_GetArraySize(value) > RT_STOP_TOKENS_MAX)
        return srv_refuse(parser->error, name, "%s must be an array of at most %d token ids.", name,
                          RT_STOP_TOKENS_MAX);
    const cJSON *item;
    cJSON_ArrayForEach(item, value) {
        int64_t id;
        if (!srv_json_whole(item, 0, INT32_MAX, &id))
            return srv_refuse(parser->error, name, "%s must contain token ids: whole numbers from 0.", name);
        g->stop_tokens[g->stop_token_count++] = (int32_t)id;
    }
    return true;
}

/* A token id as JSON object key. */
static bool read_id(const char *text, int32_t *out) {
    size_t length = strlen(text);
    if (length == 0 || length > 10 || strspn(text, "0123456789") != length) return false;
    long long id = strtoll(text, NULL, 10);
    if (id > INT32_MAX) return false;
    *out = (int32_t)id;
    return true;
}

static bool set_logit_bias(srv_parser *parser, const char *name, const cJSON *value) {
    if (!cJSON_IsObject(value))
        return srv_refuse(parser->error, name, "logit_bias must be an object of token ids and numbers.");
    int count = cJSON_GetArraySize(value);
    if (count > RT_LOGIT_BIAS_MAX)
        return srv_refuse(parser->error, name, "logit_bias may have at most %d entries.", RT_LOGIT_BIAS_MAX);
    if (count == 0) return true;
    rt_logit_bias *list = bis_calloc((size_t)count, sizeof *list);
    if (!list) return srv_refuse_memory(parser->error);
    rt_sampling *sampling = &parser->generate->sampling;
    sampling->logit_bias = list;
    const cJSON *item;
    cJSON_ArrayForEach(item, value) {
        rt_logit_bias *entry = &list[sampling->logit_bias_count];
        if (!read_id(item->string, &entry->token))
            return srv_refuse(parser->error, name, "the keys of logit_bias must be token ids.");
        if (!cJSON_IsNumber(item) || !(fabs(item->valuedouble) <= 100))
            return srv_refuse(parser->error, name, "the values of logit_bias must be numbers from -100 to 100.");
        entry->bias = (float)item->valuedouble;
        sampling->logit_bias_count++;
    }
    return true;
}

static bool set_logprobs(srv_parser *parser, const char *name, const cJSON *value) {
    if (parser->generate->api == SRV_API_CHAT) {
        if (!cJSON_IsBool(value)) return srv_refuse(parser->error, name, "logprobs must be true or false.");
        parser->wants_logprobs = cJSON_IsTrue(value);
        return true;
    }
    int64_t whole;
    if (!srv_json_whole(value, 0, 5, &whole))
        return srv_refuse(parser->error, name, "logprobs must be a whole number from 0 to 5.");
    parser->generate->logprobs = (int)whole;
    return true;
}

static bool set_top_logprobs(srv_parser *parser, const char *name, const cJSON *value) {
    int64_t whole;
    if (!srv_json_whole(value, 0, RT_LOGPROBS_MAX, &whole))
        return srv_refuse(parser->error, name, "top_logprobs must be a whole number from 0 to %d.", RT_LOGPROBS_MAX);
    parser->top_logprobs = (int)whole;
    return true;
}

static bool set_best_of(srv_parser *parser, const char *name, const cJSON *value) {
    int64_t whole;
    if (!srv_json_whole(value, 1, SRV_N_MAX, &whole))
        return srv_refuse(parser->error, name, "best_of must be a whole number from 1 to %d.", SRV_N_MAX);
    parser->best_of = (int)whole;
    return true;
}

static bool set_stream_options(srv_parser *parser, const char *name, const cJSON *value) {
    if (!cJSON_IsObject(value)) return srv_refuse(parser->error, name, "stream_options must be an object.");
    const cJSON *usage = cJSON_GetObjectItemCaseSensitive(value, "include_usage");
    if (usage && !cJSON_IsBool(usage) && !cJSON_IsNull(usage))
        return srv_refuse(parser->error, "stream_options.include_usage", "include_usage must be true or false.");
    parser->generate->include_usage = cJSON_IsTrue(usage);
    return true;
}

static bool set_response_format(srv_parser *parser, const char *name, const cJSON *value) {
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(value, "type");
    if (!cJSON_IsObject(value) || !cJSON_IsString(type))
        return srv_refuse(parser->error, name, "response_format must be an object with a type.");
    if (strcmp(type->valuestring, "text") != 0)
        return srv_refuse(parser->error, name,
                          "response_format can only be of type \"text\": this server does not "
                          "force its output into a schema.");
    return true;
}

static bool refuse_suffix(srv_parser *parser, const char *name, const cJSON *value) {
    if (cJSON_IsString(value) && value->valuestring[0] == '\0') return true;
    return srv_refuse(parser->error, name, "suffix is not supported: this model only continues a text.");
}

/* ---- Prompts ----------------------------------------------------------------------------------- */

static bool read_ids(srv_parser *parser, const char *name, const cJSON *array, rt_tokens *out) {
    const cJSON *item;
    cJSON_ArrayForEach(item, array) {
        int64_t id;
        if (!srv_json_whole(item, 0, INT32_MAX, &id))
            return srv_refuse(parser->error, name, "%s must contain token ids: whole numbers from 0.", name);
        if (!rt_tokens_append(out, (int32_t)id)) return srv_refuse_memory(parser->error);
    }
    return true;
}

/* One prompt: a string, or an array of token ids. */
static bool add_prompt(srv_parser *parser, const char *name, const cJSON *value) {
    srv_prompt *prompt = &parser->generate->prompts[parser->generate->prompt_count];
    if (cJSON_IsString(value)) {
        if (value->valuestring[0] == '\0') return srv_refuse(parser->error, name, "prompt must not be empty.");
        prompt->text = bis_strdup(value->valuestring);
        if (!prompt->text) return srv_refuse_memory(parser->error);
    } else if (cJSON_IsArray(value) && value->child) {
        if (!read_ids(parser, name, value, &prompt->ids)) {
            rt_tokens_free(&prompt->ids);
            return false;
        }
    } else {
        return srv_refuse(parser->error, name,
                          "prompt must be a string, an array of strings, or one or several arrays of token ids; none "
                          "may be empty.");
    }
    parser->generate->prompt_count++;
    return true;
}

static bool set_prompt(srv_parser *parser, const char *name, const cJSON *value) {
    /* One prompt, unless the array holds strings or arrays. */
    bool several = cJSON_IsArray(value) && (cJSON_IsString(value->child) || cJSON_IsArray(value->child));
    int count = several ? cJSON_GetArraySize(value) : 1;
    if (count > SRV_PROMPTS_MAX)
        return srv_refuse(parser->error, name, "prompt may have at most %d entries.", SRV_PROMPTS_MAX);
    srv_generate *g = parser->generate;
    g->prompts = bis_calloc((size_t)count, sizeof *g->prompts);
    if (!g->prompts) return srv_refuse_memory(parser->error);
    parser->has_prompt = true;
    if (!several) return add_prompt(parser, name, value);
    const cJSON *item;
    cJSON_ArrayForEach(item, value) {
        if (item->type != value->child->type)
            return srv_refuse(parser->error, name, "prompt must not mix strings and token ids.");
        if (!add_prompt(parser, name, item)) return false;
    }
    return true;
}

/* ---- Generation requests ----------------------------------------------------------------------- */

#define AT(member) offsetof(srv_generate, member)

static const field generate_fields[] = {
    {"model", BOTH, TEXT, AT(model), 0, 0, NULL},
    {"messages", CHAT, CUSTOM, 0, 0, 0, srv_parse_messages},
    {"tools", CHAT, CUSTOM, 0, 0, 0, srv_parse_tools},
    {"tool_choice", CHAT, CUSTOM, 0, 0, 0, srv_parse_tool_choice},
    {"chat_template_kwargs", CHAT, CUSTOM, 0, 0, 0, srv_parse_variables},
    {"add_generation_prompt", CHAT, BOOL, AT(conversation.add_generation_prompt), 0, 0, NULL},
    {"prompt", COMPLETION, CUSTOM, 0, 0, 0, set_prompt},
    {"suffix", COMPLETION, CUSTOM, 0, 0, 0, refuse_suffix},
    {"echo", COMPLETION, BOOL, AT(echo), 0, 0, NULL},
    {"best_of", COMPLETION, CUSTOM, 0, 0, 0, set_best_of},
    {"n", BOTH, INT, AT(n), 1, SRV_N_MAX, NULL},
    {"stream", BOTH, BOOL, AT(stream), 0, 0, NULL},
    {"stream_options", BOTH, CUSTOM, 0, 0, 0, set_stream_options},
    {"max_tokens", CHAT, INT, AT(max_tokens), 1, INT_MAX, NULL},
    {"max_completion_tokens", CHAT, INT, AT(max_tokens), 1, INT_MAX, NULL},
    {"max_tokens", COMPLETION, INT, AT(max_tokens), 0, INT_MAX, NULL},
    {"temperature", BOTH, FLOAT, AT(sampling.temperature), 0, 2, NULL},
    {"top_p", BOTH, FLOAT, AT(sampling.top_p), 0, 1, NULL},
    {"min_p", BOTH, FLOAT, AT(sampling.min_p), 0, 1, NULL},
    {"top_k", BOTH, INT, AT(sampling.top_k), 0, INT_MAX, NULL},
    {"repetition_penalty", BOTH, FLOAT, AT(sampling.repetition_penalty), 0.01, 100, NULL},
    {"frequency_penalty", BOTH, FLOAT, AT(sampling.frequency_penalty), -2, 2, NULL},
    {"presence_penalty", BOTH, FLOAT, AT(sampling.presence_penalty), -2, 2, NULL},
    {"logit_bias", BOTH, CUSTOM, 0, 0, 0, set_logit_bias},
    {"seed", BOTH, CUSTOM, 0, 0, 0, set_seed},
    {"stop", BOTH, CUSTOM, 0, 0, 0, set_stop},
    {"stop_token_ids", BOTH, CUSTOM, 0, 0, 0, set_stop_tokens},
    {"ignore_eos", BOTH, BOOL, AT(ignore_eos), 0, 0, NULL},
    {"skip_special_tokens", BOTH, BOOL, AT(skip_special_tokens), 0, 0, NULL},
    {"logprobs", BOTH, CUSTOM, 0, 0, 0, set_logprobs},
    {"top_logprobs", CHAT, CUSTOM, 0, 0, 0, set_top_logprobs},
    {"response_format", BOTH, CUSTOM, 0, 0, 0, set_response_format},
    {"user", BOTH, IGNORED_TEXT, 0, 0, 0, NULL},
    {"cache_salt", BOTH, IGNORED_TEXT, 0, 0, 0, NULL},
};
_Static_assert(sizeof generate_fields / sizeof *generate_fields <= FIELDS_MAX, "raise FIELDS_MAX");

/* What depends on several fields. */
static bool check_generate(srv_parser *parser) {
    srv_generate *g = parser->generate;
    if (g->api == SRV_API_CHAT && !parser->has_messages)
        return srv_refuse(parser->error, "messages", "messages is missing.");
    if (g->api == SRV_API_COMPLETION && !parser->has_prompt)
        return srv_refuse(parser->error, "prompt", "prompt is missing.");
    if (parser->top_logprobs >= 0 && !parser->wants_logprobs)
        return srv_refuse(parser->error, "top_logprobs", "top_logprobs needs logprobs to be true.");
    if (parser->wants_logprobs) g->logprobs = parser->top_logprobs >= 0 ? parser->top_logprobs : 0;
    if (parser->best_of >= 0 && parser->best_of != g->n)
        return srv_refuse(parser->error, "best_of", "best_of must be equal to n: answers are not ranked.");
    if (g->include_usage && !g->stream)
        return srv_refuse(parser->error, "stream_options", "stream_options needs stream to be true.");
    if (g->api == SRV_API_COMPLETION && g->prompt_count * (size_t)g->n > SRV_CHOICES_MAX)
        return srv_refuse(parser->error, "n", "a request may ask for at most %d answers in all.", SRV_CHOICES_MAX);
    if (g->sampling.top_p <= 0) g->sampling.top_p = FLT_MIN; /* 0 means: only the most probable token */
    if (parser->hide_tools) {
        bis_free(g->conversation.tools);
        g->conversation.tools = NULL;
    }
    return true;
}

bool srv_parse_generate(const char *body, size_t length, srv_api api, srv_generate *out, srv_api_error *error) {
    srv_generate g = {.api = api,
                      .n = 1,
                      .max_tokens = api == SRV_API_CHAT ? -1 : DEFAULT_COMPLETION_TOKENS,
                      .skip_special_tokens = true,
                      .logprobs = -1};
    g.sampling = (rt_sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1};
    g.conversation.add_generation_prompt = true;
    srv_parser parser = {
        .out = &g, .generate = &g, .conversation = &g.conversation, .top_logprobs = -1, .best_of = -1, .error = error};
    cJSON *root = parse_body(&parser, body, length);
    bool ok = root &&
              set_fields(&parser, root, generate_fields, sizeof generate_fields / sizeof *generate_fields,
                         api == SRV_API_CHAT ? CHAT : COMPLETION) &&
              check_generate(&parser);
    cJSON_Delete(root);
    if (ok) *out = g;
    else srv_generate_free(&g);
    return ok;
}

void srv_generate_free(srv_generate *request) {
    bis_free(request->model);
    srv_conversation_free(&request->conversation);
    for (size_t i = 0; i < request->prompt_count; i++) {
        bis_free(request->prompts[i].text);
        rt_tokens_free(&request->prompts[i].ids);
    }
    bis_free(request->prompts);
    for (size_t i = 0; i < request->stop_count; i++) bis_free(request->stop[i]);
    bis_free((void *)request->sampling.logit_bias);
    *request = (srv_generate){0};
}

/* ---- Text tools -------------------------------------------------------------------------------- */

static bool set_content(srv_parser *parser, const char *name, const cJSON *value) {
    if (!cJSON_IsString(value)) return srv_refuse(parser->error, name, "%s must be a string.", name);
    if (parser->has_text) return srv_refuse(parser->error, name, "give content or prompt, not both.");
    parser->has_text = true;
    srv_text_request *out = parser->out;
    out->text = bis_strdup(value->valuestring);
    return out->text ? true : srv_refuse_memory(parser->error);
}

#undef AT
#define AT(member) offsetof(srv_text_request, member)

static const field text_fields[] = {
    {"model", BOTH, TEXT, AT(model), 0, 0, NULL},
    {"content", COMPLETION, CUSTOM, 0, 0, 0, set_content},
    {"prompt", COMPLETION, CUSTOM, 0, 0, 0, set_content},
    {"add_special", COMPLETION, BOOL, AT(add_special), 0, 0, NULL},
    {"add_special_tokens", COMPLETION, BOOL, AT(add_special), 0, 0, NULL},
    {"parse_special", COMPLETION, BOOL, AT(parse_special), 0, 0, NULL},
    {"messages", BOTH, CUSTOM, 0, 0, 0, srv_parse_messages},
    {"tools", BOTH, CUSTOM, 0, 0, 0, srv_parse_tools},
    {"chat_template_kwargs", BOTH, CUSTOM, 0, 0, 0, srv_parse_variables},
    {"add_generation_prompt", BOTH, BOOL, AT(conversation.add_generation_prompt), 0, 0, NULL},
};

/* `apis` is CHAT where only a conversation makes sense. */
static bool parse_text_request(const char *body, size_t length, unsigned apis, srv_text_request *out,
                               srv_api_error *error) {
    srv_text_request request = {.add_special = true, .parse_special = true};
    request.conversation.add_generation_prompt = true;
    srv_parser parser = {.out = &request, .conversation = &request.conversation, .error = error};
    cJSON *root = parse_body(&parser, body, length);
    bool ok = root && set_fields(&parser, root, text_fields, sizeof text_fields / sizeof *text_fields, apis);
    cJSON_Delete(root);
    if (ok && parser.has_text == parser.has_messages)
        ok = apis == CHAT ? srv_refuse(error, "messages", "messages is missing.")
                          : srv_refuse(error, "content", "give either content (or prompt) or messages.");
    if (ok) *out = request;
    else srv_text_request_free(&request);
    return ok;
}

bool srv_parse_tokenize(const char *body, size_t length, srv_text_request *out, srv_api_error *error) {
    return parse_text_request(body, length, BOTH, out, error);
}

bool srv_parse_apply_template(const char *body, size_t length, srv_text_request *out, srv_api_error *error) {
    return parse_text_request(body, length, CHAT, out, error);
}

void srv_text_request_free(srv_text_request *request) {
    bis_free(request->model);
    bis_free(request->text);
    srv_conversation_free(&request->conversation);
    *request = (srv_text_request){0};
}

static bool set_tokens(srv_parser *parser, const char *name, const cJSON *value) {
    if (!cJSON_IsArray(value)) return srv_refuse(parser->error, name, "tokens must be an array of token ids.");
    parser->has_prompt = true;
    return read_ids(parser, name, value, &((srv_detokenize *)parser->out)->ids);
}

#undef AT
#define AT(member) offsetof(srv_detokenize, member)

static const field detokenize_fields[] = {
    {"model", BOTH, TEXT, AT(model), 0, 0, NULL},
    {"tokens", BOTH, CUSTOM, 0, 0, 0, set_tokens},
    {"skip_special_tokens", BOTH, BOOL, AT(skip_special_tokens), 0, 0, NULL},
};

bool srv_parse_detokenize(const char *body, size_t length, srv_detokenize *out, srv_api_error *error) {
    srv_detokenize request = {0};
    srv_parser parser = {.out = &request, .error = error};
    cJSON *root = parse_body(&parser, body, length);
    bool ok = root &&
              set_fields(&parser, root, detokenize_fields, sizeof detokenize_fields / sizeof *detokenize_fields, BOTH);
    cJSON_Delete(root);
    if (ok && !parser.has_prompt) ok = srv_refuse(error, "tokens", "tokens is missing.");
    if (ok) *out = request;
    else srv_detokenize_free(&request);
    return ok;
}

void srv_detokenize_free(srv_detokenize *request) {
    bis_free(request->model);
    rt_tokens_free(&request->ids);
    *request = (srv_detokenize){0};
}
