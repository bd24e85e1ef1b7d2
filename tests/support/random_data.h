/* Repeatable random numbers and zeroed memory for tests of numerical code. Each program starts at the same seed. */
#ifndef BISUP_TESTS_RANDOM_DATA_H
#define BISUP_TESTS_RANDOM_DATA_H

#include <stddef.h>
#include <stdint.h>

uint64_t random_bits(void); /* 31 bits */
int random_below(int n);
float random_float(void); /* in [-2, 2] */
void fill_random(float *out, size_t count);

/* Zeroed; ends the test where there is no memory. The caller calls free. */
void *test_alloc(size_t bytes) __attribute__((malloc));

#endif
