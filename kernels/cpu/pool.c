#include "kernels/cpu/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "common/alloc.h"

enum { SPIN_ROUNDS = 2000 }; /* some tens of microseconds */

typedef struct pool_worker {
    kn_pool *pool;
    int index;
    pthread_t thread;
} pool_worker;

struct kn_pool {
    int threads;
    pool_worker *workers; /* [threads]; entry 0 is the caller and has no thread */
    int started;          /* workers whose thread runs, entry 0 included */
    kn_pool_fn fn;
    void *task;
    atomic_uint generation; /* rises with every task */
    atomic_int unfinished;
    atomic_bool closing;
    atomic_int sleepers;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
};

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void wait_for_task(kn_pool *pool, unsigned seen) {
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        if (atomic_load_explicit(&pool->generation, memory_order_acquire) != seen) return;
        pause_briefly();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->generation) == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void start_task(kn_pool *pool) {
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleepers) == 0) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

static void *worker_main(void *argument) {
    pool_worker *self = argument;
    kn_pool *pool = self->pool;
    unsigned seen = 0;
    for (;;) {
        wait_for_task(pool, seen);
        seen++;
        if (atomic_load(&pool->closing)) return NULL;
        pool->fn(pool->task, self->index, pool->threads);
        atomic_fetch_sub_explicit(&pool->unfinished, 1, memory_order_release);
    }
}

void kn_pool_run(kn_pool *pool, kn_pool_fn fn, void *task) {
    if (pool->threads == 1) {
        fn(task, 0, 1);
        return;
    }
    pool->fn = fn;
    pool->task = task;
    atomic_store(&pool->unfinished, pool->threads - 1);
    start_task(pool);
    fn(task, 0, pool->threads);
    for (int spins = 0; atomic_load_explicit(&pool->unfinished, memory_order_acquire) > 0; spins++) {
        if (spins < SPIN_ROUNDS) pause_briefly();
        else sched_yield(); /* more threads than cores: let the others finish */
    }
}

bis_status kn_pool_open(int threads, kn_pool **out, bis_error *error) {
    kn_pool *pool = bis_calloc(1, sizeof *pool);
    if (pool) pool->workers = bis_calloc((size_t)threads, sizeof *pool->workers);
    if (!pool || !pool->workers) {
        bis_free(pool);
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for the thread pool");
    }
    pool->threads = threads;
    pool->started = 1;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (int i = 1; i < threads; i++) {
        pool_worker *w = &pool->workers[i];
        w->pool = pool;
        w->index = i;
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0) {
            kn_pool_close(pool);
            return bis_fail(error, BIS_ERR_IO, "cannot start thread %d of %d: use fewer --threads", i + 1, threads);
        }
        pool->started++;
    }
    *out = pool;
    return BIS_OK;
}

void kn_pool_close(kn_pool *pool) {
    if (!pool) return;
    atomic_store(&pool->closing, true);
    start_task(pool);
    for (int i = 1; i < pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    bis_free(pool->workers);
    bis_free(pool);
}

int kn_pool_threads(const kn_pool *pool) { return pool->threads; }

void kn_pool_split(int units, int worker, int workers, int *first, int *last) {
    *first = (int)((long long)units * worker / workers);
    *last = (int)((long long)units * (worker + 1) / workers);
}
