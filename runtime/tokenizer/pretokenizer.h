/* Cutting a normalized text into the words that byte-pair merging stays within.
 *
 * A list of steps, each of which cuts every piece further (by a regular expression, through PCRE2)
 * or rewrites it (a leading space, "▁" for spaces). Patterns come from the model's files: matching
 * is bounded in steps and memory. Read-only after loading; texts are valid UTF-8.
 */
#ifndef BISUP_RUNTIME_PRETOKENIZER_H
#define BISUP_RUNTIME_PRETOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/status.h"

typedef enum rt_split_behaviour {
    RT_SPLIT_ISOLATED, /* matches and what lies between them: each a piece */
    RT_SPLIT_REMOVED,
    RT_SPLIT_MERGED_WITH_PREVIOUS,
    RT_SPLIT_MERGED_WITH_NEXT,
    RT_SPLIT_CONTIGUOUS /* neighbouring matches form one piece */
} rt_split_behaviour;

typedef enum rt_prefix_rule {
    RT_PREFIX_EVERY, /* before every piece that does not begin with it */
    RT_PREFIX_FIRST  /* only at the very start of the text */
} rt_prefix_rule;

typedef struct rt_pre_step rt_pre_step;

typedef struct rt_pretokenizer {
    rt_pre_step *steps;
    size_t count;
} rt_pretokenizer;

typedef struct rt_piece {
    size_t start, length;
} rt_piece;

/* The pieces of `text` that are left after the last step. Zero-initialise, reuse, free. */
typedef struct rt_pieces {
    bis_buf text;
    rt_piece *list;
    size_t count, capacity;
} rt_pieces;

/* `literal`: the pattern is a plain string. `invert`: the parts between the matches count as the
 * matches. BIS_ERR_FORMAT with the position where the pattern is wrong. */
bis_status rt_pretokenizer_split(rt_pretokenizer *pretokenizer, const char *pattern, bool literal, bool invert,
                                 rt_split_behaviour behaviour, bis_error *error);
bis_status rt_pretokenizer_prefix(rt_pretokenizer *pretokenizer, const char *prefix, rt_prefix_rule rule,
                                  bis_error *error);
/* Every space becomes `with`. */
bis_status rt_pretokenizer_replace_space(rt_pretokenizer *pretokenizer, const char *with, bis_error *error);

/* `at_start`: the text begins the caller's whole text. BIS_ERR_LIMIT where a pattern needs too many
 * steps on this text, BIS_ERR_NOMEM. */
bis_status rt_pretokenizer_apply(const rt_pretokenizer *pretokenizer, const char *text, size_t length, bool at_start,
                                 rt_pieces *out, bis_error *error);

void rt_pretokenizer_free(rt_pretokenizer *pretokenizer);
void rt_pieces_free(rt_pieces *pieces);

/* Unicode's White_Space property. */
bool rt_is_white_space(uint32_t code_point);

#endif
