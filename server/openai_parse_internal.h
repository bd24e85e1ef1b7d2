/* Shared by the files that parse requests of the OpenAI API; the field machinery of openai_parse.c. */
#ifndef BISUP_SERVER_OPENAI_PARSE_INTERNAL_H
#define BISUP_SERVER_OPENAI_PARSE_INTERNAL_H

#include <cjson/cJSON.h>

#include "server/json_check.h"
#include "server/openai_parse.h"

enum { SLICE_TOOLS, SLICE_VARIABLES, SLICE_COUNT };

typedef struct srv_parser {
    void *out;                      /* the struct being filled */
    srv_generate *generate;         /* the same, or NULL for other bodies */
    srv_conversation *conversation; /* NULL where there is none */
    srv_json_slice slices[SLICE_COUNT];
    bool has_messages, has_text, has_prompt, hide_tools;
    bool wants_logprobs;
    int top_logprobs, best_of; /* -1: not given */
    srv_api_error *error;
} srv_parser;

typedef bool (*srv_field_fn)(srv_parser *parser, const char *name, const cJSON *value);

bool srv_parse_messages(srv_parser *parser, const char *name, const cJSON *value);
bool srv_parse_tools(srv_parser *parser, const char *name, const cJSON *value);
bool srv_parse_tool_choice(srv_parser *parser, const char *name, const cJSON *value);
bool srv_parse_variables(srv_parser *parser, const char *name, const cJSON *value);
void srv_conversation_free(srv_conversation *conversation);

/* A whole number in [least, most]; false for anything else. */
bool srv_json_whole(const cJSON *value, double least, double most, int64_t *out);

#endif
