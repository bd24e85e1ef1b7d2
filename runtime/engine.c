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
    return (rt_engine_options){.cpu_isa = "auto", .max_batch = 16, .prefill_chunk = 256, .max_queue = 256};
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

typedef struct kv_plan {
    int bits;
    bool spans;                     /* sequences may have a prompt span: there are pages of both kinds */
    uint64_t context_pages;         /* of one sequence */
    uint64_t full_bytes, low_bytes; /* of a page */
    rt_kv_count count;
} kv_plan;

/* Full pages that go with a number of low pages: a quarter, because a system prompt is the smaller part of most
 * conversations and its pages are several times as large; but enough for one system prompt that fills a whole sequence,
 * so that every request that fits the context fits the empty cache, however it divides. */
static uint64_t full_beside(const kv_plan *plan, uint64_t low) {
    uint64_t longest = low < plan->context_pages ? low : plan->context_pages;
    return low / 4 > longest ? low / 4 : longest;
}

/* The most pages for tokens outside prompt spans that fit in `limit` bytes with the full pages that go with them. */
static uint64_t pages_within(const kv_plan *plan, uint64_t limit) {
    uint64_t context = plan->context_pages, full = plan->full_bytes, low = plan->low_bytes;
    if (!low) return limit / full;
    if (!plan->spans) return limit / low;
    uint64_t pages = limit / (low + full); /* as many full ones as low ones, up to a whole sequence */
    if (pages <= context) return pages;
    pages = (limit - context * full) / low;
    return pages <= 4 * context ? pages : 4 * limit / (4 * low + full);
}

static bis_status choose_pages(kv_plan *plan, const rt_engine_options *options, bis_error *error) {
    uint64_t wanted = (uint64_t)options->max_batch * plan->context_pages;
    uint64_t limit = options->kv_bytes ? options->kv_bytes : rt_system_memory_available() / 2;
    uint64_t most = pages_within(plan, limit);
    if (options->kv_bytes || wanted > most) wanted = most;
    if (wanted > INT32_MAX / KN_PAGE_TOKENS / 2) wanted = INT32_MAX / KN_PAGE_TOKENS / 2;
    if (wanted < 1) {
        uint64_t least = plan->low_bytes + (plan->spans || !plan->low_bytes ? plan->full_bytes : 0);
        return bis_fail(error, BIS_ERR_NOMEM,
                        "%.1f KB do not hold the smallest KV cache, %d tokens in %.1f KB: raise --kv-memory",
                        (double)limit / 1e3, KN_PAGE_TOKENS, (double)least / 1e3);
    }
    if (!plan->low_bytes) plan->count.full = (int)wanted;
    else plan->count = (rt_kv_count){plan->spans ? (int)full_beside(plan, wanted) : 0, (int)wanted};
    return BIS_OK;
}

/* Decides how many pages the KV cache gets and how long a sequence may be. */
static bis_status plan_memory(rt_engine *self, const rt_engine_options *options, kv_plan *plan, bis_error *error) {
    const rt_model_config *config = rt_model_get_config(self->model);
    rt_engine_info *info = &self->info;
    bis_status status = rt_kv_bits(config, options->kv_bits, &plan->bits, error);
    if (status) return status;
    if (options->max_context < 0 || options->max_context > config->context) {
        return bis_fail(error, BIS_ERR_INVALID, "max-context is %d: this model has %d", options->max_context,
                        config->context);
    }
    int context = options->max_context ? options->max_context : config->context;
    plan->spans = rt_kv_is_low(plan->bits) && !options->prompt_kv_low;
    plan->context_pages = (uint64_t)rt_kv_pages_for(context);
    plan->full_bytes = rt_kv_full_page_bytes(config, plan->bits);
    plan->low_bytes = rt_kv_low_page_bytes(config, plan->bits);
    status = choose_pages(plan, options, error);
    if (status) return status;
    uint64_t full = (uint64_t)plan->count.full, low = (uint64_t)plan->count.low;
    uint64_t longest = (low ? low : full) * KN_PAGE_TOKENS; /* full_beside: a prompt span may be as long */
    info->kv_bits = plan->bits;
    info->kv_tokens = (full + low) * KN_PAGE_TOKENS;
    info->kv_prompt_tokens = plan->spans ? full * KN_PAGE_TOKENS : 0;
    info->kv_bytes = full * plan->full_bytes + low * plan->low_bytes;
    info->max_context = longest < (uint64_t)context ? (int)longest : context;
    info->max_batch = options->max_batch;
    return BIS_OK;
}

static void report_memory(const rt_engine_info *info, phase_clock *phases) {
    char detail[256];
    double kv_mb = (double)info->kv_bytes / 1e6, work_mb = (double)info->work_bytes / 1e6;
    unsigned long long tokens = info->kv_tokens - info->kv_prompt_tokens, prompt = info->kv_prompt_tokens;
    if (!rt_kv_is_low(info->kv_bits)) {
        snprintf(detail, sizeof detail, "%.1f MB KV cache (F%d): room for %llu tokens; %.1f MB activations", kv_mb,
                 info->kv_bits, tokens, work_mb);
    } else {
        snprintf(detail, sizeof detail,
                 "%.1f MB KV cache: room for %llu tokens of %d bits and %llu of system prompts (F16); "
                 "%.1f MB activations",
                 kv_mb, tokens, info->kv_bits, prompt, work_mb);
    }
    phase_done(phases, "memory", detail);
}

static bis_status start(rt_engine *self, const rt_engine_options *options, phase_clock *phases, bis_error *error) {
    kv_plan plan = {0};
    rt_engine_info *info = &self->info;
    const rt_model_config *config = rt_model_get_config(self->model);
    bis_status status = plan_memory(self, options, &plan, error);
    if (!status) {
        status = kn_cpu_open(options->threads, options->cpu_isa, info->max_context,
                             rt_kv_low_head_dim(config, plan.bits), &self->backend, error);
    }
    if (status) return status;
    info->backend = self->backend->name;
    info->threads = self->backend->threads;
    status = rt_kv_pages_open(config, plan.bits, plan.count, &self->pages, error);
    if (!status) {
        status = rt_forward_open(self->model, self->backend,
                                 rt_scheduler_max_rows(options->max_batch, options->prefill_chunk),
                                 rt_scheduler_max_logits(options->max_batch), info->max_context, &self->forward, error);
    }
    if (status) return status;
    info->work_bytes = rt_forward_work_bytes(self->forward);
    report_memory(info, phases);
    rt_scheduler_options scheduler = {.forward = self->forward,
                                      .pages = self->pages,
                                      .vocab = config->vocab,
                                      .max_batch = options->max_batch,
                                      .prefill_chunk = options->prefill_chunk,
                                      .max_queue = options->max_queue,
                                      .prompt_kv_low = options->prompt_kv_low};
    status = rt_scheduler_open(&scheduler, &self->scheduler, error);
    if (status) return status;
    char detail[256];
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
