#include "quantizer/divergence.h"

#include <string.h>

#include "common/alloc.h"
#include "quantizer/loops.h"

/* Logits of a piece of rows: many enough for all threads, few enough for a vocabulary of 100,000 and more. */
enum { PIECE_LOGITS = 1 << 25, PIECE_LEAST = 128, PIECE_MOST = 1024, ROW_GRAIN = 4 };

struct qz_divergence {
    qz_compute *compute;
    qz_head head;
    const qz_loops *loops;
    int piece;                /* rows */
    qz_real *normed;          /* [piece, hidden] */
    qz_real *target, *logits; /* [piece, vocab] */
    double *sums;             /* [piece] */
    qz_real *memory;
};

static int piece_rows(int vocab) {
    int rows = PIECE_LOGITS / vocab / PIECE_LEAST * PIECE_LEAST;
    return rows < PIECE_LEAST ? PIECE_LEAST : rows > PIECE_MOST ? PIECE_MOST : rows;
}

static size_t numbers(int hidden, int vocab) {
    return (size_t)piece_rows(vocab) * ((size_t)hidden + 2 * (size_t)vocab);
}

uint64_t qz_divergence_bytes(int hidden, int vocab) { return numbers(hidden, vocab) * sizeof(qz_real); }

bis_status qz_divergence_open(qz_compute *compute, const qz_head *head, qz_divergence **out, bis_error *error) {
    qz_divergence *self = bis_calloc(1, sizeof *self);
    if (self) {
        self->piece = piece_rows(head->vocab);
        self->memory = bis_alloc_aligned(numbers(head->hidden, head->vocab) * sizeof(qz_real));
        self->sums = bis_calloc((size_t)self->piece, sizeof *self->sums);
    }
    if (!self || !self->memory || !self->sums) {
        qz_divergence_close(self);
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for logits");
    }
    self->compute = compute;
    self->head = *head;
    self->loops = qz_loops_get();
    self->normed = self->memory;
    self->target = self->normed + (size_t)self->piece * (size_t)head->hidden;
    self->logits = self->target + (size_t)self->piece * (size_t)head->vocab;
    *out = self;
    return BIS_OK;
}

void qz_divergence_close(qz_divergence *divergence) {
    if (!divergence) return;
    bis_free(divergence->memory);
    bis_free(divergence->sums);
    bis_free(divergence);
}

typedef struct piece {
    qz_divergence *self;
    const qz_real *x;
    qz_real *gradient;
    qz_real factor;
} piece;

static void norm_rows(void *argument, int first, int last, int worker) {
    (void)worker;
    const piece *p = argument;
    const qz_head *head = &p->self->head;
    for (int r = first; r < last; r++) {
        size_t at = (size_t)r * (size_t)head->hidden;
        p->self->loops->norm(p->x + at, head->norm, (qz_real)head->norm_eps, head->hidden, p->self->normed + at);
    }
}

static void compare_rows(void *argument, int first, int last, int worker) {
    (void)worker;
    const piece *p = argument;
    for (int r = first; r < last; r++) {
        size_t at = (size_t)r * (size_t)p->self->head.vocab;
        p->self->sums[r] =
            p->self->loops->divergence(p->self->target + at, p->self->logits + at, p->self->head.vocab, p->factor);
    }
}

static void norm_rows_backward(void *argument, int first, int last, int worker) {
    (void)worker;
    const piece *p = argument;
    const qz_head *head = &p->self->head;
    for (int r = first; r < last; r++) {
        size_t at = (size_t)r * (size_t)head->hidden;
        memset(p->gradient + at, 0, (size_t)head->hidden * sizeof *p->gradient);
        p->self->loops->norm_backward(p->x + at, head->norm, (qz_real)head->norm_eps, head->hidden,
                                      p->self->normed + at, p->gradient + at);
    }
}

static void make_logits(qz_divergence *self, const qz_real *x, int rows, qz_real *logits) {
    piece p = {.self = self, .x = x};
    qz_parallel(self->compute, rows, ROW_GRAIN, norm_rows, &p);
    qz_matrix normed = {self->normed, self->head.hidden, false}, weight = {self->head.weight, self->head.hidden, true};
    qz_gemm(self->compute, rows, self->head.vocab, self->head.hidden, 1, normed, weight, 0, logits, self->head.vocab);
}

static double compare_piece(qz_divergence *self, const qz_real *original, int rows, piece *p) {
    double sum = 0;
    make_logits(self, original, rows, self->target);
    make_logits(self, p->x, rows, self->logits);
    qz_parallel(self->compute, rows, ROW_GRAIN, compare_rows, p);
    for (int r = 0; r < rows; r++) sum += self->sums[r];
    if (!p->gradient) return sum;
    qz_matrix logits = {self->logits, self->head.vocab, false}, weight = {self->head.weight, self->head.hidden, false};
    qz_gemm(self->compute, rows, self->head.hidden, self->head.vocab, 1, logits, weight, 0, self->normed,
            self->head.hidden);
    qz_parallel(self->compute, rows, ROW_GRAIN, norm_rows_backward, p);
    return sum;
}

double qz_divergence_rows(qz_divergence *divergence, const qz_real *original, const qz_real *quantized, int rows,
                          qz_real factor, qz_real *gradient) {
    double sum = 0;
    for (int first = 0; first < rows; first += divergence->piece) {
        int count = rows - first < divergence->piece ? rows - first : divergence->piece;
        size_t at = (size_t)first * (size_t)divergence->head.hidden;
        piece p = {divergence, quantized + at, gradient ? gradient + at : NULL, factor};
        sum += compare_piece(divergence, original + at, count, &p);
    }
    return sum;
}
