/* Requests of the OpenAI API: what is read, and what is refused, with the field's name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/clock.h"
#include "server/json_check.h"
#include "server/openai_parse.h"

#define CHAT_HEAD "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

/* ---- Refused ------------------------------------------------------------------------------------- */

static void refuse(srv_api api, const char *body, const char *param) {
    srv_generate g;
    srv_api_error error;
    if (srv_parse_generate(body, strlen(body), api, &g, &error)) fail_msg("accepted: %s", body);
    if (error.status != 400 || strcmp(error.param, param) != 0)
        fail_msg("%s: status %d, param '%s', expected '%s': %s", body, error.status, error.param, param, error.message);
    assert_string_equal(error.type, "invalid_request_error");
    assert_true(strlen(error.message) > 10);
}

static void wrong_numbers_are_refused_in_every_integer_field(void **state) {
    (void)state;
    static const char *const values[] = {
        "-1", "2147483648", "9223372036854775808", "1e308", "1.5", "\"1\"", "true", "[1]", "{}", "1e999"};
    static const char *const both[] = {"n", "max_tokens", "top_k", "stop_token_ids"};
    static const char *const chat[] = {"max_completion_tokens", "top_logprobs"};
    static const char *const completion[] = {"logprobs", "best_of"};
    char body[256];
    for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
        for (size_t f = 0; f < 4; f++) {
            if (f == 3 && strcmp(values[v], "[1]") == 0) continue; /* a good list */
            snprintf(body, sizeof body, CHAT_HEAD ",\"%s\":%s}", both[f], values[v]);
            refuse(SRV_API_CHAT, body, both[f]);
            snprintf(body, sizeof body, "{\"prompt\":\"x\",\"%s\":%s}", both[f], values[v]);
            refuse(SRV_API_COMPLETION, body, both[f]);
        }
        for (size_t f = 0; f < 2; f++) {
            snprintf(body, sizeof body, CHAT_HEAD ",\"logprobs\":true,\"%s\":%s}", chat[f], values[v]);
            refuse(SRV_API_CHAT, body, chat[f]);
            snprintf(body, sizeof body, "{\"prompt\":\"x\",\"%s\":%s}", completion[f], values[v]);
            refuse(SRV_API_COMPLETION, body, completion[f]);
        }
        if (strcmp(values[v], "2147483648") == 0) continue; /* a good seed */
        snprintf(body, sizeof body, CHAT_HEAD ",\"seed\":%s}", values[v]);
        refuse(SRV_API_CHAT, body, "seed");
    }
}

