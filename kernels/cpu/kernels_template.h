/* The vector kernels, written once over a type of sixteen floats (v16, from vec16_*.h) and compiled per
 * instruction set by kernels_avx2.c and kernels_avx512.c, which define KERNELS_NAME and KERNELS_GET.
 *
 * Maths and order of every sum: cpu_kernels.h. Reference: kernels_reference.c, equal bit for bit.
 * Matrix product: a register tile of TILE_ROWS rows of x by TILE_COLS rows of w, each with its own vector of
 * partial sums, so a tile's shape never changes a result; w is widened to F32 in registers. Rows of x are
 * taken in blocks that stay in the second-level cache while all of w's slice passes.
 * Bound: decode reads w once from memory; prefill is limited by the two FMA ports.
 */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/exp_constants.h"

enum { LANES = KN_LANES, ROW_BLOCK = 64 };

static inline v16 load(kn_type type, const char *p) {
    if (type == KN_F32) return v16_load((const float *)(const void *)p);
    return type == KN_F16 ? v16_load_f16(p) : v16_load_bf16(p);
}

static inline v16 load_part(kn_type type, const char *p, int count) {
    if (type == KN_F32) return v16_load_part((const float *)(const void *)p, count);
    return type == KN_F16 ? v16_load_f16_part(p, count) : v16_load_bf16_part(p, count);
}

/* rows x columns results at (row, n); rows and columns are constants where this is inlined. */
static inline __attribute__((always_inline)) void tile(const kn_matmul_slice *s, kn_type type, int row, int n, int rows,
                                                       int columns) {
    size_t bytes = type == KN_F32 ? 4 : 2, cols = (size_t)s->cols;
    v16 sums[V16_TILE_ROWS][V16_ROW_COLS];
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < columns; j++) sums[i][j] = v16_zero();
    }
    const float *x = s->x + (size_t)row * cols;
    const char *w = (const char *)s->w + (size_t)n * cols * bytes;
    int whole = s->cols / LANES * LANES, rest = s->cols - whole;
    for (size_t k = 0; k < (size_t)whole; k += LANES) {
        v16 xs[V16_TILE_ROWS];
        for (int i = 0; i < rows; i++) xs[i] = v16_load(x + (size_t)i * cols + k);
        for (int j = 0; j < columns; j++) {
            v16 ws = load(type, w + ((size_t)j * cols + k) * bytes);
            for (int i = 0; i < rows; i++) sums[i][j] = v16_fma(ws, xs[i], sums[i][j]);
        }
    }
    for (int j = 0; j < columns && rest; j++) {
        v16 ws = load_part(type, w + ((size_t)j * cols + (size_t)whole) * bytes, rest);
        for (int i = 0; i < rows; i++) {
            v16 xs = v16_load_part(x + (size_t)i * cols + whole, rest);
            sums[i][j] = v16_fma(ws, xs, sums[i][j]);
        }
    }
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < columns; j++) {
            float sum = v16_sum(sums[i][j]);
            s->y[(size_t)(row + i) * s->y_stride + (size_t)(n + j)] = s->bias ? sum + s->bias[n + j] : sum;
        }
    }
}

/* Rows [first, last) against rows [n, n + columns) of w. */
static inline __attribute__((always_inline)) void panel(const kn_matmul_slice *s, kn_type type, int first, int last,
                                                        int n, int columns) {
    int row = first;
    for (; row + V16_TILE_ROWS <= last; row += V16_TILE_ROWS) tile(s, type, row, n, V16_TILE_ROWS, columns);
    for (; row < last; row++) tile(s, type, row, n, 1, columns);
}

/* One row of x, as in decoding a single sequence. */
static inline __attribute__((always_inline)) void matmul_row(const kn_matmul_slice *s, kn_type type) {
    int n = s->first;
    for (; n + V16_ROW_COLS <= s->last; n += V16_ROW_COLS) tile(s, type, 0, n, 1, V16_ROW_COLS);
    for (; n < s->last; n++) tile(s, type, 0, n, 1, 1);
}

static inline __attribute__((always_inline)) void matmul(const kn_matmul_slice *s, kn_type type) {
    if (s->rows == 1) {
        matmul_row(s, type);
        return;
    }
    for (int block = 0; block < s->rows; block += ROW_BLOCK) {
        int end = block + ROW_BLOCK < s->rows ? block + ROW_BLOCK : s->rows;
        int n = s->first;
        for (; n + V16_TILE_COLS <= s->last; n += V16_TILE_COLS) panel(s, type, block, end, n, V16_TILE_COLS);
        for (; n < s->last; n++) panel(s, type, block, end, n, 1);
    }
}

static void matmul_f32(const kn_matmul_slice *s) { matmul(s, KN_F32); }
static void matmul_f16(const kn_matmul_slice *s) { matmul(s, KN_F16); }
static void matmul_bf16(const kn_matmul_slice *s) { matmul(s, KN_BF16); }

