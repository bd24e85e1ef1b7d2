/* Generations: chat and text completions.
 *
 * prepare (worker): body -> parameters -> prompt text -> token ids.
 * proceed (loop):   one engine request for each choice, as many as the queue takes now.
 * events (loop):    collected into one answer, or written as a stream as they come.
 * A stream that its client does not read stops taking events; then the engine pauses the sequence.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "common/alloc.h"
#include "common/clock.h"
#include "server/job.h"

typedef struct generation generation;

typedef struct srv_choice {
    generation *owner;
    size_t index;
    rt_request *request;
    atomic_bool ready; /* in the context's list */
    struct srv_choice *next_ready;
    bool started, done; /* streams: the first piece was written; the finish reason is known */
    rt_finish finish;
    bis_buf text; /* of a whole answer; of a stream: what the next piece begins with */
    srv_token_records records;
} srv_choice;

struct generation {
    srv_job job; /* first: functions cast */
    srv_generate request;
    size_t system_count;
    char id[40];
    int64_t created;
    uint64_t seed;
    srv_choice *choices;
    size_t choice_count, submitted, done_count;
    srv_usage usage;
    uint64_t last_write_ns;
};

/* ---- Prepare: worker thread -------------------------------------------------------------------- */

static bool fits(const srv_context *context, const srv_generate *g, size_t count, srv_api_error *error) {
    size_t most = (size_t)context->info.max_context - (g->max_tokens == 0 ? 0 : 1);
    const char *what = g->api == SRV_API_CHAT ? "messages" : "prompt";
    if (count == 0) return srv_refuse(error, what, "%s gives no tokens: there is nothing to continue.", what);
    if (count <= most) return true;
    srv_refuse(error, what, "%s has %zu tokens, but this model's context of %d has room for %zu: shorten it.", what,
               count, context->info.max_context, most);
    error->code = "context_length_exceeded";
    return false;
}

static bool encode(const srv_context *context, const char *text, size_t length, unsigned flags, rt_tokens *out,
                   srv_api_error *error) {
    bis_error problem = {0};
    if (context->ops->encode(context->engine, text, length, flags, out, &problem) == BIS_OK) return true;
    srv_api_error_from(error, &problem);
    return false;
}

/* The tokens that lie wholly in the system prompt: those the prompt shares with its beginning alone. */
static bool count_system_tokens(generation *g, const char *text, size_t system_end, const rt_tokens *ids,
                                srv_api_error *error) {
    if (system_end == 0) return true;
    rt_tokens head = {0};
    bool ok = encode(g->job.context, text, system_end, RT_ENCODE_PARSE_SPECIAL, &head, error);
    while (ok && g->system_count < head.count && g->system_count < ids->count &&
           head.ids[g->system_count] == ids->ids[g->system_count])
        g->system_count++;
    rt_tokens_free(&head);
    return ok;
}

static bool prepare_chat(generation *g, srv_api_error *error) {
    const srv_context *context = g->job.context;
    g->request.prompts = bis_calloc(1, sizeof *g->request.prompts);
    if (!g->request.prompts) return srv_refuse_memory(error);
    g->request.prompt_count = 1;
    rt_tokens *ids = &g->request.prompts[0].ids;
    bis_buf text = {0};
    size_t system_end = 0;
    bool ok = srv_render_conversation(context, &g->request.conversation, &text, &system_end, error) &&
              encode(context, bis_buf_cstr(&text), text.length, RT_ENCODE_PARSE_SPECIAL, ids, error) &&
              fits(context, &g->request, ids->count, error) &&
              count_system_tokens(g, bis_buf_cstr(&text), system_end, ids, error);
    bis_buf_free(&text);
    return ok;
}

static bool prepare_prompt(generation *g, srv_prompt *prompt, srv_api_error *error) {
    const srv_context *context = g->job.context;
    if (prompt->text)
        return encode(context, prompt->text, strlen(prompt->text), RT_ENCODE_ADD_SPECIAL | RT_ENCODE_PARSE_SPECIAL,
                      &prompt->ids, error) &&
               fits(context, &g->request, prompt->ids.count, error);
    if (!fits(context, &g->request, prompt->ids.count, error)) return false;
    if (!g->request.echo) return true;
    bis_buf text = {0};
    bis_error problem = {0};
    if (context->ops->decode(context->engine, prompt->ids.ids, prompt->ids.count, g->request.skip_special_tokens, &text,
                             &problem) != BIS_OK) {
        bis_buf_free(&text);
        srv_api_error_from(error, &problem);
        return false;
    }
    prompt->text = text.data; /* NULL where all tokens are special: an empty echo */
    return true;
}

