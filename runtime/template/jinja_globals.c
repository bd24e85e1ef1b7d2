/* The functions a template can call by name. */
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "common/utf8.h"
#include "runtime/template/jinja_eval.h"

static _Atomic int64_t fixed_time = -1;

void rt_jinja_fix_time(int64_t unix_seconds) { atomic_store(&fixed_time, unix_seconds); }

static rt_jval call_raise_exception(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    (void)self;
    rt_jbound bound;
    if (!rt_jbind(run, args, "raise_exception", "message", 1, &bound)) return rt_jnone();
    rt_jval text = rt_jstr_of(run, bound.at[0]);
    if (!run->status) rt_jfail_raw(run, BIS_ERR_INVALID, "%s", rt_jcstr(run, text.as.string));
    return rt_jnone();
}

static rt_jval call_strftime_now(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    (void)self;
    rt_jbound bound;
    enum { TEXT_MAX = 1024 };
    if (!rt_jbind(run, args, "strftime_now", "format", 1, &bound)) return rt_jnone();
    const rt_jstr *format = rt_jarg_string(run, bound.at[0], NULL);
    if (!format || format->length > TEXT_MAX / 8) {
        rt_jfail(run, BIS_ERR_INVALID, "strftime_now() needs a format of at most %d bytes", TEXT_MAX / 8);
        return rt_jnone();
    }
    int64_t fixed = atomic_load(&fixed_time);
    time_t now = fixed < 0 ? time(NULL) : (time_t)fixed;
    struct tm parts;
    if (fixed < 0) localtime_r(&now, &parts);
    else gmtime_r(&now, &parts);
    char text[TEXT_MAX];
    size_t length = strftime(text, sizeof text, rt_jcstr(run, format), &parts);
    if (!bis_utf8_valid(text, length)) length = 0;
    return rt_jstring(run, text, length);
}

static uint64_t count_steps(int64_t from, int64_t to, int64_t step) {
    if (step > 0 && from < to) return ((uint64_t)to - (uint64_t)from - 1) / (uint64_t)step + 1;
    if (step < 0 && from > to) return ((uint64_t)from - (uint64_t)to - 1) / (0 - (uint64_t)step) + 1;
    return 0;
}

static rt_jval need_integer(rt_jrun *run, rt_jval value) {
    int64_t integer = 0;
    if (!rt_jinteger(value, &integer)) {
        rt_jfail(run, BIS_ERR_INVALID, "'%s' object cannot be interpreted as an integer", rt_jtype_name(value));
    }
    return rt_jint(integer);
}

static rt_jval call_range(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    (void)self;
    rt_jbound bound;
    if (!rt_jbind(run, args, "range", "start stop step", 1, &bound)) return rt_jnone();
    bool one = bound.at[1].type == RT_J_MISSING;
    int64_t start = one ? 0 : need_integer(run, bound.at[0]).as.integer;
    int64_t stop = need_integer(run, bound.at[one ? 0 : 1]).as.integer;
    int64_t step = bound.at[2].type == RT_J_MISSING ? 1 : need_integer(run, bound.at[2]).as.integer;
    if (step == 0) rt_jfail(run, BIS_ERR_INVALID, "range() arg 3 must not be zero");
    if (run->status) return rt_jnone();
    uint64_t count = count_steps(start, stop, step);
    if (count > RT_JINJA_RANGE_MAX) {
        rt_jfail(run, BIS_ERR_LIMIT, "a range of more than %d items", RT_JINJA_RANGE_MAX);
        return rt_jnone();
    }
    rt_jrange *range = rt_jalloc(run, 1, sizeof *range);
    if (!range) return rt_jnone();
    *range = (rt_jrange){start, step, (int64_t)count, stop};
    return (rt_jval){.type = RT_J_RANGE, .as.range = range};
}

static void add_pairs(rt_jrun *run, rt_jdict *dict, rt_jval pairs) {
    rt_jiter *iter = rt_jiter_of(run, pairs);
    rt_jval pair;
    while (rt_jiter_next(run, iter, &pair)) {
        rt_jlist *both = rt_jcollect(run, pair);
        if (both && both->count != 2) rt_jfail(run, BIS_ERR_INVALID, "dict() needs pairs of a key and a value");
        if (!both || run->status) return;
        rt_jdict_set(run, dict, both->items[0], both->items[1]);
    }
}

static void add_entries(rt_jrun *run, rt_jdict *dict, const rt_jdict *more) {
    for (size_t i = 0; i < more->count && !run->status; i++) {
        rt_jdict_set(run, dict, more->entries[i].key, more->entries[i].value);
    }
}

static rt_jval call_dict(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    (void)self;
    rt_jdict *dict = rt_jdict_new(run);
    if (args->count > 1) rt_jfail(run, BIS_ERR_INVALID, "dict() takes at most one positional argument");
    if (!dict || run->status) return rt_jnone();
    if (args->count && args->at[0].type == RT_J_DICT) add_entries(run, dict, args->at[0].as.dict);
    else if (args->count) add_pairs(run, dict, args->at[0]);
    if (args->named) add_entries(run, dict, args->named);
    return rt_jdict_value(dict);
}

static rt_jval call_namespace(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jval value = call_dict(run, self, args);
    if (value.type == RT_J_DICT) value.type = RT_J_NAMESPACE;
    return value;
}

static rt_jval make_cycler(rt_jrun *run, rt_jtype type, const rt_jval *items, size_t count) {
    rt_jcycler *cycler = rt_jalloc(run, 1, sizeof *cycler);
    if (!cycler) return rt_jnone();
    cycler->items = rt_jlist_new(run, count);
    for (size_t i = 0; i < count; i++) rt_jlist_add(run, cycler->items, items[i]);
    return (rt_jval){.type = type, .as.cycler = cycler};
}

static rt_jval call_cycler(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    (void)self;
    if (args->count == 0 || args->named) rt_jfail(run, BIS_ERR_INVALID, "cycler() needs at least one item");
    return make_cycler(run, RT_J_CYCLER, args->at, args->count);
}

static rt_jval call_joiner(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    (void)self;
    rt_jbound bound;
    if (!rt_jbind(run, args, "joiner", "sep", 0, &bound)) return rt_jnone();
    if (bound.at[0].type == RT_J_MISSING) bound.at[0] = rt_jstring_from(run, ", ");
    return make_cycler(run, RT_J_JOINER, bound.at, 1);
}

const rt_jfunction *rt_jfind_global(const char *name) {
    static const rt_jfunction functions[] = {
        {"raise_exception", call_raise_exception},
        {"strftime_now", call_strftime_now},
        {"range", call_range},
        {"namespace", call_namespace},
        {"dict", call_dict},
        {"cycler", call_cycler},
        {"joiner", call_joiner},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        if (!strcmp(functions[i].name, name)) return &functions[i];
    }
    return NULL;
}
