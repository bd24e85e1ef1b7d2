/* The gradient of a pass: the steps of pass.c in reverse order. */
#include <string.h>

#include "quantizer/pass.h"

enum { ROW_GRAIN = 8 };

static inline size_t at_row(int row, int width) { return (size_t)row * (size_t)width; }

/* ---- Steps by row ---------------------------------------------------------------------------- */

/* gradient of one row: of what the linears read on entry; of the site's numbers in natural order on exit. */
static void site_backward(qz_run *run, qz_site site, int row, qz_real *gradient, qz_real *scratch) {
    int width = qz_site_width(&run->pass->block->shape, site);
    const int32_t *order = run->pass->block->order[site];
    if (run->act[site].bits) {
        const qz_real *plain = run->tape.site[site] + at_row(row, width);
        run->back.clip[at_row(site, run->rows) + (size_t)row] =
            qz_fake_act_backward(&run->act[site], plain, width, gradient);
    }
    if (!order) return;
    for (int i = 0; i < width; i++) scratch[order[i]] = gradient[i];
    memcpy(gradient, scratch, (size_t)width * sizeof *gradient);
}

static void ffn_middle(void *argument, int first, int last, int worker) {
    qz_run *run = argument;
    int ffn = run->pass->block->shape.ffn;
    qz_real *scratch = qz_run_scratch(run, worker);
    for (int r = first; r < last; r++) {
        size_t at = at_row(r, ffn);
        qz_real *gradient = run->back.gate + at;
        site_backward(run, QZ_SITE_DOWN, r, gradient, scratch);
        if (run->across_ffn) qz_hadamard(run->across_ffn, true, gradient, scratch);
        run->loops->swiglu_backward(run->tape.gate + at, run->tape.up + at, ffn, gradient, gradient, run->back.up + at);
    }
}

/* What a norm's input gets beside the part that came along the residual. */
typedef struct norm_task {
    qz_run *run;
    qz_site site;
    const qz_real *input, *norm; /* [rows, hidden], and the gains */
    qz_real *residual;
} norm_task;

static void norm_input(void *argument, int first, int last, int worker) {
    const norm_task *task = argument;
    qz_run *run = task->run;
    const qz_shape *shape = &run->pass->block->shape;
    qz_real *scratch = qz_run_scratch(run, worker);
    for (int r = first; r < last; r++) {
        size_t at = at_row(r, shape->hidden);
        site_backward(run, task->site, r, run->back.hidden + at, scratch);
        run->loops->norm_backward(task->input + at, task->norm, (qz_real)shape->norm_eps, shape->hidden,
                                  run->back.hidden + at, task->residual + at);
    }
}

static void attention_output(void *argument, int first, int last, int worker) {
    qz_run *run = argument;
    int width = qz_site_width(&run->pass->block->shape, QZ_SITE_O);
    qz_real *scratch = qz_run_scratch(run, worker);
    for (int r = first; r < last; r++) {
        qz_real *gradient = run->back.wide + at_row(r, width);
        site_backward(run, QZ_SITE_O, r, gradient, scratch);
        if (run->across_heads) qz_run_across_heads(run, true, gradient, scratch);
    }
}

static void turn_back(const qz_run *run, int row, int heads, qz_real *gradient, qz_real *scratch) {
    int width = run->pass->block->shape.head_dim;
    const qz_real *table = qz_run_rope_row(run, row);
    for (int h = 0; h < heads; h++) {
        if (run->across_head) qz_hadamard(run->across_head, true, gradient + at_row(h, width), scratch);
        run->loops->rotate(table, width / 2, -1, gradient + at_row(h, width));
    }
}

static void heads_quantizer(const qz_run *run, int heads, const qz_real *plain, qz_real *gradient) {
    int width = run->pass->block->shape.head_dim;
    for (int h = 0; h < heads && run->kv.bits; h++) {
        qz_fake_kv_backward(&run->kv, plain + at_row(h, width), width, gradient + at_row(h, width));
    }
}

