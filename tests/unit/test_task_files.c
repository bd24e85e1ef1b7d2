/* Files of evaluation tasks: what is read, and the line that an error names. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/alloc.h"
#include "evaluation/csv.h"
#include "evaluation/task.h"
#include "tests/support/scratch.h"

static bis_buf buffer_of(const char *text, size_t length) {
    bis_buf buf = {0};
    assert_true(bis_buf_append(&buf, text, length));
    return buf;
}

/* ---- CSV ------------------------------------------------------------------------------------- */

/* All records as "[a|b][c]", or the error's text. */
static void read_csv(const char *text, char *out, size_t size) {
    bis_buf buf = buffer_of(text, strlen(text));
    ev_csv csv;
    ev_csv_record record;
    bis_error error = {0};
    bool done = false;
    size_t used = 0;
    ev_csv_start(&csv, buf.data, buf.length);
    *out = '\0';
    while (!ev_csv_next(&csv, &record, &done, &error) && !done) {
        for (int i = 0; i < record.count; i++) {
            used += (size_t)snprintf(out + used, size - used, "%c%s", i ? '|' : '[', record.fields[i]);
        }
        used += (size_t)snprintf(out + used, size - used, "]");
    }
    if (!done) snprintf(out, size, "%s", error.text);
    bis_buf_free(&buf);
}

static void csv_is_read_as_rfc_4180_says(void **state) {
    (void)state;
    static const struct {
        const char *text, *expected;
    } cases[] = {
        {"", ""},
        {"\n\r\n\n", ""},
        {"a,b\nc,d\n", "[a|b][c|d]"},
        {"a,b\r\nc,d", "[a|b][c|d]"},
        {"a,,c\n,\n", "[a||c][|]"},
        {"a,", "[a|]"},
        {"\"a,b\",c\n", "[a,b|c]"},
        {"\"he said \"\"no\"\"\",x\n", "[he said \"no\"|x]"},
        {"\"\",\"\"\"\"\n", "[|\"]"},
        {"\"two\nlines\",x\ny,z\n", "[two\nlines|x][y|z]"},
        {"\"two\r\nlines\"\r\nx\r\n", "[two\r\nlines][x]"},
        {"a \"quoted\" word,b\n", "[a \"quoted\" word|b]"},
        {" \"a\",b\n", "[ \"a\"|b]"},
        {"a\rb,c\n", "[a\rb|c]"},
        {"\n\na\n", "[a]"},
        {"\"\"", "[]"},
        {"x\n\"open", "line 2: a quoted field has no closing quote"},
        {"\"a\nb\n", "line 1: a quoted field has no closing quote"},
        {"\"a\nb\"c,d\n", "line 2: text after a closing quote; write a quote in a field as \"\""},
        {"0,1,2,3,4,5,6,7,8,9,a,b,c,d,e,f\n", "[0|1|2|3|4|5|6|7|8|9|a|b|c|d|e|f]"},
        {"0,1,2,3,4,5,6,7,8,9,a,b,c,d,e,f,\n", "line 1: more than 16 fields"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char found[BIS_ERROR_TEXT_MAX];
        read_csv(cases[i].text, found, sizeof found);
        assert_string_equal(found, cases[i].expected);
    }
}

/* ---- HellaSwag ------------------------------------------------------------------------------- */

static bis_status parse_hellaswag(const char *text, size_t length, ev_task *task, bis_error *error) {
    bis_buf buf = buffer_of(text, length);
    *task = (ev_task){.kind = EV_HELLASWAG};
    bis_status status = ev_hellaswag_parse("h.txt", &buf, task, error);
    if (!status) assert_null(buf.data); /* the task owns it */
    bis_buf_free(&buf);
    return status;
}

static void hellaswag_has_six_lines_a_question(void **state) {
    (void)state;
    static const char text[] = "Roof: A man. he\n3\nis one.\nis two.\nis three.\nis four.\n"
                               "Cook: Stir.\r\n0\r\na\r\nb\r\nc\r\nd\r\n\n\n";
    ev_task task;
    bis_error error;
    assert_int_equal(parse_hellaswag(text, sizeof text - 1, &task, &error), BIS_OK);
    assert_int_equal(task.count, 2);
    assert_int_equal(task.group_count, 1);
    assert_string_equal(task.questions[0].text, "Roof: A man. he");
    assert_int_equal(task.questions[0].answer, 3);
    assert_string_equal(task.questions[0].choices[3], "is four.");
    assert_string_equal(task.questions[1].text, "Cook: Stir.");
    assert_string_equal(task.questions[1].choices[3], "d");
    bis_buf out = {0};
    ev_task_context(&task, &task.questions[0], 5, &out);
    ev_task_choice(&task, &task.questions[0], 1, &out);
    assert_string_equal(bis_buf_cstr(&out), "Roof: A man. he is two.");
    bis_buf_free(&out);
    ev_task_free(&task);
}

static void a_wrong_line_is_named(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
        size_t length;
    } cases[] = {
        {"c\n4\na\nb\nc\nd\n", "h.txt line 2: the number of the right ending (0 to 3) is '4'", 0},
        {"c\n0\na\nb\nc\nd\nc\nA\na\nb\nc\nd", "h.txt line 8: the number of the right ending (0 to 3) is 'A'", 0},
        {"c\n12\na\nb\nc\nd\n", "line 2", 0},
        {"c\n0\na\n\nc\nd\n", "h.txt line 4 is empty", 0},
        {"c\n0\na\nb\nc\nd\nc\n0\n", "h.txt ends within a question: 2 of 6 lines after 1 questions", 0},
        {"BZh91AY", "bunzip2", 0},
        {"c\n0\na\0b\nb\nc\nd\n", "NUL", 15},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ev_task task;
        bis_error error = {0};
        size_t length = cases[i].length ? cases[i].length : strlen(cases[i].text);
        assert_int_equal(parse_hellaswag(cases[i].text, length, &task, &error), BIS_ERR_FORMAT);
        if (!strstr(error.text, cases[i].says)) fail_msg("'%s' does not say '%s'", error.text, cases[i].says);
        ev_task_free(&task);
    }
    ev_task task;
    bis_error error;
    scratch_make();
    scratch_write_text("empty.txt", "\n\n");
    assert_int_equal(ev_task_open(EV_HELLASWAG, scratch_path("empty.txt"), &task, &error), BIS_ERR_FORMAT);
    assert_non_null(strstr(error.text, "no questions"));
    assert_int_equal(ev_task_open(EV_HELLASWAG, scratch_path("none.txt"), &task, &error), BIS_ERR_NOT_FOUND);
    scratch_remove();
}

