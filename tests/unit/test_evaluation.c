/* Quality measures: each figure against the plain definition in long double; windows and prompts against transformers'
 * logits of the golden models; choices against scoring every ending from its first token. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "evaluation/choice.h"
#include "evaluation/windows.h"
#include "runtime/kv_pages.h"
#include "runtime/model/safetensors.h"
#include "tests/support/scratch.h"

enum { GOLDEN_TOKENS = 24 };

static uint32_t random_state = 1;

static float random_float(void) { /* about normal */
    float sum = 0;
    for (int i = 0; i < 12; i++) {
        random_state = random_state * 1664525u + 1013904223u;
        sum += (float)(random_state >> 8) / (float)(1 << 24);
    }
    return sum - 6;
}

/* ---- Figures --------------------------------------------------------------------------------- */

static long double probability(const float *logits, int vocab, int token) {
    long double sum = 0;
    for (int i = 0; i < vocab; i++) sum += expl((long double)logits[i]);
    return expl((long double)logits[token]) / sum;
}

static long double plain_kl(const float *reference, const float *logits, int vocab) {
    long double kl = 0;
    for (int i = 0; i < vocab; i++) {
        long double p = probability(reference, vocab, i), q = probability(logits, vocab, i);
        kl += p * (logl(p) - logl(q));
    }
    return kl;
}

static void figures_of_a_row_are_those_of_the_definition(void **state) {
    (void)state;
    for (int vocab = 2; vocab < 60; vocab += 7) {
        float reference[64], logits[64];
        for (int i = 0; i < vocab; i++) {
            reference[i] = 4 * random_float();
            logits[i] = reference[i] + random_float() * (float)(vocab % 3);
        }
        ev_metrics metrics = {0};
        bis_error error;
        assert_int_equal(ev_metrics_add(&metrics, logits, reference, vocab, vocab - 1, &error), BIS_OK);
        assert_true(fabs(metrics.nll + (double)logl(probability(logits, vocab, vocab - 1))) < 1e-12);
        assert_true(fabs(metrics.nll_reference + (double)logl(probability(reference, vocab, vocab - 1))) < 1e-12);
        assert_true(fabs(metrics.kl[0] - (double)plain_kl(reference, logits, vocab)) < 1e-12);
        if (vocab % 3 == 0) assert_true(metrics.kl[0] == 0.0 && metrics.agreements == 1); /* the same row */
        ev_metrics_free(&metrics);
    }
}

static void large_logits_do_not_overflow(void **state) {
    (void)state;
    const float high[] = {30000, 29999, -30000}, low[] = {-29999, -30000, -90000};
    double sum = ev_log_sum(high, 3);
    assert_true(fabs(sum - (30000 + log1p(exp(-1.0)))) < 1e-9);
    assert_true(fabs(ev_log_sum(low, 3) - (-29999 + log1p(exp(-1.0)))) < 1e-9);
    assert_true(fabs(ev_kl(high, sum, low, ev_log_sum(low, 3), 3)) < 1e-9);
}

static void rows_that_are_no_numbers_are_refused(void **state) {
    (void)state;
    const float good[] = {1, 2, 3}, nan_row[] = {1, NAN, 3}, first_nan[] = {NAN, 2, 3}, inf_row[] = {1, INFINITY, 3};
    const float never[] = {1, 2, -INFINITY};
    ev_metrics metrics = {0};
    bis_error error;
    assert_int_equal(ev_metrics_add(&metrics, nan_row, NULL, 3, 0, &error), BIS_ERR_FORMAT);
    assert_int_equal(ev_metrics_add(&metrics, first_nan, NULL, 3, 2, &error), BIS_ERR_FORMAT);
    assert_int_equal(ev_metrics_add(&metrics, inf_row, NULL, 3, 0, &error), BIS_ERR_FORMAT);
    assert_int_equal(ev_metrics_add(&metrics, good, nan_row, 3, 0, &error), BIS_ERR_FORMAT);
    assert_int_equal(ev_metrics_add(&metrics, never, good, 3, 0, &error), BIS_ERR_FORMAT); /* infinite distance */
    ev_metrics_free(&metrics);
    assert_int_equal(ev_metrics_add(&metrics, good, never, 3, 0, &error), BIS_OK); /* p = 0 adds nothing */
    assert_true(isfinite(metrics.kl[0]) && metrics.kl[0] > 0);
    ev_metrics_free(&metrics);
}

