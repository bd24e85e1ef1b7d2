#include "tests/support/fake_engine.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/utf8.h"
#include "runtime/stop_matcher.h"

enum { RING = 16, STEP_US = 20, SLOW_US = 20000 };

struct rt_engine {
    fake_options options;
    pthread_t thread;
    pthread_mutex_t mutex;
    rt_request *requests; /* not yet freed, in order of their submission */
    bool draining, closing;
    int live; /* submitted and not released */
    long generated;
};

struct rt_request {
    rt_engine *engine;
    rt_request *next;
    char *answer; /* what it will say, without the end token */
    size_t answer_length, position;
    int32_t *prompt;
    size_t prompt_count, prompt_reported;
    int generated, max_tokens, logprobs;
    bool ignore_eos, prompt_logprobs, fails, hangs, slow;
    bool cancelled, released, done;
    rt_stop_matcher stops;
    char pending[8]; /* bytes of an unfinished character */
    size_t pending_length;
    rt_event ring[RING];
    int ring_start, ring_count;
    rt_notify_fn notify;
    void *user;
};

/* ---- Events: with the engine's mutex held ------------------------------------------------------- */

static void put(rt_request *r, const rt_event *event) {
    bool was_empty = r->ring_count == 0;
    r->ring[(r->ring_start + r->ring_count++) % RING] = *event;
    if (was_empty && !r->released) r->notify(r->user);
}

static void put_done(rt_request *r, rt_finish finish, bool flush) {
    rt_event event = {.kind = RT_EVENT_DONE,
                      .finish = finish,
                      .prompt_tokens = (int)r->prompt_count,
                      .cached_tokens = (int)r->prompt_count / 2,
                      .completion_tokens = r->generated};
    if (finish == RT_FINISH_ERROR) bis_fail(&event.error, BIS_ERR_NOMEM, "the test asked for this failure");
    if (flush) event.text_length = rt_stop_matcher_finish(&r->stops, event.text);
    if (flush && r->pending_length) { /* half a character that nothing completes */
        memcpy(event.text + event.text_length, "\xef\xbf\xbd", 3);
        event.text_length += 3;
    }
    put(r, &event);
    r->done = true;
}

static void set_logprobs(const rt_request *r, rt_event *event, int32_t token) {
    event->token = token;
    event->logprob = -1.0f / (float)(token + 1);
    event->top_count = r->logprobs > 0 ? r->logprobs : 0;
    for (int k = 0; k < event->top_count; k++)
        event->top[k] = (rt_logprob){(token + k) % FAKE_VOCAB, event->logprob - (float)k};
}

static void put_prompt_token(rt_request *r) {
    rt_event event = {.kind = RT_EVENT_PROMPT_TOKEN};
    set_logprobs(r, &event, r->prompt[r->prompt_reported]);
    if (r->prompt_reported++ == 0) {
        event.logprob = __builtin_nanf("");
        event.top_count = 0;
    }
    put(r, &event);
}

/* Complete characters of pending + byte; keeps the rest. */
static size_t decode_byte(rt_request *r, char byte, char out[8]) {
    r->pending[r->pending_length++] = byte;
    size_t length = bis_utf8_complete_prefix(r->pending, r->pending_length);
    memcpy(out, r->pending, length);
    r->pending_length -= length;
    memmove(r->pending, r->pending + length, r->pending_length);
    return length;
}

/* One step of one request; false if it had nothing to do or no room. */
static bool advance(rt_request *r) {
    if (r->done) return false;
    if (r->cancelled) {
        put_done(r, RT_FINISH_CANCELLED, false);
        return true;
    }
    if (r->hangs || r->ring_count + 2 > RING) return false;
    if (r->prompt_logprobs && r->prompt_reported < r->prompt_count) {
        put_prompt_token(r);
        return true;
    }
    if (r->fails && r->generated == 3) {
        put_done(r, RT_FINISH_ERROR, false);
        return true;
    }
    if (r->max_tokens >= 0 && r->generated >= r->max_tokens) {
        put_done(r, RT_FINISH_LENGTH, true);
        return true;
    }
    if (r->position == r->answer_length) {
        r->position = 0;
        if (!r->ignore_eos || r->answer_length == 0) {
            put_done(r, RT_FINISH_STOP, true);
            return true;
        }
    }
    rt_event event = {.kind = RT_EVENT_TOKEN};
    char byte = r->answer[r->position++], text[8];
    set_logprobs(r, &event, (unsigned char)byte);
    r->generated++;
    r->engine->generated++;
    size_t length = decode_byte(r, byte, text);
    bool stop = rt_stop_matcher_push(&r->stops, text, length, event.text, &event.text_length);
    put(r, &event);
    if (stop) put_done(r, RT_FINISH_STOP, false);
    return true;
}

/* ---- The engine thread -------------------------------------------------------------------------- */

static void free_request(rt_request *r) {
    bis_free(r->answer);
    bis_free(r->prompt);
    bis_free(r);
}

