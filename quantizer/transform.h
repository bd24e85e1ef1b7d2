/* Function-preserving transforms of the base methods: Atom's reordering (arXiv 2310.19102), QuaRot's rotations (arXiv
 * 2404.00456). Computed in double, in streaming fashion: a block's weights are made when asked for. A transform holds
 * scratch memory: one thread at a time uses it.
 */
#ifndef BISUP_QUANTIZER_TRANSFORM_H
#define BISUP_QUANTIZER_TRANSFORM_H

#include "quantizer/block.h"
#include "runtime/model/model.h"

typedef enum qz_base { QZ_BASE_PLAIN, QZ_BASE_ATOM, QZ_BASE_QUAROT } qz_base;

typedef struct qz_transform qz_transform;

/* Borrows the model until closing. seed: of QuaRot's random signs. Refuses embedding, head or final norm that are not
 * finite. */
bis_status qz_transform_open(const rt_model *model, qz_base base, uint64_t seed, qz_transform **out, bis_error *error);
void qz_transform_close(qz_transform *transform); /* NULL is allowed */

qz_shape qz_transform_shape(const qz_transform *transform);
/* Sets the switches of a base method: key_before_rope (plain, Atom), or key_hadamard, heads_hadamard, ffn_hadamard. */
void qz_transform_set_spec(const qz_transform *transform, qz_spec *spec);

/* The block of a layer, transformed (QuaRot: norm gains and rotations fused). Owned by the caller. Refuses weights that
 * are not finite, naming layer and tensor. */
bis_status qz_transform_block(const qz_transform *transform, int layer, qz_block **out, bis_error *error);

/* Rows [first, first + count) of the embedding and of the head, F32 [count, hidden], and the final norm's gains: QuaRot
 * rotates both and folds the final norm into the head, so they are no longer tied. */
void qz_transform_embedding(const qz_transform *transform, int first, int count, float *out);
void qz_transform_head(const qz_transform *transform, int first, int count, float *out);
void qz_transform_final_norm(const qz_transform *transform, float *out);
bool qz_transform_tied(const qz_transform *transform); /* the result's embedding and head are one matrix */

/* Atom: orders each site's columns by importance (the diagonal of the site's Hessian), rising, so that the largest are
 * last; permutes the columns of its linears, sets block->order; for QZ_SITE_DOWN permutes the rows of gate and up (and
 * their biases) instead. importance[site] is in natural order, [qz_site_width]; equal values keep their order. Not for
 * QuaRot, whose transforms stand between gate, up and down. On failure (importance that is not finite, a block with an
 * order already, no memory) the block is as it was. */
bis_status qz_reorder_block(qz_block *block, const double *const importance[QZ_SITES], bis_error *error);

#endif
