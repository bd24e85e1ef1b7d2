#include "quantizer/quantize.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "quantizer/kept_blocks.h"
#include "quantizer/model_export.h"
#include "quantizer/report.h"
#include "quantizer/safetensors_writer.h"
#include "runtime/system_memory.h"

/* Everything of a run; closed by close_run whatever was opened. */
typedef struct quantize_run {
    const qz_options *options;
    const qz_method *method;
    rt_model *model;
    const rt_model_config *config;
    qz_transform *transform;
    qz_compute *compute;
    qz_spec spec;
    qz_tune_options tune;
    qz_calibration calibration;
    qz_activations data;
    qz_run_folder folder;
    bool folder_open;
    qz_kept kept; /* with the end-to-end stage only */
    qz_meter meter;
    double started, operations; /* of the blocks' matrix products */
    qz_summary summary;
} quantize_run;

/* ---- Opening ---- */

static bis_status choose_outliers(quantize_run *run, bis_error *error) {
    int wanted = run->options->outliers;
    qz_shape shape = qz_transform_shape(run->transform);
    qz_spec *spec = &run->spec;
    if (run->method->base != QZ_BASE_ATOM) {
        if (!wanted) return BIS_OK;
        return bis_fail(error, BIS_ERR_INVALID, "--outliers is for atom and bisup-atom; %s keeps none",
                        run->method->name);
    }
    if (wanted % 8 || wanted > shape.hidden / 2) {
        return bis_fail(error, BIS_ERR_INVALID, "--outliers is %d: use a multiple of 8 up to %d for this model", wanted,
                        shape.hidden / 2 / 8 * 8);
    }
    bool nothing = spec->weight_bits == KN_NOT_QUANTIZED && spec->act_bits == KN_NOT_QUANTIZED;
    for (qz_site site = 0; site < QZ_SITES && !nothing; site++) {
        spec->outliers[site] = qz_outlier_columns(wanted, qz_site_width(&shape, site), shape.hidden);
    }
    return BIS_OK;
}

static bis_status open_model(quantize_run *run, bis_error *error) {
    const qz_options *o = run->options;
    run->method = qz_method_find(o->method);
    if (!run->method) return bis_fail(error, BIS_ERR_INVALID, "unknown method '%.40s'", o->method);
    if (o->weight_bits == KN_NOT_QUANTIZED && o->act_bits != KN_NOT_QUANTIZED) {
        return bis_fail(error, BIS_ERR_INVALID,
                        "--bits W16A%dKV%d: with W16 only A16 can be run; quantize the weights "
                        "too, or only the KV cache",
                        o->act_bits, o->kv_bits);
    }
    bis_status status = qz_run_folder_check(o->model, o->out, o->force, error);
    if (!status) status = rt_model_open(o->model, &run->model, error);
    if (status) return status;
    run->config = rt_model_get_config(run->model);
    if (run->config->quantization.present) {
        return bis_fail(error, BIS_ERR_INVALID, "%s is quantized already: give the original model", o->model);
    }
    status = qz_transform_open(run->model, run->method->base, o->seed, &run->transform, error);
    if (status) return status;
    run->spec = (qz_spec){.weight_bits = o->weight_bits,
                          .act_bits = o->act_bits,
                          .kv_bits = o->kv_bits,
                          .group = o->group,
                          .weight_symmetric = !o->asymmetric};
    qz_transform_set_spec(run->transform, &run->spec);
    run->tune = o->tune;
    run->tune.seed = run->tune.held_out_seed = o->seed;
    if (run->method->base == QZ_BASE_QUAROT) run->tune.smooth_alpha = 0; /* rotated channels are alike already */
    run->summary.layers = run->config->layers;
    return choose_outliers(run, error);
}

