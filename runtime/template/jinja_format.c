/* Python's two ways of formatting: "%5.2f" % value, and "{:>5}".format(value). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/template/jinja_eval.h"
#include "runtime/template/jinja_unicode.h"

enum { WIDTH_MAX = 10000, PRECISION_MAX = 100, NUMBER_TEXT_MAX = 512 };

typedef struct layout {
    char fill[4];
    size_t fill_length;
    char align; /* '<', '>', '^', '=' (between sign and digits), 0: the type's own */
    char sign;  /* '-', '+' or ' ' */
    char group; /* ',' or '_' between thousands, 0: none */
    bool alternate;
    int width, precision; /* precision -1: none */
    char type;            /* 0: none */
} layout;

static const layout plain_layout = {.fill = " ", .fill_length = 1, .sign = '-', .precision = -1};

static rt_jval fail_format(rt_jrun *run, const char *problem) {
    rt_jfail(run, BIS_ERR_INVALID, "%s", problem);
    return rt_jnone();
}

/* Reads digits at *at; huge numbers are refused. */
static int read_number(rt_jrun *run, const char **at, const char *end, int limit) {
    int number = 0;
    for (; *at < end && **at >= '0' && **at <= '9'; (*at)++) {
        number = number * 10 + (**at - '0');
        if (number <= limit) continue;
        rt_jfail(run, BIS_ERR_LIMIT, "a format with a width or precision above %d", limit);
        return 0;
    }
    return number;
}

static void put_fill(bis_buf *out, const layout *how, size_t count) {
    while (count-- > 0) bis_buf_append(out, how->fill, how->fill_length);
}

/* `head` bytes of text are the sign and base prefix: '=' fills behind them. */
static void put_padded(bis_buf *out, const layout *how, const char *text, size_t length, size_t chars, size_t head) {
    size_t gap = how->width > 0 && (size_t)how->width > chars ? (size_t)how->width - chars : 0;
    size_t before = how->align == '<' ? 0 : how->align == '^' ? gap / 2 : gap;
    if (how->align == '=') {
        bis_buf_append(out, text, head);
        text += head;
        length -= head;
    }
    put_fill(out, how, before);
    bis_buf_append(out, text, length);
    put_fill(out, how, gap - before);
}

static void put_string(rt_jrun *run, bis_buf *out, layout how, const rt_jstr *string) {
    size_t chars = how.precision >= 0 && (size_t)how.precision < string->chars ? (size_t)how.precision : string->chars;
    size_t length = rt_jstring_offset(run, string, chars);
    if (!how.align) how.align = '<';
    put_padded(out, &how, string->bytes, length, chars, 0);
}

/* Puts separators into the run of digits that starts at text[from]. */
static void group_digits(char *text, size_t size, size_t from, char separator, size_t every) {
    size_t digits = strspn(text + from, "0123456789abcdefABCDEF");
    for (size_t left = digits; left > every; left -= every) {
        size_t at = from + left - every, length = strlen(text);
        if (length + 2 > size) return;
        memmove(text + at + 1, text + at, length - at + 1);
        text[at] = separator;
    }
}

static size_t put_sign(char *text, bool negative, const layout *how, const char *prefix) {
    size_t length = 0;
    if (negative) text[length++] = '-';
    else if (how->sign != '-') text[length++] = how->sign;
    for (; how->alternate && *prefix; prefix++) text[length++] = *prefix;
    return length;
}

static void put_number_text(bis_buf *out, layout how, char *text, size_t head) {
    bool wide = how.type == 'x' || how.type == 'X' || how.type == 'b' || how.type == 'o';
    if (how.group) group_digits(text, NUMBER_TEXT_MAX, head, how.group, wide ? 4 : 3);
    if (!how.align) how.align = '>';
    put_padded(out, &how, text, strlen(text), strlen(text), head);
}

