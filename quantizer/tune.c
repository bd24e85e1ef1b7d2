#include "quantizer/tune.h"

#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "quantizer/learned.h"
#include "quantizer/random.h"

enum { ADAM_PIECE = 8192, ROW_GRAIN = 8 };

static const double FIRST_DECAY = 0.9, SECOND_DECAY = 0.999, EPSILON = 1e-8;
static const double WARM_UP = 0.05; /* share of steps over which rates rise to their full size */
static const qz_real ACT_CLIP_LEAST = (qz_real)0.1, ACT_CLIP_MOST = 1;

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
    qz_real *first, *second, *best; /* Adam's moments; the best parameters */
    int steps, step;
    bool diverged;
} trainer;

/* ---- Opening --------------------------------------------------------------------------------- */

static bis_status check_options(const qz_tune_options *o, int samples, int tokens, bis_error *error) {
    if (samples < 1 || tokens < 1)
        return bis_fail(error, BIS_ERR_INVALID, "no samples to tune on: give more calibration text");
    if (o->batch < 1) return bis_fail(error, BIS_ERR_INVALID, "tuning in batches of %d: use 1 or more", o->batch);
    if (o->epochs < 0) return bis_fail(error, BIS_ERR_INVALID, "tuning for %d epochs: use 0 or more", o->epochs);
    if (o->rank < 0) return bis_fail(error, BIS_ERR_INVALID, "a compensation of rank %d: use 0 or more", o->rank);
    if (!(o->held_out >= 0 && o->held_out < 1))
        return bis_fail(error, BIS_ERR_INVALID, "%g of the samples held out: use 0 or more, and less than 1",
                        o->held_out);
    return BIS_OK;
}

