#include "server/engine_ops.h"

static bis_status encode(const rt_engine *engine, const char *text, size_t length, unsigned flags, rt_tokens *out,
                         bis_error *error) {
    return rt_tokenizer_encode(rt_engine_tokenizer(engine), text, length, flags, out, error);
}

static bis_status decode(const rt_engine *engine, const int32_t *ids, size_t count, bool skip_special, bis_buf *out,
                         bis_error *error) {
    return rt_tokenizer_decode(rt_engine_tokenizer(engine), ids, count, skip_special, out, error);
}

static size_t token_bytes(const rt_engine *engine, int32_t id, char out[RT_TOKEN_TEXT_MAX]) {
    return rt_tokenizer_token_bytes(rt_engine_tokenizer(engine), id, out);
}

static bis_status render_chat(const rt_engine *engine, const rt_chat_input *input, bis_buf *out, size_t *system_end,
                              bis_error *error) {
    const rt_chat *chat = rt_engine_chat(engine);
    if (!chat) return bis_fail(error, BIS_ERR_UNSUPPORTED, "This model has no chat template; use /v1/completions.");
    return rt_chat_render(chat, input, out, system_end, error);
}

const srv_engine_ops *srv_default_engine_ops(void) {
    static const srv_engine_ops ops = {
        .get_info = rt_engine_get_info,
        .submit = rt_engine_submit,
        .next = rt_request_next,
        .cancel = rt_request_cancel,
        .release = rt_request_release,
        .drain = rt_engine_drain,
        .encode = encode,
        .decode = decode,
        .token_bytes = token_bytes,
        .render_chat = render_chat,
    };
    return &ops;
}
