/* Rounding: to nearest against the definition of the formats; GPTQ against the textbook in double, column by column
 * with an explicit inverse; Hessians and the factor of their inverse against plain sums. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "kernels/tensor.h"
#include "quantizer/gptq.h"
#include "quantizer/inverse.h"

/* ---- Data ---- */

static uint64_t next(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* About normal, deviation 1. */
static double normal(uint64_t *state) {
    double sum = 0;
    for (int i = 0; i < 12; i++) sum += (double)(next(state) >> 11) * 0x1p-53;
    return sum - 6;
}

static float *random_matrix(int rows, int cols, double deviation, uint64_t seed) {
    float *out = malloc((size_t)rows * (size_t)cols * sizeof *out);
    assert_non_null(out);
    for (int i = 0; i < rows * cols; i++) out[i] = (float)(normal(&seed) * deviation);
    return out;
}

/* Inputs whose channels share a few causes and differ in size, as activations do; the last channels are the largest. */
static float *correlated_inputs(int rows, int cols, uint64_t seed) {
    enum { CAUSES = 12 };
    float *mix = random_matrix(CAUSES, cols, 1, seed + 1), *out = malloc((size_t)rows * (size_t)cols * sizeof *out);
    assert_non_null(out);
    for (int r = 0; r < rows; r++) {
        double causes[CAUSES];
        for (int k = 0; k < CAUSES; k++) causes[k] = normal(&seed);
        for (int c = 0; c < cols; c++) {
            double x = 0.7 * normal(&seed);
            for (int k = 0; k < CAUSES; k++) x += causes[k] * mix[k * cols + c];
            out[r * cols + c] = (float)(x * (c >= cols - 8 ? 5 : 1 + 0.3 * sin(c)));
        }
    }
    free(mix);
    return out;
}

static qz_hessian make_hessian(qz_compute *compute, const float *x, int rows, int cols) {
    qz_hessian hessian;
    bis_error error;
    assert_int_equal(qz_hessian_open(compute, cols, &hessian, &error), BIS_OK);
    int half = rows / 3;
    qz_hessian_add(&hessian, x, half);
    qz_hessian_add(&hessian, x + (size_t)half * (size_t)cols, rows - half);
    qz_hessian_finish(&hessian);
    return hessian;
}

static float *copy_of(const float *w, int count) {
    float *out = malloc((size_t)count * sizeof *out);
    assert_non_null(out);
    memcpy(out, w, (size_t)count * sizeof *out);
    return out;
}

static qz_packed round_or_fail(float *w, int rows, int cols, const qz_round_options *options) {
    qz_packed packed;
    bis_error error = {0};
    if (qz_round(w, rows, cols, options, &packed, &error)) fail_msg("%s", error.text);
    return packed;
}

/* w is what the packed matrix decodes to. */
static void check_decoded(const qz_packed *packed, const float *w) {
    const kn_qweight *q = &packed->weight;
    float *row = malloc((size_t)q->cols * sizeof *row);
    assert_non_null(row);
    for (int r = 0; r < q->rows; r++) {
        kn_weight_decode_row(q, r, row);
        for (int c = 0; c < q->cols; c++) assert_true(row[c] == w[r * q->cols + c]);
    }
    free(row);
}

static int signed_code(const kn_qweight *q, int row, int col) {
    int16_t codes[1024];
    assert_true(q->cols <= 1024);
    kn_weight_decode_codes(q, row, codes);
    return codes[col];
}

static const kn_weight_format FORMATS[] = {
    {3, 32, true, 0},   {3, 64, false, 5},  {3, 128, true, 40}, {4, 32, false, 0},   {4, 64, true, 17},
    {4, 128, false, 1}, {8, 32, true, 130}, {8, 64, false, 0},  {8, 128, false, 63}, {3, 128, false, 0},
};
enum { FORMAT_COUNT = sizeof FORMATS / sizeof *FORMATS };
static const kn_weight_format OUTLIER_FORMAT = {8, 128, true, 0};

/* ---- To nearest ---- */

static void range_of(const float *w, int count, float *low, float *high) {
    *low = *high = 0;
    for (int i = 0; i < count; i++) {
        if (w[i] < *low) *low = w[i];
        if (w[i] > *high) *high = w[i];
    }
}

static void check_nearest_row(const kn_qweight *q, int row, const float *w, double clip) {
    const kn_weight_format *format = &q->format;
    int low_columns = q->cols - format->outliers, groups = kn_weight_groups(format, q->cols), zero;
    float low, high, scale;
    for (int g = 0; g < groups; g++) {
        int first = g * format->group, end = first + format->group < low_columns ? first + format->group : low_columns;
        range_of(w + first, end - first, &low, &high);
        kn_weight_scale(format, (float)(low * clip), (float)(high * clip), &scale, &zero);
        assert_true(kn_f16_to_f32(q->scales[row * groups + g]) == scale);
        if (!format->symmetric) assert_int_equal(q->zeros[row * groups + g], zero);
        for (int c = first; c < end; c++) {
            assert_int_equal(signed_code(q, row, c), kn_weight_encode(format, w[c], scale, zero) - zero);
        }
    }
    if (!format->outliers) return;
    range_of(w + low_columns, format->outliers, &low, &high);
    kn_weight_scale(&OUTLIER_FORMAT, low, high, &scale, &zero);
    assert_true(kn_f16_to_f32(q->outlier_scales[row]) == scale);
    for (int c = low_columns; c < q->cols; c++) {
        assert_int_equal(signed_code(q, row, c), kn_weight_encode(&OUTLIER_FORMAT, w[c], scale, 0));
    }
}

static void test_nearest_codes_are_those_of_the_format(void **state) {
    (void)state;
    static const int widths[] = {131, 160, 257, 320};
    static const double clips[] = {1, 0.85};
    for (int f = 0; f < FORMAT_COUNT; f++) {
        for (int i = 0; i < 4; i++) {
            for (int k = 0; k < 2; k++) {
                int rows = 133, cols = widths[i];
                float *w = random_matrix(rows, cols, 0.05, (uint64_t)f * 10 + (uint64_t)i), *rounded;
                for (int c = 0; c < cols; c++) w[2 * cols + c] = 0; /* groups of zeros */
                for (int c = 0; c < cols; c++) w[3 * cols + c] = fabsf(w[3 * cols + c]);
                for (int c = 0; c < cols; c++) w[4 * cols + c] = 0.25f * (float)(c % 13 - 6); /* ties */
                rounded = copy_of(w, rows * cols);
                qz_round_options options = {.format = FORMATS[f], .clip = clips[k]};
                qz_packed packed = round_or_fail(rounded, rows, cols, &options);
                for (int r = 0; r < rows; r += r < 5 ? 1 : 16) {
                    check_nearest_row(&packed.weight, r, w + r * cols, clips[k]);
                }
                check_decoded(&packed, rounded);
                qz_packed_free(&packed);
                assert_null(packed.memory);
                free(w);
                free(rounded);
            }
        }
    }
}

static double group_error(const kn_weight_format *format, const float *w, int count, double clip) {
    float low, high, scale;
    int zero;
    double sum = 0;
    range_of(w, count, &low, &high);
    kn_weight_scale(format, (float)(low * clip), (float)(high * clip), &scale, &zero);
    for (int i = 0; i < count; i++) {
        double value = (double)(kn_weight_encode(format, w[i], scale, zero) - zero) * scale;
        sum += (w[i] - value) * (w[i] - value);
    }
    return sum;
}

static void test_searched_clips_are_the_best(void **state) {
    (void)state;
    int narrower = 0;
    for (int f = 0; f < FORMAT_COUNT; f++) {
        const kn_weight_format *format = &FORMATS[f];
        int rows = 9, cols = 300, low_columns = cols - format->outliers;
        float *w = random_matrix(rows, cols, 0.05, (uint64_t)f + 100), *rounded = copy_of(w, rows * cols);
        qz_round_options options = {.format = *format, .clip = 0};
        qz_packed packed = round_or_fail(rounded, rows, cols, &options);
        check_decoded(&packed, rounded);
        for (int r = 0; r < rows; r++) {
            for (int first = 0; first < low_columns; first += format->group) {
                int rest = low_columns - first, count = rest < format->group ? rest : format->group;
                const float *at = w + r * cols + first, *got = rounded + r * cols + first;
                double found = 0, best = group_error(format, at, count, 1), whole = best;
                for (int i = 0; i < count; i++) found += ((double)at[i] - got[i]) * ((double)at[i] - got[i]);
                for (int s = 1; s <= 20; s++) best = fmin(best, group_error(format, at, count, 1 - 0.025 * s));
                assert_true(fabs(found - best) <= 1e-5 * best);
                narrower += found < 0.999 * whole;
            }
        }
        qz_packed_free(&packed);
        free(w);
        free(rounded);
    }
    assert_true(narrower > 50);
}

/* ---- Hessians and their factor ---- */

static void test_hessian_is_the_mean_of_products(void **state) {
    (void)state;
    static const int widths[] = {1, 7, 256, 300};
    for (int i = 0; i < 4; i++) {
        int rows = 50, cols = widths[i];
        float *x = random_matrix(rows, cols, 1, (uint64_t)i);
        qz_hessian hessian = make_hessian(NULL, x, rows, cols);
        assert_int_equal(hessian.rows, rows);
        for (int a = 0; a < cols; a++) {
            for (int b = 0; b < cols; b++) {
                double sum = 0;
                for (int r = 0; r < rows; r++) sum += (double)x[r * cols + a] * x[r * cols + b];
                assert_true(fabs(hessian.sum[a * cols + b] - sum / rows) <= 1e-5);
                assert_true(hessian.sum[a * cols + b] == hessian.sum[b * cols + a]);
            }
        }
        qz_hessian_free(&hessian);
        assert_null(hessian.sum);
        free(x);
    }
}

/* u a u^T = 1, because inverse(a) = u^T u; and u is upper triangular. */
static void check_factor(const float *a, const float *u, int n) {
    double *half = malloc((size_t)n * (size_t)n * sizeof *half), worst = 0;
    assert_non_null(half);
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < i; j++) assert_true(u[i * n + j] == 0);
        assert_true(u[i * n + i] > 0);
        for (int j = 0; j < n; j++) half[i * n + j] = 0;
        for (int k = i; k < n; k++) {
            for (int j = 0; j < n; j++) half[i * n + j] += (double)u[i * n + k] * a[k * n + j];
        }
    }
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < n; j++) {
            double sum = 0;
            for (int k = j; k < n; k++) sum += half[i * n + k] * u[j * n + k];
            worst = fmax(worst, fabs(sum - (i == j)));
        }
    }
    assert_true(worst <= 2e-4);
    free(half);
}

