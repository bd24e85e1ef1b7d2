#include "runtime/request.h"

#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "runtime/sampler.h"

enum { RING_BYTES = 32 * 1024 };

rt_request_params rt_request_default_params(void) {
    return (rt_request_params){
        .max_tokens = -1, .sampling = {.temperature = 1, .top_p = 1, .repetition_penalty = 1}, .logprobs = -1};
}

/* Also false for NaN. */
static bool within(float value, float low, float high) { return value >= low && value <= high; }

static bis_status check_sampling(const rt_sampling *s, int vocab, bis_error *error) {
    const char *wrong = NULL;
    if (!within(s->temperature, 0, 100)) wrong = "temperature must be between 0 and 100";
    else if (!(s->top_p > 0 && s->top_p <= 1)) wrong = "top_p must be above 0 and at most 1";
    else if (!within(s->min_p, 0, 1)) wrong = "min_p must be between 0 and 1";
    else if (!(s->repetition_penalty > 0 && s->repetition_penalty <= 100)) {
        wrong = "repetition_penalty must be above 0 and at most 100";
    } else if (!within(s->frequency_penalty, -2, 2)) wrong = "frequency_penalty must be between -2 and 2";
    else if (!within(s->presence_penalty, -2, 2)) wrong = "presence_penalty must be between -2 and 2";
    else if (s->logit_bias_count > RT_LOGIT_BIAS_MAX) wrong = "logit_bias has too many entries (at most 1024)";
    if (wrong) return bis_fail(error, BIS_ERR_INVALID, "%s", wrong);
    for (size_t i = 0; i < s->logit_bias_count; i++) {
        if (s->logit_bias[i].token < 0 || s->logit_bias[i].token >= vocab || !isfinite(s->logit_bias[i].bias)) {
            return bis_fail(error, BIS_ERR_INVALID, "logit_bias names token %d; the vocabulary has ids 0 to %d",
                            s->logit_bias[i].token, vocab - 1);
        }
    }
    return BIS_OK;
}

static bis_status check_params(const rt_request_params *p, int vocab, int context, bis_error *error) {
    if (p->prompt_count == 0) return bis_fail(error, BIS_ERR_INVALID, "the prompt is empty");
    size_t most = (size_t)context - (p->max_tokens == 0 ? 0 : 1);
    if (p->prompt_count > most) {
        return bis_fail(error, BIS_ERR_LIMIT,
                        "the prompt has %zu tokens; the context has room for %zu besides the answer", p->prompt_count,
                        most);
    }
    for (size_t i = 0; i < p->prompt_count; i++) {
        if (p->prompt[i] < 0 || p->prompt[i] >= vocab) {
            return bis_fail(error, BIS_ERR_INVALID, "the prompt's token %zu is %d; the vocabulary has ids 0 to %d", i,
                            p->prompt[i], vocab - 1);
        }
    }
    if (p->max_tokens < -1) return bis_fail(error, BIS_ERR_INVALID, "max_tokens must not be negative");
    if (p->logprobs < -1 || p->logprobs > RT_LOGPROBS_MAX) {
        return bis_fail(error, BIS_ERR_INVALID, "logprobs must be between 0 and %d", RT_LOGPROBS_MAX);
    }
    if (p->stop_token_count > RT_STOP_TOKENS_MAX) {
        return bis_fail(error, BIS_ERR_INVALID, "at most %d stop tokens are accepted", RT_STOP_TOKENS_MAX);
    }
    return check_sampling(&p->sampling, vocab, error);
}

static bool allocate(rt_request *self, const rt_request_params *p, int vocab) {
    size_t tokens = (size_t)self->prompt_count + (size_t)self->max_new;
    self->tokens = bis_calloc(tokens, sizeof *self->tokens);
    self->pages = bis_calloc((size_t)rt_kv_pages_for((int)tokens) + 1, sizeof *self->pages);
    self->logit_bias = bis_calloc(p->sampling.logit_bias_count, sizeof *self->logit_bias);
    bool penalties = rt_sampling_has_penalties(&p->sampling);
    if (penalties) self->counts = bis_calloc((size_t)vocab, sizeof *self->counts);
    return rt_event_ring_open(&self->ring, RING_BYTES) && self->tokens && self->pages && self->logit_bias &&
           (!penalties || self->counts);
}

static void copy_params(rt_request *self, const rt_request_params *p, const rt_tokenizer *tokenizer) {
    memcpy(self->tokens, p->prompt, p->prompt_count * sizeof *p->prompt);
    self->count = self->prompt_count;
    self->system_count = p->system_count < p->prompt_count ? (int)p->system_count : self->prompt_count;
    self->sampling = p->sampling;
    if (p->sampling.logit_bias_count) {
        memcpy(self->logit_bias, p->sampling.logit_bias, p->sampling.logit_bias_count * sizeof *self->logit_bias);
    }
    self->sampling.logit_bias = self->logit_bias;
    for (int i = 0; self->counts && i < self->prompt_count; i++) self->counts[self->tokens[i]] = RT_COUNT_IN_PROMPT;
    if (p->stop_token_count) memcpy(self->stop_tokens, p->stop_tokens, p->stop_token_count * sizeof *p->stop_tokens);
    self->stop_token_count = p->stop_token_count;
    if (!p->ignore_eos) self->stop_token_count += rt_tokenizer_eos(tokenizer, self->stop_tokens + p->stop_token_count);
    self->logprobs = p->logprobs;
    self->prompt_logprobs = p->prompt_logprobs;
    rt_decoder_start(&self->decoder, tokenizer, !p->keep_special);
}

