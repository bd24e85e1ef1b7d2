/* Finds stop strings in a text that arrives in pieces, and holds back what may become one.
 *
 * Text that could be the start of a stop string is kept until it is decided; a stop string and what follows
 * it never come out. Holds no memory of its own. One thread.
 */
#ifndef BISUP_RUNTIME_STOP_MATCHER_H
#define BISUP_RUNTIME_STOP_MATCHER_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/engine.h"

typedef struct rt_stop_matcher {
    char strings[RT_STOP_STRINGS_MAX][RT_STOP_STRING_BYTES];
    size_t lengths[RT_STOP_STRINGS_MAX];
    size_t count;
    char held[RT_EVENT_TEXT_MAX]; /* less than the longest stop string between calls */
    size_t held_length;
} rt_stop_matcher;

/* BIS_ERR_INVALID for more than RT_STOP_STRINGS_MAX strings, an empty one, or one of RT_STOP_STRING_BYTES or more. */
bis_status rt_stop_matcher_start(rt_stop_matcher *matcher, const char *const *strings, size_t count, bis_error *error);

/* Adds text (at most RT_DECODER_TEXT_MAX bytes); writes what is certainly not part of a stop string to `out` and its
 * length to *out_length. Returns true when a stop string was found: then `out` ends before it. */
bool rt_stop_matcher_push(rt_stop_matcher *matcher, const char *text, size_t length, char out[RT_EVENT_TEXT_MAX],
                          size_t *out_length);

/* The text ends: what was held back comes out. Returns its length. */
size_t rt_stop_matcher_finish(rt_stop_matcher *matcher, char out[RT_EVENT_TEXT_MAX]);

#endif
