/* Running a model over token rows for measurements: without server, scheduler or sampling.
 *
 * A runner is a model's forward pass. A lane is one sequence in a KV cache of its own: a prefix that is computed once,
 * and after it positions that are written again for every window or ending that is scored. That is exact, because
 * attention reads only what is stored at positions up to its own.
 * Lanes of one runner take turns: logits are valid until the runner's next run. One thread.
 */
#ifndef BISUP_EVALUATION_LANE_H
#define BISUP_EVALUATION_LANE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"
#include "kernels/backend.h"
#include "runtime/model/model.h"

enum { EV_ROWS = 64 }; /* the most rows of one run */

typedef struct ev_runner ev_runner;
typedef struct ev_lane ev_lane;

/* Borrows model and backend until closing; positions: the most tokens of a lane, its prefix included. */
bis_status ev_runner_open(const rt_model *model, kn_backend *backend, int positions, ev_runner **out, bis_error *error);
void ev_runner_close(ev_runner *runner); /* NULL is allowed */
int ev_runner_vocab(const ev_runner *runner);

/* How a lane keeps its keys and values. */
typedef struct ev_kv {
    int bits; /* as --kv-bits */
    bool
        full_prefix; /* low bits: the prefix is a prompt span, kept at full precision; else it is low-bit as the rest */
} ev_kv;

/* Computes the prefix [prefix_count] (copied nowhere: only its keys and values are kept). Borrows the runner. */
bis_status ev_lane_open(ev_runner *runner, ev_kv kv, const int32_t *prefix, int prefix_count, ev_lane **out,
                        bis_error *error);
void ev_lane_close(ev_lane *lane); /* NULL is allowed */
ev_runner *ev_lane_runner(const ev_lane *lane);
int ev_lane_room(const ev_lane *lane);         /* tokens that fit after the prefix */
int ev_lane_prefix_count(const ev_lane *lane); /* tokens of the prefix */

/* Computes rows ids[0..count) that stand at places first, first + 1, ... after the prefix; all places before must have
 * been computed. Returns the logits [count - wanted, vocab] of rows wanted .. count-1 (of none where wanted is count).
 * count <= EV_ROWS, first + count <= ev_lane_room. */
const float *ev_lane_run(ev_lane *lane, const int32_t *ids, int first, int count, int wanted);

#endif
