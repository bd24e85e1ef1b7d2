/* The end-to-end stage: after tuning block by block, the learned parameters of all blocks are trained together to
 * minimise the divergence of the quantized model's next-token probabilities from the original's. Block by block, a
 * block cannot know which of its errors matter to the blocks after it and to the answer; here it can.
 *
 * A forward pass keeps the blocks' inputs only; a backward pass computes each block once more.
 */
#ifndef BISUP_QUANTIZER_END_TO_END_H
#define BISUP_QUANTIZER_END_TO_END_H

#include "quantizer/divergence.h"
#include "quantizer/tune.h"

/* A block as tuning took it, and what it has learned: trained further in place. */
typedef struct qz_end_block {
    qz_block *block; /* not changed */
    qz_prompt prompt;
    qz_real *parameter; /* qz_tune_parameters's */
} qz_end_block;

typedef struct qz_end_input {
    qz_compute *compute;
    const qz_spec *spec;
    const float *act_clip;     /* [QZ_SITES]: where they are not learned */
    const qz_real *rope_table; /* qz_pass's */
    const qz_end_block *blocks;
    int layers; /* all of one shape */
    qz_head head;
    const qz_real *x;     /* [samples, tokens, hidden]: embedded windows, as the quantized model has them */
    const qz_real *final; /* the same of the last block's output in the original model */
    int samples, tokens;
} qz_end_input;

typedef struct qz_end_result {
    double before, after; /* mean KL a token of the held-out samples, in nats */
    int best_epoch;       /* 0: nothing beat the start, which was kept */
} qz_end_result;

/* options: those of tuning (they say which parameters there are) with this stage's rates and epochs. Same seed, same
 * result. */
bis_status qz_end_to_end(const qz_end_input *input, const qz_tune_options *options, qz_end_result *out,
                         bis_error *error);

/* Puts what block `layer` has learned into the block; *out tells its grids and clips. */
bis_status qz_end_fold(const qz_end_input *input, const qz_tune_options *options, int layer, qz_tuned *out,
                       bis_error *error);

/* y = block(x) for `samples` samples as the end-to-end stage sees it, rounded; y may be x. */
bis_status qz_end_simulate(const qz_end_input *input, const qz_tune_options *options, int layer, const qz_real *x,
                           int samples, qz_real *y, void (*on_sample)(void *user), void *user, bis_error *error);

#endif
