#include "quantizer/learned.h"

#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "quantizer/random.h"

enum { WEIGHT_ROWS = 16, COLUMN_STRIPE = 64, ALIGNED = 16 };

/* Where clips start. At 8 bits a step is so small that hardly any clip pays. */
enum { FEW_BITS = 4 };
static const qz_real CLIP_LOGIT = 4, CLIP_LOGIT_MANY_BITS = 8; /* clips of 0.982 and 0.9997 */
static const float ACT_CLIP_MOST = 0.9F, ACT_CLIP_MOST_MANY_BITS = 1;

static int norm_index(qz_site site) { return site == QZ_SITE_ATTN ? 0 : site == QZ_SITE_FFN ? 1 : -1; }

static int rows_of(const qz_learned *learned, int linear) {
    return qz_linear_rows(&learned->pass->block->shape, (qz_linear_id)linear);
}

static int cols_of(const qz_learned *learned, int linear) {
    return qz_linear_cols(&learned->pass->block->shape, (qz_linear_id)linear);
}

/* s_w of a linear's columns; NULL where they are not smoothed. */
static const qz_real *scale_of(const qz_learned *learned, int linear) {
    int index = norm_index(qz_site_of((qz_linear_id)linear));
    return index < 0 ? NULL : learned->scale_w[index];
}

/* ---- Opening --------------------------------------------------------------------------------- */

static void place_parameters(qz_learned *self) {
    size_t at = 0;
    self->first[QZ_PART_CLIP] = at;
    for (int i = 0; i < QZ_LINEARS && self->has[QZ_PART_CLIP]; i++) {
        size_t count = (size_t)rows_of(self, i) * (size_t)self->groups[i];
        self->high[i] = at;
        self->low[i] = at + count;
        at += 2 * count;
    }
    self->first[QZ_PART_SMOOTH] = at;
    for (int i = 0; i < QZ_NORM_SITES && self->has[QZ_PART_SMOOTH]; i++) {
        size_t hidden = (size_t)self->pass->block->shape.hidden;
        self->log_x[i] = at;
        self->log_w[i] = at + hidden;
        at += 2 * hidden;
    }
    self->first[QZ_PART_LOW_RANK] = at;
    for (int i = 0; i < QZ_LINEARS && self->has[QZ_PART_LOW_RANK]; i++) {
        self->a[i] = at;
        self->b[i] = at + (size_t)self->rank[i] * (size_t)cols_of(self, i);
        at = self->b[i] + (size_t)rows_of(self, i) * (size_t)self->rank[i];
    }
    self->first[QZ_PART_ACT_CLIP] = self->clip = at;
    if (self->has[QZ_PART_ACT_CLIP]) at += QZ_SITES;
    self->first[QZ_PARTS] = at;
}

static qz_real *take(qz_real *memory, size_t *used, size_t count) {
    qz_real *taken = memory ? memory + *used : NULL;
    *used += (count + ALIGNED - 1) / ALIGNED * ALIGNED;
    return taken;
}

/* Returns how many numbers are needed; sets pointers where memory is not NULL. */
static size_t lay_out(qz_learned *self, qz_real *memory) {
    size_t used = 0, largest = 0, factors = 0, hidden = (size_t)self->pass->block->shape.hidden;
    self->parameter = take(memory, &used, self->first[QZ_PARTS]);
    self->gradient = take(memory, &used, self->first[QZ_PARTS]);
    for (int i = 0; i < QZ_NORM_SITES; i++) {
        self->norm[i] = take(memory, &used, hidden);
        self->scale_w[i] = self->has[QZ_PART_SMOOTH] ? take(memory, &used, hidden) : NULL;
    }
    for (int i = 0; i < QZ_LINEARS; i++) {
        size_t size = (size_t)rows_of(self, i) * (size_t)cols_of(self, i);
        size_t factor = (size_t)self->rank[i] * (size_t)cols_of(self, i);
        bool smoothed = self->has[QZ_PART_SMOOTH] && norm_index(qz_site_of((qz_linear_id)i)) >= 0;
        bool changed = self->has[QZ_PART_LOW_RANK] || smoothed;
        self->plain_own[i] = changed ? take(memory, &used, size) : NULL;
        self->plain[i] = changed ? self->plain_own[i] : self->pass->block->weight[i];
        self->rounded[i] = kn_bits_find(self->pass->spec->weight_bits) ? take(memory, &used, size) : NULL;
        if (size > largest) largest = size;
        if (factor > factors) factors = factor;
    }
    self->scaled_a = take(memory, &used, factors);
    self->weight_gradient = take(memory, &used, largest);
    self->column_sums = take(memory, &used, hidden);
    return used;
}

