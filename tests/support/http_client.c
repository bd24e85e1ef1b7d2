#include "tests/support/http_client.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

int http_connect(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((unsigned short)port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct timeval limit = {.tv_sec = 10};
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
    close(fd);
    return -1;
}

bool http_send(int fd, const char *bytes, size_t length) {
    while (length > 0) {
        ssize_t sent = send(fd, bytes, length, MSG_NOSIGNAL);
        if (sent <= 0) return false;
        bytes += sent;
        length -= (size_t)sent;
    }
    return true;
}

bool http_header(const http_answer *answer, const char *name, char *value, size_t size) {
    size_t length = strlen(name);
    for (const char *line = bis_buf_cstr(&answer->head); (line = strstr(line, "\r\n"));) {
        line += 2;
        if (strncasecmp(line, name, length) != 0 || line[length] != ':') continue;
        line += length + 1;
        while (*line == ' ') line++;
        size_t end = strcspn(line, "\r");
        if (end >= size) end = size - 1;
        memcpy(value, line, end);
        value[end] = '\0';
        return true;
    }
    return false;
}

static void join_chunks(bis_buf *body) {
    bis_buf joined = {0};
    for (char *at = body->data; at && *at;) {
        char *line_end;
        size_t size = strtoul(at, &line_end, 16), left = body->length - (size_t)(line_end - body->data);
        if (size == 0 || left < size + 4) break;
        bis_buf_append(&joined, line_end + 2, size);
        at = line_end + 2 + size + 2;
    }
    bis_buf_free(body);
    *body = joined;
}

http_answer http_receive(int fd) {
    http_answer answer = {0};
    bis_buf all = {0};
    char piece[16384];
    for (ssize_t n; (n = recv(fd, piece, sizeof piece, 0)) > 0;) bis_buf_append(&all, piece, (size_t)n);
    const char *end = all.data ? strstr(all.data, "\r\n\r\n") : NULL;
    if (end) {
        bis_buf_append(&answer.head, all.data, (size_t)(end - all.data) + 2);
        bis_buf_append(&answer.body, end + 4, all.length - (size_t)(end + 4 - all.data));
        answer.status = atoi(strchr(answer.head.data, ' '));
        char coding[32];
        if (http_header(&answer, "Transfer-Encoding", coding, sizeof coding)) join_chunks(&answer.body);
    }
    bis_buf_free(&all);
    return answer;
}

http_answer http_ask(int port, const char *method, const char *path, const char *headers, const char *body) {
    http_answer answer = {0};
    int fd = http_connect(port);
    if (fd < 0) return answer;
    bis_buf text = {0};
    bis_buf_printf(&text, "%s %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s", method, path,
                   headers ? headers : "");
    if (body) bis_buf_printf(&text, "Content-Type: application/json\r\nContent-Length: %zu\r\n", strlen(body));
    bis_buf_puts(&text, "\r\n");
    if (body) bis_buf_puts(&text, body);
    if (http_send(fd, text.data, text.length)) answer = http_receive(fd);
    bis_buf_free(&text);
    close(fd);
    return answer;
}

void http_answer_free(http_answer *answer) {
    bis_buf_free(&answer->head);
    bis_buf_free(&answer->body);
    answer->status = 0;
}
