/* The transport over libmicrohttpd: the only file that knows it.
 *
 * The library runs without threads of its own. Its epoll descriptor is watched by our loop, which calls
 * MHD_run when something happened and at the time the library asks for. While an exchange has nothing to
 * send its connection is suspended; wake() resumes it, and one MHD_run before the loop sleeps serves all
 * that were woken.
 *
 * The library does not look at suspended connections, so a second epoll set watches their sockets for
 * the client's hang-up: a request is cancelled as soon as nobody waits for it. A client that closes only its
 * sending side counts as gone, because the two look the same from here.
 */
#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/clock.h"
#include "common/log.h"
#include "server/http.h"

enum {
    HEADER_MEMORY = 32 << 10, /* per connection: the request's head and MHD's own buffers */
    STREAM_BLOCK = 16 << 10,
    BACKLOG = 1024,
    SPARE_FDS = 64 /* model files, epoll sets, standard streams */
};

/* A refused body is read and dropped, so that the client gets to read why; but not without end. */
#define DROPPED_BODY_MAX ((uint64_t)64 << 20)

typedef struct peer peer; /* one connection */
typedef struct mhd_exchange mhd_exchange;
struct peer {
    srv_http *http;
    struct MHD_Connection *connection;
    int fd;
    uint64_t since_ns; /* when the connection began to wait for a request's head or body */
    bool waiting, in_body, shut;
    mhd_exchange *exchange; /* the request being served */
    peer *previous, *next;
};

struct mhd_exchange {
    srv_exchange base; /* first: wake() casts */
    srv_http *http;
    peer *peer;
    bool dispatched, queued, suspended, watched, expects_continue;
    uint64_t dropped;
    size_t counted; /* bytes of the body in http->body_bytes */
};

struct srv_http {
    struct MHD_Daemon *daemon;
    srv_handler handler;
    srv_http_options options;
    srv_loop *loop;
    int port, epoll_fd, hangup_fd, active;
    bool listening, needs_run;
    size_t body_bytes;
    peer *peers;
};

/* ---- Suspending and waking --------------------------------------------------------------------- */

static void watch_for_hangup(mhd_exchange *e) {
    if (e->watched) return;
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLONESHOT, .data = {.ptr = e}};
    e->watched = epoll_ctl(e->http->hangup_fd, EPOLL_CTL_ADD, e->peer->fd, &event) == 0;
}

static void suspend(mhd_exchange *e) {
    e->suspended = true;
    watch_for_hangup(e);
    MHD_suspend_connection(e->peer->connection);
}

static void wake(srv_exchange *exchange) {
    mhd_exchange *e = (mhd_exchange *)exchange;
    if (!e->suspended) return;
    e->suspended = false;
    e->http->needs_run = true;
    MHD_resume_connection(e->peer->connection);
}

static void close_job(mhd_exchange *e) {
    void (*on_closed)(srv_exchange *) = e->base.on_closed;
    e->base.on_closed = NULL;
    if (on_closed) on_closed(&e->base);
}

/* The library has all of the answer: a client that closes now has most likely read it, and if not, the library says so.
 */
static bool is_handed_over(const mhd_exchange *e) {
    const srv_exchange *x = &e->base;
    return e->queued && (!x->streaming || (x->finished && x->out_sent == x->out.length));
}

static void take_hangups(void *user) {
    srv_http *http = user;
    struct epoll_event events[32];
    int count = epoll_wait(http->hangup_fd, events, 32, 0);
    for (int i = 0; i < count; i++) {
        mhd_exchange *e = events[i].data.ptr;
        if (is_handed_over(e)) continue;
        e->base.aborted = true;
        close_job(e);
        wake(&e->base);
    }
}

/* ---- Answers ----------------------------------------------------------------------------------- */

static ssize_t read_stream(void *user, uint64_t position, char *bytes, size_t size) {
    (void)position;
    mhd_exchange *e = user;
    if (e->base.aborted) return MHD_CONTENT_READER_END_WITH_ERROR;
    size_t taken = srv_take_output(&e->base, bytes, size);
    if (taken) return (ssize_t)taken;
    if (e->base.finished) return MHD_CONTENT_READER_END_OF_STREAM;
    suspend(e);
    return 0;
}

