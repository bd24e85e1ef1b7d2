/* JSON texts to values. The JSON library the rest of the program uses keeps all numbers as doubles;
 * a template shows the difference between 1, 1.0 and 12345678901234567890, so they are read here. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "runtime/template/jinja_unicode.h"
#include "runtime/template/jinja_value.h"

typedef struct reader {
    rt_jrun *run;
    const char *start, *at, *end;
    const char *what;
    int depth;
} reader;

static void bad(reader *in, const char *problem) {
    rt_jfail_raw(in->run, BIS_ERR_INVALID, "%.100s is not valid JSON: %s at byte %zu", in->what, problem,
                 (size_t)(in->at - in->start));
}

static void skip_space(reader *in) {
    while (in->at < in->end && strchr(" \t\r\n", *in->at)) in->at++;
}

static bool take(reader *in, char c) {
    skip_space(in);
    if (in->at >= in->end || *in->at != c) return false;
    in->at++;
    return true;
}

static bool take_word(reader *in, const char *word) {
    size_t length = strlen(word);
    if ((size_t)(in->end - in->at) < length || memcmp(in->at, word, length) != 0) return false;
    in->at += length;
    return true;
}

static size_t take_digits(reader *in) {
    const char *from = in->at;
    while (in->at < in->end && *in->at >= '0' && *in->at <= '9') in->at++;
    return (size_t)(in->at - from);
}

static rt_jval make_integer(reader *in, const char *from) {
    errno = 0;
    long long value = strtoll(from, NULL, 10); /* ends at the first other character, at the latest the NUL */
    if (errno == 0) return rt_jint(value);
    rt_jval big = rt_jstring(in->run, from, (size_t)(in->at - from));
    if (big.type == RT_J_STRING) big.type = RT_J_BIGINT;
    return big;
}

static rt_jval read_number(reader *in) {
    const char *from = in->at;
    bool real = false;
    if (*in->at == '-') in->at++;
    const char *digits = in->at;
    size_t count = take_digits(in);
    if (count == 0 || (count > 1 && *digits == '0')) bad(in, "a malformed number");
    if (in->at < in->end && *in->at == '.') {
        in->at++;
        real = true;
        if (take_digits(in) == 0) bad(in, "a malformed number");
    }
    if (in->at < in->end && (*in->at == 'e' || *in->at == 'E')) {
        in->at++;
        real = true;
        if (in->at < in->end && (*in->at == '+' || *in->at == '-')) in->at++;
        if (take_digits(in) == 0) bad(in, "a malformed number");
    }
    if (in->run->status || !rt_jwork_bytes(in->run, (size_t)(in->at - from))) return rt_jnone();
    return real ? rt_jfloat(strtod(from, NULL)) : make_integer(in, from);
}

static uint32_t read_hex(reader *in) {
    uint32_t value = 0;
    for (int i = 0; i < 4; i++, in->at++) {
        char c = in->at < in->end ? *in->at : '?';
        if (c >= '0' && c <= '9') value = value << 4 | (uint32_t)(c - '0');
        else if (c >= 'a' && c <= 'f') value = value << 4 | (uint32_t)(c - 'a' + 10);
        else if (c >= 'A' && c <= 'F') value = value << 4 | (uint32_t)(c - 'A' + 10);
        else {
            bad(in, "a malformed \\u escape");
            return 'x';
        }
    }
    return value;
}

static uint32_t read_code_point(reader *in) {
    uint32_t c = read_hex(in);
    if (c >= 0xd800 && c < 0xdc00 && take_word(in, "\\u")) {
        uint32_t low = read_hex(in);
        if (low >= 0xdc00 && low < 0xe000) return 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    }
    if (c >= 0xd800 && c < 0xe000) bad(in, "half of a surrogate pair");
    if (c == 0) bad(in, "a NUL character");
    return c;
}