static void start_parameters(qz_learned *self, uint64_t seed) {
    qz_real *p = self->parameter, logit = self->pass->spec->weight_bits > FEW_BITS ? CLIP_LOGIT_MANY_BITS : CLIP_LOGIT;
    float most = self->pass->spec->act_bits > FEW_BITS ? ACT_CLIP_MOST_MANY_BITS : ACT_CLIP_MOST;
    for (size_t i = self->first[QZ_PART_CLIP]; i < self->first[QZ_PART_CLIP + 1]; i++) p[i] = logit;
    for (int i = 0; i < QZ_LINEARS && self->has[QZ_PART_LOW_RANK]; i++) {
        double deviation = 1 / sqrt(cols_of(self, i));
        for (size_t j = self->a[i]; j < self->b[i]; j++) p[j] = (qz_real)(deviation * qz_random_normal(seed, j));
    }
    for (int i = 0; i < QZ_SITES && self->has[QZ_PART_ACT_CLIP]; i++) {
        float told = self->pass->act_clip ? self->pass->act_clip[i] : 1;
        p[self->clip + (size_t)i] = (qz_real)(told < most ? told : most);
    }
}

static void find_sizes(qz_learned *self, const qz_tune_options *options) {
    const qz_spec *spec = self->pass->spec;
    bool weights = kn_bits_find(spec->weight_bits) != NULL;
    self->has[QZ_PART_CLIP] = options->clip && weights;
    self->has[QZ_PART_SMOOTH] = options->smooth;
    self->has[QZ_PART_LOW_RANK] = options->low_rank && options->rank > 0;
    self->has[QZ_PART_ACT_CLIP] = options->act_clip && kn_bits_find(spec->act_bits);
    for (int i = 0; i < QZ_LINEARS; i++) {
        int rows = rows_of(self, i), cols = cols_of(self, i), rank = options->rank;
        kn_weight_format format;
        qz_fake_weight_format(spec, qz_site_of((qz_linear_id)i), &format);
        self->groups[i] = kn_weight_groups(&format, cols);
        if (rank > rows) rank = rows;
        if (rank > cols) rank = cols;
        self->rank[i] = self->has[QZ_PART_LOW_RANK] ? rank : 0;
    }
}

bis_status qz_learned_open(const qz_pass *pass, const qz_tune_options *options, qz_learned *out, bis_error *error) {
    qz_learned self = {.pass = pass, .loops = qz_loops_get()};
    find_sizes(&self, options);
    place_parameters(&self);
    self.memory = bis_alloc_aligned(lay_out(&self, NULL) * sizeof(qz_real));
    if (!self.memory) return bis_fail(error, BIS_ERR_NOMEM, "no memory to fine-tune a block");
    lay_out(&self, self.memory);
    start_parameters(&self, options->seed);
    *out = self;
    return BIS_OK;
}

size_t qz_learned_count(const qz_pass *pass, const qz_tune_options *options) {
    qz_learned self = {.pass = pass};
    find_sizes(&self, options);
    place_parameters(&self);
    return self.first[QZ_PARTS];
}

void qz_learned_close(qz_learned *learned) {
    bis_free(learned->memory);
    *learned = (qz_learned){0};
}

void qz_learned_turn_to(qz_learned *learned, qz_real *parameter, qz_real *gradient) {
    learned->parameter = parameter;
    learned->gradient = gradient;
    for (int i = 0; i < QZ_LINEARS; i++) {
        if (!learned->plain_own[i]) learned->plain[i] = learned->pass->block->weight[i];
    }
}

/* ---- Weights and norms ----------------------------------------------------------------------- */

