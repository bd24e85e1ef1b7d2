/* Arithmetic and comparison operators, attributes, subscripts and slices, as Python and jinja2's sandbox do them. */
#include <math.h>
#include <string.h>

#include "runtime/template/jinja_eval.h"

static rt_jval fail_operands(rt_jrun *run, const char *operator_text, rt_jval a, rt_jval b) {
    if (a.type == RT_J_UNDEFINED) rt_jfail_undefined(run, a);
    else if (b.type == RT_J_UNDEFINED) rt_jfail_undefined(run, b);
    else if ((a.type == RT_J_BIGINT || rt_jis_number(a)) && (b.type == RT_J_BIGINT || rt_jis_number(b))) {
        rt_jfail(run, BIS_ERR_LIMIT, "integers beyond 64 bits can be printed and compared, but not calculated with");
    } else {
        rt_jfail(run, BIS_ERR_INVALID, "unsupported operand types for %s: '%s' and '%s'", operator_text,
                 rt_jtype_name(a), rt_jtype_name(b));
    }
    return rt_jnone();
}

static rt_jval fail_overflow(rt_jrun *run) {
    rt_jfail(run, BIS_ERR_LIMIT, "the result is an integer beyond 64 bits");
    return rt_jnone();
}

static rt_jval fail_zero(rt_jrun *run) {
    rt_jfail(run, BIS_ERR_INVALID, "division by zero");
    return rt_jnone();
}

/* ---- Numbers ---- */

static rt_jval divide_floor(rt_jrun *run, int64_t a, int64_t b, bool rest) {
    if (b == 0) return fail_zero(run);
    if (b == -1) {
        if (rest) return rt_jint(0);
        return a == INT64_MIN ? fail_overflow(run) : rt_jint(-a);
    }
    int64_t quotient = a / b, remainder = a % b;
    if (remainder != 0 && (remainder < 0) != (b < 0)) {
        quotient--;
        remainder += b;
    }
    return rt_jint(rest ? remainder : quotient);
}

static rt_jval real_power(rt_jrun *run, double a, double b) {
    if (a == 0 && b < 0) return fail_zero(run);
    double result = pow(a, b);
    if (isnan(result) && !isnan(a) && !isnan(b)) {
        rt_jfail(run, BIS_ERR_UNSUPPORTED, "a power with a complex result");
    } else if (isinf(result) && !isinf(a) && !isinf(b)) rt_jfail(run, BIS_ERR_INVALID, "the result is too large");
    return rt_jfloat(result);
}

static rt_jval integer_power(rt_jrun *run, int64_t a, int64_t b) {
    if (b < 0) return real_power(run, (double)a, (double)b);
    int64_t result = 1;
    while (b > 0) {
        if (b & 1 && __builtin_mul_overflow(result, a, &result)) return fail_overflow(run);
        b >>= 1;
        if (b > 0 && __builtin_mul_overflow(a, a, &a)) return fail_overflow(run);
    }
    return rt_jint(result);
}

static rt_jval integers(rt_jrun *run, rt_joperation operation, int64_t a, int64_t b) {
    int64_t result = 0;
    bool overflow = false;
    switch (operation) {
    case RT_JO_ADD: overflow = __builtin_add_overflow(a, b, &result); break;
    case RT_JO_SUB: overflow = __builtin_sub_overflow(a, b, &result); break;
    case RT_JO_MUL: overflow = __builtin_mul_overflow(a, b, &result); break;
    case RT_JO_DIV: return b == 0 ? fail_zero(run) : rt_jfloat((double)((long double)a / (long double)b));
    case RT_JO_FLOORDIV: return divide_floor(run, a, b, false);
    case RT_JO_MOD: return divide_floor(run, a, b, true);
    default: return integer_power(run, a, b);
    }
    return overflow ? fail_overflow(run) : rt_jint(result);
}

