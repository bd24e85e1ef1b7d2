/* Quantized linears and rotations on the CPU: the plain way, which faster kernels are compared with.
 *
 * A weight row is decoded a part at a time into memory on the stack, and each part is multiplied with a block of
 * activation rows before the next is decoded.
 */
#include <string.h>

#include "kernels/cpu/cpu_backend.h"

enum {
    ROW_BLOCK = 64, /* rows of activations that share a decoded part */
    F32_PART = 512  /* weights decoded at once; a multiple of 16 (order of sums) and of 8 (whole bytes of codes) */
};

typedef struct quant_task {
    const kn_cpu_backend *backend;
    const kn_qweight *w;
    const kn_activations *in;
    kn_activations *out;
    const float *bias;
    float *x, *y;
    const float *source;
    const int32_t *order;
    const kn_hadamard *hadamard;
    int rows, width, stride;
} quant_task;

static void quantize_worker(void *argument, int worker, int workers) {
    const quant_task *task = argument;
    kn_activations *out = task->out;
    size_t cols = (size_t)out->cols, groups = (size_t)kn_act_groups(&out->format, out->cols);
    int first, last;
    kn_pool_split(out->rows, worker, workers, &first, &last);
    for (size_t r = (size_t)first; r < (size_t)last; r++) {
        const float *x = task->source + r * cols;
        if (out->format.bits != KN_NOT_QUANTIZED) {
            kn_act_encode_ordered(&out->format, x, task->order, out->cols, out->codes + r * cols,
                                  out->scales + r * groups);
            continue;
        }
        float *values = out->values + r * cols;
        if (!task->order) memcpy(values, x, cols * sizeof *values);
        else {
            for (size_t c = 0; c < cols; c++) values[c] = x[task->order[c]];
        }
    }
}

void kn_cpu_quantize(kn_backend *base, const float *x, int rows, int cols, const int32_t *order, kn_activations *out) {
    enum { WORK = 16 }; /* a number's cost in multiply-adds */
    kn_cpu_backend *backend = (kn_cpu_backend *)base;
    out->rows = rows;
    out->cols = cols;
    quant_task task = {.backend = backend, .source = x, .order = order, .out = out};
    kn_cpu_run(backend, quantize_worker, &task, (double)WORK * rows * cols);
}

/* Adds the group of columns [first, last) to sums[r] for `rows` activation rows from x on. */
static void add_group(const quant_task *task, int n, int first, int last, int rows, const int8_t *x, int32_t *sums) {
    for (int at = first; at < last; at += KN_GROUP_MAX) {
        int16_t codes[KN_GROUP_MAX];
        kn_part part = {.x_stride = (size_t)task->w->cols, .rows = rows};
        part.count = last - at < KN_GROUP_MAX ? last - at : KN_GROUP_MAX;
        kn_weight_decode_codes_part(task->w, n, at, part.count, codes);
        task->backend->kernels->dot_codes(&part, codes, x + at, sums);
    }
}

/* Integer products: activation rows [row, row + rows) against weight row n, into sums[r]. */
static void dot_quantized(const quant_task *task, int n, int row, int rows, float *sums) {
    const kn_qweight *w = task->w;
    const kn_weight_format *format = &w->format;
    int low = w->cols - format->outliers, groups = kn_weight_groups(format, w->cols);
    size_t act_groups = (size_t)groups + (format->outliers > 0);
    const int8_t *x = task->in->codes + (size_t)row * (size_t)w->cols;
    const float *scales = task->in->scales + (size_t)row * act_groups;
    for (int r = 0; r < rows; r++) sums[r] = 0;
    for (size_t g = 0; g < act_groups; g++) {
        int32_t dots[ROW_BLOCK] = {0};
        bool outliers = g == (size_t)groups;
        int first = outliers ? low : (int)g * format->group, last = outliers ? w->cols : first + format->group;
        if (!outliers && last > low) last = low;
        add_group(task, n, first, last, rows, x, dots);
        float scale = kn_weight_scale_at(w, n, (int)g);
        task->backend->kernels->add_scaled(dots, scales + g, act_groups, scale, rows, sums);
    }
}

/* The same with activations that are not quantized: the sums of the F32 matrix product, in its order. */
static void dot_plain(const quant_task *task, int n, int row, int rows, float *sums) {
    const kn_qweight *w = task->w;
    float lanes[ROW_BLOCK][KN_LANES];
    memset(lanes, 0, (size_t)rows * sizeof *lanes);
    const float *x = task->in->values + (size_t)row * (size_t)w->cols;
    for (int first = 0; first < w->cols;) {
        float part_of_row[F32_PART];
        kn_part part = {.x_stride = (size_t)w->cols, .rows = rows};
        part.count = w->cols - first < F32_PART ? w->cols - first : F32_PART;
        kn_weight_decode_part(w, n, first, part.count, part_of_row);
        task->backend->kernels->dot_part(&part, part_of_row, x + first, lanes);
        first += part.count;
    }
    for (int r = 0; r < rows; r++) sums[r] = kn_tree_sum(lanes[r]);
}

static void qmatmul_worker(void *argument, int worker, int workers) {
    const quant_task *task = argument;
    size_t columns = (size_t)task->w->rows;
    int first, last;
    kn_cpu_split_columns(task->w->rows, worker, workers, &first, &last);
    for (int row = 0; row < task->in->rows; row += ROW_BLOCK) {
        int rows = task->in->rows - row < ROW_BLOCK ? task->in->rows - row : ROW_BLOCK;
        for (int n = first; n < last; n++) {
            float sums[ROW_BLOCK], *y = task->y + (size_t)row * columns + (size_t)n;
            if (task->in->format.bits == KN_NOT_QUANTIZED) dot_plain(task, n, row, rows, sums);
            else dot_quantized(task, n, row, rows, sums);
            for (int r = 0; r < rows; r++, y += columns) *y = task->bias ? sums[r] + task->bias[n] : sums[r];
        }
    }
}

void kn_cpu_qmatmul(kn_backend *base, const kn_qweight *w, const float *bias, const kn_activations *x, float *y) {
    kn_cpu_backend *backend = (kn_cpu_backend *)base;
    quant_task task = {.backend = backend, .w = w, .bias = bias, .in = x, .y = y};
    kn_cpu_run(backend, qmatmul_worker, &task, ((double)x->rows + 1) * w->rows * w->cols);
}

/* A unit is one run of size * stride numbers. */
static void hadamard_worker(void *argument, int worker, int workers) {
    const quant_task *task = argument;
    float scratch[KN_HADAMARD_SCRATCH];
    size_t run = (size_t)kn_hadamard_size(task->hadamard) * (size_t)task->stride;
    int first, last;
    kn_pool_split((int)((size_t)task->rows * ((size_t)task->width / run)), worker, workers, &first, &last);
    for (int unit = first; unit < last; unit++) {
        kn_hadamard_apply_strided(task->hadamard, task->stride, task->x + (size_t)unit * run, scratch);
    }
}

void kn_cpu_hadamard(kn_backend *base, const kn_hadamard *hadamard, int stride, int rows, int width, float *x) {
    kn_cpu_backend *backend = (kn_cpu_backend *)base;
    quant_task task = {
        .backend = backend, .hadamard = hadamard, .stride = stride, .rows = rows, .width = width, .x = x};
    double work = (double)rows * width * (kn_hadamard_order(hadamard) + 8);
    kn_cpu_run(backend, hadamard_worker, &task, work);
}
