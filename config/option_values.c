#include "config/option_table.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Table ----------------------------------------------------------------------------------- */

#define SERVE (1u << CFG_SERVE)
#define GENERATE (1u << CFG_GENERATE)
#define INFO (1u << CFG_INFO)
#define TOKENIZE (1u << CFG_TOKENIZE)
#define BENCH (1u << CFG_BENCH)
#define EVAL (1u << CFG_EVAL)
#define QUANTIZE (1u << CFG_QUANTIZE)
#define HEALTH (1u << CFG_HEALTH)
#define ENGINE_COMMANDS (SERVE | GENERATE | BENCH | EVAL)
#define CLIENT_COMMANDS (GENERATE | INFO | TOKENIZE | BENCH | EVAL | QUANTIZE)
#define MODEL_COMMANDS (ENGINE_COMMANDS | INFO | TOKENIZE | QUANTIZE)
#define ALL_COMMANDS (MODEL_COMMANDS | HEALTH)

const cfg_entry cfg_table[CFG_OPTION_COUNT] = {
#define X(field, name, kind, default_text, least, most, hint, environment, commands, help)                             \
    {name,           CFG_##kind,                                                                                       \
     default_text,   (double)(least),                                                                                  \
     (double)(most), hint,                                                                                             \
     environment,    commands,                                                                                         \
     help,           offsetof(cfg_options, field)},
#include "config/options.def"
#undef X
};

/* ---- Numbers --------------------------------------------------------------------------------- */

/* Decimal digits up to `stop`, at least one. */
static bool read_digits(const char *text, const char *stop, uint64_t *out) {
    uint64_t value = 0;
    if (text == stop) return false;
    for (; text < stop; text++) {
        if (*text < '0' || *text > '9') return false;
        uint64_t digit = (uint64_t)(*text - '0');
        if (value > (UINT64_MAX - digit) / 10) return false;
        value = value * 10 + digit;
    }
    *out = value;
    return true;
}

static bool read_uint64(const cfg_entry *entry, const char *text, uint64_t *out) {
    uint64_t value;
    if (!read_digits(text, text + strlen(text), &value)) return false;
    if ((double)value < entry->least || (double)value > entry->most) return false;
    *out = value;
    return true;
}

/* The place of `word` among the words that a bar separates, or -1. */
static int find_word(const char *words, const char *word, size_t length) {
    for (int index = 0;; index++) {
        size_t n = strcspn(words, "|");
        if (n == length && !memcmp(words, word, n)) return index;
        if (!words[n]) return -1;
        words += n + 1;
    }
}

static bool read_int(const cfg_entry *entry, const char *text, const char *stop, int *out) {
    bool negative = *text == '-';
    uint64_t magnitude;
    if (!read_digits(text + negative, stop, &magnitude) || magnitude > INT_MAX) return false;
    int value = negative ? -(int)magnitude : (int)magnitude;
    if (value < entry->least || value > entry->most) return false;
    if (strchr(entry->hint, '|') && find_word(entry->hint, text, (size_t)(stop - text)) < 0) return false;
    *out = value;
    return true;
}

static const char size_letters[] = "KMGT";

static bool read_size(const cfg_entry *entry, const char *text, uint64_t *out) {
    const char *stop = text + strlen(text);
    unsigned shift = 0;
    if (stop - text > 2 && !strcmp(stop - 2, "iB")) stop -= 2;
    bool spelled_out = *stop != '\0';
    const char *letter = stop > text ? strchr("KkMmGgTt", stop[-1]) : NULL;
    if (letter) {
        shift = 10 * (1 + (unsigned)(letter - "KkMmGgTt") / 2);
        stop--;
    }
    uint64_t value;
    if (spelled_out && !letter) return false;
    if (!read_digits(text, stop, &value) || value > UINT64_MAX >> shift) return false;
    value <<= shift;
    if ((double)value < entry->least || (double)value > entry->most) return false;
    *out = value;
    return true;
}

static bool read_float(const cfg_entry *entry, const char *text, double *out) {
    /* Without this, strtod would take " 1", "0x1", "inf" and "nan". */
    if (!*text || text[strspn(text, "0123456789.eE+-")]) return false;
    char *stop;
    double value = strtod(text, &stop);
    if (*stop || !isfinite(value) || value < entry->least || value > entry->most) return false;
    *out = value;
    return true;
}

static bool read_ints(const cfg_entry *entry, const char *text, cfg_ints *out) {
    cfg_ints list = {0};
    for (;;) {
        const char *stop = text + strcspn(text, ",");
        if (list.count == CFG_INTS_MAX || !read_int(entry, text, stop, &list.values[list.count])) return false;
        list.count++;
        if (!*stop) break;
        text = stop + 1;
    }
    *out = list;
    return true;
}

/* ---- Other kinds ----------------------------------------------------------------------------- */

static bool read_bool(const char *text, bool *out) {
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcmp(text, words[i]) != 0) continue;
        *out = i % 2 == 1;
        return true;
    }
    return false;
}

static bool add_string(const cfg_entry *entry, const char *text, cfg_strings *out) {
    if (!*text || out->count >= (int)entry->most || out->count >= CFG_STRINGS_MAX) return false;
    out->values[out->count++] = text;
    return true;
}