static bool prepare(srv_job *job) {
    generation *g = (generation *)job;
    srv_api api = g->request.api;
    if (!srv_parse_generate(bis_buf_cstr(&job->body), job->body.length, api, &g->request, &job->error)) return false;
    if (!srv_check_model(job->context, g->request.model, &job->error)) return false;
    if (api == SRV_API_CHAT) return prepare_chat(g, &job->error);
    for (size_t i = 0; i < g->request.prompt_count; i++)
        if (!prepare_prompt(g, &g->request.prompts[i], &job->error)) return false;
    return true;
}

/* ---- Writing ----------------------------------------------------------------------------------- */

static srv_answer_head answer_head(const generation *g) {
    const srv_context *context = g->job.context;
    return (srv_answer_head){.api = g->request.api,
                             .id = g->id,
                             .model = context->info.model_name,
                             .fingerprint = context->fingerprint,
                             .created = g->created,
                             .reader = &context->reader};
}

static void begin_stream(generation *g) {
    srv_exchange *exchange = g->job.exchange;
    if (exchange->streaming) return;
    srv_add_header(exchange, "Cache-Control", "no-cache");
    srv_add_header(exchange, "X-Accel-Buffering", "no"); /* proxies must not collect the pieces */
    srv_stream_begin(exchange, 200, "text/event-stream; charset=utf-8");
}

static void write_event(generation *g, bis_buf *event) {
    if (event->failed) srv_stream_abort(g->job.exchange);
    else srv_stream_write(g->job.exchange, event->data, event->length);
    g->last_write_ns = bis_now_ns();
    bis_buf_free(event);
}

static void write_piece(srv_choice *c, const char *text, size_t length, rt_finish finish) {
    generation *g = c->owner;
    begin_stream(g);
    srv_answer_head head = answer_head(g);
    bool with_records = g->request.logprobs >= 0 && c->records.count > 0;
    srv_answer_choice piece = {
        .text = text, .length = length, .finish = finish, .records = with_records ? &c->records : NULL};
    bis_buf event = {0};
    srv_render_chunk(&event, &head, c->index, &piece, !c->started, g->request.include_usage);
    c->started = true;
    c->records.count = 0;
    write_event(g, &event);
}

/* Writes what was collected, if that is anything a client can use. */
static void write_collected(srv_choice *c) {
    bool role_is_due = !c->started && c->owner->request.api == SRV_API_CHAT;
    if (c->text.length > 0 || c->records.count > 0 || role_is_due)
        write_piece(c, bis_buf_cstr(&c->text), c->text.length, RT_FINISH_NONE);
    bis_buf_clear(&c->text);
}

static void finish_stream(generation *g) {
    if (g->request.include_usage) {
        srv_answer_head head = answer_head(g);
        bis_buf event = {0};
        srv_render_usage_chunk(&event, &head, &g->usage);
        write_event(g, &event);
    }
    static const char end[] = "data: [DONE]\n\n";
    srv_stream_write(g->job.exchange, end, sizeof end - 1);
    srv_stream_end(g->job.exchange);
    srv_job_end(&g->job);
}

static void finish_answer(generation *g) {
    srv_answer_choice *list = bis_calloc(g->choice_count, sizeof *list);
    bis_buf body = {0};
    body.failed = !list;
    for (size_t i = 0; list && i < g->choice_count; i++) {
        srv_choice *c = &g->choices[i];
        list[i] = (srv_answer_choice){.text = bis_buf_cstr(&c->text),
                                      .length = c->text.length,
                                      .finish = c->finish,
                                      .records = g->request.logprobs >= 0 ? &c->records : NULL};
    }
    srv_answer_head head = answer_head(g);
    if (list) srv_render_answer(&body, &head, list, g->choice_count, &g->usage);
    bis_free(list);
    srv_reply_buf(g->job.exchange, 200, "application/json", &body);
    bis_buf_free(&body);
    srv_job_end(&g->job);
}

/* ---- Events ------------------------------------------------------------------------------------ */

