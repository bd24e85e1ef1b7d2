#include "quantizer/block_parts.h"

#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "common/clock.h"

/* A step forward and backward, and the forward's repetition, in forward passes. */
static const double TUNE_PASSES = 4;
static const double HESSIAN_DAMP = 0.01;

bool qz_job_rounds(const qz_job *job) { return job->spec->weight_bits != KN_NOT_QUANTIZED; }

static bool uses_hessian(const qz_job *job) { return job->method->hessian && job->gptq && qz_job_rounds(job); }

bool qz_job_tunes(const qz_job *job) { return job->method->tune && job->data->samples > 0; }

bool qz_job_reorders(const qz_job *job) { return job->method->base == QZ_BASE_ATOM && job->spec->outliers[0] > 0; }

/* ---- Costs ---- */

double qz_rounding_passes(const qz_job *job) {
    int tokens = job->data->samples ? job->data->tokens : 1;
    return uses_hessian(job) ? 8.0 * qz_transform_shape(job->transform).ffn / tokens : 0.5;
}

double qz_tuning_passes(const qz_job *job) { return TUNE_PASSES * job->data->samples * job->tune->epochs; }

double qz_block_step_passes(const qz_job *job, bool finished) {
    double samples = job->data->samples, passes = 2 * samples; /* the original's block, and the finished one */
    if (finished) return passes;
    if (qz_job_tunes(job) || qz_job_reorders(job)) passes += samples;
    if (qz_job_tunes(job)) passes += qz_tuning_passes(job);
    if (uses_hessian(job)) passes += qz_job_tunes(job) ? 3 * samples : samples;
    return passes + qz_rounding_passes(job);
}

/* ---- Floating point: importance of channels, target, and the original's activations ---- */

bis_status qz_importance_open(const qz_shape *shape, qz_importance *out, bis_error *error) {
    size_t total = 0;
    for (qz_site site = 0; site < QZ_SITES; site++) total += (size_t)qz_site_width(shape, site);
    double *at = bis_calloc(total, sizeof *at);
    if (!at) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the channels' importance");
    out->memory = at;
    for (qz_site site = 0; site < QZ_SITES; site++) {
        out->sums[site] = at;
        at += qz_site_width(shape, site);
    }
    return BIS_OK;
}

void qz_importance_close(qz_importance *importance) {
    bis_free(importance->memory);
    *importance = (qz_importance){0};
}

static void add_squares(void *user, qz_site site, const qz_real *x, int rows, int width) {
    double *sums = ((qz_importance *)user)->sums[site];
    for (int row = 0; row < rows; row++, x += width) {
        for (int i = 0; i < width; i++) sums[i] += (double)x[i] * (double)x[i];
    }
}

bis_status qz_float_passes(const qz_job *job, const qz_block *block, bool finished, qz_importance *seen,
                           bis_error *error) {
    qz_activations *data = job->data;
    qz_pass pass = {.compute = job->compute, .block = block, .spec = job->spec, .mode = QZ_FLOAT};
    bis_status status = qz_activations_prompt(data, job->compute, block, job->spec, error);
    if (!status && !finished && (qz_job_tunes(job) || qz_job_reorders(job))) {
        qz_pass observed = pass;
        if (qz_job_reorders(job)) {
            observed.observe = add_squares;
            observed.observe_user = seen;
        }
        status = qz_activations_pass(data, observed, data->q, data->target, job->meter, error);
    }
    if (!status) status = qz_activations_pass(data, pass, data->fp, data->fp, job->meter, error);
    if (status || finished || !qz_job_tunes(job) || !job->tune->error_cancelling) return status;
    size_t count = (size_t)data->samples * (size_t)data->tokens * (size_t)data->hidden;
    for (size_t i = 0; i < count; i++) data->target[i] = 0.5f * (data->target[i] + data->fp[i]);
    return BIS_OK;
}

/* ---- Tuning ---- */

void qz_base_act_clip(const qz_job *job, float clip[QZ_SITES]) {
    for (int site = 0; site < QZ_SITES; site++) clip[site] = qz_method_act_clip(job->method, job->spec->act_bits);
}

