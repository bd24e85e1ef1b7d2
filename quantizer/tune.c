#include "quantizer/tune.h"

#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "quantizer/training.h"

enum { ROW_GRAIN = 8 };

qz_tune_options qz_tune_default_options(void) {
    return (qz_tune_options){.clip = true,
                             .smooth = true,
                             .low_rank = true,
                             .act_clip = true,
                             .error_cancelling = true,
                             .epochs = 15,
                             .batch = 4,
                             .rank = 64,
                             .lr_clip = 0.1,
                             .lr_smooth = 0.01,
                             .lr_low_rank = 0.01,
                             .lr_act_clip = 0.02,
                             .gradient_clip = 0.3,
                             .smooth_penalty = 1e-2,
                             .smooth_alpha = 0.5,
                             .held_out = 0.125};
}

void qz_tuned_free(qz_tuned *tuned) {
    for (int i = 0; i < QZ_LINEARS; i++) {
        bis_free(tuned->grid[i].scales);
        bis_free(tuned->grid[i].zeros);
    }
    *tuned = (qz_tuned){0};
}

typedef struct trainer {
    const qz_tune_options *options;
    qz_pass pass;
    float act_clip[QZ_SITES]; /* at the start */
    const qz_real *x, *target;
    int samples, tokens, batch;
    size_t sample_size;
    int *order; /* of samples: those held out, then those trained on */
    int held_out;
    qz_learned learned;
    qz_run run;
    qz_real *batch_x, *batch_target;
    double *row_error;
    qz_trained trained;
    qz_optimizer optimizer;
    bool diverged;
} trainer;

/* ---- Opening --------------------------------------------------------------------------------- */

static bool allocate(trainer *self) {
    size_t parameters = self->learned.first[QZ_PARTS] * sizeof(qz_real);
    size_t batch = (size_t)self->batch * self->sample_size * sizeof(qz_real);
    self->batch_x = bis_alloc_aligned(batch);
    self->batch_target = bis_alloc_aligned(batch);
    self->row_error = bis_calloc((size_t)self->batch * (size_t)self->tokens, sizeof *self->row_error);
    qz_trained *t = &self->trained;
    *t = (qz_trained){.parameter = self->learned.parameter, .gradient = self->learned.gradient};
    t->first = bis_alloc_aligned(parameters);
    t->second = bis_alloc_aligned(parameters);
    t->best = bis_alloc_aligned(parameters);
    return self->batch_x && self->batch_target && self->row_error && t->first && t->second && t->best;
}

static void close_trainer(trainer *self) {
    qz_learned_close(&self->learned);
    qz_run_close(&self->run);
    void *const owned[] = {self->order,         self->batch_x,        self->batch_target, self->row_error,
                           self->trained.first, self->trained.second, self->trained.best};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) bis_free(owned[i]);
}

static bis_status open_training(trainer *self, bis_error *error) {
    bis_status status = qz_learned_open(&self->pass, self->options, &self->learned, error);
    if (!status) status = qz_run_open(&self->pass, self->batch, self->tokens, true, &self->run, error);
    if (!status && !allocate(self)) status = bis_fail(error, BIS_ERR_NOMEM, "no memory to fine-tune a block");
    int trained = self->samples - self->held_out;
    self->optimizer = (qz_optimizer){.options = self->options, .compute = self->pass.compute};
    self->optimizer.steps = self->options->epochs * ((trained + self->batch - 1) / self->batch);
    return status;
}

/* ---- Errors ---------------------------------------------------------------------------------- */

static const qz_real *sample_of(const trainer *self, const qz_real *samples, int index) {
    return samples + (size_t)self->order[index] * self->sample_size;
}

/* Copies samples order[first .. first + count - 1] to the batch. */
static void gather(trainer *self, int first, int count) {
    for (int i = 0; i < count; i++) {
        size_t to = (size_t)i * self->sample_size, bytes = self->sample_size * sizeof(qz_real);
        memcpy(self->batch_x + to, sample_of(self, self->x, first + i), bytes);
        memcpy(self->batch_target + to, sample_of(self, self->target, first + i), bytes);
    }
}

static void row_errors(void *argument, int first, int last, int worker) {
    (void)worker;
    const trainer *self = argument;
    int hidden = self->pass.block->shape.hidden;
    for (int r = first; r < last; r++) {
        size_t at = (size_t)r * (size_t)hidden;
        qz_real *output = self->run.tape.output + at;
        self->row_error[r] = self->run.loops->squared_error(output, self->batch_target + at, hidden, output);
    }
}