static bis_status open_calibration(quantize_run *run, bis_error *error) {
    const qz_options *o = run->options;
    if (!o->calibration && strcmp(run->method->name, "rtn") == 0) return BIS_OK;
    if (!o->calibration) return bis_fail(error, BIS_ERR_INVALID, "%s needs a calibration text", run->method->name);
    qz_calibration_options options = {.text = o->calibration,
                                      .prompt = o->prompt,
                                      .samples = o->samples,
                                      .seq_len = o->seq_len,
                                      .context = run->config->context,
                                      .vocab = run->config->vocab,
                                      .seed = o->seed};
    rt_tokenizer *tokenizer = NULL;
    bis_status status = rt_tokenizer_open(o->model, &tokenizer, error);
    if (!status) status = qz_calibration_read(&options, tokenizer, &run->calibration, error);
    rt_tokenizer_close(tokenizer);
    if (status) return status;
    run->summary.samples = run->calibration.samples;
    run->summary.seq_len = run->calibration.tokens;
    run->summary.prompt_tokens = run->calibration.prompt_tokens;
    run->summary.text_tokens = run->calibration.text_tokens;
    return BIS_OK;
}

static bool wants_end_to_end(const quantize_run *run) {
    return run->method->tune && run->options->end_to_end && run->options->end_to_end_epochs > 0 &&
           run->calibration.samples;
}

static uint64_t available_memory(const quantize_run *run) {
    return run->options->memory ? run->options->memory : rt_system_memory_available();
}

static bis_status check_memory(quantize_run *run, bis_error *error) {
    const qz_memory_plan *plan = &run->summary.plan;
    qz_plan_input input = {.shape = qz_transform_shape(run->transform),
                           .method = run->method,
                           .spec = &run->spec,
                           .gptq = run->options->gptq,
                           .samples = run->calibration.samples,
                           .tokens = run->calibration.tokens,
                           .prompt_tokens = run->calibration.prompt_tokens,
                           .tune = &run->tune,
                           .end_to_end = wants_end_to_end(run),
                           .layers = run->config->layers,
                           .vocab = run->config->vocab,
                           .threads = qz_compute_threads(run->compute)};
    uint64_t available = available_memory(run);
    run->summary.plan = qz_plan_memory(&input);
    if (!run->options->quiet) {
        bis_info("%s: %d layers, %s W%dA%dKV%d g%d, %d windows of %d tokens, %d threads", run->options->model,
                 run->config->layers, run->method->name, run->spec.weight_bits, run->spec.act_bits, run->spec.kv_bits,
                 run->spec.group, run->calibration.samples, run->calibration.tokens, input.threads);
        bis_info("memory: %.1f MB needed (activations %.1f, blocks %.1f, Hessians %.1f, tuning %.1f) of %.1f free",
                 (double)plan->total / 1e6, (double)plan->activations / 1e6, (double)plan->blocks / 1e6,
                 (double)plan->hessians / 1e6, (double)plan->tuning / 1e6, (double)available / 1e6);
    }
    return qz_plan_check(plan, available, error);
}

static bis_status open_folder(quantize_run *run, bis_error *error) {
    bis_buf identity = {0};
    bis_status status = qz_report_identity(run->options, &run->calibration, &identity, error);
    if (!status) status = qz_run_folder_open(run->options->out, run->options->force, &identity, &run->folder, error);
    run->folder_open = !status;
    bis_buf_free(&identity);
    return status;
}

static bis_status holds(const quantize_run *run, qz_run_file kind, bool *out, bis_error *error) {
    char path[PATH_MAX];
    bis_status status = qz_run_folder_file(&run->folder, kind, 0, path, error);
    if (!status) *out = access(path, F_OK) == 0;
    return status;
}

/* A run that was begun with the stage, or without it, goes on so: its result must not depend on what was free when. */
static bis_status choose_end_to_end(quantize_run *run, bis_error *error) {
    qz_summary *s = &run->summary;
    bool tuned = false, streamed = false;
    double needed = (double)s->plan.end_to_end / 1e9, free_now = (double)available_memory(run) / 1e9;
    if (!wants_end_to_end(run)) return BIS_OK;
    bis_status status = holds(run, QZ_FILE_TUNED, &tuned, error);
    if (!status) status = holds(run, QZ_FILE_BLOCK, &streamed, error);
    if (status) return status;
    bool fits = needed <= free_now;
    if (tuned && !fits) {
        run->folder_open = false;
        qz_run_folder_leave(&run->folder);
        return bis_fail(error, BIS_ERR_NOMEM,
                        "this run was begun with the end-to-end stage, which needs %.2f GB of memory, but %.2f are "
                        "free: free some and repeat the command, or begin anew with --no-end-to-end --force",
                        needed, free_now);
    }
    s->end_to_end = tuned || (fits && !streamed);
    s->end_to_end_left_out = !s->end_to_end;
    if (s->end_to_end) s->plan.total = s->plan.end_to_end;
    else if (fits) bis_warn("the end-to-end stage is left out, as it was when this run began");
    else bis_warn("the end-to-end stage is left out: it needs %.2f GB of memory, and %.2f are free", needed, free_now);
    return BIS_OK;
}

