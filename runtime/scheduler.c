#include "runtime/scheduler.h"

#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "runtime/request.h"
#include "runtime/sampler.h"

/* Rows of a step that may have logits besides one of each sequence: prompt rows whose log-probabilities are
 * reported. Their events must fit an event ring. */
enum { EXTRA_LOGIT_ROWS = 32 };

struct rt_scheduler {
    rt_scheduler_options options;
    rt_sampler *sampler;
    pthread_t thread;
    bool thread_started;

    /* Engine thread only. */
    rt_request **running; /* [max_batch], in order of admission */
    int running_count;
    rt_request *waiting_head, *waiting_tail;
    int32_t *row_tokens, *row_positions; /* [max_rows] */
    const int32_t **row_pages;
    int32_t *row_spans;   /* [max_rows] */
    int32_t *logit_rows;  /* [max_logits] */
    int32_t *first_logit; /* [max_batch]: index of running[i]'s first logits row in this step, or -1 */
    int *step_rows;       /* [max_batch]: rows of running[i] in this step */
    rt_event event;       /* scratch: too large for the stack of a small thread */
    char text[RT_DECODER_TEXT_MAX];

    /* Shared under `mutex`. */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    rt_request *inbox_head, *inbox_tail;
    bool wake, closing, draining;

    /* Counters, written by the engine thread or submit. */
    atomic_int running_now, waiting_now, pages_used;
    _Atomic uint64_t requests, prompt_tokens, generated_tokens, steps;
};

int rt_scheduler_max_rows(int max_batch, int prefill_chunk) { return max_batch + prefill_chunk; }
int rt_scheduler_max_logits(int max_batch) { return max_batch + EXTRA_LOGIT_ROWS; }

/* ---- The waiting list ------------------------------------------------------------------------ */

static void push(rt_request **head, rt_request **tail, rt_request *request) {
    request->next = NULL;
    if (*tail) (*tail)->next = request;
    else *head = request;
    *tail = request;
}

static rt_request *pop(rt_request **head, rt_request **tail) {
    rt_request *first = *head;
    *head = first->next;
    if (!*head) *tail = NULL;
    return first;
}

/* ---- Reporting ------------------------------------------------------------------------------- */

/* The DONE event, with `length` bytes of text that event.text holds already. */
static void put_done(rt_scheduler *self, rt_request *request, rt_finish why, size_t length) {
    rt_event *event = &self->event;
    event->kind = RT_EVENT_DONE;
    event->finish = why;
    event->top_count = 0;
    event->prompt_tokens = request->prompt_count;
    event->cached_tokens = 0;
    event->completion_tokens = request->generated;
    event->text_length = length;
    rt_request_put(request, event);
}

/* Ends the text: what the decoder and the stop matcher still hold comes out with the DONE event. */
static void put_done_flushing(rt_scheduler *self, rt_request *request, rt_finish why) {
    size_t pending = rt_decoder_finish(&request->decoder, self->text), length;
    if (!rt_stop_matcher_push(&request->matcher, self->text, pending, self->event.text, &length)) {
        char rest[RT_EVENT_TEXT_MAX];
        size_t more = rt_stop_matcher_finish(&request->matcher, rest);
        memcpy(self->event.text + length, rest, more);
        length += more;
    }
    put_done(self, request, why, length);
}

static void set_logprobs(rt_scheduler *self, const rt_request *request, int32_t token, const float *logits) {
    self->event.token = token;
    self->event.logprob = NAN;
    self->event.top_count = 0;
    if (!logits || (request->logprobs < 0 && !request->prompt_logprobs)) return;
    float log_sum = rt_logits_log_sum(logits, self->options.vocab);
    int top = request->logprobs > 0 ? request->logprobs : 0;
    if (top > self->options.vocab) top = self->options.vocab;
    self->event.logprob = logits[token] - log_sum;
    self->event.top_count = top;
    rt_logits_top(logits, self->options.vocab, log_sum, top, self->event.top);
}

static void report_prompt_token(rt_scheduler *self, rt_request *request, int index, const float *logits) {
    set_logprobs(self, request, request->tokens[index], logits);
    self->event.kind = RT_EVENT_PROMPT_TOKEN;
    self->event.text_length = 0;
    rt_request_put(request, &self->event);
}

static bool is_stop_token(const rt_request *request, int32_t token) {
    for (size_t i = 0; i < request->stop_token_count; i++) {
        if (request->stop_tokens[i] == token) return true;
    }
    return false;
}

