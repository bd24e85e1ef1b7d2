#include "server/routes.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"

static const char JSON[] = "application/json";

/* ---- Small answers ----------------------------------------------------------------------------- */

static void get_health(srv_context *context, srv_exchange *exchange) {
    if (!context->draining) {
        static const char ok[] = "{\"status\":\"ok\"}";
        srv_reply(exchange, 200, JSON, ok, sizeof ok - 1);
    } else {
        srv_reply_refusal(exchange, 503, "server_error", "shutting_down", "The server is shutting down.");
    }
}

static void get_version(srv_context *context, srv_exchange *exchange) {
    bis_buf body = {0};
    srv_render_text(&body, "version", NULL, context->options.version, strlen(context->options.version));
    srv_reply_buf(exchange, 200, JSON, &body);
}

static srv_model_card model_card(const srv_context *context) {
    return (srv_model_card){
        .name = context->info.model_name, .created = context->info.created, .max_context = context->info.max_context};
}

static void get_models(srv_context *context, srv_exchange *exchange) {
    srv_model_card card = model_card(context);
    bis_buf body = {0};
    srv_render_models(&body, &card);
    srv_reply_buf(exchange, 200, JSON, &body);
}

static void get_model(srv_context *context, srv_exchange *exchange) {
    srv_api_error error;
    if (!srv_check_model(context, exchange->path + strlen("/v1/models/"), &error)) {
        srv_reply_error(exchange, &error);
        return;
    }
    srv_model_card card = model_card(context);
    bis_buf body = {0};
    srv_render_model(&body, &card);
    srv_reply_buf(exchange, 200, JSON, &body);
}

static void post_chat(srv_context *context, srv_exchange *exchange) {
    srv_generation_start(context, exchange, SRV_API_CHAT);
}

static void post_completion(srv_context *context, srv_exchange *exchange) {
    srv_generation_start(context, exchange, SRV_API_COMPLETION);
}

/* ---- The table --------------------------------------------------------------------------------- */

typedef struct route {
    const char *method, *path; /* a path that ends in '/' stands for everything below it */
    void (*serve)(srv_context *context, srv_exchange *exchange);
    bool public; /* needs no key */
} route;

static const route routes[] = {
    {"POST", "/v1/chat/completions", post_chat, false},
    {"POST", "/v1/completions", post_completion, false},
    {"GET", "/v1/models", get_models, false},
    {"GET", "/v1/models/", get_model, false},
    {"POST", "/tokenize", srv_tokenize_start, false},
    {"POST", "/detokenize", srv_detokenize_start, false},
    {"POST", "/apply-template", srv_apply_template_start, false},
    {"GET", "/health", get_health, true},
    {"GET", "/version", get_version, false},
};
enum { ROUTE_COUNT = sizeof routes / sizeof *routes };

static bool path_matches(const route *r, const char *path) {
    size_t length = strlen(r->path);
    if (r->path[length - 1] == '/') return strncmp(path, r->path, length) == 0 && path[length] != '\0';
    return strcmp(path, r->path) == 0;
}

static const route *find_route(const srv_exchange *exchange, const route **path_only) {
    const char *method = strcmp(exchange->method, "HEAD") == 0 ? "GET" : exchange->method;
    *path_only = NULL;
    for (size_t i = 0; i < ROUTE_COUNT; i++) {
        if (!path_matches(&routes[i], exchange->path)) continue;
        *path_only = &routes[i];
        if (strcmp(routes[i].method, method) == 0) return &routes[i];
    }
    return NULL;
}

/* ---- Keys and origins -------------------------------------------------------------------------- */

/* Takes the same time wherever the texts differ. */
static bool same_secret(const char *given, const char *secret) {
    size_t given_length = strlen(given), length = strlen(secret);
    unsigned char difference = given_length != length;
    for (size_t i = 0; i < length; i++)
        difference |= (unsigned char)(secret[i] ^ (given_length ? given[i % given_length] : 0));
    return difference == 0;
}

static bool has_key(const srv_context *context, const srv_exchange *exchange) {
    static const char scheme[] = "Bearer ";
    if (context->options.api_key_count == 0) return true;
    const char *given = exchange->authorization;
    if (!given || strncmp(given, scheme, sizeof scheme - 1) != 0) return false;
    bool found = false;
    for (size_t i = 0; i < context->options.api_key_count; i++)
        found |= same_secret(given + sizeof scheme - 1, context->options.api_keys[i]);
    return found;
}

