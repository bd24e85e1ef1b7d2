/* An engine without a model, for tests of the server: deterministic, quick, and with failures on demand.
 *
 * Its vocabulary is the 256 bytes, FAKE_BOS and FAKE_EOS; a text's tokens are its bytes. A "chat template"
 * writes the messages' JSON as it got it. The answer to a prompt is the prompt itself, then, with a
 * temperature above 0, "#" and the seed, then the end token; ignore_eos repeats that without end.
 * Every token's log-probability is -1/(id+1); its k-th alternative is the token id+k.
 * A prompt that contains one of the words below makes the request behave in that way.
 */
#ifndef BISUP_TESTS_FAKE_ENGINE_H
#define BISUP_TESTS_FAKE_ENGINE_H

#include "server/engine_ops.h"

enum { FAKE_BOS = 256, FAKE_EOS = 257, FAKE_VOCAB = 258 };

#define FAKE_WORD_FAIL "<fail>" /* an error instead of the fourth token */
#define FAKE_WORD_HANG "<hang>" /* no event before the request is cancelled */
#define FAKE_WORD_SLOW "<slow>" /* 20 ms for each token */

typedef struct fake_options {
    int max_batch, max_queue, max_context;
    bool no_template;
} fake_options;

/* NULL when memory or a thread is not to be had. Options of 0 have defaults (4, 8, 4096). */
rt_engine *fake_engine_open(const fake_options *options);
/* Returns the number of requests that were not released: a leak of the server. */
int fake_engine_close(rt_engine *engine);

const srv_engine_ops *fake_engine_ops(void);

int fake_engine_unfinished(rt_engine *engine); /* requests queued or running */
long fake_engine_generated(rt_engine *engine); /* tokens since it was opened */

#endif