static void heads_norm(const qz_run *run, int heads, const qz_real *gain, const qz_real *raw, qz_real *gradient,
                       qz_real *scratch) {
    const qz_shape *shape = &run->pass->block->shape;
    size_t bytes = (size_t)shape->head_dim * sizeof *gradient;
    for (int h = 0; h < heads && gain; h++) {
        size_t at = at_row(h, shape->head_dim);
        memset(scratch, 0, bytes);
        run->loops->norm_backward(raw + at, gain, (qz_real)shape->norm_eps, shape->head_dim, gradient + at, scratch);
        memcpy(gradient + at, scratch, bytes);
    }
}

static void attention_heads(void *argument, int first, int last, int worker) {
    qz_run *run = argument;
    const qz_block *block = run->pass->block;
    const qz_tape *tape = &run->tape;
    int heads = block->shape.heads, kv_heads = block->shape.kv_heads, width = block->shape.head_dim;
    bool key_before_rope = run->pass->spec->key_before_rope;
    qz_real *scratch = qz_run_scratch(run, worker);
    for (int r = first; r < last; r++) {
        size_t query = at_row(r, heads * width), key = at_row(r, kv_heads * width);
        qz_real *d_query = run->back.q + query, *d_key = run->back.k + key;
        turn_back(run, r, heads, d_query, scratch);
        heads_norm(run, heads, block->q_norm, tape->q_raw + query, d_query, scratch);
        if (key_before_rope) turn_back(run, r, kv_heads, d_key, scratch);
        heads_quantizer(run, kv_heads, tape->k_plain + key, d_key);
        if (!key_before_rope) turn_back(run, r, kv_heads, d_key, scratch);
        heads_norm(run, kv_heads, block->k_norm, tape->k_raw + key, d_key, scratch);
        heads_quantizer(run, kv_heads, tape->v_plain + key, run->back.v + key);
    }
}

/* ---- Backward -------------------------------------------------------------------------------- */

static void each_row(qz_run *run, qz_range_fn step, void *argument) {
    qz_parallel(run->pass->compute, run->rows, ROW_GRAIN, step, argument);
}

/* Weight gradients of a linear, and d_input (+)= d_output W. */
static void multiply(qz_run *run, const qz_receiver *receiver, qz_linear_id linear, const qz_real *d_output, bool adds,
                     qz_real *d_input) {
    const qz_shape *shape = &run->pass->block->shape;
    int rows = qz_linear_rows(shape, linear), cols = qz_linear_cols(shape, linear);
    receiver->weight(receiver->user, linear, d_output, run->tape.quantized[qz_site_of(linear)]);
    qz_matrix gradient = {d_output, rows, false}, w = {run->weight[linear], cols, false};
    qz_gemm(run->pass->compute, run->rows, cols, rows, 1, gradient, w, adds ? 1 : 0, d_input, cols);
}

void qz_run_backward(qz_run *run, const qz_receiver *receiver, qz_real *d_output) {
    const qz_tape *tape = &run->tape;
    const qz_back *back = &run->back;
    multiply(run, receiver, QZ_DOWN, d_output, false, back->gate);
    each_row(run, ffn_middle, run);
    multiply(run, receiver, QZ_GATE, back->gate, false, back->hidden);
    multiply(run, receiver, QZ_UP, back->up, true, back->hidden);
    norm_task ffn_norm = {run, QZ_SITE_FFN, tape->middle, run->norm2, d_output};
    each_row(run, norm_input, &ffn_norm);
    receiver->norm(receiver->user, QZ_SITE_FFN, back->hidden, tape->middle, tape->inverse2);
    multiply(run, receiver, QZ_O, d_output, false, back->wide);
    each_row(run, attention_output, run);
    qz_run_attention_backward(run);
    each_row(run, attention_heads, run);
    multiply(run, receiver, QZ_Q, back->q, false, back->hidden);
    multiply(run, receiver, QZ_K, back->k, true, back->hidden);
    multiply(run, receiver, QZ_V, back->v, true, back->hidden);
    norm_task attention_norm = {run, QZ_SITE_ATTN, tape->input, run->norm1, d_output};
    each_row(run, norm_input, &attention_norm);
    receiver->norm(receiver->user, QZ_SITE_ATTN, back->hidden, tape->input, tape->inverse1);
}