static void prepare_norms(qz_learned *self) {
    const qz_block *block = self->pass->block;
    const qz_site sites[QZ_NORM_SITES] = {QZ_SITE_ATTN, QZ_SITE_FFN};
    const qz_real *const norms[QZ_NORM_SITES] = {block->norm1, block->norm2};
    for (int i = 0; i < QZ_NORM_SITES; i++) {
        for (int c = 0; c < block->shape.hidden; c++) {
            if (!self->has[QZ_PART_SMOOTH]) {
                self->norm[i][c] = norms[i][c];
                continue;
            }
            const int32_t *order = block->order[sites[i]];
            size_t from = order ? (size_t)order[c] : (size_t)c;
            self->norm[i][c] = norms[i][c] / (qz_real)exp(self->parameter[self->log_x[i] + (size_t)c]);
            self->scale_w[i][c] = (qz_real)exp(self->parameter[self->log_w[i] + from]);
        }
    }
}

/* One linear's work on pieces of its rows or columns. */
typedef struct linear_task {
    qz_learned *self;
    int linear, rows, cols;
    const qz_real *scale; /* s_w; NULL: ones */
    qz_fake_weight weight;
    float *scales; /* of the grid; NULL while training */
    uint8_t *zeros;
} linear_task;

static linear_task task_of(const qz_learned *self, int linear) {
    const qz_pass *pass = self->pass;
    linear_task task = {.linear = linear, .rows = rows_of(self, linear), .cols = cols_of(self, linear)};
    task.self = (qz_learned *)self;
    task.scale = scale_of(self, linear);
    task.weight = (qz_fake_weight){self->loops, kn_bits_find(pass->spec->weight_bits), {0}, pass->mode == QZ_SOFT};
    qz_fake_weight_format(pass->spec, qz_site_of((qz_linear_id)linear), &task.weight.format);
    return task;
}

static void copy_rows(void *argument, int first, int last, int worker) {
    (void)worker;
    const linear_task *t = argument;
    for (int r = first; r < last; r++) {
        size_t at = (size_t)r * (size_t)t->cols;
        const qz_real *from = t->self->pass->block->weight[t->linear] + at;
        qz_real *to = t->self->plain_own[t->linear] + at;
        if (t->scale) t->self->loops->multiply(from, t->scale, t->cols, to);
        else memcpy(to, from, (size_t)t->cols * sizeof *to);
    }
}

static const qz_real *logits_of(const qz_learned *self, const size_t place[QZ_LINEARS], int linear, int row) {
    if (!self->has[QZ_PART_CLIP]) return NULL;
    return self->parameter + place[linear] + (size_t)row * (size_t)self->groups[linear];
}

static void round_rows(void *argument, int first, int last, int worker) {
    (void)worker;
    const linear_task *t = argument;
    const qz_learned *self = t->self;
    for (int r = first; r < last; r++) {
        size_t at = (size_t)r * (size_t)t->cols, group = (size_t)r * (size_t)self->groups[t->linear];
        qz_fake_weight_row(&t->weight, self->plain[t->linear] + at, t->cols, logits_of(self, self->high, t->linear, r),
                           logits_of(self, self->low, t->linear, r), self->rounded[t->linear] + at,
                           t->scales ? t->scales + group : NULL, t->zeros ? t->zeros + group : NULL);
    }
}

/* A * s_w of a linear. */
static qz_matrix scale_factor(qz_learned *self, int linear, const qz_real *scale) {
    int cols = cols_of(self, linear);
    const qz_real *a = self->parameter + self->a[linear];
    if (!scale) return (qz_matrix){a, cols, false};
    for (int r = 0; r < self->rank[linear]; r++) {
        size_t at = (size_t)r * (size_t)cols;
        self->loops->multiply(a + at, scale, cols, self->scaled_a + at);
    }
    return (qz_matrix){self->scaled_a, cols, false};
}

static void prepare_linear(qz_learned *self, int linear) {
    qz_compute *compute = self->pass->compute;
    linear_task task = task_of(self, linear);
    if (self->plain_own[linear]) qz_parallel(compute, task.rows, WEIGHT_ROWS, copy_rows, &task);
    if (self->has[QZ_PART_LOW_RANK]) {
        int rank = self->rank[linear];
        qz_matrix b = {self->parameter + self->b[linear], rank, false}, a = scale_factor(self, linear, task.scale);
        qz_gemm(compute, task.rows, task.cols, rank, 1, b, a, 1, self->plain_own[linear], task.cols);
    }
    if (self->rounded[linear]) qz_parallel(compute, task.rows, WEIGHT_ROWS, round_rows, &task);
}

