/* Checks a JSON text from a client before a tree is built of it.
 *
 * Refuses what RFC 8259 refuses, and what a C string or a small machine cannot hold: invalid UTF-8, NUL
 * characters, lone surrogates, deep nesting, numbers of hundreds of digits, millions of values. Needs no
 * memory; pure; any thread.
 */
#ifndef BISUP_SERVER_JSON_CHECK_H
#define BISUP_SERVER_JSON_CHECK_H

#include <stdbool.h>
#include <stddef.h>

#include "common/status.h"

enum { SRV_JSON_DEPTH_MAX = 100, SRV_JSON_VALUES_MAX = 500000, SRV_JSON_NUMBER_MAX = 60 };

/* The text of one member of the outermost object, as it was sent; start is NULL when it has no such
 * member. The last of several with the same key counts. */
typedef struct srv_json_slice {
    const char *key; /* given by the caller */
    const char *start;
    size_t length;
} srv_json_slice;

/* BIS_OK, and fills slices[0..count); BIS_ERR_INVALID with what is wrong and at which byte. */
bis_status srv_json_check(const char *text, size_t length, srv_json_slice *slices, size_t count, bis_error *error);

#endif
