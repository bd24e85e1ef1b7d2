#include "server/server.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "server/http.h"
#include "server/job.h"
#include "server/loop.h"
#include "server/routes.h"

enum {
    TICK_MS = 100,
    TICKS_PER_SECOND = 1000 / TICK_MS,
    BODIES_AT_ONCE = 16, /* bodies of the largest size being read at the same time */
    LAST_WORDS_MS = 1000 /* for sending the answers of requests a shutdown ended */
};

typedef struct server {
    srv_context context;
    srv_http *http;
    unsigned ticks;
    uint64_t deadline_ns, last_words_ns; /* of the shutdown */
} server;

srv_options srv_default_options(void) {
    return (srv_options){.host = "127.0.0.1",
                         .port = 8080,
                         .version = "unknown",
                         .max_body = (size_t)4 << 20,
                         .max_queue = 128,
                         .max_connections = 4096,
                         .drain_seconds = 30,
                         .ping_seconds = 10,
                         .idle_seconds = 60,
                         .body_seconds = 120,
                         .log_requests = true};
}

static size_t token_bytes(const void *user, int32_t id, char out[RT_TOKEN_TEXT_MAX]) {
    const srv_context *context = user;
    return context->ops->token_bytes(context->engine, id, out);
}

/* ---- Hooks of the loop ------------------------------------------------------------------------- */

static void on_wake(void *user) { srv_generations_pump(&((server *)user)->context); }

static void on_signal(void *user) {
    server *s = user;
    if (s->context.draining) {
        srv_loop_stop(s->context.loop);
        return;
    }
    s->context.draining = true;
    s->deadline_ns = bis_now_ns() + (uint64_t)s->context.options.drain_seconds * 1000000000u;
    srv_http_stop_listening(s->http);
    if (s->context.job_count > 0)
        bis_info("shutting down: %d requests may go on for %d s; press Ctrl-C again to end at once",
                 s->context.job_count, s->context.options.drain_seconds);
}

static void drain(server *s) {
    uint64_t now = bis_now_ns();
    bool idle = s->context.job_count == 0 && srv_http_active(s->http) == 0;
    if (idle || (s->last_words_ns && now >= s->last_words_ns)) {
        srv_loop_stop(s->context.loop);
    } else if (now >= s->deadline_ns && !s->last_words_ns) {
        srv_jobs_fail_all(&s->context);
        s->last_words_ns = now + (uint64_t)LAST_WORDS_MS * 1000000u;
    }
}

static void on_tick(void *user) {
    server *s = user;
    srv_jobs_tick(&s->context);
    if (++s->ticks % TICKS_PER_SECOND == 0) srv_http_tick(s->http);
    if (s->context.draining) drain(s);
}

/* ---- Running ----------------------------------------------------------------------------------- */

static void announce(const server *s) {
    const srv_options *o = &s->context.options;
    if (!o->on_listening) return;
    bool everywhere = strcmp(o->host, "0.0.0.0") == 0 || strcmp(o->host, "::") == 0;
    bool v6 = strchr(o->host, ':') != NULL && !everywhere;
    char url[320];
    snprintf(url, sizeof url, "http://%s%.256s%s:%d", v6 ? "[" : "", everywhere ? "127.0.0.1" : o->host, v6 ? "]" : "",
             srv_http_port(s->http));
    o->on_listening(o->listening_user, url, srv_http_port(s->http));
}

static bis_status open_http(server *s, bis_error *error) {
    const srv_options *o = &s->context.options;
    srv_handler handler = {.user = &s->context,
                           .on_headers = srv_routes_check,
                           .on_request = srv_routes_serve,
                           .on_refused = srv_routes_refuse,
                           .on_done = srv_routes_log};
    srv_http_options http = {.host = o->host,
                             .port = o->port,
                             .max_body = o->max_body,
                             .max_bodies = o->max_body * BODIES_AT_ONCE,
                             .max_connections = o->max_connections,
                             .idle_seconds = o->idle_seconds,
                             .body_seconds = o->body_seconds};
    return srv_http_open(&http, &handler, s->context.loop, &s->http, error);
}

bis_status srv_run(const srv_options *options, rt_engine *engine, const srv_engine_ops *ops, bis_error *error) {
    server s = {.context = {.options = *options, .ops = ops ? ops : srv_default_engine_ops(), .engine = engine}};
    srv_context *context = &s.context;
    context->ops->get_info(engine, &context->info);
    context->max_jobs = context->info.max_batch + options->max_queue;
    context->reader = (srv_token_reader){.bytes = token_bytes, .user = context};
    snprintf(context->fingerprint, sizeof context->fingerprint, "bisup-%.40s", options->version);
    atomic_init(&context->ready, NULL);
    signal(SIGPIPE, SIG_IGN); /* a client that hangs up is not a reason to end */

    bis_status status = srv_loop_create(&context->loop, error);
    if (status == BIS_OK) {
        srv_loop_on_wake(context->loop, on_wake, &s);
        srv_loop_on_tick(context->loop, TICK_MS, on_tick, &s);
        status = srv_loop_on_stop_signal(context->loop, on_signal, &s, error);
    }
    if (status == BIS_OK) status = open_http(&s, error);
    if (status == BIS_OK) {
        announce(&s);
        srv_loop_run(context->loop);
        context->ops->drain(engine);
    }
    srv_jobs_fail_all(context);
    srv_http_close(s.http);
    srv_generations_pump(context); /* drops the references of events that came last */
    srv_loop_destroy(context->loop);
    return status;
}
