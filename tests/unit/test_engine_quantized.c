/* The engine with quantized folders, low-bit KV and prompt spans: the same tokens and log-probabilities alone, in a
 * batch, in any chunks, on any threads, with little memory; the span has its effect and only then; all pages come back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "runtime/engine.h"
#include "tests/support/quantized_model.h"
#include "tests/support/random_data.h"
#include "tests/support/scratch.h"

enum { REQUESTS = 7, PROMPT_MAX = 70, NEW_TOKENS = 20, VOCAB = 2048 };

static const qm_spec specs[] = {
    {"qwen2", 64, 88, 2, 4, 2, 16, VOCAB, 256, false, true, "atom", 3, 3, 3, 32, false, {8, 5, 16, 24}},
    {"llama", 64, 96, 2, 4, 2, 24, VOCAB, 256, false, false, "quarot", 4, 4, 4, 64, true, {0, 0, 0, 0}},
};

static void write_model(const qm_spec *spec) {
    qm_model *m = qm_make(spec);
    scratch_make();
    qm_write(m);
    qm_write_tokenizer();
    qm_free(m);
}

static rt_engine_options options_for(int threads, int max_batch, int chunk) {
    static char folder[512];
    rt_engine_options options = rt_engine_default_options();
    snprintf(folder, sizeof folder, "%s", scratch_path(""));
    options.model = folder;
    options.threads = threads;
    options.max_batch = max_batch;
    options.prefill_chunk = chunk;
    return options;
}

static rt_engine *open_engine(const rt_engine_options *options) {
    rt_engine *engine;
    bis_error error;
    if (rt_engine_open(options, &engine, &error)) fail_msg("%s", error.text);
    return engine;
}

typedef struct prompts {
    int32_t ids[REQUESTS][PROMPT_MAX];
    size_t count[REQUESTS], system[REQUESTS];
} prompts;

/* Spans of no page, part of one, whole ones, and the whole prompt. */
static void make_prompts(prompts *p) {
    static const size_t lengths[REQUESTS] = {5, 16, 23, 33, 48, 61, 70}, systems[REQUESTS] = {0, 1, 16, 33, 40, 17, 0};
    for (int i = 0; i < REQUESTS; i++) {
        p->count[i] = lengths[i];
        p->system[i] = systems[i];
        for (size_t t = 0; t < lengths[i]; t++) p->ids[i][t] = random_below(VOCAB);
    }
}

typedef struct answer {
    int32_t tokens[NEW_TOKENS];
    float logprobs[NEW_TOKENS];
    int count;
} answer;

static rt_request *submit(rt_engine *engine, const prompts *p, int i) {
    rt_request_params params = rt_request_default_params();
    params.prompt = p->ids[i];
    params.prompt_count = p->count[i];
    params.system_count = p->system[i];
    params.max_tokens = NEW_TOKENS;
    params.sampling.temperature = 0;
    params.ignore_eos = true;
    params.logprobs = 0;
    rt_request *request;
    bis_error error;
    if (rt_engine_submit(engine, &params, NULL, NULL, &request, &error)) fail_msg("%s", error.text);
    return request;
}

static void collect(rt_request *request, answer *out) {
    rt_event event;
    memset(out, 0, sizeof *out);
    while (rt_request_wait(request, &event) && event.kind != RT_EVENT_DONE) {
        assert_int_equal(event.kind, RT_EVENT_TOKEN);
        assert_true(event.logprob <= 0); /* not NaN */
        out->tokens[out->count] = event.token;
        out->logprobs[out->count++] = event.logprob;
    }
    assert_int_equal(event.finish, RT_FINISH_LENGTH);
    rt_request_release(request);
}

