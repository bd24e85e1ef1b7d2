#include "quantizer/kept_blocks.h"

#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "common/clock.h"
#include "kernels/tensor.h"
#include "quantizer/block_parts.h"
#include "quantizer/learned.h"
#include "quantizer/tuned_file.h"

/* Of the stage's step: forward, forward again, backward, in forward passes. */
static const double STAGE_PASSES = 4;

/* ---- Opening ---- */

static bis_status no_memory(bis_error *error) {
    return bis_fail(error, BIS_ERR_NOMEM, "no memory to keep all blocks: use --no-end-to-end");
}

static bis_status open_head(const qz_job *job, int vocab, qz_kept *kept, bis_error *error) {
    qz_shape shape = qz_transform_shape(job->transform);
    size_t hidden = (size_t)shape.hidden, count = (size_t)vocab * hidden;
    kept->norm = bis_alloc_aligned(hidden * sizeof *kept->norm);
    kept->head = bis_alloc_aligned(count * sizeof *kept->head);
    if (!kept->norm || !kept->head) return no_memory(error);
    qz_transform_final_norm(job->transform, kept->norm);
    qz_transform_head(job->transform, 0, vocab, kept->head);
    for (size_t i = 0; i < count; i++) kept->head[i] = kn_f16_to_f32(kn_f32_to_f16(kept->head[i]));
    kept->input.head = (qz_head){shape.hidden, vocab, shape.norm_eps, kept->norm, kept->head};
    return BIS_OK;
}

bis_status qz_kept_open(const qz_job *job, int layers, int vocab, qz_kept *out, bis_error *error) {
    qz_kept kept = {.layers = layers};
    kept.blocks = bis_calloc((size_t)layers, sizeof *kept.blocks);
    kept.prompt_k = bis_calloc((size_t)layers, sizeof *kept.prompt_k);
    kept.prompt_v = bis_calloc((size_t)layers, sizeof *kept.prompt_v);
    bis_status status = kept.blocks && kept.prompt_k && kept.prompt_v ? BIS_OK : no_memory(error);
    if (!status) status = open_head(job, vocab, &kept, error);
    qz_base_act_clip(job, kept.act_clip);
    if (status) qz_kept_close(&kept);
    else *out = kept;
    return status;
}

void qz_kept_close(qz_kept *kept) {
    for (int i = 0; i < kept->layers; i++) {
        if (kept->blocks) qz_block_free(kept->blocks[i].block);
        if (kept->blocks) bis_free(kept->blocks[i].parameter);
        if (kept->prompt_k) bis_free(kept->prompt_k[i]);
        if (kept->prompt_v) bis_free(kept->prompt_v[i]);
    }
    void *const owned[] = {kept->blocks, kept->norm, kept->head, kept->prompt_k, kept->prompt_v};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) bis_free(owned[i]);
    *kept = (qz_kept){0};
}

double qz_kept_passes(const qz_job *job, int layers, int epochs, int tuned, bool trained, int written) {
    double samples = job->data->samples, passes = 3 * samples * layers; /* the original's, carried on twice */
    passes += (layers - tuned) * (samples + qz_tuning_passes(job));
    if (!trained) passes += STAGE_PASSES * samples * layers * epochs;
    return passes + (layers - written) * qz_rounding_passes(job);
}

/* ---- Tuning ---- */

static void set_input(const qz_job *job, qz_kept *kept) {
    const qz_activations *data = job->data;
    qz_end_input *in = &kept->input;
    in->compute = job->compute;
    in->spec = job->spec;
    in->act_clip = kept->act_clip;
    in->rope_table = data->rope;
    in->blocks = kept->blocks;
    in->layers = kept->layers;
    in->x = data->q;
    in->final = data->fp;
    in->samples = data->samples;
    in->tokens = data->tokens;
}

