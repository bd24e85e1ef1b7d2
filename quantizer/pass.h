/* One pass of rows through a block, and back: what simulate.c and tune.c share. Inside the quantizer only.
 *
 * The steps of a pass are products (qz_gemm) and what is done row by row between them (pieces of rows on all threads).
 * A pass that is to go back keeps what its steps read; one that is not lets steps overwrite their input.
 */
#ifndef BISUP_QUANTIZER_PASS_H
#define BISUP_QUANTIZER_PASS_H

#include "quantizer/fake.h"
#include "quantizer/simulate.h"

/* Arrays of rows; of [rows, width of the site] or as told. Where a step need not keep its input, input and output are
 * one array. */
typedef struct qz_tape {
    const qz_real *input;         /* borrowed */
    qz_real *inverse1, *inverse2; /* [rows]: 1 / root mean square */
    qz_real *site[QZ_SITES];      /* ordered and transformed, before quantization */
    qz_real *quantized[QZ_SITES]; /* as linears read it */
    qz_real *q_raw, *k_raw;       /* before the Q/K norms */
    qz_real *k_plain, *v_plain;   /* before quantization */
    qz_real *q, *k, *v;           /* as attention reads them */
    qz_real *middle;              /* [rows, hidden]: the residual after attention */
    qz_real *gate, *up;           /* [rows, ffn] */
    qz_real *output;              /* [rows, hidden] */
} qz_tape;

/* Gradients of rows; only where a pass goes back. */
typedef struct qz_back {
    qz_real *hidden; /* [rows, hidden]: of a norm's output */
    qz_real *wide;   /* [rows, heads * head_dim]: of attention's output */
    qz_real *q, *k, *v;
    qz_real *gate, *up;
    qz_real *clip; /* [QZ_SITES, rows] */
} qz_back;

typedef struct qz_run {
    const qz_pass *pass;
    const qz_loops *loops;
    /* As multiplied with: quantized, smoothed; the block's own where they are not. */
    const qz_real *weight[QZ_LINEARS];
    const qz_real *norm1, *norm2;
    int samples, tokens, rows; /* of this pass; at most what it was opened for */
    bool keeps;
    qz_fake_act act[QZ_SITES];
    qz_fake_kv kv;
    kn_hadamard *across_head, *across_heads, *across_ffn;
    qz_tape tape;
    qz_back back;
    qz_real *scratch; /* [threads, scratch_size] */
    size_t scratch_size;
    qz_real *memory;
} qz_run;

/* For passes of up to samples * tokens rows. Weights and norms are the block's until the caller changes them. */
bis_status qz_run_open(const qz_pass *pass, int samples, int tokens, bool keeps, qz_run *out, bis_error *error);
void qz_run_close(qz_run *run);

/* Sets the result to run->tape.output. x [samples, tokens, hidden] must stay until qz_run_backward. */
void qz_run_forward(qz_run *run, const qz_real *x, int samples);

/* Receives weight gradients in turn: [rows, cols] of the linear as it was multiplied with. */
typedef void (*qz_weight_gradient)(void *user, qz_linear_id linear, const qz_real *d_output, const qz_real *input);

/* Receives a norm site's gradient: of the norm's output in natural order [rows, hidden], with the norm's input and
 * inverse. */
typedef void (*qz_norm_gradient)(void *user, qz_site site, const qz_real *gradient, const qz_real *x,
                                 const qz_real *inverse);

typedef struct qz_receiver {
    void *user;
    qz_weight_gradient weight;
    qz_norm_gradient norm;
} qz_receiver;

/* After qz_run_forward with the same run. d_output [rows, hidden], the gradient of the output, becomes that of x; it
 * may be run->tape.output. Gradients of the act clips are in run->back.clip. */
void qz_run_backward(qz_run *run, const qz_receiver *receiver, qz_real *d_output);

/* Inside: attention and its gradient on all threads (pass_attention.c). */
void qz_run_attention(qz_run *run);
void qz_run_attention_backward(qz_run *run);
const qz_real *qz_run_rope_row(const qz_run *run, int row);
qz_real *qz_run_scratch(const qz_run *run, int worker);
size_t qz_run_attention_scratch(const qz_pass *pass, int tokens);

/* x <- H x (or its transpose) for each head of a row, or across heads, or of the whole row. */
void qz_run_across_heads(const qz_run *run, bool inverse, qz_real *row, qz_real *scratch);

static inline void qz_hadamard(const kn_hadamard *hadamard, bool inverse, qz_real *x, qz_real *scratch) {
#ifdef QZ_DOUBLE
    if (inverse) kn_hadamard_apply_inverse_double(hadamard, x, scratch);
    else kn_hadamard_apply_double(hadamard, x, scratch);
#else
    if (inverse) kn_hadamard_apply_inverse(hadamard, x, scratch);
    else kn_hadamard_apply(hadamard, x, scratch);
#endif
}

#endif