static void close_run(quantize_run *run) {
    if (run->folder_open) qz_run_folder_discard(&run->folder);
    qz_kept_close(&run->kept);
    qz_activations_close(&run->data);
    qz_calibration_free(&run->calibration);
    qz_compute_close(run->compute);
    qz_transform_close(run->transform);
    rt_model_close(run->model);
}

/* ---- Blocks ---- */

/* Finished blocks come first, without a gap, because they are made in order. */
static bis_status count_files(const quantize_run *run, qz_run_file kind, int *count, bis_error *error) {
    char path[PATH_MAX];
    bis_status status = BIS_OK;
    for (int layer = 0; layer < run->config->layers && !status; layer++) {
        status = qz_run_folder_file(&run->folder, kind, layer, path, error);
        if (!status && access(path, F_OK) != 0) break;
        *count = layer + 1;
    }
    return status;
}

static bis_status count_finished(quantize_run *run, bis_error *error) {
    bis_status status =
        count_files(run, run->summary.end_to_end ? QZ_FILE_TUNED : QZ_FILE_BLOCK, &run->summary.resumed, error);
    if (!status && run->summary.resumed) {
        bis_info("going on with %s: %d of %d blocks are %s", run->folder.partial, run->summary.resumed,
                 run->config->layers, run->summary.end_to_end ? "tuned" : "finished");
    }
    return status;
}

/* A line for each block where there is no bar to look at. */
static void tell_block(const quantize_run *run, int layer) {
    const qz_block_figures *b = &run->summary.blocks[layer];
    if (run->options->quiet || run->meter.bar.terminal) return;
    char text[192];
    int used = snprintf(text, sizeof text, "block %d of %d", layer + 1, run->config->layers);
    if (run->summary.samples) {
        used += snprintf(text + used, sizeof text - (size_t)used, ": error %.3g, was %.3g", b->error, b->input_error);
    }
    if (run->method->tune) {
        snprintf(text + used, sizeof text - (size_t)used, "; tuned from %.3g to %.3g in epoch %.0f", b->loss_before,
                 b->loss_after, b->best_epoch);
    }
    double elapsed = bis_now_seconds() - run->meter.bar.started, done = run->meter.done;
    double left = done > 0 ? elapsed * ((double)run->meter.bar.total - done) / done : 0;
    fprintf(stderr, "%s (%.1f s, %.0f s left)\n", text, b->seconds, left > 0 ? left : 0);
}

static void start_meter(quantize_run *run, double total) {
    bool quiet = run->options->quiet || !isatty(STDERR_FILENO);
    bis_progress_start(&run->meter.bar, "quantize", (uint64_t)total, quiet);
}

/* Operations a second of matrix products alone, in pieces as the quantizer's. Measured before and after the work, and
 * the faster counts, because other programs only ever slow it down. */
static void measure_peak(quantize_run *run) {
    enum { SIDE = 1024, ROWS_A_THREAD = 256 };
    static const double LEAST_SECONDS = 0.1;
    int rows = ROWS_A_THREAD * qz_compute_threads(run->compute);
    float *memory = bis_calloc((size_t)SIDE * SIDE + 2 * (size_t)rows * SIDE, sizeof *memory);
    if (!memory) return; /* only a figure is missing then */
    float *a = memory + (size_t)SIDE * SIDE, *c = a + (size_t)rows * SIDE;
    qz_matrix left = {a, SIDE, false}, right = {memory, SIDE, true};
    double *best = &run->summary.peak_gflops, begun = bis_now_seconds();
    do {
        double start = bis_now_seconds();
        qz_gemm(run->compute, rows, SIDE, SIDE, 1, left, right, 0, c, SIDE);
        double speed = 2e-9 * rows * SIDE * SIDE / (bis_now_seconds() - start);
        if (speed > *best) *best = speed;
    } while (bis_now_seconds() - begun < LEAST_SECONDS);
    bis_free(memory);
}