static void wrong_chat_fields_are_refused_by_name(void **state) {
    (void)state;
    static const struct {
        const char *rest, *param;
    } cases[] = {
        {"\"model\":1", "model"},
        {"\"n\":0", "n"},
        {"\"n\":129", "n"},
        {"\"n\":1000000000", "n"},
        {"\"n\":1,\"n\":2", "n"},
        {"\"stream\":1", "stream"},
        {"\"stream\":\"true\"", "stream"},
        {"\"stream_options\":true", "stream_options"},
        {"\"stream\":true,\"stream_options\":{\"include_usage\":1}", "stream_options.include_usage"},
        {"\"stream_options\":{\"include_usage\":true}", "stream_options"},
        {"\"max_tokens\":0", "max_tokens"},
        {"\"temperature\":-0.1", "temperature"},
        {"\"temperature\":2.1", "temperature"},
        {"\"temperature\":1e999", "temperature"},
        {"\"temperature\":\"hot\"", "temperature"},
        {"\"top_p\":1.5", "top_p"},
        {"\"min_p\":-1", "min_p"},
        {"\"repetition_penalty\":0", "repetition_penalty"},
        {"\"frequency_penalty\":2.5", "frequency_penalty"},
        {"\"presence_penalty\":-2.5", "presence_penalty"},
        {"\"logit_bias\":[]", "logit_bias"},
        {"\"logit_bias\":{\"x\":1}", "logit_bias"},
        {"\"logit_bias\":{\"-1\":1}", "logit_bias"},
        {"\"logit_bias\":{\"99999999999\":1}", "logit_bias"},
        {"\"logit_bias\":{\"1\":101}", "logit_bias"},
        {"\"logit_bias\":{\"1\":\"1\"}", "logit_bias"},
        {"\"stop\":5", "stop"},
        {"\"stop\":\"\"", "stop"},
        {"\"stop\":[\"a\",\"\"]", "stop"},
        {"\"stop\":[\"a\",1]", "stop"},
        {"\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]", "stop"},
        {"\"stop_token_ids\":[-1]", "stop_token_ids"},
        {"\"logprobs\":1", "logprobs"},
        {"\"logprobs\":true,\"top_logprobs\":21", "top_logprobs"},
        {"\"logprobs\":true,\"top_logprobs\":1000000", "top_logprobs"},
        {"\"top_logprobs\":2", "top_logprobs"},
        {"\"response_format\":{\"type\":\"json_object\"}", "response_format"},
        {"\"response_format\":\"text\"", "response_format"},
        {"\"tools\":{}", "tools"},
        {"\"tools\":[1]", "tools"},
        {"\"tools\":[{\"type\":\"function\"}]", "tools"},
        {"\"tool_choice\":\"required\"", "tool_choice"},
        {"\"tool_choice\":{\"type\":\"function\"}", "tool_choice"},
        {"\"chat_template_kwargs\":[]", "chat_template_kwargs"},
        {"\"add_generation_prompt\":0", "add_generation_prompt"},
        {"\"ignore_eos\":\"no\"", "ignore_eos"},
        {"\"skip_special_tokens\":2", "skip_special_tokens"},
        {"\"user\":5", "user"},
        {"\"cache_salt\":{}", "cache_salt"},
    };
    char body[256];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(body, sizeof body, CHAT_HEAD ",%s}", cases[i].rest);
        refuse(SRV_API_CHAT, body, cases[i].param);
    }
}

static void wrong_messages_are_refused_with_their_place(void **state) {
    (void)state;
    static const struct {
        const char *messages, *param;
    } cases[] = {
        {"null", "messages"},
        {"[]", "messages"},
        {"{}", "messages"},
        {"\"hi\"", "messages"},
        {"[1]", "messages[0]"},
        {"[{}]", "messages[0].role"},
        {"[{\"role\":\"user\"}]", "messages[0].content"},
        {"[{\"role\":\"king\",\"content\":\"x\"}]", "messages[0].role"},
        {"[{\"role\":1,\"content\":\"x\"}]", "messages[0].role"},
        {"[{\"role\":\"user\",\"content\":null}]", "messages[0].content"},
        {"[{\"role\":\"assistant\",\"content\":null}]", "messages[0].content"},
        {"[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[]}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":7}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":{}}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":[]}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":[\"x\"]}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]", "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\",\"image_url\":{\"url\":\"x\"}}]}]",
         "messages[0].content"},
        {"[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"user\",\"content\":\"a\",\"content\":\"b\"}]",
         "messages[1].content"},
        {"[{\"role\":\"assistant\",\"tool_calls\":{\"a\":1}}]", "messages[0].tool_calls"},
        {"[{\"role\":\"assistant\",\"tool_calls\":[1]}]", "messages[0].tool_calls"},
        {"[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{}}]}]", "messages[0].tool_calls"},
    };
    char body[256];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(body, sizeof body, "{\"messages\":%s}", cases[i].messages);
        refuse(SRV_API_CHAT, body, cases[i].param);
    }
    refuse(SRV_API_CHAT, "{}", "messages");
}

static void wrong_prompts_are_refused(void **state) {
    (void)state;
    static const char *const prompts[] = {
        "null",  "\"\"",         "[]",     "[[]]", "[\"\"]", "[\"a\",1]", "[1,\"a\"]", "[[1],\"a\"]", "[-1]",
        "[1.5]", "[2147483648]", "[true]", "5",    "{}",     "[[[1]]]",   "[[\"a\"]]", "[null]"};
    char body[128];
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        snprintf(body, sizeof body, "{\"prompt\":%s}", prompts[i]);
        refuse(SRV_API_COMPLETION, body, "prompt");
    }
    refuse(SRV_API_COMPLETION, "{}", "prompt");
    refuse(SRV_API_COMPLETION, "{\"prompt\":\"a\",\"suffix\":\"b\"}", "suffix");
    refuse(SRV_API_COMPLETION, "{\"prompt\":\"a\",\"n\":2,\"best_of\":3}", "best_of");
    refuse(SRV_API_COMPLETION, "{\"prompt\":\"a\",\"logprobs\":6}", "logprobs");
    refuse(SRV_API_COMPLETION, "{\"prompt\":\"a\",\"logprobs\":true}", "logprobs");
    refuse(SRV_API_COMPLETION, "{\"prompt\":\"a\",\"echo\":1}", "echo");
}

