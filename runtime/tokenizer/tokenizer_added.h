/* Added tokens: texts that become one id wherever they occur, before anything else looks at the
 * text. At every position the longest one wins; matches do not overlap.
 *
 * Two sets exist, as in the files: tokens sought in the raw text, and those sought after
 * normalization (in their own normalized spelling). Read-only after rt_added_build.
 */
#ifndef BISUP_RUNTIME_TOKENIZER_ADDED_H
#define BISUP_RUNTIME_TOKENIZER_ADDED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"
#include "runtime/tokenizer/tokenizer_normalizer.h"

typedef struct rt_added_token {
    char *content;
    size_t length;
    int32_t id;
    bool special;     /* matched only when the caller asks for it, left out by skip_special */
    bool normalized;  /* sought after normalization */
    bool left_strip;  /* takes the white space before it along */
    bool right_strip; /* and after it */
    bool single_word; /* only where no letter or digit touches it */
} rt_added_token;

typedef struct rt_trie_node {
    int32_t child, sibling; /* -1: none */
    int32_t token;          /* index of the token that ends here, or -1 */
    unsigned char byte;
} rt_trie_node;

typedef struct rt_trie {
    rt_trie_node *nodes; /* node 0 is the root */
    int32_t count, capacity;
    int32_t first[256]; /* the root's children, so that most positions are dismissed at once */
} rt_trie;

typedef struct rt_added {
    rt_added_token *tokens;
    size_t count, capacity;
    int32_t *of_id; /* index by token id, -1: not an added one */
    int32_t of_id_count;
    rt_trie raw, normalized;
} rt_added;

typedef struct rt_added_match {
    size_t start, end; /* with the white space it takes along */
    size_t resume;     /* where to look for the next one: the end of its own text */
    const rt_added_token *token;
    bool plain; /* a special token found while special tokens are plain text */
} rt_added_match;

/* Adds the token, or replaces the flags of the one with the same id. The content is copied and must
 * not be empty. */
bis_status rt_added_put(rt_added *added, const char *content, const rt_added_token *flags, bis_error *error);
const rt_added_token *rt_added_find(const rt_added *added, int32_t id); /* NULL if it is none */
bis_status rt_added_build(rt_added *added, const rt_normalizer *normalizer, bis_error *error);
/* The first match at or after `from`; false: none is left. Special tokens are matched without
 * `special` too, as nothing may be found inside them, but `plain` tells that they are text. */
bool rt_added_next(const rt_added *added, const rt_trie *trie, const char *text, size_t length, size_t from,
                   bool special, rt_added_match *match);
void rt_added_free(rt_added *added);

#endif
