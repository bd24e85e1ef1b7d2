#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "runtime/template/jinja.h"
#include "tests/support/python_cases.h"

enum { FIXED_TIME = 1721999109 }; /* 2024-07-26 13:05:09 UTC, as in compare.py */

static bis_status render_bytes(const char *source, size_t length, const char *variables, bis_buf *out,
                               bis_error *error) {
    rt_jinja *jinja;
    rt_jrun *run;
    bis_status status = rt_jinja_parse("test", source, length, &jinja, error);
    if (status) return status;
    status = rt_jinja_begin(jinja, &run, error);
    if (!status) {
        status = rt_jinja_set_members(run, variables, error);
        if (!status) status = rt_jinja_render(run, out, error);
        rt_jinja_end(run);
    }
    rt_jinja_free(jinja);
    return status;
}

static bis_status render(const char *source, const char *variables, bis_buf *out, bis_error *error) {
    return render_bytes(source, strlen(source), variables, out, error);
}

/* ---- Against Python ---- */

static bool same_as_python(const python_cases *cases, size_t i) {
    const char *source = python_case_text(cases, i, "source"), *expected = python_case_text(cases, i, "expected");
    bis_buf out = {0};
    bis_error error = {0};
    bis_status status = render(source, python_case_text(cases, i, "variables"), &out, &error);
    bool same = expected ? !status && !strcmp(bis_buf_cstr(&out), expected) : status != BIS_OK;
    if (!same) {
        print_message("%s\n  Python: %s\n  here:   %s\n", source,
                      expected ? expected : python_case_text(cases, i, "error"),
                      status ? error.text : bis_buf_cstr(&out));
    }
    bis_buf_free(&out);
    return same;
}

static void snippets_render_as_in_python(void **state) {
    (void)state;
    python_cases cases = {0};
    const char *problem = python_cases_load("snippets", NULL, &cases);
    if (problem) {
        print_message("skipped: %s\n", problem);
        skip();
    }
    rt_jinja_fix_time(FIXED_TIME);
    size_t wrong = 0;
    for (size_t i = 0; i < cases.list->count; i++) wrong += !same_as_python(&cases, i);
    print_message("%zu snippets compared with Python\n", cases.list->count);
    assert_true(cases.list->count > 250);
    python_cases_free(&cases);
    rt_jinja_fix_time(-1);
    assert_int_equal(wrong, 0);
}

/* ---- Without Python ---- */

