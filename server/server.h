/* The OpenAI-compatible HTTP server over an engine.
 *
 * One loop thread owns everything of HTTP; parsing, chat templates and tokenizing run on a few worker
 * threads, so that /health is never held up; the engine works on its own thread and only wakes the loop.
 * The server does not load models, read key files or print: the command line does.
 */
#ifndef BISUP_SERVER_SERVER_H
#define BISUP_SERVER_SERVER_H

#include <stdbool.h>
#include <stddef.h>

#include "common/status.h"
#include "server/engine_ops.h"

typedef struct srv_options {
    const char *host;            /* a name or an address */
    int port;                    /* 0: any free one, see on_listening */
    const char *version;         /* of the program, for /version */
    const char *const *api_keys; /* clients must send one of them; none: everybody is served */
    size_t api_key_count;
    const char *cors_origin; /* NULL: no web page may call; "*": all may */
    size_t max_body;         /* bytes of a request body */
    int max_queue;           /* requests that may wait besides the engine's max_batch running ones */
    int max_connections;
    int drain_seconds; /* how long requests may go on after SIGINT or SIGTERM */
    int ping_seconds;  /* silence of a stream before a comment is sent to keep it open */
    int idle_seconds;  /* time for a request's head, and for a connection to stay silent */
    int body_seconds;  /* time for a request's body */
    bool log_requests; /* one info line per request */
    /* Called on the loop thread when the socket listens; may be NULL. */
    void (*on_listening)(void *user, const char *url, int port);
    void *listening_user;
} srv_options;

srv_options srv_default_options(void);

/* Serves until SIGINT or SIGTERM; then takes no new connections, lets running requests finish for up to
 * drain_seconds, and returns BIS_OK. A second signal ends it at once. The engine is drained, and has no
 * requests of ours afterwards; it stays open. `ops` is NULL for the real engine.
 * BIS_ERR_IO when the address cannot be had. */
bis_status srv_run(const srv_options *options, rt_engine *engine, const srv_engine_ops *ops, bis_error *error);

#endif
