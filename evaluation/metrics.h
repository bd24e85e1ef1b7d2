/* What is measured at each scored position of a text, and its summary.
 *
 * Everything is computed in double from the two models' logits. KL is KL(reference || model) in nats: the mean of
 * log p_reference - log p_model under the reference's distribution, over the whole vocabulary. Pure; one thread.
 */
#ifndef BISUP_EVALUATION_METRICS_H
#define BISUP_EVALUATION_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

/* Sums over positions; zero-initialise, free with ev_metrics_free. */
typedef struct ev_metrics {
    uint64_t tokens;
    double nll, nll_reference; /* sums of -log p of the token that follows */
    uint64_t agreements;       /* positions where both models' most probable tokens are the same */
    double *kl;                /* [compared]: of every position, for the percentile */
    size_t compared, capacity;
} ev_metrics;

/* Adds a position: logits [vocab] of the model and of the reference (NULL: none; then at no position), and the token
 * that follows. BIS_ERR_FORMAT where a logit is NaN, or no figure can be given because of infinities. */
bis_status ev_metrics_add(ev_metrics *metrics, const float *logits, const float *reference, int vocab, int32_t next,
                          bis_error *error);
void ev_metrics_free(ev_metrics *metrics);

typedef struct ev_summary {
    uint64_t tokens;
    double nll, ppl; /* mean, and exp of it */
    bool compared;   /* the rest is there */
    double ppl_reference;
    double kl, kl_stderr; /* mean, and standard deviation / sqrt(positions), as if positions were independent */
    double kl_p99, top1;  /* 99th percentile; share of agreements */
} ev_summary;

/* Sorts metrics->kl; no positions may be added afterwards. tokens must not be 0. */
void ev_metrics_summarise(ev_metrics *metrics, ev_summary *out);

/* log sum exp of the logits: log p of a token = logits[token] - this. NaN where a logit is NaN. */
double ev_log_sum(const float *logits, int vocab);

/* KL of two rows of logits whose ev_log_sum are known. */
double ev_kl(const float *reference, double reference_sum, const float *logits, double sum, int vocab);

/* The place of the largest logit; the lowest of several. */
int ev_argmax(const float *logits, int vocab);

/* The value at `share` (0 to 1) of the way through `values`, rising; linear between neighbours. count > 0. */
double ev_percentile(const double *values, size_t count, double share);

/* Standard error of a share of `right` in `count` answers: sqrt(p (1 - p) / count); 0 where count is 0. */
double ev_share_stderr(uint64_t right, uint64_t count);

#endif
