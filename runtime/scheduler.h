/* The engine thread: which rows run next, and what becomes of their logits.
 *
 * Each step takes one row of every running sequence that is past its prompt, then prompt rows, first come
 * first served, up to `prefill_chunk` rows in all; runs the forward pass; samples; reports. A sequence gets all
 * the pages it may need when it is admitted, so a running one never waits for memory; the first of those that wait
 * waits until enough are free, and as whoever opens the cache sees to it that any one request fits an empty cache, that
 * time comes. Sequences whose reader is slow are left out of steps until there is room again. Knows tokens, not texts'
 * origin: no JSON, no sockets.
 */
#ifndef BISUP_RUNTIME_SCHEDULER_H
#define BISUP_RUNTIME_SCHEDULER_H

#include "common/status.h"
#include "runtime/engine.h"
#include "runtime/forward.h"
#include "runtime/kv_pages.h"

typedef struct rt_scheduler rt_scheduler;

typedef struct rt_scheduler_options {
    rt_forward *forward; /* borrowed */
    rt_kv_pages *pages;  /* borrowed */
    int vocab, max_batch, prefill_chunk, max_queue;
    bool prompt_kv_low; /* no sequence has a prompt span */
} rt_scheduler_options;

/* Rows and rows with logits that a step may have: what rt_forward_open must be given. */
int rt_scheduler_max_rows(int max_batch, int prefill_chunk);
int rt_scheduler_max_logits(int max_batch);

/* Starts the thread. */
bis_status rt_scheduler_open(const rt_scheduler_options *options, rt_scheduler **out, bis_error *error);
/* Cancels everything, joins the thread. */
void rt_scheduler_close(rt_scheduler *scheduler); /* NULL is allowed */

/* Queues a request and takes a reference to it. BIS_ERR_BUSY: the queue is full, or draining. Any thread. */
bis_status rt_scheduler_submit(rt_scheduler *scheduler, rt_request *request, bis_error *error);
void rt_scheduler_wake(rt_scheduler *scheduler); /* something may have changed; any thread */
void rt_scheduler_drain(rt_scheduler *scheduler);
void rt_scheduler_get_stats(const rt_scheduler *scheduler, rt_engine_stats *stats);

#endif
