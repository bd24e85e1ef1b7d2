#include "runtime/stop_matcher.h"

#include <string.h>

bis_status rt_stop_matcher_start(rt_stop_matcher *matcher, const char *const *strings, size_t count, bis_error *error) {
    if (count > RT_STOP_STRINGS_MAX) {
        return bis_fail(error, BIS_ERR_INVALID, "%zu stop strings are given; at most %d are accepted", count,
                        RT_STOP_STRINGS_MAX);
    }
    for (size_t i = 0; i < count; i++) {
        size_t length = strlen(strings[i]);
        if (length == 0) return bis_fail(error, BIS_ERR_INVALID, "a stop string must not be empty");
        if (length >= RT_STOP_STRING_BYTES) {
            return bis_fail(error, BIS_ERR_INVALID, "a stop string has %zu bytes; at most %d are accepted", length,
                            RT_STOP_STRING_BYTES - 1);
        }
        memcpy(matcher->strings[i], strings[i], length + 1);
        matcher->lengths[i] = length;
    }
    matcher->count = count;
    matcher->held_length = 0;
    return BIS_OK;
}

/* Where the earliest stop string in the held text starts; its length if there is none. */
static size_t earliest_match(const rt_stop_matcher *matcher) {
    size_t best = matcher->held_length;
    for (size_t i = 0; i < matcher->count; i++) {
        const char *at = memmem(matcher->held, matcher->held_length, matcher->strings[i], matcher->lengths[i]);
        if (at && (size_t)(at - matcher->held) < best) best = (size_t)(at - matcher->held);
    }
    return best;
}

/* How much of the held text's end is the start of some stop string. */
static size_t undecided_suffix(const rt_stop_matcher *matcher) {
    size_t longest = 0;
    for (size_t i = 0; i < matcher->count; i++) {
        size_t n = matcher->lengths[i] - 1;
        if (n > matcher->held_length) n = matcher->held_length;
        for (; n > longest; n--) {
            if (memcmp(matcher->held + matcher->held_length - n, matcher->strings[i], n) == 0) longest = n;
        }
    }
    return longest;
}

bool rt_stop_matcher_push(rt_stop_matcher *matcher, const char *text, size_t length, char out[RT_EVENT_TEXT_MAX],
                          size_t *out_length) {
    memcpy(matcher->held + matcher->held_length, text, length);
    matcher->held_length += length;
    size_t match = earliest_match(matcher);
    bool found = match < matcher->held_length;
    size_t keep = found ? 0 : undecided_suffix(matcher);
    size_t emit = found ? match : matcher->held_length - keep;
    memcpy(out, matcher->held, emit);
    *out_length = emit;
    memmove(matcher->held, matcher->held + matcher->held_length - keep, keep);
    matcher->held_length = keep;
    return found;
}

size_t rt_stop_matcher_finish(rt_stop_matcher *matcher, char out[RT_EVENT_TEXT_MAX]) {
    size_t length = matcher->held_length;
    memcpy(out, matcher->held, length);
    matcher->held_length = 0;
    return length;
}
