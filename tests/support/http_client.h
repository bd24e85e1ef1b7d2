/* The smallest HTTP client that tests of the server need: blocking, one request a connection. */
#ifndef BISUP_TESTS_HTTP_CLIENT_H
#define BISUP_TESTS_HTTP_CLIENT_H

#include <stdbool.h>
#include <stddef.h>

#include "common/buf.h"

typedef struct http_answer {
    int status;   /* 0: the connection ended without an answer */
    bis_buf head; /* status line and headers */
    bis_buf body; /* chunks are joined */
} http_answer;

/* Sends a request with "Connection: close" and reads the whole answer. `headers` are further lines, each with
 * "\r\n", or NULL; body NULL: none. */
http_answer http_ask(int port, const char *method, const char *path, const char *headers, const char *body);
void http_answer_free(http_answer *answer);

/* The value of a header line in *answer, copied to value; false if it has none. */
bool http_header(const http_answer *answer, const char *name, char *value, size_t size);

/* For tests of the connection itself; -1 on failure. Reading gives up after ten seconds. */
int http_connect(int port);
bool http_send(int fd, const char *bytes, size_t length);
/* Reads an answer from a connection that the server closes afterwards. */
http_answer http_receive(int fd);

#endif
