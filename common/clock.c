#include "common/clock.h"

#include <time.h>

uint64_t bis_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

double bis_now_seconds(void) { return (double)bis_now_ns() * 1e-9; }
