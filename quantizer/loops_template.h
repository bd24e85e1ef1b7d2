/* The loops of loops.h, compiled once for each instruction set by loops*.c, which define LOOPS_NAME.
 *
 * Plain C that compilers vectorize: `omp simd` (-fopenmp-simd, no run-time library) allows sums to be reordered, loop
 * by loop; no option that changes values is used elsewhere. The exponential is a polynomial, because a call of libm
 * for each element would cost as much as the matrix products of a small block.
 */
#include <math.h>
#include <string.h>

#include "quantizer/loops.h"

#ifdef QZ_DOUBLE
#define LOOPS_ROUNDER 0x1.8p52 /* adding and subtracting it rounds to an integer, half to even */
#define LOOPS_SQRT sqrt
#else
#include "kernels/cpu/exp_constants.h"
#define LOOPS_ROUNDER 0x1.8p23f
#define LOOPS_SQRT sqrtf
#endif

static inline qz_real rounded(qz_real x) { return (x + LOOPS_ROUNDER) - LOOPS_ROUNDER; }

static inline qz_real clamped(qz_real x, qz_real least, qz_real most) {
    x = x < least ? least : x;
    return x > most ? most : x;
}

#ifdef QZ_DOUBLE
static inline qz_real exponential(qz_real x) { return exp(x); }
#else
/* 2^n times a polynomial of the rest, as in kernels/cpu; relative error below 3e-7. */
static inline float exponential(float x) {
    float bounded = x > EXP_LOWEST ? x : EXP_LOWEST; /* also where x is not a number, which comes back at the end */
    bounded = bounded < EXP_HIGHEST ? bounded : EXP_HIGHEST;
    float n = rounded(bounded * EXP_LOG2_E);
    float r = bounded - n * EXP_LN2_HIGH;
    r = r - n * EXP_LN2_LOW;
    float p = EXP_C7;
    p = p * r + EXP_C6;
    p = p * r + EXP_C5;
    p = p * r + EXP_C4;
    p = p * r + EXP_C3;
    p = p * r + EXP_C2;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return x == x ? p * power : x;
}
#endif

static void find_range(const qz_real *x, int count, qz_real *low, qz_real *high) {
    qz_real least = x[0], most = x[0];
#pragma omp simd reduction(min : least) reduction(max : most)
    for (int i = 0; i < count; i++) {
        least = x[i] < least ? x[i] : least;
        most = x[i] > most ? x[i] : most;
    }
    *low = least;
    *high = most;
}

static void quantize(const qz_step *step, const qz_real *x, int count, qz_real *out) {
    qz_real scale = step->scale, offset = step->offset, least = step->least, most = step->most;
    if (step->soft) {
#pragma omp simd
        for (int i = 0; i < count; i++) out[i] = clamped((x[i] - offset) / scale, least, most) * scale + offset;
        return;
    }
    /* clamped first: the rounder is exact for small numbers only, and the limits are integers */
#pragma omp simd
    for (int i = 0; i < count; i++) out[i] = rounded(clamped((x[i] - offset) / scale, least, most)) * scale + offset;
}

/* A number is clamped when its rounded code is outside [least, most]; soft: when its code is. */
static inline __attribute__((always_inline)) void backward_pass(const qz_step *step, bool soft, const qz_real *x,
                                                                int count, qz_real *gradient, qz_real *scale_sum,
                                                                qz_real *clipped_sum) {
    qz_real scale = step->scale, offset = step->offset, least = step->least, most = step->most;
    qz_real scales = 0, clipped = 0;
    qz_real lowest = least - 1, highest = most + 1; /* far enough outside, near enough to be rounded */
#pragma omp simd reduction(+ : scales, clipped)
    for (int i = 0; i < count; i++) {
        qz_real code = clamped((x[i] - offset) / scale, lowest, highest), g = gradient[i];
        qz_real chosen = soft ? code : rounded(code);
        qz_real kept = clamped(chosen, least, most);
        qz_real inside = kept == chosen ? g : 0;
        scales += g * kept - inside * code;
        clipped += g - inside;
        gradient[i] = inside;
    }
    *scale_sum = scales;
    *clipped_sum = clipped;
}

static void quantize_backward(const qz_step *step, const qz_real *x, int count, qz_real *gradient, qz_real *scale_sum,
                              qz_real *clipped_sum) {
    if (step->soft) backward_pass(step, true, x, count, gradient, scale_sum, clipped_sum);
    else backward_pass(step, false, x, count, gradient, scale_sum, clipped_sum);
}

static inline qz_real inverse_root(const qz_real *x, qz_real eps, int count) {
    qz_real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < count; i++) sum += x[i] * x[i];
    return 1 / LOOPS_SQRT(sum / (qz_real)count + eps);
}

static qz_real norm(const qz_real *x, const qz_real *gain, qz_real eps, int count, qz_real *out) {
    qz_real inverse = inverse_root(x, eps, count);
#pragma omp simd
    for (int i = 0; i < count; i++) out[i] = x[i] * inverse * gain[i];
    return inverse;
}

static void norm_backward(const qz_real *x, const qz_real *gain, qz_real eps, int count, const qz_real *gradient,
                          qz_real *dx) {
    qz_real inverse = inverse_root(x, eps, count), dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int i = 0; i < count; i++) dot += gradient[i] * gain[i] * x[i];
    qz_real back = dot * inverse * inverse * inverse / (qz_real)count;
