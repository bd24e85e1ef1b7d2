/* The memory of the KV cache: pages that sequences take and give back.
 *
 * A page holds KN_PAGE_TOKENS tokens of all layers (layout in kernels/backend.h). At 16 and 32 bits all pages are full
 * pages. Below, a sequence's prompt span is in full pages (F16) and everything else in low pages; each kind has its own
 * memory and numbers. Owned by the engine thread; only the counters may be read from other threads.
 */
#ifndef BISUP_RUNTIME_KV_PAGES_H
#define BISUP_RUNTIME_KV_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"
#include "kernels/backend.h"
#include "runtime/model/model.h"

typedef struct rt_kv_pages rt_kv_pages;

/* Pages of both kinds. */
typedef struct rt_kv_count {
    int full, low;
} rt_kv_count;

/* The bits of a number in the cache when `asked` is wanted: 2, 3, 4, 8, 16 (F16), 32 (F32), or 0 for the model's own
 * width. Fails for anything else. */
bis_status rt_kv_bits(const rt_model_config *model, int asked, int *bits, bis_error *error);

/* Whether this width has low pages. */
bool rt_kv_is_low(int bits);
/* What kn_cpu_open must be told for this width. */
int rt_kv_low_head_dim(const rt_model_config *model, int bits);
/* Bytes of one page of each kind; of a low page 0 where there is none. bits as rt_kv_bits gives it. */
uint64_t rt_kv_full_page_bytes(const rt_model_config *model, int bits);
uint64_t rt_kv_low_page_bytes(const rt_model_config *model, int bits);
/* Bytes that one more token outside a prompt span takes. */
uint64_t rt_kv_token_bytes(const rt_model_config *model, int bits);

/* bits as rt_kv_bits gives it. At least one page; low pages only where the width has them. */
bis_status rt_kv_pages_open(const rt_model_config *model, int bits, rt_kv_count count, rt_kv_pages **out,
                            bis_error *error);
void rt_kv_pages_close(rt_kv_pages *pages); /* NULL is allowed */

const kn_kv_cache *rt_kv_pages_cache(const rt_kv_pages *pages);
int rt_kv_pages_bits(const rt_kv_pages *pages);
rt_kv_count rt_kv_pages_total(const rt_kv_pages *pages);
rt_kv_count rt_kv_pages_free(const rt_kv_pages *pages); /* how many are free */

/* Pages of one kind that `tokens` tokens need. */
int rt_kv_pages_for(int tokens);
/* Pages that a sequence of `tokens` tokens needs whose first `span` (at most all) are its prompt span; the span means
 * nothing where there are no low pages. At most rt_kv_pages_for(tokens) + 1 together, and of each kind at most
 * rt_kv_pages_for(tokens). */
rt_kv_count rt_kv_pages_need(int bits, int span, int tokens);

/* Takes pages and writes their numbers, full ones first, as kn_rows wants them; false (and nothing taken) if fewer of
 * either kind are free. */
bool rt_kv_pages_take(rt_kv_pages *pages, rt_kv_count count, int32_t *numbers);
void rt_kv_pages_give_back(rt_kv_pages *pages, rt_kv_count count, const int32_t *numbers);

#endif
