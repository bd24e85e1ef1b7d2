/* One block of a run: transform, tune, round, write; then carry the activations through what was written.
 *
 * A finished block is carried on by the same code as one just made, from its file: so a run that was interrupted goes
 * on with the same numbers.
 */
#ifndef BISUP_QUANTIZER_BLOCK_STEP_H
#define BISUP_QUANTIZER_BLOCK_STEP_H

#include "quantizer/activations.h"
#include "quantizer/block_file.h"
#include "quantizer/method.h"

typedef struct qz_job {
    qz_compute *compute;
    const qz_transform *transform;
    const qz_method *method;
    const qz_spec *spec;
    const qz_tune_options *tune;
    bool gptq;            /* off: round to nearest where the method would use GPTQ */
    qz_activations *data; /* samples 0: nothing is calibrated or carried */
    qz_meter *meter;
} qz_job;

/* path: of the block's file, which is there when `finished`. */
bis_status qz_block_step(const qz_job *job, int layer, const char *path, bool finished, qz_block_figures *figures,
                         bis_error *error);

/* What a block costs in the meter's unit. */
double qz_block_step_passes(const qz_job *job, bool finished);

#endif
