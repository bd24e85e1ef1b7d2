/* Filters about texts and numbers, and the table of all filters. */
#include "runtime/template/jinja_filters.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/template/jinja_unicode.h"

static const rt_jstr empty_string = {"", 0, 0, false};

/* A filter without arguments; `value` as text. NULL after a failure. */
static const rt_jstr *text_only(rt_jrun *run, rt_jval value, const rt_jargs *args, const char *name) {
    rt_jbound bound;
    if (!rt_jbind(run, args, name, "", 0, &bound)) return NULL;
    rt_jval text = rt_jstr_of(run, value);
    return text.type == RT_J_STRING ? text.as.string : NULL;
}

/* ---- Texts ---- */

static rt_jval filter_upper(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    const rt_jstr *text = text_only(run, value, args, "upper");
    return text ? rt_jstring_case(run, text, RT_J_UPPER) : rt_jnone();
}

static rt_jval filter_lower(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    const rt_jstr *text = text_only(run, value, args, "lower");
    return text ? rt_jstring_case(run, text, RT_J_LOWER) : rt_jnone();
}

static rt_jval filter_capitalize(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    const rt_jstr *text = text_only(run, value, args, "capitalize");
    return text ? rt_jstring_case(run, text, RT_J_CAPITALIZE) : rt_jnone();
}

/* Unlike str.title(): words begin only behind space, - ( { [ and <. */
static rt_jval filter_title(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    const rt_jstr *text = text_only(run, value, args, "title");
    if (!text) return rt_jnone();
    rt_jlist *words = rt_jlist_new(run, 8);
    bool in_word = false;
    size_t start = 0;
    for (size_t i = 0; i < text->length && !run->status;) {
        size_t at = i;
        uint32_t c = rt_jchar_at(text->bytes, text->length, &i);
        bool splits = rt_jchar_is_space(c) || (c < 0x80 && strchr("-({[<", (int)c) && c);
        if (splits == in_word && at > start) {
            rt_jval word = rt_jstring_part(run, text, start, at);
            if (!run->status) rt_jlist_add(run, words, rt_jstring_case(run, word.as.string, RT_J_CAPITALIZE));
            start = at;
        }
        in_word = !splits;
    }
    rt_jval last = rt_jstring_part(run, text, start, text->length);
    if (!run->status) rt_jlist_add(run, words, rt_jstring_case(run, last.as.string, RT_J_CAPITALIZE));
    return run->status ? rt_jnone() : rt_jstring_concat(run, &empty_string, rt_jlist_value(words, RT_J_LIST), true);
}

static rt_jval filter_trim(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "trim", "chars", 0, &bound)) return rt_jnone();
    rt_jval text = rt_jstr_of(run, value);
    return run->status ? rt_jnone() : rt_jstring_strip(run, text.as.string, rt_jarg_string(run, bound.at[0], NULL), 3);
}

static rt_jval filter_replace(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "replace", "old new count", 2, &bound)) return rt_jnone();
    rt_jval text = rt_jmarkup(run, rt_jstr_of(run, value), false);
    rt_jval old_text = rt_jstr_of(run, bound.at[0]), new_text = rt_jstr_of(run, bound.at[1]);
    int64_t limit = rt_jarg_int(run, bound.at[2], -1);
    if (run->status) return rt_jnone();
    return rt_jstring_replace(run, text.as.string, old_text.as.string, new_text.as.string, limit);
}

static rt_jval filter_string(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    return text_only(run, value, args, "string") ? rt_jstr_of(run, value) : rt_jnone();
}

static rt_jval filter_safe(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    return text_only(run, value, args, "safe") ? rt_jmarkup(run, rt_jstr_of(run, value), true) : rt_jnone();
}

static rt_jval filter_escape(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    return text_only(run, value, args, "escape") ? rt_jescape(run, value) : rt_jnone();
}

static rt_jval filter_forceescape(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    if (!text_only(run, value, args, "forceescape")) return rt_jnone();
    return rt_jescape(run, rt_jmarkup(run, rt_jstr_of(run, value), false));
}

