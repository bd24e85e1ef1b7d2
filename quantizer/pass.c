#include "quantizer/pass.h"

#include <string.h>

#include "common/alloc.h"

enum { ROW_GRAIN = 8, ALIGNED = 16 };

/* ---- Opening --------------------------------------------------------------------------------- */

/* Memory is laid out twice: without memory, to know the size, and then for good. */
typedef struct layout {
    qz_real *memory;
    size_t used;
} layout;

static qz_real *take(layout *at, size_t rows, size_t width) {
    qz_real *taken = at->memory ? at->memory + at->used : NULL;
    at->used += (rows * width + ALIGNED - 1) / ALIGNED * ALIGNED;
    return taken;
}

static void lay_out_tape(qz_run *run, layout *at, size_t rows) {
    const qz_shape *shape = &run->pass->block->shape;
    const qz_block *block = run->pass->block;
    qz_tape *tape = &run->tape;
    size_t hidden = (size_t)shape->hidden, ffn = (size_t)shape->ffn;
    size_t queries = (size_t)qz_linear_rows(shape, QZ_Q), keys = (size_t)qz_linear_rows(shape, QZ_K);
    tape->inverse1 = take(at, rows, 1);
    tape->inverse2 = take(at, rows, 1);
    tape->q = take(at, rows, queries);
    tape->k = take(at, rows, keys);
    tape->v = take(at, rows, keys);
    bool apart = run->keeps && run->kv.bits;
    tape->k_plain = apart ? take(at, rows, keys) : tape->k;
    tape->v_plain = apart ? take(at, rows, keys) : tape->v;
    tape->q_raw = run->keeps && block->q_norm ? take(at, rows, queries) : tape->q;
    tape->k_raw = run->keeps && block->k_norm ? take(at, rows, keys) : tape->k_plain;
    tape->middle = take(at, rows, hidden);
    tape->output = take(at, rows, hidden);
    tape->gate = take(at, rows, ffn);
    tape->up = take(at, rows, ffn);
    for (int i = 0; i < QZ_SITES; i++) {
        bool in_place = !run->keeps && i == QZ_SITE_DOWN;
        tape->site[i] = in_place ? tape->gate : take(at, rows, (size_t)qz_site_width(shape, (qz_site)i));
        bool copied = run->keeps && run->act[i].bits;
        tape->quantized[i] = copied ? take(at, rows, (size_t)qz_site_width(shape, (qz_site)i)) : tape->site[i];
    }
}

static void lay_out_back(qz_run *run, layout *at, size_t rows) {
    const qz_shape *shape = &run->pass->block->shape;
    size_t queries = (size_t)qz_linear_rows(shape, QZ_Q), keys = (size_t)qz_linear_rows(shape, QZ_K);
    run->back.hidden = take(at, rows, (size_t)shape->hidden);
    run->back.wide = take(at, rows, queries);
    run->back.q = take(at, rows, queries);
    run->back.k = take(at, rows, keys);
    run->back.v = take(at, rows, keys);
    run->back.gate = take(at, rows, (size_t)shape->ffn);
    run->back.up = take(at, rows, (size_t)shape->ffn);
    run->back.clip = take(at, rows, QZ_SITES);
}

static bool lay_out(qz_run *run, int samples, int tokens) {
    const qz_shape *shape = &run->pass->block->shape;
    size_t rows = (size_t)samples * (size_t)tokens, threads = (size_t)qz_compute_threads(run->pass->compute);
    size_t widest = (size_t)(shape->ffn > shape->hidden ? shape->ffn : shape->hidden);
    size_t queries = (size_t)qz_linear_rows(shape, QZ_Q);
    if (queries > widest) widest = queries;
    run->scratch_size = 2 * widest + (size_t)(shape->heads + shape->head_dim);
    size_t attention = qz_run_attention_scratch(run->pass, tokens);
    if (attention > run->scratch_size) run->scratch_size = attention;
    layout at = {0};
    for (int i = 0; i < 2; i++) {
        at.used = 0;
        lay_out_tape(run, &at, rows);
        if (run->keeps) lay_out_back(run, &at, rows);
        run->scratch = take(&at, threads, run->scratch_size);
        if (i == 1) break;
        at.memory = run->memory = bis_alloc_aligned(at.used * sizeof(qz_real));
        if (!at.memory) return false;
    }
    return true;
}

static bis_status open_hadamards(qz_run *run, bis_error *error) {
    const qz_shape *shape = &run->pass->block->shape;
    const qz_spec *spec = run->pass->spec;
    bis_status status = BIS_OK;
    if (spec->key_hadamard) status = kn_hadamard_open(shape->head_dim, &run->across_head, error);
    if (!status && spec->heads_hadamard) status = kn_hadamard_open(shape->heads, &run->across_heads, error);
    if (!status && spec->ffn_hadamard) status = kn_hadamard_open(shape->ffn, &run->across_ffn, error);
    return status;
}