static void malformed_json_is_refused(void **state) {
    (void)state;
    static const char *const bodies[] = {
        "",
        " ",
        "{",
        "}",
        "[]",
        "5",
        "null",
        "\"x\"",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{'a':1}",
        "{\"a\":1}x",
        "{\"a\":01}",
        "{\"a\":1.}",
        "{\"a\":.5}",
        "{\"a\":+1}",
        "{\"a\":1e}",
        "{\"a\":NaN}",
        "{\"a\":Infinity}",
        "{\"a\":tru}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\\u12\"}",
        "{\"a\":\"\\u0000\"}",
        "{\"a\\u0000b\":1}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":\"\\udc00\"}",
        "{\"a\":\"\\ud800\\u0041\"}",
        "{\"a\":\"\xff\"}",
        "{\"a\":\"\xc0\x80\"}",
        "{\"a\":\"\xed\xa0\x80\"}",
        "{\"a\":\"b\nc\"}",
        "{\"a\":[1 2]}",
        "\xef\xbb\xbf{}",
    };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) refuse(SRV_API_CHAT, bodies[i], "");
    srv_generate g;
    srv_api_error error;
    assert_false(srv_parse_generate("{\"a\":\"\0\"}", 9, SRV_API_CHAT, &g, &error));
    assert_int_equal(error.status, 400);
}

/* Bodies that are small to send and large to process must be refused quickly. */
static char *repeat(const char *head, const char *piece, size_t count, const char *tail) {
    bis_buf out = {0};
    bis_buf_puts(&out, head);
    for (size_t i = 0; i < count; i++) bis_buf_puts(&out, piece);
    bis_buf_puts(&out, tail);
    assert_false(out.failed);
    return out.data;
}

