#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "common/clock.h"
#include "server/http.h"

static void wake(srv_exchange *exchange) {
    if (exchange->wake) exchange->wake(exchange);
}

static bool start_answer(srv_exchange *exchange, int status, const char *content_type) {
    if (exchange->status) return false;
    exchange->status = status;
    exchange->content_type = content_type;
    return true;
}

static void reply_out_of_memory(srv_exchange *exchange) {
    static const char text[] = "{\"error\":{\"message\":\"The server is out of memory.\",\"type\":\"server_error\","
                               "\"param\":null,\"code\":null}}";
    bis_buf_free(&exchange->out);
    exchange->status = 500;
    exchange->content_type = "application/json";
    bis_buf_puts(&exchange->out, text); /* if this fails too, the body is empty */
}

void srv_reply(srv_exchange *exchange, int status, const char *content_type, const char *body, size_t length) {
    if (!start_answer(exchange, status, content_type)) return;
    if (!bis_buf_append(&exchange->out, body, length)) reply_out_of_memory(exchange);
    exchange->finished = true;
    wake(exchange);
}

void srv_reply_buf(srv_exchange *exchange, int status, const char *content_type, bis_buf *body) {
    if (!start_answer(exchange, status, content_type)) return;
    exchange->out = *body;
    *body = (bis_buf){0};
    if (exchange->out.failed) reply_out_of_memory(exchange);
    exchange->finished = true;
    wake(exchange);
}

void srv_add_header(srv_exchange *exchange, const char *name, const char *value) {
    if (exchange->header_count == SRV_HEADERS_MAX) return;
    srv_header *header = &exchange->headers[exchange->header_count++];
    header->name = name;
    snprintf(header->value, sizeof header->value, "%s", value);
}

void srv_stream_begin(srv_exchange *exchange, int status, const char *content_type) {
    if (!start_answer(exchange, status, content_type)) return;
    exchange->streaming = true;
    wake(exchange);
}

void srv_stream_write(srv_exchange *exchange, const char *bytes, size_t length) {
    if (!exchange->streaming || exchange->finished) return;
    if (!bis_buf_append(&exchange->out, bytes, length)) exchange->aborted = true;
    wake(exchange);
}

void srv_stream_abort(srv_exchange *exchange) {
    exchange->aborted = true;
    wake(exchange);
}

void srv_stream_end(srv_exchange *exchange) {
    if (!exchange->streaming) return;
    exchange->finished = true;
    wake(exchange);
}

bool srv_stream_full(const srv_exchange *exchange) {
    return exchange->out.length - exchange->out_sent >= SRV_OUTPUT_HIGH;
}

size_t srv_take_output(srv_exchange *exchange, char *bytes, size_t size) {
    size_t before = exchange->out.length - exchange->out_sent;
    size_t taken = before < size ? before : size;
    if (taken) memcpy(bytes, exchange->out.data + exchange->out_sent, taken);
    exchange->out_sent += taken;
    if (exchange->out_sent == exchange->out.length) {
        bis_buf_clear(&exchange->out);
        exchange->out_sent = 0;
    } else if (exchange->out_sent > SRV_OUTPUT_HIGH / 2) {
        exchange->out.length -= exchange->out_sent;
        memmove(exchange->out.data, exchange->out.data + exchange->out_sent, exchange->out.length);
        exchange->out_sent = 0;
    }
    size_t half = SRV_OUTPUT_HIGH / 2;
    if (before > half && before - taken <= half && exchange->on_writable) exchange->on_writable(exchange);
    return taken;
}

void srv_random_id(const char *prefix, char *out) {
    unsigned char bytes[12];
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes) {
        uint64_t now = bis_now_ns(); /* ids need to differ, not to be secret */
        memset(bytes, 0, sizeof bytes);
        memcpy(bytes, &now, sizeof now);
    }
    out += sprintf(out, "%s", prefix);
    for (size_t i = 0; i < sizeof bytes; i++) out += sprintf(out, "%02x", bytes[i]);
}

void srv_set_request_id(srv_exchange *exchange, const char *sent) {
    static const char harmless[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:";
    size_t length = sent ? strlen(sent) : 0;
    if (length > 0 && length <= SRV_REQUEST_ID_MAX && strspn(sent, harmless) == length)
        memcpy(exchange->request_id, sent, length + 1);
    else srv_random_id("req-", exchange->request_id);
}
