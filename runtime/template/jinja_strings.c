/* What Python's str can do, shared by methods and filters. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "runtime/template/jinja_eval.h"
#include "runtime/template/jinja_unicode.h"

size_t rt_jstring_offset(rt_jrun *run, const rt_jstr *string, size_t index) {
    if (index >= string->chars) return string->length;
    if (string->chars == string->length) return index;
    size_t at = 0;
    for (; at < string->length; at++) {
        if (((unsigned char)string->bytes[at] & 0xc0) != 0x80 && index-- == 0) break;
    }
    rt_jwork_bytes(run, at);
    return at;
}

/* ---- Case ---- */

static bool is_cased(uint32_t c) { return rt_jchar_is_upper(c) || rt_jchar_is_lower(c); }

/* A capital sigma becomes another small letter at the end of a word. */
static bool is_final_sigma(const rt_jstr *string, size_t start, size_t end) {
    size_t before = start, after = end;
    if (start == 0 || !is_cased(rt_jchar_before(string->bytes, &before))) return false;
    return end >= string->length || !is_cased(rt_jchar_at(string->bytes, string->length, &after));
}

static void put_cased(bis_buf *out, const rt_jstr *string, size_t start, size_t end, uint32_t c, bool upper) {
    uint32_t mapped[RT_JCHAR_CASE_MAX];
    size_t count = upper ? rt_jchar_upper(c, mapped) : rt_jchar_lower(c, mapped);
    if (!upper && c == 0x3a3 && is_final_sigma(string, start, end)) mapped[0] = 0x3c2;
    for (size_t i = 0; i < count; i++) rt_jchar_put(out, mapped[i]);
}

rt_jval rt_jstring_case(rt_jrun *run, const rt_jstr *string, rt_jcase how) {
    if (!rt_jwork(run, string->length)) return rt_jnone();
    bis_buf out = {0};
    bool word = false; /* the last character was cased */
    for (size_t i = 0; i < string->length;) {
        size_t start = i;
        uint32_t c = rt_jchar_at(string->bytes, string->length, &i);
        bool upper = how == RT_J_UPPER || (how == RT_J_CAPITALIZE && start == 0) || (how == RT_J_TITLE && !word) ||
                     (how == RT_J_SWAP && rt_jchar_is_lower(c));
        put_cased(&out, string, start, i, c, upper);
        word = is_cased(c);
    }
    return rt_jmarkup(run, rt_jtake(run, &out), string->markup);
}

bool rt_jstring_all_cased(const rt_jstr *string, bool upper) {
    bool any = false;
    for (size_t i = 0; i < string->length;) {
        uint32_t c = rt_jchar_at(string->bytes, string->length, &i);
        if (upper ? rt_jchar_is_lower(c) : rt_jchar_is_upper(c)) return false;
        any = any || is_cased(c);
    }
    return any;
}

/* ---- Strip, replace, split, join ---- */

static bool strips(const rt_jstr *chars, uint32_t c) {
    if (!chars) return rt_jchar_is_space(c);
    for (size_t i = 0; i < chars->length;) {
        if (rt_jchar_at(chars->bytes, chars->length, &i) == c) return true;
    }
    return false;
}

rt_jval rt_jstring_strip(rt_jrun *run, const rt_jstr *string, const rt_jstr *chars, int sides) {
    size_t from = 0, to = string->length;
    size_t cost = chars ? chars->length + 1 : 1;
    while ((sides & 1) && from < to && rt_jwork_bytes(run, cost)) {
        size_t next = from;
        if (!strips(chars, rt_jchar_at(string->bytes, to, &next))) break;
        from = next;
    }
    while ((sides & 2) && from < to && rt_jwork_bytes(run, cost)) {
        size_t before = to;
        if (!strips(chars, rt_jchar_before(string->bytes, &before))) break;
        to = before;
    }
    return rt_jstring_part(run, string, from, to);
}

static void check_size(rt_jrun *run, const bis_buf *text) {
    if (text->length > RT_JINJA_OUTPUT_MAX) {
        rt_jfail(run, BIS_ERR_LIMIT, "a string of more than %d MB", RT_JINJA_OUTPUT_MAX >> 20);
    }
}

rt_jval rt_jstring_replace(rt_jrun *run, const rt_jstr *string, const rt_jstr *old_text, const rt_jstr *new_text,
                           int64_t limit) {
    bis_buf out = {0};
    size_t at = 0;
    rt_jwork_bytes(run, string->length);
    while (limit != 0 && at <= string->length && rt_jwork(run, 1)) {
        const char *hit = old_text->length
                              ? memmem(string->bytes + at, string->length - at, old_text->bytes, old_text->length)
                              : string->bytes + at;
        if (!hit) break;
        size_t start = (size_t)(hit - string->bytes);
        bis_buf_append(&out, string->bytes + at, start - at);
        bis_buf_append(&out, new_text->bytes, new_text->length);
        at = start + old_text->length;
        if (!old_text->length && at < string->length) { /* between all characters */
            size_t next = at;
            rt_jchar_at(string->bytes, string->length, &next);
            bis_buf_append(&out, string->bytes + at, next - at);
            at = next;
        } else if (!old_text->length) at++;
        check_size(run, &out);
        if (limit > 0) limit--;
    }
    if (at < string->length) bis_buf_append(&out, string->bytes + at, string->length - at);
    return rt_jmarkup(run, rt_jtake(run, &out), string->markup);
}