static enum MHD_Result queue_answer(mhd_exchange *e) {
    srv_exchange *x = &e->base;
    struct MHD_Response *response =
        x->streaming ? MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, STREAM_BLOCK, read_stream, e, NULL)
                     : MHD_create_response_from_buffer(x->out.length, x->out.data, MHD_RESPMEM_PERSISTENT);
    if (!response) return MHD_NO;
    bool ok = !x->content_type || MHD_add_response_header(response, "Content-Type", x->content_type) == MHD_YES;
    ok = ok && MHD_add_response_header(response, "X-Request-Id", x->request_id) == MHD_YES;
    for (size_t i = 0; i < x->header_count; i++)
        ok = ok && MHD_add_response_header(response, x->headers[i].name, x->headers[i].value) == MHD_YES;
    enum MHD_Result result =
        ok ? MHD_queue_response(e->peer->connection, (unsigned)x->status, response) : (enum MHD_Result)MHD_NO;
    MHD_destroy_response(response);
    e->queued = true;
    return result;
}

/* ---- Requests ---------------------------------------------------------------------------------- */

static void refuse(mhd_exchange *e, int status, const char *message) {
    srv_http *http = e->http;
    http->body_bytes -= e->counted;
    e->counted = 0;
    bis_buf_free(&e->base.body);
    http->handler.on_refused(http->handler.user, &e->base, status, message);
}

/* Keeps a piece of the body, or drops it when the request is refused already. False: enough is enough. */
static bool take_body(mhd_exchange *e, const char *bytes, size_t size) {
    srv_http *http = e->http;
    if (!e->base.status) {
        if (size > http->options.max_body - e->base.body.length) {
            refuse(e, 413, "The request body is larger than this server accepts.");
        } else if (size > http->options.max_bodies - http->body_bytes) {
            refuse(e, 429, "The server is reading too many large requests at the moment.");
        } else if (!bis_buf_append(&e->base.body, bytes, size)) {
            refuse(e, 503, "The server has no memory for this request at the moment.");
        } else {
            e->counted += size;
            http->body_bytes += size;
            return true;
        }
    }
    e->dropped += size;
    return e->dropped <= DROPPED_BODY_MAX;
}

static const char *find_header(mhd_exchange *e, const char *name) {
    return MHD_lookup_connection_value(e->peer->connection, MHD_HEADER_KIND, name);
}

static mhd_exchange *begin_exchange(srv_http *http, peer *p, const char *path, const char *method) {
    mhd_exchange *e = bis_calloc(1, sizeof *e);
    if (!e) return NULL;
    e->http = http;
    e->peer = p;
    e->base.method = method;
    e->base.path = path;
    e->base.wake = wake;
    e->base.started_ns = bis_now_ns();
    e->base.authorization = find_header(e, "Authorization");
    e->base.origin = find_header(e, "Origin");
    srv_set_request_id(&e->base, find_header(e, "X-Request-Id"));
    e->expects_continue = find_header(e, "Expect") != NULL;
    p->exchange = e;
    p->in_body = true;
    p->since_ns = e->base.started_ns;
    http->active++;
    return e;
}

/* The head of a request has arrived. */
static enum MHD_Result take_head(srv_http *http, mhd_exchange *e) {
    http->handler.on_headers(http->handler.user, &e->base);
    const char *length_text = find_header(e, "Content-Length");
    unsigned long long length = length_text ? strtoull(length_text, NULL, 10) : 0;
    if (!e->base.status && length > http->options.max_body)
        refuse(e, 413, "The request body is larger than this server accepts.");
    /* A client that asks first, or would send far too much, is answered before it sends the body. */
    if (e->base.status && (e->expects_continue || length > DROPPED_BODY_MAX)) return queue_answer(e);
    return MHD_YES;
}

static enum MHD_Result on_access(void *user, struct MHD_Connection *connection, const char *url, const char *method,
                                 const char *version, const char *upload, size_t *upload_size, void **context) {
    (void)version;
    srv_http *http = user;
    mhd_exchange *e = *context;
    if (!e) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
        if (!info || !info->socket_context) return MHD_NO;
        e = begin_exchange(http, info->socket_context, url, method);
        *context = e;
        return e ? take_head(http, e) : MHD_NO;
    }
    if (*upload_size) {
        bool ok = take_body(e, upload, *upload_size);
        *upload_size = 0;
        return ok ? MHD_YES : MHD_NO;
    }
    if (e->base.aborted) return MHD_NO;
    if (e->queued) return MHD_YES;
    if (!e->dispatched) {
        e->dispatched = true;
        e->peer->waiting = false;
        http->body_bytes -= e->counted; /* from here on the handler's own limits hold */
        e->counted = 0;
        if (!e->base.status) http->handler.on_request(http->handler.user, &e->base);
    }
    if (e->base.status) return queue_answer(e);
    suspend(e);
    return MHD_YES;
}

