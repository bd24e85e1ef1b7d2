#include "common/progress.h"

#include <stdio.h>
#include <unistd.h>

#include "common/clock.h"

void bis_progress_start(bis_progress *progress, const char *label, uint64_t total, bool quiet) {
    *progress = (bis_progress){.label = label,
                               .total = total ? total : 1,
                               .started = bis_now_seconds(),
                               .quiet = quiet,
                               .terminal = isatty(STDERR_FILENO)};
}

static void draw_bar(bis_progress *progress, uint64_t done, double now) {
    enum { WIDTH = 30 };
    char bar[WIDTH + 1];
    int filled = (int)(WIDTH * done / progress->total);
    for (int i = 0; i < WIDTH; i++) bar[i] = i < filled ? '#' : '.';
    bar[WIDTH] = '\0';
    double elapsed = now - progress->started;
    double left = done ? elapsed * (double)(progress->total - done) / (double)done : 0;
    fprintf(stderr, "\r%s [%s] %3d%%  %.0f s left \033[K", progress->label, bar, (int)(100 * done / progress->total),
            left);
    progress->last_drawn = now;
}

void bis_progress_update(bis_progress *progress, uint64_t done) {
    if (progress->quiet) return;
    if (done > progress->total) done = progress->total;
    double now = bis_now_seconds();
    if (progress->terminal) {
        if (now - progress->last_drawn >= 0.1) draw_bar(progress, done, now);
        return;
    }
    int tenth = (int)(10 * done / progress->total);
    if (tenth > progress->last_tenth && tenth < 10) {
        fprintf(stderr, "%s %d%% (%.1f s)\n", progress->label, tenth * 10, now - progress->started);
        progress->last_tenth = tenth;
    }
}

void bis_progress_finish(bis_progress *progress) {
    if (progress->quiet) return;
    double elapsed = bis_now_seconds() - progress->started;
    fprintf(stderr, "%s%s done in %.1f s%s\n", progress->terminal ? "\r" : "", progress->label, elapsed,
            progress->terminal ? "\033[K" : "");
}
