/* Constants of the exponential that all CPU variants share; the method is in kernels_reference.c. */
#ifndef BISUP_KERNELS_EXP_CONSTANTS_H
#define BISUP_KERNELS_EXP_CONSTANTS_H

#define EXP_LOWEST (-87.0f)
#define EXP_HIGHEST 88.0f
#define EXP_LOG2_E 0x1.715476p+0f
#define EXP_LN2_HIGH 0x1.62e4p-1f /* few bits, so that n * EXP_LN2_HIGH is exact */
#define EXP_LN2_LOW 0x1.7f7d1cp-20f
#define EXP_C2 0.5f
#define EXP_C3 0x1.555556p-3f
#define EXP_C4 0x1.555556p-5f
#define EXP_C5 0x1.111112p-7f
#define EXP_C6 0x1.6c16c2p-10f
#define EXP_C7 0x1.a01a02p-13f

#endif
