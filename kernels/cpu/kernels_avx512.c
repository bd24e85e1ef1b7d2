/* AVX-512 (F, BW, VL, DQ) build of the vector kernels. */
#include "kernels/cpu/cpu_kernels.h"

#ifdef __AVX512F__
#include "kernels/cpu/vec16_avx512.h"
#define KERNELS_NAME "avx512"
#define KERNELS_GET kn_cpu_kernels_avx512
#define KERNELS_SUPPORTED                                                                                              \
    (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&  \
     __builtin_cpu_supports("avx512dq"))
#include "kernels/cpu/kernels_template.h"
#else
const kn_cpu_kernels *kn_cpu_kernels_avx512(void) { return NULL; }
#endif