static void assert_idle(const rt_engine *engine) {
    rt_engine_stats stats = {0};
    for (int i = 0; i < 5000; i++) {
        rt_engine_get_stats(engine, &stats);
        if (stats.running == 0 && stats.waiting == 0 && stats.kv_tokens_used == 0) return;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    fail_msg("%d running, %d waiting, %llu KV tokens in use", stats.running, stats.waiting,
             (unsigned long long)stats.kv_tokens_used);
}

static void run(const rt_engine_options *options, const prompts *p, bool together, answer answers[REQUESTS]) {
    rt_engine *engine = open_engine(options);
    rt_request *requests[REQUESTS];
    for (int i = 0; i < REQUESTS; i++) {
        requests[i] = submit(engine, p, i);
        if (!together) collect(requests[i], &answers[i]);
    }
    for (int i = 0; together && i < REQUESTS; i++) collect(requests[i], &answers[i]);
    assert_idle(engine);
    rt_engine_close(engine);
}

static bool is_same(const answer *a, const answer *b) {
    bool same = a->count == b->count;
    for (int i = 0; i < NEW_TOKENS; i++) {
        same = same && a->tokens[i] == b->tokens[i] && a->logprobs[i] == b->logprobs[i];
    }
    return same;
}

static void assert_same(const answer *a, const answer *b) {
    for (int i = 0; i < REQUESTS; i++) assert_true(is_same(&a[i], &b[i]));
}

/* kv_bytes for a cache of about so many pages for tokens outside spans. */
static uint64_t bytes_for(const rt_engine_options *options, uint64_t pages) {
    rt_engine_info info;
    rt_engine_options one = *options;
    one.max_batch = 1;
    rt_engine *engine = open_engine(&one);
    rt_engine_get_info(engine, &info);
    rt_engine_close(engine);
    return info.kv_bytes * pages / ((info.kv_tokens - info.kv_prompt_tokens) / 16);
}

static void check_width(const prompts *p, int kv_bits, bool prompt_low) {
    answer alone[REQUESTS], other[REQUESTS];
    rt_engine_options options = options_for(1, 1, 256);
    options.kv_bits = kv_bits;
    options.prompt_kv_low = prompt_low;
    run(&options, p, false, alone);
    options = options_for(2, 4, 7);
    options.kv_bits = kv_bits;
    options.prompt_kv_low = prompt_low;
    run(&options, p, true, other);
    assert_same(alone, other);
    options = options_for(2, 8, 1);
    options.kv_bits = kv_bits;
    options.prompt_kv_low = prompt_low;
    options.kv_bytes = bytes_for(&options, 8); /* one or two sequences at a time, however they divide */
    run(&options, p, true, other);
    assert_same(alone, other);
}

static void answers_do_not_depend_on_company(void **state) {
    (void)state;
    static const int widths[] = {0, 2, 3, 4, 8, 16, 32};
    for (size_t s = 0; s < sizeof specs / sizeof *specs; s++) {
        prompts p;
        make_prompts(&p);
        write_model(&specs[s]);
        for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) check_width(&p, widths[i], i % 3 == 1);
    }
}

/* Models without quantization have low-bit caches too. */
static void the_demo_model_runs_with_low_bits(void **state) {
    (void)state;
    prompts p;
    make_prompts(&p);
    rt_engine_options options = options_for(2, 4, 19);
    answer alone[REQUESTS], together[REQUESTS];
    options.model = "models/demo";
    options.kv_bits = 4;
    run(&options, &p, false, alone);
    run(&options, &p, true, together);
    assert_same(alone, together);
}

static void a_span_matters_where_it_should(void **state) {
    (void)state;
    prompts with, without;
    make_prompts(&with);
    without = with;
    memset(without.system, 0, sizeof without.system);
    write_model(&specs[0]);
    for (int kv_bits = 3; kv_bits <= 16; kv_bits += 13) {
        answer spans[REQUESTS], none[REQUESTS], low[REQUESTS];
        rt_engine_options options = options_for(1, 4, 32);
        options.kv_bits = kv_bits;
        run(&options, &with, true, spans);
        run(&options, &without, true, none);
        options.prompt_kv_low = true;
        run(&options, &with, true, low);
        assert_same(none, low);
        for (int i = 0; i < REQUESTS; i++) {
            assert_int_equal(is_same(&spans[i], &none[i]), kv_bits == 16 || with.system[i] == 0);
        }
    }
}

