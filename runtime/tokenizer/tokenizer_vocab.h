/* The vocabulary: token texts as the model's files spell them, by id and by text.
 *
 * Ids may have holes. Two texts may share an id (an added token that renames a reserved entry):
 * both are found, the later one is what the id is called. Texts are valid UTF-8.
 * Filled by one thread, then read-only.
 */
#ifndef BISUP_RUNTIME_TOKENIZER_VOCAB_H
#define BISUP_RUNTIME_TOKENIZER_VOCAB_H

#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/status.h"

enum {
    RT_VOCAB_MAX = 1 << 22,      /* ids are below this: a guard against hostile files, not a design limit */
    RT_VOCAB_TEXT_MAX = 2 * 512, /* bytes of one text: byte-level spelling takes up to two for one */
    RT_VOCAB_BYTES_MAX = 1 << 30 /* all texts together */
};

typedef struct rt_vocab_entry {
    uint32_t offset;
    uint16_t length;
    int32_t id;
} rt_vocab_entry;

typedef struct rt_vocab {
    bis_buf text; /* all texts, one after another */
    rt_vocab_entry *entries;
    uint32_t count, capacity;
    int32_t *entry_of_id; /* -1: a hole */
    int32_t size;         /* largest id + 1 */
    int32_t id_capacity;
    uint32_t *slots; /* open addressing: entry index + 1, 0 is free */
    uint32_t slot_count;
} rt_vocab;

/* Adds a text that is not there yet. BIS_ERR_FORMAT where it is, BIS_ERR_LIMIT for an id outside
 * [0, RT_VOCAB_MAX) or a text that is too long; the vocabulary is then unchanged. */
bis_status rt_vocab_add(rt_vocab *vocab, const char *text, size_t length, int32_t id, bis_error *error);
int32_t rt_vocab_find(const rt_vocab *vocab, const char *text, size_t length); /* its id, or -1 */
/* Not NUL-terminated; NULL for a hole or an id outside the vocabulary. */
const char *rt_vocab_text(const rt_vocab *vocab, int32_t id, size_t *length);
void rt_vocab_free(rt_vocab *vocab);

#endif