static void tell_step(void *user, int done, int total) {
    qz_tuning *t = user;
    double passes = total > 0 ? t->passes * done / total : t->passes;
    qz_meter_add(t->meter, passes - t->told);
    t->told = passes;
}

void qz_tuning_start(const qz_job *job, int layer, const qz_block *block, qz_tuning *out) {
    const qz_activations *data = job->data;
    *out = (qz_tuning){.options = *job->tune, .meter = job->meter, .passes = qz_tuning_passes(job)};
    qz_base_act_clip(job, out->clip);
    out->pass = (qz_pass){.compute = job->compute,
                          .block = block,
                          .spec = job->spec,
                          .mode = QZ_QUANTIZED,
                          .act_clip = out->clip,
                          .rope_table = data->rope,
                          .prompt = {data->prompt_tokens, data->prompt_k, data->prompt_v}};
    out->options.seed = out->options.seed * 1000003u + (uint64_t)layer; /* each block draws its own numbers */
    out->options.on_step = tell_step;
    out->options.on_step_user = out;
}

void qz_tuning_finish(qz_tuning *tuning) { tell_step(tuning, 1, 1); }

static bis_status tune(const qz_job *job, int layer, qz_block *block, qz_tuned *tuned, bis_error *error) {
    const qz_activations *data = job->data;
    qz_tuning tuning;
    qz_tuning_start(job, layer, block, &tuning);
    bis_status status =
        qz_tune(block, &tuning.pass, &tuning.options, data->q, data->target, data->samples, data->tokens, tuned, error);
    if (!status) qz_tuning_finish(&tuning);
    return status;
}

/* ---- Rounding ---- */

typedef struct hessians {
    qz_hessian of[QZ_SITES];
} hessians;

static void add_to_hessian(void *user, qz_site site, const qz_real *x, int rows, int width) {
    (void)width;
    qz_hessian_add(&((hessians *)user)->of[site], x, rows);
}

static void free_hessians(hessians *h) {
    for (int site = 0; site < QZ_SITES; site++) qz_hessian_free(&h->of[site]);
}

/* Of the inputs as the quantized model will see them, with the block's weights before rounding. */
static bis_status collect_hessians(const qz_job *job, const qz_block *block, const float *act_clip, hessians *h,
                                   bis_error *error) {
    bis_status status = BIS_OK;
    qz_spec spec = *job->spec;
    spec.weight_bits = KN_NOT_QUANTIZED;
    for (qz_site site = 0; site < QZ_SITES && !status; site++) {
        status = qz_hessian_open(job->compute, qz_site_width(&block->shape, site), &h->of[site], error);
    }
    if (!status) {
        qz_pass pass = {.compute = job->compute,
                        .block = block,
                        .spec = &spec,
                        .mode = QZ_QUANTIZED,
                        .act_clip = act_clip,
                        .observe = add_to_hessian,
                        .observe_user = h};
        status = qz_activations_pass(job->data, pass, job->data->q, NULL, job->meter, error);
    }
    for (int site = 0; site < QZ_SITES && !status; site++) qz_hessian_finish(&h->of[site]);
    return status;
}

/* hessians NULL: to nearest. The block's weights become the decoded values. */
static bis_status round_linears(const qz_job *job, qz_block *block, const qz_tuned *tuned, const hessians *h,
                                qz_packed packed[QZ_LINEARS], bis_error *error) {
    char name[QZ_NAME_MAX];
    const qz_spec *spec = job->spec;
    bis_status status = BIS_OK;
    for (qz_linear_id l = 0; l < QZ_LINEARS && !status; l++) {
        qz_site site = qz_site_of(l);
        qz_round_options options = {
            .format = {spec->weight_bits, spec->group, spec->weight_symmetric, spec->outliers[site]},
            .grid = tuned ? &tuned->grid[l] : NULL,
            .clip = qz_method_weight_clip(job->method, spec->weight_bits),
            .hessian = h ? &h->of[site] : NULL,
            .damp = HESSIAN_DAMP};
        status = qz_round(block->weight[l], qz_linear_rows(&block->shape, l), qz_linear_cols(&block->shape, l),
                          &options, &packed[l], error);
        if (status) status = bis_fail_within(error, "%s", qz_linear_name(0, l, name) + strlen("model.layers.0."));
        if (h) qz_meter_add(job->meter, qz_rounding_passes(job) / QZ_LINEARS);
    }
    return status;
}