static void summaries_are_those_of_the_definition(void **state) {
    (void)state;
    enum { COUNT = 2500, VOCAB = 11 }; /* more than the first allocation */
    static double kl[COUNT];
    double nll = 0, nll_reference = 0, sum = 0, squares = 0;
    int same = 0;
    ev_metrics metrics = {0};
    bis_error error;
    for (int n = 0; n < COUNT; n++) {
        float reference[VOCAB], logits[VOCAB];
        int best = 0, reference_best = 0, next = n % VOCAB;
        for (int i = 0; i < VOCAB; i++) {
            reference[i] = random_float();
            logits[i] = reference[i] + random_float();
            if (logits[i] > logits[best]) best = i;
            if (reference[i] > reference[reference_best]) reference_best = i;
        }
        assert_int_equal(ev_metrics_add(&metrics, logits, reference, VOCAB, next, &error), BIS_OK);
        kl[n] = (double)plain_kl(reference, logits, VOCAB);
        sum += kl[n];
        nll -= (double)logl(probability(logits, VOCAB, next));
        nll_reference -= (double)logl(probability(reference, VOCAB, next));
        same += best == reference_best;
    }
    for (int n = 0; n < COUNT; n++) squares += (kl[n] - sum / COUNT) * (kl[n] - sum / COUNT);
    int below = 0, at_most = 0; /* the 99th percentile of 2500 lies between the values of rank 2475 and 2476 */
    ev_summary s;
    ev_metrics_summarise(&metrics, &s);
    for (int n = 0; n < COUNT; n++) {
        below += kl[n] < s.kl_p99 - 1e-12;
        at_most += kl[n] <= s.kl_p99 + 1e-12;
    }
    assert_int_equal(s.tokens, COUNT);
    assert_true(s.compared);
    assert_true(fabs(s.ppl - exp(nll / COUNT)) < 1e-9 && fabs(s.nll - nll / COUNT) < 1e-9);
    assert_true(fabs(s.ppl_reference - exp(nll_reference / COUNT)) < 1e-9);
    assert_true(fabs(s.kl - sum / COUNT) < 1e-12);
    assert_true(fabs(s.kl_stderr - sqrt(squares / (COUNT - 1)) / sqrt(COUNT)) < 1e-12);
    assert_true(fabs(s.top1 - (double)same / COUNT) < 1e-15 && same > 0 && same < COUNT);
    assert_true(below <= 2475 && at_most >= 2475);
    ev_metrics_free(&metrics);
}

static void percentiles_are_linear_between_neighbours(void **state) {
    (void)state;
    const double values[] = {1, 2, 4, 8, 16}; /* expected: numpy.percentile */
    assert_true(fabs(ev_percentile(values, 5, 0.99) - 15.68) < 1e-12);
    assert_true(fabs(ev_percentile(values, 5, 0.5) - 4) < 1e-12);
    assert_true(fabs(ev_percentile(values, 5, 0.1) - 1.4) < 1e-12);
    assert_true(ev_percentile(values, 5, 1) == 16 && ev_percentile(values, 5, 0) == 1);
    assert_true(ev_percentile(values, 1, 0.99) == 1);
    assert_true(fabs(ev_share_stderr(30, 40) - sqrt(0.75 * 0.25 / 40)) < 1e-15);
    assert_true(ev_share_stderr(0, 0) == 0);
}

