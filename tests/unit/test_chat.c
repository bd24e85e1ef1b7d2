#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "runtime/template/chat.h"
#include "tests/support/python_cases.h"
#include "tests/support/scratch.h"

enum { FIXED_TIME = 1721999109 }; /* 2024-07-26 13:05:09 UTC, as in compare.py */

/* ---- Against Python ---- */

static rt_chat *open_source(const char *source) {
    rt_chat *chat = NULL;
    bis_error error = {0};
    if (rt_chat_open_text("test", source, "<s>", "</s>", &chat, &error)) fail_msg("%s", error.text);
    return chat;
}

static bool same_as_python(const python_cases *cases, size_t i) {
    const char *expected = python_case_text(cases, i, "expected");
    rt_chat *chat = open_source(python_case_text(cases, i, "source"));
    rt_chat_input input = {.messages_json = python_case_text(cases, i, "messages"),
                           .tools_json = python_case_text(cases, i, "tools"),
                           .variables_json = python_case_text(cases, i, "variables"),
                           .add_generation_prompt = python_case_flag(cases, i, "prompt")};
    bis_buf out = {0};
    bis_error error = {0};
    size_t system_end = 0;
    bis_status status = rt_chat_render(chat, &input, &out, &system_end, &error);
    bool same = expected ? !status && !strcmp(bis_buf_cstr(&out), expected) : status == BIS_ERR_INVALID;
    if (!same) {
        print_message("%s\n  Python: %s\n  here:   %s\n", python_case_text(cases, i, "name"),
                      expected ? expected : python_case_text(cases, i, "error"),
                      status ? error.text : bis_buf_cstr(&out));
    }
    assert_true(system_end <= out.length);
    bis_buf_free(&out);
    rt_chat_close(chat);
    return same;
}

static void templates_render_as_in_python(void **state) {
    (void)state;
    const char *folder = shared_path("data/chat-templates");
    if (access(folder, R_OK) != 0) {
        print_message("no %s: only the templates of tests/templates/own are compared\n", folder);
        folder = NULL;
    }
    python_cases cases = {0};
    const char *problem = python_cases_load("chats", folder, &cases);
    if (problem) {
        print_message("skipped: %s\n", problem);
        skip();
    }
    rt_jinja_fix_time(FIXED_TIME);
    size_t wrong = 0;
    for (size_t i = 0; i < cases.list->count; i++) wrong += !same_as_python(&cases, i);
    print_message("%zu renderings compared with Python\n", cases.list->count);
    assert_true(cases.list->count > 200);
    python_cases_free(&cases);
    rt_jinja_fix_time(-1);
    assert_int_equal(wrong, 0);
}

/* ---- The system prompt's span ---- */

static const char chatml[] = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
                             "{% if add_generation_prompt %}<|assistant|>{% endif %}";