rt_jlist *rt_jstring_lines(rt_jrun *run, const rt_jstr *string, bool keep_ends) {
    rt_jlist *lines = rt_jlist_new(run, 8);
    size_t start = 0;
    rt_jwork_bytes(run, string->length);
    for (size_t i = 0; i < string->length && !run->status;) {
        size_t end = i;
        uint32_t c = rt_jchar_at(string->bytes, string->length, &i);
        if (!rt_jchar_is_newline(c)) continue;
        if (c == '\r' && i < string->length && string->bytes[i] == '\n') i++;
        rt_jlist_add(run, lines, rt_jstring_part(run, string, start, keep_ends ? i : end));
        start = i;
    }
    if (start < string->length) rt_jlist_add(run, lines, rt_jstring_part(run, string, start, string->length));
    return lines;
}

rt_jval rt_jstring_concat(rt_jrun *run, const rt_jstr *separator, rt_jval items, bool convert) {
    rt_jiter *iter = rt_jiter_of(run, items);
    bis_buf out = {0};
    rt_jval item;
    for (size_t i = 0; rt_jiter_next(run, iter, &item); i++) {
        if (i) bis_buf_append(&out, separator->bytes, separator->length);
        if (!convert && item.type != RT_J_STRING) {
            rt_jfail(run, BIS_ERR_INVALID, "sequence item %zu: expected str instance, %s found", i,
                     rt_jtype_name(item));
            break;
        }
        rt_jwrite(run, &out, item);
        check_size(run, &out);
    }
    return rt_jmarkup(run, rt_jtake(run, &out), separator->markup);
}

/* ---- Numbers in texts ---- */

/* Copies the text without surrounding space and without single underscores between digits; NULL: malformed. */
static char *clean_number(rt_jrun *run, const rt_jstr *string) {
    rt_jval stripped = rt_jstring_strip(run, string, NULL, 3);
    if (stripped.type != RT_J_STRING) return NULL;
    const rt_jstr *text = stripped.as.string;
    char *clean = rt_jalloc(run, text->length + 1, 1);
    if (!clean || memchr(text->bytes, '\0', text->length)) return NULL;
    size_t count = 0;
    for (size_t i = 0; i < text->length; i++) {
        if (text->bytes[i] != '_') {
            clean[count++] = text->bytes[i];
            continue;
        }
        bool between = i > 0 && i + 1 < text->length && strchr("_+-.", text->bytes[i - 1]) == NULL &&
                       strchr("_.", text->bytes[i + 1]) == NULL;
        if (!between) return NULL;
    }
    return clean;
}

static bool is_base_digit(char c, int base) {
    int value = 99;
    if (c >= '0' && c <= '9') value = c - '0';
    else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') value = (c | 0x20) - 'a' + 10;
    return value < base;
}

bool rt_jparse_int(rt_jrun *run, const rt_jstr *string, int base, rt_jval *out) {
    char *text = clean_number(run, string);
    if (!text) return false;
    char *digits = text + (*text == '-' || *text == '+');
    char letter = digits[0] == '0' ? (char)(digits[1] | 0x20) : '\0';
    int prefix = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 0;
    if (base == 0) base = prefix ? prefix : 10;
    char *first = prefix == base ? digits + 2 : digits;
    size_t count = 0;
    while (is_base_digit(first[count], base)) count++;
    if (count == 0 || first[count]) return false;
    errno = 0;
    long long value = strtoll(first, NULL, base);
    if (errno == 0) {
        *out = rt_jint(*text == '-' ? -value : value);
        return true;
    }
    if (base != 10) rt_jfail(run, BIS_ERR_LIMIT, "the result is an integer beyond 64 bits");
    while (*first == '0') first++; /* the sign, if any, goes right before the digits */
    if (*text == '-') *--first = '-';
    *out = rt_jstring_from(run, first);
    if (out->type == RT_J_STRING) out->type = RT_J_BIGINT;
    return true;
}

bool rt_jparse_float(rt_jrun *run, const rt_jstr *string, double *out) {
    char *text = clean_number(run, string);
    if (!text || !*text || strpbrk(text, "xXpP(")) return false; /* hexadecimal and nan(...) are C's only */
    char *end;
    *out = strtod(text, &end);
    return *end == '\0';
}