static inline v16 exponential(v16 x) {
    x = v16_min(v16_max(x, v16_set(EXP_LOWEST)), v16_set(EXP_HIGHEST));
    v16 n = v16_round(v16_mul(x, v16_set(EXP_LOG2_E)));
    v16 r = v16_fma(n, v16_set(-EXP_LN2_HIGH), x);
    r = v16_fma(n, v16_set(-EXP_LN2_LOW), r);
    v16 p = v16_set(EXP_C7);
    p = v16_fma(p, r, v16_set(EXP_C6));
    p = v16_fma(p, r, v16_set(EXP_C5));
    p = v16_fma(p, r, v16_set(EXP_C4));
    p = v16_fma(p, r, v16_set(EXP_C3));
    p = v16_fma(p, r, v16_set(EXP_C2));
    p = v16_fma(p, r, v16_set(1.0f));
    p = v16_fma(p, r, v16_set(1.0f));
    return v16_scale(p, n);
}

static inline v16 dot_lanes(kn_type type, const char *w, const float *x, int count) {
    size_t bytes = type == KN_F32 ? 4 : 2;
    v16 sums = v16_zero();
    int k = 0;
    for (; k + LANES <= count; k += LANES) sums = v16_fma(load(type, w + (size_t)k * bytes), v16_load(x + k), sums);
    if (k < count) {
        v16 xs = v16_load_part(x + k, count - k);
        sums = v16_fma(load_part(type, w + (size_t)k * bytes, count - k), xs, sums);
    }
    return sums;
}

static inline const char *token_at(const kn_attention_head *h, size_t bytes, int t) {
    return h->cache + (size_t)h->pages[t / KN_PAGE_TOKENS] * h->page_stride +
           (size_t)(t % KN_PAGE_TOKENS) * (size_t)h->head_dim * bytes;
}

/* scores[t] = exp(score - largest); returns their sum. */
static float softmax(float *scores, int count) {
    float largest = -INFINITY;
    for (int t = 0; t < count; t++) largest = fmaxf(largest, scores[t]);
    v16 sums = v16_zero(), shift = v16_set(-largest);
    int t = 0;
    for (; t + LANES <= count; t += LANES) {
        v16 e = exponential(v16_add(v16_load(scores + t), shift));
        v16_store(scores + t, e);
        sums = v16_add(sums, e);
    }
    if (t < count) {
        v16 e = exponential(v16_add(v16_load_part(scores + t, count - t), shift));
        v16_store_part(scores + t, count - t, e);
        sums = v16_add(sums, v16_load_part(scores + t, count - t));
    }
    return v16_sum(sums);
}

/* Up to four vectors of the output's elements, starting at d: a sum over tokens in rising order. */
static inline __attribute__((always_inline)) void weighted_values(const kn_attention_head *h, kn_type type, int d,
                                                                  int vectors, float total) {
    size_t bytes = type == KN_F32 ? 4 : 2;
    v16 sums[4];
    for (int i = 0; i < vectors; i++) sums[i] = v16_zero();
    for (int t = 0; t < h->count; t++) {
        v16 weight = v16_set(h->scores[t]);
        const char *value = token_at(h, bytes, t) + h->value_offset + (size_t)d * bytes;
        for (int i = 0; i < vectors; i++) {
            sums[i] = v16_fma(weight, load(type, value + (size_t)(i * LANES) * bytes), sums[i]);
        }
    }
    for (int i = 0; i < vectors; i++) v16_store(h->out + d + i * LANES, v16_div(sums[i], v16_set(total)));
}

static void weighted_values_rest(const kn_attention_head *h, kn_type type, int d, float total) {
    size_t bytes = type == KN_F32 ? 4 : 2;
    int count = h->head_dim - d;
    v16 sums = v16_zero();
    for (int t = 0; t < h->count; t++) {
        const char *value = token_at(h, bytes, t) + h->value_offset + (size_t)d * bytes;
        sums = v16_fma(v16_set(h->scores[t]), load_part(type, value, count), sums);
    }
    v16_store_part(h->out + d, count, v16_div(sums, v16_set(total)));
}

static inline __attribute__((always_inline)) void attention(const kn_attention_head *h, kn_type type) {
    size_t bytes = type == KN_F32 ? 4 : 2;
    for (int t = 0; t < h->count; t++) {
        h->scores[t] = v16_sum(dot_lanes(type, token_at(h, bytes, t), h->q, h->head_dim)) * h->scale;
    }
    float total = softmax(h->scores, h->count);
    int d = 0;
    for (; d + 4 * LANES <= h->head_dim; d += 4 * LANES) weighted_values(h, type, d, 4, total);
    for (; d + LANES <= h->head_dim; d += LANES) weighted_values(h, type, d, 1, total);
    if (d < h->head_dim) weighted_values_rest(h, type, d, total);
}