static void span_ends_where_users_begin(void **state) {
    (void)state;
    static const struct {
        const char *source, *messages, *span;
    } cases[] = {
        {chatml, "[{\"role\":\"system\",\"content\":\"Rules\"},{\"role\":\"user\",\"content\":\"Hi\"}]",
         "<|system|>Rules\n<|user|>"},
        {chatml, "[{\"role\":\"developer\",\"content\":\"Rules\"},{\"role\":\"user\",\"content\":\"Hi\"}]",
         "<|developer|>Rules\n<|user|>"},
        /* also where the user's words begin like one of the two variants */
        {chatml, "[{\"role\":\"user\",\"content\":\"Xq variant one\"}]", "<|user|>"},
        {chatml, "[{\"role\":\"user\",\"content\":\"Zk variant two, and more\"}]", "<|user|>"},
        /* all of it, when nobody else says anything */
        {chatml, "[{\"role\":\"system\",\"content\":\"Rules\"}]", "<|system|>Rules\n<|assistant|>"},
        {chatml, "[]", "<|assistant|>"},
        /* words before the system prompt end the span */
        {chatml, "[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"system\",\"content\":\"Rules\"}]", "<|user|>"},
        {chatml, "[{\"role\":\"assistant\",\"content\":\"\"},{\"role\":\"user\",\"content\":\"x\"}]", "<|assistant|>"},
        /* parts, tool calls and reasoning are words, too */
        {"S{{ messages[0].content[0].text }}", "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"}]}]",
         "S"},
        {"S{{ messages[0].tool_calls[0].function|tojson }}",
         "[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":{\"a\":\"b\"}}}]}]",
         "S{\"name\": \""},
        {"S{{ messages[0].reasoning_content }}", "[{\"role\":\"assistant\",\"reasoning_content\":\"hm\"}]", "S"},
        /* never inside a character: both begin with the bytes E2 82 */
        {"S{{ '\xe2\x82\xac' if messages[0].content == 'real' else '\xe2\x82\xad' }}",
         "[{\"role\":\"user\",\"content\":\"real\"}]", "S"},
        /* a template that refuses the variants gives no span, and no failure */
        {"S{{ raise_exception('no') if messages[0].content != 'real' else 'fine' }}",
         "[{\"role\":\"user\",\"content\":\"real\"}]", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rt_chat *chat = open_source(cases[i].source);
        rt_chat_input input = {.messages_json = cases[i].messages, .add_generation_prompt = true};
        bis_buf out = {0};
        bis_error error = {0};
        size_t end = 999;
        bis_buf_puts(&out, "before");
        if (rt_chat_render(chat, &input, &out, &end, &error)) fail_msg("%s", error.text);
        assert_int_equal(strncmp(out.data, "before", 6), 0);
        if (end != strlen(cases[i].span) || strncmp(out.data + 6, cases[i].span, end) != 0) {
            fail_msg("%s: the span is '%.*s'", cases[i].messages, (int)end, out.data + 6);
        }
        bis_buf_free(&out);
        rt_chat_close(chat);
    }
}

static void tools_and_variables_belong_to_the_span(void **state) {
    (void)state;
    rt_chat *chat = open_source("{{ bos_token }}{{ tools|tojson }}{{ mood }}|{{ messages[0].content }}{{ eos_token }}");
    rt_chat_input input = {.messages_json = "[{\"role\":\"user\",\"content\":\"Hi\"}]",
                           .tools_json = "[{\"type\":\"function\"}]",
                           .variables_json = "{\"mood\": \"calm\"}"};
    bis_buf out = {0};
    size_t end;
    assert_int_equal(rt_chat_render(chat, &input, &out, &end, NULL), BIS_OK);
    assert_string_equal(out.data, "<s>[{\"type\": \"function\"}]calm|Hi</s>");
    assert_int_equal(end, strchr(out.data, '|') + 1 - out.data);
    bis_buf_free(&out);
    rt_chat_close(chat);
}

/* ---- Input ---- */

static void wrong_input_is_refused(void **state) {
    (void)state;
    static const struct {
        const char *messages, *tools, *variables, *text;
    } cases[] = {
        {"{}", NULL, NULL, "messages must be a JSON array of objects"},
        {"[1]", NULL, NULL, "messages[0] must be an object"},
        {"[{\"role\": \"user\"}, \"x\"]", NULL, NULL, "messages[1] must be an object"},
        {"[{]", NULL, NULL, "messages is not valid JSON: expected a member's name at byte 2"},
        {"[]", "{}", NULL, "tools must be a JSON array"},
        {"[]", "[", NULL, "tools is not valid JSON: expected a value at byte 1"},
        {"[]", NULL, "[]", "the template variables must be a JSON object"},
        {"[]", NULL, "{\"tools\": 5}", "tools must be a JSON array"},
        {"[{\"role\": \"user\", \"content\": \"\\u0000\"}]", NULL, NULL,
         "messages is not valid JSON: a NUL character at byte 36"},
        {"[{\"role\": \"\xff\"}]", NULL, NULL, "messages is not valid JSON: it is not UTF-8"},
        {"[{\"role\": \"stop\"}]", NULL, NULL, "stop is not allowed"},
    };
    rt_chat *chat = open_source("{% for m in messages %}{% if m.role == 'stop' %}{{ raise_exception(m.role ~ ' is not "
                                "allowed') }}{% endif %}{% endfor %}");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        rt_chat_input input = {
            .messages_json = cases[i].messages, .tools_json = cases[i].tools, .variables_json = cases[i].variables};
        bis_buf out = {0};
        bis_error error = {0};
        size_t end = 7;
        assert_int_equal(rt_chat_render(chat, &input, &out, &end, &error), BIS_ERR_INVALID);
        assert_string_equal(error.text, cases[i].text);
        assert_int_equal(end, 7); /* results stay unchanged */
        bis_buf_free(&out);
    }
    rt_chat_close(chat);
}

