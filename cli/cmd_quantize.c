/* bisup quantize: writes a quantized model folder. */
#include <stdio.h>

#include "cli/cli.h"
#include "quantizer/quantize.h"
#include "quantizer/report.h"

static qz_options to_quantizer_options(const cfg_options *c) {
    qz_options o = {.model = c->model,
                    .out = c->out,
                    .method = c->method,
                    .weight_bits = c->bits.weight,
                    .act_bits = c->bits.activation,
                    .kv_bits = c->bits.kv,
                    .group = c->group,
                    .asymmetric = c->asymmetric,
                    .outliers = c->outliers,
                    .calibration = c->calibration,
                    .prompt = c->prompt_file,
                    .samples = c->samples,
                    .seq_len = c->seq_len,
                    .seed = c->seed,
                    .tune = qz_tune_default_options(),
                    .end_to_end = c->end_to_end,
                    .end_to_end_epochs = c->end_to_end_epochs,
                    .lr_end_to_end = c->lr_end_to_end,
                    .gptq = c->gptq,
                    .threads = c->threads,
                    .force = c->force,
                    .quiet = c->json};
    o.tune.clip = c->clip;
    o.tune.smooth = c->smooth;
    o.tune.low_rank = c->low_rank;
    o.tune.act_clip = c->act_clip;
    o.tune.error_cancelling = c->error_cancelling;
    o.tune.epochs = c->epochs;
    o.tune.batch = c->batch_samples;
    o.tune.rank = c->rank;
    o.tune.lr_clip = c->lr_clip;
    o.tune.lr_smooth = c->lr_smooth;
    o.tune.lr_low_rank = c->lr_low_rank;
    o.tune.lr_act_clip = c->lr_act_clip;
    return o;
}

static void put_table(const qz_options *o, const qz_summary *s, bis_buf *out) {
    bis_buf_printf(out, "%s: %s, W%dA%dKV%d, groups of %d\n", o->out, o->method, o->weight_bits, o->act_bits,
                   o->kv_bits, o->group);
    bis_buf_printf(out, "size           %.1f MB, %.3f bits a weight in the layers' matrices\n",
                   (double)s->model_bytes / 1e6, s->bits_per_weight);
    if (s->samples) {
        bis_buf_printf(out, "calibration    %d windows of %d tokens%s\n", s->samples, s->seq_len,
                       s->prompt_tokens ? ", each after the prompt" : "");
        bis_buf_printf(out, "error          %.3g of the last block's output, squared and relative\n", s->final_error);
    }
    if (s->end_to_end) {
        bis_buf_printf(out, "end to end     KL of held-out windows from %.4f to %.4f in %.1f s\n", s->kl_before,
                       s->kl_after, s->end_seconds);
    } else if (s->end_to_end_left_out) {
        bis_buf_printf(out, "end to end     left out: it needs %.2f GB of memory\n", (double)s->plan.end_to_end / 1e9);
    }
    bis_buf_printf(out, "time           %.1f s", s->seconds);
    if (s->samples) bis_buf_printf(out, ", %.0f calibration tokens/s", s->tokens_per_second);
    bis_buf_putc(out, '\n');
    if (s->peak_gflops > 0) {
        bis_buf_printf(out, "products       %.1f GFLOPS, %.0f %% of the %.1f that BLAS alone reaches here\n", s->gflops,
                       100 * s->gflops / s->peak_gflops, s->peak_gflops);
    }
    bis_buf_printf(out, "peak memory    %.1f MB\n", (double)cli_peak_memory() / 1e6);
}

int cli_quantize(const cfg_options *options) {
    qz_options quantizer = to_quantizer_options(options);
    qz_summary summary;
    bis_error error = {0};
    if (qz_quantize(&quantizer, &summary, &error)) return cli_fail(&error);
    bis_buf out = {0};
    if (options->json) qz_report_write(&quantizer, &summary, &out);
    else put_table(&quantizer, &summary, &out);
    qz_summary_free(&summary);
    return cli_print(&out);
}