static bool add_record(srv_token_records *records, const rt_event *event) {
    if (records->count == records->capacity) {
        size_t capacity = records->capacity ? records->capacity * 2 : 16;
        srv_token_record *items = bis_reallocarray(records->items, capacity, sizeof *items);
        if (!items) return false;
        records->items = items;
        records->capacity = capacity;
    }
    srv_token_record *record = &records->items[records->count++];
    *record = (srv_token_record){.token = event->token,
                                 .known = !isnan(event->logprob),
                                 .logprob = event->logprob,
                                 .top_count = event->top_count};
    memcpy(record->top, event->top, (size_t)event->top_count * sizeof *record->top);
    return true;
}

static void take_done(srv_choice *c, const rt_event *event) {
    generation *g = c->owner;
    c->done = true;
    c->finish = event->finish;
    g->done_count++;
    g->usage.completion_tokens += event->completion_tokens;
    if (c->index % (size_t)g->request.n == 0) { /* the others share its prompt */
        g->usage.prompt_tokens += event->prompt_tokens;
        g->usage.cached_tokens += event->cached_tokens;
    }
    if (g->request.stream) write_piece(c, "", 0, c->finish);
    g->job.context->ops->release(c->request);
    c->request = NULL;
}

/* Returns false when the event ended the job. */
static bool take_event(srv_choice *c, const rt_event *event) {
    generation *g = c->owner;
    bool failed =
        event->kind == RT_EVENT_DONE && (event->finish == RT_FINISH_ERROR || event->finish == RT_FINISH_CANCELLED);
    bis_error problem = event->error;
    if (failed && event->finish == RT_FINISH_CANCELLED)
        bis_fail(&problem, BIS_ERR_CANCELLED, "The request was ended by the server.");
    bool kept = bis_buf_append(&c->text, event->text, event->text_length) &&
                (event->kind == RT_EVENT_DONE || g->request.logprobs < 0 || add_record(&c->records, event));
    if (!failed && !kept) {
        bis_fail(&problem, BIS_ERR_NOMEM, "The server has no memory for this answer.");
        failed = true;
    }
    if (failed) {
        srv_api_error error;
        srv_api_error_from(&error, &problem);
        srv_job_fail(&g->job, &error);
        return false;
    }
    if (event->kind == RT_EVENT_PROMPT_TOKEN) return true; /* goes out with the first token */
    if (g->request.stream) write_collected(c);
    if (event->kind == RT_EVENT_TOKEN) g->job.exchange->log_tokens++;
    else take_done(c, event);
    return true;
}

static void submit_more(generation *g);

static void pump(srv_choice *c) {
    generation *g = c->owner;
    rt_event event;
    while (!g->job.ended && c->request && !srv_stream_full(g->job.exchange) &&
           g->job.context->ops->next(c->request, &event)) {
        if (!take_event(c, &event)) return;
    }
    if (g->job.ended || !c->done) return;
    if (g->submitted < g->choice_count) submit_more(g);
    else if (g->done_count == g->choice_count && g->request.stream) finish_stream(g);
    else if (g->done_count == g->choice_count) finish_answer(g);
}

/* ---- Engine thread ----------------------------------------------------------------------------- */

static void on_events(void *user) {
    srv_choice *c = user;
    if (atomic_exchange(&c->ready, true)) return;
    srv_job_ref(&c->owner->job);
    srv_context *context = c->owner->job.context;
    srv_choice *head = atomic_load(&context->ready);
    do c->next_ready = head;
    while (!atomic_compare_exchange_weak(&context->ready, &head, c));
    srv_loop_wake(context->loop);
}

/* ---- Loop thread ------------------------------------------------------------------------------- */

void srv_generations_pump(srv_context *context) {
    srv_choice *c = atomic_exchange(&context->ready, NULL), *in_order = NULL;
    while (c) { /* first come, first served */
        srv_choice *next = c->next_ready;
        c->next_ready = in_order;
        in_order = c;
        c = next;
    }
    while (in_order) {
        c = in_order;
        in_order = c->next_ready;
        atomic_store(&c->ready, false); /* from here on it may be pushed again */
        pump(c);
        srv_job_unref(&c->owner->job);
    }
}

static bis_status submit(generation *g, srv_choice *c, bis_error *error) {
    const srv_generate *r = &g->request;
    const srv_prompt *prompt = &r->prompts[c->index / (size_t)r->n];
    rt_request_params params = rt_request_default_params();
    params.prompt = prompt->ids.ids;
    params.prompt_count = prompt->ids.count;
    params.system_count = g->system_count;
    params.max_tokens = r->max_tokens;
    params.sampling = r->sampling;
    params.sampling.seed = g->seed + (r->has_seed ? c->index % (size_t)r->n : c->index);
    params.stop = (const char *const *)r->stop;
    params.stop_count = r->stop_count;
    params.stop_tokens = r->stop_tokens;
    params.stop_token_count = r->stop_token_count;
    params.ignore_eos = r->ignore_eos;
    params.keep_special = !r->skip_special_tokens;
    params.logprobs = r->logprobs;
    params.prompt_logprobs = r->echo && r->logprobs >= 0;
    const srv_context *context = g->job.context;
    return context->ops->submit(context->engine, &params, on_events, c, &c->request, error);
}

