/* Jobs: requests that need work, from admission to answer.
 *
 * A job takes a slot before any work is done for it, prepares on a worker thread (parsing, template,
 * tokenizer), then proceeds on the loop thread until it answers its exchange. When the client goes away
 * the job is abandoned wherever it is. The two kinds are generations and text tools (/tokenize, ...).
 *
 * A job is kept by references: one of the loop until srv_job_end, one of the worker while it runs, and
 * one for each place in the list of choices with events. Only the loop thread drops references.
 */
#ifndef BISUP_SERVER_JOB_H
#define BISUP_SERVER_JOB_H

#include <stdatomic.h>

#include "server/http.h"
#include "server/loop.h"
#include "server/openai_render.h"
#include "server/server.h"

typedef struct srv_job srv_job;
struct srv_choice;

/* What all handlers share. Loop thread, except `ready`, and what is constant while the server runs. */
typedef struct srv_context {
    srv_options options;
    const srv_engine_ops *ops;
    rt_engine *engine;
    rt_engine_info info;
    srv_token_reader reader;
    char fingerprint[48];
    srv_loop *loop;
    bool draining;
    int job_count, max_jobs;
    srv_job *jobs, *last_job;           /* those not ended, oldest first */
    _Atomic(struct srv_choice *) ready; /* choices whose engine request has events; pushed by the engine thread */
} srv_context;

struct srv_job {
    srv_context *context;
    srv_exchange *exchange; /* NULL once answered, or once the client is gone */
    bis_buf body;
    srv_api_error error; /* of prepare */
    bool prepared, ended;
    bool (*prepare)(srv_job *job);  /* worker thread; false: `error` says why */
    void (*proceed)(srv_job *job);  /* loop thread, after prepare, if the client is still there */
    void (*tick)(srv_job *job);     /* loop thread, several times a second; may be NULL */
    void (*writable)(srv_job *job); /* the stream has room again; may be NULL */
    void (*release)(srv_job *job);  /* loop thread, at the end: stops the engine's work; may be NULL */
    void (*destroy)(srv_job *job);  /* frees what the kind added, not the job itself */
    atomic_int references;
    srv_job *previous, *next;
};

/* Takes a slot and the exchange's body and starts prepare, or answers 429 or 503. `job` has its functions
 * set and is zero otherwise; it is freed with bis_free in the end. NULL counts as out of memory. */
void srv_job_start(srv_context *context, srv_exchange *exchange, srv_job *job);

/* Ends a job: detaches the exchange, which was answered or is gone. The job may be freed by this call. */
void srv_job_end(srv_job *job);

/* Answers with an error (as an event when the stream has begun) and ends the job. */
void srv_job_fail(srv_job *job, const srv_api_error *error);

void srv_job_ref(srv_job *job); /* any thread */
void srv_job_unref(srv_job *job);

/* For all jobs: the regular look, and the end by a shutdown. */
void srv_jobs_tick(srv_context *context);
void srv_jobs_fail_all(srv_context *context);

/* Answers an exchange with an error; 429 and 503 tell the client to come back. */
void srv_reply_error(srv_exchange *exchange, const srv_api_error *error);
/* The same from a status and a text. */
void srv_reply_refusal(srv_exchange *exchange, int status, const char *type, const char *code, const char *message);
/* What an engine's failure means to a client. */
void srv_api_error_from(srv_api_error *out, const bis_error *error);

/* Checks the name a client gave (NULL is fine) against the one that is served; false fills *error with 404. */
bool srv_check_model(const srv_context *context, const char *name, srv_api_error *error);

/* Renders a conversation into *out; the system prompt's length goes to *system_end (may be NULL). */
bool srv_render_conversation(const srv_context *context, const srv_conversation *conversation, bis_buf *out,
                             size_t *system_end, srv_api_error *error);

/* The kinds of jobs. */
void srv_generation_start(srv_context *context, srv_exchange *exchange, srv_api api);
/* Takes the events of all choices that have some. */
void srv_generations_pump(srv_context *context);

void srv_tokenize_start(srv_context *context, srv_exchange *exchange);
void srv_detokenize_start(srv_context *context, srv_exchange *exchange);
void srv_apply_template_start(srv_context *context, srv_exchange *exchange);

#endif
