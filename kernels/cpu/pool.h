/* A fork-join thread pool with a static split of the work.
 *
 * The calling thread is worker 0. Workers spin briefly for the next task and then sleep, so that short
 * operations follow each other quickly and an idle server costs nothing. One caller at a time.
 */
#ifndef BISUP_KERNELS_CPU_POOL_H
#define BISUP_KERNELS_CPU_POOL_H

#include "common/status.h"

typedef struct kn_pool kn_pool;
typedef void (*kn_pool_fn)(void *task, int worker, int workers);

bis_status kn_pool_open(int threads, kn_pool **out, bis_error *error);
void kn_pool_close(kn_pool *pool);
int kn_pool_threads(const kn_pool *pool);

/* Runs fn(task, worker, workers) on every worker and returns when all are done. */
void kn_pool_run(kn_pool *pool, kn_pool_fn fn, void *task);

/* Worker `worker`'s part [*first, *last) of `units` units, as even as whole units allow. */
void kn_pool_split(int units, int worker, int workers, int *first, int *last);

#endif
