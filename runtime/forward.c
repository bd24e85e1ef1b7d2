#include "runtime/forward.h"

#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "runtime/rope.h"

/* A layer's small vectors as F32; NULL where the model has none. */
typedef struct layer_vectors {
    float *attention_norm, *ffn_norm, *q_norm, *k_norm;
    float *q_bias, *k_bias, *v_bias, *o_bias, *gate_bias, *up_bias, *down_bias;
} layer_vectors;

struct rt_forward {
    const rt_model *model;
    const rt_model_config *config;
    kn_backend *backend;
    int max_rows, max_logits;
    layer_vectors *vectors; /* [layers] */
    float *final_norm;
    float *rope_table; /* [max_context, head_dim] */
    float *vector_memory, *next_vector;
    float *residual, *normed; /* [max_rows, hidden] */
    float *q, *attended;      /* [max_rows, heads * head_dim] */
    float *k, *v;             /* [max_rows, kv_heads * head_dim] */
    float *gate, *up;         /* [max_rows, ffn] */
    float *logits;            /* [max_logits, vocab] */
    uint64_t work_bytes;

    /* Quantized models. */
    kn_hadamard *head_hadamard, *heads_hadamard, *ffn_hadamard; /* NULL: the model has no such transform */
    kn_activations input;                                       /* of the linears that come next */
    float *ordered; /* [max_rows, widest input]: where inputs are reordered and not quantized */
};

static size_t vector_floats(const rt_model *model) {
    const rt_model_config *c = rt_model_get_config(model);
    size_t queries = (size_t)c->heads * (size_t)c->head_dim, keys = (size_t)c->kv_heads * (size_t)c->head_dim;
    size_t layer = 4 * (size_t)c->hidden + 2 * (size_t)c->head_dim + queries + 2 * keys + 2 * (size_t)c->ffn;
    return (size_t)c->layers * layer + (size_t)c->hidden;
}

/* The next vector of the vector memory, filled from `tensor`; NULL for an absent tensor. */
static float *widen(rt_forward *self, kn_tensor tensor) {
    if (!tensor.data) return NULL;
    float *out = self->next_vector;
    for (int i = 0; i < tensor.cols; i++) out[i] = kn_tensor_get(&tensor, (size_t)i);
    self->next_vector += tensor.cols;
    return out;
}

static void widen_all(rt_forward *self) {
    self->next_vector = self->vector_memory;
    for (int i = 0; i < self->config->layers; i++) {
        const rt_layer *layer = rt_model_layer(self->model, i);
        self->vectors[i] = (layer_vectors){
            .attention_norm = widen(self, layer->attention_norm),
            .ffn_norm = widen(self, layer->ffn_norm),
            .q_norm = widen(self, layer->q_norm),
            .k_norm = widen(self, layer->k_norm),
            .q_bias = widen(self, layer->q_bias),
            .k_bias = widen(self, layer->k_bias),
            .v_bias = widen(self, layer->v_bias),
            .o_bias = widen(self, layer->o_bias),
            .gate_bias = widen(self, layer->gate_bias),
            .up_bias = widen(self, layer->up_bias),
            .down_bias = widen(self, layer->down_bias),
        };
    }
    self->final_norm = widen(self, rt_model_final_norm(self->model));
}

/* Allocates rows * width floats and counts them; NULL when memory is exhausted. */
static float *work_memory(rt_forward *self, int rows, int width) {
    size_t bytes = (size_t)rows * (size_t)width * sizeof(float);
    self->work_bytes += bytes;
    return bis_alloc_aligned(bytes);
}

/* The most columns, and the most scales of a row, that any input of a layer's linears has. */
static void input_sizes(const rt_model_config *config, int *widest, int *scales) {
    const rt_quantization *q = &config->quantization;
    *widest = *scales = 0;
    for (int site = 0; site < RT_SITE_COUNT; site++) {
        int width = rt_model_site_width(config, (rt_site)site);
        kn_act_format format = {.bits = q->activation_bits, .group = q->group, .outliers = q->outliers[site]};
        int groups = q->activation_bits == KN_NOT_QUANTIZED ? 0 : kn_act_groups(&format, width);
        if (width > *widest) *widest = width;
        if (groups > *scales) *scales = groups;
    }
}

/* Memory for the inputs of linears in the form that a quantized model's linears read. */
static bool allocate_input(rt_forward *self) {
    int widest, scales;
    input_sizes(self->config, &widest, &scales);
    if (self->config->quantization.activation_bits == KN_NOT_QUANTIZED) {
        if (!rt_model_layer(self->model, 0)->packed.order[RT_SITE_ATTN]) return true;
        self->ordered = work_memory(self, self->max_rows, widest);
        return self->ordered;
    }
    size_t code_bytes = (size_t)self->max_rows * (size_t)widest;
    self->input.codes = bis_alloc_aligned(code_bytes);
    self->input.scales = work_memory(self, self->max_rows, scales);
    self->work_bytes += code_bytes;
    return self->input.codes && self->input.scales;
}