static void the_first_of_equal_values_is_the_largest(void **state) {
    (void)state;
    const float tied[] = {1, 5, 5, 2};
    assert_int_equal(ev_argmax(tied, 4), 1);
    const double sums[] = {-4, -3, -3, -6};
    const int characters[] = {4, 2, 3, 12};
    int best, best_norm;
    ev_choice_best(sums, characters, 4, &best, &best_norm);
    assert_int_equal(best, 1);
    assert_int_equal(best_norm, 3); /* -0.5 a character, against -1, -1.5, -1 */
}

/* ---- Windows --------------------------------------------------------------------------------- */

typedef struct golden {
    rt_model *model;
    ev_runner *runner;
    int vocab;
    int32_t ids[GOLDEN_TOKENS];
    float *logits; /* [GOLDEN_TOKENS, vocab]: of transformers */
} golden;

static kn_backend *open_backend(int positions, int low_head_dim) {
    kn_backend *backend;
    bis_error error;
    if (kn_cpu_open(2, "auto", positions, low_head_dim, &backend, &error)) fail_msg("%s", error.text);
    return backend;
}

static golden open_golden(const char *name, kn_backend *backend) {
    golden g = {0};
    char path[256];
    bis_error error;
    rt_safetensors *file;
    snprintf(path, sizeof path, "tests/golden/models/%s", name);
    if (rt_model_open(path, &g.model, &error)) fail_msg("%s", error.text);
    if (ev_runner_open(g.model, backend, 64, &g.runner, &error)) fail_msg("%s", error.text);
    g.vocab = rt_model_get_config(g.model)->vocab;
    snprintf(path, sizeof path, "tests/golden/models/%s/expected.safetensors", name);
    if (rt_safetensors_open(path, &file, &error)) fail_msg("%s", error.text);
    const rt_stored_tensor *ids = rt_safetensors_find(file, "input_ids"), *logits = rt_safetensors_find(file, "logits");
    assert_true(ids && logits && ids->bytes == sizeof g.ids);
    memcpy(g.ids, ids->data, sizeof g.ids);
    g.logits = malloc(logits->bytes);
    assert_non_null(g.logits);
    memcpy(g.logits, logits->data, logits->bytes);
    rt_safetensors_close(file);
    return g;
}

static void close_golden(golden *g) {
    ev_runner_close(g->runner);
    rt_model_close(g->model);
    free(g->logits);
}

static ev_lane *open_lane(ev_runner *runner, ev_kv kv, const int32_t *prefix, int count) {
    ev_lane *lane;
    bis_error error;
    if (ev_lane_open(runner, kv, prefix, count, &lane, &error)) fail_msg("%s", error.text);
    return lane;
}

static ev_metrics run_windows(ev_lane *lane, ev_lane *reference, const int32_t *ids, size_t count, int window) {
    ev_column column = {.lane = lane, .reference = reference};
    bis_error error;
    if (ev_windows_run(&column, 1, ids, count, window, NULL, &error)) fail_msg("%s", error.text);
    return column.metrics;
}

/* Sum of -log p of tokens first .. last by transformers' logits. */
static double golden_nll(const golden *g, int first, int last) {
    double nll = 0;
    for (int t = first; t <= last; t++) {
        nll -= (double)logl(probability(g->logits + (size_t)(t - 1) * (size_t)g->vocab, g->vocab, g->ids[t]));
    }
    return nll;
}

