/* A run with the end-to-end stage: all tuned blocks are kept in memory, trained together, then rounded and written.
 *
 *   1. qz_kept_tune for each layer: transform, tune, save what was learned (block-NNN.tuned), carry the activations on
 *      through the block with rounding simulated
 *   2. qz_kept_train: the stage; saves what it gave (end-to-end.tuned)
 *   3. with data->q embedded anew, qz_kept_write for each layer: round, write block-NNN.safetensors, carry on
 * What is found saved is read instead of made, and the numbers after it are the same.
 */
#ifndef BISUP_QUANTIZER_KEPT_BLOCKS_H
#define BISUP_QUANTIZER_KEPT_BLOCKS_H

#include "quantizer/block_step.h"
#include "quantizer/end_to_end.h"

typedef struct qz_kept {
    int layers;
    size_t count; /* parameters of a block */
    qz_end_block *blocks;
    float *norm, *head;           /* the final norm, and the head as it is stored */
    float **prompt_k, **prompt_v; /* [layers]; NULL without a prompt */
    float act_clip[QZ_SITES];
    qz_end_input input;
    qz_end_result result;
    double seconds; /* of the stage */
} qz_kept;

bis_status qz_kept_open(const qz_job *job, int layers, int vocab, qz_kept *out, bis_error *error);
void qz_kept_close(qz_kept *kept);

bis_status qz_kept_tune(const qz_job *job, qz_kept *kept, int layer, const char *path, bool finished,
                        qz_block_figures *figures, bis_error *error);
/* data->q holds the embedded windows. options: of the stage, rates and epochs. */
bis_status qz_kept_train(const qz_job *job, qz_kept *kept, const qz_tune_options *options, const char *path,
                         bool finished, bis_error *error);
bis_status qz_kept_write(const qz_job *job, qz_kept *kept, int layer, const char *path, bool finished,
                         qz_block_figures *figures, bis_error *error);

/* Costs in the meter's unit, for all layers. */
double qz_kept_passes(const qz_job *job, int layers, int epochs, int tuned, bool trained, int written);

#endif