static rt_jval reals(rt_jrun *run, rt_joperation operation, double a, double b) {
    bool divides = operation == RT_JO_DIV || operation == RT_JO_FLOORDIV || operation == RT_JO_MOD;
    if (divides && b == 0) return fail_zero(run);
    switch (operation) {
    case RT_JO_ADD: return rt_jfloat(a + b);
    case RT_JO_SUB: return rt_jfloat(a - b);
    case RT_JO_MUL: return rt_jfloat(a * b);
    case RT_JO_DIV: return rt_jfloat(a / b);
    case RT_JO_POW: return real_power(run, a, b);
    default: break;
    }
    double rest = fmod(a, b), quotient = (a - rest) / b;
    if (rest != 0 && (rest < 0) != (b < 0)) {
        rest += b;
        quotient -= 1;
    } else if (rest == 0) rest = copysign(0, b);
    double whole = floor(quotient);
    if (quotient - whole > 0.5) whole += 1;
    return rt_jfloat(operation == RT_JO_MOD ? rest : whole);
}

/* ---- Strings and lists ---- */

static rt_jval add_strings(rt_jrun *run, rt_jval a, rt_jval b) {
    bool markup = a.as.string->markup || b.as.string->markup;
    if (markup) {
        a = rt_jescape(run, a);
        b = rt_jescape(run, b);
        if (run->status) return rt_jnone();
    }
    return rt_jmarkup(run, rt_jstring_join(run, a.as.string, b.as.string), markup);
}

static rt_jval add_lists(rt_jrun *run, rt_jval a, rt_jval b) {
    rt_jlist *list = rt_jlist_new(run, a.as.list->count + b.as.list->count);
    for (size_t i = 0; i < a.as.list->count; i++) rt_jlist_add(run, list, a.as.list->items[i]);
    for (size_t i = 0; i < b.as.list->count; i++) rt_jlist_add(run, list, b.as.list->items[i]);
    return rt_jlist_value(list, a.type);
}

static rt_jval repeat_string(rt_jrun *run, const rt_jstr *string, int64_t times) {
    size_t length;
    if (times < 0) times = 0;
    if (__builtin_mul_overflow(string->length, (size_t)times, &length) || length > RT_JINJA_OUTPUT_MAX) {
        rt_jfail(run, BIS_ERR_LIMIT, "a repeated string of more than %d MB", RT_JINJA_OUTPUT_MAX >> 20);
        return rt_jnone();
    }
    char *bytes = rt_jtext_alloc(run, length);
    if (!bytes) return rt_jnone();
    for (size_t at = 0; at < length; at += string->length) memcpy(bytes + at, string->bytes, string->length);
    return rt_jmarkup(run, rt_jstring_own(run, bytes, length), string->markup);
}

static rt_jval repeat_list(rt_jrun *run, rt_jval value, int64_t times) {
    rt_jlist *list = rt_jlist_new(run, 0);
    const rt_jlist *source = value.as.list;
    for (int64_t round = 0; source->count && round < times && !run->status; round++) {
        for (size_t i = 0; i < source->count; i++) rt_jlist_add(run, list, source->items[i]);
    }
    return rt_jlist_value(list, value.type);
}

static bool is_list(rt_jval value) { return value.type == RT_J_LIST || value.type == RT_J_TUPLE; }

static rt_jval repeat(rt_jrun *run, rt_jval a, rt_jval b) {
    int64_t times;
    if (rt_jinteger(a, &times)) {
        rt_jval swap = a;
        a = b;
        b = swap;
    }
    if (rt_jinteger(b, &times) && a.type == RT_J_STRING) return repeat_string(run, a.as.string, times);
    if (rt_jinteger(b, &times) && is_list(a)) return repeat_list(run, a, times);
    return fail_operands(run, "*", a, b);
}

