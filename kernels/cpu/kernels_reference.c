/* The scalar reference: what every other variant is tested against, bit for bit.
 *
 * exp(x), after clamping x to [-87, 88]: n = round(x * log2 e), r = x - n * ln 2 (in two parts), the Taylor
 * polynomial of degree 7 in r (|r| <= 0.347: truncation below 6e-9), times 2^n. Within 2 units in the last place.
 */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/exp_constants.h"

enum { LANES = KN_LANES };

static float load_element(kn_type type, const void *base, size_t index) {
    kn_tensor tensor = {.data = base, .type = type};
    return kn_tensor_get(&tensor, index);
}

static float dot(kn_type type, const void *w, size_t offset, const float *x, int count) {
    float lanes[LANES] = {0};
    for (int k = 0; k < count; k++) {
        lanes[k % LANES] = fmaf(load_element(type, w, offset + (size_t)k), x[k], lanes[k % LANES]);
    }
    return kn_tree_sum(lanes);
}

static void matmul(kn_type type, const kn_matmul_slice *s) {
    for (int r = 0; r < s->rows; r++) {
        for (int n = s->first; n < s->last; n++) {
            float sum = dot(type, s->w, (size_t)n * (size_t)s->cols, s->x + (size_t)r * (size_t)s->cols, s->cols);
            s->y[(size_t)r * s->y_stride + (size_t)n] = s->bias ? sum + s->bias[n] : sum;
        }
    }
}

static void matmul_f32(const kn_matmul_slice *s) { matmul(KN_F32, s); }
static void matmul_f16(const kn_matmul_slice *s) { matmul(KN_F16, s); }
static void matmul_bf16(const kn_matmul_slice *s) { matmul(KN_BF16, s); }

static float exponential(float x) {
    x = fminf(fmaxf(x, EXP_LOWEST), EXP_HIGHEST);
    float n = rintf(x * EXP_LOG2_E);
    float r = fmaf(n, -EXP_LN2_HIGH, x);
    r = fmaf(n, -EXP_LN2_LOW, r);
    float p = EXP_C7;
    p = fmaf(p, r, EXP_C6);
    p = fmaf(p, r, EXP_C5);
    p = fmaf(p, r, EXP_C4);
    p = fmaf(p, r, EXP_C3);
    p = fmaf(p, r, EXP_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    uint32_t bits;
    memcpy(&bits, &p, sizeof bits);
    bits += (uint32_t)(int32_t)n << 23;
    memcpy(&p, &bits, sizeof p);
    return p;
}

/* Byte address of token t's K. */
static const char *token_at(const kn_attention_head *h, size_t element_bytes, int t) {
    return h->cache + (size_t)h->pages[t / KN_PAGE_TOKENS] * h->page_stride +
           (size_t)(t % KN_PAGE_TOKENS) * (size_t)h->head_dim * element_bytes;
}

static void attention(kn_type type, const kn_attention_head *h) {
    size_t bytes = kn_type_bytes(type);
    float largest = -INFINITY;
    for (int t = 0; t < h->count; t++) {
        h->scores[t] = dot(type, token_at(h, bytes, t), 0, h->q, h->head_dim) * h->scale;
        largest = fmaxf(largest, h->scores[t]);
    }
    float lanes[LANES] = {0};
    for (int t = 0; t < h->count; t++) {
        h->scores[t] = exponential(h->scores[t] - largest);
        lanes[t % LANES] += h->scores[t];
    }
    float total = kn_tree_sum(lanes);
    for (int d = 0; d < h->head_dim; d++) {
        float sum = 0;
        for (int t = 0; t < h->count; t++) {
            float value = load_element(type, token_at(h, bytes, t) + h->value_offset, (size_t)d);
            sum = fmaf(h->scores[t], value, sum);
        }
        h->out[d] = sum / total;
    }
}

static void attention_f32(const kn_attention_head *h) { attention(KN_F32, h); }
static void attention_f16(const kn_attention_head *h) { attention(KN_F16, h); }

static void rmsnorm(const float *x, const float *weight, float eps, int width, float *out) {
    float scale = 1.0f / sqrtf(dot(KN_F32, x, 0, x, width) / (float)width + eps);
    for (int i = 0; i < width; i++) out[i] = x[i] * scale * weight[i];
}

static void rope(float *head, const float *cosines, const float *sines, int half) {
    for (int i = 0; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = fmaf(-b, sines[i], a * cosines[i]);
        head[i + half] = fmaf(a, sines[i], b * cosines[i]);
    }
}

static void swiglu(const float *gate, const float *up, int width, float *out) {
    for (int i = 0; i < width; i++) out[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

static void add(float *x, const float *y, int width) {
    for (int i = 0; i < width; i++) x[i] += y[i];
}

static void f32_to_f32(const void *in, int count, float *out) { memcpy(out, in, (size_t)count * sizeof *out); }

static void f16_to_f32(const void *in, int count, float *out) {
    for (int i = 0; i < count; i++) out[i] = load_element(KN_F16, in, (size_t)i);
}

static void bf16_to_f32(const void *in, int count, float *out) {
    for (int i = 0; i < count; i++) out[i] = load_element(KN_BF16, in, (size_t)i);
}

static void to_f16(const float *in, int count, void *out) {
    uint16_t *halves = out;
    for (int i = 0; i < count; i++) halves[i] = kn_f32_to_f16(in[i]);
}

static void dot_part(const kn_part *part, const float *w, const float *x, float (*lanes)[KN_LANES]) {
    for (int r = 0; r < part->rows; r++, x += part->x_stride) {
        for (int k = 0; k < part->count; k++) lanes[r][k % LANES] = fmaf(w[k], x[k], lanes[r][k % LANES]);
    }
}

static void dot_codes(const kn_part *part, const int16_t *w, const int8_t *x, int32_t *sums) {
    for (int r = 0; r < part->rows; r++, x += part->x_stride) {
        for (int k = 0; k < part->count; k++) sums[r] += w[k] * x[k];
    }
}

static void add_scaled(const int32_t *sums, const float *x_scales, size_t stride, float w_scale, int rows, float *out) {
    for (int r = 0; r < rows; r++) out[r] = fmaf((float)sums[r], x_scales[(size_t)r * stride] * w_scale, out[r]);
}

const kn_cpu_kernels *kn_cpu_kernels_reference(void) {
    static const kn_cpu_kernels kernels = {
        .name = "reference",
        .matmul = {matmul_f32, matmul_f16, matmul_bf16},
        .attention = {attention_f32, attention_f16, NULL},
        .rmsnorm = rmsnorm,
        .rope = rope,
        .swiglu = swiglu,
        .add = add,
        .to_f32 = {f32_to_f32, f16_to_f32, bf16_to_f32},
        .to_f16 = to_f16,
        .dot_part = dot_part,
        .dot_codes = dot_codes,
        .add_scaled = add_scaled,
    };
    return &kernels;
}
