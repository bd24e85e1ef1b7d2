/* What the two ways of quantizing a block have in common: block_step.c finishes each block before the next begins;
 * kept_blocks.c keeps all of them for the end-to-end stage. Inside the quantizer only.
 */
#ifndef BISUP_QUANTIZER_BLOCK_PARTS_H
#define BISUP_QUANTIZER_BLOCK_PARTS_H

#include "quantizer/block_step.h"

bool qz_job_rounds(const qz_job *job);
bool qz_job_tunes(const qz_job *job);
bool qz_job_reorders(const qz_job *job); /* Atom: columns by importance */

/* Costs in the meter's unit. */
double qz_tuning_passes(const qz_job *job);
double qz_rounding_passes(const qz_job *job);

/* Importance of the channels of each site. */
typedef struct qz_importance {
    double *sums[QZ_SITES]; /* of squares */
    void *memory;
} qz_importance;

bis_status qz_importance_open(const qz_shape *shape, qz_importance *out, bis_error *error);
void qz_importance_close(qz_importance *importance);

/* The passes of the original's block: the prompt's, for importance and the tuning's target (where the block is not
 * finished), and the original's activations. The block is neither reordered nor tuned. */
bis_status qz_float_passes(const qz_job *job, const qz_block *block, bool finished, qz_importance *seen,
                           bis_error *error);

/* How a block is tuned: pass and options for qz_tune, whose progress goes to the job's meter. */
typedef struct qz_tuning {
    qz_pass pass;
    qz_tune_options options;
    float clip[QZ_SITES];
    qz_meter *meter;
    double passes, told; /* of the whole tuning */
} qz_tuning;

/* `out` must stay where it is until qz_tuning_finish. */
void qz_tuning_start(const qz_job *job, int layer, const qz_block *block, qz_tuning *out);
void qz_tuning_finish(qz_tuning *tuning);

/* The base method's clips of activations. */
void qz_base_act_clip(const qz_job *job, float clip[QZ_SITES]);

/* Rounds and packs the seven matrices, with the inputs data->q where the method uses Hessians. tuned (NULL: none) has
 * grids to use. */
bis_status qz_round_block(const qz_job *job, qz_block *block, const float *act_clip, const qz_tuned *tuned,
                          qz_packed packed[QZ_LINEARS], bis_error *error);

/* The same to nearest on tuned grids. */
bis_status qz_round_nearest(const qz_job *job, qz_block *block, const qz_tuned *tuned, qz_packed packed[QZ_LINEARS],
                            bis_error *error);

/* data->q through a block whose weights are on their grid already. */
bis_status qz_carry(const qz_job *job, const qz_block *block, const float *act_clip, bis_error *error);

#endif