static bis_status check_spec(const qz_spec *spec, const qz_shape *shape, bis_error *error) {
    const int bits[] = {spec->weight_bits, spec->act_bits, spec->kv_bits};
    for (int i = 0; i < 3; i++) {
        if (bits[i] != KN_NOT_QUANTIZED && !kn_bits_find(bits[i]))
            return bis_fail(error, BIS_ERR_INVALID, "%d bits cannot be simulated: use 2, 3, 4, 8 or 16", bits[i]);
    }
    if (spec->group < 1)
        return bis_fail(error, BIS_ERR_INVALID, "the group size is %d: use 32, 64 or 128", spec->group);
    for (int i = 0; i < QZ_SITES; i++) {
        int width = qz_site_width(shape, (qz_site)i);
        if (spec->outliers[i] < 0 || spec->outliers[i] >= width)
            return bis_fail(error, BIS_ERR_INVALID, "%d outlier columns of %d: use fewer", spec->outliers[i], width);
    }
    return BIS_OK;
}

static void set_quantizers(qz_run *run) {
    const qz_pass *pass = run->pass;
    bool quantizes = pass->mode != QZ_FLOAT, soft = pass->mode == QZ_SOFT;
    for (int i = 0; i < QZ_SITES; i++) {
        run->act[i] = (qz_fake_act){.loops = run->loops,
                                    .bits = quantizes ? kn_bits_find(pass->spec->act_bits) : NULL,
                                    .group = pass->spec->group,
                                    .outliers = pass->spec->outliers[i],
                                    .clip = pass->act_clip ? (qz_real)pass->act_clip[i] : 1,
                                    .soft = soft};
    }
    run->kv = (qz_fake_kv){run->loops, quantizes ? kn_bits_find(pass->spec->kv_bits) : NULL, soft};
}

bis_status qz_run_open(const qz_pass *pass, int samples, int tokens, bool keeps, qz_run *out, bis_error *error) {
    bis_status status = check_spec(pass->spec, &pass->block->shape, error);
    if (status) return status;
    qz_run run = {.pass = pass, .loops = qz_loops_get(), .tokens = tokens, .keeps = keeps};
    for (int i = 0; i < QZ_LINEARS; i++) run.weight[i] = pass->block->weight[i];
    run.norm1 = pass->block->norm1;
    run.norm2 = pass->block->norm2;
    set_quantizers(&run);
    status = open_hadamards(&run, error);
    if (!status && !lay_out(&run, samples, tokens)) {
        status = bis_fail(error, BIS_ERR_NOMEM,
                          "no memory for %d rows of a block: use shorter or fewer samples at a time", samples * tokens);
    }
    if (status) qz_run_close(&run);
    else *out = run;
    return status;
}

void qz_run_close(qz_run *run) {
    kn_hadamard_close(run->across_head);
    kn_hadamard_close(run->across_heads);
    kn_hadamard_close(run->across_ffn);
    bis_free(run->memory);
    *run = (qz_run){0};
}

qz_real *qz_run_scratch(const qz_run *run, int worker) { return run->scratch + (size_t)worker * run->scratch_size; }

/* ---- Steps by row ---------------------------------------------------------------------------- */

static inline size_t at_row(int row, int width) { return (size_t)row * (size_t)width; }

const qz_real *qz_run_rope_row(const qz_run *run, int row) {
    const qz_pass *pass = run->pass;
    return pass->rope_table + at_row(pass->prompt.tokens + row % run->tokens, pass->block->shape.head_dim);
}

void qz_run_across_heads(const qz_run *run, bool inverse, qz_real *row, qz_real *scratch) {
    const qz_shape *shape = &run->pass->block->shape;
    int heads = shape->heads, width = shape->head_dim;
    qz_real *turned = scratch, *rest = scratch + at_row(heads, width);
    for (int h = 0; h < heads; h++) {
        for (int i = 0; i < width; i++) turned[at_row(i, heads) + (size_t)h] = row[at_row(h, width) + (size_t)i];
    }
    for (int i = 0; i < width; i++) qz_hadamard(run->across_heads, inverse, turned + at_row(i, heads), rest);
    for (int h = 0; h < heads; h++) {
        for (int i = 0; i < width; i++) row[at_row(h, width) + (size_t)i] = turned[at_row(i, heads) + (size_t)h];
    }
}

/* The site's numbers of a row: `natural` in the site's order, then quantized. natural may be the site's own row where
 * there is no order. */
