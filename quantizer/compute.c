#include "quantizer/compute.h"

#include <cblas.h>
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "common/alloc.h"
#include "common/log.h"
#include "kernels/cpu/pool.h"

enum { ROW_PIECE = 128, THREADS_MAX = 256 };

/* Debian's serial OpenBLAS looks for a free work buffer without a lock (it is built without USE_LOCKING), so that two
 * threads can get the same one: a few wrong products in 100,000. It calls this function of its own through a dynamic
 * symbol, which a program's definition takes the place of. Builds that have a lock are not harmed by another. */
void *blas_memory_alloc(int position);

static bool lock_was_used;

__attribute__((visibility("default"))) void *blas_memory_alloc(int position) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static void *(*library_function)(int);
    pthread_mutex_lock(&lock);
    lock_was_used = true;
    if (!library_function) {
        void *symbol = dlsym(RTLD_NEXT, "blas_memory_alloc");
        memcpy(&library_function, &symbol, sizeof symbol); /* C has no conversion of one to the other */
    }
    void *buffer = library_function(position);
    pthread_mutex_unlock(&lock);
    return buffer;
}

struct qz_compute {
    kn_pool *pool;
    int threads;
    double operations;
};

static bool blas_may_be_shared; /* by several threads */

static void try_blas(void) {
    enum { SIDE = 128 }; /* large enough for a work buffer */
    static float a[SIDE * SIDE], b[SIDE * SIDE], c[SIDE * SIDE];
    openblas_set_num_threads(1); /* ours share the work, and a product must not depend on how many there are */
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, SIDE, SIDE, SIDE, 1, a, SIDE, b, SIDE, 0, c, SIDE);
    blas_may_be_shared = lock_was_used || openblas_get_parallel() != OPENBLAS_SEQUENTIAL;
}

static void prepare_blas(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, try_blas);
}

bis_status qz_compute_open(int threads, qz_compute **out, bis_error *error) {
    if (threads < 0 || threads > THREADS_MAX) {
        return bis_fail(error, BIS_ERR_INVALID, "threads is %d: use 1 to %d, or 0 for one per core", threads,
                        THREADS_MAX);
    }
    cpu_set_t set;
    if (threads == 0) threads = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    qz_compute *self = bis_calloc(1, sizeof *self);
    if (!self) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the quantizer's threads");
    prepare_blas();
    if (threads > 1 && !blas_may_be_shared) {
        bis_warn("this OpenBLAS cannot serve several threads (it has neither locks nor takes ours): using one");
        threads = 1;
    }
    self->threads = threads;
    bis_status status = kn_pool_open(threads, &self->pool, error);
    if (status) bis_free(self);
    else *out = self;
    return status;
}

void qz_compute_close(qz_compute *compute) {
    if (!compute) return;
    kn_pool_close(compute->pool);
    bis_free(compute);
}

int qz_compute_threads(const qz_compute *compute) { return compute ? compute->threads : 1; }

double qz_compute_operations(const qz_compute *compute) { return compute->operations; }

typedef struct range_task {
    qz_range_fn fn;
    void *argument;
    int count, grain;
} range_task;

/* Every workers-th piece: which thread computes a piece never changes it. */
static void run_pieces(void *argument, int worker, int workers) {
    const range_task *task = argument;
    for (int64_t at = (int64_t)worker * task->grain; at < task->count; at += (int64_t)workers * task->grain) {
        int64_t end = at + task->grain;
        task->fn(task->argument, (int)at, end < task->count ? (int)end : task->count, worker);
    }
}

void qz_parallel(qz_compute *compute, int count, int grain, qz_range_fn fn, void *argument) {
    range_task task = {fn, argument, count, grain};
    if (!compute || count <= grain) run_pieces(&task, 0, 1);
    else kn_pool_run(compute->pool, run_pieces, &task);
}

typedef struct gemm_task {
    int n, k;
    qz_real alpha, beta;
    qz_matrix a, b;
    qz_real *c;
    int c_stride;
} gemm_task;

static void gemm_rows(void *argument, int first, int last, int worker) {
    (void)worker;
    const gemm_task *t = argument;
    const qz_real *a = t->a.data + (size_t)first * (t->a.transposed ? 1 : (size_t)t->a.stride);
    qz_real *c = t->c + (size_t)first * (size_t)t->c_stride;
#ifdef QZ_DOUBLE
    cblas_dgemm
#else
    cblas_sgemm
#endif
        (CblasRowMajor, t->a.transposed ? CblasTrans : CblasNoTrans, t->b.transposed ? CblasTrans : CblasNoTrans,
         last - first, t->n, t->k, t->alpha, a, t->a.stride, t->b.data, t->b.stride, t->beta, c, t->c_stride);
}

void qz_gemm(qz_compute *compute, int m, int n, int k, qz_real alpha, qz_matrix a, qz_matrix b, qz_real beta,
             qz_real *c, int c_stride) {
    if (!compute) prepare_blas();
    gemm_task task = {n, k, alpha, beta, a, b, c, c_stride};
    qz_parallel(compute, m, ROW_PIECE, gemm_rows, &task);
    if (compute) compute->operations += 2.0 * m * n * k;
}