static void add_cors(const srv_context *context, srv_exchange *exchange) {
    const char *origin = context->options.cors_origin;
    if (!origin || !exchange->origin) return;
    srv_add_header(exchange, "Access-Control-Allow-Origin", origin);
    srv_add_header(exchange, "Access-Control-Expose-Headers", "X-Request-Id, Retry-After");
    if (strcmp(origin, "*") != 0) srv_add_header(exchange, "Vary", "Origin");
}

/* OPTIONS: what a path offers, which is also what a browser asks before it lets a page call. */
static void answer_options(const srv_context *context, srv_exchange *exchange, const route *r) {
    char methods[32];
    snprintf(methods, sizeof methods, "%s, OPTIONS", strcmp(r->method, "GET") == 0 ? "GET, HEAD" : r->method);
    srv_add_header(exchange, "Allow", methods);
    if (context->options.cors_origin && exchange->origin) {
        srv_add_header(exchange, "Access-Control-Allow-Methods", methods);
        srv_add_header(exchange, "Access-Control-Allow-Headers", "Authorization, Content-Type, X-Request-Id");
    }
    srv_reply(exchange, 204, NULL, "", 0);
}

/* ---- Handler functions ------------------------------------------------------------------------- */

void srv_routes_check(void *user, srv_exchange *exchange) {
    srv_context *context = user;
    add_cors(context, exchange);
    const route *path_only, *r = find_route(exchange, &path_only);
    bool asks_options = strcmp(exchange->method, "OPTIONS") == 0;
    if (!asks_options && !(r && r->public) && !has_key(context, exchange)) {
        srv_reply_refusal(exchange, 401, "invalid_request_error", "invalid_api_key",
                          "This server needs a key: send the header 'Authorization: Bearer KEY'.");
    } else if (!path_only) {
        srv_reply_refusal(exchange, 404, "invalid_request_error", "not_found", "There is nothing at this path.");
    } else if (asks_options) {
        answer_options(context, exchange, path_only);
    } else if (!r) {
        srv_add_header(exchange, "Allow",
                       strcmp(path_only->method, "GET") == 0 ? "GET, HEAD, OPTIONS" : "POST, OPTIONS");
        srv_reply_refusal(exchange, 405, "invalid_request_error", "method_not_allowed",
                          "This path does not know this method.");
    } else if (context->draining && strcmp(r->method, "POST") == 0) {
        srv_reply_refusal(exchange, 503, "server_error", "shutting_down", "The server is shutting down.");
    }
}

void srv_routes_serve(void *user, srv_exchange *exchange) {
    const route *path_only, *r = find_route(exchange, &path_only);
    r->serve(user, exchange); /* srv_routes_check let only known routes pass */
}

void srv_routes_refuse(void *user, srv_exchange *exchange, int status, const char *message) {
    (void)user;
    srv_reply_refusal(exchange, status,
                      status == 429   ? "rate_limit_error"
                      : status == 503 ? "server_error"
                                      : "invalid_request_error",
                      status == 413 ? "request_too_large" : NULL, message);
}

void srv_routes_log(void *user, const srv_exchange *exchange) {
    const srv_context *context = user;
    if (!context->options.log_requests) return;
    char path[96];
    snprintf(path, sizeof path, "%s", exchange->path);
    for (char *c = path; *c; c++)
        if ((unsigned char)*c < 0x20 || (unsigned char)*c >= 0x7f) *c = '?';
    double milliseconds = (double)(bis_now_ns() - exchange->started_ns) / 1e6;
    char tokens[32] = "";
    if (exchange->log_tokens) snprintf(tokens, sizeof tokens, " %d tokens", exchange->log_tokens);
    bis_log(strcmp(exchange->path, "/health") == 0 ? BIS_LOG_DEBUG : BIS_LOG_INFO, "%.8s %s %d %.1f ms%s%s %s",
            exchange->method, path, exchange->status, milliseconds, tokens, exchange->aborted ? " (client gone)" : "",
            exchange->request_id);
}