static void absent_tokens_are_undefined(void **state) {
    (void)state;
    rt_chat *chat = NULL;
    rt_chat_input input = {.messages_json = "[]"};
    bis_buf out = {0};
    assert_int_equal(
        rt_chat_open_text("t", "{{ bos_token is defined }}{{ eos_token is defined }}", NULL, "", &chat, NULL), BIS_OK);
    assert_int_equal(rt_chat_render(chat, &input, &out, NULL, NULL), BIS_OK);
    assert_string_equal(out.data, "FalseFalse");
    bis_buf_free(&out);
    rt_chat_close(chat);
}

/* ---- Model folders ---- */

static rt_tokenizer *open_demo_tokenizer(void) {
    rt_tokenizer *tokenizer = NULL;
    bis_error error = {0};
    if (rt_tokenizer_open("models/demo/tokenizer.model", &tokenizer, &error)) fail_msg("%s", error.text);
    return tokenizer;
}

static void templates_are_found_in_model_folders(void **state) {
    (void)state;
    static const struct {
        const char *jinja, *config; /* NULL: no such file */
        const char *plain, *tools;  /* what is rendered without and with tools; NULL: no template */
    } cases[] = {
        {NULL, NULL, NULL, NULL},
        {NULL, "{}", NULL, NULL},
        {NULL, "{\"chat_template\": null}", NULL, NULL},
        {"file", NULL, "file", "file"},
        {"file\n", "{\"chat_template\": \"config\"}", "file", "file"},
        {NULL, "{\"chat_template\": \"config{{ bos_token }}\"}", "config<s>", "config<s>"},
        {"{{ pad_token }}{{ unk_token }}", "{\"pad_token\": \"P\", \"unk_token\": {\"content\": \"U\"}}", "PU", "PU"},
        {NULL,
         "{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"T\"}, {\"name\": \"default\", \"template\": "
         "\"D\"}]}",
         "D", "T"},
        {NULL, "{\"chat_template\": [{\"name\": \"default\", \"template\": \"D\"}]}", "D", "D"},
    };
    rt_tokenizer *tokenizer = open_demo_tokenizer();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *folder = scratch_make();
        if (cases[i].jinja) scratch_write_text("chat_template.jinja", cases[i].jinja);
        if (cases[i].config) scratch_write_text("tokenizer_config.json", cases[i].config);
        rt_chat *chat = (rt_chat *)&cases; /* must become NULL without a template */
        bis_error error = {0};
        if (rt_chat_open(folder, tokenizer, &chat, &error)) fail_msg("case %zu: %s", i, error.text);
        assert_int_equal(chat != NULL, cases[i].plain != NULL);
        for (int with_tools = 0; chat && with_tools < 2; with_tools++) {
            rt_chat_input input = {.messages_json = "[]", .tools_json = with_tools ? "[]" : NULL};
            bis_buf out = {0};
            assert_int_equal(rt_chat_render(chat, &input, &out, NULL, &error), BIS_OK);
            assert_string_equal(out.data, with_tools ? cases[i].tools : cases[i].plain);
            bis_buf_free(&out);
        }
        rt_chat_close(chat);
    }
    scratch_remove();
    rt_tokenizer_close(tokenizer);
}