static void put_integer(bis_buf *out, layout how, int64_t value) {
    char text[NUMBER_TEXT_MAX];
    uint64_t magnitude = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    const char *prefix = how.type == 'x' ? "0x" : how.type == 'X' ? "0X" : how.type == 'o' ? "0o" : "";
    if (how.type == 'b') prefix = "0b";
    size_t head = put_sign(text, value < 0, &how, prefix);
    char digits[80];
    size_t at = sizeof digits;
    unsigned base = how.type == 'x' || how.type == 'X' ? 16 : how.type == 'o' ? 8 : how.type == 'b' ? 2 : 10;
    digits[--at] = '\0';
    do digits[--at] = (how.type == 'X' ? "0123456789ABCDEF" : "0123456789abcdef")[magnitude % base];
    while (magnitude /= base);
    int zeros = how.precision - (int)(sizeof digits - 1 - at); /* "%.3d" */
    size_t length = head;
    while (zeros-- > 0) text[length++] = '0';
    memcpy(text + length, digits + at, sizeof digits - at);
    put_number_text(out, how, text, head);
}

static void put_real(rt_jrun *run, bis_buf *out, layout how, double value) {
    char text[NUMBER_TEXT_MAX], number[NUMBER_TEXT_MAX - 8], format[] = "%#.*f";
    bool percent = how.type == '%', negative = value < 0 || (value == 0 && 1 / value < 0);
    size_t head = put_sign(text, negative, &(layout){.sign = how.sign}, "");
    double magnitude = (negative ? -value : value) * (percent ? 100 : 1);
    if (!how.type && how.precision < 0) rt_jfloat_text(magnitude, number);
    else {
        format[4] = percent || how.type == 'F' ? 'f' : how.type ? how.type : 'g';
        if (!how.alternate) memmove(format + 1, format + 2, sizeof format - 2);
        int length = snprintf(number, sizeof number, format, how.precision < 0 ? 6 : how.precision, magnitude);
        const char *tail = percent ? "%" : !how.type && strpbrk(number, ".en") == NULL ? ".0" : "";
        if (length + 3 > (int)sizeof number) rt_jfail(run, BIS_ERR_LIMIT, "a formatted number is too long");
        else memcpy(number + length, tail, strlen(tail) + 1);
    }
    memcpy(text + head, number, strlen(number) + 1);
    put_number_text(out, how, text, head);
}

/* ---- "%..." % values ---- */

typedef struct percent_values {
    rt_jval all;
    size_t next;
} percent_values;

static rt_jval next_value(rt_jrun *run, percent_values *values) {
    bool tuple = values->all.type == RT_J_TUPLE;
    size_t count = tuple ? values->all.as.list->count : 1;
    if (values->next >= count) return fail_format(run, "not enough arguments for format string");
    return tuple ? values->all.as.list->items[values->next++] : (values->next++, values->all);
}

/* How many values a format must use up: all of a tuple, and a single one unless Python could look up keys in it. */
static size_t needed_values(rt_jval all) {
    if (all.type == RT_J_TUPLE) return all.as.list->count;
    return all.type != RT_J_DICT && all.type != RT_J_LIST && all.type != RT_J_RANGE && all.type != RT_J_UNDEFINED;
}

static rt_jval named_value(rt_jrun *run, const percent_values *values, const char *from, const char *to) {
    if (values->all.type != RT_J_DICT) return fail_format(run, "format requires a mapping");
    const rt_jval *value = rt_jdict_get(run, values->all.as.dict, rt_jstring(run, from, (size_t)(to - from)));
    return value ? *value : fail_format(run, "a format names a key that is not there");
}

static void read_flags(const char **at, const char *end, layout *how) {
    for (; *at < end && strchr("-+ 0#", **at) && **at; (*at)++) {
        if (**at == '-') how->align = '<';
        else if (**at == '+') how->sign = '+';
        else if (**at == ' ' && how->sign != '+') how->sign = ' ';
        else if (**at == '#') how->alternate = true;
        else if (**at == '0' && how->align != '<') {
            how->fill[0] = '0';
            how->align = '=';
        }
    }
    if (how->align == '<') how->fill[0] = ' ';
}

static void put_percent_number(rt_jrun *run, bis_buf *out, layout how, rt_jval value) {
    if (!rt_jis_number(value)) {
        rt_jfail(run, BIS_ERR_INVALID, "%%%c format: a number is required, not %s", how.type, rt_jtype_name(value));
        return;
    }
    if (strchr("eEfFgG", how.type)) {
        put_real(run, out, how, rt_jreal(value));
        return;
    }
    int64_t integer;
    if (!rt_jinteger(value, &integer)) {
        double real = rt_jreal(value);
        bool fits = real > -9.2e18 && real < 9.2e18 && !strchr("xXo", how.type);
        if (!fits) rt_jfail(run, BIS_ERR_INVALID, "%%%c format: an integer is required, not float", how.type);
        integer = fits ? (int64_t)real : 0;
    }
    put_integer(out, how, integer);
}

