/* Filters that take or make sequences. Those that are generators in jinja2 are lazy here, too:
 * they do nothing until asked, can be used once only, and are always true. */
#include <string.h>

#include "runtime/template/jinja_filters.h"

/* ---- Attributes of items: 'a.b.0' ---- */

/* The keys of a path; digits are looked up as integers. */
static rt_jlist *read_path(rt_jrun *run, rt_jval path) {
    rt_jlist *parts = rt_jlist_new(run, 2);
    if (!rt_jgiven(path)) return parts;
    if (path.type != RT_J_STRING) {
        rt_jlist_add(run, parts, path);
        return parts;
    }
    const rt_jstr *text = path.as.string;
    for (size_t from = 0, to; from <= text->length && !run->status; from = to + 1) {
        const char *dot = memchr(text->bytes + from, '.', text->length - from);
        to = dot ? (size_t)(dot - text->bytes) : text->length;
        rt_jval part = rt_jstring_part(run, text, from, to), number;
        if (run->status) break;
        bool digits = to > from && strspn(rt_jcstr(run, part.as.string), "0123456789") == to - from;
        if (digits && rt_jparse_int(run, part.as.string, 10, &number)) part = number;
        rt_jlist_add(run, parts, part);
    }
    return parts;
}

/* `otherwise` (MISSING: none) replaces what is undefined on the way. */
static rt_jval follow(rt_jrun *run, const rt_jlist *path, rt_jval item, rt_jval otherwise) {
    for (size_t i = 0; path && i < path->count && !run->status; i++) {
        item = rt_jgetitem(run, item, path->items[i]);
        if (item.type == RT_J_UNDEFINED && rt_jgiven(otherwise)) item = otherwise;
    }
    return item;
}

static rt_jval ignore_case(rt_jrun *run, rt_jval value) {
    return value.type == RT_J_STRING ? rt_jstring_case(run, value.as.string, RT_J_LOWER) : value;
}

static rt_jval sort_key(rt_jrun *run, const rt_jlist *path, rt_jval item, bool case_sensitive) {
    rt_jval key = follow(run, path, item, (rt_jval){.type = RT_J_MISSING});
    return case_sensitive ? key : ignore_case(run, key);
}

/* ---- Lazy filters ---- */

static rt_jval make_generator(rt_jrun *run, rt_jval source, void *state,
                              bool (*next)(rt_jrun *run, rt_jiter *iter, rt_jval *out)) {
    rt_jiter *iter = rt_jalloc(run, 1, sizeof *iter);
    if (!iter) return rt_jnone();
    if (!rt_jtruth(source)) source = rt_jlist_value(rt_jlist_new(run, 0), RT_J_LIST);
    *iter = (rt_jiter){.next = next, .python_name = "generator", .inner = rt_jiter_of(run, source), .state = state};
    return rt_jiter_value(iter);
}

typedef struct item_filter {
    const rt_jlist *path; /* map: the attribute; select: the attribute the test is about; NULL: none */
    rt_jval otherwise;
    const char *name; /* of the filter or test; NULL: the item's truth */
    rt_jargs args;
    bool wanted;
    rt_jdict *seen;
    bool case_sensitive;
} item_filter;

static bool next_mapped(rt_jrun *run, rt_jiter *iter, rt_jval *out) {
    const item_filter *filter = iter->state;
    rt_jval item;
    if (!rt_jiter_next(run, iter->inner, &item)) return false;
    if (filter->name) *out = rt_jcall_filter(run, filter->name, item, &filter->args);
    else *out = follow(run, filter->path, item, filter->otherwise);
    return true;
}

static rt_jargs skip_args(const rt_jargs *args, size_t count) {
    return (rt_jargs){args->at + count, args->count - count, args->named};
}

static const char *name_argument(rt_jrun *run, const rt_jargs *args, size_t index) {
    const rt_jstr *name = rt_jarg_string(run, args->at[index], NULL);
    if (!name) rt_jfail(run, BIS_ERR_INVALID, "expected the name of a filter or test");
    return name ? rt_jcstr(run, name) : "";
}

rt_jval rt_jfilter_map(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    item_filter *filter = rt_jalloc(run, 1, sizeof *filter);
    if (!filter) return rt_jnone();
    if (args->count == 0) {
        rt_jbound bound;
        if (!rt_jbind(run, args, "map", "attribute default", 1, &bound)) return rt_jnone();
        *filter = (item_filter){.path = read_path(run, bound.at[0]), .otherwise = bound.at[1]};
    } else *filter = (item_filter){.name = name_argument(run, args, 0), .args = skip_args(args, 1)};
    return make_generator(run, value, filter, next_mapped);
}

