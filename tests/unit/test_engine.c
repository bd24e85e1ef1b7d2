/* The engine with the demo model: the same tokens alone, in a batch, in any chunks, on any threads; ends, limits,
 * cancellation, slow readers, shutdown; all pages back afterwards. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/alloc.h"
#include "runtime/engine.h"

enum { TOKENS = 48, REQUESTS = 12 };

static rt_engine_options small_options(void) {
    rt_engine_options options = rt_engine_default_options();
    options.model = "models/demo";
    options.threads = 2;
    options.max_batch = 4;
    return options;
}

static rt_engine *open_engine(const rt_engine_options *options) {
    rt_engine *engine;
    bis_error error;
    if (rt_engine_open(options, &engine, &error)) fail_msg("%s", error.text);
    return engine;
}

/* Prompts of different lengths, so that batches mix prefill and decode. */
static size_t make_prompt(const rt_engine *engine, int which, int32_t *ids) {
    static const char *const texts[] = {"Once upon a time", "The door code is 1234. ",
                                        "<|im_start|>user\nWho are you?"};
    rt_tokens tokens = {0};
    bis_error error;
    char text[1024] = "";
    for (int i = 0; i <= which; i++) strcat(text, texts[(which + i) % 3]);
    assert_int_equal(rt_tokenizer_encode(rt_engine_tokenizer(engine), text, strlen(text),
                                         RT_ENCODE_ADD_SPECIAL | RT_ENCODE_PARSE_SPECIAL, &tokens, &error),
                     BIS_OK);
    assert_in_range(tokens.count, 1, 400);
    memcpy(ids, tokens.ids, tokens.count * sizeof *ids);
    size_t count = tokens.count;
    rt_tokens_free(&tokens);
    return count;
}

typedef struct result {
    int32_t tokens[512];
    char text[8192];
    size_t count, length;
    rt_event done;
} result;

static rt_request *submit(rt_engine *engine, const rt_request_params *params) {
    rt_request *request;
    bis_error error;
    if (rt_engine_submit(engine, params, NULL, NULL, &request, &error)) fail_msg("%s", error.text);
    return request;
}

static void collect(rt_request *request, result *out) {
    memset(out, 0, sizeof *out);
    rt_event *event = &out->done;
    while (rt_request_wait(request, event)) {
        memcpy(out->text + out->length, event->text, event->text_length);
        out->length += event->text_length;
        if (event->kind == RT_EVENT_TOKEN) out->tokens[out->count++] = event->token;
        if (event->kind == RT_EVENT_DONE) break;
    }
    assert_int_equal(event->kind, RT_EVENT_DONE);
    assert_int_equal(event->completion_tokens, out->count);
}

static void run_one(rt_engine *engine, const rt_request_params *params, result *out) {
    rt_request *request = submit(engine, params);
    collect(request, out);
    rt_request_release(request);
}

static rt_request_params params_for(const int32_t *prompt, size_t count, int max_tokens) {
    rt_request_params params = rt_request_default_params();
    params.prompt = prompt;
    params.prompt_count = count;
    params.max_tokens = max_tokens;
    params.sampling.temperature = 0;
    params.ignore_eos = true;
    params.keep_special = true;
    return params;
}

/* Waits until the engine has given everything back; fails after some seconds. */
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

/* Half of the requests greedy, half sampled with a seed. */
static void set_sampling(rt_request_params *params, int i) {
    if (i % 2 == 0) return;
    params->sampling.temperature = 0.9f;
    params->sampling.top_p = 0.95f;
    params->sampling.seed = (uint64_t)i;
    params->sampling.frequency_penalty = 0.1f;
}