bis_status qz_round_nearest(const qz_job *job, qz_block *block, const qz_tuned *tuned, qz_packed packed[QZ_LINEARS],
                            bis_error *error) {
    return round_linears(job, block, tuned, NULL, packed, error);
}

static void free_packed(qz_packed packed[QZ_LINEARS]) {
    for (int l = 0; l < QZ_LINEARS; l++) qz_packed_free(&packed[l]);
}

bis_status qz_round_block(const qz_job *job, qz_block *block, const float *act_clip, const qz_tuned *tuned,
                          qz_packed packed[QZ_LINEARS], bis_error *error) {
    hessians h = {0};
    bis_status status = uses_hessian(job) ? collect_hessians(job, block, act_clip, &h, error) : BIS_OK;
    if (!status) status = round_linears(job, block, tuned, uses_hessian(job) ? &h : NULL, packed, error);
    free_hessians(&h);
    return status;
}

/* ---- The better of two roundings ---- */

static size_t linear_size(const qz_block *block, qz_linear_id l) {
    return (size_t)qz_linear_rows(&block->shape, l) * (size_t)qz_linear_cols(&block->shape, l);
}

/* Copies all weights out of the block, or back into it. */
static void copy_weights(qz_block *block, float *copy, bool back) {
    for (qz_linear_id l = 0; l < QZ_LINEARS; l++) {
        size_t count = linear_size(block, l);
        memcpy(back ? block->weight[l] : copy, back ? copy : block->weight[l], count * sizeof *copy);
        copy += count;
    }
}

static bis_status distance(const qz_job *job, const qz_block *block, const float *act_clip, double *out,
                           bis_error *error) {
    qz_spec spec = *job->spec;
    spec.weight_bits = KN_NOT_QUANTIZED;
    qz_pass pass = {.compute = job->compute, .block = block, .spec = &spec, .mode = QZ_QUANTIZED, .act_clip = act_clip};
    return qz_activations_distance(job->data, pass, job->meter, out, error);
}

/* Tuning has trained the weights rounded to nearest; what GPTQ comes close to is the weights before rounding, which
 * nobody has trained. Which of the two is better depends on the block: both are tried against the tuning's target.
 * Without learned clips the trained grid has whole ranges, and GPTQ chooses the base method's. */
static bis_status round_tuned(const qz_job *job, qz_block *block, const float *act_clip, const qz_tuned *tuned,
                              qz_packed packed[QZ_LINEARS], bool *gptq, bis_error *error) {
    size_t count = 0;
    double by_gptq = 0, by_nearest = 0;
    qz_packed nearest[QZ_LINEARS] = {0};
    for (qz_linear_id l = 0; l < QZ_LINEARS; l++) count += linear_size(block, l);
    float *weights = bis_reallocarray(NULL, count, sizeof *weights);
    if (!weights) return bis_fail(error, BIS_ERR_NOMEM, "no memory for a copy of the block");
    copy_weights(block, weights, false);
    bis_status status = qz_round_block(job, block, act_clip, job->tune->clip ? tuned : NULL, packed, error);
    if (!status) status = distance(job, block, act_clip, &by_gptq, error);
    if (!status) {
        copy_weights(block, weights, true);
        status = round_linears(job, block, tuned, NULL, nearest, error);
    }
    if (!status) status = distance(job, block, act_clip, &by_nearest, error);
    *gptq = by_gptq < by_nearest;
    if (!status && !*gptq) {
        free_packed(packed);
        memcpy(packed, nearest, sizeof nearest);
        memset(nearest, 0, sizeof nearest);
    }
    free_packed(nearest);
    bis_free(weights);
    return status;
}

