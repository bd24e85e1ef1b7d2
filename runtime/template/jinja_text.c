#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/template/jinja_eval.h"
#include "runtime/template/jinja_unicode.h"
#include "runtime/template/jinja_value.h"

/* Every written byte passes here: a list that contains another list many times over can print
 * to far more text than memory. */
static void put(rt_jrun *run, bis_buf *out, const char *bytes, size_t length) {
    if (!rt_jwork_bytes(run, length)) return;
    if (out->length + length > RT_JINJA_OUTPUT_MAX) {
        rt_jfail(run, BIS_ERR_LIMIT, "the template writes more than %d MB", RT_JINJA_OUTPUT_MAX >> 20);
    } else if (!bis_buf_append(out, bytes, length)) rt_jfail(run, BIS_ERR_NOMEM, "no memory for the chat template");
}

static void put_text(rt_jrun *run, bis_buf *out, const char *text) { put(run, out, text, strlen(text)); }

static void put_string(rt_jrun *run, bis_buf *out, const rt_jstr *string) {
    put(run, out, string->bytes, string->length);
}

/* ---- Floats ---- */

/* Adds one to the last digit before the exponent. */
static void count_up(char *digits) {
    for (char *last = strchr(digits, 'e') - 1; last >= digits && *last != '-'; last--) {
        if (*last == '.') continue;
        *last = *last == '9' ? '0' : (char)(*last + 1);
        if (*last != '0') return;
    }
}

/* Writes "d.ddde+xx" with as few digits as read back to the same number. That is mostly the nearest decimal; only
 * next to a power of two, where numbers above lie wider apart than those below, it can be the one after. */
static void shortest_digits(double value, char text[RT_JFLOAT_TEXT_MAX]) {
    int exponent;
    bool power_of_two = fabs(frexp(value, &exponent)) == 0.5;
    for (int precision = 0; precision <= 17; precision++) {
        snprintf(text, RT_JFLOAT_TEXT_MAX, "%.*e", precision, value);
        if (strtod(text, NULL) == value) return;
        if (power_of_two) count_up(text);
        if (power_of_two && strtod(text, NULL) == value) return;
    }
}

void rt_jfloat_text(double value, char text[RT_JFLOAT_TEXT_MAX]) {
    if (isnan(value) || isinf(value)) {
        snprintf(text, RT_JFLOAT_TEXT_MAX, "%s", isnan(value) ? "nan" : value < 0 ? "-inf" : "inf");
        return;
    }
    char digits[RT_JFLOAT_TEXT_MAX];
    shortest_digits(value, digits);
    char *mark = strchr(digits, 'e');
    int exponent = atoi(mark + 1);
    int decimals = mark[-1] == '.' ? 0 : (int)(mark - digits) - (digits[0] == '-') - 1;
    if (decimals > 0) decimals--; /* the point */
    if (exponent >= -4 && exponent < 16) {
        int after = decimals - exponent > 1 ? decimals - exponent : 1;
        snprintf(text, RT_JFLOAT_TEXT_MAX, "%.*f", after, value);
    } else memcpy(text, digits, sizeof digits);
}

static void put_float(rt_jrun *run, bis_buf *out, double value) {
    char text[RT_JFLOAT_TEXT_MAX];
    rt_jfloat_text(value, text);
    put_text(run, out, text);
}

static void put_integer(rt_jrun *run, bis_buf *out, int64_t value) {
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)value);
    put_text(run, out, text);
}

/* ---- repr ---- */

static void put_escape(rt_jrun *run, bis_buf *out, uint32_t c) {
    char text[12];
    snprintf(text, sizeof text, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)c);
    put_text(run, out, text);
}

