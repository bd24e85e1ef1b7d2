#include "tests/support/random_data.h"

#include <stdio.h>
#include <stdlib.h>

static uint64_t random_state = 1;

uint64_t random_bits(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return random_state >> 33;
}

int random_below(int n) { return (int)(random_bits() % (uint64_t)n); }

float random_float(void) { return ((float)random_bits() / 0x1p31f - 0.5f) * 4; }

void fill_random(float *out, size_t count) {
    for (size_t i = 0; i < count; i++) out[i] = random_float();
}

void *test_alloc(size_t bytes) {
    void *memory = calloc(1, bytes + 1);
    if (memory) return memory;
    (void)fprintf(stderr, "no memory for a test's %zu bytes\n", bytes);
    exit(1);
}
