#include <string.h>

#include "runtime/template/jinja_value.h"

#include "runtime/template/jinja_unicode.h"

static bool next_item(rt_jrun *run, rt_jiter *iter, rt_jval *out) {
    (void)run;
    const rt_jlist *list = iter->source.as.list;
    if (iter->position >= list->count) return false;
    *out = list->items[iter->position++];
    return true;
}

static bool next_char(rt_jrun *run, rt_jiter *iter, rt_jval *out) {
    const rt_jstr *string = iter->source.as.string;
    if (iter->position >= string->length) return false;
    size_t from = iter->position;
    rt_jchar_at(string->bytes, string->length, &iter->position);
    *out = rt_jmarkup(run, rt_jstring_part(run, string, from, iter->position), false);
    return true;
}

static bool next_entry(rt_jrun *run, rt_jiter *iter, rt_jval *out) {
    bool view = iter->source.type == RT_J_VIEW;
    const rt_jdict *dict = view ? iter->source.as.view->dict : iter->source.as.dict;
    rt_jview_kind kind = view ? iter->source.as.view->kind : RT_J_KEYS;
    if (iter->position >= dict->count) return false;
    const rt_jentry *entry = &dict->entries[iter->position++];
    if (kind == RT_J_ITEMS) *out = rt_jpair(run, entry->key, entry->value);
    else *out = kind == RT_J_KEYS ? entry->key : entry->value;
    return true;
}

rt_jval rt_jrange_at(const rt_jrange *range, int64_t index) { return rt_jint(range->start + index * range->step); }

static bool next_number(rt_jrun *run, rt_jiter *iter, rt_jval *out) {
    (void)run;
    const rt_jrange *range = iter->source.as.range;
    if ((int64_t)iter->position >= range->count) return false;
    *out = rt_jrange_at(range, (int64_t)iter->position++);
    return true;
}

static bool next_nothing(rt_jrun *run, rt_jiter *iter, rt_jval *out) {
    (void)run, (void)iter, (void)out;
    return false;
}

bool rt_jiterable(rt_jval value) {
    switch (value.type) {
    case RT_J_UNDEFINED:
    case RT_J_STRING:
    case RT_J_LIST:
    case RT_J_TUPLE:
    case RT_J_DICT:
    case RT_J_VIEW:
    case RT_J_RANGE:
    case RT_J_ITERATOR: return true;
    default: return false;
    }
}

rt_jiter *rt_jiter_of(rt_jrun *run, rt_jval value) {
    if (value.type == RT_J_ITERATOR) return value.as.iterator;
    if (!rt_jiterable(value)) {
        rt_jfail(run, BIS_ERR_INVALID, "'%s' object is not iterable", rt_jtype_name(value));
        return NULL;
    }
    rt_jiter *iter = rt_jalloc(run, 1, sizeof *iter);
    if (!iter) return NULL;
    iter->source = value;
    iter->python_name = "iterator";
    switch (value.type) {
    case RT_J_STRING: iter->next = next_char; break;
    case RT_J_LIST:
    case RT_J_TUPLE: iter->next = next_item; break;
    case RT_J_DICT:
    case RT_J_VIEW: iter->next = next_entry; break;
    case RT_J_RANGE: iter->next = next_number; break;
    default: iter->next = next_nothing;
    }
    return iter;
}

/* Iterators can be stacked without end (x = x|map(...) in a loop), so this recursion is bounded, too. */
bool rt_jiter_next(rt_jrun *run, rt_jiter *iter, rt_jval *out) {
    if (!iter || !rt_jwork(run, 1) || !rt_jenter(run)) return false;
    bool more = iter->next(run, iter, out);
    rt_jleave(run);
    return more && !run->status;
}

rt_jval rt_jiter_value(rt_jiter *iter) {
    return iter ? (rt_jval){.type = RT_J_ITERATOR, .as.iterator = iter} : rt_jnone();
}

rt_jlist *rt_jcollect(rt_jrun *run, rt_jval value) {
    int64_t known;
    rt_jiter *iter = rt_jiter_of(run, value);
    rt_jlist *list = rt_jlist_new(run, rt_jlength(value, &known) ? (size_t)known : 8);
    rt_jval item;
    while (rt_jiter_next(run, iter, &item)) rt_jlist_add(run, list, item);
    return list;
}

bool rt_jlength(rt_jval value, int64_t *out) {
    switch (value.type) {
    case RT_J_UNDEFINED: *out = 0; return true;
    case RT_J_STRING: *out = (int64_t)value.as.string->chars; return true;
    case RT_J_LIST:
    case RT_J_TUPLE: *out = (int64_t)value.as.list->count; return true;
    case RT_J_DICT: *out = (int64_t)value.as.dict->count; return true;
    case RT_J_VIEW: *out = (int64_t)value.as.view->dict->count; return true;
    case RT_J_RANGE: *out = value.as.range->count; return true;
    default: return false;
    }
}

static bool string_contains(rt_jrun *run, const rt_jstr *whole, rt_jval part) {
    if (part.type != RT_J_STRING) {
        rt_jfail(run, BIS_ERR_INVALID, "'in <string>' requires string as left operand, not %s", rt_jtype_name(part));
        return false;
    }
    if (!rt_jwork_bytes(run, whole->length)) return false;
    return part.as.string->length == 0 ||
           memmem(whole->bytes, whole->length, part.as.string->bytes, part.as.string->length) != NULL;
}

bool rt_jcontains(rt_jrun *run, rt_jval container, rt_jval item) {
    if (container.type == RT_J_STRING) return string_contains(run, container.as.string, item);
    if (container.type == RT_J_DICT) return rt_jdict_get(run, container.as.dict, item) != NULL;
    if (!rt_jiterable(container)) {
        rt_jfail(run, BIS_ERR_INVALID, "argument of type '%s' is not iterable", rt_jtype_name(container));
        return false;
    }
    rt_jiter *iter = rt_jiter_of(run, container);
    rt_jval candidate;
    while (rt_jiter_next(run, iter, &candidate)) {
        if (rt_jequal(run, candidate, item)) return true;
    }
    return false;
}
