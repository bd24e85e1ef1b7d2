/* The methods of strings, dictionaries, lists and cyclers. Those that would change their object are
 * refused, as jinja2's immutable sandbox does. */
#include <string.h>

#include "runtime/template/jinja_eval.h"
#include "runtime/template/jinja_unicode.h"

static const rt_jstr empty_string = {"", 0, 0, false};

/* ---- Strings: case, strip, classes ---- */

static rt_jval change_case(rt_jrun *run, rt_jval self, const rt_jargs *args, const char *name, rt_jcase how) {
    rt_jbound bound;
    if (!rt_jbind(run, args, name, "", 0, &bound)) return rt_jnone();
    return rt_jstring_case(run, self.as.string, how);
}

static rt_jval str_upper(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return change_case(run, self, args, "upper", RT_J_UPPER);
}
static rt_jval str_lower(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return change_case(run, self, args, "lower", RT_J_LOWER);
}
static rt_jval str_title(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return change_case(run, self, args, "title", RT_J_TITLE);
}
static rt_jval str_capitalize(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return change_case(run, self, args, "capitalize", RT_J_CAPITALIZE);
}
static rt_jval str_swapcase(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return change_case(run, self, args, "swapcase", RT_J_SWAP);
}

static rt_jval strip_sides(rt_jrun *run, rt_jval self, const rt_jargs *args, const char *name, int sides) {
    rt_jbound bound;
    if (!rt_jbind(run, args, name, "chars", 0, &bound)) return rt_jnone();
    return rt_jstring_strip(run, self.as.string, rt_jarg_string(run, bound.at[0], NULL), sides);
}

static rt_jval str_strip(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return strip_sides(run, self, args, "strip", 3);
}
static rt_jval str_lstrip(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return strip_sides(run, self, args, "lstrip", 1);
}
static rt_jval str_rstrip(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return strip_sides(run, self, args, "rstrip", 2);
}

static bool is_alnum(uint32_t c) { return rt_jchar_is_alpha(c) || rt_jchar_is_digit(c); }

static rt_jval all_are(rt_jrun *run, rt_jval self, bool (*is)(uint32_t c)) {
    const rt_jstr *string = self.as.string;
    if (!rt_jwork_bytes(run, string->length)) return rt_jnone();
    for (size_t i = 0; i < string->length;) {
        if (!is(rt_jchar_at(string->bytes, string->length, &i))) return rt_jbool(false);
    }
    return rt_jbool(string->length > 0);
}

static rt_jval str_isdigit(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    (void)args;
    return all_are(run, self, rt_jchar_is_digit);
}
static rt_jval str_isalpha(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    (void)args;
    return all_are(run, self, rt_jchar_is_alpha);
}
static rt_jval str_isalnum(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    (void)args;
    return all_are(run, self, is_alnum);
}
static rt_jval str_isspace(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    (void)args;
    return all_are(run, self, rt_jchar_is_space);
}
static rt_jval str_isupper(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    (void)run, (void)args;
    return rt_jbool(rt_jstring_all_cased(self.as.string, true));
}
static rt_jval str_islower(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    (void)run, (void)args;
    return rt_jbool(rt_jstring_all_cased(self.as.string, false));
}

/* ---- Strings: looking for parts ---- */

/* The byte range of self[start:end]; false when start lies behind the end of the string. */
static bool find_window(rt_jrun *run, const rt_jstr *string, const rt_jval *bounds, size_t *from, size_t *to) {
    int64_t chars = (int64_t)string->chars;
    int64_t start = rt_jarg_int(run, bounds[0], 0), end = rt_jarg_int(run, bounds[1], chars);
    if (start < 0) start = start + chars > 0 ? start + chars : 0;
    if (end < 0) end = end + chars > 0 ? end + chars : 0;
    if (run->status || start > chars || start > end) return false;
    *from = rt_jstring_offset(run, string, (size_t)start);
    *to = rt_jstring_offset(run, string, (size_t)end);
    return true;
}

