/* bisup generate: one answer, on standard output as it comes, or as a JSON object. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"

/* The ids that lie wholly in the first `end` bytes of the prompt's text: those it shares with these bytes alone. */
static bis_status count_system(const rt_tokenizer *tokenizer, const char *text, size_t end, const rt_tokens *tokens,
                               size_t *count, bis_error *error) {
    rt_tokens head = {0};
    size_t same = 0;
    bis_status status = rt_tokenizer_encode(tokenizer, text, end, RT_ENCODE_PARSE_SPECIAL, &head, error);
    while (!status && same < head.count && same < tokens->count && head.ids[same] == tokens->ids[same]) same++;
    if (!status) *count = same;
    rt_tokens_free(&head);
    return status;
}

/* The prompt's ids: the text itself with the tokens its model expects around it, or the rendered chat; of these, the
 * first *system_count are the system prompt. */
static bis_status make_prompt(const rt_engine *engine, const cfg_options *options, rt_tokens *tokens,
                              size_t *system_count, bis_error *error) {
    const rt_tokenizer *tokenizer = rt_engine_tokenizer(engine);
    if (!options->chat) {
        return rt_tokenizer_encode(tokenizer, options->prompt, strlen(options->prompt), RT_ENCODE_ADD_SPECIAL, tokens,
                                   error);
    }
    const rt_chat *chat = rt_engine_chat(engine);
    if (!chat) {
        return bis_fail(error, BIS_ERR_UNSUPPORTED, "%s has no chat template: leave out --chat to continue a text",
                        options->model);
    }
    bis_buf messages = {0}, text = {0};
    bis_buf_putc(&messages, '[');
    if (options->system) {
        bis_buf_puts(&messages, "{\"role\":\"system\",\"content\":");
        bis_buf_json_string(&messages, options->system, strlen(options->system));
        bis_buf_puts(&messages, "},");
    }
    bis_buf_puts(&messages, "{\"role\":\"user\",\"content\":");
    bis_buf_json_string(&messages, options->prompt, strlen(options->prompt));
    bis_buf_puts(&messages, "}]");
    rt_chat_input input = {.messages_json = bis_buf_cstr(&messages), .add_generation_prompt = true};
    bis_status status = messages.failed ? bis_fail(error, BIS_ERR_NOMEM, "no memory for the messages") : BIS_OK;
    size_t system_end = 0;
    if (!status) status = rt_chat_render(chat, &input, &text, &system_end, error);
    if (!status) {
        status =
            rt_tokenizer_encode(tokenizer, bis_buf_cstr(&text), text.length, RT_ENCODE_PARSE_SPECIAL, tokens, error);
    }
    if (!status && system_end) {
        status = count_system(tokenizer, bis_buf_cstr(&text), system_end, tokens, system_count, error);
    }
    bis_buf_free(&messages);
    bis_buf_free(&text);
    return status;
}

static rt_request_params make_params(const cfg_options *options, const rt_tokens *prompt) {
    rt_request_params params = rt_request_default_params();
    params.prompt = prompt->ids;
    params.prompt_count = prompt->count;
    params.max_tokens = options->max_tokens;
    params.sampling.temperature = (float)options->temperature;
    params.sampling.top_p = (float)options->top_p;
    params.sampling.top_k = options->top_k;
    params.sampling.min_p = (float)options->min_p;
    params.sampling.seed = options->seed;
    params.stop = options->stop.values;
    params.stop_count = (size_t)options->stop.count;
    return params;
}

static const char *finish_name(rt_finish finish) { return finish == RT_FINISH_STOP ? "stop" : "length"; }

typedef struct generated {
    bis_buf text, ids;
    rt_event last;
} generated;

/* Takes all events; with `stream` the text goes to standard output at once. */
static bis_status collect(rt_request *request, bool stream, generated *answer, bis_error *error) {
    rt_event *event = &answer->last;
    while (rt_request_wait(request, event)) {
        bis_buf_append(&answer->text, event->text, event->text_length);
        if (stream) {
            fwrite(event->text, 1, event->text_length, stdout);
            fflush(stdout);
        }
        if (event->kind == RT_EVENT_TOKEN) {
            bis_buf_printf(&answer->ids, "%s%d", answer->ids.length ? "," : "", event->token);
        }
        if (event->kind == RT_EVENT_DONE) break;
    }
    if (event->finish == RT_FINISH_ERROR) return bis_fail(error, event->error.status, "%s", event->error.text);
    if (answer->text.failed || answer->ids.failed) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the answer");
    return BIS_OK;
}

static int print_answer(generated *answer) {
    bis_buf out = {0};
    bis_buf_puts(&out, "{\"text\":");
    bis_buf_json_string(&out, bis_buf_cstr(&answer->text), answer->text.length);
    bis_buf_printf(&out, ",\"tokens\":[%s],\"finish_reason\":\"%s\",\"prompt_tokens\":%d,\"completion_tokens\":%d}\n",
                   bis_buf_cstr(&answer->ids), finish_name(answer->last.finish), answer->last.prompt_tokens,
                   answer->last.completion_tokens);
    return cli_print(&out);
}

static bis_status generate(rt_engine *engine, const cfg_options *options, generated *answer, bis_error *error) {
    rt_tokens prompt = {0};
    rt_request *request = NULL;
    size_t system_count = 0;
    bis_status status = make_prompt(engine, options, &prompt, &system_count, error);
    if (!status) {
        rt_request_params params = make_params(options, &prompt);
        params.system_count = system_count;
        status = rt_engine_submit(engine, &params, NULL, NULL, &request, error);
    }
    if (!status) status = collect(request, !options->json, answer, error);
    rt_request_release(request);
    rt_tokens_free(&prompt);
    return status;
}

int cli_generate(const cfg_options *options) {
    bis_error error = {0};
    rt_engine *engine;
    rt_engine_options engine_options = cli_engine_options(options);
    engine_options.max_batch = 1;
    if (rt_engine_open(&engine_options, &engine, &error)) return cli_fail(&error);
    static generated result;
    bis_status status = generate(engine, options, &result, &error);
    int exit_status = 0;
    if (status) exit_status = cli_fail(&error);
    else if (options->json) exit_status = print_answer(&result);
    else putchar('\n');
    bis_buf_free(&result.text);
    bis_buf_free(&result.ids);
    rt_engine_close(engine);
    return exit_status;
}
