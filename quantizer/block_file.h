/* A quantized block in its file: written after quantizing, read again as the numbers that the runtime will see.
 *
 * The tensors have the names and formats of docs/quantized-model.md. One more, "report" (F64), holds figures of how the
 * block was made; it is not copied to the model.
 */
#ifndef BISUP_QUANTIZER_BLOCK_FILE_H
#define BISUP_QUANTIZER_BLOCK_FILE_H

#include "quantizer/block.h"
#include "quantizer/gptq.h"
#include "runtime/model/safetensors.h"

/* All doubles: stored as they are. */
typedef struct qz_block_figures {
    double input_error, error;      /* squared difference to the original model's, relative to its squares */
    double loss_before, loss_after; /* tuning's, on held-out samples; 0 without tuning */
    double best_epoch;
    double gptq; /* 1: rounded with GPTQ; 0: to nearest */
    double seconds;
    double linear_bytes, linear_weights; /* of the seven matrices */
} qz_block_figures;

#define QZ_FIGURES_TENSOR "report"

/* "model.layers.3.self_attn.q_proj"; returns `name`. */
enum { QZ_NAME_MAX = 96 };
const char *qz_linear_name(int layer, qz_linear_id linear, char name[QZ_NAME_MAX]);

/* packed: of the seven linears; not used where spec->weight_bits is 16: then the block's weights are stored as F16
 * (BIS_ERR_INVALID for one that F16 cannot hold). Fills the figures' bytes and weights. */
bis_status qz_block_file_write(const char *path, int layer, const qz_block *block, const qz_spec *spec,
                               const qz_packed packed[QZ_LINEARS], const float act_clip[QZ_SITES],
                               qz_block_figures *figures, bis_error *error);

/* The block with weights decoded, and what else was stored. BIS_ERR_FORMAT for a file that does not hold it. The shape
 * and which optional vectors there are come from `like`. Figures that are known only later (error) are 0. */
bis_status qz_block_file_read(const char *path, int layer, const qz_block *like, const qz_spec *spec, qz_block **out,
                              float act_clip[QZ_SITES], qz_block_figures *figures, bis_error *error);

#endif