/* Samples the next token from `logits` and reports it; true when the request is finished. */
static bool advance(rt_scheduler *self, rt_request *request, const float *logits) {
    if (request->max_new == 0) {
        put_done(self, request, RT_FINISH_LENGTH, 0);
        return true;
    }
    int32_t token =
        rt_sampler_pick(self->sampler, &request->sampling, request->counts, logits, (uint64_t)request->generated);
    if (is_stop_token(request, token)) {
        put_done_flushing(self, request, RT_FINISH_STOP);
        return true;
    }
    set_logprobs(self, request, token, logits);
    request->tokens[request->count++] = token;
    request->generated++;
    if (request->counts) request->counts[token]++;
    atomic_fetch_add(&self->generated_tokens, 1);

    size_t length = rt_decoder_push(&request->decoder, token, self->text);
    bool stop = rt_stop_matcher_push(&request->matcher, self->text, length, self->event.text, &self->event.text_length);
    self->event.kind = RT_EVENT_TOKEN;
    rt_request_put(request, &self->event);
    if (stop) put_done(self, request, RT_FINISH_STOP, 0);
    else if (request->generated == request->max_new) put_done_flushing(self, request, RT_FINISH_LENGTH);
    else return false;
    return true;
}

/* ---- Admission and removal ------------------------------------------------------------------- */

static void take_inbox(rt_scheduler *self) {
    while (self->inbox_head) push(&self->waiting_head, &self->waiting_tail, pop(&self->inbox_head, &self->inbox_tail));
}

static void leave(rt_scheduler *self, int index) {
    rt_request *request = self->running[index];
    rt_kv_pages_give_back(self->options.pages, request->held, request->pages);
    self->running_count--;
    memmove(self->running + index, self->running + index + 1,
            (size_t)(self->running_count - index) * sizeof *self->running);
    rt_request_unref(request);
}

static void drop_cancelled(rt_scheduler *self, bool all) {
    rt_request *kept_head = NULL, *kept_tail = NULL;
    while (self->waiting_head) {
        rt_request *request = pop(&self->waiting_head, &self->waiting_tail);
        if (!all && !atomic_load(&request->cancelled)) {
            push(&kept_head, &kept_tail, request);
            continue;
        }
        put_done(self, request, RT_FINISH_CANCELLED, 0);
        rt_request_unref(request);
        atomic_fetch_sub(&self->waiting_now, 1);
    }
    self->waiting_head = kept_head;
    self->waiting_tail = kept_tail;
    for (int i = self->running_count - 1; i >= 0; i--) {
        if (!all && !atomic_load(&self->running[i]->cancelled)) continue;
        put_done(self, self->running[i], RT_FINISH_CANCELLED, 0);
        leave(self, i);
    }
}

/* A request's prompt span: its system prompt, at most what the full pages could hold if all were free. That depends on
 * how the cache was opened and never on what is free now, so neither do the request's tokens. */
static int span_of(const rt_scheduler *self, const rt_request *request) {
    int room = rt_kv_pages_total(self->options.pages).full * KN_PAGE_TOKENS;
    if (self->options.prompt_kv_low) return 0;
    return request->system_count < room ? request->system_count : room;
}

static void admit(rt_scheduler *self) {
    while (self->waiting_head && self->running_count < self->options.max_batch) {
        rt_request *request = self->waiting_head;
        int span = span_of(self, request), tokens = request->prompt_count + request->max_new;
        rt_kv_count need = rt_kv_pages_need(rt_kv_pages_bits(self->options.pages), span, tokens);
        if (!rt_kv_pages_take(self->options.pages, need, request->pages)) return;
        request->held = need;
        request->span = span;
        pop(&self->waiting_head, &self->waiting_tail);
        atomic_fetch_sub(&self->waiting_now, 1);
        self->running[self->running_count++] = request;
    }
}

/* ---- One step -------------------------------------------------------------------------------- */

static void add_row(rt_scheduler *self, rt_batch *batch, const rt_request *request, int position) {
    int row = batch->rows.count++;
    self->row_tokens[row] = request->tokens[position];
    self->row_positions[row] = position;
    self->row_pages[row] = request->pages;
    self->row_spans[row] = request->span;
}

static void want_logits(rt_scheduler *self, rt_batch *batch, int index) {
    if (self->first_logit[index] < 0) self->first_logit[index] = batch->logit_count;
    self->logit_rows[batch->logit_count++] = batch->rows.count - 1;
}

/* Adds up to `budget` (at least 1) of running[index]'s prompt rows; returns how many. *extra_logits counts down
 * the step's logits rows beyond one of each sequence. */
