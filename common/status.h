/* Status codes and error texts: the one error scheme of the project.
 *
 * A function that can fail returns a bis_status and gives its results through
 * out-pointers, which it leaves unchanged on failure. Functions at a boundary
 * (files, requests, the command line) also take a bis_error and fill it with one
 * line that says what is wrong and what to do. Nothing below main exits or aborts.
 */
#ifndef BISUP_COMMON_STATUS_H
#define BISUP_COMMON_STATUS_H

typedef enum bis_status {
    BIS_OK = 0,
    BIS_ERR_INVALID,     /* an argument or a request is wrong; the caller can correct it */
    BIS_ERR_FORMAT,      /* a file is malformed */
    BIS_ERR_UNSUPPORTED, /* well-formed, but not something this program does */
    BIS_ERR_NOT_FOUND,   /* a file, model or name does not exist */
    BIS_ERR_IO,          /* the operating system refused */
    BIS_ERR_NOMEM,       /* memory (host, device or KV pool) is exhausted */
    BIS_ERR_LIMIT,       /* a stated limit is exceeded (size, depth, steps, context length) */
    BIS_ERR_BUSY,        /* no capacity now; trying again later is reasonable */
    BIS_ERR_CANCELLED,   /* the caller or a shutdown ended the work */
    BIS_ERR_INTERNAL     /* a bug of ours */
} bis_status;

enum { BIS_ERROR_TEXT_MAX = 512 };

/* The text is always NUL-terminated valid UTF-8 on one line; longer texts are cut. */
typedef struct bis_error {
    bis_status status;
    char text[BIS_ERROR_TEXT_MAX];
} bis_error;

/* Fills *error (which may be NULL) and returns `status`, so that
 * `return bis_fail(error, BIS_ERR_FORMAT, "...", ...)` is one statement.
 * Control characters in the formatted text are replaced by spaces. */
bis_status bis_fail(bis_error *error, bis_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "context: " before the text already in *error and returns its status.
 * Used on the way up to add the file or tensor an error belongs to. */
bis_status bis_fail_within(bis_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Static lower-case name, e.g. "invalid"; never NULL. */
const char *bis_status_name(bis_status status);

#endif
