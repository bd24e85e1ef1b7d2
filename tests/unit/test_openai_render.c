/* Answers of the OpenAI API, byte for byte. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "server/openai_render.h"

/* Token 0 is "a", 1 is one byte of a longer character, 2 is a quotation mark, 3 is a whole umlaut. */
static size_t read_token(const void *user, int32_t id, char out[RT_TOKEN_TEXT_MAX]) {
    static const char *const texts[] = {"a", "\xe2", "\"", "\xc3\xa4"};
    (void)user;
    if (id < 0 || id > 3) return 0;
    size_t length = strlen(texts[id]);
    memcpy(out, texts[id], length);
    return length;
}

static const srv_token_reader reader = {.bytes = read_token};

static srv_answer_head head(srv_api api) {
    return (srv_answer_head){
        .api = api, .id = "id-1", .model = "m\"x", .fingerprint = "f", .created = 7, .reader = &reader};
}

#define HEAD(object)                                                                                                   \
    "{\"id\":\"id-1\",\"object\":\"" object                                                                            \
    "\",\"created\":7,\"model\":\"m\\\"x\",\"system_fingerprint\":\"f\",\"choices\":["
#define USAGE                                                                                                          \
    ",\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5,\"prompt_tokens_details\":"            \
    "{\"cached_tokens\":1},\"completion_tokens_details\":{\"reasoning_tokens\":0}}"

static const srv_usage usage = {.prompt_tokens = 3, .completion_tokens = 2, .cached_tokens = 1};

static void expect(bis_buf *out, const char *text) {
    assert_false(out->failed);
    assert_string_equal(bis_buf_cstr(out), text);
    bis_buf_free(out);
}

static void an_error_has_null_for_what_it_lacks(void **state) {
    (void)state;
    srv_api_error error;
    srv_refuse(&error, "n", "bad \"n\"");
    bis_buf out = {0};
    srv_render_error(&out, &error);
    expect(&out, "{\"error\":{\"message\":\"bad \\\"n\\\"\",\"type\":\"invalid_request_error\",\"param\":\"n\","
                 "\"code\":null}}");
    srv_refuse(&error, NULL, "x");
    error.code = "c";
    srv_render_error_event(&out, &error);
    expect(
        &out,
        "data: {\"error\":{\"message\":\"x\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":\"c\"}}\n\n");
}

static void an_error_message_is_cut_between_characters(void **state) {
    (void)state;
    char text[1024];
    for (size_t i = 0; i + 2 < sizeof text; i += 2) memcpy(text + i, "\xc3\xa4", 3);
    srv_api_error error;
    srv_refuse(&error, NULL, "%s", text);
    assert_int_equal(strlen(error.message) % 2, 0);
}

static void models_are_listed(void **state) {
    (void)state;
    srv_model_card card = {.name = "m", .created = 5, .max_context = 64};
    bis_buf out = {0};
    srv_render_models(&out, &card);
    expect(&out,
           "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\",\"created\":5,\"owned_by\":\"bisup\","
           "\"max_model_len\":64}]}");
}

static void a_chat_answer_has_its_choices_in_order(void **state) {
    (void)state;
    srv_answer_choice choices[] = {{.text = "a\n", .length = 2, .finish = RT_FINISH_STOP},
                                   {.text = "", .length = 0, .finish = RT_FINISH_LENGTH}};
    srv_answer_head h = head(SRV_API_CHAT);
    bis_buf out = {0};
    srv_render_answer(&out, &h, choices, 2, &usage);
    expect(&out,
           HEAD("chat.completion") "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"a\\n\",\"refusal\":"
                                   "null},\"logprobs\":null,\"finish_reason\":\"stop\"},{\"index\":1,\"message\":{"
                                   "\"role\":\"assistant\","
                                   "\"content\":\"\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"length\"}"
                                   "]" USAGE "}");
}

