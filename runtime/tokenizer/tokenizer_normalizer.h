/* What a tokenizer does to a text before it is split: prepend, replace, Unicode normal forms.
 *
 * Steps run in the order they were added. Read-only after loading; texts are valid UTF-8.
 */
#ifndef BISUP_RUNTIME_TOKENIZER_NORMALIZER_H
#define BISUP_RUNTIME_TOKENIZER_NORMALIZER_H

#include <stdbool.h>
#include <stddef.h>

#include "common/buf.h"
#include "common/status.h"

typedef enum rt_normal_kind {
    RT_NORMAL_PREPEND, /* puts `to` before a text that is not empty */
    RT_NORMAL_REPLACE, /* every `from` becomes `to` */
    RT_NORMAL_NFC,
    RT_NORMAL_NFD,
    RT_NORMAL_NFKC,
    RT_NORMAL_NFKD
} rt_normal_kind;

typedef struct rt_normal_step {
    rt_normal_kind kind;
    char *from, *to; /* NULL where the kind needs none */
} rt_normal_step;

typedef struct rt_normalizer {
    rt_normal_step *steps;
    size_t count;
} rt_normalizer;

/* Copies the texts. False: out of memory. `from` must not be empty for RT_NORMAL_REPLACE. */
bool rt_normalizer_add(rt_normalizer *normalizer, rt_normal_kind kind, const char *from, const char *to);
/* Writes the normalized text to *out (cleared first). Where `continues` is set the text goes on
 * after bytes that are no text, and nothing is prepended. BIS_ERR_NOMEM is the only failure. */
bis_status rt_normalizer_apply(const rt_normalizer *normalizer, const char *text, size_t length, bool continues,
                               bis_buf *out);
void rt_normalizer_free(rt_normalizer *normalizer);

#endif
