/* Template text to tokens, with jinja2's whitespace rules for trim_blocks=True, lstrip_blocks=True:
 * - the newline right after a block or comment tag is dropped (not after "+%}");
 * - spaces and tabs from the start of a line up to a block or comment tag are dropped (not before "{%+");
 * - "-" next to a tag's inner side drops all whitespace on its outer side.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "runtime/template/jinja_ast.h"
#include "runtime/template/jinja_unicode.h"

typedef struct lexer {
    rt_jrun *run;
    const char *text;
    size_t length, at;
    int line;
    bool line_starting; /* the last tag ended with a newline, or the template starts here */
    rt_jtokens tokens;
} lexer;

static bool starts(const lexer *lex, size_t at, const char *word) {
    size_t n = strlen(word);
    return at <= lex->length && lex->length - at >= n && memcmp(lex->text + at, word, n) == 0;
}

/* Moves over text[at..to), counting lines. */
static void move_to(lexer *lex, size_t to) {
    for (; lex->at < to; lex->at++) lex->line += lex->text[lex->at] == '\n';
}

static size_t skip_space(const lexer *lex, size_t at) {
    while (at < lex->length) {
        size_t next = at;
        if (!rt_jchar_is_space(rt_jchar_at(lex->text, lex->length, &next))) break;
        at = next;
    }
    return at;
}

static size_t strip_end(const lexer *lex, size_t from, size_t to) {
    while (to > from) {
        size_t before = to;
        if (!rt_jchar_is_space(rt_jchar_before(lex->text, &before))) break;
        to = before;
    }
    return to;
}

static rt_jtoken *add(lexer *lex, rt_jtoken_kind kind) {
    rt_jtokens *tokens = &lex->tokens;
    if (tokens->count == tokens->capacity) {
        size_t capacity = tokens->capacity ? tokens->capacity * 2 : 256;
        rt_jtoken *at = rt_jalloc(lex->run, capacity, sizeof *at);
        if (!at) return NULL;
        if (tokens->count) memcpy(at, tokens->at, tokens->count * sizeof *at);
        tokens->at = at;
        tokens->capacity = capacity;
    }
    rt_jtoken *token = &tokens->at[tokens->count++];
    *token = (rt_jtoken){.kind = kind, .line = lex->line};
    return token;
}

static void add_text(lexer *lex, rt_jtoken_kind kind, size_t from, size_t to) {
    rt_jtoken *token = add(lex, kind);
    char *text = token ? rt_jalloc(lex->run, to - from + 1, 1) : NULL;
    if (!text) return;
    memcpy(text, lex->text + from, to - from);
    token->text = text;
}

static void fail(lexer *lex, const char *problem) {
    lex->run->line = lex->line;
    rt_jfail(lex->run, BIS_ERR_INVALID, "%s", problem);
}

/* ---- Inside a tag ---- */

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

/* End of a run of digits that may be separated by single underscores; `at` when there is none. */
static size_t digits_end(const lexer *lex, size_t at) {
    if (at >= lex->length || !is_digit(lex->text[at])) return at;
    while (at < lex->length) {
        if (is_digit(lex->text[at])) at++;
        else if (lex->text[at] == '_' && at + 1 < lex->length && is_digit(lex->text[at + 1])) at++;
        else break;
    }
    return at;
}

/* End of a float literal at `at`, or `at`. After a dot there are only integers: a.0.1 */
static size_t float_end(const lexer *lex, size_t at) {
    if (at > 0 && lex->text[at - 1] == '.') return at;
    size_t end = digits_end(lex, at);
    if (end == at) return at;
    bool real = false;
    if (end < lex->length && lex->text[end] == '.' && digits_end(lex, end + 1) > end + 1) {
        end = digits_end(lex, end + 1);
        real = true;
    }
    if (end < lex->length && (lex->text[end] == 'e' || lex->text[end] == 'E')) {
        size_t exponent = end + 1;
        if (exponent < lex->length && (lex->text[exponent] == '+' || lex->text[exponent] == '-')) exponent++;
        size_t after = digits_end(lex, exponent);
        if (after > exponent) return after;
    }
    return real ? end : at;
}

