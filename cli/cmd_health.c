/* bisup health: asks a server's /health; for container health checks, where no curl is installed. */
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "cli/cli.h"

enum { TIMEOUT_SECONDS = 5 };

static bis_status connect_to(const char *host, const char *port, int *out, bis_error *error) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *addresses;
    int failure = getaddrinfo(host, port, &hints, &addresses);
    if (failure) return bis_fail(error, BIS_ERR_IO, "cannot find %s: %s", host, gai_strerror(failure));
    bis_status status = BIS_ERR_IO;
    for (struct addrinfo *a = addresses; a && status; a = a->ai_next) {
        int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
        if (fd < 0) continue;
        struct timeval timeout = {.tv_sec = TIMEOUT_SECONDS};
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
        if (connect(fd, a->ai_addr, a->ai_addrlen) == 0) {
            *out = fd;
            status = BIS_OK;
        } else {
            bis_fail(error, BIS_ERR_IO, "no server answers at %s port %s: %s", host, port, strerror(errno));
            close(fd);
        }
    }
    freeaddrinfo(addresses);
    return status;
}

int cli_health(const cfg_options *options) {
    bis_error error = {BIS_ERR_IO, "no server answers"};
    char port[16], request[512], answer[1024];
    /* a server that listens everywhere is asked on this machine */
    const char *host = strcmp(options->host, "0.0.0.0") == 0 ? "127.0.0.1" : options->host;
    snprintf(port, sizeof port, "%d", options->port);
    int fd = -1;
    if (connect_to(host, port, &fd, &error)) return cli_fail(&error);
    int length =
        snprintf(request, sizeof request, "GET /health HTTP/1.1\r\nHost: %.200s\r\nConnection: close\r\n\r\n", host);
    ssize_t sent = send(fd, request, (size_t)length, MSG_NOSIGNAL), got = 0;
    size_t used = 0;
    while (sent == length && used < sizeof answer - 1 &&
           (got = recv(fd, answer + used, sizeof answer - 1 - used, 0)) > 0) {
        used += (size_t)got;
    }
    close(fd);
    answer[used] = '\0';
    int code = 0;
    if (sscanf(answer, "HTTP/1.%*d %d", &code) != 1) {
        bis_fail(&error, BIS_ERR_IO, "what answers at %s port %s is not an HTTP server", host, port);
        return cli_fail(&error);
    }
    printf("%s\n", code == 200 ? "ok" : "not ready");
    return code == 200 ? 0 : 1;
}
