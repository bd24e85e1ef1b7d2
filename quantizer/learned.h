/* What fine-tuning learns about a block: the parameters, the weights and norms they make, and their gradients.
 *
 *   U = (W + B A) * s_w          low-rank compensation, and smoothing of the columns (natural channel order)
 *   V = quantize(U)              clips: sigmoids of logits, two for each row and group
 *   norm = block's norm / s_x
 * V and norm are what the pass multiplies with. W is the block's and not changed. All parameters are in one array,
 * ordered by part.
 */
#ifndef BISUP_QUANTIZER_LEARNED_H
#define BISUP_QUANTIZER_LEARNED_H

#include "quantizer/pass.h"
#include "quantizer/tune.h"

typedef enum qz_part { QZ_PART_CLIP, QZ_PART_SMOOTH, QZ_PART_LOW_RANK, QZ_PART_ACT_CLIP, QZ_PARTS } qz_part;

enum { QZ_NORM_SITES = 2 }; /* the sites behind norms: 0 attention's, 1 the FFN's */

typedef struct qz_learned {
    const qz_pass *pass;
    const qz_loops *loops;
    bool has[QZ_PARTS];
    size_t first[QZ_PARTS + 1]; /* parameters of a part: first[part] .. first[part + 1] - 1 */
    qz_real *parameter, *gradient;
    /* Where in these two: */
    size_t high[QZ_LINEARS], low[QZ_LINEARS];          /* [rows, groups] logits of the clips */
    size_t a[QZ_LINEARS], b[QZ_LINEARS];               /* [rank, cols] and [rows, rank] */
    size_t log_x[QZ_NORM_SITES], log_w[QZ_NORM_SITES]; /* [hidden] */
    size_t clip;                                       /* [QZ_SITES] */
    int groups[QZ_LINEARS], rank[QZ_LINEARS];
    /* Made of the parameters by qz_learned_prepare. */
    const qz_real *plain[QZ_LINEARS]; /* U; the block's W where nothing changes it */
    qz_real *plain_own[QZ_LINEARS];   /* NULL there */
    qz_real *rounded[QZ_LINEARS];     /* V; NULL where weights are not quantized */
    qz_real *scale_w[QZ_NORM_SITES];  /* s_w in the site's order; NULL without smoothing */
    qz_real *norm[QZ_NORM_SITES];
    qz_real *scaled_a;        /* [rank, cols] of the linear at hand: A * s_w */
    qz_real *weight_gradient; /* of the linear at hand */
    qz_real *column_sums;     /* [hidden] */
    qz_real *memory;
} qz_learned;

/* Parameters at their start: next to no clip of weights, no compensation (B = 0, A random), no smoothing, act clips as
 * the pass tells but at most 0.9 (not at 8 bits). The pass and its block must stay. */
bis_status qz_learned_open(const qz_pass *pass, const qz_tune_options *options, qz_learned *out, bis_error *error);
/* How many parameters that are. */
size_t qz_learned_count(const qz_pass *pass, const qz_tune_options *options);
void qz_learned_close(qz_learned *learned);

/* Another block of the same shape takes the pass's place, with parameters and gradients kept elsewhere (they stay
 * borrowed): so one object serves all blocks in turn. */
void qz_learned_turn_to(qz_learned *learned, qz_real *parameter, qz_real *gradient);

/* Makes weights and norms of the parameters and puts them, and the act clips, into the run. */
void qz_learned_prepare(qz_learned *learned, qz_run *run);

/* Sets gradients to those of the run's pass; see qz_run_backward. */
void qz_learned_backward(qz_learned *learned, qz_run *run, qz_real *d_output);
/* The penalty on smoothing vectors that move apart: adds to the gradients. */
double qz_learned_penalty(qz_learned *learned, double weight);

/* After qz_learned_prepare: the grid that V is on. */
bis_status qz_learned_grids(const qz_learned *learned, qz_grid grid[QZ_LINEARS], bis_error *error);

/* Puts U and the norms into the block (which may be the pass's own), grids and clips into *out. */
bis_status qz_learned_fold(qz_learned *learned, qz_run *run, qz_block *block, qz_tuned *out, bis_error *error);

#endif