static bis_status open_hadamards(rt_forward *self, bis_error *error) {
    const rt_model_config *c = self->config;
    const rt_quantization *q = &c->quantization;
    bis_status status = BIS_OK;
    if (q->key_hadamard) status = kn_hadamard_open(c->head_dim, &self->head_hadamard, error);
    if (!status && q->heads_hadamard) status = kn_hadamard_open(c->heads, &self->heads_hadamard, error);
    if (!status && q->ffn_hadamard) status = kn_hadamard_open(c->ffn, &self->ffn_hadamard, error);
    return status;
}

static bool allocate(rt_forward *self, int max_context) {
    const rt_model_config *c = self->config;
    int rows = self->max_rows;
    self->vectors = bis_calloc((size_t)c->layers, sizeof *self->vectors);
    size_t floats = vector_floats(self->model);
    self->vector_memory = bis_alloc_aligned(floats * sizeof(float));
    self->work_bytes += floats * sizeof(float);
    self->rope_table = work_memory(self, max_context, c->head_dim);
    self->residual = work_memory(self, rows, c->hidden);
    self->normed = work_memory(self, rows, c->hidden);
    self->q = work_memory(self, rows, c->heads * c->head_dim);
    self->attended = work_memory(self, rows, c->heads * c->head_dim);
    self->k = work_memory(self, rows, c->kv_heads * c->head_dim);
    self->v = work_memory(self, rows, c->kv_heads * c->head_dim);
    self->gate = work_memory(self, rows, c->ffn);
    self->up = work_memory(self, rows, c->ffn);
    self->logits = work_memory(self, self->max_logits, c->vocab);
    return self->vectors && self->vector_memory && self->rope_table && self->residual && self->normed && self->q &&
           self->attended && self->k && self->v && self->gate && self->up && self->logits && allocate_input(self);
}

bis_status rt_forward_open(const rt_model *model, kn_backend *backend, int max_rows, int max_logits, int max_context,
                           rt_forward **out, bis_error *error) {
    rt_forward *self = bis_calloc(1, sizeof *self);
    if (!self) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the forward pass");
    self->model = model;
    self->config = rt_model_get_config(model);
    self->backend = backend;
    self->max_rows = max_rows;
    self->max_logits = max_logits;
    if (!allocate(self, max_context)) {
        uint64_t bytes = self->work_bytes;
        rt_forward_close(self);
        return bis_fail(error, BIS_ERR_NOMEM,
                        "no memory for %.1f MB of activations: lower --prefill-chunk, --max-batch or --max-context",
                        (double)bytes / 1e6);
    }
    bis_status status = open_hadamards(self, error);
    if (status) {
        rt_forward_close(self);
        return status;
    }
    widen_all(self);
    rt_rope_fill_table(&self->config->rope, self->config->head_dim, max_context, self->rope_table);
    *out = self;
    return BIS_OK;
}

void rt_forward_close(rt_forward *forward) {
    if (!forward) return;
    float *const owned[] = {
        forward->vector_memory, forward->rope_table, forward->residual,    forward->normed, forward->q,
        forward->attended,      forward->k,          forward->v,           forward->gate,   forward->up,
        forward->logits,        forward->ordered,    forward->input.scales};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) bis_free(owned[i]);
    bis_free(forward->input.codes);
    kn_hadamard_close(forward->head_hadamard);
    kn_hadamard_close(forward->heads_hadamard);
    kn_hadamard_close(forward->ffn_hadamard);
    bis_free(forward->vectors);
    bis_free(forward);
}

uint64_t rt_forward_work_bytes(const rt_forward *forward) { return forward->work_bytes; }

/* Makes x [rows, width of the site] the input of the linears that follow: in the layer's order and quantized, where the
 * model has these; otherwise x itself is read. */
static void set_input(rt_forward *self, const rt_layer *layer, rt_site site, float *x, int rows) {
    const rt_quantization *q = &self->config->quantization;
    const int32_t *order = layer->packed.order[site];
    kn_activations *input = &self->input;
    int width = rt_model_site_width(self->config, site);
    input->format = (kn_act_format){q->activation_bits, q->group, q->outliers[site], layer->packed.act_clip[site]};
    if (order || q->activation_bits != KN_NOT_QUANTIZED) {
        input->values = self->ordered;
        self->backend->ops->quantize(self->backend, x, rows, width, order, input);
        return;
    }
    input->values = x;
    input->rows = rows;
    input->cols = width;
}

/* y = the input that set_input made, times one of the two forms of a matrix. */
static void linear(rt_forward *self, const kn_tensor *dense, const kn_qweight *packed, const float *bias, float *y) {
    const kn_ops *ops = self->backend->ops;
    const kn_activations *x = &self->input;
    if (packed->codes) ops->qmatmul(self->backend, packed, bias, x, y);
    else ops->matmul(self->backend, dense, bias, x->values, x->rows, y);
}

static void hadamard(rt_forward *self, const kn_hadamard *transform, int stride, int rows, int width, float *x) {
    if (transform) self->backend->ops->hadamard(self->backend, transform, stride, rows, width, x);
}

/* RoPE, and what a quantized model's cache asks for. K goes into the cache without RoPE where attention rotates what it
 * reads. */