static void run_all(rt_engine *engine, bool together, result *results) {
    static int32_t prompts[REQUESTS][512];
    rt_request *requests[REQUESTS];
    for (int i = 0; i < REQUESTS; i++) {
        size_t count = make_prompt(engine, i, prompts[i]);
        rt_request_params params = params_for(prompts[i], count, TOKENS);
        set_sampling(&params, i);
        requests[i] = submit(engine, &params);
        if (!together) collect(requests[i], &results[i]);
        if (!together) rt_request_release(requests[i]);
    }
    for (int i = 0; together && i < REQUESTS; i++) {
        collect(requests[i], &results[i]);
        rt_request_release(requests[i]);
    }
    assert_idle(engine);
}

static void test_tokens_do_not_depend_on_company(void **state) {
    (void)state;
    static result expected[REQUESTS], got[REQUESTS];
    rt_engine_options options = small_options();
    options.max_batch = 1;
    options.threads = 1;
    rt_engine *engine = open_engine(&options);
    run_all(engine, false, expected);
    rt_engine_close(engine);
    static const struct {
        int batch, chunk, threads;
        const char *isa;
    } settings[] = {{12, 256, 2, "auto"}, {4, 7, 3, "auto"}, {3, 1, 1, "avx2"}, {12, 64, 2, "avx2"}};
    for (size_t s = 0; s < sizeof settings / sizeof *settings; s++) {
        options.max_batch = settings[s].batch;
        options.prefill_chunk = settings[s].chunk;
        options.threads = settings[s].threads;
        options.cpu_isa = settings[s].isa;
        engine = open_engine(&options);
        run_all(engine, true, got);
        rt_engine_close(engine);
        for (int i = 0; i < REQUESTS; i++) {
            assert_int_equal(got[i].count, TOKENS);
            assert_memory_equal(got[i].tokens, expected[i].tokens, TOKENS * sizeof(int32_t));
            assert_int_equal(got[i].length, expected[i].length);
            assert_memory_equal(got[i].text, expected[i].text, expected[i].length);
        }
    }
}

static void test_seed_reproduces_and_other_seeds_differ(void **state) {
    (void)state;
    static result a, b, c;
    int32_t prompt[512];
    rt_engine_options options = small_options();
    rt_engine *engine = open_engine(&options);
    rt_request_params params = params_for(prompt, make_prompt(engine, 0, prompt), 32);
    params.sampling.temperature = 1.5f;
    params.sampling.seed = 77;
    run_one(engine, &params, &a);
    run_one(engine, &params, &b);
    params.sampling.seed = 78;
    run_one(engine, &params, &c);
    assert_memory_equal(a.tokens, b.tokens, 32 * sizeof(int32_t));
    assert_memory_not_equal(a.tokens, c.tokens, 32 * sizeof(int32_t));
    rt_engine_close(engine);
}

static void test_stop_strings_and_tokens(void **state) {
    (void)state;
    static result whole, cut;
    int32_t prompt[512];
    rt_engine_options options = small_options();
    rt_engine *engine = open_engine(&options);
    rt_request_params params = params_for(prompt, make_prompt(engine, 0, prompt), 40);
    run_one(engine, &params, &whole);
    assert_int_equal(whole.done.finish, RT_FINISH_LENGTH);
    assert_true(whole.length > 20);

    char stop[8] = {0}; /* five bytes from the middle, over several tokens */
    memcpy(stop, whole.text + whole.length / 2, 5);
    const char *stops[] = {stop};
    params.stop = stops;
    params.stop_count = 1;
    run_one(engine, &params, &cut);
    assert_int_equal(cut.done.finish, RT_FINISH_STOP);
    size_t where = (size_t)(strstr(whole.text, stop) - whole.text);
    assert_int_equal(cut.length, where);
    assert_memory_equal(cut.text, whole.text, where);

    params.stop_count = 0;
    params.stop_tokens = &whole.tokens[10];
    params.stop_token_count = 1;
    run_one(engine, &params, &cut);
    assert_int_equal(cut.done.finish, RT_FINISH_STOP);
    size_t first = 0;
    while (whole.tokens[first] != whole.tokens[10]) first++;
    assert_int_equal(cut.count, first);
    assert_memory_equal(cut.tokens, whole.tokens, first * sizeof(int32_t));
    rt_engine_close(engine);
}