rt_jval rt_jbinary(rt_jrun *run, rt_joperation operation, rt_jval a, rt_jval b) {
    static const char *const texts[] = {
        [RT_JO_ADD] = "+",       [RT_JO_SUB] = "-", [RT_JO_MUL] = "*", [RT_JO_DIV] = "/",
        [RT_JO_FLOORDIV] = "//", [RT_JO_MOD] = "%", [RT_JO_POW] = "**"};
    int64_t x, y;
    if (rt_jinteger(a, &x) && rt_jinteger(b, &y)) return integers(run, operation, x, y);
    if (rt_jis_number(a) && rt_jis_number(b)) return reals(run, operation, rt_jreal(a), rt_jreal(b));
    if (operation == RT_JO_ADD && a.type == RT_J_STRING && b.type == RT_J_STRING) return add_strings(run, a, b);
    if (operation == RT_JO_ADD && is_list(a) && a.type == b.type) return add_lists(run, a, b);
    if (operation == RT_JO_MUL) return repeat(run, a, b);
    if (operation == RT_JO_MOD && a.type == RT_J_STRING) {
        return rt_jformat_percent(run, a.as.string, b);
    }
    return fail_operands(run, texts[operation], a, b);
}

rt_jval rt_junary(rt_jrun *run, rt_joperation operation, rt_jval value) {
    if (operation == RT_JO_NOT) return rt_jbool(!rt_jtruth(value));
    bool negative = operation == RT_JO_SUB;
    int64_t integer;
    if (value.type == RT_J_FLOAT) return rt_jfloat(negative ? -value.as.real : value.as.real);
    if (rt_jinteger(value, &integer)) {
        return negative && integer == INT64_MIN ? fail_overflow(run) : rt_jint(negative ? -integer : integer);
    }
    if (value.type == RT_J_UNDEFINED) rt_jfail_undefined(run, value);
    else if (value.type == RT_J_BIGINT) return fail_overflow(run);
    else {
        rt_jfail(run, BIS_ERR_INVALID, "bad operand type for unary %c: '%s'", negative ? '-' : '+',
                 rt_jtype_name(value));
    }
    return rt_jnone();
}

bool rt_jcompare_with(rt_jrun *run, rt_joperation operation, rt_jval a, rt_jval b) {
    switch (operation) {
    case RT_JO_EQ: return rt_jequal(run, a, b);
    case RT_JO_NE: return !rt_jequal(run, a, b);
    case RT_JO_LT: return rt_jcompare(run, a, b, "<") < 0;
    case RT_JO_LE: return rt_jcompare(run, a, b, "<=") <= 0;
    case RT_JO_GT: return rt_jcompare(run, a, b, ">") > 0;
    case RT_JO_GE: return rt_jcompare(run, a, b, ">=") >= 0;
    case RT_JO_IN: return rt_jcontains(run, b, a);
    case RT_JO_NOT_IN: return !rt_jcontains(run, b, a);
    default: return false;
    }
}

/* ---- Attributes and subscripts ---- */

static rt_jval find_cycler_attribute(rt_jval object, const char *name) {
    rt_jcycler *cycler = object.as.cycler;
    if (!strcmp(name, "current")) return cycler->items->items[cycler->position];
    return (rt_jval){.type = RT_J_MISSING};
}

/* What Python's getattr finds, without the fallback to items; MISSING if there is nothing. */
static rt_jval find_attribute(rt_jrun *run, rt_jval object, const char *name) {
    bool forbidden = false;
    rt_jval found = {.type = RT_J_MISSING};
    if (object.type == RT_J_LOOP) return rt_jloop_attribute(run, object.as.loop, name);
    if (object.type == RT_J_NAMESPACE) {
        const rt_jval *value = rt_jdict_find(run, object.as.dict, name);
        return value ? *value : found;
    }
    if (object.type == RT_J_CYCLER) found = find_cycler_attribute(object, name);
    if (object.type == RT_J_MACRO && !strcmp(name, "name")) {
        return rt_jstring_from(run, rt_jmacro_name(object.as.macro));
    }
    rt_jbuiltin *call = rt_jfind_method(object, name, &forbidden);
    if (forbidden) {
        return rt_jundefined_new(run, "access to a method that changes its object is unsafe", name, NULL);
    }
    if (!call) return found;
    rt_jmethod *method = rt_jalloc(run, 1, sizeof *method);
    if (!method) return rt_jnone();
    *method = (rt_jmethod){object, name, call};
    return (rt_jval){.type = RT_J_METHOD, .as.method = method};
}

