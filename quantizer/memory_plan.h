/* What a run will need at its peak, told and compared with what the machine has before anything is computed. */
#ifndef BISUP_QUANTIZER_MEMORY_PLAN_H
#define BISUP_QUANTIZER_MEMORY_PLAN_H

#include "quantizer/end_to_end.h"
#include "quantizer/method.h"

/* Bytes. Mapped weight files are not counted: the system takes their pages back when it needs them. */
typedef struct qz_memory_plan {
    uint64_t activations; /* of all samples: inputs of both models, and the tuning's target */
    uint64_t blocks;      /* the block, and what it is made from or read back into */
    uint64_t hessians;
    uint64_t tuning; /* parameters, gradients, and one sample's way through the block */
    uint64_t total;
    uint64_t end_to_end; /* instead of total, where all blocks are kept and trained together; 0: not wanted */
} qz_memory_plan;

typedef struct qz_plan_input {
    qz_shape shape;
    const qz_method *method;
    const qz_spec *spec;
    bool gptq;
    int samples, tokens, prompt_tokens;
    const qz_tune_options *tune;
    bool end_to_end;
    int layers, vocab, threads;
} qz_plan_input;

qz_memory_plan qz_plan_memory(const qz_plan_input *input);

/* BIS_ERR_NOMEM with what is needed, what there is (bytes) and what to change. */
bis_status qz_plan_check(const qz_memory_plan *plan, uint64_t available, bis_error *error);

#endif
