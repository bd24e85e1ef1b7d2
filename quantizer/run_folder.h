/* The folders of a run. Everything is written below OUT.partial; OUT appears by one rename when all is done, so there
 * is never half a model under that name. OUT.partial holds:
 *   run.json               what this run is (options, inputs): another run does not go on with it
 *   block-NNN.safetensors  finished blocks
 *   block-NNN.tuned, end-to-end.tuned  what was learned, where all blocks are trained together
 *   model/                 the files of the result
 * A lock on OUT.partial keeps a second process out.
 */
#ifndef BISUP_QUANTIZER_RUN_FOLDER_H
#define BISUP_QUANTIZER_RUN_FOLDER_H

#include <limits.h>
#include <stdbool.h>

#include "common/buf.h"
#include "common/status.h"

typedef struct qz_run_folder {
    char out[PATH_MAX], partial[PATH_MAX], result[PATH_MAX]; /* result: OUT.partial/model */
    int lock;                                                /* descriptor of OUT.partial */
    bool force;
} qz_run_folder;

/* Checks that OUT may be written: it does not lie in MODEL, nor MODEL in it, and is not there yet; with force it may be
 * a quantized model (a folder with bisup_report.json and no folders inside). An empty folder may always be there.
 * Changes nothing. Call it before long work. */
bis_status qz_run_folder_check(const char *model, const char *out, bool force, bis_error *error);

/* Makes OUT.partial, or enters the one of a run with the same identity (a text); with force, one of another identity is
 * emptied. Then finished blocks are as they were and model/ is empty. After a failure nothing of this run is left. */
bis_status qz_run_folder_open(const char *out, bool force, const bis_buf *identity, qz_run_folder *folder,
                              bis_error *error);

/* What a run leaves in the folder while it goes on. */
typedef enum qz_run_file { QZ_FILE_BLOCK, QZ_FILE_TUNED, QZ_FILE_END_TO_END } qz_run_file;

/* "OUT.partial/block-007.safetensors"; layer does not matter for QZ_FILE_END_TO_END. */
bis_status qz_run_folder_file(const qz_run_folder *folder, qz_run_file file, int layer, char path[PATH_MAX],
                              bis_error *error);

/* Makes the result OUT and removes the rest. */
bis_status qz_run_folder_finish(qz_run_folder *folder, bis_error *error);

/* Lets go of OUT.partial as it is, for another call to go on with. */
void qz_run_folder_leave(qz_run_folder *folder);

/* Removes OUT.partial, after a failure. */
void qz_run_folder_discard(qz_run_folder *folder);

#endif
