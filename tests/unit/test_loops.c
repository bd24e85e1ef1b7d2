/* The quantizer's loops: every variant that this processor has against the plain computation in double, on lengths with
 * and without tails; element-wise ones the same bits in all variants. (Quantizers: test_simulate.c.) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "quantizer/loops.h"

enum { MOST = 80, VARIANTS = 3 };

static uint64_t random_state = 3;

static double random_number(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(random_state >> 33) / 0x1p30 - 1;
}

static void fill(float *x, double size) {
    for (int i = 0; i < MOST; i++) x[i] = (float)(size * random_number());
}

static const qz_loops *variant(int i) {
    switch (i) {
    case 0: return qz_loops_baseline();
    case 1: return qz_loops_avx2();
    default: return qz_loops_avx512();
    }
}

/* Calls check for all variants and many lengths; what lies behind the length must not be touched. */
static void each(void (*check)(const qz_loops *loops, int count)) {
    for (int v = 0; v < VARIANTS; v++) {
        if (!variant(v)) {
            print_message("not checked, this processor does not have it: %s\n", v == 1 ? "avx2" : "avx512");
            continue;
        }
        for (int count = 2; count < MOST; count += count < 40 ? 1 : 13) check(variant(v), count);
    }
}

static void assert_near(double got, double expected, double size) {
    if (!(fabs(got - expected) <= 2e-6 * (fabs(expected) + size))) fail_msg("%.9g instead of %.9g", got, expected);
}

static void check_range(const qz_loops *loops, int count) {
    float x[MOST], low, high, least = 10, most = -10;
    fill(x, 3);
    for (int i = 0; i < count; i++) {
        least = fminf(least, x[i]);
        most = fmaxf(most, x[i]);
    }
    loops->range(x, count, &low, &high);
    assert_true(low == least && high == most);
}

static void check_norm(const qz_loops *loops, int count) {
    float x[MOST], gain[MOST], g[MOST], out[MOST], dx[MOST];
    double squares = 0, dot = 0;
    fill(x, 3);
    fill(gain, 2);
    fill(g, 1);
    fill(out, 1);
    memset(dx, 0, sizeof dx);
    dx[0] = 1;
    for (int i = 0; i < count; i++) {
        squares += (double)x[i] * x[i] / count;
        dot += (double)x[i] * gain[i] * g[i];
    }
    double inverse = 1 / sqrt(squares + 0.01);
    float behind = out[count];
    assert_near(loops->norm(x, gain, 0.01f, count, out), inverse, 0);
    loops->norm_backward(x, gain, 0.01f, count, g, dx);
    for (int i = 0; i < count; i++) {
        assert_near(out[i], x[i] * inverse * gain[i], 0);
        double change = g[i] * gain[i] * inverse - x[i] * dot * inverse * inverse * inverse / count;
        assert_near(dx[i], (i == 0) + change, 3);
    }
    assert_true(out[count] == behind && dx[count] == 0);
}

static void check_softmax(const qz_loops *loops, int count) {
    float x[MOST], p[MOST], g[MOST], d[MOST];
    double sum = 0, dot = 0, expected[MOST] = {0};
    fill(x, 30);
    fill(g, 1);
    memcpy(p, x, sizeof p);
    memcpy(d, g, sizeof d);
    for (int i = 0; i < count; i++) sum += expected[i] = exp(0.3 * x[i]);
    loops->softmax(p, count, 0.3f);
    for (int i = 0; i < count; i++) {
        assert_near(p[i], expected[i] / sum, 1e-2);
        dot += expected[i] / sum * g[i];
    }
    loops->softmax_backward(p, count, 0.3f, d);
    for (int i = 0; i < count; i++) assert_near(d[i], expected[i] / sum * (g[i] - dot) * 0.3, 1);
    assert_true(p[count] == x[count] && d[count] == g[count]);
}