static void test_factor_of_the_inverse(void **state) {
    (void)state;
    static const int sizes[] = {1, 2, 31, 127, 128, 129, 256, 300, 397};
    for (int i = 0; i < 9; i++) {
        int n = sizes[i];
        float *x = correlated_inputs(2 * n + 5, n, (uint64_t)i);
        qz_hessian hessian = make_hessian(NULL, x, 2 * n + 5, n);
        for (int j = 0; j < n; j++) hessian.sum[j * n + j] += 0.5f;
        float *u = copy_of(hessian.sum, n * n), *panel = malloc((size_t)(n * qz_inverse_panel()) * sizeof *panel);
        assert_non_null(panel);
        assert_true(qz_inverse_factor(NULL, u, n, panel));
        check_factor(hessian.sum, u, n);
        memcpy(u, hessian.sum, (size_t)(n * n) * sizeof *u);
        u[n * n - 1] = -1; /* not positive definite */
        assert_false(qz_inverse_factor(NULL, u, n, panel));
        free(panel);
        free(u);
        free(x);
        qz_hessian_free(&hessian);
    }
}

/* ---- GPTQ ---- */

/* Gauss-Jordan in double. */
static void invert(double *a, int n, double *out) {
    for (int i = 0; i < n * n; i++) out[i] = i / n == i % n;
    for (int i = 0; i < n; i++) {
        double pivot = 1 / a[i * n + i];
        for (int j = 0; j < n; j++) {
            a[i * n + j] *= pivot;
            out[i * n + j] *= pivot;
        }
        for (int r = 0; r < n; r++) {
            double factor = a[r * n + i];
            if (r == i || factor == 0) continue;
            for (int j = 0; j < n; j++) {
                a[r * n + j] -= factor * a[i * n + j];
                out[r * n + j] -= factor * out[i * n + j];
            }
        }
    }
}

