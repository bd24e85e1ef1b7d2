/* Models of random weights, for measuring shapes without having their files.
 *
 * Each weight is drawn from a table of 65,536 equally likely values of the normal distribution (its quantiles), four
 * from one step of the generator. That is far faster than computing a logarithm and a cosine per weight, and the
 * difference (nothing beyond 4.3 deviations) means nothing to a measurement of speed.
 */
#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "runtime/model/model_internal.h"
#include "runtime/system_memory.h"

enum { QUANTILES = 1 << 16, ALIGNMENT = 64 };

static const double deviation = 0.02;

/* The x with P(X <= x) = p for standard normal X and p <= 1/2, by Newton's method, which converges from 0 without
 * overshooting because the distribution function is convex there. */
static double normal_quantile(double p, double start) {
    const double sqrt_half = 0.70710678118654752440, inverse_sqrt_2pi = 0.39894228040143267794;
    double x = start;
    for (int i = 0; i < 100; i++) {
        double step = (0.5 * erfc(-x * sqrt_half) - p) / (inverse_sqrt_2pi * exp(-0.5 * x * x));
        x -= step;
        if (fabs(step) < 1e-9) break;
    }
    return x;
}

static void put(void *at, kn_type type, float value) {
    uint16_t half = type == KN_F16 ? kn_f32_to_f16(value) : kn_f32_to_bf16(value);
    if (type == KN_F32) memcpy(at, &value, sizeof value);
    else memcpy(at, &half, sizeof half);
}

/* The table in the type of the weights; the distribution is symmetric. */
static void fill_table(char *table, kn_type type) {
    size_t size = kn_type_bytes(type);
    double x = 0;
    for (size_t i = QUANTILES / 2; i-- > 0;) {
        x = normal_quantile(((double)i + 0.5) / QUANTILES, x);
        put(table + i * size, type, (float)(x * deviation));
        put(table + (QUANTILES - 1 - i) * size, type, (float)(-x * deviation));
    }
}

static uint64_t next_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

typedef struct random_plan {
    const rt_model_config *config;
    kn_type type;
    size_t used;  /* bytes given out */
    char *memory; /* NULL while only counting */
    const char *table;
    uint64_t state;
} random_plan;

static void fill_random(random_plan *plan, char *at, size_t count) {
    const uint16_t *halves = (const uint16_t *)(const void *)plan->table;
    const float *singles = (const float *)(const void *)plan->table;
    uint16_t *to_halves = (uint16_t *)(void *)at;
    float *to_singles = (float *)(void *)at;
    uint64_t bits = 0;
    for (size_t i = 0; i < count; i++) {
        bits = i % 4 ? bits >> 16 : next_random(&plan->state);
        if (plan->type == KN_F32) to_singles[i] = singles[bits & 0xffff];
        else to_halves[i] = halves[bits & 0xffff];
    }
}

static void fill_bytes(random_plan *plan, uint8_t *at, size_t count) {
    uint64_t bits = 0;
    for (size_t i = 0; i < count; i++) {
        bits = i % 8 ? bits >> 8 : next_random(&plan->state);
        at[i] = (uint8_t)bits;
    }
}

static uint16_t *fill_halves(uint16_t *at, size_t count, float value) {
    for (size_t i = 0; i < count; i++) at[i] = kn_f32_to_f16(value);
    return at + count;
}

/* Codes are uniform, with scales that give them the same deviation: as good for a measurement of speed. */
static void fill_packed(random_plan *plan, const rt_model_part *part, char *memory) {
    static const double uniform_width = 3.46410161513775458705; /* of a uniform distribution, in deviations: sqrt 12 */
    kn_qweight w = {rt_model_packed_format(plan->config, part->site), part->rows, part->cols, .codes = NULL};
    int levels = kn_bits_find(w.format.bits)->levels, outlier_levels = kn_bits_find(8)->levels;
    size_t rows = (size_t)w.rows, groups = rows * (size_t)kn_weight_groups(&w.format, w.cols);
    size_t code_bytes = rows * kn_packed_bytes(w.cols - w.format.outliers, w.format.bits);
    size_t outliers = rows * (size_t)w.format.outliers;
    uint16_t *scales = (uint16_t *)(void *)memory;
    uint16_t *outlier_scales = fill_halves(scales, groups, (float)(deviation * uniform_width / levels));
    uint8_t *codes = (uint8_t *)outlier_scales;
    if (outliers) {
        codes = (uint8_t *)fill_halves(outlier_scales, rows, (float)(deviation * uniform_width / outlier_levels));
    }
    uint8_t *zeros = codes + code_bytes, *outlier_codes = zeros + (w.format.symmetric ? 0 : groups);
    fill_bytes(plan, codes, code_bytes);
    if (!w.format.symmetric) memset(zeros, (levels + 1) / 2, groups);
    fill_bytes(plan, outlier_codes, outliers);
    w.scales = scales;
    w.codes = codes;
    if (!w.format.symmetric) w.zeros = zeros;
    if (outliers) w.outlier_codes = (const int8_t *)outlier_codes;
    if (outliers) w.outlier_scales = outlier_scales;
    *part->packed = w;
}