rt_jval rt_jgetattr(rt_jrun *run, rt_jval object, const char *name) {
    if (object.type == RT_J_UNDEFINED) {
        rt_jfail_undefined(run, object);
        return rt_jnone();
    }
    rt_jval found = find_attribute(run, object, name);
    if (found.type != RT_J_MISSING) return found;
    const rt_jval *item = object.type == RT_J_DICT ? rt_jdict_find(run, object.as.dict, name) : NULL;
    return item ? *item : rt_jundefined_new(run, NULL, name, rt_jtype_name(object));
}

static bool in_bounds(int64_t *index, size_t count) {
    if (*index < 0) *index += (int64_t)count;
    return *index >= 0 && *index < (int64_t)count;
}

static rt_jval char_at(rt_jrun *run, const rt_jstr *string, size_t index) {
    size_t from = rt_jstring_offset(run, string, index), to = from + 1;
    while (to < string->length && ((unsigned char)string->bytes[to] & 0xc0) == 0x80) to++;
    return rt_jstring_part(run, string, from, to);
}

/* What object[key] finds; MISSING where Python raises LookupError or TypeError. */
static rt_jval find_item(rt_jrun *run, rt_jval object, rt_jval key) {
    rt_jval missing = {.type = RT_J_MISSING};
    if (object.type == RT_J_DICT) {
        bool hashable = key.type != RT_J_LIST && key.type != RT_J_DICT && key.type != RT_J_VIEW;
        const rt_jval *value = hashable ? rt_jdict_get(run, object.as.dict, key) : NULL;
        return value ? *value : missing;
    }
    int64_t index, length;
    bool sequence = object.type == RT_J_STRING || is_list(object) || object.type == RT_J_RANGE;
    if (!sequence || !rt_jinteger(key, &index) || !rt_jlength(object, &length)) return missing;
    if (!in_bounds(&index, (size_t)length)) return missing;
    if (object.type == RT_J_STRING) return char_at(run, object.as.string, (size_t)index);
    return is_list(object) ? object.as.list->items[index] : rt_jrange_at(object.as.range, index);
}

static const char *key_text(rt_jrun *run, rt_jval key) {
    rt_jval text = rt_jstr_of(run, key);
    return text.type == RT_J_STRING ? rt_jcstr(run, text.as.string) : "";
}

rt_jval rt_jgetitem(rt_jrun *run, rt_jval object, rt_jval key) {
    if (object.type == RT_J_UNDEFINED) {
        rt_jfail_undefined(run, object);
        return rt_jnone();
    }
    rt_jval found = find_item(run, object, key);
    if (found.type != RT_J_MISSING || run->status) return found;
    const char *name = key_text(run, key);
    if (key.type == RT_J_STRING) found = find_attribute(run, object, name);
    return found.type != RT_J_MISSING ? found : rt_jundefined_new(run, NULL, name, rt_jtype_name(object));
}

/* ---- Slices ---- */

static int64_t clamp_index(int64_t index, int64_t count, int64_t low, int64_t high) {
    if (index < 0) index = index < -count ? low : index + count;
    return index < low ? low : index > high ? high : index;
}

