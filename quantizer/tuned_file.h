/* What tuning has learned, in the run's folder, for a run that is interrupted: block-NNN.tuned of a block, and
 * end-to-end.tuned of all blocks after the end-to-end stage. Never part of the result.
 */
#ifndef BISUP_QUANTIZER_TUNED_FILE_H
#define BISUP_QUANTIZER_TUNED_FILE_H

#include "quantizer/block_file.h"
#include "quantizer/end_to_end.h"

/* importance (NULL: none): of the sites' channels, by which the block was reordered. Figures are what is known so far.
 */
bis_status qz_tuned_file_write(const char *path, const qz_shape *shape, double *const importance[QZ_SITES],
                               const qz_real *parameter, size_t count, const qz_block_figures *figures,
                               bis_error *error);
/* Fills the arrays; BIS_ERR_FORMAT for a file that does not hold exactly these. */
bis_status qz_tuned_file_read(const char *path, const qz_shape *shape, double *const importance[QZ_SITES],
                              qz_real *parameter, size_t count, qz_block_figures *figures, bis_error *error);

/* The same of all blocks' parameters, `count` each. seconds: that the stage took. */
bis_status qz_end_file_write(const char *path, const qz_end_block *blocks, int layers, size_t count,
                             const qz_end_result *result, double seconds, bis_error *error);
bis_status qz_end_file_read(const char *path, const qz_end_block *blocks, int layers, size_t count,
                            qz_end_result *result, double *seconds, bis_error *error);

#endif
