/* Memory allocation with overflow checks, and with failures that a test can ask for.
 *
 * Everything in the project allocates through these, so that the fault tests can make the
 * n-th allocation of any operation fail and check that it is reported and nothing leaks.
 * All functions may be called from any thread.
 */
#ifndef BISUP_COMMON_ALLOC_H
#define BISUP_COMMON_ALLOC_H

#include <stddef.h>

/* Return NULL when memory is exhausted, when count*size overflows, or when a test asked
 * for a failure. size 0 gives a unique pointer, not NULL. The caller frees with bis_free. */
void *bis_malloc(size_t size) __attribute__((malloc));
void *bis_calloc(size_t count, size_t size) __attribute__((malloc));
void *bis_realloc(void *memory, size_t size);
void *bis_reallocarray(void *memory, size_t count, size_t size);
char *bis_strdup(const char *text) __attribute__((malloc));
char *bis_strndup(const char *text, size_t length) __attribute__((malloc));

/* Zeroed memory at a 64-byte boundary, freed with bis_free. */
void *bis_alloc_aligned(size_t size) __attribute__((malloc));

void bis_free(void *memory);

/* Tests only: the allocation after the next `successes` ones fails, once; negative: never. */
void bis_alloc_fail_after(long successes);

#endif
