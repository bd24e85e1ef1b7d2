/* From a row of logits to a token, and log-probabilities for reports.
 *
 * Order of the steps, as vLLM has it: logit bias and penalties on the logits; then greedy (temperature 0), or
 * division by the temperature, min_p, top_k, top_p, and one draw. The draw's random number depends only on the
 * seed and the token's index, so a request gives the same tokens whatever runs beside it and also after a
 * restart of its computation. Ties are broken by the lower id. Scratch memory is allocated at opening; one thread.
 */
#ifndef BISUP_RUNTIME_SAMPLER_H
#define BISUP_RUNTIME_SAMPLER_H

#include <stdint.h>

#include "common/status.h"
#include "runtime/engine.h"

typedef struct rt_sampler rt_sampler;

bis_status rt_sampler_open(int vocab, rt_sampler **out, bis_error *error);
void rt_sampler_close(rt_sampler *sampler); /* NULL is allowed */

/* Token counts of a sequence for the penalties: bit 31 marks a token of the prompt, the rest counts the output. */
enum { RT_COUNT_MASK = 0x7fffffff };
#define RT_COUNT_IN_PROMPT 0x80000000u

/* True where the penalties need rt_sampler_pick's `counts`. */
bool rt_sampling_has_penalties(const rt_sampling *sampling);

/* Picks a token from logits [vocab], which are not changed. counts [vocab] may be NULL without penalties.
 * index: how many tokens this request generated before. NaN logits are never picked unless all are NaN, which gives 0.
 */
int32_t rt_sampler_pick(rt_sampler *sampler, const rt_sampling *sampling, const uint32_t *counts, const float *logits,
                        uint64_t index);

/* log sum exp of the logits: logprob of a token = logits[token] - this. NaN logits are left out. */
float rt_logits_log_sum(const float *logits, int vocab);

/* The `count` <= RT_LOGPROBS_MAX largest logits as log-probabilities, most probable first. */
void rt_logits_top(const float *logits, int vocab, float log_sum, int count, rt_logprob *top);

#endif