static bool next_selected(rt_jrun *run, rt_jiter *iter, rt_jval *out) {
    const item_filter *filter = iter->state;
    rt_jval item;
    while (rt_jiter_next(run, iter->inner, &item)) {
        rt_jval subject = follow(run, filter->path, item, filter->otherwise);
        bool passed = filter->name ? rt_jcall_test(run, filter->name, subject, &filter->args) : rt_jtruth(subject);
        if (run->status) return false;
        if (passed != filter->wanted) continue;
        *out = item;
        return true;
    }
    return false;
}

static rt_jval select_items(rt_jrun *run, rt_jval value, const rt_jargs *args, bool attribute, bool wanted) {
    item_filter *filter = rt_jalloc(run, 1, sizeof *filter);
    if (!filter) return rt_jnone();
    size_t used = attribute;
    if (args->count < used) {
        rt_jfail(run, BIS_ERR_INVALID, "missing parameter for attribute name");
        return rt_jnone();
    }
    *filter = (item_filter){.wanted = wanted};
    if (attribute) filter->path = read_path(run, args->at[0]);
    if (args->count > used) {
        filter->name = name_argument(run, args, used);
        filter->args = skip_args(args, used + 1);
    }
    return make_generator(run, value, filter, next_selected);
}

rt_jval rt_jfilter_select(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    return select_items(run, value, args, false, true);
}
rt_jval rt_jfilter_reject(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    return select_items(run, value, args, false, false);
}
rt_jval rt_jfilter_selectattr(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    return select_items(run, value, args, true, true);
}
rt_jval rt_jfilter_rejectattr(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    return select_items(run, value, args, true, false);
}

static bool next_unique(rt_jrun *run, rt_jiter *iter, rt_jval *out) {
    const item_filter *filter = iter->state;
    rt_jval item;
    while (rt_jiter_next(run, iter->inner, &item)) {
        rt_jval key = sort_key(run, filter->path, item, filter->case_sensitive);
        if (run->status || rt_jdict_get(run, filter->seen, key)) continue;
        rt_jdict_set(run, filter->seen, key, rt_jnone());
        *out = item;
        return true;
    }
    return false;
}

rt_jval rt_jfilter_unique(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    item_filter *filter = rt_jalloc(run, 1, sizeof *filter);
    if (!filter || !rt_jbind(run, args, "unique", "case_sensitive attribute", 0, &bound)) return rt_jnone();
    *filter = (item_filter){
        .path = read_path(run, bound.at[1]), .seen = rt_jdict_new(run), .case_sensitive = rt_jtruth(bound.at[0])};
    if (rt_jiter_of(run, value) == NULL) return rt_jnone();
    return make_generator(run, value, filter, next_unique);
}

static bool next_inner(rt_jrun *run, rt_jiter *iter, rt_jval *out) { return rt_jiter_next(run, iter->inner, out); }

rt_jval rt_jfilter_items(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "items", "", 0, &bound)) return rt_jnone();
    if (value.type == RT_J_DICT) {
        bool forbidden;
        value = rt_jfind_method(value, "items", &forbidden)(run, value, args);
    } else if (value.type != RT_J_UNDEFINED) {
        rt_jfail(run, BIS_ERR_INVALID, "can only get item pairs from a mapping");
        return rt_jnone();
    }
    return make_generator(run, value, NULL, next_inner);
}

/* ---- Whole sequences ---- */

rt_jval rt_jfilter_list(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "list", "", 0, &bound)) return rt_jnone();
    return rt_jlist_value(rt_jcollect(run, value), RT_J_LIST);
}

rt_jval rt_jfilter_count(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    int64_t length = 0;
    if (rt_jbind(run, args, "length", "", 0, &bound) && !rt_jlength(value, &length)) {
        rt_jfail(run, BIS_ERR_INVALID, "object of type '%s' has no len()", rt_jtype_name(value));
    }
    return rt_jint(length);
}

rt_jval rt_jfilter_first(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    rt_jval item;
    if (!rt_jbind(run, args, "first", "", 0, &bound)) return rt_jnone();
    if (rt_jiter_next(run, rt_jiter_of(run, value), &item)) return item;
    return rt_jundefined_new(run, "No first item, sequence was empty.", "", NULL);
}

static void reverse_list(rt_jlist *list) {
    for (size_t i = 0; list && i < list->count / 2; i++) {
        rt_jval swap = list->items[i];
        list->items[i] = list->items[list->count - 1 - i];
        list->items[list->count - 1 - i] = swap;
    }
}

rt_jval rt_jfilter_last(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "last", "", 0, &bound)) return rt_jnone();
    if (value.type == RT_J_ITERATOR) {
        rt_jfail(run, BIS_ERR_INVALID, "'%s' object is not reversible", rt_jtype_name(value));
        return rt_jnone();
    }
    if (value.type == RT_J_STRING && value.as.string->chars) return rt_jgetitem(run, value, rt_jint(-1));
    rt_jlist *items = rt_jcollect(run, value);
    if (items && items->count) return items->items[items->count - 1];
    return rt_jundefined_new(run, "No last item, sequence was empty.", "", NULL);
}