/* The indices start, start + step, ... of which there are `count`, for a sequence of `length`. */
static rt_jrange slice_range(rt_jrun *run, int64_t length, rt_jval start, rt_jval stop, rt_jval step_value) {
    int64_t step = rt_jarg_int(run, step_value, 1);
    if (step == 0) rt_jfail(run, BIS_ERR_INVALID, "slice step cannot be zero");
    if (step == 0 || run->status) return (rt_jrange){0};
    int64_t low = step < 0 ? -1 : 0, high = step < 0 ? length - 1 : length;
    int64_t from =
        rt_jgiven(start) ? clamp_index(rt_jarg_int(run, start, 0), length, low, high) : (step < 0 ? high : low);
    int64_t to = rt_jgiven(stop) ? clamp_index(rt_jarg_int(run, stop, 0), length, low, high) : (step < 0 ? low : high);
    int64_t distance = step < 0 ? from - to : to - from;
    uint64_t stride = step < 0 ? 0 - (uint64_t)step : (uint64_t)step;
    int64_t count = distance > 0 ? (int64_t)((uint64_t)(distance - 1) / stride) + 1 : 0;
    return (rt_jrange){from, step, count, to};
}

static rt_jval slice_string(rt_jrun *run, const rt_jstr *string, const rt_jrange *range) {
    if (range->count == 0) return rt_jstring_part(run, string, 0, 0);
    if (range->step == 1) {
        size_t from = rt_jstring_offset(run, string, (size_t)range->start);
        return rt_jstring_part(run, string, from,
                               rt_jstring_offset(run, string, (size_t)(range->start + range->count)));
    }
    /* Offsets of all characters first: looking up each one would be quadratic. */
    size_t *offsets = rt_jalloc(run, string->chars + 1, sizeof *offsets), chars = 0;
    bis_buf text = {0};
    for (size_t i = 0; offsets && i < string->length; i++) {
        if (((unsigned char)string->bytes[i] & 0xc0) != 0x80) offsets[chars++] = i;
    }
    if (offsets) offsets[chars] = string->length;
    for (int64_t i = 0; offsets && i < range->count && rt_jwork(run, 1); i++) {
        size_t at = (size_t)rt_jrange_at(range, i).as.integer;
        bis_buf_append(&text, string->bytes + offsets[at], offsets[at + 1] - offsets[at]);
    }
    return rt_jmarkup(run, rt_jtake(run, &text), string->markup);
}

rt_jval rt_jslice(rt_jrun *run, rt_jval object, rt_jval start, rt_jval stop, rt_jval step) {
    int64_t length;
    bool sequence = object.type == RT_J_STRING || is_list(object) || object.type == RT_J_RANGE;
    if (!sequence || !rt_jlength(object, &length)) {
        if (object.type == RT_J_UNDEFINED) rt_jfail_undefined(run, object);
        else rt_jfail(run, BIS_ERR_INVALID, "'%s' object cannot be sliced", rt_jtype_name(object));
        return rt_jnone();
    }
    rt_jrange range = slice_range(run, length, start, stop, step);
    if (run->status) return rt_jnone();
    if (object.type == RT_J_STRING) return slice_string(run, object.as.string, &range);
    if (object.type == RT_J_RANGE) {
        rt_jrange *part = rt_jalloc(run, 1, sizeof *part);
        if (!part) return rt_jnone();
        const rt_jrange *whole = object.as.range;
        *part = (rt_jrange){rt_jrange_at(whole, range.start).as.integer, 1, range.count,
                            rt_jrange_at(whole, range.stop).as.integer};
        if (__builtin_mul_overflow(whole->step, range.step, &part->step)) return fail_overflow(run);
        return (rt_jval){.type = RT_J_RANGE, .as.range = part};
    }
    rt_jlist *list = rt_jlist_new(run, (size_t)range.count);
    for (int64_t i = 0; i < range.count && !run->status; i++) {
        rt_jlist_add(run, list, object.as.list->items[rt_jrange_at(&range, i).as.integer]);
    }
    return rt_jlist_value(list, object.type);
}