static bis_status keep_prompt(const qz_job *job, qz_kept *kept, int layer, bis_error *error) {
    const qz_activations *data = job->data;
    qz_shape shape = qz_transform_shape(job->transform);
    size_t count = (size_t)data->prompt_tokens * (size_t)shape.kv_heads * (size_t)shape.head_dim;
    if (!count) return BIS_OK;
    float *k = kept->prompt_k[layer] = bis_alloc_aligned(count * sizeof *k);
    float *v = kept->prompt_v[layer] = bis_alloc_aligned(count * sizeof *v);
    if (!k || !v) return no_memory(error);
    memcpy(k, data->prompt_k, count * sizeof *k);
    memcpy(v, data->prompt_v, count * sizeof *v);
    kept->blocks[layer].prompt = (qz_prompt){data->prompt_tokens, k, v};
    return BIS_OK;
}

/* What tuning learns, and the channels' importance that the columns' order comes from, from the file or anew. */
static bis_status learn(const qz_job *job, qz_kept *kept, int layer, const char *path, bool finished,
                        qz_importance *seen, qz_block_figures *figures, bis_error *error) {
    const qz_activations *data = job->data;
    qz_block *block = kept->blocks[layer].block;
    double *const *sums = qz_job_reorders(job) ? seen->sums : NULL;
    double start = bis_now_seconds();
    qz_tuning tuning;
    qz_tuning_start(job, layer, block, &tuning);
    qz_real **parameter = &kept->blocks[layer].parameter;
    bis_status status = BIS_OK;
    if (finished) {
        kept->count = qz_learned_count(&tuning.pass, job->tune);
        *parameter = bis_alloc_aligned((kept->count + 1) * sizeof **parameter);
        if (!*parameter) return no_memory(error);
        status = qz_tuned_file_read(path, &block->shape, sums, *parameter, kept->count, figures, error);
    }
    if (!status && sums) status = qz_reorder_block(block, (const double *const *)sums, error);
    if (status || finished) return status;
    qz_tuned tuned = {0};
    status = qz_tune_parameters(&tuning.pass, &tuning.options, data->q, data->target, data->samples, data->tokens,
                                parameter, &kept->count, &tuned, error);
    if (status) return status;
    qz_tuning_finish(&tuning);
    figures->loss_before = tuned.loss_before;
    figures->loss_after = tuned.loss_after;
    figures->best_epoch = tuned.best_epoch;
    figures->seconds = bis_now_seconds() - start;
    return qz_tuned_file_write(path, &block->shape, sums, *parameter, kept->count, figures, error);
}

static void count_sample(void *user) { qz_meter_add(user, 1); }

static bis_status finite_error(const qz_job *job, double *out, bis_error *error) {
    *out = qz_activations_error(job->data);
    return isfinite(*out) ? BIS_OK : bis_fail(error, BIS_ERR_INVALID, "its output has numbers that are not finite");
}

static bis_status tune_layer(const qz_job *job, qz_kept *kept, int layer, const char *path, bool finished,
                             qz_importance *seen, qz_block_figures *figures, bis_error *error) {
    qz_activations *data = job->data;
    double input_error = qz_activations_error(data);
    qz_block **block = &kept->blocks[layer].block;
    bis_status status = qz_transform_block(job->transform, layer, block, error);
    if (!status && qz_job_reorders(job)) status = qz_importance_open(&(*block)->shape, seen, error);
    if (!status) status = qz_float_passes(job, *block, finished, seen, error);
    if (!status) status = keep_prompt(job, kept, layer, error);
    if (!status) status = learn(job, kept, layer, path, finished, seen, figures, error);
    set_input(job, kept);
    if (!status) {
        status = qz_end_simulate(&kept->input, job->tune, layer, data->q, data->samples, data->q, count_sample,
                                 job->meter, error);
    }
    figures->input_error = input_error;
    return status ? status : finite_error(job, &figures->error, error);
}

