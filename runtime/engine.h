/* The engine: the runtime's only door for the server.
 *
 * Open a model folder, submit requests made of token ids, and receive typed events; one engine thread
 * owns the scheduler, the KV cache, the sampler and the device. The text services (tokenizer, chat
 * template) are pure, immutable after opening, and run on the caller's thread.
 *
 * Invariants
 *   - A request's tokens depend only on its own prompt, parameters and seed: not on other requests, the
 *     batch, the prefill chunks, or the number of threads.
 *   - The engine thread never waits for a consumer: a request whose event ring is full is paused.
 *   - Nothing is allocated on the engine thread after start-up; a request's own memory is allocated by
 *     rt_engine_submit and freed by rt_request_release.
 * It does not know HTTP, JSON bodies of requests, or users.
 */
#ifndef BISUP_RUNTIME_ENGINE_H
#define BISUP_RUNTIME_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/status.h"
#include "runtime/template/chat.h"
#include "runtime/tokenizer/tokenizer.h"

typedef struct rt_engine rt_engine;
typedef struct rt_request rt_request;

enum {
    RT_STOP_STRINGS_MAX = 4,
    RT_STOP_STRING_BYTES = 256,
    RT_STOP_TOKENS_MAX = 32,
    RT_LOGPROBS_MAX = 20,
    RT_LOGIT_BIAS_MAX = 1024,
    RT_MODEL_NAME_MAX = 128
};

/* ---- Opening --------------------------------------------------------------------------------- */

/* Called on the opening thread after each phase of start-up ("tokenizer", "weights", "memory", ...). */
typedef void (*rt_phase_fn)(void *user, const char *phase, const char *detail, double seconds);

typedef struct rt_engine_options {
    const char *model;      /* folder */
    const char *model_name; /* as /v1/models shows it; NULL: the folder's name */
    const char *cpu_isa;    /* "auto", "reference", "avx2", "avx512": an upper limit */
    int threads;            /* 0: one per core of this process */
    int max_batch;          /* sequences that run at the same time */
    int max_context;        /* tokens a sequence may have; 0: what the model was trained for */
    int prefill_chunk;      /* prompt tokens computed in one step */
    int max_queue;          /* requests that may wait; more are refused with BIS_ERR_BUSY */
    int kv_bits;            /* 2, 3, 4, 8, 16 or 32; 0: the model's own (16 unless it is quantized) */
    bool prompt_kv_low;     /* below 16 bits: the system prompt's keys and values are low-bit too, not F16 */
    uint64_t kv_bytes;      /* memory for the KV cache; 0: enough for max_batch full contexts, within half of
                               the memory that is free */
    rt_phase_fn on_phase;   /* may be NULL */
    void *phase_user;
} rt_engine_options;

/* The defaults, to be changed as needed. */
rt_engine_options rt_engine_default_options(void);

/* Loads the model and starts the engine thread. Fails with one line that names the file or figure. */
bis_status rt_engine_open(const rt_engine_options *options, rt_engine **out, bis_error *error);

/* Ends all requests with RT_FINISH_CANCELLED, joins the thread, frees everything. All requests must be released. */
void rt_engine_close(rt_engine *engine);

typedef struct rt_engine_info {
    char model_name[RT_MODEL_NAME_MAX];
    const char *architecture; /* "llama", "qwen2", ... */
    const char *weight_type;  /* "F16", ... the type of most parameters; "W3A3" of a quantized model */
    const char *backend;      /* "cpu avx512", ... */
    int threads, vocab_size, max_context, max_batch, kv_bits;
    uint64_t parameters;
    uint64_t weight_bytes;     /* mapped */
    uint64_t kv_bytes;         /* allocated */
    uint64_t kv_tokens;        /* room for this many tokens in all */
    uint64_t kv_prompt_tokens; /* of these, F16 ones for system prompts, where other tokens have fewer bits */
    uint64_t work_bytes;       /* activations and other working memory */
    bool has_chat_template;
    int64_t created; /* Unix time of the weights' last change */
} rt_engine_info;

void rt_engine_get_info(const rt_engine *engine, rt_engine_info *info);

/* Owned by the engine, valid until rt_engine_close. rt_engine_chat is NULL without a template. */
const rt_tokenizer *rt_engine_tokenizer(const rt_engine *engine);
const rt_chat *rt_engine_chat(const rt_engine *engine);

/* ---- Requests -------------------------------------------------------------------------------- */

typedef struct rt_logit_bias {
    int32_t token;
    float bias;
} rt_logit_bias;