static void rotate(rt_forward *self, const kn_kv_cache *cache, const kn_rows *rows) {
    const rt_model_config *c = self->config;
    const kn_ops *ops = self->backend->ops;
    ops->rope(self->backend, rows, self->rope_table, c->heads, c->head_dim, self->q);
    if (!cache->key_table) ops->rope(self->backend, rows, self->rope_table, c->kv_heads, c->head_dim, self->k);
    hadamard(self, self->head_hadamard, 1, rows->count, c->heads * c->head_dim, self->q);
    hadamard(self, self->head_hadamard, 1, rows->count, c->kv_heads * c->head_dim, self->k);
}

static void attention_block(rt_forward *self, const kn_kv_cache *cache, int index, const kn_rows *rows) {
    const rt_model_config *c = self->config;
    const kn_ops *ops = self->backend->ops;
    const rt_layer *layer = rt_model_layer(self->model, index);
    const layer_vectors *vectors = &self->vectors[index];
    int n = rows->count;
    ops->rmsnorm(self->backend, self->residual, vectors->attention_norm, c->norm_eps, n, c->hidden, self->normed);
    set_input(self, layer, RT_SITE_ATTN, self->normed, n);
    linear(self, &layer->q, &layer->packed.q, vectors->q_bias, self->q);
    linear(self, &layer->k, &layer->packed.k, vectors->k_bias, self->k);
    linear(self, &layer->v, &layer->packed.v, vectors->v_bias, self->v);
    if (vectors->q_norm) {
        ops->rmsnorm(self->backend, self->q, vectors->q_norm, c->norm_eps, n * c->heads, c->head_dim, self->q);
        ops->rmsnorm(self->backend, self->k, vectors->k_norm, c->norm_eps, n * c->kv_heads, c->head_dim, self->k);
    }
    rotate(self, cache, rows);
    ops->kv_store(self->backend, cache, index, rows, self->k, self->v);
    ops->attention(self->backend, cache, index, rows, self->q, c->heads, self->attended);
    hadamard(self, self->heads_hadamard, c->head_dim, n, c->heads * c->head_dim, self->attended);
    set_input(self, layer, RT_SITE_O, self->attended, n);
    linear(self, &layer->o, &layer->packed.o, vectors->o_bias, self->normed);
    ops->add(self->backend, self->residual, self->normed, n, c->hidden);
}

static void ffn_block(rt_forward *self, int index, int n) {
    const rt_model_config *c = self->config;
    const kn_ops *ops = self->backend->ops;
    const rt_layer *layer = rt_model_layer(self->model, index);
    const layer_vectors *vectors = &self->vectors[index];
    ops->rmsnorm(self->backend, self->residual, vectors->ffn_norm, c->norm_eps, n, c->hidden, self->normed);
    set_input(self, layer, RT_SITE_FFN, self->normed, n);
    linear(self, &layer->gate, &layer->packed.gate, vectors->gate_bias, self->gate);
    linear(self, &layer->up, &layer->packed.up, vectors->up_bias, self->up);
    ops->swiglu(self->backend, self->gate, self->up, n, c->ffn, self->gate);
    hadamard(self, self->ffn_hadamard, 1, n, c->ffn, self->gate);
    set_input(self, layer, RT_SITE_DOWN, self->gate, n);
    linear(self, &layer->down, &layer->packed.down, vectors->down_bias, self->normed);
    ops->add(self->backend, self->residual, self->normed, n, c->hidden);
}

/* Final norm and LM head of the wanted rows only. */
static void head_block(rt_forward *self, const rt_batch *batch) {
    const rt_model_config *c = self->config;
    const kn_ops *ops = self->backend->ops;
    size_t hidden = (size_t)c->hidden;
    for (int i = 0; i < batch->logit_count; i++) {
        /* logit_rows rises, so row i's place was read before it is overwritten */
        size_t row = (size_t)batch->logit_rows[i];
        if (row != (size_t)i) memcpy(self->residual + (size_t)i * hidden, self->residual + row * hidden, hidden * 4);
    }
    ops->rmsnorm(self->backend, self->residual, self->final_norm, c->norm_eps, batch->logit_count, c->hidden,
                 self->normed);
    kn_tensor head = rt_model_head(self->model);
    ops->matmul(self->backend, &head, NULL, self->normed, batch->logit_count, self->logits);
}

const float *rt_forward_run(rt_forward *forward, const kn_kv_cache *cache, const rt_batch *batch) {
    kn_tensor embedding = rt_model_embedding(forward->model);
    kn_kv_cache own = *cache;
    if (cache->low_bits && forward->config->quantization.key_before_rope) own.key_table = forward->rope_table;
    int n = batch->rows.count;
    forward->backend->ops->embed(forward->backend, &embedding, batch->tokens, n, forward->residual);
    for (int i = 0; i < forward->config->layers; i++) {
        attention_block(forward, &own, i, &batch->rows);
        ffn_block(forward, i, n);
    }
    if (batch->logit_count) head_block(forward, batch);
    return forward->logits;
}