static void oversized_structures_are_refused_quickly(void **state) {
    (void)state;
    static const struct {
        const char *head, *piece;
        size_t count;
        const char *tail, *param;
    } cases[] = {
        {"{\"messages\":", "[", 100000, "", ""},
        {"{\"ignored\":", "[", 100000, "", ""},
        {"{\"ignored\":", "{\"a\":", 100000, "", ""},
        {"{\"ignored\":", "[", 64, "", ""},
        {"{\"prompt\":\"x\",\"seed\":", "9", 400, "}", ""},
        {"{\"prompt\":\"x\",\"seed\":1.", "0", 400, "}", ""},
        {"{\"prompt\":\"x\",\"ignored\":[1", ",1", 1000000, "]}", ""},
        {"{\"prompt\":\"x\",\"stop\":[\"a\"", ",\"a\"", 100000, "]}", "stop"},
        {"{\"prompt\":\"x\",\"stop_token_ids\":[1", ",1", 100000, "]}", "stop_token_ids"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"1\":1", ",\"1\":1", 400000, "}}", "logit_bias"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"1\":1", ",\"1\":1", 1000000, "}}", ""},
        {"{\"prompt\":[\"x\"", ",\"x\"", 100000, "]}", "prompt"},
        {"{\"prompt\":[\"x\"", ",\"x\"", 200, "],\"n\":128}", "n"},
        {"{\"prompt\":\"x\",\"stop\":\"", "a", 300, "\"}", "stop"},
        {"{\"prompt\":\"x\",\"model\":\"", "a", 3000, "\"}", "model"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *body = repeat(cases[i].head, cases[i].piece, cases[i].count, cases[i].tail);
        double start = bis_now_seconds();
        refuse(SRV_API_COMPLETION, body, cases[i].param);
        assert_true(bis_now_seconds() - start < 5); /* with sanitizers on a busy machine; normally milliseconds */
        bis_free(body);
    }
    char *messages = repeat("{\"messages\":[{\"role\":\"user\",\"content\":\"\"}",
                            ",{\"role\":\"user\",\"content\":\"\"}", 5000, "]}");
    refuse(SRV_API_CHAT, messages, "messages");
    bis_free(messages);
}

/* ---- Accepted ------------------------------------------------------------------------------------ */

static srv_generate parse(srv_api api, const char *body) {
    srv_generate g;
    srv_api_error error;
    if (!srv_parse_generate(body, strlen(body), api, &g, &error)) fail_msg("%s: %s", body, error.message);
    return g;
}

static void a_minimal_chat_has_the_documented_defaults(void **state) {
    (void)state;
    srv_generate g = parse(SRV_API_CHAT, CHAT_HEAD "}");
    assert_string_equal(g.conversation.messages, "[{\"role\":\"user\",\"content\":\"hi\"}]");
    assert_null(g.conversation.tools);
    assert_true(g.conversation.add_generation_prompt);
    assert_null(g.model);
    assert_int_equal(g.n, 1);
    assert_int_equal(g.max_tokens, -1);
    assert_int_equal(g.logprobs, -1);
    assert_true(g.sampling.temperature == 1 && g.sampling.top_p == 1 && g.sampling.repetition_penalty == 1);
    assert_false(g.stream || g.has_seed || g.ignore_eos || g.include_usage || g.echo);
    assert_true(g.skip_special_tokens);
    srv_generate_free(&g);
    g = parse(SRV_API_COMPLETION, "{\"prompt\":\"x\"}");
    assert_int_equal(g.max_tokens, 16);
    srv_generate_free(&g);
}

static void every_field_is_read(void **state) {
    (void)state;
    srv_generate g = parse(
        SRV_API_CHAT, CHAT_HEAD
        ",\"model\":\"m\",\"n\":3,\"stream\":true,\"stream_options\":{\"include_usage\":true},"
        "\"max_tokens\":5,\"max_completion_tokens\":7,\"temperature\":0.5,\"top_p\":0,\"min_p\":0.25,\"top_k\":40,"
        "\"repetition_penalty\":1.5,\"frequency_penalty\":-2,\"presence_penalty\":2,"
        "\"logit_bias\":{\"5\":-100,\"6\":1.5},\"seed\":9007199254740991,\"stop\":[\"a\",\"bc\"],"
        "\"stop_token_ids\":[1,2,3],\"ignore_eos\":true,\"skip_special_tokens\":false,\"logprobs\":true,"
        "\"top_logprobs\":20,\"response_format\":{\"type\":\"text\"},\"user\":\"u\",\"cache_salt\":\"s\","
        "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"x\":1.0}}],\"tool_choice\":\"auto\","
        "\"chat_template_kwargs\":{\"a\":1.50},\"add_generation_prompt\":false,\"store\":true,\"unknown\":{}}");
    assert_string_equal(g.model, "m");
    assert_int_equal(g.n, 3);
    assert_true(g.stream && g.include_usage && g.ignore_eos && g.has_seed);
    assert_false(g.skip_special_tokens || g.conversation.add_generation_prompt);
    assert_int_equal(g.max_tokens, 7);
    assert_true(g.sampling.temperature == 0.5f && g.sampling.min_p == 0.25f && g.sampling.repetition_penalty == 1.5f);
    assert_true(g.sampling.top_p > 0 && g.sampling.top_p < 1e-6f);
    assert_true(g.sampling.frequency_penalty == -2 && g.sampling.presence_penalty == 2);
    assert_int_equal(g.sampling.top_k, 40);
    assert_int_equal(g.sampling.logit_bias_count, 2);
    assert_int_equal(g.sampling.logit_bias[1].token, 6);
    assert_true(g.sampling.logit_bias[1].bias == 1.5f);
    assert_true(g.sampling.seed == 9007199254740991u);
    assert_int_equal(g.stop_count, 2);
    assert_string_equal(g.stop[1], "bc");
    assert_int_equal(g.stop_token_count, 3);
    assert_int_equal(g.stop_tokens[2], 3);
    assert_int_equal(g.logprobs, 20);
    assert_string_equal(g.conversation.tools, "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"x\":1.0}}]");
    assert_string_equal(g.conversation.variables, "{\"a\":1.50}");
    srv_generate_free(&g);
}

static void null_means_absent(void **state) {
    (void)state;
    srv_generate g = parse(SRV_API_CHAT, CHAT_HEAD ",\"model\":null,\"n\":null,\"stop\":null,\"temperature\":null,"
                                                   "\"logit_bias\":null,\"stream_options\":null,\"tools\":null,"
                                                   "\"logprobs\":null,\"top_logprobs\":null,\"seed\":null}");
    assert_int_equal(g.n, 1);
    assert_false(g.has_seed);
    srv_generate_free(&g);
}

static void messages_are_normalised(void **state) {
    (void)state;
    static const struct {
        const char *sent, *kept;
    } cases[] = {
        {"[{\"content\":\"x\",\"role\":\"developer\"}]", "[{\"content\":\"x\",\"role\":\"system\"}]"},
        {"[{\"role\":\"user\",\"name\":\"Bo\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\","
         "\"text\":\"b\"}]}]",
         "[{\"role\":\"user\",\"name\":\"Bo\",\"content\":\"a\\nb\"}]"},
        {"[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"1\",\"type\":\"function\",\"function\":"
         "{\"name\":\"f\",\"arguments\":\"{\\\"x\\\": "
         "1}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"2\"}]",
         "[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"1\",\"type\":\"function\",\"function\":"
         "{\"name\":\"f\",\"arguments\":{\"x\":1}}}]},{\"role\":\"tool\",\"tool_call_id\":\"1\",\"content\":\"2\"}]"},
        {"[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"not json\"}}]}]",
         "[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"not json\"}}]}]"},
        {"[{\"role\":\"user\",\"content\":\"\\u00e4\\ud83d\\ude00\\\"\\\\\\n\"}]",
         "[{\"role\":\"user\",\"content\":\"\xc3\xa4\xf0\x9f\x98\x80\\\"\\\\\\n\"}]"},
    };
    char body[512];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(body, sizeof body, "{\"messages\":%s}", cases[i].sent);
        srv_generate g = parse(SRV_API_CHAT, body);
        assert_string_equal(g.conversation.messages, cases[i].kept);
        srv_generate_free(&g);
    }
}

