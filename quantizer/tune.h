/* Fine-tuning of one block (BiSup, arXiv 2405.15346; the parts are our reconstruction, docs/bisup.md):
 * learned weight clipping, soft-constrained smoothing, stabilized low-rank compensation, activation clips, trained with
 * the straight-through estimator on the error-cancelling loss. The result is folded into the block: no run-time cost.
 */
#ifndef BISUP_QUANTIZER_TUNE_H
#define BISUP_QUANTIZER_TUNE_H

#include "quantizer/simulate.h"

/* Parts of BiSup, each of which can be switched off (the ablation). */
typedef struct qz_tune_options {
    bool clip, smooth, low_rank, act_clip;
    bool error_cancelling; /* half of the target is block(x_fp); off: only block(x_q) */
    int epochs;            /* 15 */
    int batch;             /* samples a step: 4 */
    int rank;              /* 64 */
    double lr_clip, lr_smooth, lr_low_rank,
        lr_act_clip;       /* 0.1, 0.01, 0.01, 0.02: of Adam, for a few hundred steps; chosen on small models */
    double gradient_clip;  /* 0.3 */
    double smooth_penalty; /* 1e-2 */
    double
        smooth_alpha; /* initial s = actmax^alpha / weightmax^(1-alpha), normalised to a geometric mean of 1; 0: ones */
    double held_out;  /* share of samples that decide which epoch is kept: 0.125 */
    uint64_t seed;
    uint64_t held_out_seed; /* which samples are held out: the same for all blocks and for the end-to-end stage */
    void (*on_step)(void *user, int done, int total); /* may be NULL; for a progress bar */
    void *on_step_user;
} qz_tune_options;

qz_tune_options qz_tune_default_options(void);

/* Grids for the final rounding of a linear: scales as F16 can store them, [rows, groups]; zeros NULL when symmetric. */
typedef struct qz_grid {
    float *scales;
    uint8_t *zeros;
} qz_grid;

typedef struct qz_tuned {
    qz_grid grid[QZ_LINEARS];
    float act_clip[QZ_SITES];
    double loss_before,
        loss_after; /* normalised mean squared error on the held-out samples, round-to-nearest at the end */
    int best_epoch; /* 0: nothing beat the start, which was kept */
} qz_tuned;

void qz_tuned_free(qz_tuned *tuned); /* frees what it points to */

/* Trains on x_q [samples, tokens, hidden] (inputs through the blocks quantized already) towards
 * target [samples, tokens, hidden] = (block(x_fp) + block(x_q)) / 2 (or block(x_q) alone), which has the same gradient
 * as the mean of the two squared errors. On success the block's weights are W + dW with smoothing folded in and its
 * norms are divided by s_x; `out` tells the grids. Same seed, same result. */
bis_status qz_tune(qz_block *block, const qz_pass *pass, const qz_tune_options *options, const qz_real *x_q,
                   const qz_real *target, int samples, int tokens, qz_tuned *out, bis_error *error);

/* The same, but what was learned is not folded: *parameters (for bis_free) are learned.h's, which the end-to-end stage
 * trains further: of the best epoch, or of the training's start where none beat the untuned block (best_epoch 0). In
 * `out` grids and clips are not set. */
bis_status qz_tune_parameters(const qz_pass *pass, const qz_tune_options *options, const qz_real *x_q,
                              const qz_real *target, int samples, int tokens, qz_real **parameters, size_t *count,
                              qz_tuned *out, bis_error *error);

#endif