/* The squared error of the gathered batch; the differences take the output's place. */
static double batch_error(trainer *self, int count) {
    qz_run_forward(&self->run, self->batch_x, count);
    qz_parallel(self->pass.compute, self->run.rows, ROW_GRAIN, row_errors, self);
    double sum = 0;
    for (int r = 0; r < self->run.rows; r++) sum += self->row_error[r];
    return sum;
}

/* How many samples decide: order[0 ...]. */
static int deciding(const trainer *self) { return self->held_out ? self->held_out : self->samples; }

static double target_energy(const trainer *self) {
    int count = deciding(self);
    double sum = 0;
    for (int i = 0; i < count; i++) {
        const qz_real *target = sample_of(self, self->target, i);
        for (size_t j = 0; j < self->sample_size; j++) sum += (double)target[j] * (double)target[j];
    }
    return sum > 0 ? sum : 1;
}

/* With the parameters as they are. */
static double held_out_error(trainer *self) {
    int count = deciding(self);
    double sum = 0;
    qz_learned_prepare(&self->learned, &self->run);
    for (int i = 0; i < count; i += self->batch) {
        int part = count - i < self->batch ? count - i : self->batch;
        gather(self, i, part);
        sum += batch_error(self, part);
    }
    return sum / target_energy(self);
}

/* Of the block as it came, rounded to nearest. */
static bis_status start_error(const trainer *self, double *out, bis_error *error) {
    int count = deciding(self);
    double sum = 0;
    size_t bytes = (size_t)count * self->sample_size * sizeof(qz_real);
    qz_real *y = bis_alloc_aligned(bytes);
    if (!y) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the samples that decide about tuning");
    for (int i = 0; i < count; i++) {
        memcpy(y + (size_t)i * self->sample_size, sample_of(self, self->x, i), self->sample_size * sizeof *y);
    }
    bis_status status = qz_simulate(&self->pass, y, count, self->tokens, y, error);
    for (int i = 0; i < count && !status; i++) {
        const qz_real *target = sample_of(self, self->target, i), *got = y + (size_t)i * self->sample_size;
        for (size_t j = 0; j < self->sample_size; j++) {
            double difference = (double)got[j] - (double)target[j];
            sum += difference * difference;
        }
    }
    bis_free(y);
    if (!status) *out = sum / target_energy(self);
    return status;
}

/* ---- Smoothing's start ----------------------------------------------------------------------- */

/* The largest magnitudes seen of the norm sites' channels, in the site's order. */
typedef struct site_ranges {
    qz_real *largest[QZ_NORM_SITES]; /* [hidden] */
} site_ranges;

static void watch_site(void *user, qz_site site, const qz_real *x, int rows, int width) {
    const site_ranges *ranges = user;
    if (site != QZ_SITE_ATTN && site != QZ_SITE_FFN) return;
    qz_real *largest = ranges->largest[site == QZ_SITE_FFN];
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < width; c++) {
            qz_real size = x[(size_t)r * (size_t)width + (size_t)c];
            size = size < 0 ? -size : size;
            if (size > largest[c]) largest[c] = size;
        }
    }
}

static void widen_range(const qz_block *block, qz_linear_id linear, qz_real *largest) {
    int rows = qz_linear_rows(&block->shape, linear), cols = qz_linear_cols(&block->shape, linear);
    for (int r = 0; r < rows; r++) {
        const qz_real *row = block->weight[linear] + (size_t)r * (size_t)cols;
        for (int c = 0; c < cols; c++) {
            qz_real size = row[c] < 0 ? -row[c] : row[c];
            if (size > largest[c]) largest[c] = size;
        }
    }
}

/* A channel without any size counts as a very small one. */
static double log_size(const qz_real *sizes, int count, int index) {
    qz_real largest = 0;
    for (int i = 0; i < count; i++) largest = sizes[i] > largest ? sizes[i] : largest;
    double least = (double)largest * 1e-4;
    if (!(least > 0)) return 0;
    return log((double)sizes[index] > least ? (double)sizes[index] : least);
}

