/* common/: UTF-8, buffers, error texts, allocation, files, log lines. */
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/clock.h"
#include "common/file.h"
#include "common/log.h"
#include "common/status.h"
#include "common/utf8.h"

static int stop_injection(void **state) {
    (void)state;
    bis_alloc_fail_after(-1);
    return 0;
}

/* ---- UTF-8 ----------------------------------------------------------------------------------- */

static void every_code_point_survives_encoding_and_decoding(void **state) {
    (void)state;
    for (uint32_t code_point = 0; code_point <= 0x110100; code_point++) {
        char bytes[BIS_UTF8_MAX];
        size_t length = bis_utf8_encode(code_point, bytes);
        bool exists = code_point <= 0x10ffff && (code_point < 0xd800 || code_point > 0xdfff);
        size_t expected = code_point < 0x80 ? 1 : code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
        if (length != (exists ? expected : 0)) fail_msg("U+%04X takes %zu bytes", code_point, length);
        if (!exists) continue;
        uint32_t back = ~code_point;
        if (bis_utf8_decode(bytes, length, &back) != length || back != code_point) fail_msg("U+%04X", code_point);
        for (size_t cut = 0; cut < length; cut++) {
            if (bis_utf8_decode(bytes, cut, &back) != 0) fail_msg("U+%04X from %zu bytes", code_point, cut);
            if (bis_utf8_complete_prefix(bytes, cut) != 0) fail_msg("U+%04X cut to %zu bytes", code_point, cut);
        }
        if (bis_utf8_complete_prefix(bytes, length) != length) fail_msg("U+%04X is complete", code_point);
    }
}

/* The definition, slowly: as many continuation bytes as the lead announces, and the shortest form. */
static size_t decode_by_definition(const unsigned char *bytes, uint32_t *code_point) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t ones = 0;
    while (ones < 5 && (bytes[0] & (0x80 >> ones))) ones++;
    if (ones == 1 || ones > 4) return 0;
    if (ones == 0) {
        *code_point = bytes[0];
        return 1;
    }
    uint32_t value = bytes[0] & (0x7fu >> ones);
    for (size_t i = 1; i < ones; i++) {
        if (bytes[i] >> 6 != 2) return 0;
        value = value * 64 + bytes[i] % 64;
    }
    if (value < least[ones] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) return 0;
    *code_point = value;
    return ones;
}

static void every_pair_of_first_bytes_is_judged_by_the_definition(void **state) {
    (void)state;
    static const unsigned char others[] = {0x00, 0x7f, 0x80, 0xbf, 0xc0, 0xff};
    enum { COUNT = sizeof others };
    for (unsigned first_two = 0; first_two < 0x10000; first_two++) {
        for (size_t rest = 0; rest < (size_t)COUNT * COUNT; rest++) {
            unsigned char bytes[4] = {(unsigned char)(first_two >> 8), (unsigned char)first_two, others[rest / COUNT],
                                      others[rest % COUNT]};
            uint32_t expected = 1, code_point = 1;
            size_t length = decode_by_definition(bytes, &expected);
            if (bis_utf8_decode((char *)bytes, sizeof bytes, &code_point) != length || code_point != expected) {
                fail_msg("%02x %02x %02x %02x", bytes[0], bytes[1], bytes[2], bytes[3]);
            }
        }
    }
}

