/* A growable byte buffer that is also a C string: data[length] is always NUL once anything
 * was written. The failure is sticky: after one failed append, `failed` stays true and later
 * appends do nothing, so a renderer checks once at the end. Owned by one thread at a time. */
#ifndef BISUP_COMMON_BUF_H
#define BISUP_COMMON_BUF_H

#include <stdbool.h>
#include <stddef.h>

typedef struct bis_buf {
    char *data; /* NULL until the first append */
    size_t length, capacity;
    bool failed;
} bis_buf;

/* All appends return false when memory is exhausted now or was before. */
bool bis_buf_append(bis_buf *buf, const void *bytes, size_t length);
bool bis_buf_puts(bis_buf *buf, const char *text);
bool bis_buf_putc(bis_buf *buf, char c);
bool bis_buf_printf(bis_buf *buf, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Makes room for `extra` more bytes and the NUL. */
bool bis_buf_reserve(bis_buf *buf, size_t extra);

/* Appends text as a JSON string with quotes. The bytes must be valid UTF-8, else they are
 * replaced by U+FFFD one by one. Non-ASCII characters are written as they are. */
bool bis_buf_json_string(bis_buf *buf, const char *text, size_t length);

/* The contents as a C string; "" while empty. Valid until the next append. */
const char *bis_buf_cstr(const bis_buf *buf);

void bis_buf_clear(bis_buf *buf); /* keeps the memory, resets `failed` */
void bis_buf_free(bis_buf *buf);  /* back to the zero state */

#endif
