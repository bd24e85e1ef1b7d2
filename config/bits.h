/* The words that name a quantization's bits, such as W4A4KV4: weights, activations, KV cache; 16: not quantized. */
#ifndef BISUP_CONFIG_BITS_H
#define BISUP_CONFIG_BITS_H

#include <stdbool.h>
#include <stddef.h>

typedef struct cfg_bits {
    int weight;     /* 3, 4, 8, 16 */
    int activation; /* 3, 4, 8, 16 */
    int kv;         /* 2, 3, 4, 8, 16 */
} cfg_bits;

/* Reads exactly W<bits>A<bits>KV<bits>: capitals, no spaces, no leading zeros. False for anything else; then *out is
 * as before. */
bool cfg_bits_parse(const char *text, cfg_bits *out);

/* What cfg_bits_parse accepts, for messages; static. */
const char *cfg_bits_accepted(void);

enum { CFG_BITS_TEXT_MAX = 16 };

/* "W4A4KV4"; returns `text`. */
const char *cfg_bits_text(const cfg_bits *bits, char text[CFG_BITS_TEXT_MAX]);

#endif