static int add_prompt_rows(rt_scheduler *self, rt_batch *batch, int index, int budget, int *extra_logits) {
    rt_request *request = self->running[index];
    int rows = request->prompt_count - request->computed;
    if (rows > budget) rows = budget;
    if (request->prompt_logprobs) {
        if (rows > 1 + *extra_logits) rows = 1 + *extra_logits;
        *extra_logits -= rows - 1;
    }
    if (!rt_request_has_room(request, request->prompt_logprobs ? rows + 1 : 0)) return 0;
    for (int i = 0; i < rows; i++) {
        int position = request->computed + i;
        add_row(self, batch, request, position);
        if (request->prompt_logprobs || position == request->prompt_count - 1) want_logits(self, batch, index);
    }
    return rows;
}

static rt_batch build_batch(rt_scheduler *self) {
    rt_batch batch = {.rows = {.position = self->row_positions, .pages = self->row_pages, .prompt = self->row_spans},
                      .tokens = self->row_tokens,
                      .logit_rows = self->logit_rows};
    int budget = self->options.prefill_chunk, extra_logits = EXTRA_LOGIT_ROWS;
    for (int i = 0; i < self->running_count; i++) {
        rt_request *request = self->running[i];
        self->first_logit[i] = -1;
        self->step_rows[i] = 0;
        if (request->computed < request->prompt_count || !rt_request_has_room(request, 0)) continue;
        add_row(self, &batch, request, request->computed);
        want_logits(self, &batch, i);
        self->step_rows[i] = 1;
    }
    for (int i = 0; i < self->running_count && budget > 0; i++) {
        if (self->running[i]->computed >= self->running[i]->prompt_count) continue;
        self->step_rows[i] = add_prompt_rows(self, &batch, i, budget, &extra_logits);
        budget -= self->step_rows[i];
    }
    return batch;
}

/* Reports what running[index]'s rows of this step gave; true when it is finished. */
static bool use_logits(rt_scheduler *self, int index, const float *logits) {
    rt_request *request = self->running[index];
    size_t vocab = (size_t)self->options.vocab;
    int rows = self->step_rows[index], before = request->computed;
    request->computed += rows;
    if (before < request->prompt_count) atomic_fetch_add(&self->prompt_tokens, (uint64_t)rows);
    if (self->first_logit[index] < 0) return false;
    const float *own = logits + (size_t)self->first_logit[index] * vocab;
    if (request->prompt_logprobs && before < request->prompt_count) {
        if (before == 0) report_prompt_token(self, request, 0, NULL);
        for (int i = 0; i < rows; i++, own += vocab) {
            if (before + i + 1 == request->prompt_count) break;
            report_prompt_token(self, request, before + i + 1, own);
        }
        if (request->computed < request->prompt_count) return false;
    }
    return advance(self, request, own);
}

/* Returns false when there was nothing to compute. */
static bool step(rt_scheduler *self) {
    rt_batch batch = build_batch(self);
    if (batch.rows.count == 0) return false;
    const float *logits = rt_forward_run(self->options.forward, rt_kv_pages_cache(self->options.pages), &batch);
    atomic_fetch_add(&self->steps, 1);
    /* backwards, so that leaving keeps the indices of those still to come */
    for (int i = self->running_count - 1; i >= 0; i--) {
        if (self->step_rows[i] && use_logits(self, i, logits)) leave(self, i);
    }
    return true;
}

static void *engine_main(void *argument) {
    rt_scheduler *self = argument;
    bool idle = false;
    for (;;) {
        pthread_mutex_lock(&self->mutex);
        while (idle && !self->wake && !self->closing) pthread_cond_wait(&self->changed, &self->mutex);
        self->wake = false;
        bool closing = self->closing;
        take_inbox(self);
        pthread_mutex_unlock(&self->mutex);
        drop_cancelled(self, closing);
        if (closing) return NULL;
        admit(self);
        atomic_store(&self->running_now, self->running_count);
        const rt_kv_pages *pages = self->options.pages;
        rt_kv_count total = rt_kv_pages_total(pages), left = rt_kv_pages_free(pages);
        atomic_store(&self->pages_used, total.full - left.full + total.low - left.low);
        idle = !step(self);
    }
}

/* ---- Opening, closing, other threads --------------------------------------------------------- */

