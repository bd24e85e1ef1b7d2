#include "quantizer/block.h"

#include "common/alloc.h"

qz_site qz_site_of(qz_linear_id linear) {
    switch (linear) {
    case QZ_O: return QZ_SITE_O;
    case QZ_GATE:
    case QZ_UP: return QZ_SITE_FFN;
    case QZ_DOWN: return QZ_SITE_DOWN;
    default: return QZ_SITE_ATTN;
    }
}

int qz_site_width(const qz_shape *shape, qz_site site) {
    switch (site) {
    case QZ_SITE_O: return shape->heads * shape->head_dim;
    case QZ_SITE_DOWN: return shape->ffn;
    default: return shape->hidden;
    }
}

int qz_linear_rows(const qz_shape *shape, qz_linear_id linear) {
    switch (linear) {
    case QZ_Q: return shape->heads * shape->head_dim;
    case QZ_K:
    case QZ_V: return shape->kv_heads * shape->head_dim;
    case QZ_GATE:
    case QZ_UP: return shape->ffn;
    default: return shape->hidden;
    }
}

int qz_linear_cols(const qz_shape *shape, qz_linear_id linear) { return qz_site_width(shape, qz_site_of(linear)); }

static bool allocate(qz_real **out, int rows, int cols) {
    *out = bis_alloc_aligned((size_t)rows * (size_t)cols * sizeof **out);
    return *out != NULL;
}

bis_status qz_block_alloc(const qz_shape *shape, bool qkv_bias, bool o_bias, bool mlp_bias, bool qk_norm,
                          qz_block **out, bis_error *error) {
    const bool biased[QZ_LINEARS] = {
        [QZ_Q] = qkv_bias,    [QZ_K] = qkv_bias,  [QZ_V] = qkv_bias,    [QZ_O] = o_bias,
        [QZ_GATE] = mlp_bias, [QZ_UP] = mlp_bias, [QZ_DOWN] = mlp_bias,
    };
    qz_block *self = bis_calloc(1, sizeof *self);
    bool done = self != NULL;
    if (done) self->shape = *shape;
    for (int i = 0; i < QZ_LINEARS && done; i++) {
        int rows = qz_linear_rows(shape, (qz_linear_id)i);
        done = allocate(&self->weight[i], rows, qz_linear_cols(shape, (qz_linear_id)i)) &&
               (!biased[i] || allocate(&self->bias[i], rows, 1));
    }
    done = done && allocate(&self->norm1, shape->hidden, 1) && allocate(&self->norm2, shape->hidden, 1);
    if (qk_norm)
        done = done && allocate(&self->q_norm, shape->head_dim, 1) && allocate(&self->k_norm, shape->head_dim, 1);
    if (!done) {
        qz_block_free(self);
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for the weights of a block");
    }
    *out = self;
    return BIS_OK;
}

void qz_block_free(qz_block *block) {
    if (!block) return;
    for (int i = 0; i < QZ_LINEARS; i++) {
        bis_free(block->weight[i]);
        bis_free(block->bias[i]);
    }
    qz_real *const vectors[] = {block->norm1, block->norm2, block->q_norm, block->k_norm};
    for (int i = 0; i < 4; i++) bis_free(vectors[i]);
    for (int i = 0; i < QZ_SITES; i++) bis_free(block->order[i]);
    bis_free(block);
}