static void prompts_have_four_shapes(void **state) {
    (void)state;
    srv_generate g = parse(SRV_API_COMPLETION, "{\"prompt\":\"abc\"}");
    assert_int_equal(g.prompt_count, 1);
    assert_string_equal(g.prompts[0].text, "abc");
    srv_generate_free(&g);
    g = parse(SRV_API_COMPLETION, "{\"prompt\":[\"a\",\"b\"]}");
    assert_int_equal(g.prompt_count, 2);
    assert_string_equal(g.prompts[1].text, "b");
    srv_generate_free(&g);
    g = parse(SRV_API_COMPLETION, "{\"prompt\":[7,8,9]}");
    assert_int_equal(g.prompt_count, 1);
    assert_int_equal(g.prompts[0].ids.count, 3);
    assert_int_equal(g.prompts[0].ids.ids[2], 9);
    srv_generate_free(&g);
    g = parse(SRV_API_COMPLETION, "{\"prompt\":[[1],[2,3]],\"max_tokens\":0,\"echo\":true}");
    assert_int_equal(g.prompt_count, 2);
    assert_int_equal(g.prompts[1].ids.count, 2);
    assert_int_equal(g.max_tokens, 0);
    assert_true(g.echo);
    srv_generate_free(&g);
}

static void tool_choice_none_hides_the_tools(void **state) {
    (void)state;
    srv_generate g =
        parse(SRV_API_CHAT, CHAT_HEAD ",\"tools\":[{\"function\":{\"name\":\"f\"}}],\"tool_choice\":\"none\"}");
    assert_null(g.conversation.tools);
    srv_generate_free(&g);
}