static void put_percent(rt_jrun *run, bis_buf *out, layout how, rt_jval value) {
    if (how.type == 's' || how.type == 'r') {
        rt_jval text = value;
        if (how.type == 'r') {
            bis_buf repr = {0};
            rt_jwrite_repr(run, &repr, value);
            text = rt_jtake(run, &repr);
        }
        text = rt_jstr_of(run, text);
        how.fill[0] = ' ';
        if (how.align != '<') how.align = '>';
        if (!run->status) put_string(run, out, how, text.as.string);
    } else if (how.type && strchr("diuxXoeEfFgG", how.type)) put_percent_number(run, out, how, value);
    else fail_format(run, "unsupported format character");
}

rt_jval rt_jformat_percent(rt_jrun *run, const rt_jstr *format, rt_jval all) {
    percent_values values = {all, 0};
    const char *at = format->bytes, *end = at + format->length;
    bis_buf out = {0};
    while (at < end && rt_jwork(run, 1)) {
        if (*at != '%') {
            bis_buf_putc(&out, *at++);
            continue;
        }
        const char *name = NULL, *name_end = NULL;
        layout how = plain_layout;
        if (++at < end && *at == '(') {
            name = at + 1;
            name_end = memchr(name, ')', (size_t)(end - name));
            if (!name_end) fail_format(run, "incomplete format key");
            at = name_end ? name_end + 1 : end;
        }
        read_flags(&at, end, &how);
        how.width = read_number(run, &at, end, WIDTH_MAX);
        if (at < end && *at == '.') {
            at++;
            how.precision = read_number(run, &at, end, PRECISION_MAX);
        }
        while (at < end && strchr("hlL", *at)) at++;
        how.type = at < end ? *at++ : '\0';
        if (!how.type) fail_format(run, "incomplete format");
        if (how.type == '%') bis_buf_putc(&out, '%');
        else if (!run->status) {
            rt_jval value = name ? named_value(run, &values, name, name_end) : next_value(run, &values);
            if (name) values.next = 1;
            if (format->markup && value.type == RT_J_STRING) value = rt_jescape(run, value);
            if (!run->status) put_percent(run, &out, how, value);
        }
    }
    if (values.next < needed_values(all)) fail_format(run, "not all arguments converted during string formatting");
    return rt_jmarkup(run, rt_jtake(run, &out), format->markup);
}

/* ---- "{...}".format(...) ---- */

static void read_align(const char **at, const char *end, layout *how) {
    size_t length = 0;
    if (*at < end) rt_jchar_at(*at, (size_t)(end - *at), &length);
    if (*at + length < end && length && strchr("<>^=", (*at)[length])) {
        memcpy(how->fill, *at, length);
        how->fill_length = length;
        how->align = (*at)[length];
        *at += length + 1;
    } else if (*at < end && strchr("<>^=", **at)) how->align = *(*at)++;
}

static layout read_spec(rt_jrun *run, const char *at, const char *end) {
    layout how = plain_layout;
    read_align(&at, end, &how);
    if (at < end && strchr("+- ", *at)) how.sign = *at++;
    if (at < end && *at == '#') {
        how.alternate = true;
        at++;
    }
    if (at < end && *at == '0') {
        if (!how.align) {
            how.align = '=';
            how.fill[0] = '0';
        }
        at++;
    }
    how.width = read_number(run, &at, end, WIDTH_MAX);
    if (at < end && (*at == ',' || *at == '_')) how.group = *at++;
    if (at < end && *at == '.') {
        at++;
        how.precision = read_number(run, &at, end, PRECISION_MAX);
    }
    if (at < end) how.type = *at++;
    if (at < end) fail_format(run, "invalid format specifier");
    return how;
}

