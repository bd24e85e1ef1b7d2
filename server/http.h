/* HTTP: sockets and bytes on one side, exchanges (one request and its answer) on the other.
 *
 * The transport (http_mhd.c) reads a request with its limits, hands it to the handler, and sends what
 * the handler puts into the exchange. A handler answers in one of two ways, now or later:
 *   srv_reply            one body, sent with its length
 *   srv_stream_begin     headers now; then text is appended with srv_stream_write, until srv_stream_end
 * Handlers touch only the fields and functions below, so they can be tested with an exchange made by
 * hand and no socket.
 *
 * Invariants
 *   - Everything here runs on the loop thread.
 *   - on_closed is called exactly once for each exchange that reached a handler; the exchange is gone
 *     after it. Before it, `aborted` tells that nobody reads the answer any more.
 *   - Memory is bounded: headers, bodies (each and in all) and unsent output have limits.
 * It knows nothing of routes, JSON or engines.
 */
#ifndef BISUP_SERVER_HTTP_H
#define BISUP_SERVER_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/status.h"
#include "server/loop.h"

enum {
    SRV_REQUEST_ID_MAX = 128,
    SRV_HEADERS_MAX = 6,        /* additional headers of an answer */
    SRV_OUTPUT_HIGH = 256 << 10 /* a stream with this much unsent output takes no more */
};

typedef struct srv_header {
    const char *name;
    char value[160]; /* NUL-terminated */
} srv_header;

typedef struct srv_exchange srv_exchange;
struct srv_exchange {
    /* The request. Strings live as long as the exchange; NULL where the client sent no such header. */
    const char *method, *path, *authorization, *origin;
    char request_id[SRV_REQUEST_ID_MAX + 1]; /* the client's, if harmless, else one of ours */
    bis_buf body;
    uint64_t started_ns;

    /* The answer, written by the functions below. */
    int status; /* 0 until answered */
    const char *content_type;
    srv_header headers[SRV_HEADERS_MAX];
    size_t header_count;
    bis_buf out;
    size_t out_sent; /* bytes of `out` the transport has taken */
    bool streaming, finished, aborted;
    int log_tokens; /* generated tokens, for the log line */

    /* The handler's side: both may be NULL. */
    void *job;
    void (*on_writable)(srv_exchange *exchange); /* a stream went from full to half empty */
    void (*on_closed)(srv_exchange *exchange);   /* the answer was sent, or the client is gone */

    /* The transport's side: look at the exchange again. */
    void (*wake)(srv_exchange *exchange);
};

/* ---- For handlers ------------------------------------------------------------------------------ */

/* Answers with body[0..length), which is copied. Only the first answer counts. */
void srv_reply(srv_exchange *exchange, int status, const char *content_type, const char *body, size_t length);
/* The same, and takes over the bytes of *body, which is empty afterwards. When memory ran out while it was
 * written, the answer is status 500. */
void srv_reply_buf(srv_exchange *exchange, int status, const char *content_type, bis_buf *body);

/* Adds a header to the answer, before it is given; a value that is too long is cut. */
void srv_add_header(srv_exchange *exchange, const char *name, const char *value);

void srv_stream_begin(srv_exchange *exchange, int status, const char *content_type);
void srv_stream_write(srv_exchange *exchange, const char *bytes, size_t length);
void srv_stream_end(srv_exchange *exchange);
/* Cuts the connection: after a piece was lost, more would mislead the client. */
void srv_stream_abort(srv_exchange *exchange);
bool srv_stream_full(const srv_exchange *exchange);

/* ---- For the transport ------------------------------------------------------------------------- */

/* Takes up to `size` bytes of unsent output; calls on_writable when there is room again. */
size_t srv_take_output(srv_exchange *exchange, char *bytes, size_t size);
/* Fills request_id from what the client sent (may be NULL). */
void srv_set_request_id(srv_exchange *exchange, const char *sent);
/* Writes "<prefix><24 random hexadecimal digits>"; out has at least strlen(prefix) + 25 bytes. */
void srv_random_id(const char *prefix, char *out);

typedef struct srv_handler {
    void *user;
    /* The headers are here, the body is not: may answer, and then the body is read and dropped. */
    void (*on_headers)(void *user, srv_exchange *exchange);
    /* The request is complete. Not called when on_headers or a limit has already answered. */
    void (*on_request)(void *user, srv_exchange *exchange);
    /* A limit of the transport was exceeded: must answer with this status and message. */
    void (*on_refused)(void *user, srv_exchange *exchange, int status, const char *message);
    /* The answer was sent, or the client is gone. For the log. */
    void (*on_done)(void *user, const srv_exchange *exchange);
} srv_handler;

typedef struct srv_http_options {
    const char *host;  /* a name or an address */
    int port;          /* 0: any free one */
    size_t max_body;   /* bytes of one request's body */
    size_t max_bodies; /* bytes of all bodies in memory */
    int max_connections;
    int idle_seconds; /* a connection may take this long for a complete request head, or stay silent */
    int body_seconds; /* a request may take this long for its body */
} srv_http_options;

typedef struct srv_http srv_http;

/* Listens; requests arrive while the loop runs. The handler and the loop must outlive *out.
 * BIS_ERR_IO when the address cannot be had: the text says why. */
bis_status srv_http_open(const srv_http_options *options, const srv_handler *handler, srv_loop *loop, srv_http **out,
                         bis_error *error);
int srv_http_port(const srv_http *http);
/* No new connections; those that are open go on. */
void srv_http_stop_listening(srv_http *http);
/* Requests that are not completely answered. */
int srv_http_active(const srv_http *http);
/* To be called about once a second: ends connections that take too long for their request. */
void srv_http_tick(srv_http *http);
/* Ends all connections at once. NULL is allowed. */
void srv_http_close(srv_http *http);

#endif
