/* Perplexity, and the distance to a reference model, over the windows of a text.
 *
 * Protocol: the text's ids are cut into windows that do not overlap; each is predicted on its own, after the lane's
 * prefix. A window's first token is not scored (also after a prefix, so that columns with and without one score the
 * same tokens); a last, shorter window is scored too unless it has a single token.
 */
#ifndef BISUP_EVALUATION_WINDOWS_H
#define BISUP_EVALUATION_WINDOWS_H

#include <stddef.h>

#include "common/progress.h"
#include "evaluation/lane.h"
#include "evaluation/metrics.h"

/* One way to run the model. Columns whose references are the same lane share its runs where they stand together. */
typedef struct ev_column {
    ev_lane *lane;
    ev_lane *reference; /* of another runner with the same vocabulary; NULL: none */
    ev_metrics metrics; /* zeroed before */
} ev_column;

/* window: tokens, at least 2 and within all lanes' room. Moves `progress` (may be NULL) to ids read. */
bis_status ev_windows_run(ev_column *columns, int column_count, const int32_t *ids, size_t count, int window,
                          bis_progress *progress, bis_error *error);

#endif
