#include "evaluation/metrics.h"

#include <math.h>
#include <stdlib.h>

#include "common/alloc.h"

int ev_argmax(const float *logits, int vocab) {
    int best = 0;
    for (int i = 1; i < vocab; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    return best;
}

double ev_log_sum(const float *logits, int vocab) {
    int best = ev_argmax(logits, vocab);
    double largest = (double)logits[best], others = 0;
    for (int i = 0; i < vocab; i++) {
        if (i != best) others += exp((double)logits[i] - largest);
    }
    return largest + log1p(others);
}

double ev_kl(const float *reference, double reference_sum, const float *logits, double sum, int vocab) {
    double kl = 0;
    for (int i = 0; i < vocab; i++) {
        double log_p = (double)reference[i] - reference_sum, p = exp(log_p);
        if (p > 0) kl += p * (log_p - ((double)logits[i] - sum)); /* p log p is 0 at p = 0 */
    }
    return kl;
}

static bool make_room(ev_metrics *metrics) {
    if (metrics->compared < metrics->capacity) return true;
    size_t capacity = metrics->capacity ? 2 * metrics->capacity : 1024;
    double *larger = bis_reallocarray(metrics->kl, capacity, sizeof *larger);
    if (!larger) return false;
    metrics->kl = larger;
    metrics->capacity = capacity;
    return true;
}

bis_status ev_metrics_add(ev_metrics *metrics, const float *logits, const float *reference, int vocab, int32_t next,
                          bis_error *error) {
    double sum = ev_log_sum(logits, vocab), nll = sum - (double)logits[next];
    if (!isfinite(nll)) {
        return bis_fail(error, BIS_ERR_FORMAT, "the model's logits are not finite at scored token %llu",
                        (unsigned long long)metrics->tokens);
    }
    if (reference) {
        if (!make_room(metrics)) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the figures of each token");
        double reference_sum = ev_log_sum(reference, vocab), reference_nll = reference_sum - (double)reference[next];
        double kl = ev_kl(reference, reference_sum, logits, sum, vocab);
        if (!isfinite(reference_nll) || !isfinite(kl)) {
            return bis_fail(error, BIS_ERR_FORMAT, "the reference's logits are not finite at scored token %llu",
                            (unsigned long long)metrics->tokens);
        }
        metrics->nll_reference += reference_nll;
        metrics->agreements += ev_argmax(logits, vocab) == ev_argmax(reference, vocab);
        metrics->kl[metrics->compared++] = kl;
    }
    metrics->nll += nll;
    metrics->tokens++;
    return BIS_OK;
}

void ev_metrics_free(ev_metrics *metrics) {
    bis_free(metrics->kl);
    *metrics = (ev_metrics){0};
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double ev_percentile(const double *values, size_t count, double share) {
    double place = share * (double)(count - 1);
    size_t below = (size_t)place;
    if (below + 1 >= count) return values[count - 1];
    return values[below] + (place - (double)below) * (values[below + 1] - values[below]);
}

static void summarise_kl(ev_metrics *metrics, ev_summary *out) {
    double count = (double)metrics->compared, sum = 0, squares = 0;
    qsort(metrics->kl, metrics->compared, sizeof *metrics->kl, compare_doubles);
    for (size_t i = 0; i < metrics->compared; i++) sum += metrics->kl[i]; /* the small ones first */
    out->kl = sum / count;
    for (size_t i = 0; i < metrics->compared; i++) {
        double difference = metrics->kl[i] - out->kl;
        squares += difference * difference;
    }
    out->kl_stderr = count > 1 ? sqrt(squares / (count - 1) / count) : 0;
    out->kl_p99 = ev_percentile(metrics->kl, metrics->compared, 0.99);
    out->top1 = (double)metrics->agreements / count;
    out->ppl_reference = exp(metrics->nll_reference / count);
}

void ev_metrics_summarise(ev_metrics *metrics, ev_summary *out) {
    *out = (ev_summary){.tokens = metrics->tokens, .compared = metrics->compared > 0};
    out->nll = metrics->nll / (double)metrics->tokens;
    out->ppl = exp(out->nll);
    if (out->compared) summarise_kl(metrics, out);
}

double ev_share_stderr(uint64_t right, uint64_t count) {
    if (!count) return 0;
    double share = (double)right / (double)count;
    return sqrt(share * (1 - share) / (double)count);
}