static void perplexity_is_that_of_transformers(void **state) {
    (void)state;
    static const char *const names[] = {"llama2-mha", "qwen2-tied", "qwen3-head-dim-bf16"};
    kn_backend *backend = open_backend(64, 0);
    const ev_kv kv = {.bits = 32, .full_prefix = true};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        golden g = open_golden(names[i], backend);
        ev_lane *lane = open_lane(g.runner, kv, NULL, 0);
        ev_metrics whole = run_windows(lane, NULL, g.ids, GOLDEN_TOKENS, GOLDEN_TOKENS);
        assert_int_equal(whole.tokens, GOLDEN_TOKENS - 1);
        assert_true(fabs(whole.nll - golden_nll(&g, 1, GOLDEN_TOKENS - 1)) < 1e-3);
        /* a first window of 20; the second has 4 tokens, and 3 of them are scored on their own */
        ev_metrics cut = run_windows(lane, NULL, g.ids, GOLDEN_TOKENS, 20);
        ev_metrics first = run_windows(lane, NULL, g.ids, 20, 20), second = run_windows(lane, NULL, g.ids + 20, 4, 20);
        assert_int_equal(cut.tokens, 22);
        assert_true(fabs(first.nll - golden_nll(&g, 1, 19)) < 1e-3);
        assert_true(cut.nll == first.nll + second.nll || fabs(cut.nll - first.nll - second.nll) < 1e-12);
        assert_true(fabs(cut.nll - golden_nll(&g, 1, 19) - golden_nll(&g, 21, 23)) > 1e-2); /* it saw no more */
        assert_int_equal(run_windows(lane, NULL, g.ids, 21, 20).tokens, 19); /* a window of one token scores nothing */
        ev_lane_close(lane);
        close_golden(&g);
    }
    backend->ops->close(backend);
}

static void a_prompt_is_read_but_not_scored(void **state) {
    (void)state;
    enum { PROMPT = 9 };
    kn_backend *backend = open_backend(64, 0);
    const ev_kv kv = {.bits = 32, .full_prefix = true};
    golden g = open_golden("llama3-gqa-rope-f16", backend);
    ev_lane *lane = open_lane(g.runner, kv, g.ids, PROMPT);
    assert_int_equal(ev_lane_prefix_count(lane), PROMPT);
    assert_int_equal(ev_lane_room(lane), 64 - PROMPT);
    for (int repeat = 0; repeat < 2; repeat++) { /* the prompt survives the windows after it */
        ev_metrics m = run_windows(lane, NULL, g.ids + PROMPT, GOLDEN_TOKENS - PROMPT, 64 - PROMPT);
        assert_int_equal(m.tokens, GOLDEN_TOKENS - PROMPT - 1);
        assert_true(fabs(m.nll - golden_nll(&g, PROMPT + 1, GOLDEN_TOKENS - 1)) < 1e-3);
    }
    ev_lane_close(lane);
    close_golden(&g);
    backend->ops->close(backend);
}

static void distances_are_those_of_the_two_models_logits(void **state) {
    (void)state;
    kn_backend *backend = open_backend(64, 0);
    const ev_kv kv = {.bits = 32, .full_prefix = true};
    golden a = open_golden("llama-biases", backend), b = open_golden("mistral-no-prefix", backend);
    ev_lane *lane_a = open_lane(a.runner, kv, NULL, 0), *lane_b = open_lane(b.runner, kv, NULL, 0);
    /* b's logits on a's tokens come from b itself: that they are right is shown above and in test_forward */
    float *b_logits = malloc(GOLDEN_TOKENS * (size_t)b.vocab * sizeof *b_logits);
    assert_non_null(b_logits);
    memcpy(b_logits, ev_lane_run(lane_b, a.ids, 0, GOLDEN_TOKENS, 0),
           GOLDEN_TOKENS * (size_t)b.vocab * sizeof *b_logits);
    double expected = 0;
    for (int t = 0; t < GOLDEN_TOKENS - 1; t++) {
        size_t row = (size_t)t * (size_t)a.vocab;
        expected += (double)plain_kl(a.logits + row, b_logits + row, a.vocab);
    }
    ev_metrics m = run_windows(lane_b, lane_a, a.ids, GOLDEN_TOKENS, GOLDEN_TOKENS);
    ev_summary s;
    ev_metrics_summarise(&m, &s);
    assert_true(expected > 1 && fabs(s.kl * (GOLDEN_TOKENS - 1) - expected) < 1e-3);
    assert_true(fabs(log(s.ppl_reference) * (GOLDEN_TOKENS - 1) - golden_nll(&a, 1, GOLDEN_TOKENS - 1)) < 1e-3);
    ev_metrics_free(&m);

    /* columns that share a reference, and a model against itself */
    ev_lane *again = open_lane(a.runner, kv, NULL, 0);
    ev_column columns[] = {
        {.lane = lane_b, .reference = lane_a}, {.lane = again}, {.lane = lane_b, .reference = lane_a}};
    bis_error error;
    assert_int_equal(ev_windows_run(columns, 3, a.ids, GOLDEN_TOKENS, GOLDEN_TOKENS, NULL, &error), BIS_OK);
    ev_metrics_summarise(&columns[2].metrics, &s);
    assert_true(fabs(s.kl * (GOLDEN_TOKENS - 1) - expected) < 1e-3);
    assert_int_equal(columns[1].metrics.compared, 0);
    for (int i = 0; i < 3; i++) ev_metrics_free(&columns[i].metrics);
    ev_lane_close(again);
    ev_lane_close(lane_a);
    ev_lane_close(lane_b);
    close_golden(&a);
    close_golden(&b);
    free(b_logits);
    backend->ops->close(backend);
}

