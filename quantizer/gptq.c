/* GPTQ in blocks of columns. With u of inverse.h, column i's error e = (w - rounded) / u[i, i] is taken from the later
 * columns j as e u[i, j]. Inside a block of columns that happens at once, a strip at a time; columns beyond the block
 * get the whole block's share in one matrix product. A row never depends on other rows.
 *
 * Columns that calibration never reached (zero diagonal) have no covariance with others: with the damping on the
 * diagonal they are rounded to nearest, and nothing is spread from or to them. */
#include "quantizer/gptq.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "kernels/tensor.h"
#include "quantizer/inverse.h"

enum { BLOCK = 128, STRIP = 32, PIECE = 128, CLIP_STEPS = 20, ALIGNMENT = 64, HESSIAN_COLUMNS = 256 };

static const double clip_least = 0.5, damp_again = 10;

void qz_packed_free(qz_packed *packed) {
    bis_free(packed->memory);
    *packed = (qz_packed){0};
}

/* ---- Hessian ---- */

bis_status qz_hessian_open(qz_compute *compute, int width, qz_hessian *out, bis_error *error) {
    float *sum = bis_calloc((size_t)width * (size_t)width, sizeof *sum);
    if (!sum) {
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for a Hessian of width %d: it takes %.1f MB", width,
                        (double)width * width * 4e-6);
    }
    *out = (qz_hessian){compute, width, 0, sum};
    return BIS_OK;
}

/* The lower triangle only, by columns of blocks: half the work. */
void qz_hessian_add(qz_hessian *hessian, const float *x, int rows) {
    int n = hessian->width;
    for (int at = 0; at < n; at += HESSIAN_COLUMNS) {
        int size = n - at < HESSIAN_COLUMNS ? n - at : HESSIAN_COLUMNS;
        qz_gemm(hessian->compute, n - at, size, rows, 1, (qz_matrix){x + at, n, true}, (qz_matrix){x + at, n, false}, 1,
                hessian->sum + (size_t)at * (size_t)n + at, n);
    }
    hessian->rows += (uint64_t)rows;
}

void qz_hessian_finish(qz_hessian *hessian) {
    size_t n = (size_t)hessian->width;
    float scale = hessian->rows ? 1 / (float)hessian->rows : 0;
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j <= i; j++) {
            hessian->sum[i * n + j] *= scale;
            hessian->sum[j * n + i] = hessian->sum[i * n + j];
        }
    }
}

void qz_hessian_free(qz_hessian *hessian) {
    bis_free(hessian->sum);
    hessian->sum = NULL;
}

/* ---- One rounding ---- */

typedef struct rounding {
    const qz_round_options *options;
    kn_weight_format outlier_format;
    qz_compute *compute;
    float *w;
    int rows, cols, low, groups; /* low: columns before the outliers */
    const float *factor;         /* u [cols, cols]; NULL: to nearest */
    float *errors;               /* [rows, BLOCK] */
    float *importance;           /* [cols]: weights of the search for clips; NULL: all alike */
    uint8_t *codes, *zeros;      /* as kn_qweight */
    uint16_t *scales, *outlier_scales;
    int8_t *outlier_codes;
    size_t row_bytes; /* of codes */
    int start, size;  /* the block of columns in work: never low-bit columns and outliers in one */
} rounding;

/* The codes of one group of a row: value = (code - zero) * scale, lowest <= code - zero <= highest. */
typedef struct group_grid {
    float scale, lowest, highest;
    int zero;
} group_grid;

static group_grid make_grid(const kn_weight_format *format, float scale, int zero) {
    const kn_bits *bits = kn_bits_find(format->bits);
    if (format->symmetric) return (group_grid){scale, (float)bits->least, (float)bits->most, 0};
    return (group_grid){scale, (float)-zero, (float)(bits->levels - zero), zero};
}