static void put_string_repr(rt_jrun *run, bis_buf *out, const rt_jstr *string) {
    bool single = memchr(string->bytes, '\'', string->length) != NULL;
    bool both = single && memchr(string->bytes, '"', string->length);
    const char quote = single && !both ? '"' : '\'';
    put(run, out, &quote, 1);
    for (size_t i = 0; i < string->length && !run->status;) {
        size_t start = i;
        uint32_t c = rt_jchar_at(string->bytes, string->length, &i);
        if (c == '\n') put_text(run, out, "\\n");
        else if (c == '\r') put_text(run, out, "\\r");
        else if (c == '\t') put_text(run, out, "\\t");
        else if (c == '\\') put_text(run, out, "\\\\");
        else if (c == (uint32_t)quote) put_text(run, out, "\\'");
        else if (rt_jchar_is_printable(c)) put(run, out, string->bytes + start, i - start);
        else put_escape(run, out, c);
    }
    put(run, out, &quote, 1);
}

static void put_items(rt_jrun *run, bis_buf *out, const rt_jlist *list, const char *open, const char *close) {
    put_text(run, out, open);
    for (size_t i = 0; i < list->count && rt_jwork(run, 1); i++) {
        if (i) put_text(run, out, ", ");
        rt_jwrite_repr(run, out, list->items[i]);
    }
    put_text(run, out, close);
}

static void put_entries(rt_jrun *run, bis_buf *out, const rt_jdict *dict) {
    put_text(run, out, "{");
    for (size_t i = 0; i < dict->count && rt_jwork(run, 1); i++) {
        if (i) put_text(run, out, ", ");
        rt_jwrite_repr(run, out, dict->entries[i].key);
        put_text(run, out, ": ");
        rt_jwrite_repr(run, out, dict->entries[i].value);
    }
    put_text(run, out, "}");
}

static void put_view(rt_jrun *run, bis_buf *out, rt_jval value) {
    put_text(run, out, rt_jtype_name(value));
    rt_jlist *items = rt_jcollect(run, value);
    if (items) put_items(run, out, items, "([", "])");
}

static void put_range(rt_jrun *run, bis_buf *out, const rt_jrange *range) {
    char text[100];
    long long start = range->start, end = range->stop, step = range->step;
    if (step == 1) snprintf(text, sizeof text, "range(%lld, %lld)", start, end);
    else snprintf(text, sizeof text, "range(%lld, %lld, %lld)", start, end, step);
    put_text(run, out, text);
}

static void put_object(rt_jrun *run, bis_buf *out, rt_jval value) {
    put_text(run, out, "<");
    put_text(run, out, rt_jtype_name(value));
    if (value.type == RT_J_MACRO) {
        put_text(run, out, " ");
        put_text(run, out, rt_jmacro_name(value.as.macro));
    } else if (value.type == RT_J_NAMESPACE) {
        put_text(run, out, " ");
        put_entries(run, out, value.as.dict);
    } else put_text(run, out, " object");
    put_text(run, out, ">");
}

void rt_jwrite_repr(rt_jrun *run, bis_buf *out, rt_jval value) {
    if (!rt_jenter(run)) return;
    switch (value.type) {
    case RT_J_MISSING:
    case RT_J_UNDEFINED: put_text(run, out, "Undefined"); break;
    case RT_J_NONE: put_text(run, out, "None"); break;
    case RT_J_BOOL: put_text(run, out, value.as.boolean ? "True" : "False"); break;
    case RT_J_INT: put_integer(run, out, value.as.integer); break;
    case RT_J_BIGINT: put_string(run, out, value.as.string); break;
    case RT_J_FLOAT: put_float(run, out, value.as.real); break;
    case RT_J_STRING:
        if (value.as.string->markup) put_text(run, out, "Markup(");
        put_string_repr(run, out, value.as.string);
        if (value.as.string->markup) put_text(run, out, ")");
        break;
    case RT_J_LIST: put_items(run, out, value.as.list, "[", "]"); break;
    case RT_J_TUPLE: put_items(run, out, value.as.list, "(", value.as.list->count == 1 ? ",)" : ")"); break;
    case RT_J_DICT: put_entries(run, out, value.as.dict); break;
    case RT_J_VIEW: put_view(run, out, value); break;
    case RT_J_RANGE: put_range(run, out, value.as.range); break;
    default: put_object(run, out, value);
    }
    rt_jleave(run);
}

