/* AVX2 + FMA + F16C build of the vector kernels. */
#include "kernels/cpu/cpu_kernels.h"

#ifdef __AVX2__
#include "kernels/cpu/vec16_avx2.h"
#define KERNELS_NAME "avx2"
#define KERNELS_GET kn_cpu_kernels_avx2
/* Every processor with AVX2 has F16C too; clang 14 does not know that name here. */
#define KERNELS_SUPPORTED (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#include "kernels/cpu/kernels_template.h"
#else
const kn_cpu_kernels *kn_cpu_kernels_avx2(void) { return NULL; }
#endif