static double *damped_inverse(const qz_hessian *hessian, double damp) {
    int n = hessian->width;
    double *a = malloc((size_t)(n * n) * sizeof *a), *out = malloc((size_t)(n * n) * sizeof *out), mean = 0;
    assert_non_null(a);
    assert_non_null(out);
    for (int i = 0; i < n; i++) mean += hessian->sum[i * n + i] / (double)n;
    for (int i = 0; i < n * n; i++) a[i] = hessian->sum[i];
    for (int i = 0; i < n; i++) {
        a[i * n + i] += damp * mean;
        if (a[i * n + i] == 0) a[i * n + i] = 1;
    }
    invert(a, n, out);
    free(a);
    return out;
}

typedef struct textbook {
    const kn_qweight *found; /* the result to be checked */
    double *w;               /* [rows, cols], the columns not yet rounded */
    const qz_grid *grid;
    double clip;
    int differing; /* codes that are not the nearest one here */
} textbook;

/* The scale of the group that starts at column c, which the result has to be within a step of F16 of; then it is used.
 */
static void check_scale(const textbook *t, int row, int c, float *scale, int *zero) {
    const kn_qweight *q = t->found;
    const kn_weight_format *format = &q->format;
    int low_columns = q->cols - format->outliers, groups = kn_weight_groups(format, q->cols);
    bool outlier = c >= low_columns;
    int at = row * groups + c / format->group, first = outlier ? low_columns : c - c % format->group;
    int end = outlier ? q->cols : first + format->group < low_columns ? first + format->group : low_columns;
    *scale = kn_f16_to_f32(outlier ? q->outlier_scales[row] : q->scales[at]);
    *zero = outlier || format->symmetric ? 0 : q->zeros[at];
    if (c != first) return;
    if (t->grid && !outlier) {
        assert_true(*scale == t->grid->scales[at]);
        if (!format->symmetric) assert_int_equal(*zero, t->grid->zeros[at]);
        return;
    }
    float low, high, expected, w[512];
    int expected_zero;
    double clip = outlier ? 1 : t->clip;
    for (int i = first; i < end; i++) w[i - first] = (float)t->w[row * q->cols + i];
    range_of(w, end - first, &low, &high);
    kn_weight_scale(outlier ? &OUTLIER_FORMAT : format, (float)(low * clip), (float)(high * clip), &expected,
                    &expected_zero);
    assert_true(fabsf(*scale - expected) <= 0.0011f * expected);
    assert_true(abs(*zero - expected_zero) <= 1);
}

