/* Stop strings over any cut of the text, and the event ring. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/event_ring.h"
#include "runtime/stop_matcher.h"

/* Feeds `text` in pieces of `piece` bytes; returns what came out, and whether it stopped. */
static bool feed(const char *text, size_t piece, const char *const *stops, size_t stop_count, char *result) {
    static rt_stop_matcher matcher;
    static char out[RT_EVENT_TEXT_MAX];
    bis_error error;
    assert_int_equal(rt_stop_matcher_start(&matcher, stops, stop_count, &error), BIS_OK);
    size_t length = strlen(text), produced = 0, n;
    for (size_t i = 0; i < length; i += piece) {
        size_t take = length - i < piece ? length - i : piece;
        bool stop = rt_stop_matcher_push(&matcher, text + i, take, out, &n);
        memcpy(result + produced, out, n);
        produced += n;
        result[produced] = '\0';
        if (stop) return true;
    }
    n = rt_stop_matcher_finish(&matcher, out);
    memcpy(result + produced, out, n);
    result[produced + n] = '\0';
    return false;
}

static void test_stop_strings_over_any_cut(void **state) {
    (void)state;
    static const struct {
        const char *text, *stops[4];
        size_t count;
        const char *expected;
        bool stopped;
    } cases[] = {
        {"one two three", {"two"}, 1, "one ", true},
        {"one two three", {"four"}, 1, "one two three", false},
        {"aaaab", {"aab"}, 1, "aa", true},
        {"ababac", {"abac"}, 1, "ab", true},
        {"END", {"END"}, 1, "", true},
        {"almost EN", {"END"}, 1, "almost EN", false},
        {"x<|y", {"<|im_end|>"}, 1, "x<|y", false},
        {"first second", {"second", "first"}, 2, "", true},
        {"\n\nUser: hi", {"\n\n", "User"}, 2, "", true},
        {"a\xc3\xa9"
         "b",
         {"\xc3\xa9"},
         1,
         "a",
         true},
        {"nothing", {NULL}, 0, "nothing", false},
    };
    char result[64];
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        for (size_t piece = 1; piece <= strlen(cases[c].text); piece++) {
            bool stopped = feed(cases[c].text, piece, cases[c].stops, cases[c].count, result);
            assert_int_equal(stopped, cases[c].stopped);
            assert_string_equal(result, cases[c].expected);
        }
    }
}

static void test_text_is_held_back_only_as_long_as_needed(void **state) {
    (void)state;
    static rt_stop_matcher matcher;
    static char out[RT_EVENT_TEXT_MAX];
    const char *stop = "STOP";
    bis_error error;
    size_t n;
    assert_int_equal(rt_stop_matcher_start(&matcher, &stop, 1, &error), BIS_OK);
    assert_false(rt_stop_matcher_push(&matcher, "abST", 4, out, &n));
    assert_int_equal(n, 2);
    assert_false(rt_stop_matcher_push(&matcher, "x", 1, out, &n));
    assert_int_equal(n, 3);
    assert_memory_equal(out, "STx", 3);
}

static void test_bad_stop_strings_are_refused(void **state) {
    (void)state;
    static rt_stop_matcher matcher;
    bis_error error;
    char too_long[RT_STOP_STRING_BYTES + 1];
    memset(too_long, 'a', RT_STOP_STRING_BYTES);
    too_long[RT_STOP_STRING_BYTES] = '\0';
    const char *list[] = {"a", "b", "c", "d", "e"}, *empty = "", *big = too_long;
    assert_int_equal(rt_stop_matcher_start(&matcher, list, 5, &error), BIS_ERR_INVALID);
    assert_int_equal(rt_stop_matcher_start(&matcher, &empty, 1, &error), BIS_ERR_INVALID);
    assert_int_equal(rt_stop_matcher_start(&matcher, &big, 1, &error), BIS_ERR_INVALID);
    big = too_long + 1;
    assert_int_equal(rt_stop_matcher_start(&matcher, &big, 1, &error), BIS_OK);
}

static void make_event(rt_event *event, unsigned i) {
    memset(event, 0, sizeof *event);
    event->kind = i % 5 == 4 ? RT_EVENT_DONE : RT_EVENT_TOKEN;
    event->token = (int32_t)(i * 7);
    event->logprob = -(float)i;
    event->top_count = (int)(i % 4);
    for (int t = 0; t < event->top_count; t++) event->top[t] = (rt_logprob){(int32_t)i + t, -(float)t};
    event->finish = event->kind == RT_EVENT_DONE ? RT_FINISH_ERROR : RT_FINISH_NONE;
    event->prompt_tokens = (int)i;
    event->completion_tokens = (int)i * 2;
    event->text_length = i % 60;
    memset(event->text, 'a' + (int)(i % 26), event->text_length);
    if (event->kind == RT_EVENT_DONE) bis_fail(&event->error, BIS_ERR_NOMEM, "error %u", i);
}

static void check_event(const rt_event *got, unsigned i) {
    static rt_event want;
    make_event(&want, i);
    assert_int_equal(got->kind, want.kind);
    assert_int_equal(got->token, want.token);
    assert_float_equal(got->logprob, want.logprob, 0);
    assert_int_equal(got->top_count, want.top_count);
    assert_memory_equal(got->top, want.top, (size_t)want.top_count * sizeof *want.top);
    assert_int_equal(got->finish, want.finish);
    assert_int_equal(got->prompt_tokens, want.prompt_tokens);
    assert_int_equal(got->completion_tokens, want.completion_tokens);
    assert_int_equal(got->text_length, want.text_length);
    assert_memory_equal(got->text, want.text, want.text_length);
    assert_string_equal(got->error.text, want.error.text);
    assert_int_equal(got->error.status, want.error.status);
}

static void test_ring_keeps_order_and_contents(void **state) {
    (void)state;
    static rt_event event;
    rt_event_ring ring;
    assert_true(rt_event_ring_open(&ring, 1000));
    unsigned put = 0, taken = 0, seed = 3;
    while (taken < 3000) {
        seed = seed * 1103515245u + 12345u;
        if (seed >> 16 & 1) {
            make_event(&event, put);
            size_t room = rt_event_ring_room(&ring);
            bool fits = rt_event_ring_put(&ring, &event);
            if (!fits) assert_true(room < rt_event_ring_need(3, 60, true));
            put += fits;
        } else if (rt_event_ring_take(&ring, &event)) {
            check_event(&event, taken++);
        } else {
            assert_int_equal(put, taken);
        }
    }
    while (rt_event_ring_take(&ring, &event)) check_event(&event, taken++);
    assert_int_equal(put, taken);
    assert_int_equal(rt_event_ring_room(&ring), 1000);
    rt_event_ring_close(&ring);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop_strings_over_any_cut),
        cmocka_unit_test(test_text_is_held_back_only_as_long_as_needed),
        cmocka_unit_test(test_bad_stop_strings_are_refused),
        cmocka_unit_test(test_ring_keeps_order_and_contents),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