static void finish_site(qz_run *run, qz_site site, int row, const qz_real *natural) {
    int width = qz_site_width(&run->pass->block->shape, site);
    const int32_t *order = run->pass->block->order[site];
    qz_real *plain = run->tape.site[site] + at_row(row, width);
    qz_real *quantized = run->tape.quantized[site] + at_row(row, width);
    if (order) {
        for (int i = 0; i < width; i++) plain[i] = natural[order[i]];
    } else if (natural != plain) {
        memcpy(plain, natural, (size_t)width * sizeof *plain);
    }
    if (run->act[site].bits) qz_fake_act_row(&run->act[site], plain, width, quantized);
}

/* Where a site's numbers are made before finish_site. */
static qz_real *site_target(const qz_run *run, qz_site site, int row, qz_real *scratch) {
    if (run->pass->block->order[site]) return scratch;
    return run->tape.site[site] + at_row(row, qz_site_width(&run->pass->block->shape, site));
}

static void attention_input(void *argument, int first, int last, int worker) {
    qz_run *run = argument;
    const qz_shape *shape = &run->pass->block->shape;
    qz_real *scratch = qz_run_scratch(run, worker);
    for (int r = first; r < last; r++) {
        qz_real *made = site_target(run, QZ_SITE_ATTN, r, scratch);
        run->tape.inverse1[r] = run->loops->norm(run->tape.input + at_row(r, shape->hidden), run->norm1,
                                                 (qz_real)shape->norm_eps, shape->hidden, made);
        finish_site(run, QZ_SITE_ATTN, r, made);
    }
}

/* One row's queries or keys: bias, norm over each head. in and out may be the same. */
static void finish_heads(const qz_run *run, int heads, const qz_real *bias, const qz_real *gain, qz_real *in,
                         qz_real *out) {
    const qz_shape *shape = &run->pass->block->shape;
    int width = shape->head_dim;
    if (bias) run->loops->add(in, bias, heads * width);
    if (!gain && in != out) memcpy(out, in, at_row(heads, width) * sizeof *out);
    for (int h = 0; h < heads && gain; h++) {
        size_t at = at_row(h, width);
        run->loops->norm(in + at, gain, (qz_real)shape->norm_eps, width, out + at);
    }
}

/* RoPE, and the head's Hadamard where there is one. */
static void turn_heads(const qz_run *run, int row, int heads, qz_real *x, qz_real *scratch) {
    int width = run->pass->block->shape.head_dim;
    const qz_real *table = qz_run_rope_row(run, row);
    for (int h = 0; h < heads; h++) {
        run->loops->rotate(table, width / 2, 1, x + at_row(h, width));
        if (run->across_head) qz_hadamard(run->across_head, false, x + at_row(h, width), scratch);
    }
}

static void quantize_heads(const qz_run *run, int heads, const qz_real *x, qz_real *out) {
    int width = run->pass->block->shape.head_dim;
    for (int h = 0; h < heads && run->kv.bits; h++) {
        qz_fake_kv_head(&run->kv, x + at_row(h, width), width, out + at_row(h, width));
    }
}

static void attention_heads(void *argument, int first, int last, int worker) {
    qz_run *run = argument;
    const qz_block *block = run->pass->block;
    qz_tape *tape = &run->tape;
    int heads = block->shape.heads, kv_heads = block->shape.kv_heads, width = block->shape.head_dim;
    qz_real *scratch = qz_run_scratch(run, worker);
    for (int r = first; r < last; r++) {
        size_t query = at_row(r, heads * width), key = at_row(r, kv_heads * width);
        finish_heads(run, heads, block->bias[QZ_Q], block->q_norm, tape->q_raw + query, tape->q + query);
        turn_heads(run, r, heads, tape->q + query, scratch);
        finish_heads(run, kv_heads, block->bias[QZ_K], block->k_norm, tape->k_raw + key, tape->k_plain + key);
        if (!run->pass->spec->key_before_rope) turn_heads(run, r, kv_heads, tape->k_plain + key, scratch);
        quantize_heads(run, kv_heads, tape->k_plain + key, tape->k + key);
        if (run->pass->spec->key_before_rope) turn_heads(run, r, kv_heads, tape->k + key, scratch);
        if (block->bias[QZ_V]) run->loops->add(tape->v_plain + key, block->bias[QZ_V], kv_heads * width);
        quantize_heads(run, kv_heads, tape->v_plain + key, tape->v + key);
    }
}

