/* Exact answers: each question is a chat (system message, user message) that the engine answers greedily; an answer
 * counts when it is the expected text, byte for byte. */
#ifndef BISUP_EVALUATION_FACT_ANSWERS_H
#define BISUP_EVALUATION_FACT_ANSWERS_H

#include "common/progress.h"
#include "evaluation/task.h"
#include "runtime/engine.h"

enum { EV_FACTS_IN_FLIGHT = 32 }; /* requests in the engine at a time; its queue must take them */

/* Counts exact answers. span: the system message's tokens are the request's prompt span (in a low-bit KV cache they
 * stay at full precision); without it they are low-bit as all others. Many requests are in the engine at a time, which
 * changes no answer. BIS_ERR_UNSUPPORTED without a chat template. */
bis_status ev_facts_run(rt_engine *engine, const ev_facts *facts, bool span, size_t *exact, bis_progress *progress,
                        size_t progress_base, bis_error *error);

#endif