static void textbook_column(textbook *t, int c, const double *inverse) {
    const kn_qweight *q = t->found;
    int cols = q->cols;
    bool outlier = c >= cols - q->format.outliers;
    const kn_weight_format *format = outlier ? &OUTLIER_FORMAT : &q->format;
    for (int r = 0; r < q->rows; r++) {
        float scale;
        int zero, code = signed_code(q, r, c);
        check_scale(t, r, c, &scale, &zero);
        double *w = t->w + r * cols;
        int nearest = kn_weight_encode(format, (float)w[c], scale, zero) - zero;
        if (code != nearest) { /* the two neighbours of a tie, to the precision of floats */
            t->differing++;
            assert_int_equal(abs(code - nearest), 1);
            assert_true(fabs(fabs(w[c] / scale - nearest) - 0.5) < 2e-3);
        }
        double error = (w[c] - (double)code * scale) / inverse[c * cols + c];
        for (int j = c; j < cols; j++) w[j] -= error * inverse[c * cols + j];
    }
}

/* Takes column c out of the inverse. */
static void eliminate(double *inverse, int n, int c) {
    double *row = inverse + c * n;
    for (int i = c + 1; i < n; i++) {
        double factor = inverse[i * n + c] / row[c];
        for (int j = c + 1; j < n; j++) inverse[i * n + j] -= factor * row[j];
    }
}

