/* AVX-512 (F, BW, VL, DQ) build of the loops. */
#include "quantizer/loops.h"

#ifdef __AVX512F__
#define LOOPS_NAME "avx512"
#include "quantizer/loops_template.h"

const qz_loops *qz_loops_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
               ? &loops
               : NULL;
}
#else
const qz_loops *qz_loops_avx512(void) { return NULL; }
#endif
