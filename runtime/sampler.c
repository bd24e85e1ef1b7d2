#include "runtime/sampler.h"

#include <math.h>
#include <string.h>

#include "common/alloc.h"

struct rt_sampler {
    int vocab;
    float *values; /* [vocab] logits after bias, penalties and temperature */
    int32_t *heap; /* [vocab] candidate ids */
    int heap_count;
    double *weights; /* [vocab] of candidates in the order they were taken */
};

bis_status rt_sampler_open(int vocab, rt_sampler **out, bis_error *error) {
    rt_sampler *self = bis_calloc(1, sizeof *self);
    if (self) {
        self->vocab = vocab;
        self->values = bis_calloc((size_t)vocab, sizeof *self->values);
        self->heap = bis_calloc((size_t)vocab, sizeof *self->heap);
        self->weights = bis_calloc((size_t)vocab, sizeof *self->weights);
    }
    if (!self || !self->values || !self->heap || !self->weights) {
        rt_sampler_close(self);
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for the sampler");
    }
    *out = self;
    return BIS_OK;
}

void rt_sampler_close(rt_sampler *sampler) {
    if (!sampler) return;
    bis_free(sampler->values);
    bis_free(sampler->heap);
    bis_free(sampler->weights);
    bis_free(sampler);
}

bool rt_sampling_has_penalties(const rt_sampling *s) {
    return s->repetition_penalty != 1 || s->frequency_penalty != 0 || s->presence_penalty != 0;
}

static int32_t argmax(const float *values, int count) {
    int32_t best = -1;
    for (int i = 0; i < count; i++) {
        if (!isnan(values[i]) && (best < 0 || values[i] > values[best])) best = i;
    }
    return best < 0 ? 0 : best;
}

static float penalised(const rt_sampling *s, uint32_t count, float logit) {
    if (!count) return logit;
    if (s->repetition_penalty != 1) {
        logit = logit > 0 ? logit / s->repetition_penalty : logit * s->repetition_penalty;
    }
    uint32_t generated = count & RT_COUNT_MASK;
    if (generated) logit -= s->frequency_penalty * (float)generated + s->presence_penalty;
    return logit;
}

static void adjust(rt_sampler *self, const rt_sampling *s, const uint32_t *counts, const float *logits) {
    memcpy(self->values, logits, (size_t)self->vocab * sizeof *logits);
    for (size_t i = 0; i < s->logit_bias_count; i++) self->values[s->logit_bias[i].token] += s->logit_bias[i].bias;
    if (counts && rt_sampling_has_penalties(s)) {
        for (int i = 0; i < self->vocab; i++) self->values[i] = penalised(s, counts[i], self->values[i]);
    }
}

/* A uniform number in [0, 1) from a hash of seed and index (the finaliser of SplitMix64, twice). */
static double uniform(uint64_t seed, uint64_t index) {
    uint64_t z = seed;
    for (int round = 0; round < 2; round++) {
        z += 0x9e3779b97f4a7c15u * (index + 1);
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        z ^= z >> 31;
    }
    return (double)(z >> 11) * 0x1p-53;
}

/* ---- A heap of candidates: the largest value first, the lower id first among equals ---- */

static bool before(const rt_sampler *self, int32_t a, int32_t b) {
    float va = self->values[a], vb = self->values[b];
    return va > vb || (va == vb && a < b);
}

static void sift_down(rt_sampler *self, int at) {
    for (;;) {
        int child = 2 * at + 1;
        if (child >= self->heap_count) return;
        if (child + 1 < self->heap_count && before(self, self->heap[child + 1], self->heap[child])) child++;
        if (!before(self, self->heap[child], self->heap[at])) return;
        int32_t swapped = self->heap[at];
        self->heap[at] = self->heap[child];
        self->heap[child] = swapped;
        at = child;
    }
}

/* Takes the best candidate; it moves behind the heap's end, so that the taken ones are the heap array's
 * tail, best last. */
static int32_t take_best(rt_sampler *self) {
    int32_t best = self->heap[0];
    self->heap[0] = self->heap[--self->heap_count];
    self->heap[self->heap_count] = best;
    sift_down(self, 0);
    return best;
}

