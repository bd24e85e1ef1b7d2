/* AVX2 build of the loops. */
#include "quantizer/loops.h"

#ifdef __AVX2__
#define LOOPS_NAME "avx2"
#include "quantizer/loops_template.h"

const qz_loops *qz_loops_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &loops : NULL;
}
#else
const qz_loops *qz_loops_avx2(void) { return NULL; }
#endif
