/* Atom's reordering of channels. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "quantizer/transform.h"

typedef struct ranked {
    double importance;
    int32_t channel;
} ranked;

static int compare(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->importance != y->importance) return x->importance < y->importance ? -1 : 1;
    return x->channel < y->channel ? -1 : x->channel > y->channel;
}

/* What reordering needs, allocated before anything is changed. */
typedef struct reorder_work {
    int32_t *order[QZ_SITES];
    ranked *ranks; /* [the widest site] */
    qz_real *row;  /* [the widest site] */
    bool *placed;  /* [ffn] */
} reorder_work;

static void free_work(reorder_work *work) {
    for (int site = 0; site < QZ_SITES; site++) bis_free(work->order[site]);
    bis_free(work->ranks);
    bis_free(work->row);
    bis_free(work->placed);
}

static bis_status alloc_work(const qz_shape *shape, reorder_work *work, bis_error *error) {
    size_t widest = 0;
    bool complete = true;
    for (int site = 0; site < QZ_SITES; site++) {
        size_t width = (size_t)qz_site_width(shape, (qz_site)site);
        work->order[site] = bis_calloc(width, sizeof(int32_t));
        complete = complete && work->order[site];
        if (width > widest) widest = width;
    }
    work->ranks = bis_calloc(widest, sizeof *work->ranks);
    work->row = bis_calloc(widest, sizeof *work->row);
    work->placed = bis_calloc((size_t)shape->ffn, sizeof *work->placed);
    if (complete && work->ranks && work->row && work->placed) return BIS_OK;
    return bis_fail(error, BIS_ERR_NOMEM, "no memory for reordering a block");
}

static bis_status rank_site(qz_site site, const double *importance, int width, reorder_work *work, bis_error *error) {
    static const char *const names[QZ_SITES] = {"q, k and v", "o", "gate and up", "down"};
    for (int i = 0; i < width; i++) {
        if (!isfinite(importance[i])) {
            return bis_fail(error, BIS_ERR_INVALID, "the importance of channel %d of the input of %s is not finite", i,
                            names[site]);
        }
        work->ranks[i] = (ranked){importance[i], i};
    }
    qsort(work->ranks, (size_t)width, sizeof *work->ranks, compare);
    for (int i = 0; i < width; i++) work->order[site][i] = work->ranks[i].channel;
    return BIS_OK;
}

static void permute_columns(qz_real *matrix, int rows, int cols, const int32_t *order, qz_real *scratch) {
    for (int r = 0; r < rows; r++) {
        qz_real *row = matrix + (size_t)r * (size_t)cols;
        memcpy(scratch, row, (size_t)cols * sizeof *row);
        for (int c = 0; c < cols; c++) row[c] = scratch[order[c]];
    }
}

/* Row r becomes the former row order[r]: along each cycle of the permutation, with one row set aside. */
static void permute_rows(qz_real *matrix, int rows, int cols, const int32_t *order, const reorder_work *work) {
    size_t width = (size_t)cols, bytes = width * sizeof *matrix;
    memset(work->placed, 0, (size_t)rows * sizeof *work->placed);
    for (int start = 0; start < rows; start++) {
        if (work->placed[start]) continue;
        memcpy(work->row, matrix + (size_t)start * width, bytes);
        int r = start;
        for (; order[r] != start; r = order[r]) {
            memcpy(matrix + (size_t)r * width, matrix + (size_t)order[r] * width, bytes);
            work->placed[r] = true;
        }
        memcpy(matrix + (size_t)r * width, work->row, bytes);
        work->placed[r] = true;
    }
}

bis_status qz_reorder_block(qz_block *block, const double *const importance[QZ_SITES], bis_error *error) {
    const qz_shape *shape = &block->shape;
    reorder_work work = {0};
    bis_status status = alloc_work(shape, &work, error);
    for (int site = 0; !status && site < QZ_SITES; site++) {
        if (block->order[site]) status = bis_fail(error, BIS_ERR_INVALID, "the block is in an order already");
        else status = rank_site((qz_site)site, importance[site], qz_site_width(shape, (qz_site)site), &work, error);
    }
    if (status) {
        free_work(&work);
        return status;
    }
    for (int i = 0; i < QZ_LINEARS; i++) {
        const int32_t *order = work.order[qz_site_of((qz_linear_id)i)];
        permute_columns(block->weight[i], qz_linear_rows(shape, (qz_linear_id)i),
                        qz_linear_cols(shape, (qz_linear_id)i), order, work.row);
    }
    for (int i = QZ_GATE; i <= QZ_UP; i++) {
        permute_rows(block->weight[i], shape->ffn, shape->hidden, work.order[QZ_SITE_DOWN], &work);
        if (block->bias[i]) permute_rows(block->bias[i], shape->ffn, 1, work.order[QZ_SITE_DOWN], &work);
    }
    for (int site = 0; site < QZ_SITE_DOWN; site++) {
        block->order[site] = work.order[site];
        work.order[site] = NULL;
    }
    free_work(&work);
    return BIS_OK;
}