static void start_site(trainer *self, int index, const qz_real *activations, qz_real *weights) {
    static const qz_site sites[QZ_NORM_SITES] = {QZ_SITE_ATTN, QZ_SITE_FFN};
    const qz_block *block = self->pass.block;
    const int32_t *order = block->order[sites[index]];
    int hidden = block->shape.hidden;
    double alpha = self->options->smooth_alpha, mean = 0;
    memset(weights, 0, (size_t)hidden * sizeof *weights);
    for (int i = 0; i < QZ_LINEARS; i++) {
        if (qz_site_of((qz_linear_id)i) == sites[index]) widen_range(block, (qz_linear_id)i, weights);
    }
    qz_real *log_x = self->learned.parameter + self->learned.log_x[index];
    qz_real *log_w = self->learned.parameter + self->learned.log_w[index];
    for (int c = 0; c < hidden; c++) {
        double size = alpha * log_size(activations, hidden, c) - (1 - alpha) * log_size(weights, hidden, c);
        log_x[order ? order[c] : c] = (qz_real)size;
        mean += size / hidden;
    }
    for (int c = 0; c < hidden; c++) log_w[c] = log_x[c] -= (qz_real)mean;
}

static bis_status start_smoothing(trainer *self, bis_error *error) {
    if (!self->options->smooth || self->options->smooth_alpha == 0) return BIS_OK;
    size_t hidden = (size_t)self->pass.block->shape.hidden;
    qz_real *memory = bis_alloc_aligned(3 * hidden * sizeof *memory);
    qz_real *y = bis_alloc_aligned(self->sample_size * sizeof *y);
    bis_status status = BIS_OK;
    if (!memory || !y) status = bis_fail(error, BIS_ERR_NOMEM, "no memory to find where smoothing starts");
    site_ranges ranges = {{memory, memory ? memory + hidden : NULL}};
    qz_pass pass = self->pass;
    pass.mode = QZ_FLOAT;
    pass.observe = watch_site;
    pass.observe_user = &ranges;
    for (int i = 0; i < self->samples && !status; i++) {
        status = qz_simulate(&pass, self->x + (size_t)i * self->sample_size, 1, self->tokens, y, error);
    }
    for (int i = 0; i < QZ_NORM_SITES && !status; i++) start_site(self, i, ranges.largest[i], memory + 2 * hidden);
    bis_free(memory);
    bis_free(y);
    return status;
}

/* ---- Training -------------------------------------------------------------------------------- */

/* One step on samples order[first ...]. The loss is the squared error over its own value, so its gradient has one size
 * whatever the block's is. */
static void train_step(trainer *self, int first, int count) {
    qz_learned_prepare(&self->learned, &self->run);
    gather(self, first, count);
    double error = batch_error(self, count);
    self->diverged = !isfinite(error);
    if (self->diverged || error == 0) return;
    qz_real factor = (qz_real)(2 / error);
    size_t size = (size_t)count * self->sample_size;
    for (size_t i = 0; i < size; i++) self->run.tape.output[i] *= factor;
    qz_learned_backward(&self->learned, &self->run, self->run.tape.output);
    qz_learned_penalty(&self->learned, self->options->smooth_penalty);
    qz_optimizer_step(&self->optimizer, &self->learned, &self->trained, 1);
}

static void train_epoch(trainer *self, int epoch) {
    const qz_tune_options *o = self->options;
    qz_shuffle(self->order, self->held_out, self->samples, o->seed + 0x100000001b3u * (uint64_t)epoch);
    for (int i = self->held_out; i < self->samples && !self->diverged; i += self->batch) {
        train_step(self, i, self->samples - i < self->batch ? self->samples - i : self->batch);
        if (o->on_step) o->on_step(o->on_step_user, self->optimizer.step, self->optimizer.steps);
    }
}

/* Sets *loss and *best_epoch where an epoch is better than *loss. */
static void train(trainer *self, double *loss, int *best_epoch) {
    size_t bytes = self->learned.first[QZ_PARTS] * sizeof(qz_real);
    for (int epoch = 1; epoch <= self->options->epochs; epoch++) {
        train_epoch(self, epoch);
        if (self->diverged) break;
        double error = held_out_error(self);
        if (!(error < *loss)) continue;
        *loss = error;
        *best_epoch = epoch;
        memcpy(self->trained.best, self->learned.parameter, bytes);
    }
    if (*best_epoch) memcpy(self->learned.parameter, self->trained.best, bytes);
}

