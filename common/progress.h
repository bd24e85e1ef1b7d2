/* A progress bar on standard error for work of known length: a bar with the time left on a
 * terminal, a line at every tenth of the way otherwise. Silent when `quiet`. One thread. */
#ifndef BISUP_COMMON_PROGRESS_H
#define BISUP_COMMON_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct bis_progress {
    const char *label;
    uint64_t total;
    double started, last_drawn;
    int last_tenth;
    bool quiet, terminal;
} bis_progress;

void bis_progress_start(bis_progress *progress, const char *label, uint64_t total, bool quiet);
void bis_progress_update(bis_progress *progress, uint64_t done);
void bis_progress_finish(bis_progress *progress);

#endif