/* With a low-bit cache the three treatments of a prompt differ, and full precision of it is the nearest. */
static void low_bits_keep_a_full_prompt_apart(void **state) {
    (void)state;
    enum { PROMPT = 18 }; /* more than a page: two full pages, then low ones */
    rt_model_config config;
    bis_error error;
    if (rt_model_config_read("tests/golden/models/llama3-gqa-rope-f16/config.json", &config, &error)) {
        fail_msg("%s", error.text);
    }
    kn_backend *backend = open_backend(64, rt_kv_low_head_dim(&config, 2));
    golden g = open_golden("llama3-gqa-rope-f16", backend);
    ev_runner *other; /* the reference's logits must last while the model runs */
    if (ev_runner_open(g.model, backend, 64, &other, &error)) fail_msg("%s", error.text);
    const ev_kv exact = {.bits = 32, .full_prefix = true};
    ev_lane *reference = open_lane(other, exact, g.ids, PROMPT);
    double kl[2][3];
    const int bits[] = {8, 4, 2};
    for (int full = 0; full < 2; full++) {
        for (int i = 0; i < 3; i++) {
            const ev_kv kv = {.bits = bits[i], .full_prefix = full};
            ev_lane *lane = open_lane(g.runner, kv, g.ids, PROMPT);
            ev_metrics m = run_windows(lane, reference, g.ids + PROMPT, GOLDEN_TOKENS - PROMPT, 32);
            ev_summary s;
            ev_metrics_summarise(&m, &s);
            kl[full][i] = s.kl;
            ev_metrics_free(&m);
            ev_lane_close(lane);
        }
    }
    for (int i = 0; i < 3; i++) {
        print_message("%d bits: mean KL %.2e with a full prompt, %.2e with a low one\n", bits[i], kl[1][i], kl[0][i]);
        assert_true(kl[1][i] > 0 && kl[1][i] < kl[0][i]);
        if (i) assert_true(kl[1][i] > kl[1][i - 1] && kl[0][i] > kl[0][i - 1]);
    }
    ev_lane_close(reference);
    ev_runner_close(other);
    close_golden(&g);
    backend->ops->close(backend);
}

/* ---- Choices --------------------------------------------------------------------------------- */

typedef struct demo {
    rt_model *model;
    rt_tokenizer *tokenizer;
    kn_backend *backend;
    ev_runner *runner;
} demo;

