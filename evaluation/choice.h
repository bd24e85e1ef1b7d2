/* Multiple choice by likelihood: the model does not answer, its probabilities of the choices are compared.
 *
 * A choice's log-likelihood is the sum over its tokens after the context. The tokens are those of context and choice
 * encoded together, from where they differ from the context alone (the same place for all choices of a question).
 * accuracy takes the largest sum; accuracy_norm the largest sum for each character of the choice (code points,
 * without the space before it). The first choice wins a tie.
 * MMLU questions get as many of the five worked examples as fit; what then does not fit loses its beginning.
 */
#ifndef BISUP_EVALUATION_CHOICE_H
#define BISUP_EVALUATION_CHOICE_H

#include "common/progress.h"
#include "evaluation/lane.h"
#include "evaluation/task.h"
#include "runtime/tokenizer/tokenizer.h"

/* Answers of a group of questions. */
typedef struct ev_score {
    int questions, right, right_norm;
} ev_score;

typedef struct ev_choice_result {
    ev_score total;
    ev_score *groups;           /* [task.group_count], the caller's */
    int fewer_shots, shortened; /* questions with less than the usual examples; that lost their beginning */
} ev_choice_result;

/* Adds up to out (zeroed before, groups too). The tokenizer must not give ids that the model has not: an error names
 * them. Moves `progress` (may be NULL) from progress_base on. */
bis_status ev_choice_run(const ev_task *task, const rt_tokenizer *tokenizer, ev_lane *lane, ev_choice_result *out,
                         bis_progress *progress, size_t progress_base, bis_error *error);

/* The places of the choices with the largest sum and the largest sum a character. */
void ev_choice_best(const double *sums, const int *characters, int count, int *best, int *best_norm);

#endif
