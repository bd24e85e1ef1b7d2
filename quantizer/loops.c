#define LOOPS_NAME "baseline"
#include "quantizer/loops_template.h"

const qz_loops *qz_loops_baseline(void) { return &loops; }

const qz_loops *qz_loops_get(void) {
    if (qz_loops_avx512()) return qz_loops_avx512();
    return qz_loops_avx2() ? qz_loops_avx2() : qz_loops_baseline();
}
