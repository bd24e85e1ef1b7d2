/* The calibration windows' activations on their way through the model: through the original's blocks and through the
 * quantized ones, and the system prompt's through the original's. Sample after sample, so that a pass needs memory for
 * one.
 */
#ifndef BISUP_QUANTIZER_ACTIVATIONS_H
#define BISUP_QUANTIZER_ACTIVATIONS_H

#include "common/progress.h"
#include "quantizer/calibration.h"
#include "quantizer/simulate.h"
#include "quantizer/transform.h"
#include "runtime/rope.h"

/* Progress over the whole run, in passes of one sample through one block. */
typedef struct qz_meter {
    bis_progress bar;
    double done;
} qz_meter;

void qz_meter_add(qz_meter *meter, double passes);

typedef struct qz_activations {
    int samples, tokens, hidden;
    float *fp, *q;  /* [samples, tokens, hidden]: inputs of the next block in the original and in the quantized model */
    float *target;  /* of the tuning; NULL without it */
    float *scratch; /* [tokens, hidden] */
    int prompt_tokens;
    float *prompt;              /* [prompt_tokens, hidden], in the original */
    float *prompt_k, *prompt_v; /* [prompt_tokens, kv_heads, head_dim] of the current block */
    float *rope;                /* [prompt_tokens + tokens, head_dim] */
} qz_activations;

/* Embeds the windows and the prompt. The quantized model's embedding is rounded to F16, as it is stored. */
bis_status qz_activations_open(const qz_calibration *calibration, const qz_transform *transform,
                               const rt_rope_config *rope, bool with_target, qz_activations *out, bis_error *error);
/* The windows at the quantized model's beginning again: q. */
void qz_activations_restart(qz_activations *activations, const qz_calibration *calibration,
                            const qz_transform *transform);
void qz_activations_close(qz_activations *activations);

/* Brings the prompt through a block of the original model: its K and V are then prompt_k and prompt_v. */
bis_status qz_activations_prompt(qz_activations *a, qz_compute *compute, const qz_block *block, const qz_spec *spec,
                                 bis_error *error);

/* y = block(x) for all samples; y NULL: only the pass's observer is wanted. Rope table and prompt are added to the
 * pass here. meter may be NULL. */
bis_status qz_activations_pass(const qz_activations *a, qz_pass pass, const float *x, float *y, qz_meter *meter,
                               bis_error *error);

/* The same, but all that is wanted is the sum of squared differences of block(q) to the target. */
bis_status qz_activations_distance(const qz_activations *a, qz_pass pass, qz_meter *meter, double *out,
                                   bis_error *error);

/* Sum of squared differences of q to fp over the sum of squares of fp. */
double qz_activations_error(const qz_activations *a);

#endif
