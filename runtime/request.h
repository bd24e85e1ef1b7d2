/* A request as the engine sees it. Internal to the engine: engine.c, request.c, scheduler.c.
 *
 * Two owners hold a reference: the consumer (the handle that rt_engine_submit returned) and the engine (until
 * the DONE event). Fields are grouped by who may touch them.
 */
#ifndef BISUP_RUNTIME_REQUEST_H
#define BISUP_RUNTIME_REQUEST_H

#include <pthread.h>
#include <stdatomic.h>

#include "runtime/engine.h"
#include "runtime/event_ring.h"
#include "runtime/scheduler.h"
#include "runtime/stop_matcher.h"

struct rt_request {
    /* Constant after submit. */
    rt_scheduler *scheduler;
    int prompt_count, max_new; /* max_new: what max_tokens and the context allow */
    int system_count;
    rt_sampling sampling;
    rt_logit_bias *logit_bias;
    int32_t stop_tokens[RT_STOP_TOKENS_MAX + RT_EOS_MAX]; /* the model's end tokens included unless ignored */
    size_t stop_token_count;
    int logprobs;
    bool prompt_logprobs;

    /* Engine thread only. */
    int32_t *tokens;       /* [prompt_count + max_new]: prompt, then output */
    int count;             /* tokens known so far */
    int computed;          /* tokens whose keys and values are stored */
    int generated;         /* tokens reported */
    bool prompt_announced; /* the prompt's first token was reported (prompt_logprobs) */
    int32_t *pages;        /* [held.full + held.low], full ones first */
    rt_kv_count held;
    int span;         /* tokens of the prompt span, in full pages (a cache with low pages) */
    uint32_t *counts; /* [vocab] for penalties, or NULL */
    rt_decoder decoder;
    rt_stop_matcher matcher;
    struct rt_request *next; /* in the waiting list */

    /* Shared under `mutex`. */
    pthread_mutex_t mutex;
    pthread_cond_t arrived;
    rt_event_ring ring;
    rt_notify_fn notify;
    void *user;
    bool done_put, done_taken, engine_waits; /* engine_waits: paused because the ring was full */

    atomic_bool cancelled;
    atomic_int references;
};

/* Checks and copies the parameters. context: most tokens of a sequence; errors as rt_engine_submit. */
bis_status rt_request_create(const rt_request_params *params, const rt_tokenizer *tokenizer, int vocab, int context,
                             rt_notify_fn notify, void *user, rt_request **out, bis_error *error);
void rt_request_unref(rt_request *request);

/* Engine thread: true when `prompt_events` PROMPT_TOKEN events, a TOKEN and the DONE event are sure to fit. If not,
 * the request is marked so that taking events wakes the engine. */
bool rt_request_has_room(rt_request *request, int prompt_events);
/* Engine thread: puts an event for which there is room, and notifies. */
void rt_request_put(rt_request *request, const rt_event *event);

#endif
