#include "quantizer/report.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/version.h"

enum { CONFIG_MAX = 1 << 24 };

static const char *truth(bool value) { return value ? "true" : "false"; }

static void put_text(bis_buf *out, const char *key, const char *text) {
    bis_buf_printf(out, "\"%s\":", key);
    if (text) bis_buf_json_string(out, text, strlen(text));
    else bis_buf_puts(out, "null");
}

/* The options that decide about the result, without braces. */
static void put_options(const qz_options *o, bis_buf *out) {
    const qz_tune_options *t = &o->tune;
    bis_buf_printf(out, "\"method\":\"%s\",\"bits\":\"W%dA%dKV%d\",\"group\":%d,\"asymmetric\":%s,\"outliers\":%d",
                   o->method, o->weight_bits, o->act_bits, o->kv_bits, o->group, truth(o->asymmetric), o->outliers);
    bis_buf_printf(out, ",\"samples\":%d,\"seq_len\":%d,\"seed\":%llu,\"gptq\":%s", o->samples, o->seq_len,
                   (unsigned long long)o->seed, truth(o->gptq));
    bis_buf_printf(out, ",\"clip\":%s,\"smooth\":%s,\"low_rank\":%s,\"act_clip\":%s,\"error_cancelling\":%s",
                   truth(t->clip), truth(t->smooth), truth(t->low_rank), truth(t->act_clip),
                   truth(t->error_cancelling));
    bis_buf_printf(out, ",\"epochs\":%d,\"batch\":%d,\"rank\":%d,\"lr_clip\":%.17g,\"lr_smooth\":%.17g", t->epochs,
                   t->batch, t->rank, t->lr_clip, t->lr_smooth);
    bis_buf_printf(out, ",\"lr_low_rank\":%.17g,\"lr_act_clip\":%.17g", t->lr_low_rank, t->lr_act_clip);
    bis_buf_printf(out, ",\"gradient_clip\":%.17g,\"smooth_penalty\":%.17g,\"smooth_alpha\":%.17g,\"held_out\":%.17g",
                   t->gradient_clip, t->smooth_penalty, t->smooth_alpha, t->held_out);
    bis_buf_printf(out, ",\"end_to_end\":%s,\"end_to_end_epochs\":%d,\"lr_end_to_end\":%.17g", truth(o->end_to_end),
                   o->end_to_end_epochs, o->lr_end_to_end);
}

/* ---- Identity ---- */

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static bool is_weight_file(const char *name) {
    const char *dot = strrchr(name, '.');
    return dot && !strcmp(dot, ".safetensors");
}

static void free_names(char **names, size_t count) {
    for (size_t i = 0; i < count; i++) bis_free(names[i]);
    bis_free(names);
}

static bis_status list_weight_files(const char *model, char ***out, size_t *count, bis_error *error) {
    DIR *stream = opendir(model);
    if (!stream) return bis_fail(error, BIS_ERR_IO, "cannot read the folder %s: %s", model, strerror(errno));
    char **names = NULL;
    size_t used = 0;
    bis_status status = BIS_OK;
    for (const struct dirent *entry; !status && (entry = readdir(stream));) {
        if (!is_weight_file(entry->d_name)) continue;
        char **grown = bis_reallocarray(names, used + 1, sizeof *names);
        if (grown) names = grown;
        char *name = grown ? bis_strdup(entry->d_name) : NULL;
        if (name) names[used++] = name;
        else status = bis_fail(error, BIS_ERR_NOMEM, "no memory to list the files of %s", model);
    }
    closedir(stream);
    if (status) {
        free_names(names, used);
        return status;
    }
    if (used) qsort(names, used, sizeof *names, by_name);
    *out = names;
    *count = used;
    return BIS_OK;
}

/* Weight files by size and time of change, because reading them all would take as long as quantizing some. */
static bis_status put_weight_files(const char *model, bis_buf *out, bis_error *error) {
    char **names = NULL, path[PATH_MAX];
    size_t count = 0;
    bis_status status = list_weight_files(model, &names, &count, error);
    if (status) return status;
    bis_buf_puts(out, ",\"weights\":[");
    for (size_t i = 0; i < count; i++) {
        struct stat info;
        if (bis_join_path(model, names[i], path, sizeof path, NULL) || stat(path, &info)) continue;
        bis_buf_puts(out, i ? ",[" : "[");
        bis_buf_json_string(out, names[i], strlen(names[i]));
        bis_buf_printf(out, ",%lld,%lld,%ld]", (long long)info.st_size, (long long)info.st_mtim.tv_sec,
                       info.st_mtim.tv_nsec);
    }
    bis_buf_putc(out, ']');
    free_names(names, count);
    return BIS_OK;
}