/* kn_weight_encode without calls: adding and subtracting 1.5 * 2^23 rounds to an integer, half to even. */
static inline float nearest(const group_grid *grid, float w) {
    const float round = 12582912.0f;
    float code = w / grid->scale;
    code = code < grid->lowest ? grid->lowest : code;
    code = code > grid->highest ? grid->highest : code;
    return (code + round) - round;
}

/* The squared error of a group; where it is not below `bound`, any number that is not either. */
static double grid_error(const group_grid *grid, const float *w, const float *importance, int count, double bound) {
    double sum = 0;
    for (int i = 0; i < count && sum < bound; i++) {
        float difference = w[i] - nearest(grid, w[i]) * grid->scale;
        sum += (double)(difference * difference) * (importance ? importance[i] : 1);
    }
    return sum;
}

static group_grid clipped_grid(const kn_weight_format *format, float low, float high, double clip) {
    float scale;
    int zero;
    kn_weight_scale(format, (float)(low * clip), (float)(high * clip), &scale, &zero);
    return make_grid(format, scale, zero);
}

/* clip 0: the best of some, the widest where several are as good. */
static group_grid choose_grid(const kn_weight_format *format, double clip, const float *w, const float *importance,
                              int count) {
    float low = 0, high = 0;
    for (int i = 0; i < count; i++) {
        low = w[i] < low ? w[i] : low;
        high = w[i] > high ? w[i] : high;
    }
    if (clip > 0) return clipped_grid(format, low, high, clip);
    group_grid best = clipped_grid(format, low, high, 1);
    double least = grid_error(&best, w, importance, count, HUGE_VAL);
    for (int i = 1; i <= CLIP_STEPS; i++) {
        group_grid grid = clipped_grid(format, low, high, 1 - (1 - clip_least) * i / CLIP_STEPS);
        double found = grid_error(&grid, w, importance, count, least);
        if (found < least) {
            least = found;
            best = grid;
        }
    }
    return best;
}

/* ---- Rows ---- */

static group_grid outlier_grid(const rounding *self, int row, int column) {
    uint16_t *scale = &self->outlier_scales[row];
    if (column == self->low) {
        const float *w = self->w + (size_t)row * (size_t)self->cols + column;
        *scale = kn_f32_to_f16(choose_grid(&self->outlier_format, 1, w, NULL, self->cols - column).scale);
    }
    return make_grid(&self->outlier_format, kn_f16_to_f32(*scale), 0);
}

/* The grid of the group that `column` lies in; it is chosen when its first column is reached. */
static group_grid grid_at(const rounding *self, int row, int column) {
    if (column >= self->low) return outlier_grid(self, row, column);
    const qz_round_options *o = self->options;
    size_t at = (size_t)row * (size_t)self->groups + (size_t)(column / o->format.group);
    if (column % o->format.group == 0) {
        int rest = self->low - column, count = rest < o->format.group ? rest : o->format.group;
        const float *w = self->w + (size_t)row * (size_t)self->cols + column;
        const float *importance = self->importance ? self->importance + column : NULL;
        group_grid chosen = {0};
        if (o->grid) chosen = (group_grid){.scale = o->grid->scales[at], .zero = self->zeros ? o->grid->zeros[at] : 0};
        else chosen = choose_grid(&o->format, o->clip, w, importance, count);
        self->scales[at] = kn_f32_to_f16(chosen.scale);
        if (self->zeros) self->zeros[at] = (uint8_t)chosen.zero;
    }
    return make_grid(&o->format, kn_f16_to_f32(self->scales[at]), self->zeros ? self->zeros[at] : 0);
}