void qz_learned_prepare(qz_learned *learned, qz_run *run) {
    prepare_norms(learned);
    run->norm1 = learned->norm[0];
    run->norm2 = learned->norm[1];
    for (int i = 0; i < QZ_LINEARS; i++) {
        prepare_linear(learned, i);
        run->weight[i] = learned->rounded[i] ? learned->rounded[i] : learned->plain[i];
    }
    for (int i = 0; i < QZ_SITES && learned->has[QZ_PART_ACT_CLIP]; i++) {
        run->act[i].clip = learned->parameter[learned->clip + (size_t)i];
    }
}

bis_status qz_learned_grids(const qz_learned *learned, qz_grid grid[QZ_LINEARS], bis_error *error) {
    for (int i = 0; i < QZ_LINEARS; i++) {
        if (!learned->rounded[i]) continue;
        linear_task task = task_of(learned, i);
        size_t count = (size_t)task.rows * (size_t)learned->groups[i];
        bool zeros = !learned->pass->spec->weight_symmetric;
        grid[i].scales = bis_calloc(count, sizeof *grid[i].scales);
        if (zeros) grid[i].zeros = bis_calloc(count, sizeof *grid[i].zeros);
        if (!grid[i].scales || (zeros && !grid[i].zeros))
            return bis_fail(error, BIS_ERR_NOMEM, "no memory for the grids of a block");
        task.scales = grid[i].scales;
        task.zeros = grid[i].zeros;
        qz_parallel(learned->pass->compute, task.rows, WEIGHT_ROWS, round_rows, &task);
    }
    return BIS_OK;
}

