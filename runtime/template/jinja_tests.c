/* The tests: `x is defined`, `x is divisibleby 3`, select('odd'), ... */
#include <string.h>

#include "runtime/template/jinja_eval.h"

static bool is_defined(rt_jval value) { return value.type != RT_J_UNDEFINED; }
static bool is_undefined(rt_jval value) { return value.type == RT_J_UNDEFINED; }
static bool is_none(rt_jval value) { return value.type == RT_J_NONE; }
static bool is_boolean(rt_jval value) { return value.type == RT_J_BOOL; }
static bool is_true(rt_jval value) { return value.type == RT_J_BOOL && value.as.boolean; }
static bool is_false(rt_jval value) { return value.type == RT_J_BOOL && !value.as.boolean; }
static bool is_integer(rt_jval value) { return value.type == RT_J_INT || value.type == RT_J_BIGINT; }
static bool is_float(rt_jval value) { return value.type == RT_J_FLOAT; }
static bool is_number(rt_jval value) { return value.type == RT_J_BIGINT || rt_jis_number(value); }
static bool is_string(rt_jval value) { return value.type == RT_J_STRING; }
static bool is_mapping(rt_jval value) { return value.type == RT_J_DICT; }
static bool is_escaped(rt_jval value) { return value.type == RT_J_STRING && value.as.string->markup; }
static bool is_sequence(rt_jval value) {
    int64_t length;
    return rt_jlength(value, &length) && value.type != RT_J_VIEW;
}

static bool has_case(rt_jrun *run, rt_jval value, bool upper) {
    rt_jval text = rt_jstr_of(run, value);
    return text.type == RT_J_STRING && rt_jwork_bytes(run, text.as.string->length) &&
           rt_jstring_all_cased(text.as.string, upper);
}

static bool is_upper(rt_jrun *run, rt_jval value) { return has_case(run, value, true); }
static bool is_lower(rt_jrun *run, rt_jval value) { return has_case(run, value, false); }

static bool leaves(rt_jrun *run, rt_jval value, rt_jval divisor, int64_t rest) {
    return rt_jequal(run, rt_jbinary(run, RT_JO_MOD, value, divisor), rt_jint(rest));
}

static bool is_odd(rt_jrun *run, rt_jval value) { return leaves(run, value, rt_jint(2), 1); }
static bool is_even(rt_jrun *run, rt_jval value) { return leaves(run, value, rt_jint(2), 0); }
static bool is_divisible(rt_jrun *run, rt_jval value, rt_jval divisor) { return leaves(run, value, divisor, 0); }

static bool is_same(rt_jrun *run, rt_jval a, rt_jval b) {
    if (a.type != b.type) return false;
    if (a.type <= RT_J_STRING) return rt_jequal(run, a, b);
    return a.as.object == b.as.object;
}

static bool is_name_of(rt_jrun *run, rt_jval value, bool (*exists)(const char *name)) {
    return value.type == RT_J_STRING && exists(rt_jcstr(run, value.as.string));
}
static bool is_filter(rt_jrun *run, rt_jval value) { return is_name_of(run, value, rt_jfilter_exists); }
static bool is_test(rt_jrun *run, rt_jval value) { return is_name_of(run, value, rt_jtest_exists); }

typedef struct test_entry {
    const char *name;
    bool (*plain)(rt_jval value); /* exactly one of the three, or none: then `operation` is a comparison */
    bool (*run)(rt_jrun *run, rt_jval value);
    bool (*with)(rt_jrun *run, rt_jval value, rt_jval other);
    rt_joperation operation;
} test_entry;

static const test_entry tests[] = {
    {"defined", is_defined, NULL, NULL, RT_JO_NONE},
    {"undefined", is_undefined, NULL, NULL, RT_JO_NONE},
    {"none", is_none, NULL, NULL, RT_JO_NONE},
    {"boolean", is_boolean, NULL, NULL, RT_JO_NONE},
    {"true", is_true, NULL, NULL, RT_JO_NONE},
    {"false", is_false, NULL, NULL, RT_JO_NONE},
    {"integer", is_integer, NULL, NULL, RT_JO_NONE},
    {"float", is_float, NULL, NULL, RT_JO_NONE},
    {"number", is_number, NULL, NULL, RT_JO_NONE},
    {"string", is_string, NULL, NULL, RT_JO_NONE},
    {"mapping", is_mapping, NULL, NULL, RT_JO_NONE},
    {"sequence", is_sequence, NULL, NULL, RT_JO_NONE},
    {"iterable", rt_jiterable, NULL, NULL, RT_JO_NONE},
    {"callable", rt_jcallable, NULL, NULL, RT_JO_NONE},
    {"escaped", is_escaped, NULL, NULL, RT_JO_NONE},
    {"upper", NULL, is_upper, NULL, RT_JO_NONE},
    {"lower", NULL, is_lower, NULL, RT_JO_NONE},
    {"odd", NULL, is_odd, NULL, RT_JO_NONE},
    {"even", NULL, is_even, NULL, RT_JO_NONE},
    {"filter", NULL, is_filter, NULL, RT_JO_NONE},
    {"test", NULL, is_test, NULL, RT_JO_NONE},
    {"divisibleby", NULL, NULL, is_divisible, RT_JO_NONE},
    {"sameas", NULL, NULL, is_same, RT_JO_NONE},
    {"in", NULL, NULL, NULL, RT_JO_IN},
    {"==", NULL, NULL, NULL, RT_JO_EQ},
    {"eq", NULL, NULL, NULL, RT_JO_EQ},
    {"equalto", NULL, NULL, NULL, RT_JO_EQ},
    {"!=", NULL, NULL, NULL, RT_JO_NE},
    {"ne", NULL, NULL, NULL, RT_JO_NE},
    {">", NULL, NULL, NULL, RT_JO_GT},
    {"gt", NULL, NULL, NULL, RT_JO_GT},
    {"greaterthan", NULL, NULL, NULL, RT_JO_GT},
    {">=", NULL, NULL, NULL, RT_JO_GE},
    {"ge", NULL, NULL, NULL, RT_JO_GE},
    {"<", NULL, NULL, NULL, RT_JO_LT},
    {"lt", NULL, NULL, NULL, RT_JO_LT},
    {"lessthan", NULL, NULL, NULL, RT_JO_LT},
    {"<=", NULL, NULL, NULL, RT_JO_LE},
    {"le", NULL, NULL, NULL, RT_JO_LE},
};

static const test_entry *find_test(const char *name) {
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (!strcmp(tests[i].name, name)) return &tests[i];
    }
    return NULL;
}

bool rt_jtest_exists(const char *name) { return find_test(name) != NULL; }

bool rt_jcall_test(rt_jrun *run, const char *name, rt_jval value, const rt_jargs *args) {
    const test_entry *test = find_test(name);
    rt_jbound bound;
    if (!test) {
        rt_jfail(run, BIS_ERR_INVALID, "no test named '%.60s'", name);
        return false;
    }
    bool alone = test->plain || test->run;
    if (!rt_jbind(run, args, name, alone ? "" : "other", alone ? 0 : 1, &bound)) return false;
    if (test->plain) return test->plain(value);
    if (test->run) return test->run(run, value);
    if (test->with) return test->with(run, value, bound.at[0]);
    return rt_jcompare_with(run, test->operation, value, bound.at[0]);
}
