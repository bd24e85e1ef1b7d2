#include "runtime/engine.h"

#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/clock.h"
#include "kernels/backend.h"
#include "runtime/forward.h"
#include "runtime/kv_pages.h"
#include "runtime/model/model.h"
#include "runtime/request.h"
#include "runtime/scheduler.h"
#include "runtime/system_memory.h"

struct rt_engine {
    rt_model *model;
    rt_tokenizer *tokenizer;
    rt_chat *chat;
    kn_backend *backend;
    rt_kv_pages *pages;
    rt_forward *forward;
    rt_scheduler *scheduler;
    rt_engine_info info;
};

enum { BATCH_MAX = 1024, CHUNK_MAX = 8192, QUEUE_MAX = 1000000 };

rt_engine_options rt_engine_default_options(void) {
    return (rt_engine_options){
        .cpu_isa = "auto", .max_batch = 16, .prefill_chunk = 256, .max_queue = 256, .kv_bits = 16};
}

static bis_status check_range(const char *name, int value, int low, int high, bis_error *error) {
    if (value >= low && value <= high) return BIS_OK;
    return bis_fail(error, BIS_ERR_INVALID, "%s is %d: use %d to %d", name, value, low, high);
}

static bis_status check_options(const rt_engine_options *o, bis_error *error) {
    if (!o->model || !*o->model) return bis_fail(error, BIS_ERR_INVALID, "no model folder is given");
    bis_status status = check_range("max-batch", o->max_batch, 1, BATCH_MAX, error);
    if (!status) status = check_range("prefill-chunk", o->prefill_chunk, 1, CHUNK_MAX, error);
    if (!status) status = check_range("max-queue", o->max_queue, 1, QUEUE_MAX, error);
    return status;
}

/* The name clients use: the given one, or the last part of the folder's path. */
static void set_name(rt_engine_info *info, const rt_engine_options *options) {
    const char *name = options->model_name && *options->model_name ? options->model_name : options->model;
    size_t length = strlen(name);
    while (length > 1 && name[length - 1] == '/') length--;
    if (name == options->model) {
        size_t start = length;
        while (start > 0 && name[start - 1] != '/') start--;
        name += start;
        length -= start;
    }
    if (length >= sizeof info->model_name) length = sizeof info->model_name - 1;
    memcpy(info->model_name, name, length);
    info->model_name[length] = '\0';
}

typedef struct phase_clock {
    const rt_engine_options *options;
    double started;
} phase_clock;

static void phase_done(phase_clock *phases, const char *phase, const char *detail) {
    double now = bis_now_seconds();
    if (phases->options->on_phase) {
        phases->options->on_phase(phases->options->phase_user, phase, detail, now - phases->started);
    }
    phases->started = bis_now_seconds();
}

static bis_status load_files(rt_engine *self, const rt_engine_options *options, phase_clock *phases, bis_error *error) {
    char detail[256];
    bis_status status = rt_model_open(options->model, &self->model, error);
    if (status) return status;
    const rt_model_config *config = rt_model_get_config(self->model);
    rt_engine_info *info = &self->info;
    info->architecture = config->architecture;
    info->weight_type = rt_model_type_name(self->model);
    info->parameters = rt_model_parameters(self->model);
    info->weight_bytes = rt_model_bytes(self->model);
    info->vocab_size = config->vocab;
    info->created = rt_model_created(self->model);
    snprintf(detail, sizeof detail, "%s, %.1f M parameters, %.1f MB of %s", config->architecture,
             (double)info->parameters / 1e6, (double)info->weight_bytes / 1e6, info->weight_type);
    phase_done(phases, "weights", detail);

    status = rt_tokenizer_open(options->model, &self->tokenizer, error);
    if (status) return status;
    if (rt_tokenizer_vocab_size(self->tokenizer) > config->vocab) {
        return bis_fail(error, BIS_ERR_FORMAT, "%s: the tokenizer has %d ids, but config.json says vocab_size %d",
                        options->model, rt_tokenizer_vocab_size(self->tokenizer), config->vocab);
    }
    status = rt_chat_open(options->model, self->tokenizer, &self->chat, error);
    if (status) return status;
    info->has_chat_template = self->chat != NULL;
    snprintf(detail, sizeof detail, "%s, %d ids, %s", rt_tokenizer_kind(self->tokenizer),
             rt_tokenizer_vocab_size(self->tokenizer), self->chat ? "chat template" : "no chat template");
    phase_done(phases, "tokenizer", detail);
    return BIS_OK;
}