/* ---- MMLU ------------------------------------------------------------------------------------ */

static char folder[] = "/tmp/bisup-mmlu-XXXXXX";

static void write_in(const char *name, const char *text) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0 && fclose(file) == 0);
}

static const char *const MMLU_FILES[] = {"test/zoo_keeping_test.csv", "dev/zoo_keeping_dev.csv", "test/art_test.csv",
                                         "dev/art_dev.csv", "test/notes.txt"};

static int make_mmlu(void **state) {
    (void)state;
    char path[128];
    if (!mkdtemp(folder)) return 1;
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, i ? "dev" : "test");
        if (mkdir(path, 0700)) return 1;
    }
    write_in(MMLU_FILES[0], "question,choice0,choice1,choice2,choice3,answer\n"
                            "\"What eats\ngrass? \",lion,cow,owl,\"a, b\",1\nWhich flies?,owl,cow,dog,cat,0\n"
                            "Third?,1,2,3,4,2\n");
    write_in(MMLU_FILES[1], " A first one?,w,x,y,z,D\nA second?,w,x,y,z,A\n3?,w,x,y,z,B\n4?,w,x,y,z,C\n5?,w,x,y,z,C\n"
                            "6?,w,x,y,z,C\n");
    write_in(MMLU_FILES[2], "Who painted?,a,b,c,d,C\n");
    write_in(MMLU_FILES[3], "");
    write_in(MMLU_FILES[4], "not a table");
    return 0;
}

static int remove_mmlu(void **state) {
    (void)state;
    char path[128];
    for (size_t i = 0; i < sizeof MMLU_FILES / sizeof *MMLU_FILES; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, MMLU_FILES[i]);
        unlink(path);
    }
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, i ? "dev" : "test");
        rmdir(path);
    }
    return rmdir(folder);
}

