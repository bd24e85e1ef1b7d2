/* UTF-8 (RFC 3629): decoding, validation, and cutting without splitting a character. */
#ifndef BISUP_COMMON_UTF8_H
#define BISUP_COMMON_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BIS_UTF8_MAX = 4 };

/* Decodes one character at text[0..length). Returns the bytes it takes (1..4) and its
 * code point, or 0 where the bytes are not a complete, valid character (overlong forms,
 * surrogates and values above U+10FFFF are invalid). length 0 gives 0. */
size_t bis_utf8_decode(const char *text, size_t length, uint32_t *code_point);

/* Writes a code point (at most U+10FFFF, not a surrogate) to out[0..4); returns its bytes, 0 if invalid. */
size_t bis_utf8_encode(uint32_t code_point, char out[BIS_UTF8_MAX]);

/* True when all of text[0..length) is valid UTF-8. */
bool bis_utf8_valid(const char *text, size_t length);

/* Length of the longest prefix that does not end inside a character that more bytes could
 * complete. Bytes that can never become valid are counted as part of the prefix. */
size_t bis_utf8_complete_prefix(const char *text, size_t length);

#endif