/* Looking backwards compares at every position, so long parts cost more. */
static bool work_to_find(rt_jrun *run, const rt_jstr *string, const rt_jstr *part, bool last) {
    return rt_jwork_bytes(run, string->length * (last && part->length > 64 ? part->length / 64 : 1));
}

static const char *find_last(const char *bytes, size_t length, const rt_jstr *part) {
    for (size_t at = length - part->length + 1; part->length <= length && at-- > 0;) {
        if (memcmp(bytes + at, part->bytes, part->length) == 0) return bytes + at;
    }
    return NULL;
}

static size_t chars_before(const rt_jstr *string, size_t offset) {
    if (string->chars == string->length) return offset;
    size_t chars = 0;
    for (size_t i = 0; i < offset; i++) chars += ((unsigned char)string->bytes[i] & 0xc0) != 0x80;
    return chars;
}

static int64_t find_part(rt_jrun *run, rt_jval self, const rt_jargs *args, const char *name, bool last) {
    rt_jbound bound;
    size_t from, to;
    if (!rt_jbind(run, args, name, "sub start end", 1, &bound)) return -1;
    const rt_jstr *string = self.as.string, *part = rt_jarg_string(run, bound.at[0], &empty_string);
    if (!find_window(run, string, bound.at + 1, &from, &to) || !work_to_find(run, string, part, last)) return -1;
    const char *hit = last                ? find_last(string->bytes + from, to - from, part)
                      : part->length == 0 ? string->bytes + from
                                          : memmem(string->bytes + from, to - from, part->bytes, part->length);
    return hit ? (int64_t)chars_before(string, (size_t)(hit - string->bytes)) : -1;
}

static rt_jval found_or_fail(rt_jrun *run, int64_t position) {
    if (position < 0) rt_jfail(run, BIS_ERR_INVALID, "substring not found");
    return rt_jint(position);
}

static rt_jval str_find(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return rt_jint(find_part(run, self, args, "find", false));
}
static rt_jval str_rfind(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return rt_jint(find_part(run, self, args, "rfind", true));
}
static rt_jval str_index(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return found_or_fail(run, find_part(run, self, args, "index", false));
}
static rt_jval str_rindex(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return found_or_fail(run, find_part(run, self, args, "rindex", true));
}

static rt_jval str_count(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jbound bound;
    size_t from, to;
    if (!rt_jbind(run, args, "count", "sub start end", 1, &bound)) return rt_jnone();
    const rt_jstr *string = self.as.string, *part = rt_jarg_string(run, bound.at[0], &empty_string);
    if (!find_window(run, string, bound.at + 1, &from, &to) || !rt_jwork_bytes(run, string->length)) return rt_jint(0);
    if (part->length == 0) return rt_jint((int64_t)(chars_before(string, to) - chars_before(string, from)) + 1);
    int64_t count = 0;
    for (const char *hit; (hit = memmem(string->bytes + from, to - from, part->bytes, part->length)); count++) {
        from = (size_t)(hit - string->bytes) + part->length;
    }
    return rt_jint(count);
}

static bool has_end(const rt_jstr *string, size_t from, size_t to, const rt_jstr *part, bool start) {
    if (part->length > to - from) return false;
    return memcmp(string->bytes + (start ? from : to - part->length), part->bytes, part->length) == 0;
}

static rt_jval test_end(rt_jrun *run, rt_jval self, const rt_jargs *args, const char *name, bool start) {
    rt_jbound bound;
    size_t from, to;
    if (!rt_jbind(run, args, name, "part start end", 1, &bound)) return rt_jnone();
    if (!find_window(run, self.as.string, bound.at + 1, &from, &to)) return rt_jbool(false);
    rt_jval part = bound.at[0];
    const rt_jval *parts = part.type == RT_J_TUPLE ? part.as.list->items : &part;
    size_t count = part.type == RT_J_TUPLE ? part.as.list->count : 1;
    for (size_t i = 0; i < count && rt_jwork(run, 1); i++) {
        if (parts[i].type != RT_J_STRING) {
            rt_jfail(run, BIS_ERR_INVALID, "%s first arg must be str or a tuple of str, not %s", name,
                     rt_jtype_name(parts[i]));
        } else if (has_end(self.as.string, from, to, parts[i].as.string, start)) return rt_jbool(true);
    }
    return rt_jbool(false);
}