static rt_jval filter_indent(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "indent", "width first blank", 0, &bound)) return rt_jnone();
    rt_jval width = bound.at[0].type == RT_J_MISSING ? rt_jint(4) : bound.at[0];
    if (value.type != RT_J_STRING) rt_jfail(run, BIS_ERR_INVALID, "indent needs a str, not %s", rt_jtype_name(value));
    if (width.type != RT_J_STRING) width = rt_jbinary(run, RT_JO_MUL, rt_jstring_from(run, " "), width);
    rt_jlist *lines = run->status ? NULL : rt_jstring_lines(run, value.as.string, false);
    if (!lines || run->status) return rt_jnone();
    bool first = rt_jtruth(bound.at[1]), blank = rt_jtruth(bound.at[2]);
    /* A text that ends with a line break has an empty line behind it. */
    const rt_jstr *text = value.as.string;
    size_t back = text->length;
    bool ended = text->length == 0 || rt_jchar_is_newline(rt_jchar_before(text->bytes, &back));
    if (ended) rt_jlist_add(run, lines, rt_jstring_own(run, "", 0));
    bis_buf out = {0};
    for (size_t i = 0; i < lines->count && !run->status; i++) {
        const rt_jstr *line = lines->items[i].as.string;
        if (i) bis_buf_putc(&out, '\n');
        if (i == 0 ? first : blank || line->length) rt_jwrite(run, &out, width);
        rt_jwrite(run, &out, lines->items[i]);
    }
    return rt_jmarkup(run, rt_jtake(run, &out), text->markup);
}

static rt_jval filter_wordcount(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    const rt_jstr *text = text_only(run, value, args, "wordcount");
    int64_t words = 0;
    bool in_word = false;
    for (size_t i = 0; text && i < text->length;) {
        uint32_t c = rt_jchar_at(text->bytes, text->length, &i);
        bool part = c == '_' || rt_jchar_is_digit(c) || rt_jchar_is_alpha(c);
        words += part && !in_word;
        in_word = part;
    }
    return rt_jint(words);
}

static rt_jval filter_center(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    bool forbidden;
    if (!rt_jbind(run, args, "center", "width", 0, &bound)) return rt_jnone();
    rt_jval text = rt_jstr_of(run, value), width = bound.at[0].type == RT_J_MISSING ? rt_jint(80) : bound.at[0];
    if (run->status) return rt_jnone();
    return rt_jfind_method(text, "center", &forbidden)(run, text, &(rt_jargs){&width, 1, NULL});
}

static rt_jval filter_truncate(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    static const rt_jstr dots = {"...", 3, 3, false};
    if (!rt_jbind(run, args, "truncate", "length killwords end leeway", 0, &bound)) return rt_jnone();
    int64_t length = rt_jarg_int(run, bound.at[0], 255), leeway = rt_jarg_int(run, bound.at[3], 5);
    const rt_jstr *end = rt_jarg_string(run, bound.at[2], &dots);
    int64_t size = 0;
    if (!rt_jlength(value, &size)) rt_jfail(run, BIS_ERR_INVALID, "truncate needs a str");
    if (length < (int64_t)end->chars || leeway < 0) {
        rt_jfail(run, BIS_ERR_INVALID, "truncate: length or leeway is too small");
    }
    if (run->status || size - leeway <= length) return value;
    if (value.type != RT_J_STRING) rt_jfail(run, BIS_ERR_INVALID, "truncate needs a str");
    rt_jval cut = rt_jslice(run, value, rt_jnone(), rt_jint(length - (int64_t)end->chars), rt_jnone());
    if (run->status) return rt_jnone();
    if (!rt_jtruth(bound.at[1])) {
        const char *space = memrchr(cut.as.string->bytes, ' ', cut.as.string->length);
        if (space) cut = rt_jstring_part(run, cut.as.string, 0, (size_t)(space - cut.as.string->bytes));
    }
    return run->status ? rt_jnone() : rt_jstring_join(run, cut.as.string, end);
}

static rt_jval filter_format(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jval format = rt_jstr_of(run, value), values;
    if (args->named && args->count) {
        rt_jfail(run, BIS_ERR_INVALID, "can't handle positional and keyword arguments at the same time");
    }
    if (args->named) values = rt_jdict_value((rt_jdict *)args->named);
    else {
        rt_jlist *all = rt_jlist_new(run, args->count);
        for (size_t i = 0; i < args->count; i++) rt_jlist_add(run, all, args->at[i]);
        values = rt_jlist_value(all, RT_J_TUPLE);
    }
    return run->status ? rt_jnone() : rt_jformat_percent(run, format.as.string, values);
}