static bool read_choice(const cfg_entry *entry, const char *text, const char **out) {
    if (!*text || find_word(entry->hint, text, strlen(text)) < 0) return false;
    *out = text;
    return true;
}

bool cfg_value_parse(const cfg_entry *entry, const char *text, void *field) {
    switch (entry->kind) {
    case CFG_STRING: *(const char **)field = text; return true;
    case CFG_CHOICE: return read_choice(entry, text, field);
    case CFG_INT: return read_int(entry, text, text + strlen(text), field);
    case CFG_UINT64: return read_uint64(entry, text, field);
    case CFG_SIZE: return read_size(entry, text, field);
    case CFG_FLOAT: return read_float(entry, text, field);
    case CFG_BOOL: return read_bool(text, field);
    case CFG_BITS: return cfg_bits_parse(text, field);
    case CFG_INTS: return read_ints(entry, text, field);
    case CFG_STRINGS: return add_string(entry, text, field);
    }
    return false;
}

void cfg_value_default(const cfg_entry *entry, void *field) {
    if (*entry->default_text) cfg_value_parse(entry, entry->default_text, field);
}

int cfg_choice_index(cfg_option option, const char *word) {
    return find_word(cfg_table[option].hint, word, strlen(word));
}

/* ---- Messages -------------------------------------------------------------------------------- */

/* 4194304 as "4M". */
static void print_size(double bytes, char *out, size_t size) {
    int power = 0;
    while (bytes >= 1024 && fmod(bytes, 1024) == 0 && size_letters[power]) {
        bytes /= 1024;
        power++;
    }
    snprintf(out, size, "%.0f%.1s", bytes, power ? size_letters + power - 1 : "");
}

static void describe_words(const char *words, char *out, size_t size) {
    size_t used = 0;
    for (const char *word = words; used < size; word += strcspn(word, "|") + 1) {
        int length = (int)strcspn(word, "|");
        bool last = !word[length];
        const char *between = word == words ? "" : last ? " or " : ", ";
        used += (size_t)snprintf(out + used, size - used, "%s%.*s", between, length, word);
        if (last) break;
    }
}

void cfg_value_describe(const cfg_entry *entry, char *out, size_t size) {
    char least[32], most[32];
    switch (entry->kind) {
    case CFG_STRING: snprintf(out, size, "a text"); break;
    case CFG_BOOL: snprintf(out, size, "true or false"); break;
    case CFG_BITS: snprintf(out, size, "%s", cfg_bits_accepted()); break;
    case CFG_CHOICE: describe_words(entry->hint, out, size); break;
    case CFG_INT:
        if (strchr(entry->hint, '|')) describe_words(entry->hint, out, size);
        else snprintf(out, size, "a whole number from %.0f to %.0f", entry->least, entry->most);
        break;
    case CFG_UINT64: snprintf(out, size, "a whole number from 0 to %llu", (unsigned long long)UINT64_MAX); break;
    case CFG_SIZE:
        print_size(entry->least, least, sizeof least);
        print_size(entry->most, most, sizeof most);
        snprintf(out, size, "a size from %s to %s, such as 512K, 64M or 2G", least, most);
        break;
    case CFG_FLOAT: snprintf(out, size, "a number from %g to %g", entry->least, entry->most); break;
    case CFG_INTS:
        snprintf(out, size, "at most %d whole numbers from %.0f to %.0f with commas between", CFG_INTS_MAX,
                 entry->least, entry->most);
        break;
    case CFG_STRINGS: snprintf(out, size, "not empty, and given at most %.0f times", entry->most); break;
    }
}

/* ---- Suggestions ----------------------------------------------------------------------------- */

enum { WORD_MAX = 48 };

static int least_of(int a, int b) { return a < b ? a : b; }

/* Letters to add, drop, change or swap with their neighbour (optimal string alignment). Both words are
 * shorter than WORD_MAX. */
static int edit_distance(const char *a, const char *b) {
    int row[3][WORD_MAX + 1]; /* the last three rows of the table, by i % 3 */
    int a_length = (int)strlen(a), b_length = (int)strlen(b);
    for (int j = 0; j <= b_length; j++) row[0][j] = j;
    for (int i = 1; i <= a_length; i++) {
        int *now = row[i % 3], *before = row[(i + 2) % 3], *two_before = row[(i + 1) % 3];
        now[0] = i;
        for (int j = 1; j <= b_length; j++) {
            int changed = before[j - 1] + (a[i - 1] != b[j - 1]);
            now[j] = least_of(changed, least_of(before[j], now[j - 1]) + 1);
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped) now[j] = least_of(now[j], two_before[j - 2] + 1);
        }
    }
    return row[a_length % 3][b_length];
}

const char *cfg_nearest_name(const char *word, const char *const *names, size_t count) {
    size_t length = strlen(word);
    if (length >= WORD_MAX) return NULL;
    const char *best = NULL;
    int best_distance = (int)(length + 2) / 3 + 1;
    for (size_t i = 0; i < count; i++) {
        if (strlen(names[i]) >= WORD_MAX) continue;
        int distance = edit_distance(word, names[i]);
        if (distance >= best_distance) continue;
        best = names[i];
        best_distance = distance;
    }
    return best;
}