/* Decides how many pages the KV cache gets and how long a sequence may be. */
static bis_status plan_memory(rt_engine *self, const rt_engine_options *options, int *pages, bis_error *error) {
    const rt_model_config *config = rt_model_get_config(self->model);
    rt_engine_info *info = &self->info;
    uint64_t page_bytes = rt_kv_page_bytes(config, options->kv_bits);
    if (!page_bytes) return bis_fail(error, BIS_ERR_INVALID, "kv-bits is %d: use 16 or 32", options->kv_bits);
    if (options->max_context < 0 || options->max_context > config->context) {
        return bis_fail(error, BIS_ERR_INVALID, "max-context is %d: this model has %d", options->max_context,
                        config->context);
    }
    int context = options->max_context ? options->max_context : config->context;
    uint64_t wanted = (uint64_t)options->max_batch * (uint64_t)rt_kv_pages_for(context);
    uint64_t limit = options->kv_bytes ? options->kv_bytes : rt_system_memory_available() / 2;
    if (options->kv_bytes || wanted > limit / page_bytes) wanted = limit / page_bytes;
    if (wanted > INT32_MAX / KN_PAGE_TOKENS) wanted = INT32_MAX / KN_PAGE_TOKENS;
    if (wanted < 1) {
        return bis_fail(error, BIS_ERR_NOMEM,
                        "%.1f MB do not hold one page of the KV cache (%.1f MB): raise --kv-memory",
                        (double)limit / 1e6, (double)page_bytes / 1e6);
    }
    *pages = (int)wanted;
    info->kv_bits = options->kv_bits;
    info->kv_tokens = wanted * KN_PAGE_TOKENS;
    info->kv_bytes = wanted * page_bytes;
    info->max_context = info->kv_tokens < (uint64_t)context ? (int)info->kv_tokens : context;
    info->max_batch = options->max_batch;
    return BIS_OK;
}

static bis_status start(rt_engine *self, const rt_engine_options *options, phase_clock *phases, bis_error *error) {
    int pages = 0;
    rt_engine_info *info = &self->info;
    bis_status status = plan_memory(self, options, &pages, error);
    if (!status) status = kn_cpu_open(options->threads, options->cpu_isa, info->max_context, 0, &self->backend, error);
    if (status) return status;
    info->backend = self->backend->name;
    info->threads = self->backend->threads;
    const rt_model_config *config = rt_model_get_config(self->model);
    status = rt_kv_pages_open(config, options->kv_bits, pages, &self->pages, error);
    if (!status) {
        status = rt_forward_open(self->model, self->backend,
                                 rt_scheduler_max_rows(options->max_batch, options->prefill_chunk),
                                 rt_scheduler_max_logits(options->max_batch), info->max_context, &self->forward, error);
    }
    if (status) return status;
    info->work_bytes = rt_forward_work_bytes(self->forward);
    char detail[256];
    snprintf(detail, sizeof detail, "%.1f MB KV cache (F%d): room for %llu tokens; %.1f MB activations",
             (double)info->kv_bytes / 1e6, info->kv_bits, (unsigned long long)info->kv_tokens,
             (double)info->work_bytes / 1e6);
    phase_done(phases, "memory", detail);
    rt_scheduler_options scheduler = {.forward = self->forward,
                                      .pages = self->pages,
                                      .vocab = config->vocab,
                                      .max_batch = options->max_batch,
                                      .prefill_chunk = options->prefill_chunk,
                                      .max_queue = options->max_queue};
    status = rt_scheduler_open(&scheduler, &self->scheduler, error);
    if (status) return status;
    snprintf(detail, sizeof detail, "%s, %d thread%s, up to %d sequences at once", info->backend, info->threads,
             info->threads == 1 ? "" : "s", info->max_batch);
    phase_done(phases, "engine", detail);
    return BIS_OK;
}

bis_status rt_engine_open(const rt_engine_options *options, rt_engine **out, bis_error *error) {
    bis_status status = check_options(options, error);
    if (status) return status;
    rt_engine *self = bis_calloc(1, sizeof *self);
    if (!self) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the engine");
    phase_clock timing = {options, bis_now_seconds()};
    set_name(&self->info, options);
    status = load_files(self, options, &timing, error);
    if (!status) status = start(self, options, &timing, error);
    if (status) {
        rt_engine_close(self);
        return status;
    }
    *out = self;
    return BIS_OK;
}

void rt_engine_close(rt_engine *engine) {
    if (!engine) return;
    rt_scheduler_close(engine->scheduler);
    rt_forward_close(engine->forward);
    rt_kv_pages_close(engine->pages);
    if (engine->backend) engine->backend->ops->close(engine->backend);
    rt_chat_close(engine->chat);
    rt_tokenizer_close(engine->tokenizer);
    rt_model_close(engine->model);
    bis_free(engine);
}

void rt_engine_get_info(const rt_engine *engine, rt_engine_info *info) { *info = engine->info; }
const rt_tokenizer *rt_engine_tokenizer(const rt_engine *engine) { return engine->tokenizer; }
const rt_chat *rt_engine_chat(const rt_engine *engine) { return engine->chat; }

bis_status rt_engine_submit(rt_engine *engine, const rt_request_params *params, rt_notify_fn notify, void *user,
                            rt_request **out, bis_error *error) {
    rt_request *request;
    bis_status status = rt_request_create(params, engine->tokenizer, engine->info.vocab_size, engine->info.max_context,
                                          notify, user, &request, error);
    if (status) return status;
    status = rt_scheduler_submit(engine->scheduler, request, error);
    if (status) rt_request_unref(request);
    else *out = request;
    return status;
}

void rt_engine_get_stats(const rt_engine *engine, rt_engine_stats *stats) {
    rt_scheduler_get_stats(engine->scheduler, stats);
}

void rt_engine_drain(rt_engine *engine) { rt_scheduler_drain(engine->scheduler); }