bis_status rt_request_create(const rt_request_params *params, const rt_tokenizer *tokenizer, int vocab, int context,
                             rt_notify_fn notify, void *user, rt_request **out, bis_error *error) {
    bis_status status = check_params(params, vocab, context, error);
    if (status) return status;
    rt_request *self = bis_calloc(1, sizeof *self);
    if (!self) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the request");
    pthread_mutex_init(&self->mutex, NULL);
    pthread_cond_init(&self->arrived, NULL);
    atomic_store(&self->references, 1);
    self->prompt_count = (int)params->prompt_count;
    int room = context - self->prompt_count;
    self->max_new = params->max_tokens < 0 || params->max_tokens > room ? room : params->max_tokens;
    if (!allocate(self, params, vocab)) status = bis_fail(error, BIS_ERR_NOMEM, "no memory for the request");
    if (!status) status = rt_stop_matcher_start(&self->matcher, params->stop, params->stop_count, error);
    if (status) {
        rt_request_unref(self);
        return status;
    }
    copy_params(self, params, tokenizer);
    self->notify = notify;
    self->user = user;
    *out = self;
    return BIS_OK;
}

void rt_request_unref(rt_request *request) {
    if (atomic_fetch_sub(&request->references, 1) != 1) return;
    pthread_mutex_destroy(&request->mutex);
    pthread_cond_destroy(&request->arrived);
    rt_event_ring_close(&request->ring);
    bis_free(request->tokens);
    bis_free(request->pages);
    bis_free(request->logit_bias);
    bis_free(request->counts);
    bis_free(request);
}

bool rt_request_has_room(rt_request *request, int prompt_events) {
    int top = request->logprobs > 0 ? request->logprobs : 0;
    size_t done = rt_event_ring_need(0, RT_EVENT_TEXT_MAX, true);
    size_t need = done + rt_event_ring_need(top, RT_EVENT_TEXT_MAX, false) +
                  (size_t)prompt_events * rt_event_ring_need(top, 0, false);
    pthread_mutex_lock(&request->mutex);
    bool room = rt_event_ring_room(&request->ring) >= need;
    request->engine_waits = !room;
    pthread_mutex_unlock(&request->mutex);
    return room;
}

void rt_request_put(rt_request *request, const rt_event *event) {
    pthread_mutex_lock(&request->mutex);
    bool was_empty = request->ring.used == 0;
    rt_event_ring_put(&request->ring, event);
    if (event->kind == RT_EVENT_DONE) request->done_put = true;
    if (was_empty && request->notify) request->notify(request->user);
    pthread_cond_signal(&request->arrived);
    pthread_mutex_unlock(&request->mutex);
}

/* With the mutex held: takes an event; *wake_engine when the engine waited for room. */
static bool take(rt_request *request, rt_event *event, bool *wake_engine) {
    if (!rt_event_ring_take(&request->ring, event)) return false;
    if (event->kind == RT_EVENT_DONE) request->done_taken = true;
    *wake_engine = request->engine_waits && rt_event_ring_room(&request->ring) >= RING_BYTES / 2;
    if (*wake_engine) request->engine_waits = false;
    return true;
}

bool rt_request_next(rt_request *request, rt_event *event) {
    bool wake = false;
    pthread_mutex_lock(&request->mutex);
    bool taken = take(request, event, &wake);
    pthread_mutex_unlock(&request->mutex);
    if (wake) rt_scheduler_wake(request->scheduler);
    return taken;
}

bool rt_request_wait(rt_request *request, rt_event *event) {
    bool wake = false;
    pthread_mutex_lock(&request->mutex);
    while (request->ring.used == 0 && !request->done_taken) pthread_cond_wait(&request->arrived, &request->mutex);
    bool taken = take(request, event, &wake);
    pthread_mutex_unlock(&request->mutex);
    if (wake) rt_scheduler_wake(request->scheduler);
    return taken;
}

void rt_request_cancel(rt_request *request) {
    if (!atomic_exchange(&request->cancelled, true)) rt_scheduler_wake(request->scheduler);
}

void rt_request_release(rt_request *request) {
    if (!request) return;
    pthread_mutex_lock(&request->mutex);
    request->notify = NULL;
    bool unfinished = !request->done_put;
    pthread_mutex_unlock(&request->mutex);
    if (unfinished) rt_request_cancel(request);
    rt_request_unref(request);
}