/* Attention left its result in the site's array; the order needs it elsewhere. */
static void attention_output(void *argument, int first, int last, int worker) {
    qz_run *run = argument;
    const qz_shape *shape = &run->pass->block->shape;
    int width = shape->heads * shape->head_dim;
    qz_real *scratch = qz_run_scratch(run, worker), *rest = scratch + width;
    for (int r = first; r < last; r++) {
        qz_real *made = run->tape.site[QZ_SITE_O] + at_row(r, width);
        if (run->across_heads) qz_run_across_heads(run, false, made, rest);
        if (run->pass->block->order[QZ_SITE_O]) {
            memcpy(scratch, made, (size_t)width * sizeof *made);
            made = scratch;
        }
        finish_site(run, QZ_SITE_O, r, made);
    }
}

static void ffn_input(void *argument, int first, int last, int worker) {
    qz_run *run = argument;
    const qz_block *block = run->pass->block;
    int hidden = block->shape.hidden;
    qz_real *scratch = qz_run_scratch(run, worker);
    for (int r = first; r < last; r++) {
        qz_real *middle = run->tape.middle + at_row(r, hidden), *made = site_target(run, QZ_SITE_FFN, r, scratch);
        if (block->bias[QZ_O]) run->loops->add(middle, block->bias[QZ_O], hidden);
        run->tape.inverse2[r] = run->loops->norm(middle, run->norm2, (qz_real)block->shape.norm_eps, hidden, made);
        finish_site(run, QZ_SITE_FFN, r, made);
    }
}

static void ffn_middle(void *argument, int first, int last, int worker) {
    qz_run *run = argument;
    const qz_block *block = run->pass->block;
    int ffn = block->shape.ffn;
    qz_real *scratch = qz_run_scratch(run, worker);
    for (int r = first; r < last; r++) {
        qz_real *gate = run->tape.gate + at_row(r, ffn), *up = run->tape.up + at_row(r, ffn);
        qz_real *made = run->tape.site[QZ_SITE_DOWN] + at_row(r, ffn);
        if (block->bias[QZ_GATE]) run->loops->add(gate, block->bias[QZ_GATE], ffn);
        if (block->bias[QZ_UP]) run->loops->add(up, block->bias[QZ_UP], ffn);
        run->loops->swiglu(gate, up, ffn, made);
        if (run->across_ffn) qz_hadamard(run->across_ffn, false, made, scratch);
        finish_site(run, QZ_SITE_DOWN, r, made);
    }
}

static void block_output(void *argument, int first, int last, int worker) {
    (void)worker;
    qz_run *run = argument;
    int hidden = run->pass->block->shape.hidden;
    const qz_real *bias = run->pass->block->bias[QZ_DOWN];
    for (int r = first; r < last && bias; r++) run->loops->add(run->tape.output + at_row(r, hidden), bias, hidden);
}

/* ---- Forward --------------------------------------------------------------------------------- */

static void each_row(qz_run *run, qz_range_fn step) {
    qz_parallel(run->pass->compute, run->rows, ROW_GRAIN, step, run);
}

/* y (+)= x W^T */
static void multiply(qz_run *run, qz_linear_id linear, bool adds, qz_real *y) {
    const qz_shape *shape = &run->pass->block->shape;
    int rows = qz_linear_rows(shape, linear), cols = qz_linear_cols(shape, linear);
    qz_matrix x = {run->tape.quantized[qz_site_of(linear)], cols, false}, w = {run->weight[linear], cols, true};
    qz_gemm(run->pass->compute, run->rows, rows, cols, 1, x, w, adds ? 1 : 0, y, rows);
}

static void show(const qz_run *run, qz_site site) {
    const qz_pass *pass = run->pass;
    if (!pass->observe) return;
    pass->observe(pass->observe_user, site, run->tape.quantized[site], run->rows,
                  qz_site_width(&pass->block->shape, site));
}

void qz_run_forward(qz_run *run, const qz_real *x, int samples) {
    qz_tape *tape = &run->tape;
    run->samples = samples;
    run->rows = samples * run->tokens;
    size_t bytes = at_row(run->rows, run->pass->block->shape.hidden) * sizeof *x;
    tape->input = x;
    each_row(run, attention_input);
    show(run, QZ_SITE_ATTN);
    multiply(run, QZ_Q, false, tape->q_raw);
    multiply(run, QZ_K, false, tape->k_raw);
    multiply(run, QZ_V, false, tape->v_plain);
    each_row(run, attention_heads);
    qz_run_attention(run);
    each_row(run, attention_output);
    show(run, QZ_SITE_O);
    memcpy(tape->middle, x, bytes);
    multiply(run, QZ_O, true, tape->middle);
    each_row(run, ffn_input);
    show(run, QZ_SITE_FFN);
    multiply(run, QZ_GATE, false, tape->gate);
    multiply(run, QZ_UP, false, tape->up);
    each_row(run, ffn_middle);
    show(run, QZ_SITE_DOWN);
    memcpy(tape->output, tape->middle, bytes);
    multiply(run, QZ_DOWN, true, tape->output);
    each_row(run, block_output);
}