static void core_of_the_language_works(void **state) {
    (void)state;
    static const char variables[] = "{\"name\": \"Ann\", \"items\": [3, 1.0, \"z\"], \"d\": {\"k\": null, \"q\": "
                                    "\"\\ud83c\\udf89\"}, \"big\": 12345678901234567890, \"dup\": 1, \"dup\": 2}";
    static const struct {
        const char *source, *expected;
    } cases[] = {
        {"Hello {{ name }}!", "Hello Ann!"},
        {"{{ items }} {{ d }}", "[3, 1.0, 'z'] {'k': None, 'q': '\xf0\x9f\x8e\x89'}"},
        {"{{ items|tojson }} {{ d|tojson }}", "[3, 1.0, \"z\"] {\"k\": null, \"q\": \"\xf0\x9f\x8e\x89\"}"},
        {"{{ big }} {{ dup }}", "12345678901234567890 2"},
        {"{{ d.q|length }} {{ ('a' ~ d.q ~ 'b')[1:2] }}", "1 \xf0\x9f\x8e\x89"},
        {"{% for i in items if i != 3 %}{{ loop.index }}{{ i }} {% endfor %}", "11.0 2z "},
        {"  {% if true %}\n  x\n  {% endif %}\ny\n", "  x\ny"},
        {"a {%- if true -%} b {%- endif -%} c", "abc"},
        {"{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(b=3, a=4) }}", "1243"},
        {"{% set ns = namespace(n=0) %}{% for i in items %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "3"},
        {"{% set x = 1 %}{% for i in items %}{% set x = 2 %}{% endfor %}{{ x }}", "1"},
        {"{{ 0.1 + 0.2 }} {{ 1e16 }} {{ 7 // -2 }} {{ 7 % -2 }}", "0.30000000000000004 1e+16 -4 -1"},
        {"{{ missing }}{{ missing is defined }}{{ d.missing|default('no') }}", "Falseno"},
        {"{% raw %}{{ x }}{% endraw %}{# gone #}", "{{ x }}"},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bis_buf out = {0};
        bis_error error = {0};
        if (render(cases[i].source, variables, &out, &error)) fail_msg("%s: %s", cases[i].source, error.text);
        assert_string_equal(bis_buf_cstr(&out), cases[i].expected);
        bis_buf_free(&out);
    }
}

static void strftime_now_uses_the_fixed_time(void **state) {
    (void)state;
    bis_buf out = {0};
    rt_jinja_fix_time(FIXED_TIME);
    assert_int_equal(render("{{ strftime_now('%d %b %Y %H:%M') }}", "{}", &out, NULL), BIS_OK);
    assert_string_equal(bis_buf_cstr(&out), "26 Jul 2024 13:05");
    rt_jinja_fix_time(-1);
    bis_buf_clear(&out);
    assert_int_equal(render("{{ strftime_now('%Y')|int > 2024 }}", "{}", &out, NULL), BIS_OK);
    assert_string_equal(bis_buf_cstr(&out), "True");
    bis_buf_free(&out);
}

static void errors_say_where_and_what(void **state) {
    (void)state;
    static const struct {
        const char *source;
        bis_status status;
        const char *text;
    } cases[] = {
        {"a\n{{ x.y }}", BIS_ERR_INVALID, "test, line 2: 'x' is undefined"},
        {"{% if true %}\n\n{{ d.a.b }}{% endif %}", BIS_ERR_INVALID,
         "test, line 3: 'dict object' has no attribute or element 'a'"},
        {"\n\n{% for x in y %}", BIS_ERR_INVALID, "test, line 3: expected 'endfor', got 'the end of the template'"},
        {"{{ 1 + }}", BIS_ERR_INVALID, "test, line 1: expected an expression, got '}}'"},
        {"{{ 'a' + 1 }}", BIS_ERR_INVALID, "test, line 1: unsupported operand types for +: 'str' and 'int'"},
        {"x\n{{ raise_exception('Only\nthis text') }}", BIS_ERR_INVALID, "Only this text"},
        {"{% include 'x' %}", BIS_ERR_UNSUPPORTED,
         "test, line 1: the tag 'include' is not supported in chat templates"},
        {"{% for x in d recursive %}{% endfor %}", BIS_ERR_UNSUPPORTED,
         "test, line 1: recursive loops are not supported: use a macro"},
        {"{{ 1|nosuch }}", BIS_ERR_INVALID, "test, line 1: no filter named 'nosuch'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bis_buf out = {0};
        bis_error error = {0};
        bis_buf_puts(&out, "before");
        assert_int_equal(render(cases[i].source, "{\"d\": {}}", &out, &error), cases[i].status);
        assert_int_equal(error.status, cases[i].status);
        assert_string_equal(error.text, cases[i].text);
        assert_string_equal(bis_buf_cstr(&out), "before"); /* nothing of a failed rendering is left */
        bis_buf_free(&out);
    }
}

/* ---- Limits ---- */

/* Two lists of 61 levels whose parts are all shared: comparing them without a bound would take 2^60 steps. */
static const char equal_piles[] = "{% set out = namespace(v=[]) %}{% macro pile() %}{% set ns = namespace(s=[1]) %}"
                                  "{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}"
                                  "{% set out.v = out.v + [ns.s] %}{% endmacro %}"
                                  "{{ pile() }}{{ pile() }}{{ out.v[0] == out.v[1] }}";
static const char stacked_iterators[] = "{% set ns = namespace(g=[1, 2]) %}{% for i in range(9999) %}"
                                        "{% set ns.g = ns.g|map('upper') %}{% endfor %}{{ ns.g|list }}";
static const char growing_replacement[] = "{% set ns = namespace(s='xx') %}{% for i in range(60) %}"
                                          "{% set ns.s = ns.s.replace('x', ns.s) %}{% endfor %}";
static const char printed_pile[] = "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}"
                                   "{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}";
static const char hashed_pile[] = "{% set ns = namespace(s=(1,)) %}{% for i in range(60) %}"
                                  "{% set ns.s = (ns.s, ns.s) %}{% endfor %}{{ {ns.s: 1} }}";
static const char deep_list[] = "{% set ns = namespace(g=[1]) %}{% for i in range(9999) %}"
                                "{% set ns.g = [ns.g] %}{% endfor %}{{ ns.g }}";

static void endless_templates_reach_a_limit(void **state) {
    (void)state;
    static const char *const sources[] = {
        "{{ range(10 ** 9) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ '%10000000s' % 'x' }}",
        "{{ 'x'.ljust(10 ** 9) }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        growing_replacement,
        printed_pile,
        hashed_pile,
        equal_piles,
        deep_list,
        stacked_iterators,
        "{% for i in range(99999) %}{{ 'some text that is written again and again' * 9 }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% set ns = namespace() %}{% set ns.self = ns %}{{ ns }}",
        "{{ 9223372036854775807 + 1 }}",
        "{{ 2 ** 64 }}",
        "{{ 12345678901234567890 + 1 }}",
        "{{ range(9)[::2 ** 62][::4] }}",
    };
    for (size_t i = 0; i < sizeof sources / sizeof *sources; i++) {
        bis_buf out = {0};
        bis_error error = {0};
        bis_status status = render(sources[i], "{}", &out, &error);
        if (status != BIS_ERR_LIMIT) fail_msg("%s: %s %s", sources[i], bis_status_name(status), error.text);
        assert_int_equal(out.length, 0);
        bis_buf_free(&out);
    }
}

static void append_times(bis_buf *buf, const char *text, int times) {
    while (times-- > 0) bis_buf_puts(buf, text);
}

static void deeply_nested_templates_are_refused(void **state) {
    (void)state;
    static const char *const parts[][3] = {
        {"{{ ", "(", " }}"},
        {"{{ ", "[", " }}"},
        {"{{ ", "-", "1 }}"},
        {"{{ ", "not ", "1 }}"},
        {"{{ 1", " + 1", " }}"},
        {"{{ x", ".y", " }}"},
        {"{{ x", "|f", " }}"},
        {"{{ x", "()", " }}"},
        {"", "{% if x %}", ""},
        {"", "{% for x in y %}", ""},
        {"{{ 1", " if 1 else 1", " }}"},
        {"{{ x", "[x", " }}"},
        {"{{ 1", " and 1", " }}"},
        {"{{ x", " is x", " }}"},
        {"{{ {", "1:{", " }}"},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        bis_buf source = {0}, out = {0};
        bis_buf_puts(&source, parts[i][0]);
        append_times(&source, parts[i][1], 50000);
        bis_buf_puts(&source, parts[i][2]);
        assert_int_not_equal(render(bis_buf_cstr(&source), "{}", &out, NULL), BIS_OK);
        bis_buf_free(&source);
        bis_buf_free(&out);
    }
}

static void long_but_flat_templates_are_fine(void **state) {
    (void)state;
    bis_buf source = {0}, out = {0};
    append_times(&source, "{% if n == 1 %}a{% elif n == 2 %}b{% else %}c{% endif %}{{ n ~ 1 ~ 2 ~ 3 + 4 }}", 5000);
    bis_buf_puts(&source, "{{ 1");
    append_times(&source, " + 1", 300);
    bis_buf_puts(&source, " }}{{ 'a'");
    append_times(&source, " ~ 'a'", 5000);
    bis_buf_puts(&source, "}}");
    assert_int_not_equal(render(bis_buf_cstr(&source), "{\"n\": 1}", &out, NULL), BIS_OK); /* '1' + 4 */
    bis_buf_clear(&source);
    append_times(&source, "{% if n == 1 %}a{% elif n == 2 %}b{% else %}c{% endif %}{{ n ~ 1 ~ 2 }}", 5000);
    bis_buf_puts(&source, "{{ 1");
    append_times(&source, " + 1", 300);
    bis_buf_puts(&source, "}}");
    assert_int_equal(render(bis_buf_cstr(&source), "{\"n\": 1}", &out, NULL), BIS_OK);
    assert_string_equal(bis_buf_cstr(&out) + 4 * 5000, "301");
    bis_buf_free(&source);
    bis_buf_free(&out);
}

static void too_long_or_binary_source_is_refused(void **state) {
    (void)state;
    char *source = malloc(RT_JINJA_SOURCE_MAX + 1);
    bis_buf out = {0};
    assert_non_null(source);
    memset(source, 'x', RT_JINJA_SOURCE_MAX + 1);
    assert_int_equal(render_bytes(source, RT_JINJA_SOURCE_MAX + 1, "{}", &out, NULL), BIS_ERR_LIMIT);
    assert_int_equal(render_bytes(source, RT_JINJA_SOURCE_MAX, "{}", &out, NULL), BIS_OK);
    assert_int_equal(out.length, RT_JINJA_SOURCE_MAX);
    source[5] = '\0';
    assert_int_equal(render_bytes(source, 10, "{}", &out, NULL), BIS_ERR_INVALID);
    source[5] = (char)0xff;
    assert_int_equal(render_bytes(source, 10, "{}", &out, NULL), BIS_ERR_INVALID);
    bis_buf_free(&out);
    free(source);
}

/* ---- JSON ---- */

static void bad_json_is_refused(void **state) {
    (void)state;
    static const char *const texts[] = {
        "",
        "{",
        "[]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{\"a\":01}",
        "{\"a\":1.}",
        "{\"a\":.5}",
        "{\"a\":+1}",
        "{\"a\":-}",
        "{\"a\":1e}",
        "{\"a\":tru}",
        "{} x",
        "{\"a\":\"",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\\u12\"}",
        "{\"a\":\"\n\"}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":\"\\udc00x\"}",
        "{\"a\":\"\\u0000\"}",
        "{\"a\":\"\xff\"}",
        "{\"a\":\"\xc3\"}",
        "{\"a\":\"\xed\xa0\x80\"}",
        "{\"a\":NaN}",
        "{\"a\":[1 2]}",
        "{\"a\":[1,]}",
        "{\"a\":\"\\",
        "nul",
        "\"text\"",
        "{\"a\":'b'}",
        "{\"a\":1}}",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        bis_buf out = {0};
        bis_error error = {0};
        if (render("{{ a }}", texts[i], &out, &error) != BIS_ERR_INVALID) fail_msg("accepted: %s", texts[i]);
        assert_non_null(strstr(error.text, "the template variables"));
        bis_buf_free(&out);
    }
}

static void json_nesting_is_bounded(void **state) {
    (void)state;
    for (int depth = 50; depth <= 100000; depth = depth == 50 ? 98 : depth == 98 ? 100 : depth * 10) {
        bis_buf json = {0}, out = {0};
        bis_buf_puts(&json, "{\"a\":");
        append_times(&json, "[", depth);
        append_times(&json, "]", depth);
        bis_buf_puts(&json, "}");
        bis_status expected = depth + 1 <= RT_JINJA_JSON_DEPTH_MAX ? BIS_OK : BIS_ERR_INVALID;
        assert_int_equal(render("{{ a }}", bis_buf_cstr(&json), &out, NULL), expected);
        bis_buf_free(&json);
        bis_buf_free(&out);
    }
}

/* ---- Failing allocations, threads ---- */

static const char everything[] =
    "{% macro m(a, b='d') %}{% for k, v in a.items() %}{{ k }}={{ v|tojson(indent=2) }}{{ loop.last }}{% endfor %}"
    "{{ caller('c') if caller else '' }}{% endmacro %}{% set ns = namespace(t='', l=[]) %}"
    "{% for u in users|sort(attribute='age') if u.age > 1 %}{% set ns.t = ns.t ~ u.name|upper ~ '%s-%5.1f' % (u.name, "
    "u.age) %}"
    "{% set ns.l = ns.l + [u.name] %}{{ loop.length }}{{ loop.nextitem }}{{ loop.changed(u) }}{% endfor %}"
    "{% call(x) m({'a': [1, 2.5, none], 'b': {'c': 'd'}}) %}{{ x }}{% endcall %}{% set block %}x{{ ns.t }}{% endset %}"
    "{{ block|replace('a', 'b')|trim|title|indent(2) }}{{ ns.l|map('lower')|join(',') }}{{ "
    "users|selectattr('age')|list }}"
    "{{ 'a,b'.split(',')[::-1] }}{{ users|map(attribute='name')|unique|list }}{{ '{:>8}'.format('x') }}{{ "
    "strftime_now('%Y') }}"
    "{{ range(9)|batch(2)|list }}{{ ('<' ~ ns.t)|e }}{% generation %}g{% endgeneration %}{% filter upper %}f{% "
    "endfilter %}";
static const char users[] = "{\"users\": [{\"name\": \"B\\u00e9a\", \"age\": 5.5}, {\"name\": \"Al\", \"age\": 3}]}";

static void failing_allocations_are_reported(void **state) {
    (void)state;
    long failures = 0;
    for (long successes = 0;; successes++) {
        bis_buf out = {0};
        bis_error error = {0};
        bis_alloc_fail_after(successes);
        bis_status status = render(everything, users, &out, &error);
        bis_alloc_fail_after(-1);
        bool done = status == BIS_OK;
        if (!done) {
            assert_int_equal(status, BIS_ERR_NOMEM);
            assert_true(error.text[0] != '\0');
            failures++;
        }
        bis_buf_free(&out);
        if (done) break;
    }
    assert_true(failures > 20);
}

enum { THREADS = 4, ROUNDS = 25 };

typedef struct worker {
    const rt_jinja *jinja;
    int number, wrong;
} worker;

static void *render_many(void *argument) {
    worker *self = argument;
    for (int round = 0; round < ROUNDS; round++) {
        char variables[160], expected[64];
        snprintf(variables, sizeof variables, "{\"who\": \"t%d\", \"n\": %d}", self->number, round);
        snprintf(expected, sizeof expected, "T%d:%d;T%d:%d;", self->number, round, self->number, round + 1);
        rt_jrun *run;
        bis_buf out = {0};
        if (rt_jinja_begin(self->jinja, &run, NULL)) return NULL;
        bis_status status = rt_jinja_set_members(run, variables, NULL);
        if (!status) status = rt_jinja_render(run, &out, NULL);
        self->wrong += status != BIS_OK || strcmp(bis_buf_cstr(&out), expected) != 0;
        rt_jinja_end(run);
        bis_buf_free(&out);
    }
    return NULL;
}

static void several_threads_render_one_template(void **state) {
    (void)state;
    static const char source[] = "{% macro show(i) %}{{ who|upper }}:{{ n + i }};{% endmacro %}"
                                 "{% for i in range(2) %}{{ show(i) }}{% endfor %}";
    rt_jinja *jinja;
    pthread_t threads[THREADS];
    worker workers[THREADS];
    assert_int_equal(rt_jinja_parse("test", source, strlen(source), &jinja, NULL), BIS_OK);
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (worker){jinja, i, 0};
        assert_int_equal(pthread_create(&threads[i], NULL, render_many, &workers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(workers[i].wrong, 0);
    }
    rt_jinja_free(jinja);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(snippets_render_as_in_python),
        cmocka_unit_test(core_of_the_language_works),
        cmocka_unit_test(strftime_now_uses_the_fixed_time),
        cmocka_unit_test(errors_say_where_and_what),
        cmocka_unit_test(endless_templates_reach_a_limit),
        cmocka_unit_test(deeply_nested_templates_are_refused),
        cmocka_unit_test(long_but_flat_templates_are_fine),
        cmocka_unit_test(too_long_or_binary_source_is_refused),
        cmocka_unit_test(bad_json_is_refused),
        cmocka_unit_test(json_nesting_is_bounded),
        cmocka_unit_test(failing_allocations_are_reported),
        cmocka_unit_test(several_threads_render_one_template),
    };
    return cmocka_run_group_tests_name("jinja", tests, NULL, NULL);
}