static void mmlu_has_subjects_with_worked_examples(void **state) {
    (void)state;
    ev_task task;
    bis_error error;
    if (ev_task_open(EV_MMLU, folder, &task, &error)) fail_msg("%s", error.text);
    assert_int_equal(task.count, 4);
    assert_int_equal(task.group_count, 2);
    assert_string_equal(task.groups[0].name, "art");
    assert_int_equal(task.groups[0].shot_count, 0);
    assert_string_equal(task.groups[1].name, "zoo_keeping");
    assert_int_equal(task.groups[1].shot_count, EV_SHOTS_MAX);
    assert_int_equal(task.questions[0].answer, 2);
    assert_int_equal(task.questions[1].answer, 1);
    assert_string_equal(task.questions[1].choices[3], "a, b");
    bis_buf out = {0};
    ev_task_context(&task, &task.questions[1], 2, &out);
    ev_task_choice(&task, &task.questions[1], 1, &out);
    assert_string_equal(bis_buf_cstr(&out),
                        "The following are multiple choice questions (with answers) about zoo keeping.\n\n"
                        "A first one?\nA. w\nB. x\nC. y\nD. z\nAnswer: D\n\n"
                        "A second?\nA. w\nB. x\nC. y\nD. z\nAnswer: A\n\n"
                        "What eats\ngrass?\nA. lion\nB. cow\nC. owl\nD. a, b\nAnswer: B");
    bis_buf_free(&out);
    ev_task_free(&task);
}

static void wrong_tables_are_named(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"q,a,b,c,d\n", "t.csv line 1: 5 fields where there should be 6"},
        {"q,a,b,c,d,A\n\nq,a,b,c,d,E\n", "t.csv line 3: the answer is 'E'"},
        {"q,a,b,c,d,\n", "t.csv line 1: the answer is ''"},
        {"q,a,b,c,d,A\nquestion,choice0,choice1,choice2,choice3,answer\n", "t.csv line 2: the answer is 'answer'"},
        {"\"q,a,b,c,d,A\n", "t.csv: line 1: a quoted field"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bis_buf buf = buffer_of(cases[i].text, strlen(cases[i].text));
        ev_group group = {0};
        ev_task task = {.kind = EV_MMLU, .groups = &group};
        bis_error error = {0};
        assert_int_equal(ev_mmlu_parse("t.csv", &buf, 0, false, &task, &error), BIS_ERR_FORMAT);
        if (!strstr(error.text, cases[i].says)) fail_msg("'%s' does not say '%s'", error.text, cases[i].says);
        bis_buf_free(&buf);
        bis_free(task.questions);
    }
    ev_task task;
    bis_error error;
    assert_int_equal(ev_task_open(EV_MMLU, "tests/unit", &task, &error), BIS_ERR_NOT_FOUND);
    assert_non_null(strstr(error.text, "tests/unit/test"));
    assert_int_equal(ev_task_open(EV_MMLU, "tests/unit/test_task_files.c", &task, &error), BIS_ERR_NOT_FOUND);
}

/* ---- Limits ---------------------------------------------------------------------------------- */

/* Groups of 1, 4, 2, 4 questions; the numbers that remain of each. */
static void a_limit_takes_evenly_from_the_groups(void **state) {
    (void)state;
    static const int sizes[] = {1, 4, 2, 4};
    static const struct {
        size_t limit;
        int kept[4];
    } cases[] = {
        {0, {1, 4, 2, 4}}, {11, {1, 4, 2, 4}}, {99, {1, 4, 2, 4}}, {10, {1, 4, 2, 3}}, {9, {1, 3, 2, 3}},
        {7, {1, 2, 2, 2}}, {5, {1, 2, 1, 1}},  {4, {1, 1, 1, 1}},  {3, {1, 1, 1, 0}},  {1, {1, 0, 0, 0}},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        ev_question questions[11] = {0};
        ev_task task = {.questions = questions};
        for (int g = 0; g < 4; g++) {
            for (int i = 0; i < sizes[g]; i++) questions[task.count++] = (ev_question){.group = g, .answer = i};
        }
        ev_task_limit(&task, cases[c].limit);
        int kept[4] = {0};
        for (size_t i = 0; i < task.count; i++) {
            int group = task.questions[i].group;
            assert_int_equal(task.questions[i].answer, kept[group]++); /* the first ones, in order */
        }
        assert_memory_equal(kept, cases[c].kept, sizeof kept);
    }
}

/* ---- Facts ----------------------------------------------------------------------------------- */

static void facts_are_one_object_a_line(void **state) {
    (void)state;
    static const char text[] = "{\"system\": \"Bank \\u00e9\", \"question\": \"Who?\", \"answer\": \"Ida.\"}\r\n\n"
                               "  {\"question\":\"Why?\",\"answer\":\"\",\"more\":[1]} \n";
    ev_facts facts;
    bis_error error;
    assert_int_equal(ev_facts_parse("f.jsonl", text, sizeof text - 1, &facts, &error), BIS_OK);
    assert_int_equal(facts.count, 2);
    assert_string_equal(facts.items[0].system, "Bank \xc3\xa9");
    assert_string_equal(facts.items[0].question, "Who?");
    assert_string_equal(facts.items[0].answer, "Ida.");
    assert_null(facts.items[1].system);
    assert_string_equal(facts.items[1].answer, "");
    ev_facts_limit(&facts, 5);
    assert_int_equal(facts.count, 2);
    ev_facts_limit(&facts, 1);
    assert_int_equal(facts.count, 1);
    ev_facts_free(&facts);
}