static void test_end_token_ends_the_answer(void **state) {
    (void)state;
    static result out;
    int32_t prompt[512], eos[RT_EOS_MAX];
    rt_engine_options options = small_options();
    rt_engine *engine = open_engine(&options);
    assert_true(rt_tokenizer_eos(rt_engine_tokenizer(engine), eos) > 0);
    rt_logit_bias bias = {eos[0], 1000};
    rt_request_params params = params_for(prompt, make_prompt(engine, 1, prompt), 10);
    params.sampling.logit_bias = &bias;
    params.sampling.logit_bias_count = 1;
    run_one(engine, &params, &out);
    assert_int_equal(out.done.finish, RT_FINISH_LENGTH); /* ignore_eos */
    assert_int_equal(out.tokens[0], eos[0]);
    params.ignore_eos = false;
    run_one(engine, &params, &out);
    assert_int_equal(out.done.finish, RT_FINISH_STOP);
    assert_int_equal(out.count, 0);
    rt_engine_close(engine);
}

static void test_logprobs_and_prompt_logprobs(void **state) {
    (void)state;
    int32_t prompt[512];
    rt_engine_options options = small_options();
    rt_engine *engine = open_engine(&options);
    size_t count = make_prompt(engine, 8, prompt);
    assert_true(count > 40); /* more rows than one step reports */
    rt_request_params params = params_for(prompt, count, 5);
    params.logprobs = 3;
    params.prompt_logprobs = true;
    rt_request *request = submit(engine, &params);
    static rt_event event;
    size_t prompt_events = 0, token_events = 0;
    while (rt_request_wait(request, &event) && event.kind != RT_EVENT_DONE) {
        if (event.kind == RT_EVENT_PROMPT_TOKEN) {
            assert_int_equal(event.token, prompt[prompt_events]);
            assert_int_equal(event.top_count, prompt_events ? 3 : 0);
            assert_int_equal(isnan(event.logprob) != 0, prompt_events == 0);
            prompt_events++;
        } else {
            assert_int_equal(prompt_events, count);
            assert_int_equal(event.top[0].token, event.token); /* greedy */
            assert_float_equal(event.top[0].logprob, event.logprob, 0);
            assert_true(event.logprob <= 0 && event.top[1].logprob <= event.logprob);
            token_events++;
        }
    }
    assert_int_equal(token_events, 5);
    rt_request_release(request);
    rt_engine_close(engine);
}

static void test_no_new_tokens(void **state) {
    (void)state;
    static result out;
    int32_t prompt[512];
    rt_engine_options options = small_options();
    rt_engine *engine = open_engine(&options);
    rt_request_params params = params_for(prompt, make_prompt(engine, 2, prompt), 0);
    run_one(engine, &params, &out);
    assert_int_equal(out.count, 0);
    assert_int_equal(out.done.finish, RT_FINISH_LENGTH);
    rt_engine_close(engine);
}

static void test_context_limits(void **state) {
    (void)state;
    static result out;
    static int32_t prompt[600];
    rt_engine_options options = small_options();
    options.max_context = 64;
    rt_engine *engine = open_engine(&options);
    bis_error error;
    rt_request *request = NULL;
    for (int i = 0; i < 600; i++) prompt[i] = 5;
    rt_request_params params = params_for(prompt, 64, -1);
    assert_int_equal(rt_engine_submit(engine, &params, NULL, NULL, &request, &error), BIS_ERR_LIMIT);
    params.prompt_count = 63;
    run_one(engine, &params, &out);
    assert_int_equal(out.count, 1);
    assert_int_equal(out.done.finish, RT_FINISH_LENGTH);
    params.prompt_count = 40;
    run_one(engine, &params, &out);
    assert_int_equal(out.count, 24);
    assert_null(request);
    rt_engine_close(engine);
}