static rt_jval str_startswith(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return test_end(run, self, args, "startswith", true);
}
static rt_jval str_endswith(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return test_end(run, self, args, "endswith", false);
}

static rt_jval str_removeprefix(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "removeprefix", "prefix", 1, &bound)) return rt_jnone();
    const rt_jstr *string = self.as.string, *part = rt_jarg_string(run, bound.at[0], &empty_string);
    return has_end(string, 0, string->length, part, true) ? rt_jstring_part(run, string, part->length, string->length)
                                                          : self;
}

static rt_jval str_removesuffix(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "removesuffix", "suffix", 1, &bound)) return rt_jnone();
    const rt_jstr *string = self.as.string, *part = rt_jarg_string(run, bound.at[0], &empty_string);
    return has_end(string, 0, string->length, part, false)
               ? rt_jstring_part(run, string, 0, string->length - part->length)
               : self;
}

static rt_jval str_replace(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "replace", "old new count", 2, &bound)) return rt_jnone();
    const rt_jstr *old_text = rt_jarg_string(run, bound.at[0], NULL),
                  *new_text = rt_jarg_string(run, bound.at[1], NULL);
    int64_t limit = rt_jarg_int(run, bound.at[2], -1);
    if (!old_text || !new_text) rt_jfail(run, BIS_ERR_INVALID, "replace() arguments must be str");
    return run->status ? rt_jnone() : rt_jstring_replace(run, self.as.string, old_text, new_text, limit);
}

/* ---- Strings: splitting and joining ---- */

/* Cuts at runs of whitespace. From the right, the parts are collected backwards and turned around. */
static rt_jlist *split_space(rt_jrun *run, const rt_jstr *string, int64_t limit, bool right) {
    rt_jlist *parts = rt_jlist_new(run, 8);
    rt_jval rest = rt_jstring_strip(run, string, NULL, right ? 2 : 1);
    while (!run->status && rest.as.string->length > 0) {
        const rt_jstr *text = rest.as.string;
        if (limit == 0) {
            rt_jlist_add(run, parts, rt_jstring_strip(run, text, NULL, right ? 2 : 1));
            break;
        }
        size_t at = right ? text->length : 0;
        while (right ? at > 0 : at < text->length) {
            size_t next = at;
            uint32_t c = right ? rt_jchar_before(text->bytes, &next) : rt_jchar_at(text->bytes, text->length, &next);
            if (rt_jchar_is_space(c)) break;
            at = next;
        }
        rt_jlist_add(run, parts, rt_jstring_part(run, text, right ? at : 0, right ? text->length : at));
        rest = rt_jstring_part(run, text, right ? 0 : at, right ? at : text->length);
        if (!run->status) rest = rt_jstring_strip(run, rest.as.string, NULL, right ? 2 : 1);
        limit--;
    }
    return parts;
}

static rt_jlist *split_at(rt_jrun *run, const rt_jstr *string, const rt_jstr *separator, int64_t limit, bool right) {
    rt_jlist *parts = rt_jlist_new(run, 8);
    size_t from = 0, to = string->length;
    work_to_find(run, string, separator, right);
    for (; limit != 0 && !run->status; limit--) {
        const char *hit = right ? find_last(string->bytes + from, to - from, separator)
                                : memmem(string->bytes + from, to - from, separator->bytes, separator->length);
        if (!hit) break;
        size_t at = (size_t)(hit - string->bytes);
        rt_jlist_add(run, parts,
                     right ? rt_jstring_part(run, string, at + separator->length, to)
                           : rt_jstring_part(run, string, from, at));
        if (right) to = at;
        else from = at + separator->length;
    }
    rt_jlist_add(run, parts, rt_jstring_part(run, string, from, to));
    return parts;
}