static void remove_released(rt_engine *engine) {
    for (rt_request **at = &engine->requests; *at;) {
        rt_request *r = *at;
        if (!r->released) {
            at = &r->next;
            continue;
        }
        *at = r->next;
        free_request(r);
    }
}

static void *run(void *user) {
    rt_engine *engine = user;
    for (bool closing = false; !closing;) {
        bool worked = false, slow = false;
        pthread_mutex_lock(&engine->mutex);
        int running = 0;
        for (rt_request *r = engine->requests; r; r = r->next) {
            if (r->done) continue;
            if (running++ >= engine->options.max_batch && !r->cancelled) continue;
            bool stepped = advance(r);
            worked |= stepped;
            slow |= stepped && r->slow;
        }
        remove_released(engine);
        closing = engine->closing;
        pthread_mutex_unlock(&engine->mutex);
        usleep(slow ? SLOW_US : worked ? STEP_US : STEP_US * 50);
    }
    return NULL;
}

rt_engine *fake_engine_open(const fake_options *options) {
    rt_engine *engine = bis_calloc(1, sizeof *engine);
    if (!engine) return NULL;
    engine->options = *options;
    if (!engine->options.max_batch) engine->options.max_batch = 4;
    if (!engine->options.max_queue) engine->options.max_queue = 8;
    if (!engine->options.max_context) engine->options.max_context = 4096;
    pthread_mutex_init(&engine->mutex, NULL);
    if (pthread_create(&engine->thread, NULL, run, engine) == 0) return engine;
    bis_free(engine);
    return NULL;
}

int fake_engine_close(rt_engine *engine) {
    pthread_mutex_lock(&engine->mutex);
    engine->closing = true;
    pthread_mutex_unlock(&engine->mutex);
    pthread_join(engine->thread, NULL);
    int leaked = engine->live;
    for (rt_request *r = engine->requests; r; r = r->next) r->released = true;
    remove_released(engine);
    pthread_mutex_destroy(&engine->mutex);
    bis_free(engine);
    return leaked;
}

int fake_engine_unfinished(rt_engine *engine) {
    int count = 0;
    pthread_mutex_lock(&engine->mutex);
    for (rt_request *r = engine->requests; r; r = r->next) count += !r->done;
    pthread_mutex_unlock(&engine->mutex);
    return count;
}

long fake_engine_generated(rt_engine *engine) {
    pthread_mutex_lock(&engine->mutex);
    long generated = engine->generated;
    pthread_mutex_unlock(&engine->mutex);
    return generated;
}

/* ---- The operations ----------------------------------------------------------------------------- */

static void get_info(const rt_engine *engine, rt_engine_info *info) {
    *info = (rt_engine_info){.architecture = "fake",
                             .vocab_size = FAKE_VOCAB,
                             .created = 1700000000,
                             .max_context = engine->options.max_context,
                             .max_batch = engine->options.max_batch,
                             .has_chat_template = !engine->options.no_template};
    strcpy(info->model_name, "fake-model");
}

static bool prompt_has(const rt_request *r, const char *word) {
    return memmem(r->answer, r->answer_length, word, strlen(word)) != NULL;
}

static rt_request *make_request(rt_engine *engine, const rt_request_params *p, bis_error *error) {
    rt_request *r = bis_calloc(1, sizeof *r);
    bis_buf answer = {0};
    for (size_t i = 0; i < p->prompt_count; i++)
        if (p->prompt[i] < 256) bis_buf_putc(&answer, (char)p->prompt[i]);
    if (p->sampling.temperature > 0) bis_buf_printf(&answer, "#%llu", (unsigned long long)p->sampling.seed);
    int32_t *prompt = bis_calloc(p->prompt_count, sizeof *prompt);
    if (!r || !prompt || answer.failed || rt_stop_matcher_start(&r->stops, p->stop, p->stop_count, error) != BIS_OK) {
        bis_free(r);
        bis_free(prompt);
        bis_buf_free(&answer);
        return NULL;
    }
    memcpy(prompt, p->prompt, p->prompt_count * sizeof *prompt);
    int room = engine->options.max_context - (int)p->prompt_count;
    r->engine = engine;
    r->answer = answer.data;
    r->answer_length = answer.length;
    r->prompt = prompt;
    r->prompt_count = p->prompt_count;
    r->max_tokens = p->max_tokens < 0 || p->max_tokens > room ? room : p->max_tokens;
    r->logprobs = p->logprobs;
    r->ignore_eos = p->ignore_eos;
    r->prompt_logprobs = p->prompt_logprobs;
    r->fails = prompt_has(r, FAKE_WORD_FAIL);
    r->hangs = prompt_has(r, FAKE_WORD_HANG);
    r->slow = prompt_has(r, FAKE_WORD_SLOW);
    return r;
}

