/* What block-wise tuning (tune.c) and the end-to-end stage (end_to_end.c) share: which samples decide, the order of the
 * others, and AdamW's steps. Inside the quantizer only.
 */
#ifndef BISUP_QUANTIZER_TRAINING_H
#define BISUP_QUANTIZER_TRAINING_H

#include "quantizer/learned.h"

/* Fisher and Yates, of order[first .. count - 1]. */
void qz_shuffle(int *order, int first, int count, uint64_t seed);

/* Fills order [samples]: first those held out, whose number is returned, then those to train on. At least one is held
 * out; with one sample, or a share of 0, none is, and the samples trained on decide. */
int qz_choose_held_out(int *order, int samples, double share, uint64_t seed);

/* BIS_ERR_INVALID for options that cannot be used. */
bis_status qz_check_training(const qz_tune_options *options, int samples, int tokens, bis_error *error);

/* The parameters of a block and what training keeps beside them; [learned->first[QZ_PARTS]] each. */
typedef struct qz_trained {
    qz_real *parameter, *gradient;
    qz_real *first, *second; /* Adam's moments, which begin with zeros */
    qz_real *best;
} qz_trained;

typedef struct qz_optimizer {
    const qz_tune_options *options; /* rates and gradient_clip */
    qz_compute *compute;
    int step, steps; /* done; of the whole training: half a cosine after a short rise */
} qz_optimizer;

/* One step of all `count` blocks' parameters, whose parts lie as in `layout`. The gradients are clipped together. */
void qz_optimizer_step(qz_optimizer *optimizer, const qz_learned *layout, const qz_trained *trained, int count);

#endif