static demo open_demo(int positions) {
    demo d = {0};
    bis_error error;
    if (rt_model_open("models/demo", &d.model, &error)) fail_msg("%s", error.text);
    if (rt_tokenizer_open("models/demo", &d.tokenizer, &error)) fail_msg("%s", error.text);
    d.backend = open_backend(positions, 0);
    if (ev_runner_open(d.model, d.backend, positions, &d.runner, &error)) fail_msg("%s", error.text);
    return d;
}

static void close_demo(demo *d) {
    ev_runner_close(d->runner);
    d->backend->ops->close(d->backend);
    rt_tokenizer_close(d->tokenizer);
    rt_model_close(d->model);
}

static const char HELLASWAG[] =
    "Story: Once upon a time there was a\n1\npurple.\nlittle girl named Lily.\nxq zz\nthe of\n"
    "Story: Once upon a time there was a boy. He\n0\nwas very happy.\nqqq\nzzz wvu\ntable sky\n"
    "Story: The sun is\n3\nhot and bright in the sky.\nmmm nn\nvv bb cc\ncold xx yy\n";

static void append_ids(const demo *d, const char *text, rt_tokens *out) {
    bis_error error;
    if (rt_tokenizer_encode(d->tokenizer, text, strlen(text), RT_ENCODE_ADD_SPECIAL, out, &error)) {
        fail_msg("%s", error.text);
    }
}

/* log p of the ending after the context: everything computed from the first token on, in a lane of its own. */
static double plain_likelihood(const demo *d, const char *context, const char *ending) {
    rt_tokens ids = {0}, head = {0};
    char text[512];
    snprintf(text, sizeof text, "%s %s", context, ending);
    append_ids(d, context, &head);
    append_ids(d, text, &ids);
    for (size_t i = 0; i < head.count; i++) assert_int_equal(head.ids[i], ids.ids[i]);
    ev_lane *lane = open_lane(d->runner, (ev_kv){.bits = 16}, NULL, 0);
    int vocab = ev_runner_vocab(d->runner);
    double sum = 0;
    for (int i = 0; i + 1 < (int)ids.count; i++) {
        const float *logits = ev_lane_run(lane, ids.ids + i, i, 1, 0);
        if (i + 1 >= (int)head.count) sum += (double)logl(probability(logits, vocab, ids.ids[i + 1]));
    }
    ev_lane_close(lane);
    rt_tokens_free(&ids);
    rt_tokens_free(&head);
    return sum;
}

static ev_task open_text(const char *text) {
    ev_task task;
    bis_error error;
    scratch_make();
    scratch_write_text("task.txt", text);
    if (ev_task_open(EV_HELLASWAG, scratch_path("task.txt"), &task, &error)) fail_msg("%s", error.text);
    scratch_remove();
    return task;
}

static void choices_are_scored_by_their_likelihood(void **state) {
    (void)state;
    demo d = open_demo(256);
    ev_task task = open_text(HELLASWAG);
    int right = 0, right_norm = 0;
    for (size_t q = 0; q < task.count; q++) {
        const ev_question *question = &task.questions[q];
        int best = 0, best_norm = 0;
        double sums[EV_CHOICES], norms[EV_CHOICES];
        for (int i = 0; i < EV_CHOICES; i++) {
            sums[i] = plain_likelihood(&d, question->text, question->choices[i]);
            norms[i] = sums[i] / (double)strlen(question->choices[i]);
            if (sums[i] > sums[best]) best = i;
            if (norms[i] > norms[best_norm]) best_norm = i;
        }
        right += best == question->answer;
        right_norm += best_norm == question->answer;
    }
    assert_int_equal(right_norm, 2); /* by hand: the third answer is wrong on purpose */
    ev_score group = {0};
    ev_choice_result result = {.groups = &group};
    ev_lane *lane = open_lane(d.runner, (ev_kv){.bits = 16}, NULL, 0);
    bis_error error;
    assert_int_equal(ev_choice_run(&task, d.tokenizer, lane, &result, NULL, 0, &error), BIS_OK);
    assert_int_equal(result.total.questions, 3);
    assert_int_equal(result.total.right, right);
    assert_int_equal(result.total.right_norm, right_norm);
    assert_memory_equal(&group, &result.total, sizeof group);
    assert_int_equal(result.shortened, 0);
    ev_lane_close(lane);
    ev_task_free(&task);
    close_demo(&d);
}

