#include "server/openai_render.h"

#include <math.h>
#include <string.h>

#include "common/utf8.h"

/* JSON has no infinity; this is what the API's other servers write for it. */
static const double LOGPROB_LEAST = -9999.0;

static void put_string(bis_buf *out, const char *text) { bis_buf_json_string(out, text, strlen(text)); }

static void put_string_or_null(bis_buf *out, const char *text) {
    if (text && *text) put_string(out, text);
    else bis_buf_puts(out, "null");
}

static void put_logprob(bis_buf *out, float logprob) {
    bis_buf_printf(out, "%.7g", isnan(logprob) || logprob < LOGPROB_LEAST ? LOGPROB_LEAST : (double)logprob);
}

void srv_render_error(bis_buf *out, const srv_api_error *error) {
    bis_buf_puts(out, "{\"error\":{\"message\":");
    put_string(out, error->message);
    bis_buf_puts(out, ",\"type\":");
    put_string(out, error->type);
    bis_buf_puts(out, ",\"param\":");
    put_string_or_null(out, error->param);
    bis_buf_puts(out, ",\"code\":");
    put_string_or_null(out, error->code);
    bis_buf_puts(out, "}}");
}

void srv_render_error_event(bis_buf *out, const srv_api_error *error) {
    bis_buf_puts(out, "data: ");
    srv_render_error(out, error);
    bis_buf_puts(out, "\n\n");
}

void srv_render_model(bis_buf *out, const srv_model_card *model) {
    bis_buf_puts(out, "{\"id\":");
    put_string(out, model->name);
    bis_buf_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"bisup\",\"max_model_len\":%d}",
                   (long long)model->created, model->max_context);
}

void srv_render_models(bis_buf *out, const srv_model_card *model) {
    bis_buf_puts(out, "{\"object\":\"list\",\"data\":[");
    srv_render_model(out, model);
    bis_buf_puts(out, "]}");
}

/* ---- Log-probabilities ------------------------------------------------------------------------- */

static void put_chat_token(bis_buf *out, const srv_token_reader *reader, int32_t id, float logprob) {
    char bytes[RT_TOKEN_TEXT_MAX];
    size_t length = reader->bytes(reader->user, id, bytes);
    bis_buf_puts(out, "{\"token\":");
    bis_buf_json_string(out, bytes, length);
    bis_buf_puts(out, ",\"logprob\":");
    put_logprob(out, logprob);
    bis_buf_puts(out, ",\"bytes\":[");
    for (size_t i = 0; i < length; i++) bis_buf_printf(out, i ? ",%u" : "%u", (unsigned char)bytes[i]);
    bis_buf_putc(out, ']');
}

static void put_chat_logprobs(bis_buf *out, const srv_token_reader *reader, const srv_token_records *records) {
    bis_buf_puts(out, "{\"content\":[");
    for (size_t i = 0; i < records->count; i++) {
        const srv_token_record *record = &records->items[i];
        if (i) bis_buf_putc(out, ',');
        put_chat_token(out, reader, record->token, record->logprob);
        bis_buf_puts(out, ",\"top_logprobs\":[");
        for (int k = 0; k < record->top_count; k++) {
            if (k) bis_buf_putc(out, ',');
            put_chat_token(out, reader, record->top[k].token, record->top[k].logprob);
            bis_buf_putc(out, '}');
        }
        bis_buf_puts(out, "]}");
    }
    bis_buf_puts(out, "],\"refusal\":null}");
}

/* A token's text; tokens that are not whole characters read "bytes:\xe2\x80", so that keys stay different. */
static void put_token_text(bis_buf *out, const srv_token_reader *reader, int32_t id) {
    char bytes[RT_TOKEN_TEXT_MAX];
    size_t length = reader->bytes(reader->user, id, bytes);
    if (bis_utf8_valid(bytes, length)) {
        bis_buf_json_string(out, bytes, length);
        return;
    }
    bis_buf_puts(out, "\"bytes:");
    for (size_t i = 0; i < length; i++) bis_buf_printf(out, "\\\\x%02x", (unsigned char)bytes[i]);
    bis_buf_putc(out, '"');
}

/* Characters that begin in a token. */
static size_t count_characters(const srv_token_reader *reader, int32_t id) {
    char bytes[RT_TOKEN_TEXT_MAX];
    size_t length = reader->bytes(reader->user, id, bytes), count = 0;
    for (size_t i = 0; i < length; i++) count += ((unsigned char)bytes[i] & 0xC0) != 0x80;
    return count;
}

static void put_top_map(bis_buf *out, const srv_token_reader *reader, const srv_token_record *record) {
    if (!record->known) {
        bis_buf_puts(out, "null");
        return;
    }
    bis_buf_putc(out, '{');
    for (int k = 0; k < record->top_count; k++) {
        if (k) bis_buf_putc(out, ',');
        put_token_text(out, reader, record->top[k].token);
        bis_buf_putc(out, ':');
        put_logprob(out, record->top[k].logprob);
    }
    bis_buf_putc(out, '}');
}

static void put_completion_logprobs(bis_buf *out, const srv_token_reader *reader, srv_token_records *records) {
    bis_buf_puts(out, "{\"tokens\":[");
    for (size_t i = 0; i < records->count; i++) {
        if (i) bis_buf_putc(out, ',');
        put_token_text(out, reader, records->items[i].token);
    }
    bis_buf_puts(out, "],\"token_logprobs\":[");
    for (size_t i = 0; i < records->count; i++) {
        if (i) bis_buf_putc(out, ',');
        if (records->items[i].known) put_logprob(out, records->items[i].logprob);
        else bis_buf_puts(out, "null");
    }
    bis_buf_puts(out, "],\"top_logprobs\":[");
    for (size_t i = 0; i < records->count; i++) {
        if (i) bis_buf_putc(out, ',');
        put_top_map(out, reader, &records->items[i]);
    }
    bis_buf_puts(out, "],\"text_offset\":[");
    for (size_t i = 0; i < records->count; i++) {
        bis_buf_printf(out, i ? ",%zu" : "%zu", records->characters);
        records->characters += count_characters(reader, records->items[i].token);
    }
    bis_buf_puts(out, "]}");
}