static bool allocate(rt_scheduler *self) {
    size_t batch = (size_t)self->options.max_batch;
    size_t rows = (size_t)rt_scheduler_max_rows(self->options.max_batch, self->options.prefill_chunk);
    self->running = bis_calloc(batch, sizeof *self->running);
    self->first_logit = bis_calloc(batch, sizeof *self->first_logit);
    self->step_rows = bis_calloc(batch, sizeof *self->step_rows);
    self->row_tokens = bis_calloc(rows, sizeof *self->row_tokens);
    self->row_positions = bis_calloc(rows, sizeof *self->row_positions);
    self->row_pages = bis_calloc(rows, sizeof *self->row_pages);
    self->row_spans = bis_calloc(rows, sizeof *self->row_spans);
    self->logit_rows = bis_calloc((size_t)rt_scheduler_max_logits(self->options.max_batch), sizeof *self->logit_rows);
    return self->running && self->first_logit && self->step_rows && self->row_tokens && self->row_positions &&
           self->row_pages && self->row_spans && self->logit_rows;
}

bis_status rt_scheduler_open(const rt_scheduler_options *options, rt_scheduler **out, bis_error *error) {
    rt_scheduler *self = bis_calloc(1, sizeof *self);
    if (!self) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the scheduler");
    self->options = *options;
    pthread_mutex_init(&self->mutex, NULL);
    pthread_cond_init(&self->changed, NULL);
    bis_status status = BIS_OK;
    if (!allocate(self)) status = bis_fail(error, BIS_ERR_NOMEM, "no memory for the scheduler");
    if (!status) status = rt_sampler_open(options->vocab, &self->sampler, error);
    if (!status) {
        self->thread_started = pthread_create(&self->thread, NULL, engine_main, self) == 0;
        if (!self->thread_started) status = bis_fail(error, BIS_ERR_IO, "cannot start the engine's thread");
    }
    if (status) {
        rt_scheduler_close(self);
        return status;
    }
    *out = self;
    return BIS_OK;
}

void rt_scheduler_close(rt_scheduler *scheduler) {
    if (!scheduler) return;
    if (scheduler->thread_started) {
        pthread_mutex_lock(&scheduler->mutex);
        scheduler->closing = true;
        pthread_cond_signal(&scheduler->changed);
        pthread_mutex_unlock(&scheduler->mutex);
        pthread_join(scheduler->thread, NULL);
    }
    pthread_cond_destroy(&scheduler->changed);
    pthread_mutex_destroy(&scheduler->mutex);
    rt_sampler_close(scheduler->sampler);
    bis_free(scheduler->running);
    bis_free(scheduler->first_logit);
    bis_free(scheduler->step_rows);
    bis_free(scheduler->row_tokens);
    bis_free(scheduler->row_positions);
    bis_free(scheduler->row_pages);
    bis_free(scheduler->row_spans);
    bis_free(scheduler->logit_rows);
    bis_free(scheduler);
}

bis_status rt_scheduler_submit(rt_scheduler *scheduler, rt_request *request, bis_error *error) {
    bis_status status = BIS_OK;
    pthread_mutex_lock(&scheduler->mutex);
    if (scheduler->draining || scheduler->closing) {
        status = bis_fail(error, BIS_ERR_BUSY, "the server is shutting down");
    } else if (atomic_load(&scheduler->waiting_now) >= scheduler->options.max_queue) {
        status = bis_fail(error, BIS_ERR_BUSY, "%d requests are waiting already", scheduler->options.max_queue);
    } else {
        atomic_fetch_add(&request->references, 1);
        request->scheduler = scheduler;
        atomic_fetch_add(&scheduler->waiting_now, 1);
        atomic_fetch_add(&scheduler->requests, 1);
        push(&scheduler->inbox_head, &scheduler->inbox_tail, request);
        scheduler->wake = true;
        pthread_cond_signal(&scheduler->changed);
    }
    pthread_mutex_unlock(&scheduler->mutex);
    return status;
}

void rt_scheduler_wake(rt_scheduler *scheduler) {
    pthread_mutex_lock(&scheduler->mutex);
    scheduler->wake = true;
    pthread_cond_signal(&scheduler->changed);
    pthread_mutex_unlock(&scheduler->mutex);
}

void rt_scheduler_drain(rt_scheduler *scheduler) {
    pthread_mutex_lock(&scheduler->mutex);
    scheduler->draining = true;
    pthread_mutex_unlock(&scheduler->mutex);
}

void rt_scheduler_get_stats(const rt_scheduler *scheduler, rt_engine_stats *stats) {
    *stats = (rt_engine_stats){.running = atomic_load(&scheduler->running_now),
                               .waiting = atomic_load(&scheduler->waiting_now),
                               .requests = atomic_load(&scheduler->requests),
                               .prompt_tokens = atomic_load(&scheduler->prompt_tokens),
                               .generated_tokens = atomic_load(&scheduler->generated_tokens),
                               .steps = atomic_load(&scheduler->steps),
                               .kv_tokens_used = (uint64_t)atomic_load(&scheduler->pages_used) * KN_PAGE_TOKENS};
}
