/* bisup quantize: a Hugging Face model folder in, a quantized one out (docs/quantized-model.md, docs/bisup.md).
 *
 * Blocks are quantized one after the other, each with the activations that the quantized blocks before it give. Peak
 * memory is that of two blocks and the calibration activations. A run that is ended goes on from its last finished
 * block when the same call is made again, with the same bytes as result; on any number of threads. The input is never
 * written to. After a failure nothing is left but the input.
 */
#ifndef BISUP_QUANTIZER_QUANTIZE_H
#define BISUP_QUANTIZER_QUANTIZE_H

#include "quantizer/block_file.h"
#include "quantizer/memory_plan.h"
#include "quantizer/tune.h"

typedef struct qz_options {
    const char *model, *out;
    const char *method; /* method.c has the names */
    int weight_bits, act_bits, kv_bits, group;
    bool asymmetric;
    int outliers;            /* qz_outlier_columns */
    const char *calibration; /* NULL: none, for rtn only */
    const char *prompt;      /* NULL: none */
    int samples, seq_len;    /* qz_calibration_options */
    uint64_t seed;
    qz_tune_options tune; /* its seed and callback are set here, and smooth_alpha to 0 for QuaRot */
    bool end_to_end;      /* after tuning, all blocks are trained together, where the memory is there */
    int end_to_end_epochs;
    double lr_end_to_end; /* its learning rates, as a share of the tuning's */
    bool gptq;
    int threads;     /* 0: one per core */
    uint64_t memory; /* bytes that may be used; 0: what is free */
    bool force, quiet;
} qz_options;

typedef struct qz_summary {
    int layers, resumed; /* resumed: blocks found finished */
    int samples, seq_len, prompt_tokens;
    uint64_t text_tokens;
    qz_block_figures *blocks; /* [layers] */
    qz_memory_plan plan;
    bool end_to_end;                                    /* the stage was done; else the figures below are 0 */
    bool end_to_end_left_out;                           /* wanted, but there was no memory for it */
    double kl_before, kl_after, end_epoch, end_seconds; /* of held-out windows, in nats a token */
    double final_error; /* of the finished model, as the blocks' errors, which are of tuning when there is the stage */
    uint64_t model_bytes;
    double bits_per_weight;            /* of the blocks' matrices as they are stored, with scales and all */
    double seconds, tokens_per_second; /* calibration tokens through the whole model; 0 without calibration */
    double gflops, peak_gflops;        /* of matrix products over the run; of this machine's BLAS alone */
} qz_summary;

/* On success free with qz_summary_free. Errors are one line for the user. */
bis_status qz_quantize(const qz_options *options, qz_summary *out, bis_error *error);
void qz_summary_free(qz_summary *summary);

#endif