static rt_jval filter_tojson(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    static const rt_jstr comma = {",", 1, 1, false}, spaced = {", ", 2, 2, false}, colon = {": ", 2, 2, false};
    rt_jbound bound;
    if (!rt_jbind(run, args, "tojson", "ensure_ascii indent separators sort_keys", 0, &bound)) return rt_jnone();
    rt_jdump how = {.ascii = rt_jtruth(bound.at[0]), .sort = rt_jtruth(bound.at[3])};
    if (rt_jgiven(bound.at[1])) {
        rt_jval indent = bound.at[1];
        if (indent.type != RT_J_STRING) indent = rt_jbinary(run, RT_JO_MUL, rt_jstring_from(run, " "), indent);
        how.indent = run->status ? &empty_string : indent.as.string;
    }
    how.item_separator = how.indent ? &comma : &spaced;
    how.key_separator = &colon;
    if (rt_jgiven(bound.at[2])) {
        rt_jlist *both = rt_jcollect(run, bound.at[2]);
        if (both && both->count != 2) rt_jfail(run, BIS_ERR_INVALID, "tojson: separators must be two strings");
        if (!both || run->status) return rt_jnone();
        how.item_separator = rt_jarg_string(run, both->items[0], &empty_string);
        how.key_separator = rt_jarg_string(run, both->items[1], &empty_string);
    }
    bis_buf out = {0};
    if (!run->status) rt_jdump_write(run, &out, value, &how);
    return rt_jtake(run, &out);
}

static rt_jval filter_default(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "default", "default_value boolean", 0, &bound)) return rt_jnone();
    bool replace = value.type == RT_J_UNDEFINED || (rt_jtruth(bound.at[1]) && !rt_jtruth(value));
    if (!replace) return value;
    return bound.at[0].type == RT_J_MISSING ? rt_jstring_from(run, "") : bound.at[0];
}

/* ---- Numbers ---- */

static bool truncate_real(double real, rt_jval *out) {
    if (!(real > -9223372036854775808.0 && real < 9223372036854775808.0)) return false;
    *out = rt_jint((int64_t)real);
    return true;
}

static bool to_integer(rt_jrun *run, rt_jval value, int base, rt_jval *out) {
    int64_t integer;
    double real;
    if (value.type == RT_J_UNDEFINED) rt_jfail_undefined(run, value);
    if (value.type == RT_J_BIGINT) *out = value;
    else if (rt_jinteger(value, &integer)) *out = rt_jint(integer);
    else if (value.type == RT_J_FLOAT) return truncate_real(value.as.real, out);
    else if (value.type != RT_J_STRING) return false;
    else if (rt_jparse_int(run, value.as.string, base, out)) return true;
    else return rt_jparse_float(run, value.as.string, &real) && truncate_real(real, out); /* "42.23" is 42 */
    return true;
}

static rt_jval filter_int(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "int", "default base", 0, &bound)) return rt_jnone();
    int64_t base = rt_jarg_int(run, bound.at[1], 10);
    rt_jval result = bound.at[0].type == RT_J_MISSING ? rt_jint(0) : bound.at[0];
    if (base != 0 && (base < 2 || base > 36)) rt_jfail(run, BIS_ERR_INVALID, "int: the base must be 0 or 2 to 36");
    if (!run->status) to_integer(run, value, (int)base, &result);
    return result;
}

static rt_jval filter_float(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "float", "default", 0, &bound)) return rt_jnone();
    double real;
    if (value.type == RT_J_UNDEFINED) rt_jfail_undefined(run, value);
    if (rt_jis_number(value)) return rt_jfloat(rt_jreal(value));
    bool text = value.type == RT_J_STRING || value.type == RT_J_BIGINT;
    if (text && rt_jparse_float(run, value.as.string, &real)) return rt_jfloat(real);
    return bound.at[0].type == RT_J_MISSING ? rt_jfloat(0) : bound.at[0];
}

static rt_jval filter_abs(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "abs", "", 0, &bound)) return rt_jnone();
    if (value.type == RT_J_FLOAT) return rt_jfloat(fabs(value.as.real));
    int64_t integer;
    if (rt_jinteger(value, &integer) && integer >= 0) return rt_jint(integer);
    if (value.type == RT_J_UNDEFINED || !rt_jis_number(value)) {
        rt_jfail(run, BIS_ERR_INVALID, "bad operand type for abs(): '%s'", rt_jtype_name(value));
        return rt_jnone();
    }
    return rt_junary(run, RT_JO_SUB, value);
}

/* To the nearest, halves to even, as Python does: what the decimal digits of the exact value say. */
static double round_real(double value, int64_t precision) {
    char text[512];
    if (precision > 40 || isnan(value) || isinf(value)) return value;
    if (precision < -308) return 0 * value;
    if (precision >= 0) {
        snprintf(text, sizeof text, "%.*f", (int)precision, value);
        return strtod(text, NULL);
    }
    double unit = pow(10, (double)-precision);
    return nearbyint(value / unit) * unit;
}

