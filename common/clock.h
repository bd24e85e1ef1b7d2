/* Monotonic time. */
#ifndef BISUP_COMMON_CLOCK_H
#define BISUP_COMMON_CLOCK_H

#include <stdint.h>

uint64_t bis_now_ns(void);    /* nanoseconds since an arbitrary start */
double bis_now_seconds(void); /* the same in seconds */

#endif