static void test_bad_parameters_are_refused(void **state) {
    (void)state;
    rt_engine_options options = small_options();
    rt_engine *engine = open_engine(&options);
    rt_engine_info info;
    rt_engine_get_info(engine, &info);
    int32_t prompt[] = {1, 5, 6};
    rt_logit_bias outside = {info.vocab_size, 1};
    for (int i = 0; i < 16; i++) {
        rt_request_params p = params_for(prompt, 3, 4);
        int32_t wrong[] = {1, i == 1 ? -1 : info.vocab_size, 2};
        switch (i) {
        case 0: p.prompt_count = 0; break;
        case 1:
        case 2: p.prompt = wrong; break;
        case 3: p.max_tokens = -2; break;
        case 4: p.sampling.temperature = -0.1f; break;
        case 5: p.sampling.temperature = NAN; break;
        case 6: p.sampling.top_p = 0; break;
        case 7: p.sampling.top_p = 1.01f; break;
        case 8: p.sampling.min_p = -1; break;
        case 9: p.sampling.repetition_penalty = 0; break;
        case 10: p.sampling.frequency_penalty = 2.1f; break;
        case 11: p.sampling.presence_penalty = NAN; break;
        case 12: p.logprobs = 21; break;
        case 13: p.stop_token_count = 33; break;
        case 14:
            p.sampling.logit_bias = &outside;
            p.sampling.logit_bias_count = 1;
            break;
        case 15: p.sampling.logit_bias_count = RT_LOGIT_BIAS_MAX + 1; break;
        }
        rt_request *request = NULL;
        bis_error error = {0};
        assert_int_equal(rt_engine_submit(engine, &p, NULL, NULL, &request, &error), BIS_ERR_INVALID);
        assert_null(request);
        assert_true(strlen(error.text) > 5);
    }
    rt_engine_close(engine);
}

static void test_queue_limit_and_drain(void **state) {
    (void)state;
    static result out;
    int32_t prompt[512];
    rt_engine_options options = small_options();
    options.max_batch = 1;
    options.max_queue = 3;
    rt_engine *engine = open_engine(&options);
    rt_request_params params = params_for(prompt, make_prompt(engine, 5, prompt), 200);
    rt_request *accepted[64], *extra;
    bis_error error;
    int count = 0;
    while (count < 64 && rt_engine_submit(engine, &params, NULL, NULL, &accepted[count], &error) == BIS_OK) count++;
    assert_in_range(count, 3, 63); /* some may have started or ended meanwhile */
    assert_int_equal(error.status, BIS_ERR_BUSY);
    rt_engine_drain(engine);
    assert_int_equal(rt_engine_submit(engine, &params, NULL, NULL, &extra, &error), BIS_ERR_BUSY);
    for (int i = 0; i < count; i++) {
        collect(accepted[i], &out);
        assert_int_equal(out.done.finish, RT_FINISH_LENGTH); /* what was accepted is finished */
        rt_request_release(accepted[i]);
    }
    assert_idle(engine);
    rt_engine_close(engine);
}

static void test_cancel_at_every_stage(void **state) {
    (void)state;
    int32_t prompt[512];
    rt_engine_options options = small_options();
    options.max_batch = 2;
    options.prefill_chunk = 8;
    rt_engine *engine = open_engine(&options);
    rt_request_params params = params_for(prompt, make_prompt(engine, 8, prompt), -1);
    for (int round = 0; round < 30; round++) {
        rt_request *requests[5];
        for (int i = 0; i < 5; i++) requests[i] = submit(engine, &params);
        static rt_event event;
        for (int i = 0; i < round % 7; i++) rt_request_wait(requests[0], &event);
        for (int i = 0; i < 5; i++) {
            if (i % 2) rt_request_cancel(requests[i]);
        }
        while (rt_request_wait(requests[1], &event) && event.kind != RT_EVENT_DONE) {
        }
        assert_int_equal(event.finish, RT_FINISH_CANCELLED);
        assert_false(rt_request_next(requests[1], &event));
        for (int i = 0; i < 5; i++) rt_request_release(requests[i]); /* releasing cancels the others */
    }
    assert_idle(engine);
    rt_engine_close(engine);
}