static void chat_logprobs_show_bytes_of_broken_characters(void **state) {
    (void)state;
    srv_token_record items[] = {
        {.token = 1, .known = true, .logprob = -0.5f, .top_count = 1, .top = {{2, -INFINITY}}},
    };
    srv_token_records records = {.items = items, .count = 1};
    srv_answer_choice choice = {.text = "", .length = 0, .finish = RT_FINISH_STOP, .records = &records};
    srv_answer_head h = head(SRV_API_CHAT);
    bis_buf out = {0};
    srv_render_answer(&out, &h, &choice, 1, &usage);
    assert_non_null(strstr(out.data,
                           "\"logprobs\":{\"content\":[{\"token\":\"\xef\xbf\xbd\",\"logprob\":-0.5,\"bytes\":[226],"
                           "\"top_logprobs\":[{\"token\":\"\\\"\",\"logprob\":-9999,\"bytes\":[34]}]}],"
                           "\"refusal\":null}"));
    bis_buf_free(&out);
}

static void completion_logprobs_count_characters(void **state) {
    (void)state;
    srv_token_record items[] = {
        {.token = 3, .known = false, .logprob = NAN},
        {.token = 1, .known = true, .logprob = -1, .top_count = 2, .top = {{1, -1}, {0, -2}}},
        {.token = 0, .known = true, .logprob = -2},
    };
    srv_token_records records = {.items = items, .count = 3};
    srv_answer_choice choice = {.text = "x", .length = 1, .finish = RT_FINISH_STOP, .records = &records};
    srv_answer_head h = head(SRV_API_COMPLETION);
    bis_buf out = {0};
    srv_render_answer(&out, &h, &choice, 1, &usage);
    expect(&out,
           HEAD("text_completion") "{\"index\":0,\"text\":\"x\",\"logprobs\":{\"tokens\":[\"\xc3\xa4\","
                                   "\"bytes:\\\\xe2\",\"a\"],\"token_logprobs\":[null,-1,-2],\"top_logprobs\":[null,{"
                                   "\"bytes:\\\\xe2\":-1,"
                                   "\"a\":-2},{}],\"text_offset\":[0,1,2]},\"finish_reason\":\"stop\"}]" USAGE "}");
    assert_int_equal(records.characters, 3); /* where a stream's next piece begins */
}

static void chunks_carry_role_text_and_finish(void **state) {
    (void)state;
    srv_answer_head chat = head(SRV_API_CHAT), completion = head(SRV_API_COMPLETION);
    srv_answer_choice text = {.text = "hi", .length = 2}, end = {.text = "", .finish = RT_FINISH_LENGTH};
    bis_buf out = {0};
    srv_render_chunk(&out, &chat, 0, &text, true, false);
    expect(&out,
           "data: " HEAD("chat.completion.chunk") "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"hi\"},"
                                                  "\"logprobs\":null,\"finish_reason\":null}]}\n\n");
    srv_render_chunk(&out, &chat, 3, &text, false, true);
    expect(&out, "data: " HEAD("chat.completion.chunk") "{\"index\":3,\"delta\":{\"content\":\"hi\"},\"logprobs\":null,"
                                                        "\"finish_reason\":null}],\"usage\":null}\n\n");
    srv_render_chunk(&out, &chat, 0, &end, false, false);
    expect(&out, "data: " HEAD("chat.completion.chunk") "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":"
                                                        "\"length\"}]}\n\n");
    srv_render_chunk(&out, &completion, 0, &end, true, false);
    expect(&out, "data: " HEAD("text_completion") "{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":"
                                                  "\"length\"}]}\n\n");
    srv_render_usage_chunk(&out, &chat, &usage);
    expect(&out, "data: " HEAD("chat.completion.chunk") "]" USAGE "}\n\n");
}

static void memory_that_runs_out_is_remembered(void **state) {
    (void)state;
    srv_answer_choice choice = {.text = "some text", .length = 9, .finish = RT_FINISH_STOP};
    srv_answer_head h = head(SRV_API_CHAT);
    bis_buf out = {0};
    bis_alloc_fail_after(1);
    srv_render_answer(&out, &h, &choice, 1, &usage);
    bis_alloc_fail_after(-1);
    assert_true(out.failed);
    bis_buf_free(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_error_has_null_for_what_it_lacks),
        cmocka_unit_test(an_error_message_is_cut_between_characters),
        cmocka_unit_test(models_are_listed),
        cmocka_unit_test(a_chat_answer_has_its_choices_in_order),
        cmocka_unit_test(chat_logprobs_show_bytes_of_broken_characters),
        cmocka_unit_test(completion_logprobs_count_characters),
        cmocka_unit_test(chunks_carry_role_text_and_finish),
        cmocka_unit_test(memory_that_runs_out_is_remembered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