/* Submits choices until all are, or the engine has enough of this request or of all: then the rest waits for a
 * tick, or for the end of an earlier choice. A request that was given a slot is not refused any more. */
static void submit_more(generation *g) {
    size_t at_once = 2 * (size_t)g->job.context->info.max_batch; /* keeps it busy, and the queue open for others */
    while (g->submitted < g->choice_count && g->submitted - g->done_count < at_once) {
        bis_error problem = {0};
        bis_status status = submit(g, &g->choices[g->submitted], &problem);
        if (status == BIS_ERR_BUSY) return;
        if (status != BIS_OK) {
            srv_api_error error;
            srv_api_error_from(&error, &problem);
            srv_job_fail(&g->job, &error);
            return;
        }
        g->submitted++;
    }
}

static bool make_choices(generation *g) {
    size_t n = (size_t)g->request.n;
    g->choices = bis_calloc(g->request.prompt_count * n, sizeof *g->choices);
    if (!g->choices) return false;
    g->choice_count = g->request.prompt_count * n;
    bool ok = true;
    for (size_t i = 0; i < g->choice_count; i++) {
        srv_choice *c = &g->choices[i];
        c->owner = g;
        c->index = i;
        atomic_init(&c->ready, false);
        const char *prompt_text = g->request.prompts[i / n].text;
        if (g->request.echo && prompt_text) ok = bis_buf_puts(&c->text, prompt_text) && ok;
    }
    return ok;
}

static void proceed(srv_job *job) {
    generation *g = (generation *)job;
    srv_random_id(g->request.api == SRV_API_CHAT ? "chatcmpl-" : "cmpl-", g->id);
    g->created = (int64_t)time(NULL);
    g->last_write_ns = bis_now_ns();
    g->seed = g->request.sampling.seed;
    if (!g->request.has_seed && getrandom(&g->seed, sizeof g->seed, 0) != (ssize_t)sizeof g->seed)
        g->seed = bis_now_ns();
    if (!make_choices(g)) {
        srv_api_error error;
        srv_refuse_memory(&error);
        srv_job_fail(job, &error);
        return;
    }
    submit_more(g);
}

static void tick(srv_job *job) {
    generation *g = (generation *)job;
    if (!g->choices) return; /* not prepared yet */
    uint64_t silence = bis_now_ns() - g->last_write_ns;
    if (g->request.stream && silence > (uint64_t)job->context->options.ping_seconds * 1000000000u &&
        !srv_stream_full(job->exchange)) {
        begin_stream(g);
        static const char ping[] = ": ping\n\n";
        srv_stream_write(job->exchange, ping, sizeof ping - 1);
        g->last_write_ns = bis_now_ns();
    }
    if (g->submitted < g->choice_count) submit_more(g);
}

static void writable(srv_job *job) {
    generation *g = (generation *)job;
    for (size_t i = 0; i < g->submitted && !job->ended; i++) pump(&g->choices[i]);
}

static void release(srv_job *job) {
    generation *g = (generation *)job;
    for (size_t i = 0; i < g->choice_count; i++) {
        job->context->ops->release(g->choices[i].request);
        g->choices[i].request = NULL;
    }
}

static void destroy(srv_job *job) {
    generation *g = (generation *)job;
    for (size_t i = 0; i < g->choice_count; i++) {
        bis_buf_free(&g->choices[i].text);
        bis_free(g->choices[i].records.items);
    }
    bis_free(g->choices);
    srv_generate_free(&g->request);
}

void srv_generation_start(srv_context *context, srv_exchange *exchange, srv_api api) {
    generation *g = bis_calloc(1, sizeof *g);
    if (g) {
        g->request.api = api;
        g->job.prepare = prepare;
        g->job.proceed = proceed;
        g->job.tick = tick;
        g->job.writable = writable;
        g->job.release = release;
        g->job.destroy = destroy;
    }
    srv_job_start(context, exchange, (srv_job *)g);
}
