/* Cutting text into words, and normalizing it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/tokenizer/pretokenizer.h"
#include "runtime/tokenizer/tokenizer_normalizer.h"

#define MARK "\xe2\x96\x81"

static const char llama3_words[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
                                   " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/* The pieces, joined by '|'. */
static void assert_pieces(const rt_pretokenizer *pretokenizer, const char *text, bool at_start, const char *expected) {
    rt_pieces pieces = {0};
    bis_buf joined = {0};
    bis_error error;
    if (rt_pretokenizer_apply(pretokenizer, text, strlen(text), at_start, &pieces, &error)) fail_msg("%s", error.text);
    for (size_t i = 0; i < pieces.count; i++) {
        if (i) bis_buf_putc(&joined, '|');
        bis_buf_append(&joined, pieces.text.data + pieces.list[i].start, pieces.list[i].length);
    }
    assert_string_equal(bis_buf_cstr(&joined), expected);
    bis_buf_free(&joined);
    rt_pieces_free(&pieces);
}

static void add_split(rt_pretokenizer *pretokenizer, const char *pattern, bool literal, bool invert,
                      rt_split_behaviour behaviour) {
    bis_error error;
    if (rt_pretokenizer_split(pretokenizer, pattern, literal, invert, behaviour, &error)) fail_msg("%s", error.text);
}

static void every_behaviour_cuts_its_own_way(void **state) {
    (void)state;
    static const struct {
        const char *pattern;
        bool literal, invert;
        rt_split_behaviour behaviour;
        const char *text, *expected;
    } cases[] = {
        {"-", true, false, RT_SPLIT_ISOLATED, "the-final--countdown", "the|-|final|-|-|countdown"},
        {"-", true, false, RT_SPLIT_REMOVED, "-the-final--countdown-", "the|final|countdown"},
        {"-", true, false, RT_SPLIT_MERGED_WITH_PREVIOUS, "-the-final--countdown", "-|the-|final-|-|countdown"},
        {"-", true, false, RT_SPLIT_MERGED_WITH_NEXT, "the-final--countdown-", "the|-final|-|-countdown|-"},
        {"-", true, false, RT_SPLIT_CONTIGUOUS, "the-final--countdown", "the|-|final|--|countdown"},
        {"[a-z]+", false, true, RT_SPLIT_REMOVED, "the-final--countdown", "the|final|countdown"},
        {"[a-z]+", false, true, RT_SPLIT_MERGED_WITH_PREVIOUS, "the-final--x", "the-|final--|x"},
        {"x*", false, false, RT_SPLIT_ISOLATED, "axxb", "a|xx|b"}, /* empty matches cut nothing out */
        {".", true, false, RT_SPLIT_ISOLATED, "a.b", "a|.|b"},     /* a plain string, not a pattern */
        {"", false, false, RT_SPLIT_ISOLATED, "ab", "a|b"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rt_pretokenizer pretokenizer = {0};
        add_split(&pretokenizer, cases[i].pattern, cases[i].literal, cases[i].invert, cases[i].behaviour);
        assert_pieces(&pretokenizer, cases[i].text, true, cases[i].expected);
        rt_pretokenizer_free(&pretokenizer);
    }
}

static void words_of_llama3_are_cut_at_the_known_places(void **state) {
    (void)state;
    static const struct {
        const char *text, *expected;
    } cases[] = {
        {"I'll DON'T", "I|'ll| DON|'T"},
        {"a  b\n\n c", "a| | b|\n\n| c"},
        {"12345 678", "123|45| |678"},
        {"x=1;\ny", "x|=|1|;\n|y"},
        {"end  ", "end|  "},
        {"\xe6\x88\x91\xe6\x83\xb3,\xc3\xa9t\xc3\xa9", "\xe6\x88\x91\xe6\x83\xb3|,\xc3\xa9t\xc3\xa9"},
        {"a\xc2\xa0\xc2\xa0z", "a|\xc2\xa0|\xc2\xa0z"}, /* a no-break space is white space */
        {"!\xe1\xa0\x8e?", "!\xe1\xa0\x8e?"},           /* U+180E is not */
        {"'\xc5\xbfq", "'\xc5\xbf|q"},                  /* the long s is an s without regard to case */
    };
    rt_pretokenizer pretokenizer = {0};
    add_split(&pretokenizer, llama3_words, false, false, RT_SPLIT_ISOLATED);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_pieces(&pretokenizer, cases[i].text, true, cases[i].expected);
    }
    rt_pretokenizer_free(&pretokenizer);
}

