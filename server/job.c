#include "server/job.h"

#include <stdio.h>
#include <string.h>

#include "common/alloc.h"

static const char JSON[] = "application/json";

/* ---- Errors ------------------------------------------------------------------------------------ */

void srv_reply_error(srv_exchange *exchange, const srv_api_error *error) {
    bis_buf body = {0};
    srv_render_error(&body, error);
    if (error->status == 429 || error->status == 503) srv_add_header(exchange, "Retry-After", "1");
    if (error->status == 401) srv_add_header(exchange, "WWW-Authenticate", "Bearer");
    srv_reply_buf(exchange, error->status, JSON, &body);
}

void srv_reply_refusal(srv_exchange *exchange, int status, const char *type, const char *code, const char *message) {
    srv_api_error error = {.status = status, .type = type, .code = code};
    snprintf(error.message, sizeof error.message, "%s", message);
    srv_reply_error(exchange, &error);
}

void srv_api_error_from(srv_api_error *out, const bis_error *error) {
    srv_refuse(out, NULL, "%s", error->text);
    switch (error->status) {
    case BIS_ERR_INVALID:
    case BIS_ERR_UNSUPPORTED: break;
    case BIS_ERR_LIMIT: out->code = "context_length_exceeded"; break;
    case BIS_ERR_BUSY:
    case BIS_ERR_NOMEM:
    case BIS_ERR_CANCELLED:
        out->status = 503;
        out->type = "server_error";
        break;
    default: out->status = 500; out->type = "server_error";
    }
}

static void shutting_down(srv_api_error *error) {
    srv_refuse(error, NULL, "The server is shutting down.");
    error->status = 503;
    error->type = "server_error";
    error->code = "shutting_down";
}

bool srv_check_model(const srv_context *context, const char *name, srv_api_error *error) {
    if (!name || strcmp(name, context->info.model_name) == 0) return true;
    srv_refuse(error, "model", "The model '%.100s' does not exist here; this server has '%s'.", name,
               context->info.model_name);
    error->status = 404;
    error->code = "model_not_found";
    return false;
}

bool srv_render_conversation(const srv_context *context, const srv_conversation *conversation, bis_buf *out,
                             size_t *system_end, srv_api_error *error) {
    rt_chat_input input = {.messages_json = conversation->messages,
                           .tools_json = conversation->tools,
                           .variables_json = conversation->variables,
                           .add_generation_prompt = conversation->add_generation_prompt};
    bis_error problem = {0};
    bis_status status = context->ops->render_chat(context->engine, &input, out, system_end, &problem);
    if (status == BIS_OK) return true;
    srv_api_error_from(error, &problem);
    if (status == BIS_ERR_NOMEM) return false;
    error->status = 400; /* whatever a template does with its input, trying again will not help */
    error->type = "invalid_request_error";
    error->code = NULL;
    snprintf(error->param, sizeof error->param, "messages");
    return false;
}

/* ---- Life -------------------------------------------------------------------------------------- */

void srv_job_ref(srv_job *job) { atomic_fetch_add(&job->references, 1); }

void srv_job_unref(srv_job *job) {
    if (atomic_fetch_sub(&job->references, 1) != 1) return;
    job->context->job_count--;
    job->destroy(job);
    bis_buf_free(&job->body);
    bis_free(job);
}

void srv_job_end(srv_job *job) {
    if (job->ended) return;
    job->ended = true;
    if (job->exchange) {
        job->exchange->job = NULL;
        job->exchange->on_closed = NULL;
        job->exchange->on_writable = NULL;
        job->exchange = NULL;
    }
    if (job->next) job->next->previous = job->previous;
    else job->context->last_job = job->previous;
    if (job->previous) job->previous->next = job->next;
    else job->context->jobs = job->next;
    if (job->release) job->release(job);
    srv_job_unref(job);
}

void srv_job_fail(srv_job *job, const srv_api_error *error) {
    srv_exchange *exchange = job->exchange;
    if (exchange && exchange->streaming) {
        bis_buf event = {0};
        srv_render_error_event(&event, error);
        srv_stream_write(exchange, bis_buf_cstr(&event), event.length);
        bis_buf_free(&event);
        srv_stream_end(exchange);
    } else if (exchange) {
        srv_reply_error(exchange, error);
    }
    srv_job_end(job);
}

static void client_gone(srv_exchange *exchange) {
    srv_job *job = exchange->job;
    if (job) srv_job_end(job);
}

static void client_reads(srv_exchange *exchange) {
    srv_job *job = exchange->job;
    if (job && job->writable) job->writable(job);
}

static void run_prepare(void *user) {
    srv_job *job = user;
    job->prepared = job->prepare(job);
    bis_buf_free(&job->body); /* everything needed was copied */
}

static void prepare_done(void *user) {
    srv_job *job = user;
    if (!job->ended) {
        if (job->prepared) job->proceed(job);
        else srv_job_fail(job, &job->error);
    }
    srv_job_unref(job);
}

static void attach(srv_job *job, srv_context *context, srv_exchange *exchange) {
    job->context = context;
    job->exchange = exchange;
    job->body = exchange->body;
    exchange->body = (bis_buf){0};
    exchange->job = job;
    exchange->on_closed = client_gone;
    exchange->on_writable = client_reads;
    atomic_init(&job->references, 1);
    context->job_count++;
    job->previous = context->last_job;
    if (job->previous) job->previous->next = job;
    else context->jobs = job;
    context->last_job = job;
}

void srv_job_start(srv_context *context, srv_exchange *exchange, srv_job *job) {
    srv_api_error error;
    if (context->draining) {
        bis_free(job);
        shutting_down(&error);
        srv_reply_error(exchange, &error);
        return;
    }
    if (context->job_count >= context->max_jobs) {
        bis_free(job);
        srv_reply_refusal(exchange, 429, "rate_limit_error", "queue_full",
                          "Too many requests are waiting; try again in a moment.");
        return;
    }
    if (job) {
        attach(job, context, exchange);
        srv_job_ref(job);
        if (srv_loop_work(context->loop, run_prepare, prepare_done, job) == BIS_OK) return;
        srv_job_end(job);
        srv_job_unref(job);
    }
    srv_refuse_memory(&error);
    srv_reply_error(exchange, &error);
}

void srv_jobs_tick(srv_context *context) {
    for (srv_job *job = context->jobs, *next; job; job = next) {
        next = job->next; /* a tick may end its own job, never another */
        if (job->tick) job->tick(job);
    }
}

void srv_jobs_fail_all(srv_context *context) {
    srv_api_error error;
    shutting_down(&error);
    while (context->jobs) srv_job_fail(context->jobs, &error);
}