/* Fisher and Yates, of order[first .. count - 1]. */
static void shuffle(int *order, int first, int count, uint64_t seed) {
    for (int i = count - 1; i > first; i--) {
        int j = first + (int)(qz_random_bits(seed, (uint64_t)i) % (uint64_t)(i - first + 1));
        int kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

/* With one sample, or a share of 0, the samples trained on decide. */
static void choose_held_out(trainer *self) {
    int count = (int)lround(self->options->held_out * self->samples);
    if (count < 1 && self->options->held_out > 0) count = 1;
    if (count > self->samples - 1) count = self->samples - 1;
    self->held_out = count;
    for (int i = 0; i < self->samples; i++) self->order[i] = i;
    shuffle(self->order, 0, self->samples, self->options->seed);
}

static bool allocate(trainer *self) {
    size_t parameters = self->learned.first[QZ_PARTS] * sizeof(qz_real);
    size_t batch = (size_t)self->batch * self->sample_size * sizeof(qz_real);
    self->batch_x = bis_alloc_aligned(batch);
    self->batch_target = bis_alloc_aligned(batch);
    self->row_error = bis_calloc((size_t)self->batch * (size_t)self->tokens, sizeof *self->row_error);
    self->first = bis_alloc_aligned(parameters);
    self->second = bis_alloc_aligned(parameters);
    self->best = bis_alloc_aligned(parameters);
    return self->batch_x && self->batch_target && self->row_error && self->first && self->second && self->best;
}

static void close_trainer(trainer *self) {
    qz_learned_close(&self->learned);
    qz_run_close(&self->run);
    void *const owned[] = {self->order, self->batch_x, self->batch_target, self->row_error,
                           self->first, self->second,  self->best};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) bis_free(owned[i]);
}

static bis_status open_training(trainer *self, bis_error *error) {
    bis_status status = qz_learned_open(&self->pass, self->options, &self->learned, error);
    if (!status) status = qz_run_open(&self->pass, self->batch, self->tokens, true, &self->run, error);
    if (!status && !allocate(self)) status = bis_fail(error, BIS_ERR_NOMEM, "no memory to fine-tune a block");
    int trained = self->samples - self->held_out;
    self->steps = self->options->epochs * ((trained + self->batch - 1) / self->batch);
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

/* Relative to a part's rate: rising, then half a cosine down to 0. */
static double schedule(const trainer *self) {
    const double pi = 3.14159265358979323846;
    double warm = WARM_UP * self->steps;
    if (self->step < warm) return (self->step + 1) / (warm + 1);
    return (1 + cos(pi * (self->step - warm) / (self->steps - warm))) / 2;
}

static double gradient_factor(const trainer *self) {
    const qz_learned *learned = &self->learned;
    double squares = 0;
    for (size_t i = 0; i < learned->first[QZ_PARTS]; i++) {
        squares += (double)learned->gradient[i] * (double)learned->gradient[i];
    }
    double size = sqrt(squares), most = self->options->gradient_clip;
    return most > 0 && size > most ? most / size : 1;
}

typedef struct adam_task {
    const trainer *trainer;
    qz_adam adam;
    size_t first;
} adam_task;

static void adam_piece(void *argument, int first, int last, int worker) {
    (void)worker;
    const adam_task *task = argument;
    const trainer *self = task->trainer;
    size_t at = task->first + (size_t)first;
    self->learned.loops->adam(&task->adam, last - first, self->learned.gradient + at, self->first + at,
                              self->second + at, self->learned.parameter + at);
}

static void update(trainer *self) {
    const qz_tune_options *o = self->options;
    const double rates[QZ_PARTS] = {o->lr_clip, o->lr_smooth, o->lr_low_rank, o->lr_act_clip};
    qz_learned *learned = &self->learned;
    double factor = gradient_factor(self), share = schedule(self);
    self->step++;
    for (int i = 0; i < QZ_PARTS; i++) {
        adam_task task = {.trainer = self, .first = learned->first[i]};
        task.adam.rate = (qz_real)(rates[i] * share / (1 - pow(FIRST_DECAY, self->step)));
        task.adam.second_correction = (qz_real)(1 / (1 - pow(SECOND_DECAY, self->step)));
        task.adam.gradient_factor = (qz_real)factor;
        task.adam.first_decay = (qz_real)FIRST_DECAY;
        task.adam.second_decay = (qz_real)SECOND_DECAY;
        task.adam.epsilon = (qz_real)EPSILON;
        size_t count = learned->first[i + 1] - learned->first[i];
        qz_parallel(self->pass.compute, (int)count, ADAM_PIECE, adam_piece, &task);
    }
    for (size_t i = learned->first[QZ_PART_ACT_CLIP]; i < learned->first[QZ_PARTS]; i++) {
        qz_real clip = learned->parameter[i];
        learned->parameter[i] = clip < ACT_CLIP_LEAST ? ACT_CLIP_LEAST : clip > ACT_CLIP_MOST ? ACT_CLIP_MOST : clip;
    }
}

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
    update(self);
}

static void train_epoch(trainer *self, int epoch) {
    const qz_tune_options *o = self->options;
    shuffle(self->order, self->held_out, self->samples, o->seed + 0x100000001b3u * (uint64_t)epoch);
    for (int i = self->held_out; i < self->samples && !self->diverged; i += self->batch) {
        train_step(self, i, self->samples - i < self->batch ? self->samples - i : self->batch);
        if (o->on_step) o->on_step(o->on_step_user, self->step, self->steps);
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
        memcpy(self->best, self->learned.parameter, bytes);
    }
    if (*best_epoch) memcpy(self->learned.parameter, self->best, bytes);
}

/* ---- Results --------------------------------------------------------------------------------- */

/* Puts the learned weights and norms into the block, the grids and clips into *out. */
static bis_status fold(trainer *self, qz_block *block, qz_tuned *out, bis_error *error) {
    const qz_learned *learned = &self->learned;
    qz_learned_prepare(&self->learned, &self->run);
    bis_status status = qz_learned_grids(learned, out->grid, error);
    if (status) return status;
    for (int i = 0; i < QZ_SITES; i++) {
        size_t at = learned->clip + (size_t)i;
        out->act_clip[i] = learned->has[QZ_PART_ACT_CLIP] ? (float)learned->parameter[at] : self->pass.act_clip[i];
    }
    size_t hidden = (size_t)block->shape.hidden;
    memcpy(block->norm1, learned->norm[0], hidden * sizeof *block->norm1);
    memcpy(block->norm2, learned->norm[1], hidden * sizeof *block->norm2);
    for (int i = 0; i < QZ_LINEARS; i++) {
        if (!learned->plain_own[i]) continue;
        qz_linear_id linear = (qz_linear_id)i;
        size_t count = (size_t)qz_linear_rows(&block->shape, linear) * (size_t)qz_linear_cols(&block->shape, linear);
        memcpy(block->weight[i], learned->plain_own[i], count * sizeof *block->weight[i]);
    }
    return BIS_OK;
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

static bis_status tune(trainer *self, qz_block *block, qz_tuned *out, bis_error *error) {
    bis_status status = start_error(self, &out->loss_before, error);
    if (status) return status;
    out->loss_after = out->loss_before;
    status = open_training(self, error);
    if (!status) status = start_smoothing(self, error);
    if (status) return status;
    if (self->learned.first[QZ_PARTS]) train(self, &out->loss_after, &out->best_epoch);
    return out->best_epoch ? fold(self, block, out, error) : keep_start(self, out, error);
}

bis_status qz_tune(qz_block *block, const qz_pass *pass, const qz_tune_options *options, const qz_real *x_q,
                   const qz_real *target, int samples, int tokens, qz_tuned *out, bis_error *error) {
    bis_status status = check_options(options, samples, tokens, error);
    if (status) return status;
    trainer self = {.options = options, .pass = *pass, .x = x_q, .target = target, .samples = samples};
    self.tokens = tokens;
    self.batch = options->batch < samples ? options->batch : samples;
    self.sample_size = (size_t)tokens * (size_t)block->shape.hidden;
    self.pass.block = block;
    self.pass.mode = QZ_QUANTIZED;
    self.pass.observe = NULL;
    for (int i = 0; i < QZ_SITES; i++) self.act_clip[i] = pass->act_clip ? pass->act_clip[i] : 1;
    self.pass.act_clip = self.act_clip;
    self.order = bis_calloc((size_t)samples, sizeof *self.order);
    if (!self.order) return bis_fail(error, BIS_ERR_NOMEM, "no memory to fine-tune a block");
    choose_held_out(&self);
    qz_tuned tuned = {0};
    status = tune(&self, block, &tuned, error);
    close_trainer(&self);
    if (status) qz_tuned_free(&tuned);
    else *out = tuned;
    return status;
}