static void on_completed(void *user, struct MHD_Connection *connection, void **context,
                         enum MHD_RequestTerminationCode code) {
    (void)connection;
    srv_http *http = user;
    mhd_exchange *e = *context;
    if (!e) return;
    *context = NULL;
    if (code != MHD_REQUEST_TERMINATED_COMPLETED_OK) e->base.aborted = true;
    if (e->watched) epoll_ctl(http->hangup_fd, EPOLL_CTL_DEL, e->peer->fd, NULL);
    close_job(e);
    http->handler.on_done(http->handler.user, &e->base);
    http->active--;
    http->body_bytes -= e->counted;
    e->peer->exchange = NULL;
    e->peer->waiting = true;
    e->peer->in_body = false;
    e->peer->since_ns = bis_now_ns();
    bis_buf_free(&e->base.body);
    bis_buf_free(&e->base.out);
    bis_free(e);
}

/* ---- Connections ------------------------------------------------------------------------------- */

static void on_connection(void *user, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode code) {
    srv_http *http = user;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        peer *p = info ? bis_calloc(1, sizeof *p) : NULL;
        if (!p) return; /* its first request is refused by on_access */
        *p = (peer){.http = http,
                    .connection = connection,
                    .fd = info->connect_fd,
                    .since_ns = bis_now_ns(),
                    .waiting = true,
                    .next = http->peers};
        if (p->next) p->next->previous = p;
        http->peers = p;
        *context = p;
        return;
    }
    peer *p = *context;
    if (!p) return;
    if (p->next) p->next->previous = p->previous;
    if (p->previous) p->previous->next = p->next;
    else http->peers = p->next;
    bis_free(p);
}

/* Ends connections that take too long for their request: MHD's own time-out starts again with each byte. */
static void end_slow_connections(srv_http *http) {
    uint64_t now = bis_now_ns();
    for (peer *p = http->peers; p; p = p->next) {
        if (!p->waiting || p->shut) continue;
        uint64_t limit = (uint64_t)(p->in_body ? http->options.body_seconds : http->options.idle_seconds);
        if (now - p->since_ns < limit * 1000000000u) continue;
        p->shut = true;
        shutdown(p->fd, SHUT_RDWR); /* MHD sees the end of the stream and cleans up */
    }
}

/* ---- Running ----------------------------------------------------------------------------------- */

static void run(void *user) {
    srv_http *http = user;
    http->needs_run = false;
    MHD_run(http->daemon);
    MHD_UNSIGNED_LONG_LONG milliseconds;
    bool wanted = MHD_get_timeout(http->daemon, &milliseconds) == MHD_YES;
    srv_loop_set_alarm(http->loop, wanted ? (long long)(milliseconds < 60000 ? milliseconds : 60000) : -1);
}

static void run_if_needed(void *user) {
    srv_http *http = user;
    for (int i = 0; http->needs_run && i < 4; i++) run(http);
    if (http->needs_run) srv_loop_set_alarm(http->loop, 0);
}

void srv_http_tick(srv_http *http) { end_slow_connections(http); }

static void log_library(void *user, const char *format, va_list arguments) __attribute__((format(printf, 2, 0)));
static void log_library(void *user, const char *format, va_list arguments) {
    (void)user;
    char text[256];
    vsnprintf(text, sizeof text, format, arguments);
    text[strcspn(text, "\r\n")] = '\0';
    bis_debug("http: %s", text);
}

/* ---- Opening and closing ----------------------------------------------------------------------- */

static int listen_at(const struct addrinfo *address) {
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, address->ai_addr, address->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0) return fd;
    int reason = errno;
    close(fd);
    errno = reason;
    return -1;
}

static bis_status open_listener(const srv_http_options *options, int *out_fd, int *out_port, bis_error *error) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV}, *list = NULL;
    char port_text[16];
    snprintf(port_text, sizeof port_text, "%d", options->port);
    int failure = getaddrinfo(options->host, port_text, &hints, &list);
    if (failure) return bis_fail(error, BIS_ERR_IO, "cannot listen on '%s': %s", options->host, gai_strerror(failure));
    int fd = -1;
    for (const struct addrinfo *a = list; a && fd < 0; a = a->ai_next) fd = listen_at(a);
    int reason = errno;
    freeaddrinfo(list);
    if (fd < 0)
        return bis_fail(error, BIS_ERR_IO, "cannot listen on %s port %d: %s%s", options->host, options->port,
                        strerror(reason), reason == EADDRINUSE ? "; choose another port with --port" : "");
    struct sockaddr_storage bound = {0};
    socklen_t length = sizeof bound;
    char service[16] = "0";
    if (getsockname(fd, (struct sockaddr *)&bound, &length) == 0)
        getnameinfo((struct sockaddr *)&bound, length, NULL, 0, service, sizeof service, NI_NUMERICSERV);
    *out_port = atoi(service);
    *out_fd = fd;
    return BIS_OK;
}