static rt_jval split(rt_jrun *run, rt_jval self, const rt_jargs *args, const char *name, bool right) {
    rt_jbound bound;
    if (!rt_jbind(run, args, name, "sep maxsplit", 0, &bound)) return rt_jnone();
    const rt_jstr *separator = rt_jarg_string(run, bound.at[0], NULL);
    int64_t limit = rt_jarg_int(run, bound.at[1], -1);
    if (separator && separator->length == 0) rt_jfail(run, BIS_ERR_INVALID, "empty separator");
    if (run->status) return rt_jnone();
    rt_jlist *parts = separator ? split_at(run, self.as.string, separator, limit, right)
                                : split_space(run, self.as.string, limit, right);
    for (size_t i = 0; right && parts && i < parts->count / 2; i++) {
        rt_jval swap = parts->items[i];
        parts->items[i] = parts->items[parts->count - 1 - i];
        parts->items[parts->count - 1 - i] = swap;
    }
    return rt_jlist_value(parts, RT_J_LIST);
}

static rt_jval str_split(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return split(run, self, args, "split", false);
}
static rt_jval str_rsplit(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return split(run, self, args, "rsplit", true);
}

static rt_jval str_splitlines(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "splitlines", "keepends", 0, &bound)) return rt_jnone();
    return rt_jlist_value(rt_jstring_lines(run, self.as.string, rt_jtruth(bound.at[0])), RT_J_LIST);
}

static rt_jval partition(rt_jrun *run, rt_jval self, const rt_jargs *args, const char *name, bool right) {
    rt_jbound bound;
    if (!rt_jbind(run, args, name, "sep", 1, &bound)) return rt_jnone();
    const rt_jstr *string = self.as.string, *separator = rt_jarg_string(run, bound.at[0], &empty_string);
    if (separator->length == 0) rt_jfail(run, BIS_ERR_INVALID, "empty separator");
    if (!work_to_find(run, string, separator, right)) return rt_jnone();
    const char *hit = right ? find_last(string->bytes, string->length, separator)
                            : memmem(string->bytes, string->length, separator->bytes, separator->length);
    size_t at = hit ? (size_t)(hit - string->bytes) : right ? 0 : string->length;
    size_t after = hit ? at + separator->length : at;
    rt_jlist *parts = rt_jlist_new(run, 3);
    rt_jlist_add(run, parts, rt_jstring_part(run, string, 0, at));
    rt_jlist_add(run, parts, rt_jstring_part(run, string, at, after));
    rt_jlist_add(run, parts, rt_jstring_part(run, string, after, string->length));
    return rt_jlist_value(parts, RT_J_TUPLE);
}

static rt_jval str_partition(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return partition(run, self, args, "partition", false);
}
static rt_jval str_rpartition(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return partition(run, self, args, "rpartition", true);
}

static rt_jval str_join(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "join", "iterable", 1, &bound)) return rt_jnone();
    return rt_jstring_concat(run, self.as.string, bound.at[0], false);
}

static rt_jval str_format(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return rt_jformat_braces(run, self.as.string, args);
}

/* ---- Strings: padding ---- */

static rt_jval pad(rt_jrun *run, rt_jval self, const rt_jargs *args, const char *name, int left_share) {
    rt_jbound bound;
    static const rt_jstr space = {" ", 1, 1, false};
    if (!rt_jbind(run, args, name, "width fillchar", 1, &bound)) return rt_jnone();
    int64_t width = rt_jarg_int(run, bound.at[0], 0);
    const rt_jstr *fill = rt_jarg_string(run, bound.at[1], &space), *string = self.as.string;
    if (fill->chars != 1) rt_jfail(run, BIS_ERR_INVALID, "the fill character must be one character long");
    if (run->status || width <= (int64_t)string->chars) return self;
    int64_t gap = width - (int64_t)string->chars;
    /* Python's rule for which side of an odd gap gets the extra character. */
    int64_t left = left_share == 2 ? gap / 2 + (gap & width & 1) : left_share * gap;
    rt_jval filler = {.type = RT_J_STRING, .as.string = fill};
    rt_jval before = rt_jbinary(run, RT_JO_MUL, filler, rt_jint(left));
    rt_jval after = rt_jbinary(run, RT_JO_MUL, filler, rt_jint(gap - left));
    return rt_jbinary(run, RT_JO_ADD, rt_jbinary(run, RT_JO_ADD, before, self), after);
}

