#include "quantizer/end_to_end.h"

#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "quantizer/training.h"

/* One object for what learning needs and one for a pass serve all blocks in turn. */
typedef struct stage {
    const qz_end_input *in;
    const qz_tune_options *options;
    qz_pass pass;
    qz_learned learned;
    qz_run run;
    qz_divergence *divergence;
    int batch, held_out;
    int *order; /* of samples: those held out, then those trained on */
    size_t sample_size;
    qz_trained *trained; /* [layers] */
    qz_real *memory;     /* theirs */
    qz_real **inputs;    /* [layers + 1] of [batch, tokens, hidden]; the last is the last block's output */
    qz_real *input_memory, *gradient;
    qz_optimizer optimizer;
    bool diverged;
} stage;

/* ---- Opening --------------------------------------------------------------------------------- */

static void turn_to(stage *self, int layer) {
    const qz_end_block *b = &self->in->blocks[layer];
    self->pass.block = b->block;
    self->pass.prompt = b->prompt;
    qz_learned_turn_to(&self->learned, b->parameter, self->trained ? self->trained[layer].gradient : NULL);
}

/* What a block's pass needs. self must stay where it is. */
static bis_status open_passes(stage *self, int batch, bool keeps, bis_error *error) {
    const qz_end_input *in = self->in;
    self->pass = (qz_pass){.compute = in->compute,
                           .block = in->blocks[0].block,
                           .spec = in->spec,
                           .mode = QZ_QUANTIZED,
                           .act_clip = in->act_clip,
                           .rope_table = in->rope_table,
                           .prompt = in->blocks[0].prompt};
    self->batch = batch;
    self->sample_size = (size_t)in->tokens * (size_t)in->head.hidden;
    bis_status status = qz_learned_open(&self->pass, self->options, &self->learned, error);
    return status ? status : qz_run_open(&self->pass, batch, in->tokens, keeps, &self->run, error);
}

static void close_stage(stage *self) {
    qz_learned_close(&self->learned);
    qz_run_close(&self->run);
    qz_divergence_close(self->divergence);
    void *const owned[] = {self->order, self->trained, self->memory, self->inputs, self->input_memory, self->gradient};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) bis_free(owned[i]);
}

enum { KEPT = 4 }; /* gradient, two moments, best */

static bis_status open_training(stage *self, bis_error *error) {
    const qz_end_input *in = self->in;
    size_t layers = (size_t)in->layers, count = self->learned.first[QZ_PARTS];
    size_t batch = (size_t)self->batch * self->sample_size;
    self->order = bis_calloc((size_t)in->samples, sizeof *self->order);
    self->trained = bis_calloc(layers, sizeof *self->trained);
    self->memory = bis_alloc_aligned((layers * KEPT * count + 1) * sizeof *self->memory);
    self->inputs = bis_calloc(layers + 1, sizeof *self->inputs);
    self->input_memory = bis_alloc_aligned((layers + 1) * batch * sizeof *self->input_memory);
    self->gradient = bis_alloc_aligned(batch * sizeof *self->gradient);
    if (!self->order || !self->trained || !self->memory || !self->inputs || !self->input_memory || !self->gradient)
        return bis_fail(error, BIS_ERR_NOMEM, "no memory to train all blocks together: use --no-end-to-end");
    for (size_t i = 0; i < layers; i++) {
        qz_real *at = self->memory + i * KEPT * count;
        self->trained[i] = (qz_trained){in->blocks[i].parameter, at, at + count, at + 2 * count, at + 3 * count};
    }
    for (size_t i = 0; i <= layers; i++) self->inputs[i] = self->input_memory + i * batch;
    self->held_out =
        qz_choose_held_out(self->order, in->samples, self->options->held_out, self->options->held_out_seed);
    int trained = in->samples - self->held_out;
    self->optimizer = (qz_optimizer){.options = self->options, .compute = in->compute};
    self->optimizer.steps = self->options->epochs * ((trained + self->batch - 1) / self->batch);
    return qz_divergence_open(in->compute, &in->head, &self->divergence, error);
}

/* ---- Passes ---------------------------------------------------------------------------------- */

/* Samples order[first .. first + count - 1] through all blocks. */
static void forward(stage *self, int first, int count) {
    size_t bytes = self->sample_size * sizeof(qz_real);
    for (int i = 0; i < count; i++) {
        memcpy(self->inputs[0] + (size_t)i * self->sample_size,
               self->in->x + (size_t)self->order[first + i] * self->sample_size, bytes);
    }
    for (int layer = 0; layer < self->in->layers; layer++) {
        turn_to(self, layer);
        qz_learned_prepare(&self->learned, &self->run);
        qz_run_forward(&self->run, self->inputs[layer], count);
        memcpy(self->inputs[layer + 1], self->run.tape.output, (size_t)count * bytes);
    }
}

/* After forward: the sum of divergences; with_gradient: that of their mean over the batch's tokens. */
static double compare(stage *self, int first, int count, bool with_gradient) {
    const qz_end_input *in = self->in;
    const qz_real *output = self->inputs[in->layers];
    qz_real factor = 1 / (qz_real)((double)count * in->tokens);
    double sum = 0;
    for (int i = 0; i < count; i++) {
        size_t at = (size_t)i * self->sample_size;
        sum += qz_divergence_rows(self->divergence, in->final + (size_t)self->order[first + i] * self->sample_size,
                                  output + at, in->tokens, factor, with_gradient ? self->gradient + at : NULL);
    }
    return sum;
}

