/* bisup serve: opens the model, says what it does, and serves until a signal. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "common/alloc.h"
#include "common/file.h"
#include "common/version.h"
#include "server/server.h"

enum { KEYS_MAX = 64, KEY_FILE_MAX = 64 * 1024 };

typedef struct serving {
    const cfg_options *options;
    const rt_engine *engine;
    bis_buf key_text;
    const char *keys[KEYS_MAX];
    size_t key_count;
} serving;

/* Start-up goes to standard error line by line, as it happens. */
static void print_phase(void *user, const char *phase, const char *detail, double seconds) {
    (void)user;
    fprintf(stderr, "  %-10s %s (%.2f s)\n", phase, detail, seconds);
}

static void print_ready(void *user, const char *url, int port) {
    const serving *self = user;
    (void)port;
    rt_engine_info info;
    rt_engine_get_info(self->engine, &info);
    fprintf(stderr, "\nServing %s at %s (Ctrl-C ends it). Try:\n\n", info.model_name, url);
    if (!info.has_chat_template) {
        fprintf(stderr,
                "  curl %s/v1/completions -H 'Content-Type: application/json' \\\n"
                "    -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 50}'\n\n",
                url);
        return;
    }
    fprintf(stderr,
            "  curl %s/v1/chat/completions -H 'Content-Type: application/json' -d '{\"messages\": [\n"
            "    {\"role\": \"system\", \"content\": \"You are the assistant of Blue Harbor, a hotel. "
            "The manager is Rosa. The door code is 4711.\"},\n"
            "    {\"role\": \"user\", \"content\": \"What is the door code?\"}], \"temperature\": 0}'\n\n",
            url);
}

/* One key a line; empty lines and lines that begin with # are skipped. The keys point into key_text. */
static bis_status read_keys(serving *self, bis_error *error) {
    const char *path = self->options->api_key_file;
    if (!path) return BIS_OK;
    bis_status status = bis_read_file(path, KEY_FILE_MAX, &self->key_text, error);
    if (status) return status;
    char *rest = NULL;
    for (char *line = strtok_r(self->key_text.data, "\r\n", &rest); line; line = strtok_r(NULL, "\r\n", &rest)) {
        line += strspn(line, " \t");
        size_t length = strcspn(line, " \t");
        if (length == 0 || *line == '#') continue;
        line[length] = '\0';
        if (self->key_count == KEYS_MAX) {
            return bis_fail(error, BIS_ERR_LIMIT, "%s has more than %d keys", path, KEYS_MAX);
        }
        self->keys[self->key_count++] = line;
    }
    if (self->key_count) return BIS_OK;
    return bis_fail(error, BIS_ERR_INVALID, "%s has no key: write one on a line", path);
}

static srv_options server_options(serving *self) {
    const cfg_options *options = self->options;
    srv_options server = srv_default_options();
    server.host = options->host;
    server.port = options->port;
    server.version = BISUP_VERSION;
    server.api_keys = self->keys;
    server.api_key_count = self->key_count;
    server.cors_origin = options->cors_origin;
    server.max_body = (size_t)options->max_body;
    server.max_queue = options->max_queue;
    server.drain_seconds = options->drain_seconds;
    server.log_requests = options->log_requests;
    server.on_listening = print_ready;
    server.listening_user = self;
    return server;
}

int cli_serve(const cfg_options *options) {
    static serving self;
    bis_error error;
    rt_engine *engine;
    self.options = options;
    if (read_keys(&self, &error)) {
        bis_buf_free(&self.key_text);
        return cli_fail(&error);
    }
    fprintf(stderr, "bisup %s\n", BISUP_VERSION);
    rt_engine_options engine_options = cli_engine_options(options);
    engine_options.on_phase = print_phase;
    engine_options.max_queue += options->max_batch; /* the server counts both; a burst waits for one step */
    if (rt_engine_open(&engine_options, &engine, &error)) {
        bis_buf_free(&self.key_text);
        return cli_fail(&error);
    }
    self.engine = engine;
    srv_options server = server_options(&self);
    bis_status status = srv_run(&server, engine, NULL, &error);
    rt_engine_close(engine);
    bis_buf_free(&self.key_text);
    if (status) return cli_fail(&error);
    fprintf(stderr, "Stopped.\n");
    return 0;
}
