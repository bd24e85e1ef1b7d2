#include "quantizer/memory_plan.h"

#include "quantizer/learned.h"

static uint64_t block_numbers(const qz_shape *shape) {
    uint64_t numbers = 0;
    for (qz_linear_id l = 0; l < QZ_LINEARS; l++) {
        numbers += (uint64_t)qz_linear_rows(shape, l) * (uint64_t)qz_linear_cols(shape, l);
    }
    return numbers;
}

static uint64_t hessian_numbers(const qz_shape *shape, uint64_t *widest) {
    uint64_t numbers = 0;
    *widest = 0;
    for (qz_site site = 0; site < QZ_SITES; site++) {
        uint64_t square = (uint64_t)qz_site_width(shape, site) * (uint64_t)qz_site_width(shape, site);
        numbers += square;
        if (square > *widest) *widest = square;
    }
    return numbers;
}

/* Everything kept of one sample on its way through the block and back. */
static uint64_t sample_numbers(const qz_plan_input *in) {
    const qz_shape *s = &in->shape;
    uint64_t queries = (uint64_t)s->heads * (uint64_t)s->head_dim, keys = (uint64_t)s->kv_heads * (uint64_t)s->head_dim;
    uint64_t a_token = 8 * (uint64_t)s->hidden + 6 * queries + 8 * keys + 8 * (uint64_t)s->ffn;
    uint64_t scores = (uint64_t)s->heads * (uint64_t)(in->tokens + in->prompt_tokens);
    return (uint64_t)in->tokens * (a_token + 2 * scores);
}

/* The stage: all blocks with their prompts, parameters and what training keeps of these; head and logits; the blocks'
 * inputs of a batch and its way through one block. */
static uint64_t end_to_end(const qz_plan_input *in, const qz_memory_plan *plan) {
    enum { KEPT_BEFORE = 1, KEPT_IN_TRAINING = 5 };
    const uint64_t number = sizeof(qz_real);
    const qz_shape *s = &in->shape;
    qz_block block = {.shape = *s};
    qz_pass pass = {.block = &block, .spec = in->spec};
    uint64_t layers = (uint64_t)in->layers, weights = block_numbers(s), hidden = (uint64_t)s->hidden;
    uint64_t parameters = qz_learned_count(&pass, in->tune);
    uint64_t prompt = 2 * (uint64_t)in->prompt_tokens * (uint64_t)s->kv_heads * (uint64_t)s->head_dim;
    uint64_t head = ((uint64_t)in->vocab + 1) * hidden;
    uint64_t kept = (layers * (weights + prompt) + head) * number;
    uint64_t batch = (uint64_t)(in->tune->batch < in->samples ? in->tune->batch : in->samples);
    uint64_t inputs = (layers + 2) * batch * (uint64_t)in->tokens * hidden;
    uint64_t training = (inputs + batch * sample_numbers(in) + 3 * weights) * number +
                        qz_divergence_bytes(s->hidden, in->vocab) + layers * KEPT_IN_TRAINING * parameters * number;
    uint64_t before = plan->total - plan->activations + layers * KEPT_BEFORE * parameters * number;
    return plan->activations + kept + (training > before ? training : before);
}

qz_memory_plan qz_plan_memory(const qz_plan_input *in) {
    const uint64_t number = sizeof(qz_real);
    uint64_t block = block_numbers(&in->shape), widest;
    uint64_t hessians = hessian_numbers(&in->shape, &widest);
    uint64_t all = (uint64_t)in->samples * (uint64_t)in->tokens * (uint64_t)in->shape.hidden;
    bool rounds = in->spec->weight_bits != KN_NOT_QUANTIZED;
    bool tunes = in->method->tune && in->samples;
    qz_memory_plan plan = {.activations = all * (tunes ? 3 : 2) * number,
                           .blocks = 2 * block * number + (rounds ? block : 0)};
    if (in->samples) plan.tuning = sample_numbers(in) * number;
    /* GPTQ: the Hessians, and the widest one's factor in double. */
    if (in->method->hessian && in->gptq && rounds)
        plan.hessians = hessians * sizeof(float) + 2 * widest * sizeof(double);
    /* W + dW, its quantized form, the gradient, and the compensation's factors with AdamW's two moments. */
    if (tunes)
        plan.tuning += 4 * block * number + 6 * (uint64_t)in->tune->rank * block / (uint64_t)in->shape.hidden * number;
    uint64_t late = plan.hessians > plan.tuning ? plan.hessians : plan.tuning; /* not at the same time */
    if (tunes && plan.hessians) plan.blocks += block * number + block;         /* both roundings are tried */
    plan.total = plan.activations + plan.blocks + late;
    if (in->end_to_end) plan.end_to_end = end_to_end(in, &plan);
    return plan;
}

bis_status qz_plan_check(const qz_memory_plan *plan, uint64_t available, bis_error *error) {
    if (plan->total <= available) return BIS_OK;
    return bis_fail(
        error, BIS_ERR_NOMEM,
        "%.2f GB of memory are needed (activations %.2f, blocks %.2f, Hessians %.2f, tuning %.2f), but %.2f "
        "are free: give fewer --samples or a shorter --seq-len",
        (double)plan->total / 1e9, (double)plan->activations / 1e9, (double)plan->blocks / 1e9,
        (double)plan->hessians / 1e9, (double)plan->tuning / 1e9, (double)available / 1e9);
}