bis_status qz_report_identity(const qz_options *options, const qz_calibration *calibration, bis_buf *out,
                              bis_error *error) {
    char path[PATH_MAX];
    bis_buf config = {0};
    bis_status status = bis_join_path(options->model, "config.json", path, sizeof path, error);
    if (!status) status = bis_read_file(path, CONFIG_MAX, &config, error);
    if (status) return status;
    bis_buf_printf(out, "{\"bisup\":\"%s\",", BISUP_VERSION);
    put_options(options, out);
    bis_buf_printf(out, ",\"calibration\":\"%016llx\",\"prompt\":\"%016llx\",\"config\":\"%016llx\"",
                   (unsigned long long)calibration->text_hash, (unsigned long long)calibration->prompt_hash,
                   (unsigned long long)qz_hash(QZ_HASH_START, bis_buf_cstr(&config), config.length));
    bis_buf_free(&config);
    status = put_weight_files(options->model, out, error);
    bis_buf_puts(out, "}\n");
    if (!status && out->failed) status = bis_fail(error, BIS_ERR_NOMEM, "no memory to describe the run");
    return status;
}

/* ---- Report ---- */

static void put_block(const qz_block_figures *b, bool tuned, bool carried, bis_buf *out) {
    bis_buf_putc(out, '{');
    if (carried) bis_buf_printf(out, "\"input_error\":%.9g,\"error\":%.9g,", b->input_error, b->error);
    if (tuned) {
        bis_buf_printf(out, "\"loss_before\":%.9g,\"loss_after\":%.9g,\"best_epoch\":%.0f,", b->loss_before,
                       b->loss_after, b->best_epoch);
    }
    bis_buf_printf(out, "\"rounding\":\"%s\",\"bits_per_weight\":%.6f,\"seconds\":%.2f}",
                   b->gptq > 0 ? "gptq" : "nearest",
                   b->linear_weights > 0 ? 8 * b->linear_bytes / b->linear_weights : 0, b->seconds);
}

/* Where it was wanted: figures, or why there are none. */
static void put_end_to_end(const qz_summary *s, bis_buf *out) {
    if (s->end_to_end) {
        bis_buf_printf(out, ",\"end_to_end\":{\"kl_before\":%.9g,\"kl_after\":%.9g,\"best_epoch\":%.0f,", s->kl_before,
                       s->kl_after, s->end_epoch);
        bis_buf_printf(out, "\"seconds\":%.2f}", s->end_seconds);
    } else if (s->end_to_end_left_out) {
        bis_buf_printf(out, ",\"end_to_end\":{\"left_out\":\"not enough memory\",\"needed_bytes\":%llu}",
                       (unsigned long long)s->plan.end_to_end);
    }
    if (s->samples) bis_buf_printf(out, ",\"error\":%.9g", s->final_error);
}

void qz_report_write(const qz_options *options, const qz_summary *s, bis_buf *out) {
    const qz_method *method = qz_method_find(options->method);
    bis_buf_printf(out, "{\"bisup\":\"%s\",", BISUP_VERSION);
    put_text(out, "model", options->model);
    bis_buf_putc(out, ',');
    put_text(out, "out", options->out);
    bis_buf_puts(out, ",\"options\":{");
    put_options(options, out);
    bis_buf_puts(out, "},\"calibration\":{");
    put_text(out, "file", options->calibration);
    bis_buf_printf(out, ",\"tokens_in_file\":%llu,\"samples\":%d,\"seq_len\":%d,", (unsigned long long)s->text_tokens,
                   s->samples, s->seq_len);
    put_text(out, "prompt", options->prompt);
    bis_buf_printf(out, ",\"prompt_tokens\":%d},\"layers\":[", s->prompt_tokens);
    for (int layer = 0; layer < s->layers; layer++) {
        if (layer) bis_buf_putc(out, ',');
        put_block(&s->blocks[layer], method && method->tune, s->samples > 0, out);
    }
    bis_buf_putc(out, ']');
    put_end_to_end(s, out);
    bis_buf_printf(out, ",\"bits_per_weight\":%.6f,\"model_bytes\":%llu,\"planned_memory_bytes\":%llu",
                   s->bits_per_weight, (unsigned long long)s->model_bytes, (unsigned long long)s->plan.total);
    bis_buf_printf(out, ",\"resumed_blocks\":%d,\"seconds\":%.2f,\"tokens_per_second\":%.2f,\"gflops\":%.3f",
                   s->resumed, s->seconds, s->tokens_per_second, s->gflops);
    bis_buf_printf(out, ",\"blas_peak_gflops\":%.3f}\n", s->peak_gflops);
}