static void what_does_not_fit_loses_its_beginning(void **state) {
    (void)state;
    demo d = open_demo(32); /* long contexts do not fit, the endings do */
    char text[2048] = "";
    for (int i = 0; i < 60; i++) strcat(text, "Tom and Sam play. ");
    strcat(text, "Once upon a time there was a\n2\nqqq xx zz\nzzz vv kk\nlittle girl named Lily.\nwww qq yy\n");
    ev_task task = open_text(text);
    ev_score group = {0};
    ev_choice_result result = {.groups = &group};
    ev_lane *lane = open_lane(d.runner, (ev_kv){.bits = 16}, NULL, 0);
    bis_error error;
    assert_int_equal(ev_choice_run(&task, d.tokenizer, lane, &result, NULL, 0, &error), BIS_OK);
    assert_int_equal(result.shortened, 1);
    assert_int_equal(result.total.right_norm, 1); /* what is nearest to the ending was kept */
    ev_lane_close(lane);
    ev_task_free(&task);

    char long_ending[1024] = "A boy\n0\n";
    for (int i = 0; i < 50; i++) strcat(long_ending, "walks home and ");
    strcat(long_ending, "sleeps.\nb\nc\nd\n");
    task = open_text(long_ending);
    lane = open_lane(d.runner, (ev_kv){.bits = 16}, NULL, 0);
    assert_int_equal(ev_choice_run(&task, d.tokenizer, lane, &result, NULL, 0, &error), BIS_ERR_LIMIT);
    ev_lane_close(lane);
    ev_task_free(&task);
    close_demo(&d);
}

static void every_failing_allocation_is_reported(void **state) {
    (void)state;
    demo d = open_demo(128);
    ev_task task = open_text(HELLASWAG);
    bool done = false;
    for (long n = 0; n < 5000 && !done; n += n < 60 ? 1 : 17) {
        ev_lane *lane = NULL;
        ev_score group = {0};
        ev_choice_result result = {.groups = &group};
        bis_error error = {0};
        bis_alloc_fail_after(n);
        bis_status status = ev_lane_open(d.runner, (ev_kv){.bits = 16}, NULL, 0, &lane, &error);
        if (!status) status = ev_choice_run(&task, d.tokenizer, lane, &result, NULL, 0, &error);
        bis_alloc_fail_after(-1);
        ev_lane_close(lane);
        if (status && status != BIS_ERR_NOMEM) fail_msg("allocation %ld: %s", n, error.text);
        if (status) assert_true(*error.text);
        done = !status;
    }
    assert_true(done);
    ev_task_free(&task);
    close_demo(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(figures_of_a_row_are_those_of_the_definition),
        cmocka_unit_test(large_logits_do_not_overflow),
        cmocka_unit_test(rows_that_are_no_numbers_are_refused),
        cmocka_unit_test(summaries_are_those_of_the_definition),
        cmocka_unit_test(percentiles_are_linear_between_neighbours),
        cmocka_unit_test(the_first_of_equal_values_is_the_largest),
        cmocka_unit_test(perplexity_is_that_of_transformers),
        cmocka_unit_test(a_prompt_is_read_but_not_scored),
        cmocka_unit_test(distances_are_those_of_the_two_models_logits),
        cmocka_unit_test(low_bits_keep_a_full_prompt_apart),
        cmocka_unit_test(choices_are_scored_by_their_likelihood),
        cmocka_unit_test(what_does_not_fit_loses_its_beginning),
        cmocka_unit_test(every_failing_allocation_is_reported),
    };
    return cmocka_run_group_tests_name("evaluation", tests, NULL, NULL);
}
