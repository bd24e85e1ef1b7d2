/* Requests of the OpenAI API: JSON bytes to structs, with every field checked.
 *
 * Pure functions, any thread. Unknown fields are ignored, as OpenAI's clients expect; a known field with
 * a wrong type or value is refused with its name, and so is one that is given twice. null means absent.
 * Nothing here knows the model: ids, lengths and names that depend on it are checked later.
 */
#ifndef BISUP_SERVER_OPENAI_PARSE_H
#define BISUP_SERVER_OPENAI_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"
#include "runtime/engine.h"

enum {
    SRV_N_MAX = 128,
    SRV_PROMPTS_MAX = 256,
    SRV_CHOICES_MAX = 1024, /* prompts times n */
    SRV_MESSAGES_MAX = 4096,
    SRV_TOOLS_MAX = 128
};

/* What went wrong with a request, as a client sees it. */
typedef struct srv_api_error {
    int status;              /* HTTP */
    const char *type, *code; /* static; code may be NULL */
    char param[64];          /* the field; "" for none */
    char message[BIS_ERROR_TEXT_MAX];
} srv_api_error;

/* Fills *error (status 400, invalid_request_error); returns false. param may be NULL. */
bool srv_refuse(srv_api_error *error, const char *param, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The same for memory that ran out: status 503. */
bool srv_refuse_memory(srv_api_error *error);

/* The input of a chat template, as JSON texts. */
typedef struct srv_conversation {
    char *messages;  /* normalised: plain text contents, "developer" is "system" */
    char *tools;     /* NULL without tools, or when tool_choice is "none" */
    char *variables; /* chat_template_kwargs or NULL */
    bool add_generation_prompt;
} srv_conversation;

/* A prompt of /v1/completions: text, or ids when text is NULL. */
typedef struct srv_prompt {
    char *text;
    rt_tokens ids;
} srv_prompt;

typedef enum srv_api { SRV_API_CHAT, SRV_API_COMPLETION } srv_api;

typedef struct srv_generate {
    srv_api api;
    char *model;                   /* NULL when not given */
    srv_conversation conversation; /* chat */
    srv_prompt *prompts;           /* completion */
    size_t prompt_count;
    int n;
    bool stream, include_usage, echo;
    int max_tokens;       /* -1: until the context is full */
    rt_sampling sampling; /* logit_bias points to memory owned by this struct */
    bool has_seed;
    char *stop[RT_STOP_STRINGS_MAX];
    size_t stop_count;
    int32_t stop_tokens[RT_STOP_TOKENS_MAX];
    size_t stop_token_count;
    bool ignore_eos, skip_special_tokens;
    int logprobs; /* -1: none */
} srv_generate;

/* Each returns true and fills *out, which is then freed with the function below it; or false and fills
 * *error, and *out needs no freeing. */
bool srv_parse_generate(const char *body, size_t length, srv_api api, srv_generate *out, srv_api_error *error);
void srv_generate_free(srv_generate *request);

/* Body of /tokenize and /apply-template: a text, or a conversation. */
typedef struct srv_text_request {
    char *model;
    char *text; /* NULL: the conversation counts */
    srv_conversation conversation;
    bool add_special, parse_special;
} srv_text_request;

bool srv_parse_tokenize(const char *body, size_t length, srv_text_request *out, srv_api_error *error);
bool srv_parse_apply_template(const char *body, size_t length, srv_text_request *out, srv_api_error *error);
void srv_text_request_free(srv_text_request *request);

/* Body of /detokenize. */
typedef struct srv_detokenize {
    char *model;
    rt_tokens ids;
    bool skip_special_tokens;
} srv_detokenize;

bool srv_parse_detokenize(const char *body, size_t length, srv_detokenize *out, srv_api_error *error);
void srv_detokenize_free(srv_detokenize *request);

#endif