/* Draws from the taken candidates: weights[0 ... count) in the order of taking, best first. */
static int32_t draw(const rt_sampler *self, int total_candidates, int count, double sum, double u) {
    double target = u * sum, running = 0;
    for (int i = 0; i < count; i++) {
        running += self->weights[i];
        if (running > target) return self->heap[total_candidates - 1 - i];
    }
    return self->heap[total_candidates - count]; /* rounding: the last one */
}

static int32_t draw_truncated(rt_sampler *self, const rt_sampling *s, float largest, double u) {
    float lowest = s->min_p > 0 ? largest + logf(s->min_p) : -INFINITY;
    double all = 0;
    self->heap_count = 0;
    for (int i = 0; i < self->vocab; i++) {
        if (!(self->values[i] >= lowest) || self->values[i] == -INFINITY) continue;
        self->heap[self->heap_count++] = i;
        all += exp((double)self->values[i] - largest);
    }
    int candidates = self->heap_count, limit = candidates;
    if (candidates == 0) return 0;
    if (s->top_k > 0 && s->top_k < limit) limit = s->top_k;
    for (int i = candidates / 2 - 1; i >= 0; i--) sift_down(self, i);

    /* top_p counts within what top_k left, so with top_k all of its candidates are taken first */
    bool top_k_cuts = limit < candidates;
    double sum = 0;
    int taken = 0;
    while (taken < limit && (top_k_cuts || taken == 0 || sum < s->top_p * all)) {
        double weight = exp((double)self->values[take_best(self)] - largest);
        self->weights[taken++] = weight;
        sum += weight;
    }
    if (top_k_cuts && s->top_p < 1) {
        double within = sum;
        sum = 0;
        int kept = 0;
        while (kept < taken && (kept == 0 || sum < s->top_p * within)) sum += self->weights[kept++];
        taken = kept;
    }
    return draw(self, candidates, taken, sum, u);
}

static int32_t draw_all(const rt_sampler *self, float largest, double u) {
    double sum = 0;
    for (int i = 0; i < self->vocab; i++) {
        if (!isnan(self->values[i])) sum += exp((double)self->values[i] - largest);
    }
    double target = u * sum, running = 0;
    int32_t last = 0;
    for (int i = 0; i < self->vocab; i++) {
        if (isnan(self->values[i]) || self->values[i] == -INFINITY) continue;
        running += exp((double)self->values[i] - largest);
        last = i;
        if (running > target) break;
    }
    return last;
}

int32_t rt_sampler_pick(rt_sampler *sampler, const rt_sampling *sampling, const uint32_t *counts, const float *logits,
                        uint64_t index) {
    bool plain = sampling->logit_bias_count == 0 && !rt_sampling_has_penalties(sampling);
    if (sampling->temperature == 0 && plain) return argmax(logits, sampler->vocab);
    adjust(sampler, sampling, counts, logits);
    int32_t best = argmax(sampler->values, sampler->vocab);
    float largest = sampler->values[best];
    if (sampling->temperature == 0 || !isfinite(largest)) return best;
    for (int i = 0; i < sampler->vocab; i++) {
        sampler->values[i] = (sampler->values[i] - largest) / sampling->temperature;
    }
    double u = uniform(sampling->seed, index);
    bool truncated = sampling->top_k > 0 || sampling->top_p < 1 || sampling->min_p > 0;
    return truncated ? draw_truncated(sampler, sampling, 0, u) : draw_all(sampler, 0, u);
}

float rt_logits_log_sum(const float *logits, int vocab) {
    float largest = logits[argmax(logits, vocab)];
    double sum = 0;
    for (int i = 0; i < vocab; i++) {
        if (!isnan(logits[i])) sum += exp((double)logits[i] - largest);
    }
    return sum > 0 ? (float)(largest + log(sum)) : NAN; /* NaN only where all logits are */
}

void rt_logits_top(const float *logits, int vocab, float log_sum, int count, rt_logprob *top) {
    int filled = 0;
    for (int id = 0; id < vocab; id++) {
        float logprob = logits[id] - log_sum;
        if (filled == count && (count == 0 || !(logprob > top[filled - 1].logprob))) continue;
        int at = filled < count ? filled++ : count - 1;
        while (at > 0 && logprob > top[at - 1].logprob) {
            top[at] = top[at - 1];
            at--;
        }
        top[at] = (rt_logprob){id, logprob};
    }
}