/* Bytes of a part in memory; false where that overflows. */
static bool part_bytes(const random_plan *plan, const rt_model_part *part, size_t *bytes) {
    if (part->packed) {
        kn_weight_format format = rt_model_packed_format(plan->config, part->site);
        *bytes = kn_weight_bytes(&format, part->rows, part->cols);
        return true;
    }
    return !__builtin_mul_overflow((size_t)part->rows * (size_t)part->cols, kn_type_bytes(plan->type), bytes);
}

static bis_status place(const rt_model_part *part, void *context, bis_error *error) {
    random_plan *plan = context;
    size_t count = (size_t)part->rows * (size_t)part->cols, bytes;
    if (!part_bytes(plan, part, &bytes) || __builtin_add_overflow(bytes, (size_t)ALIGNMENT - 1, &bytes)) {
        return bis_fail(error, BIS_ERR_LIMIT, "the tensor '%s' would be too large", part->name);
    }
    bytes -= bytes % ALIGNMENT;
    size_t start = plan->used;
    if (__builtin_add_overflow(plan->used, bytes, &plan->used)) {
        return bis_fail(error, BIS_ERR_LIMIT, "a model of this shape would be too large");
    }
    if (!plan->memory) return BIS_OK;
    char *at = plan->memory + start;
    if (part->packed) {
        fill_packed(plan, part, at);
        return BIS_OK;
    }
    *part->slot = (kn_tensor){at, plan->type, part->rows, part->cols};
    if (!part->is_norm) fill_random(plan, at, count);
    else
        for (size_t i = 0; i < count; i++) put(at + i * kn_type_bytes(plan->type), plan->type, 1);
    return BIS_OK;
}

/* Asking for more than there is would not fail here but end in the system stopping the process. */
static bis_status check_memory(size_t bytes, bis_error *error) {
    uint64_t available = rt_system_memory_available();
    if (bytes < available) return BIS_OK;
    return bis_fail(error, BIS_ERR_NOMEM, "a model of this shape takes %.1f GB; %.1f GB are free", (double)bytes * 1e-9,
                    (double)available * 1e-9);
}

static bis_status fill_model(rt_model *model, kn_type type, uint64_t seed, bis_error *error) {
    random_plan plan = {.config = &model->config, .type = type, .state = seed};
    bis_status status = rt_model_walk(model, place, &plan, error);
    if (!status) status = check_memory(plan.used, error);
    if (status) return status;
    char *table = bis_alloc_aligned(QUANTILES * kn_type_bytes(type));
    model->memory = bis_alloc_aligned(plan.used);
    if (!table || !model->memory) {
        bis_free(table);
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for a model of this shape: it takes %.1f GB",
                        (double)plan.used * 1e-9);
    }
    fill_table(table, type);
    plan.table = table;
    plan.memory = model->memory;
    plan.used = 0;
    status = rt_model_walk(model, place, &plan, error);
    bis_free(table);
    rt_model_random_inputs(model);
    if (!status) rt_model_complete(model);
    return status;
}

bis_status rt_model_random(const rt_model_config *config, kn_type type, uint64_t seed, rt_model **out,
                           bis_error *error) {
    if ((unsigned)type >= KN_TYPE_COUNT) return bis_fail(error, BIS_ERR_INVALID, "unknown weight type");
    rt_model *model = rt_model_make(config, error);
    if (!model) return BIS_ERR_NOMEM;
    bis_status status = fill_model(model, type, seed, error);
    if (status) rt_model_close(model);
    else *out = model;
    return status;
}
