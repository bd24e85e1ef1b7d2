/* Routes: which function answers which method and path; keys, cross-origin headers, 404 and 405.
 * Loop thread. `user` of all functions is a srv_context, so that they fit into a srv_handler. */
#ifndef BISUP_SERVER_ROUTES_H
#define BISUP_SERVER_ROUTES_H

#include "server/http.h"
#include "server/job.h"

/* The head of a request: refuses what needs no body (no key, no such route, shutting down). */
void srv_routes_check(void *user, srv_exchange *exchange);
/* A complete request. */
void srv_routes_serve(void *user, srv_exchange *exchange);
/* A request that exceeded a limit of the transport. */
void srv_routes_refuse(void *user, srv_exchange *exchange, int status, const char *message);
/* One log line for an exchange that is over. */
void srv_routes_log(void *user, const srv_exchange *exchange);

#endif