bis_status qz_learned_fold(qz_learned *learned, qz_run *run, qz_block *block, qz_tuned *out, bis_error *error) {
    qz_learned_prepare(learned, run);
    bis_status status = qz_learned_grids(learned, out->grid, error);
    if (status) return status;
    for (int i = 0; i < QZ_SITES; i++) {
        const qz_pass *pass = learned->pass;
        size_t at = learned->clip + (size_t)i;
        float told = pass->act_clip ? pass->act_clip[i] : 1;
        out->act_clip[i] = learned->has[QZ_PART_ACT_CLIP] ? (float)learned->parameter[at] : told;
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

/* ---- Gradients ------------------------------------------------------------------------------- */

/* The gradient of V becomes U's, and gives the clips' logits theirs. */
static void weight_backward_rows(void *argument, int first, int last, int worker) {
    (void)worker;
    const linear_task *t = argument;
    qz_learned *self = t->self;
    bool clips = self->has[QZ_PART_CLIP];
    for (int r = first; r < last; r++) {
        size_t at = (size_t)r * (size_t)t->cols, group = (size_t)r * (size_t)self->groups[t->linear];
        qz_fake_weight_backward(&t->weight, self->plain[t->linear] + at, t->cols,
                                logits_of(self, self->high, t->linear, r), logits_of(self, self->low, t->linear, r),
                                self->weight_gradient + at,
                                clips ? self->gradient + self->high[t->linear] + group : NULL,
                                clips ? self->gradient + self->low[t->linear] + group : NULL);
    }
}

/* Sums over rows, for columns [first, last): of log s_w, and dA = (B^T dU) * s_w. */
static void weight_backward_columns(void *argument, int first, int last, int worker) {
    (void)worker;
    const linear_task *t = argument;
    qz_learned *self = t->self;
    int columns = last - first, rank = self->rank[t->linear];
    const qz_real *gradient = self->weight_gradient + first;
    if (t->scale) {
        qz_real *sums = self->column_sums + first;
        memset(sums, 0, (size_t)columns * sizeof *sums);
        for (int r = 0; r < t->rows; r++) {
            size_t at = (size_t)r * (size_t)t->cols;
            self->loops->add_products(gradient + at, self->plain[t->linear] + first + at, 1, columns, sums);
        }
    }
    if (!rank) return;
    qz_matrix b = {self->parameter + self->b[t->linear], rank, true}, du = {gradient, t->cols, false};
    qz_real *da = self->gradient + self->a[t->linear] + first;
    qz_gemm(NULL, rank, columns, t->rows, 1, b, du, 0, da, t->cols);
    for (int r = 0; r < rank && t->scale; r++) {
        qz_real *row = da + (size_t)r * (size_t)t->cols;
        self->loops->multiply(row, t->scale + first, columns, row);
    }
}

typedef struct backward_task {
    qz_learned *self;
    const qz_run *run;
} backward_task;

static void receive_weight(void *user, qz_linear_id linear, const qz_real *d_output, const qz_real *input) {
    const backward_task *backward = user;
    qz_learned *self = backward->self;
    qz_compute *compute = self->pass->compute;
    linear_task task = task_of(self, linear);
    qz_matrix left = {d_output, task.rows, true}, right = {input, task.cols, false};
    if (!self->has[QZ_PART_CLIP] && !task.scale && !self->rank[linear]) return;
    qz_gemm(compute, task.rows, task.cols, backward->run->rows, 1, left, right, 0, self->weight_gradient, task.cols);
    if (self->rounded[linear]) qz_parallel(compute, task.rows, WEIGHT_ROWS, weight_backward_rows, &task);
    if (!task.scale && !self->rank[linear]) return;
    qz_parallel(compute, task.cols, COLUMN_STRIPE, weight_backward_columns, &task);
    if (self->rank[linear]) {
        int rank = self->rank[linear];
        qz_matrix du = {self->weight_gradient, task.cols, false}, a = scale_factor(self, linear, task.scale);
        a.transposed = true;
        qz_gemm(compute, task.rows, rank, task.cols, 1, du, a, 0, self->gradient + self->b[linear], rank);
    }
    if (!task.scale) return;
    qz_site site = qz_site_of(linear);
    const int32_t *order = self->pass->block->order[site];
    qz_real *log_w = self->gradient + self->log_w[norm_index(site)];
    for (int c = 0; c < task.cols; c++) log_w[order ? order[c] : c] += self->column_sums[c];
}

typedef struct norm_task {
    const qz_learned *self;
    const qz_real *gradient, *x, *inverse, *gain;
    qz_real *log_x;
    int rows, width;
} norm_task;

/* norm = gain / s_x: the gradient of log s_x is minus that of the output times the output. */
static void norm_columns(void *argument, int first, int last, int worker) {
    (void)worker;
    const norm_task *t = argument;
    for (int r = 0; r < t->rows; r++) {
        size_t at = (size_t)r * (size_t)t->width + (size_t)first;
        t->self->loops->add_products(t->gradient + at, t->x + at, -t->inverse[r], last - first, t->log_x + first);
    }
    t->self->loops->multiply(t->log_x + first, t->gain + first, last - first, t->log_x + first);
}

static void receive_norm(void *user, qz_site site, const qz_real *gradient, const qz_real *x, const qz_real *inverse) {
    const backward_task *backward = user;
    qz_learned *self = backward->self;
    if (!self->has[QZ_PART_SMOOTH]) return;
    int index = norm_index(site);
    norm_task task = {.self = self, .gradient = gradient, .x = x, .inverse = inverse, .gain = self->norm[index]};
    task.log_x = self->gradient + self->log_x[index];
    task.rows = backward->run->rows;
    task.width = self->pass->block->shape.hidden;
    qz_parallel(self->pass->compute, task.width, COLUMN_STRIPE, norm_columns, &task);
}

void qz_learned_backward(qz_learned *learned, qz_run *run, qz_real *d_output) {
    backward_task task = {learned, run};
    qz_receiver receiver = {&task, receive_weight, receive_norm};
    memset(learned->gradient, 0, learned->first[QZ_PARTS] * sizeof *learned->gradient);
    qz_run_backward(run, &receiver, d_output);
    for (int i = 0; i < QZ_SITES && learned->has[QZ_PART_ACT_CLIP]; i++) {
        double sum = 0;
        for (int r = 0; r < run->rows; r++) sum += (double)run->back.clip[(size_t)i * (size_t)run->rows + (size_t)r];
        learned->gradient[learned->clip + (size_t)i] = (qz_real)sum;
    }
}

double qz_learned_penalty(qz_learned *learned, double weight) {
    double sum = 0;
    for (int i = 0; i < QZ_NORM_SITES && learned->has[QZ_PART_SMOOTH]; i++) {
        for (int c = 0; c < learned->pass->block->shape.hidden; c++) {
            size_t x = learned->log_x[i] + (size_t)c, w = learned->log_w[i] + (size_t)c;
            double apart = (double)learned->parameter[x] - (double)learned->parameter[w];
            sum += apart * apart;
            learned->gradient[x] += (qz_real)(2 * weight * apart);
            learned->gradient[w] -= (qz_real)(2 * weight * apart);
        }
    }
    return weight * sum;
}