#pragma omp simd
    for (int i = 0; i < count; i++) dx[i] += gradient[i] * gain[i] * inverse - x[i] * back;
}

static void rotate(const qz_real *table, int half, qz_real direction, qz_real *x) {
#pragma omp simd
    for (int i = 0; i < half; i++) {
        qz_real a = x[i], b = x[half + i], cosine = table[i], sine = direction * table[half + i];
        x[i] = a * cosine - b * sine;
        x[half + i] = b * cosine + a * sine;
    }
}

static void softmax(qz_real *x, int count, qz_real factor) {
    qz_real most = x[0], sum = 0;
#pragma omp simd reduction(max : most)
    for (int i = 0; i < count; i++) most = x[i] > most ? x[i] : most;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < count; i++) {
        qz_real e = exponential((x[i] - most) * factor);
        x[i] = e;
        sum += e;
    }
    qz_real share = 1 / sum;
#pragma omp simd
    for (int i = 0; i < count; i++) x[i] *= share;
}

static void softmax_backward(const qz_real *p, int count, qz_real factor, qz_real *gradient) {
    qz_real dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int i = 0; i < count; i++) dot += p[i] * gradient[i];
#pragma omp simd
    for (int i = 0; i < count; i++) gradient[i] = p[i] * (gradient[i] - dot) * factor;
}

static qz_real greatest(const qz_real *x, int count) {
    qz_real most = x[0];
#pragma omp simd reduction(max : most)
    for (int i = 0; i < count; i++) most = x[i] > most ? x[i] : most;
    return most;
}

/* Sums in double: the divergence is a small difference of large ones. */
static double divergence(qz_real *target, qz_real *x, int count, qz_real factor) {
    qz_real most_target = greatest(target, count), most = greatest(x, count);
    double sum_target = 0, sum = 0, apart = 0;
#pragma omp simd reduction(+ : sum_target, sum, apart)
    for (int i = 0; i < count; i++) {
        qz_real t = target[i] - most_target, y = x[i] - most;
        qz_real p = exponential(t), q = exponential(y);
        target[i] = p;
        x[i] = q;
        sum_target += (double)p;
        sum += (double)q;
        apart += (double)p * ((double)t - (double)y);
    }
    qz_real share_target = (qz_real)(1 / sum_target) * factor, share = (qz_real)(1 / sum) * factor;
#pragma omp simd
    for (int i = 0; i < count; i++) x[i] = x[i] * share - target[i] * share_target;
    return apart / sum_target + log(sum / sum_target);
}

static void swiglu(const qz_real *gate, const qz_real *up, int count, qz_real *out) {
#pragma omp simd
    for (int i = 0; i < count; i++) out[i] = gate[i] / (1 + exponential(-gate[i])) * up[i];
}

static void swiglu_backward(const qz_real *gate, const qz_real *up, int count, const qz_real *gradient, qz_real *d_gate,
                            qz_real *d_up) {
#pragma omp simd
    for (int i = 0; i < count; i++) {
        qz_real z = gate[i], g = gradient[i], share = 1 / (1 + exponential(-z));
        d_up[i] = g * z * share;
        d_gate[i] = g * up[i] * share * (1 + z * (1 - share));
    }
}

static void add(qz_real *x, const qz_real *y, int count) {
#pragma omp simd
    for (int i = 0; i < count; i++) x[i] += y[i];
}

static void multiply(const qz_real *x, const qz_real *y, int count, qz_real *out) {
#pragma omp simd
    for (int i = 0; i < count; i++) out[i] = x[i] * y[i];
}

static void add_products(const qz_real *x, const qz_real *y, qz_real factor, int count, qz_real *out) {
#pragma omp simd
    for (int i = 0; i < count; i++) out[i] += factor * x[i] * y[i];
}

static double squared_error(const qz_real *x, const qz_real *y, int count, qz_real *difference) {
    double sum = 0;
    if (!difference) {
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < count; i++) {
            qz_real d = x[i] - y[i];
            sum += (double)d * (double)d;
        }
        return sum;
    }
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < count; i++) {
        qz_real d = x[i] - y[i];
        difference[i] = d;
        sum += (double)d * (double)d;
    }
    return sum;
}

static void adam(const qz_adam *a, int count, const qz_real *gradient, qz_real *first, qz_real *second,
                 qz_real *parameter) {
    qz_real keep1 = a->first_decay, keep2 = a->second_decay, factor = a->gradient_factor;
    qz_real rate = a->rate, correction = a->second_correction, epsilon = a->epsilon;
#pragma omp simd
    for (int i = 0; i < count; i++) {
        qz_real g = gradient[i] * factor;
        first[i] = keep1 * first[i] + (1 - keep1) * g;
        second[i] = keep2 * second[i] + (1 - keep2) * g * g;
        parameter[i] -= rate * first[i] / (LOOPS_SQRT(second[i] * correction) + epsilon);
    }
}

static const qz_loops loops = {
    .name = LOOPS_NAME,
    .range = find_range,
    .quantize = quantize,
    .quantize_backward = quantize_backward,
    .norm = norm,
    .norm_backward = norm_backward,
    .rotate = rotate,
    .softmax = softmax,
    .softmax_backward = softmax_backward,
    .divergence = divergence,
    .swiglu = swiglu,
    .swiglu_backward = swiglu_backward,
    .add = add,
    .multiply = multiply,
    .add_products = add_products,
    .squared_error = squared_error,
    .adam = adam,
};
