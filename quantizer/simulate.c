#include "quantizer/simulate.h"

#include <string.h>

#include "common/alloc.h"
#include "quantizer/pass.h"

/* ---- Weights, rounded on the fly ------------------------------------------------------------- */

typedef struct round_task {
    qz_fake_weight weight;
    const qz_real *from;
    qz_real *to;
    int cols;
} round_task;

enum { WEIGHT_ROWS = 16 };

static void round_rows(void *argument, int first, int last, int worker) {
    (void)worker;
    const round_task *task = argument;
    for (int r = first; r < last; r++) {
        size_t at = (size_t)r * (size_t)task->cols;
        qz_fake_weight_row(&task->weight, task->from + at, task->cols, NULL, NULL, task->to + at, NULL, NULL);
    }
}

static size_t weights_size(const qz_shape *shape) {
    size_t size = 0;
    for (int i = 0; i < QZ_LINEARS; i++) {
        size += (size_t)qz_linear_rows(shape, (qz_linear_id)i) * (size_t)qz_linear_cols(shape, (qz_linear_id)i);
    }
    return size;
}

/* Puts rounded copies in the place of the run's weights; *memory holds them. */
static bis_status round_weights(qz_run *run, qz_real **memory, bis_error *error) {
    const qz_pass *pass = run->pass;
    const qz_shape *shape = &pass->block->shape;
    qz_real *to = bis_alloc_aligned(weights_size(shape) * sizeof *to);
    if (!to) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the rounded weights of a block");
    *memory = to;
    for (int i = 0; i < QZ_LINEARS; i++) {
        qz_linear_id linear = (qz_linear_id)i;
        int rows = qz_linear_rows(shape, linear), cols = qz_linear_cols(shape, linear);
        round_task task = {.from = pass->block->weight[i], .to = to, .cols = cols};
        task.weight = (qz_fake_weight){run->loops, kn_bits_find(pass->spec->weight_bits), {0}, pass->mode == QZ_SOFT};
        qz_fake_weight_format(pass->spec, qz_site_of(linear), &task.weight.format);
        qz_parallel(pass->compute, rows, WEIGHT_ROWS, round_rows, &task);
        run->weight[i] = to;
        to += (size_t)rows * (size_t)cols;
    }
    return BIS_OK;
}

/* ---- The passes ------------------------------------------------------------------------------ */

bis_status qz_simulate(const qz_pass *pass, const qz_real *x, int samples, int tokens, qz_real *y, bis_error *error) {
    qz_run run;
    qz_real *weights = NULL;
    bis_status status = qz_run_open(pass, 1, tokens, false, &run, error);
    if (status) return status;
    bool rounds = pass->mode != QZ_FLOAT && pass->spec->weight_bits != KN_NOT_QUANTIZED;
    if (rounds) status = round_weights(&run, &weights, error);
    size_t size = (size_t)tokens * (size_t)pass->block->shape.hidden;
    for (int i = 0; i < samples && !status; i++) {
        qz_run_forward(&run, x + (size_t)i * size, 1);
        memcpy(y + (size_t)i * size, run.tape.output, size * sizeof *y);
    }
    bis_free(weights);
    qz_run_close(&run);
    return status;
}

bis_status qz_simulate_prompt(qz_compute *compute, const qz_block *block, const qz_spec *spec,
                              const qz_real *rope_table, const qz_real *x, int tokens, qz_real *k, qz_real *v,
                              qz_real *y, bis_error *error) {
    qz_pass pass = {.compute = compute, .block = block, .spec = spec, .mode = QZ_FLOAT, .rope_table = rope_table};
    qz_run run;
    bis_status status = qz_run_open(&pass, 1, tokens, false, &run, error);
    if (status) return status;
    qz_run_forward(&run, x, 1);
    size_t keys = (size_t)tokens * (size_t)qz_linear_rows(&block->shape, QZ_K);
    memcpy(k, run.tape.k, keys * sizeof *k);
    memcpy(v, run.tape.v, keys * sizeof *v);
    if (y) memcpy(y, run.tape.output, (size_t)tokens * (size_t)block->shape.hidden * sizeof *y);
    qz_run_close(&run);
    return BIS_OK;
}
