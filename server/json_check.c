#include "server/json_check.h"

#include <string.h>

#include "common/utf8.h"

typedef struct scanner {
    const char *text, *end, *at;
    srv_json_slice *slices;
    size_t slice_count, values;
    bis_error *error;
} scanner;

static bool fail(scanner *s, const char *what) {
    bis_fail(s->error, BIS_ERR_INVALID, "The request body is not acceptable JSON: %s at byte %zu.", what,
             (size_t)(s->at - s->text));
    return false;
}

static void skip_space(scanner *s) {
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\t' || *s->at == '\n' || *s->at == '\r')) s->at++;
}

static bool take(scanner *s, char c) {
    if (s->at == s->end || *s->at != c) return false;
    s->at++;
    return true;
}

static bool is_digit(const scanner *s) { return s->at < s->end && *s->at >= '0' && *s->at <= '9'; }

/* Four hexadecimal digits after "\u"; -1 where they are not. */
static long hex4(scanner *s) {
    long value = 0;
    if (s->end - s->at < 4) return -1;
    for (int i = 0; i < 4; i++, s->at++) {
        char c = *s->at;
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

static bool scan_escape(scanner *s) {
    if (s->at == s->end || !strchr("\"\\/bfnrtu", *s->at) || *s->at == '\0') return fail(s, "an unknown escape");
    if (*s->at++ != 'u') return true;
    long unit = hex4(s);
    if (unit < 0) return fail(s, "a malformed \\u escape");
    if (unit == 0) return fail(s, "a NUL character in a string");
    if (unit >= 0xDC00 && unit <= 0xDFFF) return fail(s, "half of a surrogate pair");
    if (unit < 0xD800 || unit > 0xDBFF) return true;
    if (!take(s, '\\') || !take(s, 'u')) return fail(s, "half of a surrogate pair");
    unit = hex4(s);
    return unit >= 0xDC00 && unit <= 0xDFFF ? true : fail(s, "half of a surrogate pair");
}

static bool scan_string(scanner *s) {
    if (!take(s, '"')) return fail(s, "a string is missing");
    while (s->at < s->end) {
        unsigned char c = (unsigned char)*s->at;
        if (c == '"') {
            s->at++;
            return true;
        }
        if (c < 0x20) return fail(s, "a control character in a string");
        if (c == '\\') {
            s->at++;
            if (!scan_escape(s)) return false;
            continue;
        }
        uint32_t code_point;
        size_t n = bis_utf8_decode(s->at, (size_t)(s->end - s->at), &code_point);
        if (n == 0) return fail(s, "invalid UTF-8");
        s->at += n;
    }
    return fail(s, "an unfinished string");
}

static bool scan_number(scanner *s) {
    const char *start = s->at;
    take(s, '-');
    if (!is_digit(s)) return fail(s, "a value is missing or misspelt");
    if (!take(s, '0'))
        while (is_digit(s)) s->at++;
    if (take(s, '.')) {
        if (!is_digit(s)) return fail(s, "a malformed number");
        while (is_digit(s)) s->at++;
    }
    if (take(s, 'e') || take(s, 'E')) {
        if (!take(s, '+')) take(s, '-');
        if (!is_digit(s)) return fail(s, "a malformed number");
        while (is_digit(s)) s->at++;
    }
    return s->at - start <= SRV_JSON_NUMBER_MAX ? true : fail(s, "a number with too many digits");
}

static bool scan_word(scanner *s, const char *word) {
    size_t length = strlen(word);
    if ((size_t)(s->end - s->at) < length || memcmp(s->at, word, length) != 0)
        return fail(s, "a value is missing or misspelt");
    s->at += length;
    return true;
}

static void keep_slice(scanner *s, const char *key, size_t key_length, const char *start) {
    for (size_t i = 0; i < s->slice_count; i++) {
        srv_json_slice *slice = &s->slices[i];
        if (strlen(slice->key) != key_length || memcmp(slice->key, key, key_length) != 0) continue;
        slice->start = start;
        slice->length = (size_t)(s->at - start);
    }
}

static bool scan_value(scanner *s, int depth);

static bool scan_member(scanner *s, int depth) {
    skip_space(s);
    const char *key = s->at + 1;
    if (!scan_string(s)) return false;
    size_t key_length = (size_t)(s->at - 1 - key);
    skip_space(s);
    if (!take(s, ':')) return fail(s, "a ':' is missing");
    skip_space(s);
    const char *start = s->at;
    if (!scan_value(s, depth + 1)) return false;
    if (depth == 0) keep_slice(s, key, key_length, start);
    return true;
}

/* An object or an array, whose opening bracket is taken already. */
static bool scan_members(scanner *s, int depth, char close) {
    if (depth >= SRV_JSON_DEPTH_MAX) return fail(s, "values nested too deeply");
    skip_space(s);
    if (take(s, close)) return true;
    do {
        if (!(close == '}' ? scan_member(s, depth) : scan_value(s, depth + 1))) return false;
        skip_space(s);
    } while (take(s, ','));
    return take(s, close) ? true : fail(s, close == '}' ? "a ',' or '}' is missing" : "a ',' or ']' is missing");
}

static bool scan_value(scanner *s, int depth) {
    skip_space(s);
    if (s->at == s->end) return fail(s, "the text ends too early");
    if (++s->values > SRV_JSON_VALUES_MAX) return fail(s, "too many values");
    switch (*s->at) {
    case '{': s->at++; return scan_members(s, depth, '}');
    case '[': s->at++; return scan_members(s, depth, ']');
    case '"': return scan_string(s);
    case 't': return scan_word(s, "true");
    case 'f': return scan_word(s, "false");
    case 'n': return scan_word(s, "null");
    default: return scan_number(s);
    }
}

bis_status srv_json_check(const char *text, size_t length, srv_json_slice *slices, size_t count, bis_error *error) {
    scanner s = {
        .text = text, .end = text + length, .at = text, .slices = slices, .slice_count = count, .error = error};
    for (size_t i = 0; i < count; i++) slices[i].start = NULL;
    if (length == 0) return bis_fail(error, BIS_ERR_INVALID, "The request body is empty: a JSON object is expected.");
    bool ok = scan_value(&s, 0);
    skip_space(&s);
    if (ok && s.at != s.end) ok = fail(&s, "more text after the value");
    return ok ? BIS_OK : BIS_ERR_INVALID;
}
