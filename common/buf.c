#include "common/buf.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"

bool bis_buf_reserve(bis_buf *buf, size_t extra) {
    if (buf->failed) return false;
    if (extra < buf->capacity - buf->length) return true;
    if (extra > SIZE_MAX / 2 - buf->length - 1) {
        buf->failed = true;
        return false;
    }
    size_t capacity = buf->capacity ? buf->capacity : 64;
    while (capacity < buf->length + extra + 1) capacity *= 2;
    char *data = bis_realloc(buf->data, capacity);
    if (!data) {
        buf->failed = true;
        return false;
    }
    buf->data = data;
    buf->capacity = capacity;
    return true;
}

bool bis_buf_append(bis_buf *buf, const void *bytes, size_t length) {
    if (!bis_buf_reserve(buf, length)) return false;
    if (length) memcpy(buf->data + buf->length, bytes, length);
    buf->length += length;
    buf->data[buf->length] = '\0';
    return true;
}

bool bis_buf_puts(bis_buf *buf, const char *text) { return bis_buf_append(buf, text, strlen(text)); }

bool bis_buf_putc(bis_buf *buf, char c) { return bis_buf_append(buf, &c, 1); }

bool bis_buf_printf(bis_buf *buf, const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    bool ok = length >= 0 && bis_buf_reserve(buf, (size_t)length);
    if (ok) {
        vsnprintf(buf->data + buf->length, (size_t)length + 1, format, again);
        buf->length += (size_t)length;
    }
    va_end(again);
    return ok;
}

static void put_escaped(bis_buf *buf, unsigned char c) {
    switch (c) {
    case '"': bis_buf_puts(buf, "\\\""); break;
    case '\\': bis_buf_puts(buf, "\\\\"); break;
    case '\b': bis_buf_puts(buf, "\\b"); break;
    case '\f': bis_buf_puts(buf, "\\f"); break;
    case '\n': bis_buf_puts(buf, "\\n"); break;
    case '\r': bis_buf_puts(buf, "\\r"); break;
    case '\t': bis_buf_puts(buf, "\\t"); break;
    default: bis_buf_printf(buf, "\\u%04x", c);
    }
}

bool bis_buf_json_string(bis_buf *buf, const char *text, size_t length) {
    bis_buf_putc(buf, '"');
    size_t plain = 0; /* start of the run not yet copied */
    for (size_t i = 0; i < length;) {
        unsigned char c = (unsigned char)text[i];
        uint32_t code_point;
        size_t n = bis_utf8_decode(text + i, length - i, &code_point);
        bool needs_escape = n == 1 && (c < 0x20 || c == '"' || c == '\\' || c == 0x7f);
        if (n > 0 && !needs_escape) {
            i += n;
            continue;
        }
        bis_buf_append(buf, text + plain, i - plain);
        if (n == 0) bis_buf_puts(buf, "\xef\xbf\xbd");
        else put_escaped(buf, c);
        plain = ++i;
    }
    bis_buf_append(buf, text + plain, length - plain);
    return bis_buf_putc(buf, '"');
}

const char *bis_buf_cstr(const bis_buf *buf) { return buf->data ? buf->data : ""; }

void bis_buf_clear(bis_buf *buf) {
    buf->length = 0;
    buf->failed = false;
    if (buf->data) buf->data[0] = '\0';
}

void bis_buf_free(bis_buf *buf) {
    bis_free(buf->data);
    *buf = (bis_buf){0};
}
