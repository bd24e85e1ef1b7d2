#include "evaluation/windows.h"

/* Rows [first, first + count) of the window `ids`: each predicts the token after it. */
static bis_status score_rows(ev_column *columns, int column_count, const int32_t *ids, int first, int count,
                             bis_error *error) {
    const float *reference = NULL;
    for (int c = 0; c < column_count; c++) {
        ev_column *column = &columns[c];
        int vocab = ev_runner_vocab(ev_lane_runner(column->lane));
        if (!column->reference) reference = NULL;
        else if (c == 0 || columns[c - 1].reference != column->reference) {
            reference = ev_lane_run(column->reference, ids + first, first, count, 0);
        }
        const float *logits = ev_lane_run(column->lane, ids + first, first, count, 0);
        for (int i = 0; i < count; i++) {
            size_t row = (size_t)i * (size_t)vocab;
            bis_status status = ev_metrics_add(&column->metrics, logits + row, reference ? reference + row : NULL,
                                               vocab, ids[first + i + 1], error);
            if (status) return status;
        }
    }
    return BIS_OK;
}

bis_status ev_windows_run(ev_column *columns, int column_count, const int32_t *ids, size_t count, int window,
                          bis_progress *progress, bis_error *error) {
    bis_status status = BIS_OK;
    for (size_t start = 0; start < count && !status; start += (size_t)window) {
        size_t left = count - start;
        int rows = (left < (size_t)window ? (int)left : window) - 1; /* the last token predicts nothing here */
        for (int first = 0; first < rows && !status; first += EV_ROWS) {
            int rest = rows - first;
            status = score_rows(columns, column_count, ids + start, first, rest < EV_ROWS ? rest : EV_ROWS, error);
            if (progress) bis_progress_update(progress, start + (size_t)first);
        }
    }
    return status;
}
