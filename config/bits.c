#include "config/bits.h"

#include <stdio.h>
#include <string.h>

static const int matrix_widths[] = {3, 4, 8, 16, 0}, kv_widths[] = {2, 3, 4, 8, 16, 0};

/* Reads `name` and one of the widths at *text, and moves *text behind them. */
static bool take(const char **text, const char *name, const int *widths, int *out) {
    size_t length = strlen(name);
    if (strncmp(*text, name, length) != 0) return false;
    const char *digits = *text + length;
    size_t count = strspn(digits, "0123456789");
    for (; *widths; widths++) {
        char word[8];
        int word_length = snprintf(word, sizeof word, "%d", *widths);
        if ((size_t)word_length != count || memcmp(word, digits, count) != 0) continue;
        *out = *widths;
        *text = digits + count;
        return true;
    }
    return false;
}

bool cfg_bits_parse(const char *text, cfg_bits *out) {
    cfg_bits bits = {0};
    bool ok = take(&text, "W", matrix_widths, &bits.weight) && take(&text, "A", matrix_widths, &bits.activation) &&
              take(&text, "KV", kv_widths, &bits.kv) && !*text;
    if (ok) *out = bits;
    return ok;
}

const char *cfg_bits_accepted(void) {
    return "such as W4A4KV4: W and A with 3, 4, 8 or 16, KV with 2, 3, 4, 8 or 16 (16: not quantized)";
}

const char *cfg_bits_text(const cfg_bits *bits, char text[CFG_BITS_TEXT_MAX]) {
    snprintf(text, CFG_BITS_TEXT_MAX, "W%dA%dKV%d", bits->weight, bits->activation, bits->kv);
    return text;
}
