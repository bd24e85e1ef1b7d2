/* Byte-pair merging of one word, for byte-level and SentencePiece-style BPE alike.
 *
 * The pair with the lowest rank is merged first, the leftmost of equal ones before the others,
 * until no pair of neighbours has a rule. A heap of candidate pairs over a linked list of symbols
 * makes that O(n log n), also for one word of a million characters.
 */
#ifndef BISUP_RUNTIME_TOKENIZER_BPE_H
#define BISUP_RUNTIME_TOKENIZER_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

typedef struct rt_bpe_rule {
    int32_t left, right, merged; /* merged is -1 in a free slot */
    uint32_t rank;
} rt_bpe_rule;

typedef struct rt_bpe {
    rt_bpe_rule *slots; /* open addressing over (left, right) */
    size_t slot_count, count, limit;
} rt_bpe;

typedef struct rt_bpe_symbol {
    int32_t id; /* -1 once merged into its left neighbour */
    int32_t previous, next;
} rt_bpe_symbol;

typedef struct rt_bpe_candidate {
    uint32_t rank;
    int32_t position, merged;
} rt_bpe_candidate;

/* Working memory, reused for all words of a text. Zero-initialise, free with rt_bpe_work_free. */
typedef struct rt_bpe_work {
    rt_bpe_symbol *symbols;
    size_t count, capacity;
    rt_bpe_candidate *heap;
    size_t heap_count, heap_capacity;
} rt_bpe_work;

/* Makes room for `rules` merges; called once before rt_bpe_add. */
bis_status rt_bpe_reserve(rt_bpe *bpe, size_t rules, bis_error *error);
/* A rule given twice keeps its last rank. False when more rules come than were reserved. */
bool rt_bpe_add(rt_bpe *bpe, int32_t left, int32_t right, int32_t merged, uint32_t rank);
void rt_bpe_free(rt_bpe *bpe);

bool rt_bpe_push(rt_bpe_work *work, int32_t id); /* appends a symbol; false: out of memory */
/* Merges work->symbols and closes the gaps: afterwards symbols[0..count) hold the token ids.
 * False: out of memory. The caller sets count to 0 before the next word. */
bool rt_bpe_merge(const rt_bpe *bpe, rt_bpe_work *work);
void rt_bpe_work_free(rt_bpe_work *work);

#endif