static rt_jval round_integer(rt_jrun *run, int64_t value, int64_t precision) {
    if (precision >= 0) return rt_jint(value);
    if (precision < -18) return rt_jint(0);
    int64_t unit = 1;
    while (precision++ < 0) unit *= 10;
    rt_jval rest = rt_jbinary(run, RT_JO_MOD, rt_jint(value), rt_jint(unit));
    int64_t floor_value = value - rest.as.integer, twice = rest.as.integer * 2;
    bool up = twice > unit || (twice == unit && floor_value / unit % 2 != 0);
    return up ? rt_jbinary(run, RT_JO_ADD, rt_jint(floor_value), rt_jint(unit)) : rt_jint(floor_value);
}

static bool is_text(const rt_jstr *string, const char *text) {
    return string->length == strlen(text) && !memcmp(string->bytes, text, string->length);
}

static rt_jval filter_round(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    static const rt_jstr common = {"common", 6, 6, false};
    if (!rt_jbind(run, args, "round", "precision method", 0, &bound)) return rt_jnone();
    int64_t precision = rt_jarg_int(run, bound.at[0], 0), integer;
    const rt_jstr *method = rt_jarg_string(run, bound.at[1], &common);
    bool ceils = is_text(method, "ceil"), floors = is_text(method, "floor");
    if (!ceils && !floors && !is_text(method, "common")) {
        rt_jfail(run, BIS_ERR_INVALID, "round: method must be common, ceil or floor");
    }
    if (!rt_jis_number(value)) rt_jfail(run, BIS_ERR_INVALID, "cannot round a value of type %s", rt_jtype_name(value));
    if (run->status) return rt_jnone();
    if (ceils || floors) {
        double scale = pow(10, (double)precision), scaled = rt_jreal(value) * scale;
        return rt_jfloat((ceils ? ceil(scaled) : floor(scaled)) / scale);
    }
    return rt_jinteger(value, &integer) ? round_integer(run, integer, precision)
                                        : rt_jfloat(round_real(rt_jreal(value), precision));
}

/* ---- Table ---- */

static const struct {
    const char *name;
    rt_jbuiltin *call;
} filters[] = {
    {"abs", filter_abs},
    {"batch", rt_jfilter_batch},
    {"capitalize", filter_capitalize},
    {"center", filter_center},
    {"count", rt_jfilter_count},
    {"d", filter_default},
    {"default", filter_default},
    {"dictsort", rt_jfilter_dictsort},
    {"e", filter_escape},
    {"escape", filter_escape},
    {"first", rt_jfilter_first},
    {"float", filter_float},
    {"forceescape", filter_forceescape},
    {"format", filter_format},
    {"indent", filter_indent},
    {"int", filter_int},
    {"items", rt_jfilter_items},
    {"join", rt_jfilter_join},
    {"last", rt_jfilter_last},
    {"length", rt_jfilter_count},
    {"list", rt_jfilter_list},
    {"lower", filter_lower},
    {"map", rt_jfilter_map},
    {"max", rt_jfilter_max},
    {"min", rt_jfilter_min},
    {"reject", rt_jfilter_reject},
    {"rejectattr", rt_jfilter_rejectattr},
    {"replace", filter_replace},
    {"reverse", rt_jfilter_reverse},
    {"round", filter_round},
    {"safe", filter_safe},
    {"select", rt_jfilter_select},
    {"selectattr", rt_jfilter_selectattr},
    {"slice", rt_jfilter_slice},
    {"sort", rt_jfilter_sort},
    {"string", filter_string},
    {"sum", rt_jfilter_sum},
    {"title", filter_title},
    {"tojson", filter_tojson},
    {"trim", filter_trim},
    {"truncate", filter_truncate},
    {"unique", rt_jfilter_unique},
    {"upper", filter_upper},
    {"wordcount", filter_wordcount},
};

static rt_jbuiltin *find_filter(const char *name) {
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++) {
        if (!strcmp(filters[i].name, name)) return filters[i].call;
    }
    return NULL;
}

bool rt_jfilter_exists(const char *name) { return find_filter(name) != NULL; }

rt_jval rt_jcall_filter(rt_jrun *run, const char *name, rt_jval value, const rt_jargs *args) {
    rt_jbuiltin *call = find_filter(name);
    if (!call) {
        rt_jfail(run, BIS_ERR_INVALID, "no filter named '%.60s'", name);
        return rt_jnone();
    }
    if (!rt_jenter(run)) return rt_jnone();
    rt_jval result = call(run, value, args);
    rt_jleave(run);
    return run->status ? rt_jnone() : result;
}
