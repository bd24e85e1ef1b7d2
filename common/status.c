#include "common/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/utf8.h"

/* Also makes the text valid UTF-8: it may quote the bytes of a file, and may have been cut inside a character. */
static void make_one_line(char *text) {
    size_t length = bis_utf8_complete_prefix(text, strlen(text));
    text[length] = '\0';
    for (size_t i = 0; i < length;) {
        uint32_t code_point;
        size_t n = bis_utf8_decode(text + i, length - i, &code_point);
        if (n == 0) text[i] = '?';
        else if (code_point < 0x20 || code_point == 0x7f) text[i] = ' ';
        i += n ? n : 1;
    }
}

bis_status bis_fail(bis_error *error, bis_status status, const char *format, ...) {
    if (!error) return status;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    make_one_line(error->text);
    error->status = status;
    return status;
}

bis_status bis_fail_within(bis_error *error, const char *format, ...) {
    if (!error) return BIS_ERR_INTERNAL;
    char inner[BIS_ERROR_TEXT_MAX];
    memcpy(inner, error->text, sizeof inner);
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    if (length > 0 && (size_t)length + 3 < sizeof error->text) {
        int room = (int)sizeof error->text - length - 3; /* for the NUL and the colon */
        snprintf(error->text + length, sizeof error->text - (size_t)length, ": %.*s", room, inner);
    }
    make_one_line(error->text);
    return error->status;
}

const char *bis_status_name(bis_status status) {
    static const char *const names[] = {
        [BIS_OK] = "ok",
        [BIS_ERR_INVALID] = "invalid",
        [BIS_ERR_FORMAT] = "format",
        [BIS_ERR_UNSUPPORTED] = "unsupported",
        [BIS_ERR_NOT_FOUND] = "not found",
        [BIS_ERR_IO] = "input/output",
        [BIS_ERR_NOMEM] = "out of memory",
        [BIS_ERR_LIMIT] = "limit",
        [BIS_ERR_BUSY] = "busy",
        [BIS_ERR_CANCELLED] = "cancelled",
        [BIS_ERR_INTERNAL] = "internal",
    };
    if ((unsigned)status >= sizeof names / sizeof *names) return "unknown";
    return names[status];
}