static void text_tools_take_a_text_or_a_conversation(void **state) {
    (void)state;
    static const struct {
        const char *body, *param; /* NULL: accepted */
    } cases[] = {
        {"{\"content\":\"\"}", NULL},
        {"{\"prompt\":\"a\",\"add_special\":false,\"parse_special\":false}", NULL},
        {CHAT_HEAD "}", NULL},
        {"{}", "content"},
        {"{\"content\":\"a\",\"prompt\":\"b\"}", "prompt"},
        {"{\"content\":\"a\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", "content"},
        {"{\"content\":5}", "content"},
        {"{\"content\":\"a\",\"add_special\":1}", "add_special"},
    };
    srv_text_request request;
    srv_api_error error;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bool ok = srv_parse_tokenize(cases[i].body, strlen(cases[i].body), &request, &error);
        assert_int_equal(ok, cases[i].param == NULL);
        if (ok) srv_text_request_free(&request);
        else assert_string_equal(error.param, cases[i].param);
    }
    static const char content[] = "{\"content\":\"a\"}";
    assert_false(srv_parse_apply_template(content, strlen(content), &request, &error));
    assert_string_equal(error.param, "messages");

    srv_detokenize ids;
    static const char *const wrong[] = {"{}",
                                        "{\"tokens\":5}",
                                        "{\"tokens\":[\"a\"]}",
                                        "{\"tokens\":[-1]}",
                                        "{\"tokens\":[1.5]}",
                                        "{\"tokens\":[4294967296]}"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_false(srv_parse_detokenize(wrong[i], strlen(wrong[i]), &ids, &error));
        assert_string_equal(error.param, "tokens");
    }
    assert_true(srv_parse_detokenize("{\"tokens\":[]}", 13, &ids, &error));
    assert_int_equal(ids.ids.count, 0);
    srv_detokenize_free(&ids);
}

static void memory_that_runs_out_is_a_503_and_leaks_nothing(void **state) {
    (void)state;
    static const char chat[] = CHAT_HEAD ",\"model\":\"m\",\"logit_bias\":{\"1\":1},\"stop\":[\"a\",\"b\"],"
                                         "\"tools\":[{\"function\":{\"name\":\"f\"}}],\"chat_template_kwargs\":{}}";
    static const char completion[] = "{\"prompt\":[[1,2],[3]],\"stop\":\"x\"}";
    for (int which = 0; which < 2; which++) {
        const char *body = which ? completion : chat;
        int failures = 0;
        for (long n = 0;; n++) {
            srv_generate g;
            srv_api_error error;
            bis_alloc_fail_after(n);
            bool ok = srv_parse_generate(body, strlen(body), which ? SRV_API_COMPLETION : SRV_API_CHAT, &g, &error);
            bis_alloc_fail_after(-1);
            if (ok) {
                srv_generate_free(&g);
                break;
            }
            assert_int_equal(error.status, 503);
            failures++;
        }
        assert_true(failures >= 4);
    }
}

static void slices_give_the_text_of_outermost_members(void **state) {
    (void)state;
    static const char text[] = "{ \"a\" : [1, {\"b\":2}] , \"b\": 1.0, \"c\":{\"a\":3}}";
    srv_json_slice slices[] = {{.key = "a"}, {.key = "b"}, {.key = "d"}};
    bis_error error;
    assert_int_equal(srv_json_check(text, strlen(text), slices, 3, &error), BIS_OK);
    assert_int_equal(slices[0].length, 12);
    assert_memory_equal(slices[0].start, "[1, {\"b\":2}]", 12);
    assert_int_equal(slices[1].length, 3);
    assert_memory_equal(slices[1].start, "1.0", 3);
    assert_null(slices[2].start);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_numbers_are_refused_in_every_integer_field),
        cmocka_unit_test(wrong_chat_fields_are_refused_by_name),
        cmocka_unit_test(wrong_messages_are_refused_with_their_place),
        cmocka_unit_test(wrong_prompts_are_refused),
        cmocka_unit_test(malformed_json_is_refused),
        cmocka_unit_test(oversized_structures_are_refused_quickly),
        cmocka_unit_test(a_minimal_chat_has_the_documented_defaults),
        cmocka_unit_test(every_field_is_read),
        cmocka_unit_test(null_means_absent),
        cmocka_unit_test(messages_are_normalised),
        cmocka_unit_test(prompts_have_four_shapes),
        cmocka_unit_test(tool_choice_none_hides_the_tools),
        cmocka_unit_test(text_tools_take_a_text_or_a_conversation),
        cmocka_unit_test(memory_that_runs_out_is_a_503_and_leaks_nothing),
        cmocka_unit_test(slices_give_the_text_of_outermost_members),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