static void attention_f32(const kn_attention_head *h) { attention(h, KN_F32); }
static void attention_f16(const kn_attention_head *h) { attention(h, KN_F16); }

static void rmsnorm(const float *x, const float *weight, float eps, int width, float *out) {
    float mean = v16_sum(dot_lanes(KN_F32, (const char *)x, x, width)) / (float)width;
    float scale = 1.0f / sqrtf(mean + eps);
    v16 scales = v16_set(scale);
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        v16_store(out + i, v16_mul(v16_mul(v16_load(x + i), scales), v16_load(weight + i)));
    }
    for (; i < width; i++) out[i] = x[i] * scale * weight[i];
}

static void rope(float *head, const float *cosines, const float *sines, int half) {
    int i = 0;
    for (; i + LANES <= half; i += LANES) {
        v16 a = v16_load(head + i), b = v16_load(head + half + i);
        v16 c = v16_load(cosines + i), s = v16_load(sines + i);
        v16_store(head + i, v16_fma(v16_negate(b), s, v16_mul(a, c)));
        v16_store(head + half + i, v16_fma(a, s, v16_mul(b, c)));
    }
    for (; i < half; i++) {
        float a = head[i], b = head[i + half];
        head[i] = fmaf(-b, sines[i], a * cosines[i]);
        head[i + half] = fmaf(a, sines[i], b * cosines[i]);
    }
}

static inline v16 swiglu_lanes(v16 gate, v16 up) {
    v16 denominator = v16_add(v16_set(1.0f), exponential(v16_negate(gate)));
    return v16_mul(v16_div(gate, denominator), up);
}

static void swiglu(const float *gate, const float *up, int width, float *out) {
    int i = 0;
    for (; i + LANES <= width; i += LANES) v16_store(out + i, swiglu_lanes(v16_load(gate + i), v16_load(up + i)));
    if (i < width) {
        v16 last = swiglu_lanes(v16_load_part(gate + i, width - i), v16_load_part(up + i, width - i));
        v16_store_part(out + i, width - i, last);
    }
}

static void add(float *x, const float *y, int width) {
    int i = 0;
    for (; i + LANES <= width; i += LANES) v16_store(x + i, v16_add(v16_load(x + i), v16_load(y + i)));
    for (; i < width; i++) x[i] += y[i];
}

static inline void widen(kn_type type, const char *in, int count, float *out) {
    size_t bytes = type == KN_F32 ? 4 : 2;
    int i = 0;
    for (; i + LANES <= count; i += LANES) v16_store(out + i, load(type, in + (size_t)i * bytes));
    if (i < count) v16_store_part(out + i, count - i, load_part(type, in + (size_t)i * bytes, count - i));
}

static void f32_to_f32(const void *in, int count, float *out) { memcpy(out, in, (size_t)count * sizeof *out); }
static void f16_to_f32(const void *in, int count, float *out) { widen(KN_F16, in, count, out); }
static void bf16_to_f32(const void *in, int count, float *out) { widen(KN_BF16, in, count, out); }

static void to_f16(const float *in, int count, void *out) {
    uint16_t *halves = out;
    int i = 0;
    for (; i + LANES <= count; i += LANES) v16_store_f16(halves + i, v16_load(in + i));
    if (i < count) {
        uint16_t last[LANES];
        v16_store_f16(last, v16_load_part(in + i, count - i));
        memcpy(halves + i, last, (size_t)(count - i) * sizeof *halves);
    }
}

static void dot_part(const kn_part *part, const float *w, const float *x, float (*lanes)[KN_LANES]) {
    int whole = part->count / LANES * LANES, rest = part->count - whole;
    for (int r = 0; r < part->rows; r++, x += part->x_stride) {
        v16 sums = v16_load(lanes[r]);
        for (int k = 0; k < whole; k += LANES) sums = v16_fma(v16_load(w + k), v16_load(x + k), sums);
        if (rest) sums = v16_fma(v16_load_part(w + whole, rest), v16_load_part(x + whole, rest), sums);
        v16_store(lanes[r], sums);
    }
}

static void dot_codes(const kn_part *part, const int16_t *w, const int8_t *x, int32_t *sums) {
    for (int r = 0; r < part->rows; r++, x += part->x_stride) sums[r] += v16_dot_codes(w, x, part->count);
}

static void add_scaled(const int32_t *sums, const float *x_scales, size_t stride, float w_scale, int rows, float *out) {
    for (int r = 0; r < rows; r++) out[r] = fmaf((float)sums[r], x_scales[(size_t)r * stride] * w_scale, out[r]);
}

const kn_cpu_kernels *KERNELS_GET(void) {
    static const kn_cpu_kernels kernels = {
        .name = KERNELS_NAME,
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
    return KERNELS_SUPPORTED ? &kernels : NULL;
}
