#include "quantizer/training.h"

#include <math.h>

#include "quantizer/random.h"

enum { ADAM_PIECE = 8192 };

static const double FIRST_DECAY = 0.9, SECOND_DECAY = 0.999, EPSILON = 1e-8;
static const double WARM_UP = 0.05; /* share of steps over which rates rise to their full size */
static const qz_real ACT_CLIP_LEAST = (qz_real)0.1, ACT_CLIP_MOST = 1;

bis_status qz_check_training(const qz_tune_options *o, int samples, int tokens, bis_error *error) {
    if (samples < 1 || tokens < 1)
        return bis_fail(error, BIS_ERR_INVALID, "no samples to tune on: give more calibration text");
    if (o->batch < 1) return bis_fail(error, BIS_ERR_INVALID, "tuning in batches of %d: use 1 or more", o->batch);
    if (o->epochs < 0) return bis_fail(error, BIS_ERR_INVALID, "tuning for %d epochs: use 0 or more", o->epochs);
    if (o->rank < 0) return bis_fail(error, BIS_ERR_INVALID, "a compensation of rank %d: use 0 or more", o->rank);
    if (!(o->held_out >= 0 && o->held_out < 1))
        return bis_fail(error, BIS_ERR_INVALID, "%g of the samples held out: use 0 or more, and less than 1",
                        o->held_out);
    return BIS_OK;
}

void qz_shuffle(int *order, int first, int count, uint64_t seed) {
    for (int i = count - 1; i > first; i--) {
        int j = first + (int)(qz_random_bits(seed, (uint64_t)i) % (uint64_t)(i - first + 1));
        int kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

int qz_choose_held_out(int *order, int samples, double share, uint64_t seed) {
    int count = (int)lround(share * samples);
    if (count < 1 && share > 0) count = 1;
    if (count > samples - 1) count = samples - 1;
    for (int i = 0; i < samples; i++) order[i] = i;
    qz_shuffle(order, 0, samples, seed);
    return count;
}

/* Relative to a part's rate: rising, then half a cosine down to 0. */
static double schedule(const qz_optimizer *self) {
    const double pi = 3.14159265358979323846;
    double warm = WARM_UP * self->steps;
    if (self->step < warm) return (self->step + 1) / (warm + 1);
    return (1 + cos(pi * (self->step - warm) / (self->steps - warm))) / 2;
}

static double gradient_factor(const qz_optimizer *self, size_t size, const qz_trained *trained, int count) {
    double squares = 0;
    for (int i = 0; i < count; i++) {
        const qz_real *gradient = trained[i].gradient;
        for (size_t j = 0; j < size; j++) squares += (double)gradient[j] * (double)gradient[j];
    }
    double norm = sqrt(squares), most = self->options->gradient_clip;
    return most > 0 && norm > most ? most / norm : 1;
}

typedef struct adam_task {
    const qz_loops *loops;
    const qz_trained *trained;
    qz_adam adam;
    size_t first;
} adam_task;

static void adam_piece(void *argument, int first, int last, int worker) {
    (void)worker;
    const adam_task *task = argument;
    const qz_trained *t = task->trained;
    size_t at = task->first + (size_t)first;
    task->loops->adam(&task->adam, last - first, t->gradient + at, t->first + at, t->second + at, t->parameter + at);
}

static void step_block(const qz_optimizer *self, const qz_learned *layout, const qz_trained *trained, double factor,
                       double share) {
    const qz_tune_options *o = self->options;
    const double rates[QZ_PARTS] = {o->lr_clip, o->lr_smooth, o->lr_low_rank, o->lr_act_clip};
    for (int i = 0; i < QZ_PARTS; i++) {
        adam_task task = {.loops = layout->loops, .trained = trained, .first = layout->first[i]};
        task.adam.rate = (qz_real)(rates[i] * share / (1 - pow(FIRST_DECAY, self->step)));
        task.adam.second_correction = (qz_real)(1 / (1 - pow(SECOND_DECAY, self->step)));
        task.adam.gradient_factor = (qz_real)factor;
        task.adam.first_decay = (qz_real)FIRST_DECAY;
        task.adam.second_decay = (qz_real)SECOND_DECAY;
        task.adam.epsilon = (qz_real)EPSILON;
        size_t count = layout->first[i + 1] - layout->first[i];
        qz_parallel(self->compute, (int)count, ADAM_PIECE, adam_piece, &task);
    }
    for (size_t i = layout->first[QZ_PART_ACT_CLIP]; i < layout->first[QZ_PARTS]; i++) {
        qz_real clip = trained->parameter[i];
        trained->parameter[i] = clip < ACT_CLIP_LEAST ? ACT_CLIP_LEAST : clip > ACT_CLIP_MOST ? ACT_CLIP_MOST : clip;
    }
}

void qz_optimizer_step(qz_optimizer *optimizer, const qz_learned *layout, const qz_trained *trained, int count) {
    double factor = gradient_factor(optimizer, layout->first[QZ_PARTS], trained, count), share = schedule(optimizer);
    optimizer->step++;
    for (int i = 0; i < count; i++) step_block(optimizer, layout, &trained[i], factor, share);
}
