/* The sampler against naive computations: truncation sets, frequencies, penalties, log-probabilities. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "runtime/sampler.h"

enum { VOCAB = 40, DRAWS = 40000 };

static rt_sampling plain(void) {
    return (rt_sampling){.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 5};
}

static rt_sampler *open_sampler(void) {
    rt_sampler *sampler;
    bis_error error;
    assert_int_equal(rt_sampler_open(VOCAB, &sampler, &error), BIS_OK);
    return sampler;
}

static void make_logits(float *logits, unsigned seed) {
    for (int i = 0; i < VOCAB; i++) {
        seed = seed * 1664525u + 1013904223u;
        logits[i] = (float)(seed >> 8) / (float)(1 << 24) * 8 - 4;
    }
}

static const float *sort_logits;

static int by_logit(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    if (sort_logits[x] != sort_logits[y]) return sort_logits[x] > sort_logits[y] ? -1 : 1;
    return x - y;
}

/* The distribution that the settings describe, written the plain way: sort, cut, normalise. */
static void expected_distribution(const rt_sampling *s, const float *logits, double *p) {
    int order[VOCAB];
    for (int i = 0; i < VOCAB; i++) order[i] = i;
    sort_logits = logits;
    qsort(order, VOCAB, sizeof *order, by_logit);
    double weight[VOCAB], total = 0;
    for (int i = 0; i < VOCAB; i++) weight[i] = exp((logits[order[i]] - (double)logits[order[0]]) / s->temperature);
    int kept = VOCAB;
    while (kept > 1 && s->min_p > 0 && weight[kept - 1] < (double)s->min_p) kept--;
    if (s->top_k > 0 && s->top_k < kept) kept = s->top_k;
    for (int i = 0; i < kept; i++) total += weight[i];
    double sum = 0;
    int nucleus = 0;
    while (nucleus < kept && (nucleus == 0 || sum < (double)s->top_p * total)) sum += weight[nucleus++];
    memset(p, 0, VOCAB * sizeof *p);
    for (int i = 0; i < nucleus; i++) p[order[i]] = weight[i] / sum;
}

static void check_frequencies(const rt_sampling *s, const float *logits) {
    rt_sampler *sampler = open_sampler();
    double expected[VOCAB], chi2 = 0;
    int counts[VOCAB] = {0}, cells = 0;
    expected_distribution(s, logits, expected);
    for (uint64_t i = 0; i < DRAWS; i++) counts[rt_sampler_pick(sampler, s, NULL, logits, i)]++;
    for (int i = 0; i < VOCAB; i++) {
        if (expected[i] == 0) {
            assert_int_equal(counts[i], 0);
            continue;
        }
        double want = expected[i] * DRAWS, difference = counts[i] - want;
        if (want < 5) continue;
        chi2 += difference * difference / want;
        cells++;
    }
    /* mean cells - 1, deviation sqrt(2 (cells - 1)): five deviations, and the draws are fixed by the seed */
    assert_true(chi2 < cells - 1 + 5 * sqrt(2.0 * cells) + 3);
    rt_sampler_close(sampler);
}

static void test_frequencies_match_the_settings(void **state) {
    (void)state;
    float logits[VOCAB];
    for (unsigned seed = 1; seed <= 3; seed++) {
        make_logits(logits, seed);
        rt_sampling s = plain();
        check_frequencies(&s, logits);
        s.temperature = 0.6f;
        check_frequencies(&s, logits);
        s.top_k = 7;
        check_frequencies(&s, logits);
        s.top_p = 0.8f;
        check_frequencies(&s, logits);
        s.top_k = 0;
        check_frequencies(&s, logits);
        s.min_p = 0.2f;
        check_frequencies(&s, logits);
        s.top_p = 1;
        s.temperature = 1.7f;
        check_frequencies(&s, logits);
        s.top_k = VOCAB + 5;
        check_frequencies(&s, logits);
    }
}

static void test_greedy_takes_the_lowest_id_of_a_tie(void **state) {
    (void)state;
    rt_sampler *sampler = open_sampler();
    float logits[VOCAB] = {0};
    logits[9] = logits[30] = 3;
    rt_sampling s = plain();
    s.temperature = 0;
    assert_int_equal(rt_sampler_pick(sampler, &s, NULL, logits, 0), 9);
    s.temperature = 1;
    s.top_k = 1;
    assert_int_equal(rt_sampler_pick(sampler, &s, NULL, logits, 3), 9);
    logits[9] = NAN;
    assert_int_equal(rt_sampler_pick(sampler, &s, NULL, logits, 3), 30);
    rt_sampler_close(sampler);
}

static void test_tiny_top_p_is_greedy(void **state) {
    (void)state;
    rt_sampler *sampler = open_sampler();
    float logits[VOCAB];
    rt_sampling s = plain();
    s.top_p = 1e-6f;
    for (unsigned seed = 1; seed < 50; seed++) {
        make_logits(logits, seed);
        rt_sampling greedy = plain();
        greedy.temperature = 0;
        int32_t best = rt_sampler_pick(sampler, &greedy, NULL, logits, 0);
        assert_int_equal(rt_sampler_pick(sampler, &s, NULL, logits, seed), best);
    }
    rt_sampler_close(sampler);
}

