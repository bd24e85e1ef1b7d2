/* The transform's arithmetic, included by hadamard.c once for each type of number with REAL and NAME defined. */

/* (a, b) <- (a + b, a - b) of two runs; inner loops of a fixed length are what the compiler makes vectors of. */
static void NAME(butterflies)(REAL *restrict a, REAL *restrict b, size_t count) {
    size_t i = 0;
    for (; i + RUN <= count; i += RUN) {
        for (size_t j = i; j < i + RUN; j++) {
            REAL sum = a[j] + b[j], difference = a[j] - b[j];
            a[j] = sum;
            b[j] = difference;
        }
    }
    for (; i < count; i++) {
        REAL sum = a[i] + b[i], difference = a[i] - b[i];
        a[i] = sum;
        b[i] = difference;
    }
}

/* Walsh-Hadamard over the powers of two: `blocks` runs of `block` numbers, each of vectors `stride` apart. */
static void NAME(walsh)(REAL *x, size_t blocks, size_t block, size_t stride) {
    for (size_t half = stride; half < block; half *= 2) {
        for (size_t at = 0; at < blocks * block; at += 2 * half) NAME(butterflies)(x + at, x + at + half, half);
    }
}

static void NAME(add_scaled)(REAL *restrict sums, const REAL *restrict x, REAL factor, size_t count) {
    size_t i = 0;
    for (; i + RUN <= count; i += RUN) {
        for (size_t j = i; j < i + RUN; j++) sums[j] += factor * x[j];
    }
    for (; i < count; i++) sums[i] += factor * x[i];
}

/* The dense factor over columns [0, width) of `order` runs that are `block` apart. copy: order * width numbers. */
static void NAME(dense)(const REAL *matrix, bool inverse, size_t order, REAL *x, size_t block, size_t width,
                        REAL *copy) {
    for (size_t i = 0; i < order; i++) memcpy(copy + i * width, x + i * block, width * sizeof *x);
    for (size_t i = 0; i < order; i++) {
        REAL *sums = x + i * block;
        for (size_t c = 0; c < width; c++) sums[c] = 0;
        for (size_t j = 0; j < order; j++) {
            REAL factor = inverse ? matrix[j * order + i] : matrix[i * order + j];
            NAME(add_scaled)(sums, copy + j * width, factor, width);
        }
    }
}

/* All vectors of size * stride numbers. scratch: scratch_size >= order numbers; how many never changes a result. */
static void NAME(transform)(const kn_hadamard *h, const REAL *matrix, bool inverse, size_t stride, REAL *x,
                            REAL *scratch, size_t scratch_size) {
    size_t order = (size_t)h->order, block = (size_t)(h->size / h->order) * stride, total = order * block;
    NAME(walsh)(x, order, block, stride);
    if (order > 1) {
        size_t most = scratch_size / order;
        for (size_t at = 0; at < block; at += most) {
            size_t width = block - at < most ? block - at : most;
            NAME(dense)(matrix, inverse, order, x + at, block, width, scratch);
        }
    }
    REAL scale = (REAL)h->scale;
    for (size_t i = 0; i < total; i++) x[i] *= scale;
}
