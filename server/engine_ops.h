/* What the server needs of an engine, as a table of functions, so that tests can put another engine
 * under the real server. The functions have the contracts of runtime/engine.h, tokenizer.h and chat.h. */
#ifndef BISUP_SERVER_ENGINE_OPS_H
#define BISUP_SERVER_ENGINE_OPS_H

#include "runtime/engine.h"

typedef struct srv_engine_ops {
    void (*get_info)(const rt_engine *engine, rt_engine_info *info);
    bis_status (*submit)(rt_engine *engine, const rt_request_params *params, rt_notify_fn notify, void *user,
                         rt_request **out, bis_error *error);
    bool (*next)(rt_request *request, rt_event *event);
    void (*cancel)(rt_request *request);
    void (*release)(rt_request *request);
    void (*drain)(rt_engine *engine);

    bis_status (*encode)(const rt_engine *engine, const char *text, size_t length, unsigned flags, rt_tokens *out,
                         bis_error *error);
    bis_status (*decode)(const rt_engine *engine, const int32_t *ids, size_t count, bool skip_special, bis_buf *out,
                         bis_error *error);
    size_t (*token_bytes)(const rt_engine *engine, int32_t id, char out[RT_TOKEN_TEXT_MAX]);
    /* BIS_ERR_UNSUPPORTED when the model has no chat template. */
    bis_status (*render_chat)(const rt_engine *engine, const rt_chat_input *input, bis_buf *out, size_t *system_end,
                              bis_error *error);
} srv_engine_ops;

/* The real engine. */
const srv_engine_ops *srv_default_engine_ops(void);

#endif