static void check_textbook(const kn_qweight *found, const float *w, const qz_round_options *options) {
    int cols = found->cols, count = found->rows * cols;
    textbook t = {.found = found, .grid = options->grid, .clip = options->clip};
    double *inverse = damped_inverse(options->hessian, options->damp);
    t.w = malloc((size_t)count * sizeof *t.w);
    assert_non_null(t.w);
    for (int i = 0; i < count; i++) t.w[i] = w[i];
    for (int c = 0; c < cols; c++) {
        textbook_column(&t, c, inverse);
        eliminate(inverse, cols, c);
    }
    assert_true(t.differing <= count / 500);
    free(t.w);
    free(inverse);
}

static void test_gptq_is_the_textbooks(void **state) {
    (void)state;
    static const int widths[] = {200, 131, 300};
    qz_compute *compute;
    bis_error error;
    assert_int_equal(qz_compute_open(2, &compute, &error), BIS_OK);
    for (int f = 0; f < FORMAT_COUNT; f++) {
        int rows = 11, cols = widths[f % 3];
        float *x = correlated_inputs(900, cols, (uint64_t)f), *w = random_matrix(rows, cols, 0.05, (uint64_t)f + 50);
        qz_hessian hessian = make_hessian(f % 2 ? compute : NULL, x, 900, cols);
        qz_round_options options = {
            .format = FORMATS[f], .clip = f % 3 ? 1 : 0.9, .hessian = &hessian, .damp = f % 2 ? 0.01 : 0.1};
        float *rounded = copy_of(w, rows * cols);
        qz_packed packed = round_or_fail(rounded, rows, cols, &options);
        check_decoded(&packed, rounded);
        check_textbook(&packed.weight, w, &options);
        qz_packed_free(&packed);
        qz_hessian_free(&hessian);
        free(x);
        free(w);
        free(rounded);
    }
    qz_compute_close(compute);
}

static void test_gptq_keeps_to_a_given_grid(void **state) {
    (void)state;
    for (int f = 0; f < FORMAT_COUNT; f++) {
        int rows = 8, cols = 210, groups = kn_weight_groups(&FORMATS[f], cols), cells = rows * groups;
        const kn_weight_format *format = &FORMATS[f];
        float *x = correlated_inputs(700, cols, (uint64_t)f), *w = random_matrix(rows, cols, 0.05, (uint64_t)f + 70);
        qz_hessian hessian = make_hessian(NULL, x, 700, cols);
        uint64_t seed = (uint64_t)f;
        qz_grid grid = {malloc((size_t)cells * sizeof(float)), malloc((size_t)cells)};
        assert_true(grid.scales && grid.zeros);
        for (int i = 0; i < cells; i++) {
            float most = 0.1f + 0.05f * (float)(next(&seed) % 100) / 100;
            int zero;
            kn_weight_scale(format, -most, most * 0.8f, &grid.scales[i], &zero);
            grid.zeros[i] = (uint8_t)zero;
        }
        for (int gptq = 0; gptq < 2; gptq++) {
            qz_round_options options = {
                .format = *format, .grid = &grid, .hessian = gptq ? &hessian : NULL, .damp = 0.01};
            float *rounded = copy_of(w, rows * cols);
            qz_packed packed = round_or_fail(rounded, rows, cols, &options);
            check_decoded(&packed, rounded);
            if (gptq) check_textbook(&packed.weight, w, &options);
            for (int i = 0; i < cells; i++) {
                assert_true(kn_f16_to_f32(packed.weight.scales[i]) == grid.scales[i]);
                if (!format->symmetric) assert_int_equal(packed.weight.zeros[i], grid.zeros[i]);
            }
            for (int i = 0; !gptq && i < rows * (cols - format->outliers); i++) {
                int r = i / (cols - format->outliers), c = i % (cols - format->outliers);
                int at = r * groups + c / format->group, zero = format->symmetric ? 0 : grid.zeros[at];
                assert_int_equal(signed_code(&packed.weight, r, c),
                                 kn_weight_encode(format, w[r * cols + c], grid.scales[at], zero) - zero);
            }
            qz_packed_free(&packed);
            free(rounded);
        }
        free(grid.scales);
        free(grid.zeros);
        qz_hessian_free(&hessian);
        free(x);
        free(w);
    }
}

