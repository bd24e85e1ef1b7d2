#include "quantizer/fake.h"

#include <math.h>

#include "kernels/tensor.h"

enum { OUTLIER_BITS = 8 };

static int group_end(int first, int group, int low_columns) {
    return low_columns - first < group ? low_columns : first + group;
}

/* The first element that equals a value that is known to be there. */
static int find(const qz_real *x, int count, qz_real value) {
    for (int i = 0; i < count; i++) {
        if (x[i] == value) return i;
    }
    return 0;
}

/* ---- Activations ----------------------------------------------------------------------------- */

/* The quantizer of a group, and its largest magnitude with its sign. */
static qz_step act_step(const qz_fake_act *act, const kn_bits *bits, qz_real clip, const qz_real *x, int count,
                        qz_real *extreme) {
    qz_real low, high;
    act->loops->range(x, count, &low, &high);
    *extreme = high >= -low ? high : low;
    qz_real largest = high >= -low ? high : -low;
    qz_real scale = clip * largest / (qz_real)bits->divisor;
    if (!(scale > 0)) scale = 1;
    return (qz_step){scale, 0, (qz_real)bits->least, (qz_real)bits->most, act->soft};
}

void qz_fake_act_row(const qz_fake_act *act, const qz_real *x, int cols, qz_real *out) {
    int low_columns = cols - act->outliers;
    qz_real extreme;
    for (int first = 0; first < low_columns; first += act->group) {
        int count = group_end(first, act->group, low_columns) - first;
        qz_step step = act_step(act, act->bits, act->clip, x + first, count, &extreme);
        act->loops->quantize(&step, x + first, count, out + first);
    }
    if (!act->outliers) return;
    qz_step step = act_step(act, kn_bits_find(OUTLIER_BITS), 1, x + low_columns, act->outliers, &extreme);
    act->loops->quantize(&step, x + low_columns, act->outliers, out + low_columns);
}

/* Returns the gradient of clip. */
static qz_real act_group_backward(const qz_fake_act *act, const kn_bits *bits, qz_real clip, const qz_real *x,
                                  int count, qz_real *gradient) {
    qz_real extreme, d_scale, clipped;
    qz_step step = act_step(act, bits, clip, x, count, &extreme);
    act->loops->quantize_backward(&step, x, count, gradient, &d_scale, &clipped);
    if (extreme == 0) return 0;
    qz_real largest = extreme < 0 ? -extreme : extreme, d_largest = d_scale * clip / (qz_real)bits->divisor;
    gradient[find(x, count, extreme)] += extreme < 0 ? -d_largest : d_largest;
    return d_scale * largest / (qz_real)bits->divisor;
}

qz_real qz_fake_act_backward(const qz_fake_act *act, const qz_real *x, int cols, qz_real *gradient) {
    int low_columns = cols - act->outliers;
    qz_real d_clip = 0;
    for (int first = 0; first < low_columns; first += act->group) {
        int count = group_end(first, act->group, low_columns) - first;
        d_clip += act_group_backward(act, act->bits, act->clip, x + first, count, gradient + first);
    }
    if (act->outliers) {
        act_group_backward(act, kn_bits_find(OUTLIER_BITS), 1, x + low_columns, act->outliers, gradient + low_columns);
    }
    return d_clip;
}

/* ---- KV -------------------------------------------------------------------------------------- */

/* Scale and minimum depend on the ends of the range alone, so the kernels' own function tells them. */
static qz_step kv_step(const qz_fake_kv *kv, const qz_real *x, int width, qz_real *least, qz_real *most) {
    kv->loops->range(x, width, least, most);
    qz_real levels = (qz_real)kv->bits->levels, offset = *least, scale = (*most - *least) / levels;
    if (!kv->soft) {
        const float ends[2] = {(float)*least, (float)*most};
        uint8_t stream[2];
        uint16_t scale_bits, minimum_bits;
        kn_kv_encode(kv->bits->bits, ends, 2, stream, &scale_bits, &minimum_bits);
        offset = (qz_real)kn_f16_to_f32(minimum_bits);
        scale = (qz_real)kn_f16_to_f32(scale_bits);
    }
    if (!(scale > 0)) scale = 1;
    return (qz_step){scale, offset, 0, levels, kv->soft};
}

void qz_fake_kv_head(const qz_fake_kv *kv, const qz_real *x, int width, qz_real *out) {
    qz_real least, most;
    qz_step step = kv_step(kv, x, width, &least, &most);
    kv->loops->quantize(&step, x, width, out);
}

void qz_fake_kv_backward(const qz_fake_kv *kv, const qz_real *x, int width, qz_real *gradient) {
    qz_real least, most, d_scale, d_offset;
    qz_step step = kv_step(kv, x, width, &least, &most);
    kv->loops->quantize_backward(&step, x, width, gradient, &d_scale, &d_offset);
    qz_real share = d_scale / step.most;
    gradient[find(x, width, most)] += share;
    gradient[find(x, width, least)] += d_offset - share;
}

/* ---- Weights --------------------------------------------------------------------------------- */

void qz_fake_weight_format(const qz_spec *spec, qz_site site, kn_weight_format *format) {
    *format = (kn_weight_format){spec->weight_bits, spec->group, spec->weight_symmetric, spec->outliers[site]};
}

/* The range of a group of weights: what it is, and what of it the clips leave. */
typedef struct weight_range {
    qz_real least, most; /* 0 where all numbers are above, or below, 0 */
    qz_real low_share, high_share, low, high;
} weight_range;

static qz_real sigmoid(const qz_real *logits, int group) { return logits ? 1 / (1 + (qz_real)exp(-logits[group])) : 1; }