rt_jval rt_jfilter_reverse(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "reverse", "", 0, &bound)) return rt_jnone();
    if (value.type == RT_J_STRING) return rt_jslice(run, value, rt_jnone(), rt_jnone(), rt_jint(-1));
    rt_jlist *items = rt_jcollect(run, value);
    reverse_list(items);
    rt_jval list = rt_jlist_value(items, RT_J_LIST);
    if (value.type == RT_J_ITERATOR || run->status) return list;
    rt_jiter *iter = rt_jiter_of(run, list);
    if (iter) iter->python_name = "reverseiterator";
    return rt_jiter_value(iter);
}

rt_jval rt_jfilter_join(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "join", "d attribute", 0, &bound)) return rt_jnone();
    rt_jval separator = bound.at[0].type == RT_J_MISSING ? rt_jstring_from(run, "") : rt_jstr_of(run, bound.at[0]);
    if (rt_jgiven(bound.at[1])) {
        rt_jlist *items = rt_jcollect(run, value), *path = read_path(run, bound.at[1]);
        for (size_t i = 0; items && i < items->count; i++) {
            items->items[i] = follow(run, path, items->items[i], (rt_jval){.type = RT_J_MISSING});
        }
        value = rt_jlist_value(items, RT_J_LIST);
    }
    if (run->status) return rt_jnone();
    return rt_jmarkup(run, rt_jstring_concat(run, separator.as.string, value, true), false);
}

/* ---- Order ---- */

/* The keys of a comma-separated list of paths, as a list. */
static rt_jval multi_key(rt_jrun *run, const rt_jlist *paths, rt_jval item, bool case_sensitive) {
    rt_jlist *keys = rt_jlist_new(run, paths->count);
    for (size_t i = 0; i < paths->count; i++) {
        rt_jlist_add(run, keys, sort_key(run, paths->items[i].as.list, item, case_sensitive));
    }
    return rt_jlist_value(keys, RT_J_LIST);
}

static rt_jlist *read_paths(rt_jrun *run, rt_jval attribute) {
    rt_jlist *paths = rt_jlist_new(run, 1);
    if (attribute.type != RT_J_STRING) {
        rt_jlist_add(run, paths, rt_jlist_value(read_path(run, attribute), RT_J_LIST));
        return paths;
    }
    const rt_jstr *text = attribute.as.string;
    for (size_t from = 0, to; from <= text->length && !run->status; from = to + 1) {
        const char *comma = memchr(text->bytes + from, ',', text->length - from);
        to = comma ? (size_t)(comma - text->bytes) : text->length;
        rt_jval path = rt_jstring_part(run, text, from, to);
        rt_jlist_add(run, paths, rt_jlist_value(read_path(run, path), RT_J_LIST));
    }
    return paths;
}

rt_jval rt_jfilter_sort(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "sort", "reverse case_sensitive attribute", 0, &bound)) return rt_jnone();
    rt_jlist *items = rt_jcollect(run, value), *paths = read_paths(run, bound.at[2]);
    rt_jval *keys = items ? rt_jalloc(run, items->count, sizeof *keys) : NULL;
    for (size_t i = 0; keys && paths && i < items->count && !run->status; i++) {
        keys[i] = multi_key(run, paths, items->items[i], rt_jtruth(bound.at[1]));
    }
    if (!items || run->status) return rt_jnone();
    rt_jsort(run, items->items, keys, items->count, rt_jtruth(bound.at[0]));
    return rt_jlist_value(items, RT_J_LIST);
}

rt_jval rt_jfilter_dictsort(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "dictsort", "case_sensitive by reverse", 0, &bound)) return rt_jnone();
    if (value.type != RT_J_DICT) {
        rt_jfail(run, BIS_ERR_INVALID, "dictsort needs a mapping, not '%s'", rt_jtype_name(value));
        return rt_jnone();
    }
    static const rt_jstr by_key = {"key", 3, 3, false};
    const rt_jstr *by = rt_jarg_string(run, bound.at[1], &by_key);
    bool key = by->length == 3 && !memcmp(by->bytes, "key", 3);
    if (!key && !(by->length == 5 && !memcmp(by->bytes, "value", 5))) {
        rt_jfail(run, BIS_ERR_INVALID, "dictsort can only sort by either 'key' or 'value'");
    }
    const rt_jdict *dict = value.as.dict;
    rt_jlist *pairs = rt_jlist_new(run, dict->count);
    rt_jval *keys = rt_jalloc(run, dict->count, sizeof *keys);
    for (size_t i = 0; i < dict->count && !run->status; i++) {
        rt_jval sort_by = key ? dict->entries[i].key : dict->entries[i].value;
        keys[i] = rt_jtruth(bound.at[0]) ? sort_by : ignore_case(run, sort_by);
        rt_jlist_add(run, pairs, rt_jpair(run, dict->entries[i].key, dict->entries[i].value));
    }
    if (run->status) return rt_jnone();
    rt_jsort(run, pairs->items, keys, pairs->count, rt_jtruth(bound.at[2]));
    return rt_jlist_value(pairs, RT_J_LIST);
}