static void prefixes_come_before_what_lacks_them(void **state) {
    (void)state;
    rt_pretokenizer every = {0}, first = {0};
    bis_error error;
    assert_int_equal(rt_pretokenizer_replace_space(&every, MARK, &error), BIS_OK);
    assert_int_equal(rt_pretokenizer_prefix(&every, MARK, RT_PREFIX_EVERY, &error), BIS_OK);
    add_split(&every, MARK, true, false, RT_SPLIT_MERGED_WITH_NEXT);
    assert_int_equal(rt_pretokenizer_prefix(&first, " ", RT_PREFIX_FIRST, &error), BIS_OK);
    assert_pieces(&every, "a b  c", false, MARK "a|" MARK "b|" MARK "|" MARK "c");
    assert_pieces(&every, " a", false, MARK "a");
    assert_pieces(&first, "a", true, " a");
    assert_pieces(&first, "a", false, "a");
    assert_pieces(&first, " a", true, " a");
    rt_pretokenizer_free(&every);
    rt_pretokenizer_free(&first);
}

static void patterns_that_never_end_are_stopped(void **state) {
    (void)state;
    char text[64];
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = 'b';
    rt_pretokenizer pretokenizer = {0};
    rt_pieces pieces = {0};
    bis_error error;
    add_split(&pretokenizer, "^(a+)+$", false, false, RT_SPLIT_ISOLATED);
    assert_int_equal(rt_pretokenizer_apply(&pretokenizer, text, sizeof text, true, &pieces, &error), BIS_ERR_LIMIT);
    rt_pieces_free(&pieces);
    rt_pretokenizer_free(&pretokenizer);
}

static void wrong_patterns_are_refused_with_their_reason(void **state) {
    (void)state;
    static const char *const patterns[] = {"(", "[", "*", "\\p{Nonsense}", "\\C", "(?<n", "\xff"};
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        rt_pretokenizer pretokenizer = {0};
        bis_error error = {0};
        assert_int_equal(rt_pretokenizer_split(&pretokenizer, patterns[i], false, false, RT_SPLIT_ISOLATED, &error),
                         BIS_ERR_FORMAT);
        assert_non_null(strstr(error.text, "is not accepted: "));
        assert_int_equal(pretokenizer.count, 0);
        rt_pretokenizer_free(&pretokenizer);
    }
}

static void normal_forms_and_replacements_run_in_order(void **state) {
    (void)state;
    static const struct {
        rt_normal_kind kind;
        const char *from, *to, *text, *expected;
    } cases[] = {
        {RT_NORMAL_NFC, NULL, NULL, "e\xcc\x81 \xef\xac\x81", "\xc3\xa9 \xef\xac\x81"},
        {RT_NORMAL_NFD, NULL, NULL, "\xc3\xa9", "e\xcc\x81"},
        {RT_NORMAL_NFKC, NULL, NULL, "e\xcc\x81 \xef\xac\x81", "\xc3\xa9 fi"},
        {RT_NORMAL_NFKD, NULL, NULL, "\xc2\xbd",
         "1\xe2\x81\x84"
         "2"},
        {RT_NORMAL_PREPEND, NULL, MARK, "a", MARK "a"},
        {RT_NORMAL_PREPEND, NULL, MARK, "", ""},
        {RT_NORMAL_REPLACE, "aa", "b", "aaaaa", "bba"},
    };
    bis_buf out = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rt_normalizer normalizer = {0};
        assert_true(rt_normalizer_add(&normalizer, cases[i].kind, cases[i].from, cases[i].to));
        assert_int_equal(rt_normalizer_apply(&normalizer, cases[i].text, strlen(cases[i].text), false, &out), BIS_OK);
        assert_string_equal(bis_buf_cstr(&out), cases[i].expected);
        rt_normalizer_free(&normalizer);
    }
    rt_normalizer both = {0};
    assert_true(rt_normalizer_add(&both, RT_NORMAL_PREPEND, NULL, " "));
    assert_true(rt_normalizer_add(&both, RT_NORMAL_REPLACE, " ", MARK));
    assert_int_equal(rt_normalizer_apply(&both, "a b", 3, false, &out), BIS_OK);
    assert_string_equal(bis_buf_cstr(&out), MARK "a" MARK "b");
    assert_int_equal(rt_normalizer_apply(&both, "a b", 3, true, &out), BIS_OK); /* goes on after other bytes */
    assert_string_equal(bis_buf_cstr(&out), "a" MARK "b");
    rt_normalizer_free(&both);
    bis_buf_free(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_behaviour_cuts_its_own_way),
        cmocka_unit_test(words_of_llama3_are_cut_at_the_known_places),
        cmocka_unit_test(prefixes_come_before_what_lacks_them),
        cmocka_unit_test(patterns_that_never_end_are_stopped),
        cmocka_unit_test(wrong_patterns_are_refused_with_their_reason),
        cmocka_unit_test(normal_forms_and_replacements_run_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