void rt_jwrite(rt_jrun *run, bis_buf *out, rt_jval value) {
    if (value.type == RT_J_STRING) put_string(run, out, value.as.string);
    else if (value.type != RT_J_UNDEFINED && value.type != RT_J_JOINER) rt_jwrite_repr(run, out, value);
}

rt_jval rt_jtake(rt_jrun *run, bis_buf *buf) {
    if (buf->failed) rt_jfail(run, BIS_ERR_NOMEM, "no memory for the chat template");
    rt_jval string = rt_jstring(run, bis_buf_cstr(buf), buf->length);
    bis_buf_free(buf);
    return string;
}

rt_jval rt_jstr_of(rt_jrun *run, rt_jval value) {
    if (value.type == RT_J_STRING) return value;
    bis_buf buf = {0};
    rt_jwrite(run, &buf, value);
    return rt_jtake(run, &buf);
}

rt_jval rt_jescape(rt_jrun *run, rt_jval value) {
    if (value.type == RT_J_STRING && value.as.string->markup) return value;
    rt_jval string = rt_jstr_of(run, value);
    if (string.type != RT_J_STRING) return string;
    bis_buf buf = {0};
    for (size_t i = 0; i < string.as.string->length && !run->status; i++) {
        const char *c = &string.as.string->bytes[i];
        switch (*c) {
        case '&': put_text(run, &buf, "&amp;"); break;
        case '<': put_text(run, &buf, "&lt;"); break;
        case '>': put_text(run, &buf, "&gt;"); break;
        case '"': put_text(run, &buf, "&#34;"); break;
        case '\'': put_text(run, &buf, "&#39;"); break;
        default: put(run, &buf, c, 1);
        }
    }
    return rt_jmarkup(run, rt_jtake(run, &buf), true);
}

/* ---- JSON ---- */

static void put_json_escape(rt_jrun *run, bis_buf *out, uint32_t c) {
    static const char shorts[] = "\"\"\\\\\bb\ff\nn\rr\tt";
    char text[16];
    for (const char *pair = shorts; *pair; pair += 2) {
        if ((uint32_t)*pair != c) continue;
        snprintf(text, sizeof text, "\\%c", pair[1]);
        put_text(run, out, text);
        return;
    }
    if (c < 0x10000) snprintf(text, sizeof text, "\\u%04x", (unsigned)c);
    else snprintf(text, sizeof text, "\\u%04x\\u%04x", 0xd7c0 + (unsigned)(c >> 10), 0xdc00 + (unsigned)(c & 0x3ff));
    put_text(run, out, text);
}

static void put_json_string(rt_jrun *run, bis_buf *out, const rt_jstr *string, bool ascii) {
    put_text(run, out, "\"");
    size_t plain = 0;
    for (size_t i = 0; i < string->length && !run->status;) {
        size_t start = i;
        uint32_t c = rt_jchar_at(string->bytes, string->length, &i);
        if (c >= 0x20 && c != '"' && c != '\\' && (c < 0x7f || !ascii)) continue;
        if (c == 0x7f) continue;
        put(run, out, string->bytes + plain, start - plain);
        put_json_escape(run, out, c);
        plain = i;
    }
    put(run, out, string->bytes + plain, string->length - plain);
    put_text(run, out, "\"");
}

static void put_break(rt_jrun *run, bis_buf *out, const rt_jdump *options, int level) {
    if (!options->indent) return;
    put_text(run, out, "\n");
    for (int i = 0; i < level; i++) put_string(run, out, options->indent);
}