/* Each block is finished before the next begins. */
static bis_status stream_blocks(quantize_run *run, const qz_job *job, bis_error *error) {
    char path[PATH_MAX];
    double total = 0;
    bis_status status = BIS_OK;
    for (int layer = 0; layer < run->config->layers; layer++) {
        total += qz_block_step_passes(job, layer < run->summary.resumed);
    }
    start_meter(run, total);
    for (int layer = 0; layer < run->config->layers && !status; layer++) {
        status = qz_run_folder_file(&run->folder, QZ_FILE_BLOCK, layer, path, error);
        if (!status) {
            bool finished = layer < run->summary.resumed;
            status = qz_block_step(job, layer, path, finished, &run->summary.blocks[layer], error);
        }
        if (!status) tell_block(run, layer);
    }
    return status;
}

/* ---- Blocks, with the end-to-end stage ---- */

static bis_status tune_blocks(quantize_run *run, const qz_job *job, bis_error *error) {
    char path[PATH_MAX];
    bis_status status = BIS_OK;
    for (int layer = 0; layer < run->config->layers && !status; layer++) {
        status = qz_run_folder_file(&run->folder, QZ_FILE_TUNED, layer, path, error);
        if (!status) {
            bool finished = layer < run->summary.resumed;
            status = qz_kept_tune(job, &run->kept, layer, path, finished, &run->summary.blocks[layer], error);
        }
        if (!status) tell_block(run, layer);
    }
    return status;
}

static qz_tune_options end_to_end_options(const quantize_run *run) {
    qz_tune_options o = run->tune;
    double share = run->options->lr_end_to_end;
    o.epochs = run->options->end_to_end_epochs;
    o.lr_clip *= share;
    o.lr_smooth *= share;
    o.lr_low_rank *= share;
    o.lr_act_clip *= share;
    return o;
}

static bis_status train_blocks(quantize_run *run, const qz_job *job, const char *path, bool finished,
                               bis_error *error) {
    qz_tune_options options = end_to_end_options(run);
    bis_status status = qz_kept_train(job, &run->kept, &options, path, finished, error);
    if (status) return status;
    qz_summary *s = &run->summary;
    s->kl_before = run->kept.result.before;
    s->kl_after = run->kept.result.after;
    s->end_epoch = run->kept.result.best_epoch;
    s->end_seconds = run->kept.seconds;
    if (!run->options->quiet && !run->meter.bar.terminal) {
        fprintf(stderr, "end to end: held-out KL from %.4f to %.4f in epoch %d (%.1f s)\n", s->kl_before, s->kl_after,
                run->kept.result.best_epoch, s->end_seconds);
    }
    return BIS_OK;
}

static bis_status write_blocks(quantize_run *run, const qz_job *job, int written, bis_error *error) {
    char path[PATH_MAX];
    bis_status status = BIS_OK;
    for (int layer = 0; layer < run->config->layers && !status; layer++) {
        status = qz_run_folder_file(&run->folder, QZ_FILE_BLOCK, layer, path, error);
        if (!status) {
            bool finished = layer < written;
            status = qz_kept_write(job, &run->kept, layer, path, finished, &run->summary.blocks[layer], error);
        }
    }
    return status;
}

static bis_status keep_blocks(quantize_run *run, const qz_job *job, bis_error *error) {
    char path[PATH_MAX];
    int layers = run->config->layers, written = 0;
    bis_status status = count_files(run, QZ_FILE_BLOCK, &written, error);
    if (!status) status = qz_run_folder_file(&run->folder, QZ_FILE_END_TO_END, 0, path, error);
    if (status) return status;
    bool trained = access(path, F_OK) == 0;
    start_meter(run,
                qz_kept_passes(job, layers, run->options->end_to_end_epochs, run->summary.resumed, trained, written));
    status = qz_kept_open(job, layers, run->config->vocab, &run->kept, error);
    if (!status) status = tune_blocks(run, job, error);
    if (status) return status;
    qz_activations_restart(&run->data, &run->calibration, run->transform);
    status = train_blocks(run, job, path, trained, error);
    return status ? status : write_blocks(run, job, written, error);
}