/* Rounds `width` columns of one row from `column`, spreading errors inside them. codes: [width], as they are stored. */
static void round_strip(const rounding *self, int row, int column, int width, uint8_t *codes) {
    group_grid grid = grid_at(self, row, column);
    float *w = self->w + (size_t)row * (size_t)self->cols + column;
    float *errors = self->errors + (size_t)row * BLOCK + (column - self->start);
    bool is_outlier = column >= self->low, is_signed = is_outlier || self->options->format.symmetric;
    /* outliers are stored signed: INT8's bits */
    int offset = is_outlier ? 0 : is_signed ? -kn_bits_find(self->options->format.bits)->least : grid.zero;
    for (int i = 0; i < width; i++) {
        float code = nearest(&grid, w[i]), value = code * grid.scale;
        codes[i] = (uint8_t)((int)code + offset);
        if (self->factor) {
            const float *u = self->factor + (size_t)(column + i) * (size_t)self->cols + column;
            float spread = (w[i] - value) / u[i];
            for (int j = i + 1; j < width; j++) w[j] -= spread * u[j];
            errors[i] = spread;
        }
        w[i] = value;
    }
}

static void store_codes(const rounding *self, int row, const uint8_t *codes) {
    if (self->start >= self->low) {
        int outliers = self->cols - self->low;
        memcpy(self->outlier_codes + (size_t)row * (size_t)outliers + (self->start - self->low), codes,
               (size_t)self->size);
        return;
    }
    int bits = self->options->format.bits;
    kn_pack(codes, self->size, bits, self->codes + (size_t)row * self->row_bytes + self->start / 8 * bits);
}

/* The block of columns for rows [first, last), at most PIECE of them. */
static void round_rows(void *argument, int first, int last, int worker) {
    (void)worker;
    const rounding *self = argument;
    uint8_t codes[PIECE * BLOCK];
    for (int at = 0; at < self->size; at += STRIP) {
        int column = self->start + at, rest = self->size - at, width = rest < STRIP ? rest : STRIP;
        for (int r = first; r < last; r++) round_strip(self, r, column, width, codes + (r - first) * BLOCK + at);
        if (!self->factor || rest == width) continue;
        const float *u = self->factor + (size_t)column * (size_t)self->cols + column + width;
        const float *errors = self->errors + (size_t)first * BLOCK + at;
        qz_gemm(NULL, last - first, rest - width, width, -1, (qz_matrix){errors, BLOCK, false},
                (qz_matrix){u, self->cols, false}, 1, self->w + (size_t)first * (size_t)self->cols + column + width,
                self->cols);
    }
    for (int r = first; r < last; r++) store_codes(self, r, codes + (r - first) * BLOCK);
}

static void round_all(rounding *self) {
    for (self->start = 0; self->start < self->cols; self->start += self->size) {
        int end = self->start < self->low ? self->low : self->cols;
        self->size = end - self->start < BLOCK ? end - self->start : BLOCK;
        qz_parallel(self->compute, self->rows, PIECE, round_rows, self);
        int next = self->start + self->size, rest = self->cols - next;
        if (!self->factor || !rest) continue;
        const float *u = self->factor + (size_t)self->start * (size_t)self->cols + next;
        qz_gemm(self->compute, self->rows, rest, self->size, -1, (qz_matrix){self->errors, BLOCK, false},
                (qz_matrix){u, self->cols, false}, 1, self->w + next, self->cols);
    }
}

/* ---- Checks and memory ---- */

static bis_status check_values(const float *w, int rows, int cols, const char *what, bis_error *error) {
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < cols; c++) {
            if (isfinite(w[(size_t)r * (size_t)cols + (size_t)c])) continue;
            return bis_fail(error, BIS_ERR_INVALID, "%s has an element that is not a finite number, at [%d, %d]", what,
                            r, c);
        }
    }
    return BIS_OK;
}