static rt_jval str_ljust(rt_jrun *run, rt_jval self, const rt_jargs *args) { return pad(run, self, args, "ljust", 0); }
static rt_jval str_rjust(rt_jrun *run, rt_jval self, const rt_jargs *args) { return pad(run, self, args, "rjust", 1); }
static rt_jval str_center(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    return pad(run, self, args, "center", 2);
}

static rt_jval str_zfill(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "zfill", "width", 1, &bound)) return rt_jnone();
    const rt_jstr *string = self.as.string;
    int64_t gap = rt_jarg_int(run, bound.at[0], 0) - (int64_t)string->chars;
    if (gap <= 0 || run->status) return self;
    bool sign = string->length > 0 && (string->bytes[0] == '-' || string->bytes[0] == '+');
    rt_jval zeros = rt_jbinary(run, RT_JO_MUL, rt_jstring_from(run, "0"), rt_jint(gap));
    rt_jval head = rt_jbinary(run, RT_JO_ADD, rt_jstring_part(run, string, 0, sign), zeros);
    return rt_jbinary(run, RT_JO_ADD, head, rt_jstring_part(run, string, sign, string->length));
}

/* ---- Dictionaries, lists, cyclers ---- */

static rt_jval make_view(rt_jrun *run, rt_jval self, rt_jview_kind kind) {
    rt_jview *view = rt_jalloc(run, 1, sizeof *view);
    if (!view) return rt_jnone();
    *view = (rt_jview){kind, self.as.dict};
    return (rt_jval){.type = RT_J_VIEW, .as.view = view};
}

static rt_jval dict_items(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jbound bound;
    return rt_jbind(run, args, "items", "", 0, &bound) ? make_view(run, self, RT_J_ITEMS) : rt_jnone();
}
static rt_jval dict_keys(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jbound bound;
    return rt_jbind(run, args, "keys", "", 0, &bound) ? make_view(run, self, RT_J_KEYS) : rt_jnone();
}
static rt_jval dict_values(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jbound bound;
    return rt_jbind(run, args, "values", "", 0, &bound) ? make_view(run, self, RT_J_VALUES) : rt_jnone();
}

static rt_jval dict_get(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "get", "key default", 1, &bound)) return rt_jnone();
    const rt_jval *value = rt_jdict_get(run, self.as.dict, bound.at[0]);
    if (value) return *value;
    return bound.at[1].type == RT_J_MISSING ? rt_jnone() : bound.at[1];
}

/* Values never change, so a copy can be the same object. */
static rt_jval copy_object(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jbound bound;
    rt_jbind(run, args, "copy", "", 0, &bound);
    return self;
}

static rt_jval list_index(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "index", "value start stop", 1, &bound)) return rt_jnone();
    int64_t count = (int64_t)self.as.list->count;
    int64_t start = rt_jarg_int(run, bound.at[1], 0), stop = rt_jarg_int(run, bound.at[2], count);
    if (start < 0) start = start + count > 0 ? start + count : 0;
    if (stop < 0) stop += count;
    for (int64_t i = start; i < count && i < stop && rt_jwork(run, 1); i++) {
        if (rt_jequal(run, self.as.list->items[i], bound.at[0])) return rt_jint(i);
    }
    rt_jfail(run, BIS_ERR_INVALID, "the value is not in the list");
    return rt_jnone();
}