/* Mean squared error of the outputs on the Hessian's inputs. */
static double output_error(const qz_hessian *hessian, const float *w, const float *rounded, int rows) {
    int n = hessian->width;
    double sum = 0;
    for (int r = 0; r < rows; r++) {
        for (int i = 0; i < n; i++) {
            double product = 0;
            for (int j = 0; j < n; j++) {
                product += ((double)w[r * n + j] - rounded[r * n + j]) * hessian->sum[i * n + j];
            }
            sum += ((double)w[r * n + i] - rounded[r * n + i]) * product;
        }
    }
    return sum;
}

static void test_gptq_beats_rounding_to_nearest(void **state) {
    (void)state;
    for (int f = 0; f < FORMAT_COUNT; f++) {
        for (int search = 0; search < 2; search++) {
            int rows = 24, cols = 256;
            float *x = correlated_inputs(1500, cols, (uint64_t)f),
                  *w = random_matrix(rows, cols, 0.05, (uint64_t)f + 90), *plain = copy_of(w, rows * cols),
                  *spread = copy_of(w, rows * cols);
            qz_hessian hessian = make_hessian(NULL, x, 1500, cols);
            qz_round_options options = {.format = FORMATS[f], .clip = search ? 0 : 1, .damp = 0.01};
            qz_packed packed = round_or_fail(plain, rows, cols, &options);
            qz_packed_free(&packed);
            options.hessian = &hessian;
            packed = round_or_fail(spread, rows, cols, &options);
            check_decoded(&packed, spread);
            qz_packed_free(&packed);
            double nearest = output_error(&hessian, w, plain, rows), gptq = output_error(&hessian, w, spread, rows);
            assert_true(nearest > 0 && gptq < 0.55 * nearest);
            qz_hessian_free(&hessian);
            free(x);
            free(w);
            free(plain);
            free(spread);
        }
    }
}

static void test_threads_do_not_change_bits(void **state) {
    (void)state;
    int rows = 300, cols = 330;
    float *x = correlated_inputs(800, cols, 5), *w = random_matrix(rows, cols, 0.05, 6), *first = NULL;
    for (int threads = 0; threads <= 3; threads++) {
        qz_compute *compute = NULL;
        bis_error error;
        if (threads) assert_int_equal(qz_compute_open(threads, &compute, &error), BIS_OK);
        qz_hessian hessian = make_hessian(compute, x, 800, cols);
        qz_round_options options = {.format = {3, 128, false, 16}, .hessian = &hessian, .damp = 0.01};
        float *rounded = copy_of(w, rows * cols);
        qz_packed packed = round_or_fail(rounded, rows, cols, &options);
        if (first) assert_memory_equal(first, rounded, (size_t)(rows * cols) * sizeof *first);
        else first = copy_of(rounded, rows * cols);
        qz_packed_free(&packed);
        qz_hessian_free(&hessian);
        qz_compute_close(compute);
        free(rounded);
    }
    free(first);
    free(x);
    free(w);
}