static void put_formatted(rt_jrun *run, bis_buf *out, rt_jval value, const char *spec, const char *end) {
    if (spec == end) {
        rt_jwrite(run, out, value);
        return;
    }
    layout how = read_spec(run, spec, end);
    int64_t integer;
    bool real_type = how.type && strchr("eEfFgG%", how.type);
    if (run->status) return;
    if (value.type == RT_J_STRING && (!how.type || how.type == 's') && how.align != '=') {
        put_string(run, out, how, value.as.string);
    } else if (rt_jis_number(value) && (real_type || (value.type == RT_J_FLOAT && !how.type))) {
        put_real(run, out, how, rt_jreal(value));
    } else if (rt_jinteger(value, &integer) && (!how.type || strchr("dxXob", how.type)) && how.precision < 0) {
        put_integer(out, how, integer);
    } else rt_jfail(run, BIS_ERR_INVALID, "unsupported format specifier for a value of type %s", rt_jtype_name(value));
}

/* The value of "name.attribute[key]"; without a name the next positional argument. */
static rt_jval find_field(rt_jrun *run, const rt_jargs *args, const char *at, const char *end, size_t *automatic) {
    const char *name_end = at;
    while (name_end < end && *name_end != '.' && *name_end != '[') name_end++;
    size_t index = *automatic;
    rt_jval value = {.type = RT_J_MISSING};
    bool digits = at < name_end && *at >= '0' && *at <= '9';
    if (digits) index = strtoul(at, NULL, 10); /* ends at the first other character, at the latest the brace */
    if (at == name_end) (*automatic)++;
    if (digits || at == name_end) {
        if (index < args->count) value = args->at[index];
    } else if (args->named) {
        const rt_jval *named = rt_jdict_get(run, args->named, rt_jstring(run, at, (size_t)(name_end - at)));
        if (named) value = *named;
    }
    if (value.type == RT_J_MISSING) return fail_format(run, "a format names an argument that was not given");
    for (at = name_end; at < end && !run->status;) {
        bool bracket = *at++ == '[';
        const char *part = at;
        while (at < end && (bracket ? *at != ']' : *at != '.' && *at != '[')) at++;
        rt_jval key = rt_jstring(run, part, (size_t)(at - part));
        if (run->status) break;
        const char *text = rt_jcstr(run, key.as.string);
        if (bracket && *text >= '0' && *text <= '9') key = rt_jint(strtol(text, NULL, 10));
        value = bracket ? rt_jgetitem(run, value, key) : rt_jgetattr(run, value, text);
        if (bracket) at++;
    }
    return value;
}

static void put_field(rt_jrun *run, bis_buf *out, const rt_jargs *args, const char *at, const char *end,
                      size_t *automatic) {
    const char *name_end = at;
    while (name_end < end && *name_end != ':' && *name_end != '!') name_end++;
    rt_jval value = find_field(run, args, at, name_end, automatic);
    const char *spec = name_end < end && *name_end == ':' ? name_end + 1 : end;
    if (name_end + 1 < end && *name_end == '!') {
        if (name_end[1] == 'r' && !run->status) {
            bis_buf repr = {0};
            rt_jwrite_repr(run, &repr, value);
            value = rt_jtake(run, &repr);
        } else if (name_end[1] == 's') value = rt_jstr_of(run, value);
        else fail_format(run, "a format with an unknown conversion");
        if (name_end + 2 < end && name_end[2] == ':') spec = name_end + 3;
    }
    if (!run->status) put_formatted(run, out, value, spec, end);
}

rt_jval rt_jformat_braces(rt_jrun *run, const rt_jstr *format, const rt_jargs *args) {
    const char *at = format->bytes, *end = at + format->length;
    size_t automatic = 0;
    bis_buf out = {0};
    while (at < end && rt_jwork(run, 1)) {
        char c = *at++;
        bool doubled = at < end && *at == c;
        if (c != '{' && c != '}') bis_buf_putc(&out, c);
        else if (doubled) bis_buf_putc(&out, *at++);
        else if (c == '}') fail_format(run, "single '}' in a format string");
        else {
            const char *close = memchr(at, '}', (size_t)(end - at));
            if (!close || memchr(at, '{', (size_t)(close - at))) {
                fail_format(run, "a format string with an open or nested field");
                break;
            }
            put_field(run, &out, args, at, close, &automatic);
            at = close + 1;
        }
    }
    return rt_jmarkup(run, rt_jtake(run, &out), format->markup);
}