/* Also where all numbers of one side are far below or above those of the other: only differences count. */
static void check_divergence(const qz_loops *loops, int count) {
    float target[MOST], x[MOST], kept[MOST];
    double p[MOST] = {0}, q[MOST] = {0}, sum_p = 0, sum_q = 0, expected = 0, shift = count % 3 ? 0 : 200;
    fill(target, 12);
    fill(x, 12);
    for (int i = 0; i < count; i++) x[i] += (float)shift;
    memcpy(kept, x, sizeof kept);
    for (int i = 0; i < count; i++) sum_p += p[i] = exp(target[i]);
    for (int i = 0; i < count; i++) sum_q += q[i] = exp(x[i] - shift);
    for (int i = 0; i < count; i++) {
        p[i] /= sum_p;
        q[i] /= sum_q;
        expected += p[i] * log(p[i] / q[i]);
    }
    assert_near(loops->divergence(target, x, count, 0.25f), expected, 0.1);
    for (int i = 0; i < count; i++) assert_near(x[i], 0.25 * (q[i] - p[i]), 1e-2);
    assert_true(x[count] == kept[count]);
    memcpy(target, kept, sizeof target);
    memcpy(x, kept, sizeof x);
    assert_true(loops->divergence(target, x, count, 1) == 0);
    for (int i = 0; i < count; i++) assert_true(x[i] == 0);
}

static void check_swiglu(const qz_loops *loops, int count) {
    float gate[MOST], up[MOST], g[MOST], out[MOST], d_gate[MOST], d_up[MOST];
    fill(gate, count % 2 ? 3 : 120); /* also where the exponential is at its limits */
    fill(up, 2);
    fill(g, 1);
    fill(out, 1);
    memcpy(d_gate, out, sizeof out);
    memcpy(d_up, out, sizeof out);
    loops->swiglu(gate, up, count, out);
    loops->swiglu_backward(gate, up, count, g, d_gate, d_up);
    for (int i = 0; i < count; i++) {
        double z = gate[i], share = 1 / (1 + exp(-z));
        assert_near(out[i], z * share * up[i], 1e-20);
        assert_near(d_up[i], g[i] * z * share, 1e-20);
        assert_near(d_gate[i], g[i] * up[i] * (share + z * share * (1 - share)), 0.1);
    }
    assert_true(d_gate[count] == out[count] && d_up[count] == out[count]);
}

static void check_sums(const qz_loops *loops, int count) {
    float x[MOST], y[MOST], start[MOST], a[MOST], b[MOST], c[MOST], d[MOST];
    double error = 0;
    fill(x, 3);
    fill(y, 3);
    fill(start, 1);
    memcpy(a, start, sizeof a);
    memcpy(b, start, sizeof a);
    memcpy(c, start, sizeof a);
    memcpy(d, start, sizeof a);
    loops->add(a, x, count);
    loops->multiply(x, y, count, b);
    loops->add_products(x, y, 0.5f, count, c);
    double got = loops->squared_error(x, y, count, d);
    for (int i = 0; i < count; i++) {
        assert_true(a[i] == start[i] + x[i] && b[i] == x[i] * y[i] && d[i] == x[i] - y[i]);
        assert_near(c[i], start[i] + 0.5 * x[i] * y[i], 10);
        error += (double)(x[i] - y[i]) * (x[i] - y[i]);
    }
    assert_near(got, error, 0);
    assert_true(fabs(loops->squared_error(x, y, count, NULL) - got) < 1e-9);
    const float *const touched[] = {a, b, c, d};
    for (int i = 0; i < 4; i++) assert_true(touched[i][count] == start[count]);
}

static void check_rotate(const qz_loops *loops, int count) {
    float x[MOST], table[MOST] = {0}, out[MOST];
    int half = count / 2;
    fill(x, 3);
    for (int i = 0; i < half; i++) {
        table[i] = (float)cos(i);
        table[half + i] = (float)sin(i);
    }
    memcpy(out, x, sizeof x);
    loops->rotate(table, half, 1, out);
    for (int i = 0; i < half; i++) {
        assert_near(out[i], x[i] * cos(i) - x[half + i] * sin(i), 3);
        assert_near(out[half + i], x[half + i] * cos(i) + x[i] * sin(i), 3);
    }
    loops->rotate(table, half, -1, out);
    for (int i = 0; i < MOST; i++) assert_near(out[i], x[i], 3);
}

