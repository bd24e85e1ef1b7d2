/* Answers of the OpenAI API: structs to JSON bytes.
 *
 * Pure functions, any thread. All append to a bis_buf, whose `failed` tells at the end whether memory
 * sufficed. Texts must be valid UTF-8 (token bytes need not be: they are shown with U+FFFD and in full as
 * numbers).
 */
#ifndef BISUP_SERVER_OPENAI_RENDER_H
#define BISUP_SERVER_OPENAI_RENDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "runtime/engine.h"
#include "server/openai_parse.h"

/* {"error":{...}} */
void srv_render_error(bis_buf *out, const srv_api_error *error);

typedef struct srv_model_card {
    const char *name;
    int64_t created;
    int max_context;
} srv_model_card;

void srv_render_model(bis_buf *out, const srv_model_card *model);
void srv_render_models(bis_buf *out, const srv_model_card *model);

/* One token with its log-probability and alternatives. */
typedef struct srv_token_record {
    int32_t token;
    bool known; /* the first token of a text has no log-probability */
    float logprob;
    int top_count;
    rt_logprob top[RT_LOGPROBS_MAX];
} srv_token_record;

typedef struct srv_token_records {
    srv_token_record *items;
    size_t count, capacity;
    size_t characters; /* of the tokens rendered so far: where the next text_offset begins */
} srv_token_records;

/* Raw bytes of a token, as rt_tokenizer_token_bytes gives them. */
typedef struct srv_token_reader {
    size_t (*bytes)(const void *user, int32_t id, char out[RT_TOKEN_TEXT_MAX]);
    const void *user;
} srv_token_reader;

/* What all chunks and answers of a request share. */
typedef struct srv_answer_head {
    srv_api api;
    const char *id, *model, *fingerprint;
    int64_t created;
    const srv_token_reader *reader;
} srv_answer_head;

typedef struct srv_usage {
    int prompt_tokens, completion_tokens, cached_tokens;
} srv_usage;

typedef struct srv_answer_choice {
    const char *text;
    size_t length;
    rt_finish finish;           /* RT_FINISH_NONE while a stream goes on */
    srv_token_records *records; /* NULL without log-probabilities */
} srv_answer_choice;

/* A whole chat.completion or text_completion, choices in order of their index. */
void srv_render_answer(bis_buf *out, const srv_answer_head *head, const srv_answer_choice *choices, size_t count,
                       const srv_usage *usage);

/* One piece of a stream, as a server-sent event: "data: {...}\n\n".
 * `first`: the delta carries the role. `null_usage`: the client asked for usage, which comes in the end. */
void srv_render_chunk(bis_buf *out, const srv_answer_head *head, size_t index, const srv_answer_choice *choice,
                      bool first, bool null_usage);
/* The piece with no choices and the usage. */
void srv_render_usage_chunk(bis_buf *out, const srv_answer_head *head, const srv_usage *usage);
/* An error in the middle of a stream, as an event. */
void srv_render_error_event(bis_buf *out, const srv_api_error *error);

void srv_render_tokens(bis_buf *out, const rt_tokens *tokens, int max_context);
/* {"<first>": text} or, with a second name, both. */
void srv_render_text(bis_buf *out, const char *first, const char *second, const char *text, size_t length);

#endif
