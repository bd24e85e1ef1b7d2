/* A model's own chat template: messages in, prompt text out, exactly as transformers renders it.
 *
 * The template comes from chat_template.jinja, else from "chat_template" in tokenizer_config.json
 * (a string, or a list of named templates: "default", and "tool_use" when tools are given).
 * It runs in a sandboxed Jinja interpreter (jinja.h) with bounded steps and output.
 * Immutable after opening: rt_chat_render may be called from any thread.
 */
#ifndef BISUP_RUNTIME_CHAT_H
#define BISUP_RUNTIME_CHAT_H

#include <stdbool.h>
#include <stddef.h>

#include "common/buf.h"
#include "common/status.h"
#include "runtime/tokenizer/tokenizer.h"

typedef struct rt_chat rt_chat;

/* *out is NULL with BIS_OK when the model has no template. `tokenizer` gives bos_token and eos_token; it is
 * not kept. BIS_ERR_FORMAT for a broken template or tokenizer_config.json. */
bis_status rt_chat_open(const char *folder, const rt_tokenizer *tokenizer, rt_chat **out, bis_error *error);
/* The same from the template's text; `name` appears in errors. */
bis_status rt_chat_open_text(const char *name, const char *template_text, const char *bos_text, const char *eos_text,
                             rt_chat **out, bis_error *error);
void rt_chat_close(rt_chat *chat); /* NULL is allowed */

typedef struct rt_chat_input {
    const char *messages_json;  /* array of message objects, as the template sees them */
    const char *tools_json;     /* array, or NULL */
    const char *variables_json; /* object: further template variables (chat_template_kwargs), or NULL */
    bool add_generation_prompt;
} rt_chat_input;

/* Appends the rendered text to *out. *system_end (may be NULL) is the length of the part at the start of
 * this text that depends only on the system messages, the tools and the variables, never on what a user or
 * the assistant said: the system prompt, which all users of an application share. It is found by
 * rendering the conversation with other user and assistant texts and comparing.
 * BIS_ERR_INVALID carries what the template itself raised (raise_exception), or bad input JSON;
 * BIS_ERR_LIMIT a template that runs or writes without end. */
bis_status rt_chat_render(const rt_chat *chat, const rt_chat_input *input, bis_buf *out, size_t *system_end,
                          bis_error *error);

const char *rt_chat_template_text(const rt_chat *chat);

#endif
