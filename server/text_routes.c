/* Jobs without a generation: /tokenize, /detokenize, /apply-template. The answer is made on the worker. */
#include <string.h>

#include "common/alloc.h"
#include "server/job.h"

typedef struct text_job {
    srv_job job; /* first: functions cast */
    bis_buf answer;
} text_job;

static bool engine_refused(srv_job *job, const bis_error *problem) {
    srv_api_error_from(&job->error, problem);
    return false;
}

static bool write_tokens(srv_job *job, const srv_text_request *request, bis_buf *answer) {
    const srv_context *context = job->context;
    bis_buf rendered = {0};
    const char *text = request->text;
    size_t length = text ? strlen(text) : 0;
    unsigned flags =
        (request->add_special ? RT_ENCODE_ADD_SPECIAL : 0u) | (request->parse_special ? RT_ENCODE_PARSE_SPECIAL : 0u);
    bool ok = true;
    if (!text) { /* a chat template writes its special tokens itself */
        ok = srv_render_conversation(context, &request->conversation, &rendered, NULL, &job->error);
        text = bis_buf_cstr(&rendered);
        length = rendered.length;
        flags = RT_ENCODE_PARSE_SPECIAL;
    }
    rt_tokens tokens = {0};
    bis_error problem = {0};
    if (ok && context->ops->encode(context->engine, text, length, flags, &tokens, &problem) != BIS_OK)
        ok = engine_refused(job, &problem);
    if (ok) srv_render_tokens(answer, &tokens, context->info.max_context);
    rt_tokens_free(&tokens);
    bis_buf_free(&rendered);
    return ok;
}

static bool prepare_tokenize(srv_job *job) {
    srv_text_request request;
    if (!srv_parse_tokenize(bis_buf_cstr(&job->body), job->body.length, &request, &job->error)) return false;
    bool ok = srv_check_model(job->context, request.model, &job->error) &&
              write_tokens(job, &request, &((text_job *)job)->answer);
    srv_text_request_free(&request);
    return ok;
}

static bool prepare_apply_template(srv_job *job) {
    srv_text_request request;
    if (!srv_parse_apply_template(bis_buf_cstr(&job->body), job->body.length, &request, &job->error)) return false;
    bis_buf text = {0};
    bool ok = srv_check_model(job->context, request.model, &job->error) &&
              srv_render_conversation(job->context, &request.conversation, &text, NULL, &job->error);
    if (ok) srv_render_text(&((text_job *)job)->answer, "prompt", NULL, bis_buf_cstr(&text), text.length);
    bis_buf_free(&text);
    srv_text_request_free(&request);
    return ok;
}

static bool prepare_detokenize(srv_job *job) {
    srv_detokenize request;
    if (!srv_parse_detokenize(bis_buf_cstr(&job->body), job->body.length, &request, &job->error)) return false;
    const srv_context *context = job->context;
    bis_buf text = {0};
    bis_error problem = {0};
    bool ok = srv_check_model(context, request.model, &job->error);
    if (ok && context->ops->decode(context->engine, request.ids.ids, request.ids.count, request.skip_special_tokens,
                                   &text, &problem) != BIS_OK)
        ok = engine_refused(job, &problem);
    if (ok) srv_render_text(&((text_job *)job)->answer, "content", "prompt", bis_buf_cstr(&text), text.length);
    bis_buf_free(&text);
    srv_detokenize_free(&request);
    return ok;
}

static void proceed(srv_job *job) {
    srv_reply_buf(job->exchange, 200, "application/json", &((text_job *)job)->answer);
    srv_job_end(job);
}

static void destroy(srv_job *job) { bis_buf_free(&((text_job *)job)->answer); }

static void start(srv_context *context, srv_exchange *exchange, bool (*prepare)(srv_job *job)) {
    text_job *t = bis_calloc(1, sizeof *t);
    if (t) {
        t->job.prepare = prepare;
        t->job.proceed = proceed;
        t->job.destroy = destroy;
    }
    srv_job_start(context, exchange, (srv_job *)t);
}

void srv_tokenize_start(srv_context *context, srv_exchange *exchange) { start(context, exchange, prepare_tokenize); }
void srv_detokenize_start(srv_context *context, srv_exchange *exchange) {
    start(context, exchange, prepare_detokenize);
}
void srv_apply_template_start(srv_context *context, srv_exchange *exchange) {
    start(context, exchange, prepare_apply_template);
}