static void put_logprobs(bis_buf *out, const srv_answer_head *head, const srv_answer_choice *choice) {
    bis_buf_puts(out, ",\"logprobs\":");
    if (!choice->records) bis_buf_puts(out, "null");
    else if (head->api == SRV_API_CHAT) put_chat_logprobs(out, head->reader, choice->records);
    else put_completion_logprobs(out, head->reader, choice->records);
}

/* ---- Answers ----------------------------------------------------------------------------------- */

static void put_finish(bis_buf *out, rt_finish finish) {
    bis_buf_puts(out, finish == RT_FINISH_NONE     ? ",\"finish_reason\":null"
                      : finish == RT_FINISH_LENGTH ? ",\"finish_reason\":\"length\""
                                                   : ",\"finish_reason\":\"stop\"");
}

static void put_head(bis_buf *out, const srv_answer_head *head, const char *object) {
    bis_buf_puts(out, "{\"id\":");
    put_string(out, head->id);
    bis_buf_printf(out, ",\"object\":\"%s\",\"created\":%lld,\"model\":", object, (long long)head->created);
    put_string(out, head->model);
    bis_buf_puts(out, ",\"system_fingerprint\":");
    put_string(out, head->fingerprint);
    bis_buf_puts(out, ",\"choices\":[");
}

static void put_usage(bis_buf *out, const srv_usage *usage) {
    bis_buf_printf(out,
                   ",\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d,"
                   "\"prompt_tokens_details\":{\"cached_tokens\":%d},"
                   "\"completion_tokens_details\":{\"reasoning_tokens\":0}}",
                   usage->prompt_tokens, usage->completion_tokens, usage->prompt_tokens + usage->completion_tokens,
                   usage->cached_tokens);
}

void srv_render_answer(bis_buf *out, const srv_answer_head *head, const srv_answer_choice *choices, size_t count,
                       const srv_usage *usage) {
    bool chat = head->api == SRV_API_CHAT;
    put_head(out, head, chat ? "chat.completion" : "text_completion");
    for (size_t i = 0; i < count; i++) {
        bis_buf_printf(out, i ? ",{\"index\":%zu," : "{\"index\":%zu,", i);
        bis_buf_puts(out, chat ? "\"message\":{\"role\":\"assistant\",\"content\":" : "\"text\":");
        bis_buf_json_string(out, choices[i].text, choices[i].length);
        if (chat) bis_buf_puts(out, ",\"refusal\":null}");
        put_logprobs(out, head, &choices[i]);
        put_finish(out, choices[i].finish);
        bis_buf_putc(out, '}');
    }
    bis_buf_putc(out, ']');
    put_usage(out, usage);
    bis_buf_putc(out, '}');
}

static void put_delta(bis_buf *out, const srv_answer_choice *choice, bool first) {
    bis_buf_puts(out, ",\"delta\":{");
    if (first) bis_buf_puts(out, "\"role\":\"assistant\"");
    if (first || choice->length) {
        bis_buf_puts(out, first ? ",\"content\":" : "\"content\":");
        bis_buf_json_string(out, choice->text, choice->length);
    }
    bis_buf_putc(out, '}');
}

void srv_render_chunk(bis_buf *out, const srv_answer_head *head, size_t index, const srv_answer_choice *choice,
                      bool first, bool null_usage) {
    bool chat = head->api == SRV_API_CHAT;
    bis_buf_puts(out, "data: ");
    put_head(out, head, chat ? "chat.completion.chunk" : "text_completion");
    bis_buf_printf(out, "{\"index\":%zu", index);
    if (chat) {
        put_delta(out, choice, first);
    } else {
        bis_buf_puts(out, ",\"text\":");
        bis_buf_json_string(out, choice->text, choice->length);
    }
    put_logprobs(out, head, choice);
    put_finish(out, choice->finish);
    bis_buf_puts(out, null_usage ? "}],\"usage\":null}\n\n" : "}]}\n\n");
}

void srv_render_usage_chunk(bis_buf *out, const srv_answer_head *head, const srv_usage *usage) {
    bis_buf_puts(out, "data: ");
    put_head(out, head, head->api == SRV_API_CHAT ? "chat.completion.chunk" : "text_completion");
    bis_buf_putc(out, ']');
    put_usage(out, usage);
    bis_buf_puts(out, "}\n\n");
}

void srv_render_tokens(bis_buf *out, const rt_tokens *tokens, int max_context) {
    bis_buf_puts(out, "{\"tokens\":[");
    for (size_t i = 0; i < tokens->count; i++) bis_buf_printf(out, i ? ",%d" : "%d", tokens->ids[i]);
    bis_buf_printf(out, "],\"count\":%zu,\"max_model_len\":%d}", tokens->count, max_context);
}

void srv_render_text(bis_buf *out, const char *first, const char *second, const char *text, size_t length) {
    bis_buf_printf(out, "{\"%s\":", first);
    bis_buf_json_string(out, text, length);
    if (second) {
        bis_buf_printf(out, ",\"%s\":", second);
        bis_buf_json_string(out, text, length);
    }
    bis_buf_putc(out, '}');
}