/* Channels that calibration never reached, among others, and all of them. */
static void test_dead_columns_are_rounded_to_nearest(void **state) {
    (void)state;
    static const int dead[] = {0, 63, 64, 130, 199};
    static const double damps[] = {0, 0.01};
    int rows = 6, cols = 200;
    for (int all = 0; all < 2; all++) {
        for (int k = 0; k < 2; k++) {
            float *x = correlated_inputs(900, cols, 3), *w = random_matrix(rows, cols, 0.05, 4);
            for (int i = 0; i < 900 * cols; i++) {
                bool is_dead = all;
                for (int d = 0; d < 5; d++) is_dead = is_dead || i % cols == dead[d];
                if (is_dead) x[i] = 0;
            }
            qz_hessian hessian = make_hessian(NULL, x, 900, cols);
            qz_round_options options = {.format = {4, 64, false, 3}, .clip = 1, .hessian = &hessian, .damp = damps[k]};
            float *rounded = copy_of(w, rows * cols);
            qz_packed packed = round_or_fail(rounded, rows, cols, &options);
            check_textbook(&packed.weight, w, &options);
            for (int r = 0; r < rows; r++) {
                for (int d = 0; d < 5; d++) {
                    int c = dead[d], groups = kn_weight_groups(&options.format, cols), at = r * groups + c / 64;
                    bool outlier = c >= cols - 3;
                    float scale = kn_f16_to_f32(outlier ? packed.weight.outlier_scales[r] : packed.weight.scales[at]);
                    int zero = outlier ? 0 : packed.weight.zeros[at];
                    const kn_weight_format *format = outlier ? &OUTLIER_FORMAT : &options.format;
                    assert_int_equal(signed_code(&packed.weight, r, c),
                                     kn_weight_encode(format, w[r * cols + c], scale, zero) - zero);
                }
                if (all) check_nearest_row(&packed.weight, r, w + r * cols, 1);
            }
            qz_packed_free(&packed);
            qz_hessian_free(&hessian);
            free(x);
            free(w);
            free(rounded);
        }
    }
}

/* ---- What is refused ---- */

static void check_refused(float *w, int rows, int cols, const qz_round_options *options, const char *text) {
    float *before = copy_of(w, rows * cols);
    qz_packed packed = {.memory = &packed};
    bis_error error = {0};
    assert_int_equal(qz_round(w, rows, cols, options, &packed, &error), BIS_ERR_INVALID);
    if (!strstr(error.text, text)) fail_msg("'%s' does not say '%s'", error.text, text);
    assert_ptr_equal(packed.memory, &packed);
    assert_memory_equal(w, before, (size_t)(rows * cols) * sizeof *w);
    free(before);
}

static void test_what_cannot_be_rounded_is_refused(void **state) {
    (void)state;
    int rows = 4, cols = 96;
    float *x = correlated_inputs(40, cols, 1), *w = random_matrix(rows, cols, 0.05, 2);
    qz_hessian hessian = make_hessian(NULL, x, 40, cols);
    const qz_round_options good = {.format = {4, 32, true, 4}, .clip = 1, .hessian = &hessian, .damp = 0.01};
    qz_round_options options = good;
    options.damp = 0; /* 40 rows determine no more than 40 columns */
    check_refused(w, rows, cols, &options, "the Hessian of 96 columns from 40 rows is not positive definite");
    check_refused(w, rows, cols, &options, "more calibration text");
    options = good;
    options.damp = NAN;
    check_refused(w, rows, cols, &options, "damping");
    hessian.sum[5 * cols + 2] = NAN;
    check_refused(w, rows, cols, &good, "the Hessian has an element that is not a finite number, at [5, 2]");
    hessian.sum[5 * cols + 2] = hessian.sum[2 * cols + 5];
    w[2 * cols + 7] = INFINITY;
    check_refused(w, rows, cols, &good, "not a finite number, at [2, 7]");
    w[2 * cols + 7] = 0;
    options = good;
    options.format.group = 48;
    check_refused(w, rows, cols, &options, "groups of 48 columns: use 32, 64 or 128");
    options = good;
    options.format.bits = 5;
    check_refused(w, rows, cols, &options, "5 bits");
    options = good;
    options.format.outliers = cols;
    check_refused(w, rows, cols, &options, "96 outlier columns");
    options = good;
    options.clip = 1.5;
    check_refused(w, rows, cols, &options, "clip");
    options = good;
    check_refused(w, rows * 2, cols / 2, &options, "the Hessian's width is 96; the matrix has 48 columns");
    float scales[4 * 3];
    for (int i = 0; i < 12; i++) scales[i] = 0.01f;
    scales[7] = 0;
    qz_grid grid = {scales, NULL};
    options.grid = &grid;
    check_refused(w, rows, cols, &options, "row 2, group 1");
    scales[7] = 1e6f;
    check_refused(w, rows, cols, &options, "row 2, group 1");
    scales[7] = 0.01f;
    options.format.symmetric = false;
    check_refused(w, rows, cols, &options, "needs its zeros");
    uint8_t zeros[4 * 3] = {[5] = 16};
    grid.zeros = zeros;
    check_refused(w, rows, cols, &options, "the zero 16 of row 1, group 2 is above 15");
    hessian.rows = 0;
    check_refused(w, rows, cols, &good, "of no rows");
    hessian.rows = 40;
    qz_packed packed = round_or_fail(w, rows, cols, &good);
    qz_packed_free(&packed);
    qz_hessian_free(&hessian);
    free(x);
    free(w);
}