static int digit_value(char c) {
    if (is_digit(c)) return c - '0';
    char lower = (char)(c | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : 99;
}

/* End of an integer literal (also 0x, 0o, 0b); *base is set. */
static size_t integer_end(const lexer *lex, size_t at, int *base) {
    *base = 10;
    char letter = lex->text[at] == '0' && at + 1 < lex->length ? (char)(lex->text[at + 1] | 0x20) : '\0';
    int wanted = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 10;
    size_t end = at + 2;
    while (wanted != 10 && end < lex->length) {
        size_t digit = lex->text[end] == '_' ? end + 1 : end;
        if (digit >= lex->length || digit_value(lex->text[digit]) >= wanted) break;
        end = digit + 1;
    }
    if (wanted != 10 && end > at + 2) {
        *base = wanted;
        return end;
    }
    if (lex->text[at] != '0') return digits_end(lex, at);
    for (end = at + 1; end < lex->length; end++) { /* zeros only: 007 is no integer */
        if (lex->text[end] == '_' && end + 1 < lex->length && lex->text[end + 1] == '0') end++;
        else if (lex->text[end] != '0') break;
    }
    return end;
}

static void lex_number(lexer *lex) {
    int base = 10;
    size_t end = float_end(lex, lex->at);
    bool real = end > lex->at;
    if (!real) end = integer_end(lex, lex->at, &base);
    char *digits = rt_jalloc(lex->run, end - lex->at + 1, 1);
    rt_jtoken *token = add(lex, RT_JT_NUMBER);
    if (!digits || !token) return;
    size_t count = 0;
    for (size_t i = lex->at + (base == 10 ? 0 : 2); i < end; i++) {
        if (lex->text[i] != '_') digits[count++] = lex->text[i];
    }
    lex->at = end;
    errno = 0;
    if (real) token->value = rt_jfloat(strtod(digits, NULL));
    else token->value = rt_jint(strtoll(digits, NULL, base));
    if (!real && errno == ERANGE) {
        if (base != 10) fail(lex, "an integer literal beyond 64 bits");
        token->value = rt_jstring_own(lex->run, digits, count);
        if (!lex->run->status) token->value.type = RT_J_BIGINT;
    }
}

static bool is_name_char(uint32_t c) { return c == '_' || rt_jchar_is_alpha(c) || rt_jchar_is_digit(c); }

static size_t name_end(const lexer *lex, size_t at) {
    while (at < lex->length) {
        size_t next = at;
        if (!is_name_char(rt_jchar_at(lex->text, lex->length, &next))) break;
        at = next;
    }
    return at;
}

static void put_code_point(lexer *lex, bis_buf *out, uint32_t c) {
    char bytes[BIS_UTF8_MAX];
    size_t n = bis_utf8_encode(c, bytes);
    if (n == 0) fail(lex, "a string literal with half of a surrogate pair or a value above U+10FFFF");
    bis_buf_append(out, bytes, n);
}

/* \xhh, \uhhhh, \Uhhhhhhhh: all digits are required. */
static size_t unescape_hex(lexer *lex, bis_buf *out, size_t at, int digits) {
    uint32_t value = 0;
    for (int i = 0; i < digits; i++, at++) {
        int digit = at < lex->length ? digit_value(lex->text[at]) : 99;
        if (digit > 15) {
            fail(lex, "a string literal with a truncated \\x, \\u or \\U escape");
            return at;
        }
        value = value << 4 | (uint32_t)digit;
    }
    put_code_point(lex, out, value);
    return at;
}

static size_t unescape_octal(lexer *lex, bis_buf *out, size_t at) {
    uint32_t value = 0;
    for (int i = 0; i < 3 && at < lex->length && lex->text[at] >= '0' && lex->text[at] <= '7'; i++, at++) {
        value = value * 8 + (uint32_t)(lex->text[at] - '0');
    }
    put_code_point(lex, out, value);
    return at;
}

/* `at` is behind the backslash; returns the position behind the escape. Unknown ones stay as written. */
static size_t unescape(lexer *lex, bis_buf *out, size_t at) {
    static const char simple[] = "\\\\''\"\"a\ab\bf\fn\nr\rt\tv\v";
    char c = lex->text[at];
    for (const char *pair = simple; *pair; pair += 2) {
        if (*pair != c) continue;
        bis_buf_putc(out, pair[1]);
        return at + 1;
    }
    if (c == '\n') return at + 1;
    if (c >= '0' && c <= '7') return unescape_octal(lex, out, at);
    if (c == 'x') return unescape_hex(lex, out, at + 1, 2);
    if (c == 'u') return unescape_hex(lex, out, at + 1, 4);
    if (c == 'U') return unescape_hex(lex, out, at + 1, 8);
    if (c == 'N') fail(lex, "a string literal with a \\N escape, which is not supported");
    bis_buf_putc(out, '\\');
    if ((unsigned char)c < 0x80) return at;
    /* Python escapes non-ASCII characters before it unescapes, so these lose their own backslash. */
    uint32_t code_point = rt_jchar_at(lex->text, lex->length, &at);
    bis_buf_printf(out, code_point < 0x100 ? "x%02x" : code_point < 0x10000 ? "u%04x" : "U%08x", code_point);
    return at;
}

static void lex_string(lexer *lex) {
    char quote = lex->text[lex->at];
    size_t end = lex->at + 1;
    while (end < lex->length && lex->text[end] != quote) end += lex->text[end] == '\\' ? 2 : 1;
    if (end >= lex->length) {
        fail(lex, "a string literal without end");
        return;
    }
    rt_jtoken *token = add(lex, RT_JT_STRING);
    bis_buf text = {0};
    size_t plain = lex->at + 1, at = plain;
    while (at < end && !lex->run->status) {
        if (lex->text[at] != '\\') {
            at++;
            continue;
        }
        bis_buf_append(&text, lex->text + plain, at - plain);
        plain = at = unescape(lex, &text, at + 1);
    }
    if (at > plain) bis_buf_append(&text, lex->text + plain, at - plain);
    rt_jval value = rt_jtake(lex->run, &text);
    if (token) token->value = value;
    move_to(lex, end + 1);
}

/* Brackets must match within a tag; a tag's end inside brackets is not an end: {{ {'a': {}} }} */
static void lex_operator(lexer *lex, char *brackets, int *open) {
    static const char *const operators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
                                            "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    size_t count = sizeof operators / sizeof *operators, i = 0;
    while (i < count && !starts(lex, lex->at, operators[i])) i++;
    if (i == count) {
        fail(lex, "an unexpected character in a tag");
        return;
    }
    const char *operator_text = operators[i];
    const char *closing = strchr("(){}[]", *operator_text);
    if (*operator_text && closing && strchr("({[", *operator_text)) {
        if (*open >= RT_JINJA_NESTING_MAX) {
            rt_jfail(lex->run, BIS_ERR_LIMIT, "brackets are nested too deeply");
            return;
        }
        brackets[(*open)++] = closing[1];
    } else if (closing && (*open == 0 || brackets[--*open] != *operator_text)) {
        fail(lex, "a closing bracket that does not match");
        return;
    }
    rt_jtoken *token = add(lex, RT_JT_OPERATOR);
    if (token) token->text = operator_text;
    lex->at += strlen(operator_text);
}

/* Where the tag ends, with the whitespace that goes with it; 0 when there is no end at this position. */
static size_t tag_end(const lexer *lex, size_t at, const char *close, bool trims) {
    if (lex->text[at] == '-' && starts(lex, at + 1, close)) return skip_space(lex, at + 1 + strlen(close));
    if (trims && lex->text[at] == '+' && starts(lex, at + 1, close)) return at + 1 + strlen(close);
    if (!starts(lex, at, close)) return 0;
    at += strlen(close);
    return trims && at < lex->length && lex->text[at] == '\n' ? at + 1 : at;
}

static void finish_tag(lexer *lex, size_t end) {
    move_to(lex, end);
    lex->line_starting = end > 0 && lex->text[end - 1] == '\n';
}

static void lex_tag(lexer *lex, bool block) {
    char brackets[RT_JINJA_NESTING_MAX];
    int open = 0;
    const char *close = block ? "%}" : "}}";
    add(lex, block ? RT_JT_BLOCK_BEGIN : RT_JT_VARIABLE_BEGIN);
    while (!lex->run->status) {
        move_to(lex, skip_space(lex, lex->at));
        if (lex->at >= lex->length) return; /* the parser reports the missing end */
        size_t end = open == 0 ? tag_end(lex, lex->at, close, block) : 0;
        if (end) {
            add(lex, block ? RT_JT_BLOCK_END : RT_JT_VARIABLE_END);
            finish_tag(lex, end);
            return;
        }
        char c = lex->text[lex->at];
        size_t name = name_end(lex, lex->at);
        if (is_digit(c)) lex_number(lex);
        else if (name > lex->at) {
            add_text(lex, RT_JT_NAME, lex->at, name);
            lex->at = name;
        } else if (c == '\'' || c == '"') lex_string(lex);
        else lex_operator(lex, brackets, &open);
    }
}

/* ---- Between tags ---- */

/* The text before a tag, stripped as its sign ('-', '+' or none) and lstrip_blocks want. */
static void add_data(lexer *lex, size_t from, size_t to, char sign, bool strips) {
    size_t end = to;
    if (sign == '-') end = strip_end(lex, from, to);
    else if (sign != '+' && strips) {
        const char *newline = to > from ? memrchr(lex->text + from, '\n', to - from) : NULL;
        size_t line_start = newline ? (size_t)(newline - lex->text) + 1 : from;
        if ((newline || lex->line_starting) && strip_end(lex, line_start, to) == line_start) end = line_start;
    }
    if (end > from) {
        rt_jtoken *token = add(lex, RT_JT_DATA);
        rt_jval value = rt_jstring(lex->run, lex->text + from, end - from);
        if (token) token->value = value;
    }
    move_to(lex, to);
}

/* If a `word` tag ({% raw %} or {% endraw %}) starts at `at`, its end; else 0. */
static size_t word_tag(const lexer *lex, size_t at, const char *word, bool trims) {
    if (!starts(lex, at, "{%")) return 0;
    at += 2;
    if (at < lex->length && (lex->text[at] == '-' || lex->text[at] == '+')) at++;
    at = skip_space(lex, at);
    if (!starts(lex, at, word)) return 0;
    at = skip_space(lex, at + strlen(word));
    if (at >= lex->length || (!trims && lex->text[at] == '+')) return 0;
    size_t end = tag_end(lex, at, "%}", true);
    bool newline_taken = end && lex->text[at] == '%' && lex->text[end - 1] == '\n';
    return newline_taken && !trims ? end - 1 : end;
}

static void lex_raw(lexer *lex) {
    size_t from = lex->at;
    for (size_t at = from; at < lex->length; at++) {
        size_t end = lex->text[at] == '{' ? word_tag(lex, at, "endraw", true) : 0;
        if (!end) continue;
        add_data(lex, from, at, lex->text[at + 2], true);
        finish_tag(lex, end);
        return;
    }
    fail(lex, "a raw block without endraw");
}

static void lex_comment(lexer *lex) {
    for (size_t at = lex->at; at < lex->length; at++) {
        char c = lex->text[at];
        size_t end = c == '#' || c == '-' || c == '+' ? tag_end(lex, at, "#}", true) : 0;
        if (!end) continue;
        finish_tag(lex, end);
        return;
    }
    fail(lex, "a comment without end");
}

static void lex_next_tag(lexer *lex) {
    size_t from = lex->at, at = from;
    while (at + 1 < lex->length && !(lex->text[at] == '{' && strchr("{%#", lex->text[at + 1]))) at++;
    if (at + 1 >= lex->length) {
        add_data(lex, from, lex->length, '+', false);
        return;
    }
    char kind = lex->text[at + 1], sign = at + 2 < lex->length ? lex->text[at + 2] : '\0';
    size_t raw = kind == '%' ? word_tag(lex, at, "raw", false) : 0;
    add_data(lex, from, at, sign, kind != '{');
    if (raw) {
        finish_tag(lex, raw);
        lex_raw(lex);
        return;
    }
    lex->at += sign == '-' || sign == '+' ? 3 : 2;
    lex->line_starting = false;
    if (kind == '#') lex_comment(lex);
    else lex_tag(lex, kind == '%');
}

/* Line ends become \n, and one at the very end is dropped. */
static void normalize(lexer *lex, const char *text, size_t length) {
    char *clean = rt_jalloc(lex->run, length + 1, 1);
    if (!clean) return;
    size_t count = 0;
    for (size_t i = 0; i < length; i++) {
        if (text[i] == '\r' && i + 1 < length && text[i + 1] == '\n') continue;
        clean[count++] = text[i] == '\r' ? '\n' : text[i];
    }
    if (count && clean[count - 1] == '\n') count--;
    lex->text = clean;
    lex->length = count;
}

rt_jtokens rt_jlex(rt_jrun *run, const char *text, size_t length) {
    lexer lex = {.run = run, .line = 1, .line_starting = true};
    normalize(&lex, text, length);
    while (!run->status && lex.at < lex.length) lex_next_tag(&lex);
    add(&lex, RT_JT_EOF);
    return lex.tokens;
}