static uint32_t read_escape(reader *in) {
    static const char names[] = "\"\"\\\\//b\bf\fn\nr\rt\t";
    char c = in->at < in->end ? *in->at++ : '\0';
    if (c == 'u') return read_code_point(in);
    for (const char *pair = names; *pair; pair += 2) {
        if (*pair == c) return (unsigned char)pair[1];
    }
    bad(in, "an unknown escape in a string");
    return ' ';
}

static rt_jval read_string(reader *in) {
    const char *from = ++in->at;
    while (in->at < in->end && *in->at != '"' && *in->at != '\\' && (unsigned char)*in->at >= 0x20) in->at++;
    if (in->at < in->end && *in->at == '"') return rt_jstring(in->run, from, (size_t)(in->at++ - from));
    bis_buf text = {0};
    bis_buf_append(&text, from, (size_t)(in->at - from));
    while (!in->run->status && (in->at >= in->end || *in->at != '"')) {
        from = in->at;
        while (in->at < in->end && *in->at != '"' && *in->at != '\\' && (unsigned char)*in->at >= 0x20) in->at++;
        bis_buf_append(&text, from, (size_t)(in->at - from));
        if (in->at >= in->end) bad(in, "a string without end");
        else if (*in->at == '\\') {
            in->at++;
            rt_jchar_put(&text, read_escape(in));
        } else if (*in->at != '"') bad(in, "a control character in a string");
    }
    if (in->at < in->end) in->at++;
    return rt_jtake(in->run, &text);
}

static rt_jval read_value(reader *in);

static rt_jval read_array(reader *in) {
    rt_jlist *list = rt_jlist_new(in->run, 0);
    in->at++;
    if (!take(in, ']')) {
        do rt_jlist_add(in->run, list, read_value(in));
        while (!in->run->status && take(in, ','));
        if (!take(in, ']')) bad(in, "expected ',' or ']'");
    }
    return rt_jlist_value(list, RT_J_LIST);
}

static rt_jval read_object(reader *in) {
    rt_jdict *dict = rt_jdict_new(in->run);
    in->at++;
    if (take(in, '}')) return rt_jdict_value(dict);
    do {
        skip_space(in);
        if (in->at >= in->end || *in->at != '"') {
            bad(in, "expected a member's name");
            break;
        }
        rt_jval key = read_string(in);
        if (!take(in, ':')) bad(in, "expected ':'");
        rt_jdict_set(in->run, dict, key, read_value(in)); /* of several equal names the last one counts */
    } while (!in->run->status && take(in, ','));
    if (!take(in, '}')) bad(in, "expected ',' or '}'");
    return rt_jdict_value(dict);
}

static rt_jval read_value(reader *in) {
    skip_space(in);
    if (in->run->status) return rt_jnone();
    if (in->depth >= RT_JINJA_JSON_DEPTH_MAX) {
        bad(in, "nested too deeply");
        return rt_jnone();
    }
    in->depth++;
    rt_jval value = rt_jnone();
    char c = in->at < in->end ? *in->at : '\0';
    if (c == '{') value = read_object(in);
    else if (c == '[') value = read_array(in);
    else if (c == '"') value = read_string(in);
    else if (c == '-' || (c >= '0' && c <= '9')) value = read_number(in);
    else if (take_word(in, "true")) value = rt_jbool(true);
    else if (take_word(in, "false")) value = rt_jbool(false);
    else if (!take_word(in, "null")) bad(in, "expected a value");
    in->depth--;
    return value;
}

rt_jval rt_jparse_json(rt_jrun *run, const char *json, const char *what) {
    reader in = {.run = run, .start = json, .at = json, .end = json + strlen(json), .what = what};
    if (!bis_utf8_valid(json, strlen(json))) {
        rt_jfail_raw(run, BIS_ERR_INVALID, "%.100s is not valid JSON: it is not UTF-8", what);
    }
    rt_jval value = read_value(&in);
    skip_space(&in);
    if (in.at < in.end) bad(&in, "more text after the value");
    return run->status ? rt_jnone() : value;
}