static bis_status quantize_blocks(quantize_run *run, bis_error *error) {
    qz_job job = {.compute = run->compute,
                  .transform = run->transform,
                  .method = run->method,
                  .spec = &run->spec,
                  .tune = &run->tune,
                  .gptq = run->options->gptq,
                  .data = &run->data,
                  .meter = &run->meter};
    bis_status status = count_finished(run, error);
    if (status) return status;
    if (run->data.samples) measure_peak(run);
    double before = qz_compute_operations(run->compute);
    status = run->summary.end_to_end ? keep_blocks(run, &job, error) : stream_blocks(run, &job, error);
    run->operations = qz_compute_operations(run->compute) - before;
    if (!status && run->data.samples) run->summary.final_error = qz_activations_error(&run->data);
    if (!status && run->data.samples) measure_peak(run);
    if (!status) bis_progress_finish(&run->meter.bar);
    else if (run->meter.bar.terminal && !run->options->quiet) fputs("\r\033[K", stderr);
    return status;
}

/* ---- Result ---- */

static void sum_up(quantize_run *run, double seconds) {
    qz_summary *s = &run->summary;
    double bytes = 0, weights = 0;
    for (int layer = 0; layer < s->layers; layer++) {
        bytes += s->blocks[layer].linear_bytes;
        weights += s->blocks[layer].linear_weights;
    }
    s->bits_per_weight = weights > 0 ? 8 * bytes / weights : 0;
    s->seconds = seconds;
    s->tokens_per_second = (double)s->samples * s->seq_len / seconds;
    s->gflops = run->operations / seconds / 1e9;
}

static bis_status write_report(quantize_run *run, bis_error *error) {
    char path[PATH_MAX];
    bis_buf text = {0};
    bis_status status = bis_join_path(run->folder.result, "bisup_report.json", path, sizeof path, error);
    if (status) return status;
    qz_report_write(run->options, &run->summary, &text);
    if (text.failed) status = bis_fail(error, BIS_ERR_NOMEM, "no memory for the report");
    else status = qz_file_write(path, text.data, text.length, error);
    bis_buf_free(&text);
    return status;
}

static bis_status write_result(quantize_run *run, bis_error *error) {
    qz_export e = {.model = run->options->model,
                   .folder = &run->folder,
                   .transform = run->transform,
                   .method = run->method,
                   .spec = &run->spec,
                   .layers = run->config->layers,
                   .vocab = run->config->vocab};
    bis_status status = qz_export_weights(&e, &run->summary.model_bytes, error);
    if (!status) status = qz_export_side_files(&e, error);
    if (!status) sum_up(run, bis_now_seconds() - run->started);
    if (!status) status = write_report(run, error);
    if (!status) status = qz_run_folder_finish(&run->folder, error);
    if (!status) run->folder_open = false;
    return status;
}

static bis_status do_run(quantize_run *run, bis_error *error) {
    bis_status status = open_model(run, error);
    if (!status) status = open_calibration(run, error);
    if (!status) status = qz_compute_open(run->options->threads, &run->compute, error);
    if (!status) status = check_memory(run, error);
    if (!status) {
        run->summary.blocks = bis_calloc((size_t)run->config->layers, sizeof *run->summary.blocks);
        if (!run->summary.blocks) status = bis_fail(error, BIS_ERR_NOMEM, "no memory for the report");
    }
    if (!status) status = open_folder(run, error);
    if (!status) status = choose_end_to_end(run, error);
    if (!status && run->calibration.samples) {
        bool with_target = run->method->tune;
        status =
            qz_activations_open(&run->calibration, run->transform, &run->config->rope, with_target, &run->data, error);
    }
    if (!status) status = quantize_blocks(run, error);
    if (!status) status = write_result(run, error);
    return status;
}

bis_status qz_quantize(const qz_options *options, qz_summary *out, bis_error *error) {
    quantize_run run = {.options = options, .started = bis_now_seconds()};
    bis_status status = do_run(&run, error);
    close_run(&run);
    if (status) qz_summary_free(&run.summary);
    else *out = run.summary;
    return status;
}

void qz_summary_free(qz_summary *summary) {
    bis_free(summary->blocks);
    *summary = (qz_summary){0};
}