static weight_range find_range(const qz_fake_weight *weight, const qz_real *w, int count, qz_real high_share,
                               qz_real low_share) {
    weight_range r = {.low_share = low_share, .high_share = high_share};
    weight->loops->range(w, count, &r.least, &r.most);
    if (r.least > 0) r.least = 0;
    if (r.most < 0) r.most = 0;
    r.low = r.least * low_share;
    r.high = r.most * high_share;
    return r;
}

/* *zero is that of an asymmetric format. */
static qz_step weight_step(const qz_fake_weight *weight, const kn_bits *bits, bool symmetric, const weight_range *r,
                           int *zero) {
    qz_step step = {1, 0, (qz_real)bits->least, (qz_real)bits->most, weight->soft};
    qz_real levels = (qz_real)bits->levels, shift = 0;
    *zero = 0;
    if (!weight->soft) {
        kn_weight_format format = weight->format;
        float scale;
        format.bits = bits->bits;
        format.symmetric = symmetric;
        kn_weight_scale(&format, (float)r->low, (float)r->high, &scale, zero);
        step.scale = (qz_real)scale;
        shift = (qz_real)*zero;
    } else if (r->low < 0 || r->high > 0) {
        qz_real largest = r->high >= -r->low ? r->high : -r->low;
        step.scale = symmetric ? largest / (qz_real)bits->divisor : (r->high - r->low) / levels;
        shift = -r->low / step.scale;
    }
    if (!symmetric) {
        step.least = -shift;
        step.most = levels - shift;
    }
    return step;
}

void qz_fake_weight_row(const qz_fake_weight *weight, const qz_real *w, int cols, const qz_real *high_logits,
                        const qz_real *low_logits, qz_real *out, float *scales, uint8_t *zeros) {
    const kn_weight_format *format = &weight->format;
    int low_columns = cols - format->outliers, zero;
    for (int first = 0, g = 0; first < low_columns; first += format->group, g++) {
        int count = group_end(first, format->group, low_columns) - first;
        weight_range r = find_range(weight, w + first, count, sigmoid(high_logits, g), sigmoid(low_logits, g));
        qz_step step = weight_step(weight, weight->bits, format->symmetric, &r, &zero);
        weight->loops->quantize(&step, w + first, count, out + first);
        if (scales) scales[g] = (float)step.scale;
        if (zeros) zeros[g] = (uint8_t)zero;
    }
    if (!format->outliers) return;
    weight_range r = find_range(weight, w + low_columns, format->outliers, 1, 1);
    qz_step step = weight_step(weight, kn_bits_find(OUTLIER_BITS), true, &r, &zero);
    weight->loops->quantize(&step, w + low_columns, format->outliers, out + low_columns);
}

/* Gradients of the clipped range's ends, from those of scale and zero. */
static void range_gradient(const qz_step *step, const kn_bits *bits, bool symmetric, const weight_range *r,
                           qz_real scale_sum, qz_real clipped_sum, qz_real *d_low, qz_real *d_high) {
    *d_low = *d_high = 0;
    if (r->low == 0 && r->high == 0) return;
    if (!symmetric) { /* a clamped code's value is low or high: its distance from zero moves with low / scale */
        qz_real share = (scale_sum - r->low / step->scale * clipped_sum) / (qz_real)bits->levels;
        *d_high = share;
        *d_low = clipped_sum - share;
    } else if (r->high >= -r->low) {
        *d_high = scale_sum / (qz_real)bits->divisor;
    } else {
        *d_low = -scale_sum / (qz_real)bits->divisor;
    }
}

static void weight_group_backward(const qz_fake_weight *weight, const kn_bits *bits, bool symmetric,
                                  const weight_range *r, const qz_real *w, int count, qz_real *gradient, qz_real *d_low,
                                  qz_real *d_high) {
    int zero;
    qz_real scale_sum, clipped_sum;
    qz_step step = weight_step(weight, bits, symmetric, r, &zero);
    weight->loops->quantize_backward(&step, w, count, gradient, &scale_sum, &clipped_sum);
    range_gradient(&step, bits, symmetric, r, scale_sum, clipped_sum, d_low, d_high);
    if (r->least < 0 && *d_low != 0) gradient[find(w, count, r->least)] += *d_low * r->low_share;
    if (r->most > 0 && *d_high != 0) gradient[find(w, count, r->most)] += *d_high * r->high_share;
}

void qz_fake_weight_backward(const qz_fake_weight *weight, const qz_real *w, int cols, const qz_real *high_logits,
                             const qz_real *low_logits, qz_real *gradient, qz_real *d_high, qz_real *d_low) {
    const kn_weight_format *format = &weight->format;
    int low_columns = cols - format->outliers;
    qz_real low, high;
    for (int first = 0, g = 0; first < low_columns; first += format->group, g++) {
        int count = group_end(first, format->group, low_columns) - first;
        weight_range r = find_range(weight, w + first, count, sigmoid(high_logits, g), sigmoid(low_logits, g));
        weight_group_backward(weight, weight->bits, format->symmetric, &r, w + first, count, gradient + first, &low,
                              &high);
        if (d_high) d_high[g] = high * r.most * r.high_share * (1 - r.high_share);
        if (d_low) d_low[g] = low * r.least * r.low_share * (1 - r.low_share);
    }
    if (!format->outliers) return;
    weight_range r = find_range(weight, w + low_columns, format->outliers, 1, 1);
    weight_group_backward(weight, kn_bits_find(OUTLIER_BITS), true, &r, w + low_columns, format->outliers,
                          gradient + low_columns, &low, &high);
}