static void test_seed_and_index_decide(void **state) {
    (void)state;
    rt_sampler *sampler = open_sampler(), *other = open_sampler();
    float logits[VOCAB], different[VOCAB];
    make_logits(logits, 4);
    make_logits(different, 8);
    rt_sampling s = plain();
    int same_with_other_seed = 0;
    for (uint64_t i = 0; i < 200; i++) {
        int32_t first = rt_sampler_pick(sampler, &s, NULL, logits, i);
        rt_sampler_pick(other, &s, NULL, different, i + 7); /* another request in between changes nothing */
        assert_int_equal(rt_sampler_pick(other, &s, NULL, logits, i), first);
        rt_sampling reseeded = s;
        reseeded.seed++;
        same_with_other_seed += rt_sampler_pick(sampler, &reseeded, NULL, logits, i) == first;
    }
    assert_in_range(same_with_other_seed, 0, 100);
    rt_sampler_close(sampler);
    rt_sampler_close(other);
}

static void test_bias_and_penalties(void **state) {
    (void)state;
    rt_sampler *sampler = open_sampler();
    float logits[VOCAB] = {0};
    uint32_t counts[VOCAB] = {0};
    logits[3] = 2;
    logits[4] = 1.5f;
    rt_sampling s = plain();
    s.temperature = 0;
    rt_logit_bias bias[] = {{11, 100}, {3, -100}};
    s.logit_bias = bias;
    s.logit_bias_count = 1;
    assert_int_equal(rt_sampler_pick(sampler, &s, NULL, logits, 0), 11);
    s.logit_bias = bias + 1;
    assert_int_equal(rt_sampler_pick(sampler, &s, NULL, logits, 0), 4);
    s.logit_bias_count = 0;

    counts[3] = RT_COUNT_IN_PROMPT; /* frequency and presence do not count the prompt */
    s.frequency_penalty = 2;
    s.presence_penalty = 2;
    assert_int_equal(rt_sampler_pick(sampler, &s, counts, logits, 0), 3);
    counts[3] |= 1;
    assert_int_equal(rt_sampler_pick(sampler, &s, counts, logits, 0), 4);
    s.frequency_penalty = 0.3f;
    s.presence_penalty = 0;
    assert_int_equal(rt_sampler_pick(sampler, &s, counts, logits, 0), 3);
    counts[3]++;
    assert_int_equal(rt_sampler_pick(sampler, &s, counts, logits, 0), 4);
    s.frequency_penalty = 0;

    counts[3] = RT_COUNT_IN_PROMPT; /* repetition counts the prompt, and shrinks positive logits by division */
    s.repetition_penalty = 1.3f;
    assert_int_equal(rt_sampler_pick(sampler, &s, counts, logits, 0), 3);
    s.repetition_penalty = 1.4f;
    assert_int_equal(rt_sampler_pick(sampler, &s, counts, logits, 0), 4);
    rt_sampler_close(sampler);
}

static void test_logprobs(void **state) {
    (void)state;
    float logits[VOCAB];
    make_logits(logits, 9);
    logits[17] = logits[23];
    double sum = 0;
    for (int i = 0; i < VOCAB; i++) sum += exp(logits[i]);
    float log_sum = rt_logits_log_sum(logits, VOCAB);
    assert_float_equal(log_sum, log(sum), 1e-5);
    int order[VOCAB];
    for (int i = 0; i < VOCAB; i++) order[i] = i;
    sort_logits = logits;
    qsort(order, VOCAB, sizeof *order, by_logit);
    for (int count = 0; count <= RT_LOGPROBS_MAX; count++) {
        rt_logprob top[RT_LOGPROBS_MAX + 1] = {0};
        top[count].token = -7;
        rt_logits_top(logits, VOCAB, log_sum, count, top);
        for (int i = 0; i < count; i++) {
            assert_int_equal(top[i].token, order[i]);
            assert_float_equal(top[i].logprob, logits[order[i]] - log(sum), 1e-5);
        }
        assert_int_equal(top[count].token, -7);
    }
}

static void test_infinite_and_nan_logits(void **state) {
    (void)state;
    rt_sampler *sampler = open_sampler();
    float logits[VOCAB];
    rt_sampling s = plain();
    for (int i = 0; i < VOCAB; i++) logits[i] = -INFINITY;
    logits[12] = 0;
    for (uint64_t i = 0; i < 100; i++) assert_int_equal(rt_sampler_pick(sampler, &s, NULL, logits, i), 12);
    s.top_p = 0.9f;
    assert_int_equal(rt_sampler_pick(sampler, &s, NULL, logits, 0), 12);
    for (int i = 0; i < VOCAB; i++) logits[i] = NAN;
    assert_int_equal(rt_sampler_pick(sampler, &s, NULL, logits, 0), 0);
    rt_sampler_close(sampler);
}

static void test_out_of_memory(void **state) {
    (void)state;
    for (long n = 0;; n++) {
        rt_sampler *sampler = NULL;
        bis_error error;
        bis_alloc_fail_after(n);
        bis_status status = rt_sampler_open(VOCAB, &sampler, &error);
        bis_alloc_fail_after(-1);
        if (status == BIS_OK) {
            rt_sampler_close(sampler);
            assert_true(n >= 3);
            return;
        }
        assert_int_equal(status, BIS_ERR_NOMEM);
        assert_null(sampler);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frequencies_match_the_settings),
        cmocka_unit_test(test_greedy_takes_the_lowest_id_of_a_tie),
        cmocka_unit_test(test_tiny_top_p_is_greedy),
        cmocka_unit_test(test_seed_and_index_decide),
        cmocka_unit_test(test_bias_and_penalties),
        cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_infinite_and_nan_logits),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