static bis_status check_grid(const qz_round_options *options, int rows, int groups, bis_error *error) {
    const qz_grid *grid = options->grid;
    int levels = kn_bits_find(options->format.bits)->levels;
    bool has_zeros = !options->format.symmetric;
    if (has_zeros && !grid->zeros) return bis_fail(error, BIS_ERR_INVALID, "an asymmetric grid needs its zeros");
    for (size_t i = 0; i < (size_t)rows * (size_t)groups; i++) {
        size_t row = i / (size_t)groups, group = i % (size_t)groups;
        float stored = kn_f16_to_f32(kn_f32_to_f16(grid->scales[i]));
        if (!(stored > 0 && isfinite(stored))) {
            return bis_fail(error, BIS_ERR_INVALID, "the scale %g of row %zu, group %zu is not one that F16 can store",
                            (double)grid->scales[i], row, group);
        }
        if (has_zeros && grid->zeros[i] > levels) {
            return bis_fail(error, BIS_ERR_INVALID, "the zero %d of row %zu, group %zu is above %d", grid->zeros[i],
                            row, group, levels);
        }
    }
    return BIS_OK;
}

static bis_status check_options(int rows, int cols, const qz_round_options *o, bis_error *error) {
    const kn_weight_format *format = &o->format;
    if (!kn_bits_find(format->bits) || format->bits < 3) {
        return bis_fail(error, BIS_ERR_INVALID, "weights of %d bits: use 3, 4 or 8", format->bits);
    }
    if (format->group < STRIP || format->group % STRIP || BLOCK % format->group) {
        return bis_fail(error, BIS_ERR_INVALID, "groups of %d columns: use 32, 64 or 128", format->group);
    }
    if (rows < 1 || format->outliers < 0 || format->outliers >= cols) {
        return bis_fail(error, BIS_ERR_INVALID, "a matrix [%d, %d] cannot have %d outlier columns", rows, cols,
                        format->outliers);
    }
    if (!(o->clip >= 0 && o->clip <= 1)) return bis_fail(error, BIS_ERR_INVALID, "clip is %g: use 0 to 1", o->clip);
    if (o->hessian && o->hessian->width != cols) {
        return bis_fail(error, BIS_ERR_INVALID, "the Hessian's width is %d; the matrix has %d columns",
                        o->hessian->width, cols);
    }
    if (o->hessian && !o->hessian->rows) {
        return bis_fail(error, BIS_ERR_INVALID, "the Hessian is of no rows: give more calibration text");
    }
    if (o->hessian && !(o->damp >= 0 && o->damp < DBL_MAX)) {
        return bis_fail(error, BIS_ERR_INVALID, "damping is %g: use a small number such as 0.01", o->damp);
    }
    return o->grid ? check_grid(o, rows, kn_weight_groups(format, cols), error) : BIS_OK;
}

static size_t aligned(size_t bytes) { return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

/* Allocates what the result owns and points `self` at it. */
static bis_status alloc_packed(rounding *self, qz_packed *out, bis_error *error) {
    size_t rows = (size_t)self->rows, cells = rows * (size_t)self->groups;
    size_t outliers = (size_t)(self->cols - self->low);
    size_t sizes[] = {rows * self->row_bytes, cells * 2, self->options->format.symmetric ? 0 : cells, rows * outliers,
                      outliers ? rows * 2 : 0};
    size_t starts[sizeof sizes / sizeof *sizes], total = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        starts[i] = total;
        total += aligned(sizes[i]);
    }
    char *memory = bis_alloc_aligned(total);
    if (!memory) {
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for a quantized matrix: it takes %.1f MB",
                        (double)total * 1e-6);
    }
    self->codes = (uint8_t *)memory;
    self->scales = (uint16_t *)(void *)(memory + starts[1]);
    if (sizes[2]) self->zeros = (uint8_t *)memory + starts[2];
    if (outliers) {
        self->outlier_codes = (int8_t *)memory + starts[3];
        self->outlier_scales = (uint16_t *)(void *)(memory + starts[4]);
    }
    out->memory = memory;
    out->weight = (kn_qweight){self->options->format, self->rows,  self->cols,          self->codes,
                               self->scales,          self->zeros, self->outlier_codes, self->outlier_scales};
    return BIS_OK;
}