static void test_more_damping_is_tried_once(void **state) {
    (void)state;
    int rows = 3, cols = 64;
    float *w = random_matrix(rows, cols, 0.05, 2);
    qz_hessian hessian;
    bis_error error;
    assert_int_equal(qz_hessian_open(NULL, cols, &hessian, &error), BIS_OK);
    for (int i = 0; i < cols * cols; i++) hessian.sum[i] = i / cols == i % cols ? 1 : 0;
    hessian.rows = 1;
    hessian.sum[1] = hessian.sum[cols] = 1.05f; /* the least eigenvalue is -0.05 */
    qz_round_options options = {.format = {4, 32, true, 0}, .clip = 1, .hessian = &hessian, .damp = 0.01};
    float *rounded = copy_of(w, rows * cols);
    qz_packed packed = round_or_fail(rounded, rows, cols, &options);
    options.damp = 0.1;
    check_textbook(&packed.weight, w, &options);
    qz_packed_free(&packed);
    options.damp = 0.001;
    check_refused(w, rows, cols, &options, "even with damping 0.01");
    qz_hessian_free(&hessian);
    free(w);
    free(rounded);
}

static void test_failing_allocations_leave_all_as_it_was(void **state) {
    (void)state;
    int rows = 5, cols = 70, failures = 0;
    float *x = correlated_inputs(300, cols, 1), *w = random_matrix(rows, cols, 0.05, 2), *before;
    qz_hessian hessian = make_hessian(NULL, x, 300, cols);
    qz_round_options options = {.format = {3, 32, false, 6}, .hessian = &hessian, .damp = 0.01};
    before = copy_of(w, rows * cols);
    for (;; failures++) {
        qz_packed packed = {0};
        bis_error error = {0};
        bis_alloc_fail_after(failures);
        bis_status status = qz_round(w, rows, cols, &options, &packed, &error);
        bis_alloc_fail_after(-1);
        if (!status) {
            qz_packed_free(&packed);
            break;
        }
        assert_int_equal(status, BIS_ERR_NOMEM);
        assert_true(strlen(error.text) > 10);
        assert_null(packed.memory);
        assert_memory_equal(w, before, (size_t)(rows * cols) * sizeof *w);
    }
    assert_int_equal(failures, 5);
    qz_hessian_free(&hessian);
    free(before);
    free(x);
    free(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nearest_codes_are_those_of_the_format),
        cmocka_unit_test(test_searched_clips_are_the_best),
        cmocka_unit_test(test_hessian_is_the_mean_of_products),
        cmocka_unit_test(test_factor_of_the_inverse),
        cmocka_unit_test(test_gptq_is_the_textbooks),
        cmocka_unit_test(test_gptq_keeps_to_a_given_grid),
        cmocka_unit_test(test_gptq_beats_rounding_to_nearest),
        cmocka_unit_test(test_threads_do_not_change_bits),
        cmocka_unit_test(test_dead_columns_are_rounded_to_nearest),
        cmocka_unit_test(test_more_damping_is_tried_once),
        cmocka_unit_test(test_what_cannot_be_rounded_is_refused),
        cmocka_unit_test(test_failing_allocations_leave_all_as_it_was),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