static rt_jval find_extreme(rt_jrun *run, rt_jval value, const rt_jargs *args, const char *name, int sign) {
    rt_jbound bound;
    if (!rt_jbind(run, args, name, "case_sensitive attribute", 0, &bound)) return rt_jnone();
    rt_jiter *iter = rt_jiter_of(run, value);
    rt_jlist *path = read_path(run, bound.at[1]);
    rt_jval item, key, best = {.type = RT_J_MISSING}, best_key = rt_jnone();
    while (rt_jiter_next(run, iter, &item)) {
        key = sort_key(run, path, item, rt_jtruth(bound.at[0]));
        if (best.type != RT_J_MISSING && rt_jcompare(run, key, best_key, sign < 0 ? "<" : ">") * sign <= 0) continue;
        best = item;
        best_key = key;
    }
    return best.type != RT_J_MISSING ? best
                                     : rt_jundefined_new(run, "No aggregated item, sequence was empty.", "", NULL);
}

rt_jval rt_jfilter_min(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    return find_extreme(run, value, args, "min", -1);
}
rt_jval rt_jfilter_max(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    return find_extreme(run, value, args, "max", 1);
}

rt_jval rt_jfilter_sum(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "sum", "attribute start", 0, &bound)) return rt_jnone();
    rt_jval total = bound.at[1].type == RT_J_MISSING ? rt_jint(0) : bound.at[1], item;
    if (total.type == RT_J_STRING) rt_jfail(run, BIS_ERR_INVALID, "sum() can't sum strings");
    rt_jiter *iter = rt_jiter_of(run, value);
    rt_jlist *path = read_path(run, bound.at[0]);
    while (rt_jiter_next(run, iter, &item)) {
        total = rt_jbinary(run, RT_JO_ADD, total, follow(run, path, item, (rt_jval){.type = RT_J_MISSING}));
    }
    return total;
}

/* ---- Groups ---- */

static rt_jval as_iterator(rt_jrun *run, rt_jlist *list) {
    rt_jiter *iter = run->status ? NULL : rt_jiter_of(run, rt_jlist_value(list, RT_J_LIST));
    if (iter) iter->python_name = "generator";
    return rt_jiter_value(iter);
}

static int64_t group_size(rt_jrun *run, rt_jval value) {
    int64_t size = rt_jarg_int(run, value, 0);
    if (size < 1 || size > RT_JINJA_RANGE_MAX) rt_jfail(run, BIS_ERR_INVALID, "batch and slice need a count above 0");
    return size;
}

rt_jval rt_jfilter_batch(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "batch", "linecount fill_with", 1, &bound)) return rt_jnone();
    int64_t size = group_size(run, bound.at[0]);
    rt_jiter *iter = rt_jiter_of(run, value);
    rt_jlist *rows = rt_jlist_new(run, 8), *row = NULL;
    rt_jval item;
    while (rt_jiter_next(run, iter, &item)) {
        if (!row || (int64_t)row->count == size) {
            row = rt_jlist_new(run, 4);
            rt_jlist_add(run, rows, rt_jlist_value(row, RT_J_LIST));
        }
        rt_jlist_add(run, row, item);
    }
    while (row && rt_jgiven(bound.at[1]) && (int64_t)row->count < size && !run->status) {
        rt_jlist_add(run, row, bound.at[1]);
    }
    return as_iterator(run, rows);
}

rt_jval rt_jfilter_slice(rt_jrun *run, rt_jval value, const rt_jargs *args) {
    rt_jbound bound;
    if (!rt_jbind(run, args, "slice", "slices fill_with", 1, &bound)) return rt_jnone();
    size_t slices = (size_t)group_size(run, bound.at[0]), at = 0;
    rt_jlist *items = rt_jcollect(run, value), *rows = rt_jlist_new(run, 8);
    for (size_t i = 0; items && i < slices && !run->status; i++) {
        bool longer = i < items->count % slices;
        rt_jlist *row = rt_jlist_new(run, 4);
        for (size_t n = items->count / slices + longer; n > 0 && !run->status; n--) {
            rt_jlist_add(run, row, items->items[at++]);
        }
        if (!longer && rt_jgiven(bound.at[1])) rt_jlist_add(run, row, bound.at[1]);
        rt_jlist_add(run, rows, rt_jlist_value(row, RT_J_LIST));
    }
    return as_iterator(run, rows);
}