static void put_json_key(rt_jrun *run, bis_buf *out, rt_jval key, const rt_jdump *options) {
    if (key.type == RT_J_STRING) {
        put_json_string(run, out, key.as.string, options->ascii);
    } else if (key.type == RT_J_NONE || key.type == RT_J_BIGINT || rt_jis_number(key)) {
        put_text(run, out, "\"");
        rt_jdump_write(run, out, key, options);
        put_text(run, out, "\"");
    } else {
        rt_jfail(run, BIS_ERR_INVALID, "tojson: keys must be str, int, float, bool or None, not %s",
                 rt_jtype_name(key));
    }
}

static const rt_jentry *sorted_entries(rt_jrun *run, const rt_jdict *dict) {
    rt_jval *keys = rt_jalloc(run, dict->count, sizeof *keys), *numbers = rt_jalloc(run, dict->count, sizeof *numbers);
    rt_jentry *entries = rt_jalloc(run, dict->count, sizeof *entries);
    if (!keys || !numbers || !entries) return NULL;
    for (size_t i = 0; i < dict->count; i++) {
        keys[i] = dict->entries[i].key;
        numbers[i] = rt_jint((int64_t)i);
    }
    rt_jsort(run, numbers, keys, dict->count, false);
    for (size_t i = 0; i < dict->count; i++) entries[i] = dict->entries[numbers[i].as.integer];
    return run->status ? NULL : entries;
}

static void dump(rt_jrun *run, bis_buf *out, rt_jval value, const rt_jdump *options, int level);

static void dump_dict(rt_jrun *run, bis_buf *out, const rt_jdict *dict, const rt_jdump *options, int level) {
    const rt_jentry *entries = options->sort ? sorted_entries(run, dict) : dict->entries;
    put_text(run, out, "{");
    for (size_t i = 0; entries && i < dict->count && rt_jwork(run, 1); i++) {
        if (i) put_string(run, out, options->item_separator);
        put_break(run, out, options, level + 1);
        put_json_key(run, out, entries[i].key, options);
        put_string(run, out, options->key_separator);
        dump(run, out, entries[i].value, options, level + 1);
    }
    if (dict->count) put_break(run, out, options, level);
    put_text(run, out, "}");
}

static void dump_list(rt_jrun *run, bis_buf *out, const rt_jlist *list, const rt_jdump *options, int level) {
    put_text(run, out, "[");
    for (size_t i = 0; i < list->count && rt_jwork(run, 1); i++) {
        if (i) put_string(run, out, options->item_separator);
        put_break(run, out, options, level + 1);
        dump(run, out, list->items[i], options, level + 1);
    }
    if (list->count) put_break(run, out, options, level);
    put_text(run, out, "]");
}

static void dump(rt_jrun *run, bis_buf *out, rt_jval value, const rt_jdump *options, int level) {
    if (!rt_jenter(run)) return;
    switch (value.type) {
    case RT_J_NONE: put_text(run, out, "null"); break;
    case RT_J_BOOL: put_text(run, out, value.as.boolean ? "true" : "false"); break;
    case RT_J_INT: put_integer(run, out, value.as.integer); break;
    case RT_J_BIGINT: put_string(run, out, value.as.string); break;
    case RT_J_FLOAT:
        if (isnan(value.as.real)) put_text(run, out, "NaN");
        else if (isinf(value.as.real)) put_text(run, out, value.as.real < 0 ? "-Infinity" : "Infinity");
        else put_float(run, out, value.as.real);
        break;
    case RT_J_STRING: put_json_string(run, out, value.as.string, options->ascii); break;
    case RT_J_LIST:
    case RT_J_TUPLE: dump_list(run, out, value.as.list, options, level); break;
    case RT_J_DICT: dump_dict(run, out, value.as.dict, options, level); break;
    default: rt_jfail(run, BIS_ERR_INVALID, "Object of type %s is not JSON serializable", rt_jtype_name(value));
    }
    rt_jleave(run);
}

void rt_jdump_write(rt_jrun *run, bis_buf *out, rt_jval value, const rt_jdump *options) {
    dump(run, out, value, options, 0);
}