static atomic_int notified;

static void count_notification(void *user) {
    (void)user;
    atomic_fetch_add(&notified, 1);
}

static void test_slow_reader_pauses_only_itself(void **state) {
    (void)state;
    static result out, quick;
    int32_t prompt[512];
    rt_engine_options options = small_options();
    options.max_context = 512;
    rt_engine *engine = open_engine(&options);
    rt_request_params params = params_for(prompt, make_prompt(engine, 0, prompt), -1);
    params.logprobs = RT_LOGPROBS_MAX; /* large events: the ring is full long before the context */
    rt_request *slow;
    bis_error error;
    atomic_store(&notified, 0);
    assert_int_equal(rt_engine_submit(engine, &params, count_notification, NULL, &slow, &error), BIS_OK);
    uint64_t steps = 0;
    for (;;) { /* until the engine makes no more steps: the slow one is paused */
        rt_engine_stats stats;
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
        rt_engine_get_stats(engine, &stats);
        if (stats.steps == steps && steps > 0) break;
        steps = stats.steps;
    }
    rt_engine_stats stats;
    rt_engine_get_stats(engine, &stats);
    assert_in_range(stats.generated_tokens, 20, 400);
    assert_int_equal(stats.running, 1);
    assert_in_range(atomic_load(&notified), 1, 2); /* only when the ring was empty */
    rt_request_params other = params_for(prompt, params.prompt_count, 20);
    run_one(engine, &other, &quick); /* the engine is not blocked */
    collect(slow, &out);
    rt_request_release(slow);
    assert_int_equal(out.count + params.prompt_count, 512);
    assert_memory_equal(out.tokens, quick.tokens, 20 * sizeof(int32_t));
    rt_engine_close(engine);
}

static void test_close_ends_what_runs(void **state) {
    (void)state;
    int32_t prompt[512];
    rt_engine_options options = small_options();
    rt_engine *engine = open_engine(&options);
    rt_request_params params = params_for(prompt, make_prompt(engine, 3, prompt), -1);
    rt_request *requests[10];
    for (int i = 0; i < 10; i++) requests[i] = submit(engine, &params);
    for (int i = 0; i < 10; i++) rt_request_release(requests[i]);
    rt_engine_close(engine); /* the leak checker looks at the rest */
}

typedef struct client {
    rt_engine *engine;
    int number;
    const result *expected;
    bool ok;
} client;

static void *client_main(void *argument) {
    client *self = argument;
    result *out = malloc(sizeof *out);
    int32_t prompt[512];
    self->ok = out != NULL;
    for (int round = 0; round < 3 && self->ok; round++) {
        rt_request_params params = params_for(prompt, make_prompt(self->engine, self->number, prompt), 24);
        rt_request *request;
        bis_error error;
        self->ok = rt_engine_submit(self->engine, &params, NULL, NULL, &request, &error) == BIS_OK;
        if (!self->ok) break;
        collect(request, out);
        rt_request_release(request);
        self->ok = memcmp(out->tokens, self->expected->tokens, 24 * sizeof(int32_t)) == 0;
    }
    free(out);
    return NULL;
}

static void test_many_client_threads(void **state) {
    (void)state;
    enum { CLIENTS = 8 };
    static result expected[CLIENTS];
    rt_engine_options options = small_options();
    rt_engine *engine = open_engine(&options);
    int32_t prompt[512];
    pthread_t threads[CLIENTS];
    client clients[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) {
        rt_request_params params = params_for(prompt, make_prompt(engine, i, prompt), 24);
        run_one(engine, &params, &expected[i]);
        clients[i] = (client){engine, i, &expected[i], false};
    }
    for (int i = 0; i < CLIENTS; i++) assert_int_equal(pthread_create(&threads[i], NULL, client_main, &clients[i]), 0);
    for (int i = 0; i < CLIENTS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < CLIENTS; i++) assert_true(clients[i].ok);
    assert_idle(engine);
    rt_engine_close(engine);
}

