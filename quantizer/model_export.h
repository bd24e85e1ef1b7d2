/* The files of a quantized model folder, from finished blocks and the original's folder. */
#ifndef BISUP_QUANTIZER_MODEL_EXPORT_H
#define BISUP_QUANTIZER_MODEL_EXPORT_H

#include "quantizer/method.h"
#include "quantizer/run_folder.h"

typedef struct qz_export {
    const char *model; /* the original's folder */
    const qz_run_folder *folder;
    const qz_transform *transform;
    const qz_method *method;
    const qz_spec *spec;
    int layers, vocab;
} qz_export;

/* model.safetensors: the blocks' tensors copied from their mapped files, embedding and head made piece by piece.
 * *bytes: of the file. */
bis_status qz_export_weights(const qz_export *e, uint64_t *bytes, bis_error *error);

/* config.json (the original's keys and quantization_config), and copies of the tokenizer's and other small files. */
bis_status qz_export_side_files(const qz_export *e, bis_error *error);

#endif
