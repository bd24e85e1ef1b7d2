#include "evaluation/lane.h"

#include "common/alloc.h"
#include "runtime/forward.h"
#include "runtime/kv_pages.h"

struct ev_runner {
    const rt_model_config *config;
    rt_forward *forward;
    int positions;
};

struct ev_lane {
    ev_runner *runner;
    rt_kv_pages *pages;
    int32_t *page_numbers;
    int prefix_count, span; /* span: tokens of the prefix that are a prompt span */
};

bis_status ev_runner_open(const rt_model *model, kn_backend *backend, int positions, ev_runner **out,
                          bis_error *error) {
    ev_runner *self = bis_calloc(1, sizeof *self);
    if (!self) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the evaluation");
    self->config = rt_model_get_config(model);
    self->positions = positions;
    bis_status status = rt_forward_open(model, backend, EV_ROWS, EV_ROWS, positions, &self->forward, error);
    if (status) {
        bis_free(self);
        return status;
    }
    *out = self;
    return BIS_OK;
}

void ev_runner_close(ev_runner *runner) {
    if (!runner) return;
    rt_forward_close(runner->forward);
    bis_free(runner);
}

int ev_runner_vocab(const ev_runner *runner) { return runner->config->vocab; }

static bis_status take_pages(ev_lane *self, ev_kv kv, bis_error *error) {
    rt_kv_count count = rt_kv_pages_need(kv.bits, self->span, self->runner->positions);
    bis_status status = rt_kv_pages_open(self->runner->config, kv.bits, count, &self->pages, error);
    if (status) return status;
    self->page_numbers = bis_calloc((size_t)count.full + (size_t)count.low, sizeof *self->page_numbers);
    if (!self->page_numbers) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the evaluation");
    rt_kv_pages_take(self->pages, count, self->page_numbers);
    return BIS_OK;
}

/* Rows at absolute positions. */
static const float *run_rows(ev_lane *lane, const int32_t *ids, int first, int count, int wanted) {
    int32_t positions[EV_ROWS], spans[EV_ROWS], logit_rows[EV_ROWS];
    const int32_t *tables[EV_ROWS];
    for (int i = 0; i < count; i++) {
        positions[i] = first + i;
        spans[i] = lane->span;
        tables[i] = lane->page_numbers;
        logit_rows[i] = wanted + i; /* used up to count - wanted */
    }
    rt_batch batch = {.rows = {.count = count, .position = positions, .pages = tables, .prompt = spans},
                      .tokens = ids,
                      .logit_rows = logit_rows,
                      .logit_count = count - wanted};
    return rt_forward_run(lane->runner->forward, rt_kv_pages_cache(lane->pages), &batch);
}

bis_status ev_lane_open(ev_runner *runner, ev_kv kv, const int32_t *prefix, int prefix_count, ev_lane **out,
                        bis_error *error) {
    ev_lane *self = bis_calloc(1, sizeof *self);
    if (!self) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the evaluation");
    self->runner = runner;
    self->prefix_count = prefix_count;
    self->span = kv.full_prefix ? prefix_count : 0;
    bis_status status = take_pages(self, kv, error);
    if (status) {
        ev_lane_close(self);
        return status;
    }
    for (int first = 0; first < prefix_count; first += EV_ROWS) {
        int rest = prefix_count - first, count = rest < EV_ROWS ? rest : EV_ROWS;
        run_rows(self, prefix + first, first, count, count);
    }
    *out = self;
    return BIS_OK;
}

void ev_lane_close(ev_lane *lane) {
    if (!lane) return;
    rt_kv_pages_close(lane->pages);
    bis_free(lane->page_numbers);
    bis_free(lane);
}

ev_runner *ev_lane_runner(const ev_lane *lane) { return lane->runner; }
int ev_lane_room(const ev_lane *lane) { return lane->runner->positions - lane->prefix_count; }
int ev_lane_prefix_count(const ev_lane *lane) { return lane->prefix_count; }

const float *ev_lane_run(ev_lane *lane, const int32_t *ids, int first, int count, int wanted) {
    return run_rows(lane, ids, lane->prefix_count + first, count, wanted);
}