/* The Hessian with damping, in `out`; its diagonal in `diagonal`. */
static void damped(const qz_hessian *hessian, double damp, float *out, float *diagonal) {
    size_t n = (size_t)hessian->width;
    double mean = 0;
    for (size_t i = 0; i < n; i++) mean += hessian->sum[i * n + i] / (double)n;
    memcpy(out, hessian->sum, n * n * sizeof *out);
    for (size_t i = 0; i < n; i++) {
        float *at = &out[i * n + i];
        *at = (float)(*at + damp * mean);
        if (*at == 0) *at = 1; /* reached by nothing, and no damping */
        diagonal[i] = *at;
    }
}

/* factor [cols, cols] = u of the damped Hessian. */
static bis_status factor_hessian(const qz_round_options *options, float *factor, float *importance, bis_error *error) {
    const qz_hessian *hessian = options->hessian;
    int n = hessian->width;
    bis_status status = check_values(hessian->sum, n, n, "the Hessian", error);
    if (status) return status;
    float *panel = bis_malloc((size_t)n * (size_t)qz_inverse_panel() * sizeof *panel);
    if (!panel) return bis_fail(error, BIS_ERR_NOMEM, "no memory for inverting a Hessian of width %d", n);
    damped(hessian, options->damp, factor, importance);
    bool done = qz_inverse_factor(hessian->compute, factor, n, panel);
    if (!done) {
        damped(hessian, options->damp * damp_again, factor, importance);
        done = qz_inverse_factor(hessian->compute, factor, n, panel);
    }
    bis_free(panel);
    if (done) return BIS_OK;
    return bis_fail(error, BIS_ERR_INVALID,
                    "the Hessian of %d columns from %llu rows is not positive definite, even with damping %g: "
                    "give more calibration text, or raise the damping",
                    n, (unsigned long long)hessian->rows, options->damp * damp_again);
}

static bis_status prepare(rounding *self, qz_packed *packed, bis_error *error) {
    size_t rows = (size_t)self->rows, cols = (size_t)self->cols;
    bis_status status = alloc_packed(self, packed, error);
    if (status || !self->options->hessian) return status;
    float *factor = bis_malloc(cols * cols * sizeof *factor);
    self->factor = factor;
    self->errors = bis_malloc(rows * BLOCK * sizeof *self->errors);
    self->importance = bis_malloc(cols * sizeof *self->importance);
    if (!factor || !self->errors || !self->importance) {
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for GPTQ of a matrix [%d, %d]: it takes %.1f MB", self->rows,
                        self->cols, (double)(cols + rows) * (double)cols * 4e-6);
    }
    return factor_hessian(self->options, factor, self->importance, error);
}

bis_status qz_round(float *w, int rows, int cols, const qz_round_options *options, qz_packed *out, bis_error *error) {
    bis_status status = check_options(rows, cols, options, error);
    if (!status) status = check_values(w, rows, cols, "the matrix", error);
    if (status) return status;
    const kn_weight_format *format = &options->format;
    rounding self = {.options = options,
                     .outlier_format = {.bits = 8, .group = KN_GROUP_MAX, .symmetric = true},
                     .compute = options->hessian ? options->hessian->compute : NULL,
                     .w = w,
                     .rows = rows,
                     .cols = cols,
                     .low = cols - format->outliers,
                     .groups = kn_weight_groups(format, cols)};
    self.row_bytes = kn_packed_bytes(self.low, format->bits);
    qz_packed packed = {0};
    status = prepare(&self, &packed, error);
    if (!status) {
        round_all(&self);
        if (check_values(w, rows, cols, "", NULL)) {
            status = bis_fail(error, BIS_ERR_INVALID, "the matrix has weights that are too large for F16 scales");
        }
    }
    bis_free((float *)self.factor);
    bis_free(self.errors);
    bis_free(self.importance);
    if (status) qz_packed_free(&packed);
    else *out = packed;
    return status;
}
