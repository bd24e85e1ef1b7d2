/* Character classes and case as Python's str methods see them (simple case pairs and classes come from
 * the C library, which may know other Unicode versions than a given Python). Thread-safe. */
#ifndef BISUP_RUNTIME_JINJA_UNICODE_H
#define BISUP_RUNTIME_JINJA_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"

enum { RT_JCHAR_CASE_MAX = 3 };

bool rt_jchar_is_space(uint32_t c);   /* str.isspace, and what strip() and \s mean */
bool rt_jchar_is_newline(uint32_t c); /* where splitlines() splits */
bool rt_jchar_is_printable(uint32_t c);
bool rt_jchar_is_digit(uint32_t c); /* ASCII only */
bool rt_jchar_is_alpha(uint32_t c);
bool rt_jchar_is_upper(uint32_t c);
bool rt_jchar_is_lower(uint32_t c);

/* Write the case mapping to out; return its number of characters. */
size_t rt_jchar_upper(uint32_t c, uint32_t out[RT_JCHAR_CASE_MAX]);
size_t rt_jchar_lower(uint32_t c, uint32_t out[RT_JCHAR_CASE_MAX]);

/* The character at *position < length, which moves behind it. */
uint32_t rt_jchar_at(const char *text, size_t length, size_t *position);
/* The character that ends at *position > 0, which moves to its start. */
uint32_t rt_jchar_before(const char *text, size_t *position);
bool rt_jchar_put(bis_buf *out, uint32_t c);

#endif