static void memory_is_divided_and_told(void **state) {
    (void)state;
    write_model(&specs[0]);
    rt_engine_info info;
    rt_engine_options options = options_for(1, 16, 32);
    rt_engine *engine = open_engine(&options);
    rt_engine_get_info(engine, &info);
    assert_string_equal(info.weight_type, "W3A3");
    rt_engine_close(engine);
    assert_int_equal(info.kv_bits, 3); /* the model's own */
    assert_int_equal(info.kv_tokens, 16 * 256 * 5 / 4);
    assert_int_equal(info.kv_prompt_tokens, 16 * 256 / 4);
    /* 2 layers, K and V, 2 heads: 16 numbers in F16, or of 3 bits with two F16 numbers */
    uint64_t full = 2 * 2 * 2 * 32, low = 2 * 2 * 2 * (6 + 4);
    assert_int_equal(info.kv_bytes, 16 * 256 * low + 16 * 256 / 4 * full);
    for (uint64_t kv_bytes = 16 * (full + low); kv_bytes < 600 * 1000; kv_bytes += kv_bytes / 3) {
        options.kv_bytes = kv_bytes;
        engine = open_engine(&options);
        rt_engine_get_info(engine, &info);
        rt_engine_close(engine);
        uint64_t tokens = info.kv_tokens - info.kv_prompt_tokens;
        assert_true(info.kv_bytes <= kv_bytes && info.kv_bytes + 16 * (full + low) > kv_bytes);
        assert_true(info.kv_prompt_tokens >= (uint64_t)info.max_context / 16 * 16);
        assert_true(info.kv_prompt_tokens >= tokens / 4 / 16 * 16);
        assert_int_equal(info.max_context, tokens < 256 ? tokens : 256);
    }
    options.kv_bytes = 16 * low;
    options.prompt_kv_low = true;
    engine = open_engine(&options);
    rt_engine_get_info(engine, &info);
    rt_engine_close(engine);
    assert_int_equal(info.kv_tokens, 16);
    assert_int_equal(info.kv_prompt_tokens, 0);
}

static void too_little_memory_is_refused_with_figures(void **state) {
    (void)state;
    write_model(&specs[0]);
    static const struct {
        int bits;
        bool prompt_low;
        uint64_t bytes;
        const char *said;
    } cases[] = {
        {3, false, 5375, "5.4 KB do not hold the smallest KV cache, 16 tokens in 5.4 KB: raise --kv-memory"},
        {3, true, 1279, "1.3 KB do not hold the smallest KV cache, 16 tokens in 1.3 KB"},
        {16, false, 4095, "16 tokens in 4.1 KB"},
        {32, false, 4096, "16 tokens in 8.2 KB"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rt_engine_options options = options_for(1, 1, 32);
        options.kv_bits = cases[i].bits;
        options.prompt_kv_low = cases[i].prompt_low;
        options.kv_bytes = cases[i].bytes;
        rt_engine *engine = NULL;
        bis_error error = {.text = ""};
        assert_int_equal(rt_engine_open(&options, &engine, &error), BIS_ERR_NOMEM);
        assert_null(engine);
        if (!strstr(error.text, cases[i].said)) fail_msg("%s", error.text);
    }
    rt_engine_options options = options_for(1, 1, 32);
    options.kv_bits = 5;
    rt_engine *engine = NULL;
    bis_error error = {.text = ""};
    assert_int_equal(rt_engine_open(&options, &engine, &error), BIS_ERR_INVALID);
    assert_non_null(strstr(error.text, "kv-bits is 5: use 2, 3, 4, 8, 16 or 32"));
}

static int remove_scratch(void **state) {
    (void)state;
    scratch_remove();
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(answers_do_not_depend_on_company),
        cmocka_unit_test(the_demo_model_runs_with_low_bits),
        cmocka_unit_test(a_span_matters_where_it_should),
        cmocka_unit_test(memory_is_divided_and_told),
        cmocka_unit_test(too_little_memory_is_refused_with_figures),
    };
    return cmocka_run_group_tests(tests, NULL, remove_scratch);
}
