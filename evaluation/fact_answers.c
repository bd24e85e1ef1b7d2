#include "evaluation/fact_answers.h"

#include <string.h>

#include "common/alloc.h"

/* How many more tokens than the expected answer has are waited for: a longer answer is wrong, but the same text may be
 * written in other tokens. */
enum { SPARE_TOKENS = 16 };

static void append_message(bis_buf *out, const char *role, const char *content, bool more) {
    bis_buf_printf(out, "{\"role\":\"%s\",\"content\":", role);
    bis_buf_json_string(out, content, strlen(content));
    bis_buf_puts(out, more ? "}," : "}");
}

/* The chat's text, and how many of its first bytes are the system prompt. */
static bis_status render(const rt_engine *engine, const ev_fact *fact, bis_buf *out, size_t *system_end,
                         bis_error *error) {
    bis_buf messages = {0};
    bis_buf_putc(&messages, '[');
    if (fact->system) append_message(&messages, "system", fact->system, true);
    append_message(&messages, "user", fact->question, false);
    bis_buf_putc(&messages, ']');
    rt_chat_input input = {.messages_json = bis_buf_cstr(&messages), .add_generation_prompt = true};
    bis_status status = messages.failed ? bis_fail(error, BIS_ERR_NOMEM, "no memory for the messages")
                                        : rt_chat_render(rt_engine_chat(engine), &input, out, system_end, error);
    bis_buf_free(&messages);
    return status;
}

/* ids of the chat, and how many of them lie wholly in the system prompt: those it shares with that text alone. */
static bis_status encode(const rt_engine *engine, const ev_fact *fact, rt_tokens *ids, size_t *system_count,
                         bis_error *error) {
    const rt_tokenizer *tokenizer = rt_engine_tokenizer(engine);
    bis_buf text = {0};
    rt_tokens head = {0};
    size_t system_end = 0, count = 0;
    bis_status status = render(engine, fact, &text, &system_end, error);
    if (!status) {
        status = rt_tokenizer_encode(tokenizer, bis_buf_cstr(&text), text.length, RT_ENCODE_PARSE_SPECIAL, ids, error);
    }
    if (!status) {
        status = rt_tokenizer_encode(tokenizer, bis_buf_cstr(&text), system_end, RT_ENCODE_PARSE_SPECIAL, &head, error);
    }
    while (!status && count < head.count && count < ids->count && head.ids[count] == ids->ids[count]) count++;
    *system_count = count;
    rt_tokens_free(&head);
    bis_buf_free(&text);
    return status;
}

static bis_status submit(rt_engine *engine, const ev_fact *fact, bool span, rt_request **out, bis_error *error) {
    rt_tokens ids = {0}, answer = {0};
    rt_request_params params = rt_request_default_params();
    size_t system_count = 0;
    bis_status status = encode(engine, fact, &ids, &system_count, error);
    if (!status) {
        status =
            rt_tokenizer_encode(rt_engine_tokenizer(engine), fact->answer, strlen(fact->answer), 0, &answer, error);
    }
    if (!status) {
        rt_engine_info info;
        rt_engine_get_info(engine, &info);
        size_t room = ids.count < (size_t)info.max_context ? (size_t)info.max_context - ids.count : 0;
        size_t wanted = answer.count + SPARE_TOKENS;
        params.prompt = ids.ids;
        params.prompt_count = ids.count;
        params.system_count = span ? system_count : 0;
        params.max_tokens = (int)(wanted < room || !room ? wanted : room);
        params.sampling.temperature = 0;
        status = rt_engine_submit(engine, &params, NULL, NULL, out, error);
    }
    rt_tokens_free(&ids);
    rt_tokens_free(&answer);
    return status;
}

static bis_status take_answer(rt_request *request, const ev_fact *fact, bool *exact, bis_error *error) {
    bis_buf text = {0};
    static rt_event event; /* large; one thread */
    while (rt_request_wait(request, &event)) {
        bis_buf_append(&text, event.text, event.text_length);
        if (event.kind == RT_EVENT_DONE) break;
    }
    bis_status status = BIS_OK;
    if (event.finish == RT_FINISH_ERROR) status = bis_fail(error, event.error.status, "%s", event.error.text);
    else if (text.failed) status = bis_fail(error, BIS_ERR_NOMEM, "no memory for an answer");
    *exact = text.length == strlen(fact->answer) && !memcmp(bis_buf_cstr(&text), fact->answer, text.length);
    bis_buf_free(&text);
    return status;
}

bis_status ev_facts_run(rt_engine *engine, const ev_facts *facts, bool span, size_t *exact, bis_progress *progress,
                        size_t progress_base, bis_error *error) {
    if (!rt_engine_chat(engine)) {
        return bis_fail(error, BIS_ERR_UNSUPPORTED, "the model has no chat template: facts are asked in chats");
    }
    rt_request *requests[EV_FACTS_IN_FLIGHT] = {0};
    size_t submitted = 0, taken = 0, right = 0;
    bis_status status = BIS_OK;
    while (taken < facts->count && !status) {
        while (submitted < facts->count && submitted - taken < EV_FACTS_IN_FLIGHT && !status) {
            status = submit(engine, &facts->items[submitted], span, &requests[submitted % EV_FACTS_IN_FLIGHT], error);
            if (status) bis_fail_within(error, "question %zu", submitted + 1);
            else submitted++;
        }
        if (status) break;
        bool same = false;
        rt_request **request = &requests[taken % EV_FACTS_IN_FLIGHT];
        status = take_answer(*request, &facts->items[taken], &same, error);
        rt_request_release(*request);
        *request = NULL;
        taken++;
        right += same;
        if (progress) bis_progress_update(progress, progress_base + taken);
    }
    for (int i = 0; i < EV_FACTS_IN_FLIGHT; i++) rt_request_release(requests[i]);
    if (!status) *exact = right;
    return status;
}