static void test_little_kv_memory_still_serves_everyone(void **state) {
    (void)state;
    static result expected[REQUESTS], got[REQUESTS];
    rt_engine_options options = small_options();
    rt_engine *engine = open_engine(&options);
    run_all(engine, false, expected);
    rt_engine_info info;
    rt_engine_get_info(engine, &info);
    rt_engine_close(engine);
    options.kv_bytes = info.kv_bytes / info.kv_tokens * 256; /* one or two sequences at a time */
    engine = open_engine(&options);
    rt_engine_get_info(engine, &info);
    assert_int_equal(info.kv_tokens, 256);
    assert_int_equal(info.max_context, 256);
    run_all(engine, true, got);
    for (int i = 0; i < REQUESTS; i++) assert_memory_equal(got[i].tokens, expected[i].tokens, sizeof got[i].tokens);
    rt_engine_close(engine);
}

static void test_bad_options_are_refused(void **state) {
    (void)state;
    for (int i = 0; i < 9; i++) {
        rt_engine_options options = small_options();
        switch (i) {
        case 0: options.model = "models/none"; break;
        case 1: options.model = ""; break;
        case 2: options.max_batch = 0; break;
        case 3: options.prefill_chunk = -4; break;
        case 4: options.kv_bits = 5; break;
        case 5: options.cpu_isa = "sse"; break;
        case 6: options.max_context = 1 << 30; break;
        case 7: options.kv_bytes = 10; break;
        case 8: options.max_queue = 0; break;
        }
        rt_engine *engine = NULL;
        bis_error error = {0};
        assert_int_not_equal(rt_engine_open(&options, &engine, &error), BIS_OK);
        assert_null(engine);
        assert_true(strlen(error.text) > 10);
    }
}

static void test_out_of_memory_at_every_allocation(void **state) {
    (void)state;
    rt_engine_options options = small_options();
    options.threads = 1;
    rt_engine *engine = NULL;
    bis_error error;
    long n = 0;
    /* the tokenizer has its own loop; here a sample of all allocations is enough */
    for (;; n += 1 + n / 8) {
        bis_alloc_fail_after(n);
        bis_status status = rt_engine_open(&options, &engine, &error);
        bis_alloc_fail_after(-1);
        if (status == BIS_OK) break;
        assert_null(engine);
    }
    int32_t prompt[512];
    rt_request_params params = params_for(prompt, make_prompt(engine, 0, prompt), 4);
    params.sampling.presence_penalty = 1;
    for (n = 0;; n++) {
        rt_request *request = NULL;
        bis_alloc_fail_after(n);
        bis_status status = rt_engine_submit(engine, &params, NULL, NULL, &request, &error);
        bis_alloc_fail_after(-1);
        if (status == BIS_OK) {
            rt_request_release(request);
            break;
        }
        assert_int_equal(status, BIS_ERR_NOMEM);
    }
    assert_true(n >= 5);
    assert_idle(engine);
    rt_engine_close(engine);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokens_do_not_depend_on_company),
        cmocka_unit_test(test_seed_reproduces_and_other_seeds_differ),
        cmocka_unit_test(test_stop_strings_and_tokens),
        cmocka_unit_test(test_end_token_ends_the_answer),
        cmocka_unit_test(test_logprobs_and_prompt_logprobs),
        cmocka_unit_test(test_no_new_tokens),
        cmocka_unit_test(test_context_limits),
        cmocka_unit_test(test_bad_parameters_are_refused),
        cmocka_unit_test(test_queue_limit_and_drain),
        cmocka_unit_test(test_cancel_at_every_stage),
        cmocka_unit_test(test_slow_reader_pauses_only_itself),
        cmocka_unit_test(test_close_ends_what_runs),
        cmocka_unit_test(test_many_client_threads),
        cmocka_unit_test(test_little_kv_memory_still_serves_everyone),
        cmocka_unit_test(test_bad_options_are_refused),
        cmocka_unit_test(test_out_of_memory_at_every_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
