#include "common/alloc.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { CACHE_LINE = 64 };

static atomic_long failure_countdown = -1;

void bis_alloc_fail_after(long successes) { atomic_store(&failure_countdown, successes); }

static bool must_fail(void) {
    if (atomic_load_explicit(&failure_countdown, memory_order_relaxed) < 0) return false;
    return atomic_fetch_sub(&failure_countdown, 1) == 0;
}

void *bis_malloc(size_t size) { return must_fail() ? NULL : malloc(size ? size : 1); }

void *bis_calloc(size_t count, size_t size) {
    if (must_fail()) return NULL;
    return count && size ? calloc(count, size) : calloc(1, 1);
}

void *bis_realloc(void *memory, size_t size) { return must_fail() ? NULL : realloc(memory, size ? size : 1); }

void *bis_reallocarray(void *memory, size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) return NULL;
    return bis_realloc(memory, bytes);
}

char *bis_strdup(const char *text) { return bis_strndup(text, strlen(text)); }

char *bis_strndup(const char *text, size_t length) {
    char *copy = length < SIZE_MAX ? bis_malloc(length + 1) : NULL;
    if (!copy) return NULL;
    memcpy(copy, text, length);
    copy[length] = '\0';
    return copy;
}

void *bis_alloc_aligned(size_t size) {
    if (must_fail() || size > SIZE_MAX - CACHE_LINE) return NULL;
    size_t bytes = (size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    if (bytes == 0) bytes = CACHE_LINE;
    void *memory = aligned_alloc(CACHE_LINE, bytes);
    if (memory) memset(memory, 0, bytes);
    return memory;
}

void bis_free(void *memory) { free(memory); }