static rt_jval list_count(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "count", "value", 1, &bound)) return rt_jnone();
    int64_t count = 0;
    for (size_t i = 0; i < self.as.list->count && rt_jwork(run, 1); i++) {
        count += rt_jequal(run, self.as.list->items[i], bound.at[0]);
    }
    return rt_jint(count);
}

static rt_jval cycler_next(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jbound bound;
    rt_jcycler *cycler = self.as.cycler;
    if (!rt_jbind(run, args, "next", "", 0, &bound)) return rt_jnone();
    rt_jval value = cycler->items->items[cycler->position];
    cycler->position = (cycler->position + 1) % cycler->items->count;
    return value;
}

static rt_jval cycler_reset(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jbound bound;
    if (rt_jbind(run, args, "reset", "", 0, &bound)) self.as.cycler->position = 0;
    return rt_jnone();
}

/* ---- Tables ---- */

typedef struct method_entry {
    const char *name;
    rt_jbuiltin *call; /* NULL: it would change the object */
} method_entry;

static const method_entry string_methods[] = {
    {"upper", str_upper},
    {"lower", str_lower},
    {"casefold", str_lower},
    {"title", str_title},
    {"capitalize", str_capitalize},
    {"swapcase", str_swapcase},
    {"strip", str_strip},
    {"lstrip", str_lstrip},
    {"rstrip", str_rstrip},
    {"split", str_split},
    {"rsplit", str_rsplit},
    {"splitlines", str_splitlines},
    {"partition", str_partition},
    {"rpartition", str_rpartition},
    {"startswith", str_startswith},
    {"endswith", str_endswith},
    {"removeprefix", str_removeprefix},
    {"removesuffix", str_removesuffix},
    {"replace", str_replace},
    {"find", str_find},
    {"rfind", str_rfind},
    {"index", str_index},
    {"rindex", str_rindex},
    {"count", str_count},
    {"join", str_join},
    {"format", str_format},
    {"isdigit", str_isdigit},
    {"isdecimal", str_isdigit},
    {"isnumeric", str_isdigit},
    {"isalpha", str_isalpha},
    {"isalnum", str_isalnum},
    {"isspace", str_isspace},
    {"isupper", str_isupper},
    {"islower", str_islower},
    {"ljust", str_ljust},
    {"rjust", str_rjust},
    {"center", str_center},
    {"zfill", str_zfill},
    {NULL, NULL},
};
static const method_entry dict_methods[] = {
    {"items", dict_items}, {"keys", dict_keys}, {"values", dict_values}, {"get", dict_get},    {"copy", copy_object},
    {"clear", NULL},       {"pop", NULL},       {"popitem", NULL},       {"setdefault", NULL}, {"update", NULL},
    {NULL, NULL},
};
static const method_entry list_methods[] = {
    {"index", list_index}, {"count", list_count}, {"copy", copy_object}, {"append", NULL},
    {"clear", NULL},       {"pop", NULL},         {"reverse", NULL},     {"insert", NULL},
    {"sort", NULL},        {"extend", NULL},      {"remove", NULL},      {NULL, NULL},
};
static const method_entry tuple_methods[] = {{"index", list_index}, {"count", list_count}, {NULL, NULL}};
static const method_entry cycler_methods[] = {{"next", cycler_next}, {"reset", cycler_reset}, {NULL, NULL}};

rt_jbuiltin *rt_jfind_method(rt_jval object, const char *name, bool *forbidden) {
    const method_entry *entry;
    switch (object.type) {
    case RT_J_STRING: entry = string_methods; break;
    case RT_J_DICT: entry = dict_methods; break;
    case RT_J_LIST: entry = list_methods; break;
    case RT_J_TUPLE: entry = tuple_methods; break;
    case RT_J_CYCLER: entry = cycler_methods; break;
    default: *forbidden = false; return NULL;
    }
    while (entry->name && strcmp(entry->name, name) != 0) entry++;
    *forbidden = entry->name && !entry->call;
    return entry->call;
}