/* ---- All of it ---- */

static bis_status make_block(const qz_job *job, int layer, const char *path, qz_block *block, const qz_importance *seen,
                             double start, qz_block_figures *figures, bis_error *error) {
    qz_tuned tuned = {0};
    qz_packed packed[QZ_LINEARS] = {0};
    float act_clip[QZ_SITES];
    bool clips = job->spec->act_bits != KN_NOT_QUANTIZED;
    bis_status status = BIS_OK;
    qz_base_act_clip(job, act_clip);
    if (qz_job_reorders(job)) status = qz_reorder_block(block, (const double *const *)seen->sums, error);
    if (!status && qz_job_tunes(job)) {
        status = tune(job, layer, block, &tuned, error);
        if (!status) {
            if (clips) memcpy(act_clip, tuned.act_clip, sizeof act_clip);
            figures->loss_before = tuned.loss_before;
            figures->loss_after = tuned.loss_after;
            figures->best_epoch = tuned.best_epoch;
        }
    }
    if (!status && qz_job_rounds(job)) {
        bool gptq = uses_hessian(job);
        const qz_tuned *trained = tuned.best_epoch > 0 ? &tuned : NULL; /* NULL: as the base method does it */
        if (gptq && trained) status = round_tuned(job, block, act_clip, trained, packed, &gptq, error);
        else status = qz_round_block(job, block, act_clip, trained, packed, error);
        figures->gptq = gptq;
    }
    figures->seconds = bis_now_seconds() - start;
    if (!status) status = qz_block_file_write(path, layer, block, job->spec, packed, act_clip, figures, error);
    free_packed(packed);
    qz_tuned_free(&tuned);
    return status;
}

bis_status qz_carry(const qz_job *job, const qz_block *block, const float *act_clip, bis_error *error) {
    qz_spec spec = *job->spec;
    spec.weight_bits = KN_NOT_QUANTIZED; /* they are on their grid already */
    qz_pass pass = {.compute = job->compute, .block = block, .spec = &spec, .mode = QZ_QUANTIZED, .act_clip = act_clip};
    return qz_activations_pass(job->data, pass, job->data->q, job->data->q, job->meter, error);
}

static bis_status step(const qz_job *job, int layer, const char *path, bool finished, qz_block **block,
                       qz_block_figures *figures, bis_error *error) {
    double start = bis_now_seconds();
    qz_block *decoded = NULL;
    qz_importance seen = {0};
    float act_clip[QZ_SITES];
    double input_error = job->data->samples ? qz_activations_error(job->data) : 0;
    bis_status status = qz_transform_block(job->transform, layer, block, error);
    if (!status && qz_job_reorders(job)) status = qz_importance_open(&(*block)->shape, &seen, error);
    if (!status && job->data->samples) status = qz_float_passes(job, *block, finished, &seen, error);
    if (!status && !finished) status = make_block(job, layer, path, *block, &seen, start, figures, error);
    if (!status) status = qz_block_file_read(path, layer, *block, job->spec, &decoded, act_clip, figures, error);
    if (!status && job->data->samples) status = qz_carry(job, decoded, act_clip, error);
    if (!status) {
        figures->input_error = input_error;
        figures->error = job->data->samples ? qz_activations_error(job->data) : 0;
        if (!isfinite(figures->error)) {
            status = bis_fail(error, BIS_ERR_INVALID, "its output has numbers that are not finite");
        }
    }
    qz_importance_close(&seen);
    qz_block_free(decoded);
    return status;
}

bis_status qz_block_step(const qz_job *job, int layer, const char *path, bool finished, qz_block_figures *figures,
                         bis_error *error) {
    qz_block *block = NULL;
    *figures = (qz_block_figures){0};
    bis_status status = step(job, layer, path, finished, &block, figures, error);
    qz_block_free(block);
    return status ? bis_fail_within(error, "layer %d", layer) : BIS_OK;
}
