/* The memory of the KV cache: one allocation, cut into pages that sequences take and give back.
 *
 * A page holds KN_PAGE_TOKENS tokens of all layers (layout in kernels/backend.h). Owned by the engine thread;
 * only the counters may be read from other threads.
 */
#ifndef BISUP_RUNTIME_KV_PAGES_H
#define BISUP_RUNTIME_KV_PAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"
#include "kernels/backend.h"
#include "runtime/model/model.h"

typedef struct rt_kv_pages rt_kv_pages;

/* bits is 16 (F16) or 32 (F32). */
bis_status rt_kv_pages_open(const rt_model_config *model, int bits, int pages, rt_kv_pages **out, bis_error *error);
void rt_kv_pages_close(rt_kv_pages *pages); /* NULL is allowed */

/* Bytes of one page of this model at this precision; 0 if bits is not one of those above. */
uint64_t rt_kv_page_bytes(const rt_model_config *model, int bits);

const kn_kv_cache *rt_kv_pages_cache(const rt_kv_pages *pages);
int rt_kv_pages_total(const rt_kv_pages *pages);
int rt_kv_pages_free(const rt_kv_pages *pages); /* how many are free */

/* Takes `count` pages and writes their numbers; false (and nothing taken) if fewer are free. */
bool rt_kv_pages_take(rt_kv_pages *pages, int count, int32_t *numbers);
void rt_kv_pages_give_back(rt_kv_pages *pages, int count, const int32_t *numbers);

/* Pages that `tokens` tokens need. */
int rt_kv_pages_for(int tokens);

#endif