static void validity_and_complete_prefixes_of_texts(void **state) {
    (void)state;
    static const struct {
        const char *text;
        bool valid;
        size_t prefix;
    } cases[] = {
        {"", true, 0},
        {"plain", true, 5},
        {"\xc3\xa4", true, 2},
        {"a\xc3", false, 1}, /* may still become a character */
        {"a\xe4\xb8", false, 1},
        {"a\xf0\x9f\x98", false, 1},
        {"a\xf0\x9f\x98\x80", true, 5},
        {"a\xf0\x9f\x98\x80\xf0", false, 5},
        {"a\xc0", false, 2}, /* never */
        {"a\xff", false, 2},
        {"a\xed\xa0", false, 3}, /* half of a surrogate */
        {"a\xe0\x80", false, 3}, /* overlong */
        {"a\xf5\x80", false, 3},
        {"a\xf4\x90\x80", false, 4}, /* above U+10FFFF */
        {"\x80\x80\x80\x80", false, 4},
        {"\xc3(", false, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t length = strlen(cases[i].text);
        if (bis_utf8_valid(cases[i].text, length) != cases[i].valid) fail_msg("validity in case %zu", i);
        size_t prefix = bis_utf8_complete_prefix(cases[i].text, length);
        if (prefix != cases[i].prefix) fail_msg("prefix %zu in case %zu", prefix, i);
    }
    assert_true(bis_utf8_valid("a\0b", 3));
}

/* ---- Buffers --------------------------------------------------------------------------------- */

static void a_buffer_grows_and_stays_a_string(void **state) {
    (void)state;
    bis_buf buf = {0};
    assert_string_equal(bis_buf_cstr(&buf), "");
    for (int i = 0; i < 1000; i++) {
        assert_true(bis_buf_printf(&buf, "%d,", i));
        assert_int_equal(buf.data[buf.length], 0);
        assert_true(buf.length < buf.capacity);
    }
    assert_int_equal(buf.length, 10 * 2 + 90 * 3 + 900 * 4);
    assert_int_equal(strncmp(bis_buf_cstr(&buf), "0,1,2,", 6), 0);
    assert_true(bis_buf_append(&buf, "\0x", 2));
    assert_int_equal(buf.data[buf.length - 1], 'x');
    bis_buf_clear(&buf);
    assert_string_equal(bis_buf_cstr(&buf), "");
    assert_true(buf.capacity > 0);
    bis_buf_free(&buf);
    assert_null(buf.data);
}

static void a_failed_append_is_remembered(void **state) {
    (void)state;
    bis_buf buf = {0};
    assert_true(bis_buf_puts(&buf, "kept"));
    bis_alloc_fail_after(0);
    char large[200] = {0};
    assert_false(bis_buf_append(&buf, large, sizeof large));
    assert_true(buf.failed);
    assert_false(bis_buf_puts(&buf, "x"));
    assert_string_equal(bis_buf_cstr(&buf), "kept");
    bis_buf_clear(&buf);
    assert_true(bis_buf_append(&buf, large, sizeof large));
    bis_buf_free(&buf);
}

static void an_impossible_size_is_refused(void **state) {
    (void)state;
    bis_buf buf = {0};
    assert_true(bis_buf_puts(&buf, "abc"));
    assert_false(bis_buf_reserve(&buf, SIZE_MAX));
    assert_true(buf.failed);
    assert_string_equal(bis_buf_cstr(&buf), "abc");
    bis_buf_free(&buf);
}

static void json_strings_are_escaped_and_valid(void **state) {
    (void)state;
    static const struct {
        const char *text, *expected;
        size_t length;
    } cases[] = {
        {"", "\"\"", 0},
        {"a\"b\\c/", "\"a\\\"b\\\\c/\"", 6},
        {"\b\f\n\r\t\x01\x1f", "\"\\b\\f\\n\\r\\t\\u0001\\u001f\"", 7},
        {"\0x", "\"\\u0000x\"", 2},
        {"\xc3\xa4\xf0\x9f\x98\x80", "\"\xc3\xa4\xf0\x9f\x98\x80\"", 6},
        {"a\xff\xc3", "\"a\xef\xbf\xbd\xef\xbf\xbd\"", 3},
        {"\xed\xa0\x80z", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz\"", 4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bis_buf buf = {0};
        assert_true(bis_buf_json_string(&buf, cases[i].text, cases[i].length));
        assert_string_equal(bis_buf_cstr(&buf), cases[i].expected);
        bis_buf_free(&buf);
    }
}

/* ---- Error texts ----------------------------------------------------------------------------- */

static void error_texts_are_one_line_of_utf8(void **state) {
    (void)state;
    bis_error error;
    assert_int_equal(bis_fail(&error, BIS_ERR_FORMAT, "a\nb\tc\x7f%s", "\x1b[31m"), BIS_ERR_FORMAT);
    assert_string_equal(error.text, "a b c  [31m");
    assert_int_equal(error.status, BIS_ERR_FORMAT);
    bis_fail(&error, BIS_ERR_FORMAT, "key '%s'", "\xff\xc3\xa4\xed\xa0\x80");
    assert_string_equal(error.text, "key '?\xc3\xa4?\?\?'");
    assert_int_equal(bis_fail(NULL, BIS_ERR_IO, "nobody reads this"), BIS_ERR_IO);
}

static void long_error_texts_are_cut_between_characters(void **state) {
    (void)state;
    char text[2 * BIS_ERROR_TEXT_MAX + 1];
    for (size_t i = 0; i < sizeof text - 1; i++) text[i] = i % 2 ? (char)0xa4 : (char)0xc3;
    text[sizeof text - 1] = '\0';
    for (size_t shift = 0; shift < 4; shift++) {
        bis_error error;
        bis_fail(&error, BIS_ERR_LIMIT, "%.*s%s", (int)shift, "xxxx", text);
        size_t length = strlen(error.text);
        assert_true(length >= BIS_ERROR_TEXT_MAX - 3 && length < BIS_ERROR_TEXT_MAX);
        assert_true(bis_utf8_valid(error.text, length));
        assert_null(strchr(error.text, '?'));
    }
}

static void context_is_put_before_an_error(void **state) {
    (void)state;
    bis_error error;
    bis_fail(&error, BIS_ERR_NOT_FOUND, "no tensor '%s'", "x");
    assert_int_equal(bis_fail_within(&error, "model %d", 7), BIS_ERR_NOT_FOUND);
    assert_string_equal(error.text, "model 7: no tensor 'x'");
    char name[2 * BIS_ERROR_TEXT_MAX];
    memset(name, 'y', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    assert_int_equal(bis_fail_within(&error, "%s", name), BIS_ERR_NOT_FOUND);
    assert_true(strlen(error.text) < BIS_ERROR_TEXT_MAX);
}

static void every_status_has_its_own_name(void **state) {
    (void)state;
    for (int a = 0; a <= BIS_ERR_INTERNAL; a++) {
        assert_string_not_equal(bis_status_name((bis_status)a), "unknown");
        for (int b = 0; b < a; b++) {
            assert_string_not_equal(bis_status_name((bis_status)a), bis_status_name((bis_status)b));
        }
    }
    assert_string_equal(bis_status_name((bis_status)99), "unknown");
}

/* ---- Allocation ------------------------------------------------------------------------------ */

static void overflowing_sizes_are_refused(void **state) {
    (void)state;
    assert_null(bis_calloc(SIZE_MAX / 2, 3));
    assert_null(bis_reallocarray(NULL, SIZE_MAX / 4, 5));
    assert_null(bis_alloc_aligned(SIZE_MAX - 10));
    assert_null(bis_strndup("x", SIZE_MAX));
}

static void empty_allocations_give_memory(void **state) {
    (void)state;
    void *blocks[] = {bis_malloc(0), bis_calloc(0, 8), bis_calloc(8, 0), bis_alloc_aligned(0), bis_realloc(NULL, 0)};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        assert_non_null(blocks[i]);
        bis_free(blocks[i]);
    }
    bis_free(NULL);
}

static void aligned_memory_is_aligned_and_zero(void **state) {
    (void)state;
    for (size_t size = 1; size < 300; size += 7) {
        unsigned char *memory = bis_alloc_aligned(size);
        assert_non_null(memory);
        assert_int_equal((uintptr_t)memory % 64, 0);
        for (size_t i = 0; i < size; i++) assert_int_equal(memory[i], 0);
        bis_free(memory);
    }
}

static void exactly_the_chosen_allocation_fails(void **state) {
    (void)state;
    for (int chosen = 0; chosen < 5; chosen++) {
        bis_alloc_fail_after(chosen);
        void *blocks[] = {bis_malloc(1), bis_calloc(1, 1), bis_strdup("x"), bis_alloc_aligned(1), bis_realloc(NULL, 1)};
        for (int i = 0; i < 5; i++) {
            if ((blocks[i] == NULL) != (i == chosen)) fail_msg("allocation %d when %d was chosen", i, chosen);
            bis_free(blocks[i]);
        }
        void *later = bis_malloc(1);
        assert_non_null(later);
        bis_free(later);
    }
}

static void copies_of_strings(void **state) {
    (void)state;
    char *whole = bis_strdup("text"), *part = bis_strndup("text", 2);
    assert_string_equal(whole, "text");
    assert_string_equal(part, "te");
    bis_free(whole);
    bis_free(part);
}

/* ---- Files ----------------------------------------------------------------------------------- */

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/bisup-test-common-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    static const char *const names[] = {"file", "empty", "link"};
    char path[128];
    bis_alloc_fail_after(-1);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    return rmdir(folder);
}

static void make_file(const char *name, const char *text, char *path, size_t size) {
    snprintf(path, size, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static void a_mapping_shows_the_file(void **state) {
    (void)state;
    char path[128];
    bis_error error = {0};
    bis_mapping mapping = {0};
    make_file("file", "contents", path, sizeof path);
    assert_int_equal(bis_map_file(path, &mapping, &error), BIS_OK);
    assert_int_equal(mapping.size, 8);
    assert_memory_equal(mapping.data, "contents", 8);
    bis_unmap_file(&mapping);
    assert_null(mapping.data);
    make_file("empty", "", path, sizeof path);
    assert_int_equal(bis_map_file(path, &mapping, &error), BIS_OK);
    assert_int_equal(mapping.size, 0);
    bis_unmap_file(&mapping);
}

static void what_is_no_readable_file_is_refused_by_name(void **state) {
    (void)state;
    char path[128], expected[256];
    bis_error error = {0};
    bis_mapping mapping = {(const unsigned char *)"untouched", 9};
    snprintf(path, sizeof path, "%s/none", folder);
    assert_int_equal(bis_map_file(path, &mapping, &error), BIS_ERR_NOT_FOUND);
    snprintf(expected, sizeof expected, "cannot open %s: No such file or directory", path);
    assert_string_equal(error.text, expected);
    assert_int_equal(mapping.size, 9);
    assert_int_equal(bis_map_file(folder, &mapping, &error), BIS_ERR_IO);
    snprintf(expected, sizeof expected, "%s is not a regular file", folder);
    assert_string_equal(error.text, expected);
    snprintf(path, sizeof path, "%s/link", folder); /* a pipe: opening it must not wait for a writer */
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(bis_map_file(path, &mapping, &error), BIS_ERR_IO);
    assert_false(bis_file_exists(path));
    assert_false(bis_file_exists(folder));
}

static void a_small_file_is_read_whole_or_refused(void **state) {
    (void)state;
    char path[128];
    bis_error error = {0};
    bis_buf text = {0};
    make_file("file", "12345", path, sizeof path);
    assert_true(bis_file_exists(path));
    assert_int_equal(bis_read_file(path, 5, &text, &error), BIS_OK);
    assert_string_equal(bis_buf_cstr(&text), "12345");
    bis_buf_free(&text);
    assert_int_equal(bis_read_file(path, 4, &text, &error), BIS_ERR_LIMIT);
    assert_null(text.data);
    bis_alloc_fail_after(0);
    assert_int_equal(bis_read_file(path, 5, &text, &error), BIS_ERR_NOMEM);
    assert_null(text.data);
    make_file("empty", "", path, sizeof path);
    assert_int_equal(bis_read_file(path, 0, &text, &error), BIS_OK);
    assert_int_equal(text.length, 0);
    assert_string_equal(bis_buf_cstr(&text), "");
    bis_buf_free(&text);
}

static void only_plain_names_are_joined_to_a_folder(void **state) {
    (void)state;
    static const char *const refused[] = {"", ".", "..", "/", "/etc/passwd", "a/b", "../x", "x/..", "./x"};
    static const char *const accepted[] = {"x", "model-00001-of-00002.safetensors", "...", ".x", "a b", "\xc3\xa4"};
    char path[64] = "before", expected[64];
    bis_error error = {0};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        if (bis_join_path("m", refused[i], path, sizeof path, &error) != BIS_ERR_FORMAT) fail_msg("%s", refused[i]);
        assert_string_equal(path, "before");
    }
    for (size_t i = 0; i < sizeof accepted / sizeof *accepted; i++) {
        assert_int_equal(bis_join_path("m", accepted[i], path, sizeof path, &error), BIS_OK);
        snprintf(expected, sizeof expected, "m/%s", accepted[i]);
        assert_string_equal(path, expected);
    }
    assert_int_equal(bis_join_path("m", "abc", path, 6, &error), BIS_OK);
    assert_int_equal(bis_join_path("m", "abcd", path, 6, &error), BIS_ERR_LIMIT);
}

/* ---- Log and clock --------------------------------------------------------------------------- */

/* What `bis_log` writes to standard error for one message. */
static size_t capture_log(bis_log_level level, const char *message, char *out, size_t size) {
    int ends[2], saved = dup(STDERR_FILENO);
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
    dup2(ends[1], STDERR_FILENO);
    bis_log(level, "%s", message);
    dup2(saved, STDERR_FILENO);
    ssize_t length = read(ends[0], out, size - 1);
    close(ends[0]);
    close(ends[1]);
    close(saved);
    out[length > 0 ? length : 0] = '\0';
    return length > 0 ? (size_t)length : 0;
}

static void a_log_line_has_time_level_and_message(void **state) {
    (void)state;
    char line[2048], message[4096];
    size_t length = capture_log(BIS_LOG_WARN, "hello", line, sizeof line);
    assert_int_equal(length, strlen("12:34:56.789 warn  hello\n"));
    assert_string_equal(line + 12, " warn  hello\n");
    assert_int_equal(capture_log(BIS_LOG_DEBUG, "hidden", line, sizeof line), 0);
    memset(message, 'm', sizeof message - 1);
    message[sizeof message - 1] = '\0';
    length = capture_log(BIS_LOG_ERROR, message, line, sizeof line);
    assert_true(length > 500 && line[length - 1] == '\n' && strchr(line, '\n') == line + length - 1);
}

static void time_does_not_go_back(void **state) {
    (void)state;
    uint64_t before = bis_now_ns();
    double seconds = bis_now_seconds();
    for (int i = 0; i < 1000; i++) {
        uint64_t now = bis_now_ns();
        assert_true(now >= before);
        before = now;
    }
    assert_true(bis_now_seconds() >= seconds);
}

#define TEST(name) cmocka_unit_test_teardown(name, stop_injection)
#define FILE_TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, remove_folder)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(every_code_point_survives_encoding_and_decoding),
        TEST(every_pair_of_first_bytes_is_judged_by_the_definition),
        TEST(validity_and_complete_prefixes_of_texts),
        TEST(a_buffer_grows_and_stays_a_string),
        TEST(a_failed_append_is_remembered),
        TEST(an_impossible_size_is_refused),
        TEST(json_strings_are_escaped_and_valid),
        TEST(error_texts_are_one_line_of_utf8),
        TEST(long_error_texts_are_cut_between_characters),
        TEST(context_is_put_before_an_error),
        TEST(every_status_has_its_own_name),
        TEST(overflowing_sizes_are_refused),
        TEST(empty_allocations_give_memory),
        TEST(aligned_memory_is_aligned_and_zero),
        TEST(exactly_the_chosen_allocation_fails),
        TEST(copies_of_strings),
        FILE_TEST(a_mapping_shows_the_file),
        FILE_TEST(what_is_no_readable_file_is_refused_by_name),
        FILE_TEST(a_small_file_is_read_whole_or_refused),
        FILE_TEST(only_plain_names_are_joined_to_a_folder),
        TEST(a_log_line_has_time_level_and_message),
        TEST(time_does_not_go_back),
    };
    return cmocka_run_group_tests_name("common", tests, NULL, NULL);
}
