#include "quantizer/activations.h"

#include <stdint.h>
#include <string.h>

#include "common/alloc.h"
#include "kernels/tensor.h"

void qz_meter_add(qz_meter *meter, double passes) {
    if (!meter) return;
    meter->done += passes;
    bis_progress_update(&meter->bar, (uint64_t)meter->done);
}

static float *numbers(size_t a, size_t b, size_t c) {
    return a && b > SIZE_MAX / a ? NULL : bis_reallocarray(NULL, a * b, c * sizeof(float));
}

static bis_status allocate(const qz_shape *shape, bool with_target, qz_activations *a, bis_error *error) {
    size_t samples = (size_t)a->samples, tokens = (size_t)a->tokens, hidden = (size_t)a->hidden;
    size_t prompt = (size_t)a->prompt_tokens, keys = (size_t)shape->kv_heads * (size_t)shape->head_dim;
    a->fp = numbers(samples, tokens, hidden);
    a->q = numbers(samples, tokens, hidden);
    if (with_target) a->target = numbers(samples, tokens, hidden);
    a->scratch = numbers(1, tokens, hidden);
    a->prompt = numbers(1, prompt, hidden);
    a->prompt_k = numbers(1, prompt, keys);
    a->prompt_v = numbers(1, prompt, keys);
    a->rope = numbers(1, prompt + tokens, (size_t)shape->head_dim);
    bool ok = a->fp && a->q && (a->target || !with_target) && a->scratch && a->prompt && a->prompt_k && a->prompt_v &&
              a->rope;
    return ok ? BIS_OK : bis_fail(error, BIS_ERR_NOMEM, "no memory for the activations of %d windows", a->samples);
}

void qz_activations_restart(qz_activations *activations, const qz_calibration *calibration,
                            const qz_transform *transform) {
    size_t hidden = (size_t)activations->hidden, rows = (size_t)activations->samples * (size_t)activations->tokens;
    for (size_t row = 0; row < rows; row++) {
        float *x = activations->q + row * hidden;
        qz_transform_embedding(transform, calibration->ids[row], 1, x);
        for (size_t i = 0; i < hidden; i++) x[i] = kn_f16_to_f32(kn_f32_to_f16(x[i]));
    }
}

bis_status qz_activations_open(const qz_calibration *calibration, const qz_transform *transform,
                               const rt_rope_config *rope, bool with_target, qz_activations *out, bis_error *error) {
    qz_shape shape = qz_transform_shape(transform);
    qz_activations a = {.samples = calibration->samples,
                        .tokens = calibration->tokens,
                        .hidden = shape.hidden,
                        .prompt_tokens = calibration->prompt_tokens};
    bis_status status = allocate(&shape, with_target, &a, error);
    if (status) {
        qz_activations_close(&a);
        return status;
    }
    size_t hidden = (size_t)a.hidden, rows = (size_t)a.samples * (size_t)a.tokens;
    rt_rope_fill_table(rope, shape.head_dim, a.prompt_tokens + a.tokens, a.rope);
    for (size_t row = 0; row < rows; row++) {
        qz_transform_embedding(transform, calibration->ids[row], 1, a.fp + row * hidden);
    }
    qz_activations_restart(&a, calibration, transform);
    for (int i = 0; i < a.prompt_tokens; i++) {
        qz_transform_embedding(transform, calibration->prompt[i], 1, a.prompt + (size_t)i * hidden);
    }
    *out = a;
    return BIS_OK;
}

void qz_activations_close(qz_activations *activations) {
    bis_free(activations->fp);
    bis_free(activations->q);
    bis_free(activations->target);
    bis_free(activations->scratch);
    bis_free(activations->prompt);
    bis_free(activations->prompt_k);
    bis_free(activations->prompt_v);
    bis_free(activations->rope);
    *activations = (qz_activations){0};
}

bis_status qz_activations_prompt(qz_activations *a, qz_compute *compute, const qz_block *block, const qz_spec *spec,
                                 bis_error *error) {
    if (!a->prompt_tokens) return BIS_OK;
    return qz_simulate_prompt(compute, block, spec, a->rope, a->prompt, a->prompt_tokens, a->prompt_k, a->prompt_v,
                              a->prompt, error);
}

static void complete_pass(const qz_activations *a, qz_pass *pass) {
    pass->rope_table = a->rope;
    pass->prompt = (qz_prompt){a->prompt_tokens, a->prompt_k, a->prompt_v};
}

bis_status qz_activations_pass(const qz_activations *a, qz_pass pass, const float *x, float *y, qz_meter *meter,
                               bis_error *error) {
    size_t sample = (size_t)a->tokens * (size_t)a->hidden;
    bis_status status = BIS_OK;
    complete_pass(a, &pass);
    for (size_t s = 0; s < (size_t)a->samples && !status; s++) {
        status = qz_simulate(&pass, x + s * sample, 1, a->tokens, y ? y + s * sample : a->scratch, error);
        qz_meter_add(meter, 1);
    }
    return status;
}

bis_status qz_activations_distance(const qz_activations *a, qz_pass pass, qz_meter *meter, double *out,
                                   bis_error *error) {
    size_t sample = (size_t)a->tokens * (size_t)a->hidden;
    bis_status status = BIS_OK;
    double sum = 0;
    complete_pass(a, &pass);
    for (size_t s = 0; s < (size_t)a->samples && !status; s++) {
        status = qz_simulate(&pass, a->q + s * sample, 1, a->tokens, a->scratch, error);
        for (size_t i = 0; i < sample && !status; i++) {
            double d = (double)a->scratch[i] - (double)a->target[s * sample + i];
            sum += d * d;
        }
        qz_meter_add(meter, 1);
    }
    if (!status) *out = sum;
    return status;
}

double qz_activations_error(const qz_activations *a) {
    size_t count = (size_t)a->samples * (size_t)a->tokens * (size_t)a->hidden;
    double difference = 0, squares = 0;
    for (size_t i = 0; i < count; i++) {
        double fp = (double)a->fp[i], d = (double)a->q[i] - fp;
        difference += d * d;
        squares += fp * fp;
    }
    return squares > 0 ? difference / squares : 0;
}