/* Three steps by the published formulas, without weight decay. */
static void check_adam(const qz_loops *loops, int count) {
    float g[MOST], first[MOST] = {0}, second[MOST] = {0}, p[MOST], start[MOST];
    double m[MOST] = {0}, v[MOST] = {0}, expected[MOST];
    fill(p, 1);
    memcpy(start, p, sizeof p);
    for (int i = 0; i < MOST; i++) expected[i] = p[i];
    for (int step = 1; step <= 3; step++) {
        fill(g, 2);
        qz_adam adam = {.gradient_factor = 0.5f, .first_decay = 0.9f, .second_decay = 0.999f, .epsilon = 1e-8f};
        adam.rate = (float)(0.01 / (1 - pow(0.9, step)));
        adam.second_correction = (float)(1 / (1 - pow(0.999, step)));
        loops->adam(&adam, count, g, first, second, p);
        for (int i = 0; i < count; i++) {
            m[i] = 0.9 * m[i] + 0.1 * 0.5 * g[i];
            v[i] = 0.999 * v[i] + 0.001 * 0.25 * g[i] * g[i];
            expected[i] -= 0.01 * m[i] / (1 - pow(0.9, step)) / (sqrt(v[i] / (1 - pow(0.999, step))) + 1e-8);
        }
    }
    for (int i = 0; i < count; i++) {
        if (fabs(p[i] - expected[i]) > 1e-5) fail_msg("%g instead of %g", (double)p[i], expected[i]);
    }
    assert_true(p[count] == start[count]);
}

/* Straight through: what is not clamped passes, and the two sums are those that loops.h tells. */
static void check_quantize_backward(const qz_loops *loops, int count) {
    float x[MOST], g[MOST], d[MOST], scale_sum, clipped_sum;
    fill(x, 3);
    fill(g, 1);
    for (int soft = 0; soft < 2; soft++) {
        qz_step step = {0.5f, 0.25f, -4, 3, soft};
        double scales = 0, clipped = 0;
        memcpy(d, g, sizeof d);
        loops->quantize_backward(&step, x, count, d, &scale_sum, &clipped_sum);
        for (int i = 0; i < count; i++) {
            double code = ((double)x[i] - 0.25) / 0.5, chosen = soft ? code : rint(code);
            double kept = fmin(fmax(chosen, -4), 3);
            bool inside = kept == chosen;
            assert_true(d[i] == (inside ? g[i] : 0));
            scales += g[i] * (inside ? kept - code : kept);
            clipped += inside ? 0 : g[i];
        }
        assert_near(scale_sum, scales, 20);
        assert_near(clipped_sum, clipped, 5);
        assert_true(d[count] == g[count]);
    }
}

static void test_range(void **state) { (void)state, each(check_range); }
static void test_norm(void **state) { (void)state, each(check_norm); }
static void test_softmax(void **state) { (void)state, each(check_softmax); }
static void test_divergence(void **state) { (void)state, each(check_divergence); }
static void test_swiglu(void **state) { (void)state, each(check_swiglu); }
static void test_sums(void **state) { (void)state, each(check_sums); }
static void test_rotate(void **state) { (void)state, each(check_rotate); }
static void test_adam(void **state) { (void)state, each(check_adam); }
static void test_quantize_backward(void **state) { (void)state, each(check_quantize_backward); }

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_range),      cmocka_unit_test(test_norm),   cmocka_unit_test(test_softmax),
        cmocka_unit_test(test_divergence), cmocka_unit_test(test_swiglu), cmocka_unit_test(test_sums),
        cmocka_unit_test(test_rotate),     cmocka_unit_test(test_adam),   cmocka_unit_test(test_quantize_backward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