/* The run still holds the last block's pass. */
static void backward(stage *self, int count) {
    for (int layer = self->in->layers - 1; layer >= 0; layer--) {
        if (layer < self->in->layers - 1) {
            turn_to(self, layer);
            qz_learned_prepare(&self->learned, &self->run);
            qz_run_forward(&self->run, self->inputs[layer], count);
        }
        qz_learned_backward(&self->learned, &self->run, self->gradient);
        qz_learned_penalty(&self->learned, self->options->smooth_penalty);
    }
}

/* ---- Training -------------------------------------------------------------------------------- */

/* Mean over the tokens of the samples that decide, with the parameters as they are. */
static double held_out_divergence(stage *self) {
    int count = self->held_out ? self->held_out : self->in->samples;
    double sum = 0;
    for (int i = 0; i < count; i += self->batch) {
        int part = count - i < self->batch ? count - i : self->batch;
        forward(self, i, part);
        sum += compare(self, i, part, false);
    }
    return sum / count / self->in->tokens;
}

static void train_step(stage *self, int first, int count) {
    forward(self, first, count);
    self->diverged = !isfinite(compare(self, first, count, true));
    if (self->diverged) return;
    backward(self, count);
    qz_optimizer_step(&self->optimizer, &self->learned, self->trained, self->in->layers);
}

static void train_epoch(stage *self, int epoch) {
    const qz_tune_options *o = self->options;
    int samples = self->in->samples;
    qz_shuffle(self->order, self->held_out, samples, o->seed + 0x100000001b3u * (uint64_t)epoch);
    for (int i = self->held_out; i < samples && !self->diverged; i += self->batch) {
        train_step(self, i, samples - i < self->batch ? samples - i : self->batch);
        if (o->on_step) o->on_step(o->on_step_user, self->optimizer.step, self->optimizer.steps);
    }
}

static void copy_best(const stage *self, bool back) {
    size_t bytes = self->learned.first[QZ_PARTS] * sizeof(qz_real);
    for (int i = 0; i < self->in->layers; i++) {
        const qz_trained *t = &self->trained[i];
        memcpy(back ? t->parameter : t->best, back ? t->best : t->parameter, bytes);
    }
}

static void train(stage *self, qz_end_result *out) {
    out->before = out->after = held_out_divergence(self);
    copy_best(self, false);
    int epochs = self->learned.first[QZ_PARTS] ? self->options->epochs : 0; /* none where there is nothing to learn */
    for (int epoch = 1; epoch <= epochs; epoch++) {
        train_epoch(self, epoch);
        if (self->diverged) break;
        double found = held_out_divergence(self);
        if (!(found < out->after)) continue;
        out->after = found;
        out->best_epoch = epoch;
        copy_best(self, false);
    }
    copy_best(self, true);
}

bis_status qz_end_to_end(const qz_end_input *input, const qz_tune_options *options, qz_end_result *out,
                         bis_error *error) {
    bis_status status = qz_check_training(options, input->samples, input->tokens, error);
    if (status) return status;
    stage self = {.in = input, .options = options};
    qz_end_result result = {0};
    status = open_passes(&self, options->batch < input->samples ? options->batch : input->samples, true, error);
    if (!status) status = open_training(&self, error);
    if (!status) train(&self, &result);
    if (!status && !isfinite(result.before))
        status = bis_fail(error, BIS_ERR_INVALID, "the quantized model's logits are not finite");
    close_stage(&self);
    if (!status) *out = result;
    return status;
}

/* ---- Blocks one by one ----------------------------------------------------------------------- */

bis_status qz_end_fold(const qz_end_input *input, const qz_tune_options *options, int layer, qz_tuned *out,
                       bis_error *error) {
    stage self = {.in = input, .options = options};
    qz_tuned tuned = {0};
    bis_status status = open_passes(&self, 1, false, error);
    if (!status) {
        turn_to(&self, layer);
        status = qz_learned_fold(&self.learned, &self.run, input->blocks[layer].block, &tuned, error);
    }
    close_stage(&self);
    if (status) qz_tuned_free(&tuned);
    else *out = tuned;
    return status;
}

bis_status qz_end_simulate(const qz_end_input *input, const qz_tune_options *options, int layer, const qz_real *x,
                           int samples, qz_real *y, void (*on_sample)(void *user), void *user, bis_error *error) {
    stage self = {.in = input, .options = options};
    bis_status status = open_passes(&self, 1, false, error);
    if (!status) {
        turn_to(&self, layer);
        qz_learned_prepare(&self.learned, &self.run);
        for (int i = 0; i < samples; i++) {
            size_t at = (size_t)i * self.sample_size;
            qz_run_forward(&self.run, x + at, 1);
            memcpy(y + at, self.run.tape.output, self.sample_size * sizeof *y);
            if (on_sample) on_sample(user);
        }
    }
    close_stage(&self);
    return status;
}