/* Connections that fit into the process's descriptor limit, which is raised as far as allowed. */
static unsigned allowed_connections(int wanted) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return (unsigned)wanted;
    rlim_t needed = (rlim_t)wanted + SPARE_FDS;
    if (limit.rlim_cur < needed) {
        limit.rlim_cur = limit.rlim_max < needed ? limit.rlim_max : needed;
        setrlimit(RLIMIT_NOFILE, &limit);
        getrlimit(RLIMIT_NOFILE, &limit);
    }
    if (limit.rlim_cur >= needed) return (unsigned)wanted;
    return limit.rlim_cur > 2 * SPARE_FDS ? (unsigned)(limit.rlim_cur - SPARE_FDS) : SPARE_FDS;
}

static bis_status start_daemon(srv_http *http, bis_error *error) {
    int fd = -1;
    bis_status status = open_listener(&http->options, &fd, &http->port, error);
    if (status != BIS_OK) return status;
    /* clang-format off */
    http->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ITC | MHD_USE_ERROR_LOG, 0, NULL, NULL, on_access, http,
        MHD_OPTION_EXTERNAL_LOGGER, log_library, NULL,
        MHD_OPTION_LISTEN_SOCKET, fd,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, http,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, http,
        MHD_OPTION_CONNECTION_LIMIT, allowed_connections(http->options.max_connections),
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)http->options.body_seconds,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HEADER_MEMORY,
        MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1,
        MHD_OPTION_END);
    /* clang-format on */
    if (!http->daemon) {
        close(fd);
        return bis_fail(error, BIS_ERR_IO, "cannot start the HTTP server");
    }
    http->listening = true;
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(http->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    if (!info) return bis_fail(error, BIS_ERR_IO, "cannot start the HTTP server: it has no epoll descriptor");
    http->epoll_fd = info->epoll_fd;
    status = srv_loop_watch(http->loop, http->epoll_fd, run, http, error);
    if (status == BIS_OK) status = srv_loop_watch(http->loop, http->hangup_fd, take_hangups, http, error);
    return status;
}

bis_status srv_http_open(const srv_http_options *options, const srv_handler *handler, srv_loop *loop, srv_http **out,
                         bis_error *error) {
    srv_http *http = bis_calloc(1, sizeof *http);
    if (!http) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the HTTP server");
    *http = (srv_http){.handler = *handler, .options = *options, .loop = loop, .epoll_fd = -1};
    http->hangup_fd = epoll_create1(EPOLL_CLOEXEC);
    bis_status status = http->hangup_fd < 0 ? bis_fail(error, BIS_ERR_IO, "cannot watch sockets: %s", strerror(errno))
                                            : start_daemon(http, error);
    if (status != BIS_OK) {
        srv_http_close(http);
        return status;
    }
    srv_loop_on_alarm(loop, run, http);
    srv_loop_before_sleep(loop, run_if_needed, http);
    *out = http;
    return BIS_OK;
}

int srv_http_port(const srv_http *http) { return http->port; }
int srv_http_active(const srv_http *http) { return http->active; }

void srv_http_stop_listening(srv_http *http) {
    if (!http->listening) return;
    http->listening = false;
    MHD_socket fd = MHD_quiesce_daemon(http->daemon);
    if (fd != MHD_INVALID_SOCKET) close(fd);
}

/* Resumes every suspended connection: MHD must not be stopped with suspended ones. */
static void abort_exchanges(srv_http *http) {
    for (peer *p = http->peers; p; p = p->next) {
        if (!p->exchange) continue;
        p->exchange->base.aborted = true;
        wake(&p->exchange->base);
    }
}

void srv_http_close(srv_http *http) {
    if (!http) return;
    if (http->daemon) {
        srv_http_stop_listening(http);
        if (http->epoll_fd >= 0) srv_loop_unwatch(http->loop, http->epoll_fd);
        srv_loop_unwatch(http->loop, http->hangup_fd);
        srv_loop_on_alarm(http->loop, NULL, NULL);
        srv_loop_before_sleep(http->loop, NULL, NULL);
        abort_exchanges(http);
        MHD_run(http->daemon);
        MHD_stop_daemon(http->daemon);
    }
    if (http->hangup_fd >= 0) close(http->hangup_fd);
    bis_free(http);
}
