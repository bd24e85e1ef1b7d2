/* One forward pass for the Llama and Qwen families: token rows in, logits out.
 *
 * A row is one token of one sequence. Rows of different sequences may be in one call in any order; rows of one
 * sequence must come in rising position, and all earlier positions must have been computed before or
 * come earlier in the call. A row's logits depend only on its own sequence's tokens up to it, and on the extent of its
 * prompt span where the cache has low pages.
 *
 * Quantized models (docs/quantized-model.md): a layer's order of operations is that of quantizer/block.h. Where a
 * model's K is quantized before RoPE and the cache has low pages, both kinds of pages hold K without RoPE. Activation
 * memory is allocated at opening. One thread.
 */
#ifndef BISUP_RUNTIME_FORWARD_H
#define BISUP_RUNTIME_FORWARD_H

#include <stdint.h>

#include "common/status.h"
#include "kernels/backend.h"
#include "runtime/model/model.h"

typedef struct rt_forward rt_forward;

/* Borrows model and backend until closing. max_rows: the most rows of a call; max_logits: the most rows whose
 * logits are asked for; max_context: positions are below this. */
bis_status rt_forward_open(const rt_model *model, kn_backend *backend, int max_rows, int max_logits, int max_context,
                           rt_forward **out, bis_error *error);
void rt_forward_close(rt_forward *forward); /* NULL is allowed */

typedef struct rt_batch {
    kn_rows rows;
    const int32_t *tokens;     /* [rows.count], each below the vocabulary size */
    const int32_t *logit_rows; /* rows whose logits are wanted, rising */
    int logit_count;
} rt_batch;

/* Writes keys and values of all rows to the cache (its key_table is set here) and returns logits [logit_count, vocab],
 * valid until the next call. rows.count and logit_count are within the limits given at opening. */
const float *rt_forward_run(rt_forward *forward, const kn_kv_cache *cache, const rt_batch *batch);

uint64_t rt_forward_work_bytes(const rt_forward *forward); /* memory it allocated */

#endif