typedef struct rt_sampling {
    float temperature;        /* 0: greedy; lowest id wins a tie */
    float top_p;              /* (0, 1]; 1: off */
    float min_p;              /* [0, 1]; 0: off */
    int top_k;                /* 0 or less: off */
    float repetition_penalty; /* > 0; 1: off; over prompt and output */
    float frequency_penalty;  /* [-2, 2], over the output */
    float presence_penalty;
    uint64_t seed;
    const rt_logit_bias *logit_bias; /* copied by submit */
    size_t logit_bias_count;
} rt_sampling;

typedef struct rt_request_params {
    const int32_t *prompt; /* at least one id; copied by submit */
    size_t prompt_count;
    size_t system_count; /* the first ids that are the shared system prompt; 0 if unknown */
    int max_tokens;      /* new tokens; 0 computes the prompt only; -1: until the context is full */
    rt_sampling sampling;
    const char *const *stop; /* stop strings, copied; they do not appear in the output */
    size_t stop_count;
    const int32_t *stop_tokens; /* copied; besides the model's own end tokens */
    size_t stop_token_count;
    bool ignore_eos;      /* the model's own end tokens do not end the text */
    bool keep_special;    /* special tokens appear in the text */
    int logprobs;         /* -1: none; 0..RT_LOGPROBS_MAX: log-probability and that many alternatives per token */
    bool prompt_logprobs; /* also RT_EVENT_PROMPT_TOKEN events with log-probabilities (completions' echo) */
} rt_request_params;

rt_request_params rt_request_default_params(void);

typedef enum rt_finish {
    RT_FINISH_NONE,
    RT_FINISH_STOP,   /* an end token, a stop token or a stop string */
    RT_FINISH_LENGTH, /* max_tokens, or the context is full */
    RT_FINISH_CANCELLED,
    RT_FINISH_ERROR /* the event carries a text */
} rt_finish;

typedef enum rt_event_kind {
    RT_EVENT_TOKEN,        /* one new token; `text` may be empty (held back, or not yet a whole character) */
    RT_EVENT_PROMPT_TOKEN, /* log-probability of one prompt token, before all other events */
    RT_EVENT_DONE          /* the last event of a request, also after errors and cancellation; `text` flushes what
                              was held back */
} rt_event_kind;

typedef struct rt_logprob {
    int32_t token;
    float logprob; /* natural, of the model's own distribution (before temperature and penalties) */
} rt_logprob;

enum { RT_EVENT_TEXT_MAX = RT_DECODER_TEXT_MAX + RT_STOP_STRING_BYTES };

typedef struct rt_event {
    rt_event_kind kind;
    int32_t token;
    float logprob;
    int top_count; /* entries in top[], most probable first */
    rt_logprob top[RT_LOGPROBS_MAX];
    rt_finish finish;                                    /* DONE */
    int prompt_tokens, cached_tokens, completion_tokens; /* DONE */
    bis_error error;                                     /* DONE with RT_FINISH_ERROR */
    size_t text_length;
    char text[RT_EVENT_TEXT_MAX]; /* complete UTF-8 characters, not NUL-terminated */
} rt_event;

/* Called on the engine thread when an empty ring got an event; it must only wake the consumer.
 * It may still be called once after rt_request_cancel, never after rt_request_release returned. */
typedef void (*rt_notify_fn)(void *user);

/* Checks the parameters, copies them, and queues the request. Any thread.
 * BIS_ERR_INVALID: a parameter out of range (token ids too); BIS_ERR_LIMIT: the prompt leaves no room in the
 * context; BIS_ERR_BUSY: the queue is full, or the engine is draining. On success the caller owns *out. */
bis_status rt_engine_submit(rt_engine *engine, const rt_request_params *params, rt_notify_fn notify, void *user,
                            rt_request **out, bis_error *error);

/* Takes the next event; false if there is none now. One consumer thread. */
bool rt_request_next(rt_request *request, rt_event *event);
/* The same, but waits (command line and tests). False only after the DONE event was taken. */
bool rt_request_wait(rt_request *request, rt_event *event);

void rt_request_cancel(rt_request *request);  /* any thread; returns at once; a DONE event follows */
void rt_request_release(rt_request *request); /* cancels if unfinished; the handle is gone; NULL is allowed */

/* ---- Counters and shutdown ------------------------------------------------------------------- */

typedef struct rt_engine_stats {
    int running, waiting;
    uint64_t requests, prompt_tokens, generated_tokens, steps;
    uint64_t kv_tokens_used; /* pages in use, in tokens */
} rt_engine_stats;

void rt_engine_get_stats(const rt_engine *engine, rt_engine_stats *stats); /* any thread */

/* No new requests from now on (submit gives BIS_ERR_BUSY); running and waiting ones go on. */
void rt_engine_drain(rt_engine *engine);

#endif