static bis_status submit(rt_engine *engine, const rt_request_params *p, rt_notify_fn notify, void *user,
                         rt_request **out, bis_error *error) {
    for (size_t i = 0; i < p->prompt_count; i++)
        if (p->prompt[i] < 0 || p->prompt[i] >= FAKE_VOCAB)
            return bis_fail(error, BIS_ERR_INVALID, "token %d is not in the vocabulary", p->prompt[i]);
    if (p->prompt_count >= (size_t)engine->options.max_context)
        return bis_fail(error, BIS_ERR_LIMIT, "the prompt is too long");
    rt_request *r = make_request(engine, p, error);
    if (!r) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the request");
    r->notify = notify;
    r->user = user;
    pthread_mutex_lock(&engine->mutex);
    int waiting = -engine->options.max_batch;
    rt_request **at = &engine->requests;
    for (; *at; at = &(*at)->next) waiting += !(*at)->done && !(*at)->released;
    bool busy = engine->draining || waiting >= engine->options.max_queue;
    if (!busy) {
        *at = r;
        *out = r; /* before its events can arrive */
        engine->live++;
    }
    pthread_mutex_unlock(&engine->mutex);
    if (!busy) return BIS_OK;
    free_request(r);
    return bis_fail(error, BIS_ERR_BUSY, "the queue is full");
}

static bool next(rt_request *r, rt_event *event) {
    pthread_mutex_lock(&r->engine->mutex);
    bool taken = r->ring_count > 0;
    if (taken) {
        *event = r->ring[r->ring_start];
        r->ring_start = (r->ring_start + 1) % RING;
        r->ring_count--;
    }
    pthread_mutex_unlock(&r->engine->mutex);
    return taken;
}

static void cancel(rt_request *r) {
    pthread_mutex_lock(&r->engine->mutex);
    r->cancelled = true;
    pthread_mutex_unlock(&r->engine->mutex);
}

static void release(rt_request *r) {
    if (!r) return;
    rt_engine *engine = r->engine;
    pthread_mutex_lock(&engine->mutex);
    r->released = true; /* the engine thread frees it */
    engine->live--;
    pthread_mutex_unlock(&engine->mutex);
}

static void drain(rt_engine *engine) {
    pthread_mutex_lock(&engine->mutex);
    engine->draining = true;
    pthread_mutex_unlock(&engine->mutex);
}

static bis_status encode(const rt_engine *engine, const char *text, size_t length, unsigned flags, rt_tokens *out,
                         bis_error *error) {
    (void)engine;
    bool ok = !(flags & RT_ENCODE_ADD_SPECIAL) || rt_tokens_append(out, FAKE_BOS);
    for (size_t i = 0; ok && i < length; i++) ok = rt_tokens_append(out, (unsigned char)text[i]);
    return ok ? BIS_OK : bis_fail(error, BIS_ERR_NOMEM, "no memory for the tokens");
}

static bis_status decode(const rt_engine *engine, const int32_t *ids, size_t count, bool skip_special, bis_buf *out,
                         bis_error *error) {
    (void)engine;
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= FAKE_VOCAB)
            return bis_fail(error, BIS_ERR_INVALID, "token %d is not in the vocabulary", ids[i]);
        if (ids[i] < 256) bis_buf_putc(out, (char)ids[i]);
        else if (!skip_special) bis_buf_puts(out, ids[i] == FAKE_BOS ? "<bos>" : "<eos>");
    }
    return out->failed ? bis_fail(error, BIS_ERR_NOMEM, "no memory for the text") : BIS_OK;
}

static size_t token_bytes(const rt_engine *engine, int32_t id, char out[RT_TOKEN_TEXT_MAX]) {
    (void)engine;
    if (id < 0 || id >= 256) return 0;
    out[0] = (char)id;
    return 1;
}

static bis_status render_chat(const rt_engine *engine, const rt_chat_input *input, bis_buf *out, size_t *system_end,
                              bis_error *error) {
    if (engine->options.no_template) return bis_fail(error, BIS_ERR_UNSUPPORTED, "This model has no chat template.");
    if (strstr(input->messages_json, "<raise>")) return bis_fail(error, BIS_ERR_INVALID, "the template refused this");
    bis_buf_puts(out, input->messages_json);
    if (input->tools_json) bis_buf_puts(out, input->tools_json);
    if (input->variables_json) bis_buf_puts(out, input->variables_json);
    if (system_end) *system_end = out->length / 2;
    return out->failed ? bis_fail(error, BIS_ERR_NOMEM, "no memory for the prompt") : BIS_OK;
}

const srv_engine_ops *fake_engine_ops(void) {
    static const srv_engine_ops ops = {.get_info = get_info,
                                       .submit = submit,
                                       .next = next,
                                       .cancel = cancel,
                                       .release = release,
                                       .drain = drain,
                                       .encode = encode,
                                       .decode = decode,
                                       .token_bytes = token_bytes,
                                       .render_chat = render_chat};
    return &ops;
}
