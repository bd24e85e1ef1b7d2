/* Request bodies: the first byte chooses the parser, the rest is the body. What is accepted must be within the
 * documented ranges, and normalised messages must be JSON again. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/utf8.h"
#include "server/json_check.h"
#include "server/openai_parse.h"
#include "server/openai_render.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds) {
    if (!holds) abort();
}

static void must_be_json(const char *text) {
    bis_error error;
    if (text) must(srv_json_check(text, strlen(text), NULL, 0, &error) == BIS_OK);
}

static void check_generate(const srv_generate *g) {
    must(g->n >= 1 && g->n <= SRV_N_MAX && g->max_tokens >= -1);
    must(g->sampling.temperature >= 0 && g->sampling.temperature <= 2);
    must(g->sampling.top_p > 0 && g->sampling.top_p <= 1 && g->sampling.repetition_penalty > 0);
    must(g->sampling.logit_bias_count <= RT_LOGIT_BIAS_MAX && g->stop_count <= RT_STOP_STRINGS_MAX);
    must(g->logprobs >= -1 && g->logprobs <= RT_LOGPROBS_MAX);
    for (size_t i = 0; i < g->stop_count; i++) must(g->stop[i][0] && strlen(g->stop[i]) < RT_STOP_STRING_BYTES);
    for (size_t i = 0; i < g->prompt_count; i++) must(g->prompts[i].text || g->prompts[i].ids.count > 0);
    if (g->api == SRV_API_COMPLETION) must(g->prompt_count > 0);
    else must(g->conversation.messages != NULL);
    must_be_json(g->conversation.messages);
    must_be_json(g->conversation.tools);
    must_be_json(g->conversation.variables);
}

static void check_error(const srv_api_error *error) {
    bis_buf out = {0};
    must(error->status == 400 && bis_utf8_valid(error->message, strlen(error->message)));
    srv_render_error(&out, error);
    must_be_json(bis_buf_cstr(&out));
    bis_buf_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    /* An exact copy without a NUL at the end: reading past it is found. */
    size_t length = size - 1;
    char *body = malloc(length ? length : 1);
    if (!body) return 0;
    memcpy(body, data + 1, length);
    srv_api_error error;
    bool ok = true;
    if (data[0] % 5 < 2) {
        srv_generate g;
        ok = srv_parse_generate(body, length, data[0] % 5 ? SRV_API_CHAT : SRV_API_COMPLETION, &g, &error);
        if (ok) {
            check_generate(&g);
            srv_generate_free(&g);
        }
    } else if (data[0] % 5 == 4) {
        srv_detokenize ids;
        ok = srv_parse_detokenize(body, length, &ids, &error);
        if (ok) srv_detokenize_free(&ids);
    } else {
        srv_text_request request;
        ok = data[0] % 5 == 2 ? srv_parse_tokenize(body, length, &request, &error)
                              : srv_parse_apply_template(body, length, &request, &error);
        if (ok) {
            must_be_json(request.conversation.messages);
            srv_text_request_free(&request);
        }
    }
    if (!ok) check_error(&error);
    free(body);
    return 0;
}