static void wrong_facts_are_named(void **state) {
    (void)state;
    static const char good[] = "{\"question\":\"a\",\"answer\":\"b\"}\n";
    static const struct {
        const char *line, *says;
        size_t length;
    } cases[] = {
        {"hello", "f.jsonl line 2: it is not one JSON object", 0},
        {"[1,2]", "line 2: it is not one JSON object", 0},
        {"{\"question\":\"a\",\"answer\":\"b\"} {}", "line 2: it is not one JSON object", 0},
        {"{\"question\":\"a\",\"answer\":\"b\"", "line 2: it is not one JSON object", 0},
        {"{\"question\":\"a\"}", "line 2: \"answer\" is missing", 0},
        {"{\"answer\":\"a\"}", "line 2: \"question\" is missing", 0},
        {"{\"question\":\"a\",\"answer\":7}", "line 2: \"answer\" is not a text", 0},
        {"{\"question\":\"a\",\"answer\":\"b\",\"system\":null}", "line 2: \"system\" is not a text", 0},
        {"{\"question\":\"a\",\"answer\":\"\xff\"}", "line 2: it is not UTF-8 text", 0},
        {"{\"question\":\"a\",\"answer\":\"\0\"}", "line 2: it is not UTF-8 text", 29},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bis_buf text = buffer_of(good, sizeof good - 1);
        bis_buf_append(&text, cases[i].line, cases[i].length ? cases[i].length : strlen(cases[i].line));
        ev_facts facts;
        bis_error error = {0};
        assert_int_equal(ev_facts_parse("f.jsonl", text.data, text.length, &facts, &error), BIS_ERR_FORMAT);
        if (!strstr(error.text, cases[i].says)) fail_msg("'%s' does not say '%s'", error.text, cases[i].says);
        bis_buf_free(&text);
    }
    ev_facts facts;
    bis_error error;
    assert_int_equal(ev_facts_parse("f.jsonl", "", 0, &facts, &error), BIS_ERR_FORMAT);
    assert_int_equal(ev_facts_open("none.jsonl", &facts, &error), BIS_ERR_NOT_FOUND);
}

/* ---- Memory ---------------------------------------------------------------------------------- */

static void every_failing_allocation_is_reported(void **state) {
    (void)state;
    scratch_make();
    scratch_write_text("h.txt", "c\n0\na\nb\nc\nd\nc\n3\na\nb\nc\nd\n");
    scratch_write_text("f.jsonl", "{\"system\":\"s\",\"question\":\"a\",\"answer\":\"b\"}\n");
    for (int what = 0; what < 3; what++) {
        bool done = false;
        for (long n = 0; n < 200 && !done; n++) {
            ev_task task = {0};
            ev_facts facts = {0};
            bis_error error = {0};
            bis_alloc_fail_after(n);
            bis_status status = what == 0   ? ev_task_open(EV_HELLASWAG, scratch_path("h.txt"), &task, &error)
                                : what == 1 ? ev_task_open(EV_MMLU, folder, &task, &error)
                                            : ev_facts_open(scratch_path("f.jsonl"), &facts, &error);
            bis_alloc_fail_after(-1);
            if (status && (status != BIS_ERR_NOMEM || !*error.text)) fail_msg("allocation %ld: %s", n, error.text);
            ev_task_free(&task);
            ev_facts_free(&facts);
            done = !status;
        }
        assert_true(done);
    }
    scratch_remove();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(csv_is_read_as_rfc_4180_says),
        cmocka_unit_test(hellaswag_has_six_lines_a_question),
        cmocka_unit_test(a_wrong_line_is_named),
        cmocka_unit_test(mmlu_has_subjects_with_worked_examples),
        cmocka_unit_test(wrong_tables_are_named),
        cmocka_unit_test(a_limit_takes_evenly_from_the_groups),
        cmocka_unit_test(facts_are_one_object_a_line),
        cmocka_unit_test(wrong_facts_are_named),
        cmocka_unit_test(every_failing_allocation_is_reported),
    };
    return cmocka_run_group_tests_name("task files", tests, make_mmlu, remove_mmlu);
}