/* ---- Results --------------------------------------------------------------------------------- */

static bis_status restart(trainer *self, bis_error *error) {
    qz_learned_close(&self->learned);
    bis_status status = qz_learned_open(&self->pass, self->options, &self->learned, error);
    return status ? status : start_smoothing(self, error);
}

/* The start kept: the grids of whole ranges. */
static bis_status keep_start(trainer *self, qz_tuned *out, bis_error *error) {
    const qz_tune_options nothing = {0};
    qz_learned_close(&self->learned);
    bis_status status = qz_learned_open(&self->pass, &nothing, &self->learned, error);
    if (!status) status = qz_learned_grids(&self->learned, out->grid, error);
    for (int i = 0; i < QZ_SITES; i++) out->act_clip[i] = self->pass.act_clip[i];
    return status;
}

static bis_status train_from_start(trainer *self, qz_tuned *out, bis_error *error) {
    bis_status status = start_error(self, &out->loss_before, error);
    if (status) return status;
    out->loss_after = out->loss_before;
    status = open_training(self, error);
    if (!status) status = start_smoothing(self, error);
    if (!status && self->learned.first[QZ_PARTS]) train(self, &out->loss_after, &out->best_epoch);
    return status;
}

static bis_status open_trainer(trainer *self, const qz_pass *pass, bis_error *error) {
    const qz_tune_options *options = self->options;
    bis_status status = qz_check_training(options, self->samples, self->tokens, error);
    if (status) return status;
    self->batch = options->batch < self->samples ? options->batch : self->samples;
    self->sample_size = (size_t)self->tokens * (size_t)pass->block->shape.hidden;
    self->pass = *pass;
    self->pass.mode = QZ_QUANTIZED;
    self->pass.observe = NULL;
    for (int i = 0; i < QZ_SITES; i++) self->act_clip[i] = pass->act_clip ? pass->act_clip[i] : 1;
    self->pass.act_clip = self->act_clip;
    self->order = bis_calloc((size_t)self->samples, sizeof *self->order);
    if (!self->order) return bis_fail(error, BIS_ERR_NOMEM, "no memory to fine-tune a block");
    self->held_out = qz_choose_held_out(self->order, self->samples, options->held_out, options->held_out_seed);
    return BIS_OK;
}

bis_status qz_tune(qz_block *block, const qz_pass *pass, const qz_tune_options *options, const qz_real *x_q,
                   const qz_real *target, int samples, int tokens, qz_tuned *out, bis_error *error) {
    trainer self = {.options = options, .x = x_q, .target = target, .samples = samples, .tokens = tokens};
    qz_pass own = *pass;
    qz_tuned tuned = {0};
    own.block = block;
    bis_status status = open_trainer(&self, &own, error);
    if (!status) status = train_from_start(&self, &tuned, error);
    if (!status && tuned.best_epoch) status = qz_learned_fold(&self.learned, &self.run, block, &tuned, error);
    else if (!status) status = keep_start(&self, &tuned, error);
    close_trainer(&self);
    if (status) qz_tuned_free(&tuned);
    else *out = tuned;
    return status;
}

bis_status qz_tune_parameters(const qz_pass *pass, const qz_tune_options *options, const qz_real *x_q,
                              const qz_real *target, int samples, int tokens, qz_real **parameters, size_t *count,
                              qz_tuned *out, bis_error *error) {
    trainer self = {.options = options, .x = x_q, .target = target, .samples = samples, .tokens = tokens};
    qz_tuned tuned = {0};
    qz_real *copy = NULL;
    bis_status status = open_trainer(&self, pass, error);
    if (!status) status = train_from_start(&self, &tuned, error);
    size_t size = self.learned.first[QZ_PARTS];
    if (!status) {
        copy = bis_alloc_aligned((size + 1) * sizeof *copy);
        if (!copy) status = bis_fail(error, BIS_ERR_NOMEM, "no memory for what tuning learned");
        /* with no best epoch training has left its last parameters: those of the start are made again */
        if (copy && !tuned.best_epoch) status = restart(&self, error);
    }
    if (!status) {
        memcpy(copy, self.learned.parameter, size * sizeof *copy);
        *parameters = copy;
        *count = size;
        *out = tuned;
    } else {
        bis_free(copy);
    }
    close_trainer(&self);
    return status;
}