bis_status qz_kept_tune(const qz_job *job, qz_kept *kept, int layer, const char *path, bool finished,
                        qz_block_figures *figures, bis_error *error) {
    qz_importance seen = {0};
    *figures = (qz_block_figures){0};
    bis_status status = tune_layer(job, kept, layer, path, finished, &seen, figures, error);
    qz_importance_close(&seen);
    return status ? bis_fail_within(error, "layer %d", layer) : BIS_OK;
}

/* ---- The stage ---- */

bis_status qz_kept_train(const qz_job *job, qz_kept *kept, const qz_tune_options *options, const char *path,
                         bool finished, bis_error *error) {
    set_input(job, kept);
    if (finished)
        return qz_end_file_read(path, kept->blocks, kept->layers, kept->count, &kept->result, &kept->seconds, error);
    double start = bis_now_seconds();
    qz_tuning tuning; /* for its meter */
    qz_tuning_start(job, kept->layers, kept->blocks[0].block, &tuning);
    uint64_t seed = tuning.options.seed;
    void (*on_step)(void *, int, int) = tuning.options.on_step;
    tuning.options = *options;
    tuning.options.seed = seed;
    tuning.options.on_step = on_step;
    tuning.options.on_step_user = &tuning;
    tuning.passes = STAGE_PASSES * job->data->samples * kept->layers * options->epochs;
    bis_status status = qz_end_to_end(&kept->input, &tuning.options, &kept->result, error);
    if (status) return status;
    qz_tuning_finish(&tuning);
    kept->seconds = bis_now_seconds() - start;
    return qz_end_file_write(path, kept->blocks, kept->layers, kept->count, &kept->result, kept->seconds, error);
}

/* ---- Rounding ---- */

/* The prompt's keys and values of a layer become the activations' current ones again. */
static void recall_prompt(const qz_job *job, const qz_kept *kept, int layer) {
    const qz_end_block *b = &kept->blocks[layer];
    size_t bytes = (size_t)b->prompt.tokens * (size_t)qz_linear_rows(&b->block->shape, QZ_K) * sizeof(float);
    if (!bytes) return;
    memcpy(job->data->prompt_k, b->prompt.k, bytes);
    memcpy(job->data->prompt_v, b->prompt.v, bytes);
}

static bis_status round_and_write(const qz_job *job, qz_kept *kept, int layer, const char *path,
                                  qz_block_figures *figures, bis_error *error) {
    double start = bis_now_seconds();
    qz_block *block = kept->blocks[layer].block;
    qz_tuned tuned = {0};
    qz_packed packed[QZ_LINEARS] = {0};
    bis_status status = qz_end_fold(&kept->input, job->tune, layer, &tuned, error);
    if (status) return status;
    bool clips = job->spec->act_bits != KN_NOT_QUANTIZED;
    const float *act_clip = clips ? tuned.act_clip : kept->act_clip;
    if (qz_job_rounds(job)) { /* to nearest: the stage was trained so, and GPTQ's other choices were never tried */
        status = qz_round_nearest(job, block, &tuned, packed, error);
        qz_meter_add(job->meter, qz_rounding_passes(job));
    }
    figures->seconds += bis_now_seconds() - start;
    if (!status) status = qz_block_file_write(path, layer, block, job->spec, packed, act_clip, figures, error);
    for (int l = 0; l < QZ_LINEARS; l++) qz_packed_free(&packed[l]);
    qz_tuned_free(&tuned);
    return status;
}

bis_status qz_kept_write(const qz_job *job, qz_kept *kept, int layer, const char *path, bool finished,
                         qz_block_figures *figures, bis_error *error) {
    qz_block *decoded = NULL;
    float act_clip[QZ_SITES];
    recall_prompt(job, kept, layer);
    bis_status status = finished ? BIS_OK : round_and_write(job, kept, layer, path, figures, error);
    if (!status) {
        status =
            qz_block_file_read(path, layer, kept->blocks[layer].block, job->spec, &decoded, act_clip, figures, error);
    }
    if (!status) status = qz_carry(job, decoded, act_clip, error);
    qz_block_free(decoded);
    return status ? bis_fail_within(error, "layer %d", layer) : BIS_OK;
}