static void broken_model_files_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *name, *content, *text;
    } cases[] = {
        {"chat_template.jinja", "x\n{% if %}", "chat_template.jinja, line 2: expected an expression, got '%}'"},
        {"tokenizer_config.json", "{\"chat_template\": \"{{ x\"}",
         "tokenizer_config.json, line 1: expected '}}', got 'the end of the template'"},
        {"tokenizer_config.json", "{", "tokenizer_config.json is not valid JSON: expected a member's name at byte 1"},
        {"tokenizer_config.json", "[]", "tokenizer_config.json must hold a JSON object"},
        {"tokenizer_config.json", "{\"chat_template\": 1}",
         "tokenizer_config.json: chat_template must be a string or a list"},
        {"tokenizer_config.json", "{\"chat_template\": [1, {}]}",
         "tokenizer_config.json: its chat_template list has no template"},
    };
    rt_tokenizer *tokenizer = open_demo_tokenizer();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *folder = scratch_make();
        scratch_write_text(cases[i].name, cases[i].content);
        rt_chat *chat = NULL;
        bis_error error = {0};
        assert_int_equal(rt_chat_open(folder, tokenizer, &chat, &error), BIS_ERR_FORMAT);
        assert_int_equal(error.status, BIS_ERR_FORMAT);
        assert_string_equal(error.text, cases[i].text);
        assert_null(chat);
    }
    const char *folder = scratch_make();
    scratch_write("chat_template.jinja", "a\0b", 3);
    bis_error error = {0};
    rt_chat *chat = NULL;
    assert_int_equal(rt_chat_open(folder, tokenizer, &chat, &error), BIS_ERR_FORMAT);
    assert_non_null(strstr(error.text, "contains a NUL byte"));
    scratch_remove();
    rt_tokenizer_close(tokenizer);
}

static void failing_allocations_are_reported(void **state) {
    (void)state;
    rt_tokenizer *tokenizer = open_demo_tokenizer();
    const char *folder = scratch_make();
    scratch_write_text(
        "tokenizer_config.json",
        "{\"pad_token\": \"P\", \"chat_template\": [{\"name\": \"default\", \"template\": \"D{{ messages }}"
        "\"}, {\"name\": \"tool_use\", \"template\": \"T\"}]}");
    rt_chat_input input = {.messages_json = "[{\"role\": \"user\", \"content\": \"a\\nb\"}]"};
    long failures = 0;
    for (long successes = 0;; successes++) {
        rt_chat *chat = NULL;
        bis_buf out = {0};
        size_t end = 0;
        bis_alloc_fail_after(successes);
        bis_status status = rt_chat_open(folder, tokenizer, &chat, NULL);
        if (!status) status = rt_chat_render(chat, &input, &out, &end, NULL);
        bis_alloc_fail_after(-1);
        rt_chat_close(chat);
        bis_buf_free(&out);
        if (!status) break; /* later failures would only hit the search for the span, which then is empty */
        assert_int_equal(status, BIS_ERR_NOMEM);
        failures++;
    }
    assert_true(failures > 10);
    scratch_remove();
    rt_tokenizer_close(tokenizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(templates_render_as_in_python),
        cmocka_unit_test(span_ends_where_users_begin),
        cmocka_unit_test(tools_and_variables_belong_to_the_span),
        cmocka_unit_test(wrong_input_is_refused),
        cmocka_unit_test(absent_tokens_are_undefined),
        cmocka_unit_test(templates_are_found_in_model_folders),
        cmocka_unit_test(broken_model_files_are_refused),
        cmocka_unit_test(failing_allocations_are_reported),
    };
    return cmocka_run_group_tests_name("chat", tests, NULL, NULL);
}
