/* The whole server over real sockets, with the fake engine under it: routes, answers, streams, limits,
 * clients that go away, and the shutdown. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/clock.h"
#include "common/log.h"
#include "server/server.h"
#include "tests/support/fake_engine.h"
#include "tests/support/http_client.h"

/* ---- A server in a thread ------------------------------------------------------------------------ */

typedef struct harness {
    rt_engine *engine;
    srv_options options;
    pthread_t thread;
    atomic_int port;
    bis_status status;
} harness;

static void note_port(void *user, const char *url, int port) {
    assert_true(strncmp(url, "http://127.0.0.1:", 17) == 0);
    atomic_store(&((harness *)user)->port, port);
}

static void *serve(void *user) {
    harness *h = user;
    bis_error error;
    h->status = srv_run(&h->options, h->engine, fake_engine_ops(), &error);
    return NULL;
}

static const char *const keys[] = {"other-key", "right-key"};

static void start(harness *h, const fake_options *fake, void (*change)(srv_options *options)) {
    memset(h, 0, sizeof *h);
    h->engine = fake_engine_open(fake);
    assert_non_null(h->engine);
    h->options = srv_default_options();
    h->options.port = 0;
    h->options.version = "1.2.3";
    h->options.max_body = 64 << 10;
    h->options.max_queue = 8;
    h->options.ping_seconds = 1;
    h->options.log_requests = false;
    h->options.on_listening = note_port;
    h->options.listening_user = h;
    if (change) change(&h->options);
    assert_int_equal(pthread_create(&h->thread, NULL, serve, h), 0);
    for (int i = 0; i < 500 && !atomic_load(&h->port); i++) usleep(10000);
    assert_true(atomic_load(&h->port) > 0);
}

static void stop(harness *h) {
    kill(getpid(), SIGTERM);
    pthread_join(h->thread, NULL);
    assert_int_equal(h->status, BIS_OK);
    assert_int_equal(fake_engine_close(h->engine), 0); /* every request was released */
}

static harness shared; /* for tests that change nothing */

static int start_shared(void **state) {
    (void)state;
    start(&shared, &(fake_options){.max_queue = 64}, NULL);
    return 0;
}

static int stop_shared(void **state) {
    (void)state;
    stop(&shared);
    return 0;
}

static http_answer post(const char *path, const char *body) {
    return http_ask(atomic_load(&shared.port), "POST", path, NULL, body);
}

static void expect(http_answer *answer, int status, const char *part) {
    if (answer->status != status || (part && !strstr(bis_buf_cstr(&answer->body), part)))
        fail_msg("expected %d with '%s', got %d: %s", status, part ? part : "", answer->status,
                 bis_buf_cstr(&answer->body));
}

static bool wait_for_idle(rt_engine *engine) {
    for (int i = 0; i < 1000; i++) {
        if (fake_engine_unfinished(engine) == 0) return true;
        usleep(10000);
    }
    return false;
}

/* ---- Routes -------------------------------------------------------------------------------------- */

static void every_route_answers(void **state) {
    (void)state;
    static const struct {
        const char *method, *path, *body;
        int status;
        const char *part;
    } cases[] = {
        {"GET", "/health", NULL, 200, "{\"status\":\"ok\"}"},
        {"HEAD", "/health", NULL, 200, NULL},
        {"GET", "/version", NULL, 200, "{\"version\":\"1.2.3\"}"},
        {"GET", "/v1/models", NULL, 200, "{\"object\":\"list\",\"data\":[{\"id\":\"fake-model\""},
        {"GET", "/v1/models/fake-model", NULL, 200, "\"owned_by\""},
        {"GET", "/v1/models/other", NULL, 404, "model_not_found"},
        {"GET", "/v1/models/", NULL, 404, "not_found"},
        {"GET", "/nowhere", NULL, 404, "\"code\":\"not_found\""},
        {"GET", "/../etc/passwd", NULL, 404, NULL},
        {"GET", "/v1/chat/completions", NULL, 405, "method_not_allowed"},
        {"DELETE", "/health", NULL, 405, NULL},
        {"POST", "/tokenize", "{\"content\":\"ab\"}", 200,
         "{\"tokens\":[256,97,98],\"count\":3,\"max_model_len\":4096}"},
        {"POST", "/tokenize", "{\"prompt\":\"ab\",\"add_special\":false}", 200, "[97,98]"},
        {"POST", "/tokenize", "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", 200, "{\"tokens\":[91,123,"},
        {"POST", "/detokenize", "{\"tokens\":[104,105]}", 200, "{\"content\":\"hi\",\"prompt\":\"hi\"}"},
        {"POST", "/detokenize", "{\"tokens\":[1000]}", 400, "vocabulary"},
        {"POST", "/apply-template", "{\"messages\":[{\"role\":\"developer\",\"content\":\"x\"}]}", 200,
         "{\"prompt\":\"[{\\\"role\\\":\\\"system\\\",\\\"content\\\":\\\"x\\\"}]\"}"},
        {"POST", "/apply-template", "{\"messages\":[{\"role\":\"user\",\"content\":\"<raise>\"}]}", 400,
         "the template refused this"},
        {"POST", "/v1/completions", "{\"prompt\":\"hello\",\"temperature\":0,\"max_tokens\":100}", 200,
         "\"text\":\"hello\",\"logprobs\":null,\"finish_reason\":\"stop\""},
        {"POST", "/v1/completions", "{\"prompt\":\"hello\",\"temperature\":0,\"max_tokens\":2}", 200,
         "\"text\":\"he\",\"logprobs\":null,\"finish_reason\":\"length\""},
        {"POST", "/v1/completions", "{\"prompt\":\"hello\",\"temperature\":0,\"stop\":\"ll\"}", 200, "\"text\":\"he\""},
        {"POST", "/v1/completions", "{\"prompt\":\"hello\",\"model\":\"gpt-4\"}", 404, "model_not_found"},
        {"POST", "/v1/completions", "{\"prompt\":[1000]}", 400, "vocabulary"},
        {"POST", "/v1/completions", "{", 400, "JSON"},
        {"POST", "/v1/completions", "", 400, "empty"},
        {"POST", "/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"temperature\":0}",
         200, "\"content\":\"[{\\\"role\\\":\\\"user\\\",\\\"content\\\":\\\"hi\\\"}]\",\"refusal\":null}"},
        {"POST", "/v1/chat/completions", "{\"messages\":[]}", 400, "\"param\":\"messages\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        http_answer a = http_ask(atomic_load(&shared.port), cases[i].method, cases[i].path, NULL, cases[i].body);
        expect(&a, cases[i].status, cases[i].part);
        http_answer_free(&a);
    }
}

static void a_405_names_the_methods(void **state) {
    (void)state;
    http_answer a = http_ask(atomic_load(&shared.port), "PUT", "/v1/models", NULL, NULL);
    char allow[64];
    assert_int_equal(a.status, 405);
    assert_true(http_header(&a, "Allow", allow, sizeof allow));
    assert_string_equal(allow, "GET, HEAD, OPTIONS");
    http_answer_free(&a);
}

static void request_ids_are_echoed_or_made(void **state) {
    (void)state;
    char id[200];
    http_answer a = http_ask(atomic_load(&shared.port), "GET", "/health", "X-Request-Id: my-id.7\r\n", NULL);
    assert_true(http_header(&a, "X-Request-Id", id, sizeof id));
    assert_string_equal(id, "my-id.7");
    http_answer_free(&a);
    a = http_ask(atomic_load(&shared.port), "GET", "/health", "X-Request-Id: a<script>\r\n", NULL);
    assert_true(http_header(&a, "X-Request-Id", id, sizeof id));
    assert_int_equal(strncmp(id, "req-", 4), 0);
    http_answer_free(&a);
}

/* ---- Generations --------------------------------------------------------------------------------- */

static void usage_counts_prompt_once_and_all_answers(void **state) {
    (void)state;
    http_answer a = post("/v1/completions", "{\"prompt\":\"abcde\",\"n\":3,\"temperature\":0,\"max_tokens\":4}");
    expect(&a, 200, "\"prompt_tokens\":6,\"completion_tokens\":12,\"total_tokens\":18");
    expect(&a, 200, "{\"cached_tokens\":3}");
    expect(&a, 200, "\"index\":2");
    http_answer_free(&a);
}

static void choice_i_uses_seed_plus_i(void **state) {
    (void)state;
    http_answer a = post("/v1/completions", "{\"prompt\":[\"x\",\"y\"],\"n\":2,\"seed\":41,\"max_tokens\":50}");
    expect(&a, 200, "\"index\":0,\"text\":\"x#41\"");
    expect(&a, 200, "\"index\":1,\"text\":\"x#42\"");
    expect(&a, 200, "\"index\":2,\"text\":\"y#41\"");
    expect(&a, 200, "\"index\":3,\"text\":\"y#42\"");
    http_answer_free(&a);
}

static void more_choices_than_the_queue_holds_are_all_answered(void **state) {
    (void)state;
    http_answer a = post("/v1/completions", "{\"prompt\":\"x\",\"n\":128,\"seed\":0,\"max_tokens\":50}");
    expect(&a, 200, "\"index\":127,\"text\":\"x#127\"");
    http_answer_free(&a);
}

static void logprobs_have_both_shapes(void **state) {
    (void)state;
    http_answer a = post("/v1/completions", "{\"prompt\":\"ab\",\"temperature\":0,\"logprobs\":1,\"echo\":true}");
    expect(&a, 200, "\"text\":\"abab\"");
    expect(&a, 200, "\"tokens\":[\"\",\"a\",\"b\",\"a\",\"b\"]");
    expect(&a, 200, "\"token_logprobs\":[null,-0.01020408,-0.01010101,-0.01020408,-0.01010101]");
    expect(&a, 200, "\"top_logprobs\":[null,{\"a\":-0.01020408}");
    expect(&a, 200, "\"text_offset\":[0,0,1,2,3]");
    http_answer_free(&a);
    a = post("/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"temperature\":0,"
                                     "\"max_tokens\":1,\"logprobs\":true,\"top_logprobs\":2}");
    expect(&a, 200,
           "\"logprobs\":{\"content\":[{\"token\":\"[\",\"logprob\":-0.01086957,\"bytes\":[91],"
           "\"top_logprobs\":[{\"token\":\"[\",\"logprob\":-0.01086957,\"bytes\":[91]},"
           "{\"token\":\"\\\\\",\"logprob\":-1.01087,\"bytes\":[92]}]}],\"refusal\":null}");
    http_answer_free(&a);
}

static void an_engine_failure_becomes_an_error(void **state) {
    (void)state;
    http_answer a = post("/v1/completions", "{\"prompt\":\"" FAKE_WORD_FAIL "\",\"max_tokens\":50}");
    char after[8];
    expect(&a, 503, "the test asked for this failure");
    assert_true(http_header(&a, "Retry-After", after, sizeof after));
    http_answer_free(&a);
    a = post("/v1/completions", "{\"prompt\":\"" FAKE_WORD_FAIL "\",\"max_tokens\":50,\"stream\":true}");
    expect(&a, 200, "data: {\"error\":{\"message\":\"the test asked for this failure\"");
    assert_null(strstr(bis_buf_cstr(&a.body), "[DONE]"));
    http_answer_free(&a);
}

static void an_overlong_prompt_has_its_own_code(void **state) {
    (void)state;
    static char body[8192];
    int head = sprintf(body, "{\"prompt\":\"");
    memset(body + head, 'a', 5000);
    strcpy(body + head + 5000, "\"}");
    http_answer a = post("/v1/completions", body);
    expect(&a, 400, "\"code\":\"context_length_exceeded\"");
    http_answer_free(&a);
}

/* ---- Streams ------------------------------------------------------------------------------------- */

/* Joins all values of `key` in a stream's events; the fake's texts need no unescaping in these tests. */
static void join_texts(const char *stream, const char *key, char *out, size_t size) {
    size_t used = 0;
    for (const char *at = stream; (at = strstr(at, key));) {
        at += strlen(key);
        while (*at != '"' && used + 1 < size) out[used++] = *at++;
    }
    out[used] = '\0';
}

static void a_completion_stream_joins_to_the_plain_answer(void **state) {
    (void)state;
    http_answer a =
        post("/v1/completions", "{\"prompt\":\"h\xc3\xa4ll\xf0\x9f\x98\x80o w\xc3\xb6rld\",\"temperature\":0,"
                                "\"max_tokens\":50,\"stream\":true,\"stream_options\":{\"include_usage\":true}}");
    char text[256], type[64];
    assert_int_equal(a.status, 200);
    assert_true(http_header(&a, "Content-Type", type, sizeof type));
    assert_string_equal(type, "text/event-stream; charset=utf-8");
    join_texts(bis_buf_cstr(&a.body), "\"text\":\"", text, sizeof text);
    assert_string_equal(text, "h\xc3\xa4ll\xf0\x9f\x98\x80o w\xc3\xb6rld");
    expect(&a, 200, "\"finish_reason\":\"stop\"}],\"usage\":null}\n\n");
    expect(&a, 200, "\"choices\":[],\"usage\":{\"prompt_tokens\":18,");
    assert_string_equal(a.body.data + a.body.length - 14, "data: [DONE]\n\n");
    http_answer_free(&a);
}

static void a_chat_stream_begins_with_the_role(void **state) {
    (void)state;
    http_answer a =
        post("/v1/chat/completions", "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stream\":true,"
                                     "\"temperature\":0,\"max_tokens\":3}");
    const char *first = strstr(bis_buf_cstr(&a.body), "\"delta\":");
    assert_int_equal(a.status, 200);
    assert_non_null(first);
    assert_int_equal(strncmp(first, "\"delta\":{\"role\":\"assistant\",\"content\":\"[\"}", 42), 0);
    expect(&a, 200, "\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"");
    assert_null(strstr(bis_buf_cstr(&a.body), "usage"));
    http_answer_free(&a);
}

static void a_stop_string_never_leaks_into_a_stream(void **state) {
    (void)state;
    http_answer a = post("/v1/completions", "{\"prompt\":\"one STOX two STOP three\",\"temperature\":0,"
                                            "\"max_tokens\":50,\"stream\":true,\"stop\":[\"STOP\",\"zzz\"]}");
    char text[256];
    join_texts(bis_buf_cstr(&a.body), "\"text\":\"", text, sizeof text);
    assert_string_equal(text, "one STOX two ");
    http_answer_free(&a);
}

/* ---- Clients that go away, or are slow ------------------------------------------------------------- */

static int open_request(int port, const char *body) {
    int fd = http_connect(port);
    assert_true(fd >= 0);
    char text[512];
    int length =
        snprintf(text, sizeof text, "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n%s",
                 strlen(body), body);
    assert_true(http_send(fd, text, (size_t)length));
    return fd;
}

static void a_stream_stays_open_with_pings(void **state) {
    (void)state;
    int fd = open_request(atomic_load(&shared.port), "{\"prompt\":\"<hang>\",\"stream\":true}");
    char seen[4096];
    size_t length = 0;
    while (length < sizeof seen - 1) {
        ssize_t n = recv(fd, seen + length, sizeof seen - 1 - length, 0);
        if (n <= 0) break;
        length += (size_t)n;
        seen[length] = '\0';
        if (strstr(seen, ": ping\n\n")) break;
    }
    assert_non_null(strstr(seen, "200 OK"));
    assert_non_null(strstr(seen, ": ping\n\n"));
    close(fd);
    assert_true(wait_for_idle(shared.engine));
}

static bool wait_for_requests(rt_engine *engine, int count) {
    for (int i = 0; i < 1000 && fake_engine_unfinished(engine) != count; i++) usleep(10000);
    return fake_engine_unfinished(engine) == count;
}

static void a_hang_up_cancels_at_every_stage(void **state) {
    (void)state;
    static const char *const bodies[] = {
        "{\"prompt\":\"<hang>\"}",                                         /* no token yet */
        "{\"prompt\":\"<hang>\",\"stream\":true}",                         /* the same as a stream */
        "{\"prompt\":\"<slow>\",\"ignore_eos\":true,\"max_tokens\":4000}", /* in the middle */
        "{\"prompt\":\"<slow>\",\"ignore_eos\":true,\"max_tokens\":4000,\"stream\":true}",
        "{\"prompt\":\"<hang>\",\"n\":20}", /* running and queued */
    };
    static const int requests[] = {1, 1, 1, 1, 8}; /* twice max_batch of one request at most */
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        int fd = open_request(atomic_load(&shared.port), bodies[i]);
        assert_true(wait_for_requests(shared.engine, requests[i]));
        close(fd);
        assert_true(wait_for_idle(shared.engine));
    }
}

static void a_client_that_does_not_read_pauses_the_engine(void **state) {
    (void)state;
    int fd = open_request(atomic_load(&shared.port), "{\"prompt\":\"abc\",\"n\":60,\"ignore_eos\":true,"
                                                     "\"max_tokens\":4000,\"stream\":true}");
    long before = -1, now = fake_engine_generated(shared.engine);
    for (int i = 0; i < 100 && now != before; i++) { /* 240,000 tokens would be 60 MB of events */
        usleep(200000);
        before = now;
        now = fake_engine_generated(shared.engine);
    }
    assert_true(now == before);
    assert_true(now > 100 && now < 200000);
    http_answer health = http_ask(atomic_load(&shared.port), "GET", "/health", NULL, NULL);
    expect(&health, 200, "ok");
    http_answer_free(&health);
    close(fd);
    assert_true(wait_for_idle(shared.engine));
}

static void two_requests_on_one_connection_are_answered(void **state) {
    (void)state;
    int fd = http_connect(atomic_load(&shared.port));
    static const char requests[] =
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 32\r\n\r\n{\"prompt\":\"one\",\"temperature\":0}"
        "GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_true(http_send(fd, requests, sizeof requests - 1));
    http_answer both = http_receive(fd);
    assert_int_equal(both.status, 200);
    expect(&both, 200, "\"text\":\"one\"");
    expect(&both, 200, "{\"version\":\"1.2.3\"}");
    http_answer_free(&both);
    close(fd);
}

/* ---- Limits -------------------------------------------------------------------------------------- */

static void large_bodies_are_refused_with_413(void **state) {
    (void)state;
    bis_buf body = {0};
    while (body.length < (1 << 20)) bis_buf_puts(&body, "{\"prompt\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"}");
    http_answer a = post("/v1/completions", body.data);
    expect(&a, 413, "request_too_large");
    http_answer_free(&a);
    bis_buf_free(&body);
}

static void large_chunked_bodies_are_refused_with_413(void **state) {
    (void)state;
    static const char head[] = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                               "Transfer-Encoding: chunked\r\n\r\n";
    int fd = http_connect(atomic_load(&shared.port));
    static char chunk[4096 + 16];
    int length = sprintf(chunk, "1000\r\n");
    memset(chunk + length, ' ', 4096);
    memcpy(chunk + length + 4096, "\r\n", 2);
    bool sent = http_send(fd, head, sizeof head - 1);
    for (int i = 0; i < 64; i++) sent = sent && http_send(fd, chunk, (size_t)length + 4098);
    assert_true(sent && http_send(fd, "0\r\n\r\n", 5));
    http_answer a = http_receive(fd);
    expect(&a, 413, NULL);
    http_answer_free(&a);
    close(fd);
}

static void huge_headers_are_refused(void **state) {
    (void)state;
    bis_buf header = {0};
    bis_buf_puts(&header, "X-Large: ");
    while (header.length < (200 << 10)) bis_buf_puts(&header, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    bis_buf_puts(&header, "\r\n");
    http_answer a = http_ask(atomic_load(&shared.port), "GET", "/health", header.data, NULL);
    assert_true(a.status == 431 || a.status == 0); /* 0: cut while the client was still sending */
    http_answer_free(&a);
    bis_buf_free(&header);
    a = http_ask(atomic_load(&shared.port), "GET", "/health", NULL, NULL);
    expect(&a, 200, NULL);
    http_answer_free(&a);
}

static void set_tight(srv_options *options) {
    options->max_queue = 0;
    options->idle_seconds = 1;
    options->body_seconds = 1;
}

static void the_queue_refuses_what_it_cannot_hold(void **state) {
    (void)state;
    harness h;
    start(&h, &(fake_options){.max_batch = 2, .max_queue = 1}, set_tight);
    int port = atomic_load(&h.port);
    int one = open_request(port, "{\"prompt\":\"<hang>\"}"), two = open_request(port, "{\"prompt\":\"<hang>\"}");
    assert_true(wait_for_requests(h.engine, 2));
    http_answer a = http_ask(port, "POST", "/v1/completions", NULL, "{\"prompt\":\"x\"}");
    char after[8];
    expect(&a, 429, "queue_full");
    assert_true(http_header(&a, "Retry-After", after, sizeof after));
    http_answer_free(&a);
    close(one);
    close(two);
    assert_true(wait_for_idle(h.engine));
    a = http_ask(port, "POST", "/v1/completions", NULL, "{\"prompt\":\"x\"}");
    expect(&a, 200, NULL);
    http_answer_free(&a);
    stop(&h);
}

static void a_request_with_a_slot_waits_for_the_engine(void **state) {
    (void)state;
    harness h;
    start(&h, &(fake_options){.max_batch = 1, .max_queue = 1}, NULL);
    int clients[8]; /* the server has 1 + 8 slots, the engine takes two */
    for (int i = 0; i < 8; i++)
        clients[i] = open_request(atomic_load(&h.port), "{\"prompt\":\"<slow>\",\"temperature\":0,\"max_tokens\":5}");
    for (int i = 0; i < 8; i++) {
        char text[1024];
        ssize_t length = recv(clients[i], text, sizeof text - 1, 0);
        assert_true(length > 0);
        text[length] = '\0';
        assert_int_equal(strncmp(text, "HTTP/1.1 200", 12), 0);
        close(clients[i]);
    }
    stop(&h);
}

static bool closed_within(int fd, double seconds) {
    char byte;
    double start_time = bis_now_seconds();
    return recv(fd, &byte, 1, 0) <= 0 && bis_now_seconds() - start_time < seconds;
}

static void slow_senders_are_cut_off(void **state) {
    (void)state;
    harness h;
    start(&h, &(fake_options){0}, set_tight);
    int silent = http_connect(atomic_load(&h.port)), head = http_connect(atomic_load(&h.port)),
        body = http_connect(atomic_load(&h.port));
    assert_true(http_send(head, "GET /health HTTP/1.1\r\nX-", 24));
    static const char half[] = "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{";
    assert_true(http_send(body, half, sizeof half - 1));
    assert_true(closed_within(silent, 8));
    assert_true(closed_within(head, 8));
    assert_true(closed_within(body, 8));
    close(silent);
    close(head);
    close(body);
    stop(&h);
}

/* Sends a request and reads the answer without allocating, because the next allocation that fails must be the
 * server's. Returns the status; 0 when the connection was closed. */
static int ask_without_memory(int port, const char *body, long successes) {
    static char text[16384];
    int fd = http_connect(port);
    assert_true(fd >= 0);
    int length =
        snprintf(text, sizeof text,
                 "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
                 strlen(body), body);
    usleep(2000); /* the server accepts the connection */
    bis_alloc_fail_after(successes);
    assert_true(http_send(fd, text, (size_t)length));
    size_t used = 0;
    for (ssize_t n; (n = recv(fd, text + used, sizeof text - 1 - used, 0)) > 0;) used += (size_t)n;
    bis_alloc_fail_after(-1);
    close(fd);
    text[used] = '\0';
    return used ? atoi(strchr(text, ' ')) : 0;
}

static void memory_that_runs_out_fails_one_request_only(void **state) {
    (void)state;
    static const char *const bodies[] = {
        "{\"prompt\":\"abcd\",\"n\":2,\"logprobs\":1,\"stop\":[\"x\"],\"max_tokens\":4}",
        "{\"prompt\":[\"abcd\"],\"stream\":true,\"logprobs\":1,\"max_tokens\":4}",
    };
    for (size_t i = 0; i < 2; i++) {
        int answered = 0, refused = 0;
        for (long n = 0; n < 60; n++) {
            int status = ask_without_memory(atomic_load(&shared.port), bodies[i], n);
            if (status != 0 && status != 200 && status != 500 && status != 503) fail_msg("status %d", status);
            answered += status == 200;
            refused += status != 200;
        }
        assert_true(answered > 0 && refused > 5);
        assert_int_equal(ask_without_memory(atomic_load(&shared.port), bodies[i], -1), 200);
    }
    assert_true(wait_for_idle(shared.engine));
}

/* ---- Keys and origins ------------------------------------------------------------------------------ */

static void set_keys(srv_options *options) {
    options->api_keys = keys;
    options->api_key_count = 2;
    options->cors_origin = "https://example.org";
}

static void only_requests_with_a_key_are_served(void **state) {
    (void)state;
    harness h;
    start(&h, &(fake_options){0}, set_keys);
    int port = atomic_load(&h.port);
    static const struct {
        const char *path, *header;
        int status;
    } cases[] = {
        {"/health", NULL, 200},
        {"/v1/models", NULL, 401},
        {"/version", NULL, 401},
        {"/nowhere", NULL, 401},
        {"/v1/models", "Authorization: Bearer right-key\r\n", 200},
        {"/v1/models", "Authorization: Bearer other-key\r\n", 200},
        {"/v1/models", "Authorization: Bearer right-ke\r\n", 401},
        {"/v1/models", "Authorization: Bearer right-keyy\r\n", 401},
        {"/v1/models", "Authorization: Bearer \r\n", 401},
        {"/v1/models", "Authorization: Basic right-key\r\n", 401},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        http_answer a = http_ask(port, "GET", cases[i].path, cases[i].header, NULL);
        expect(&a, cases[i].status, NULL);
        http_answer_free(&a);
    }
    http_answer a = http_ask(port, "POST", "/v1/completions", NULL, "{\"prompt\":\"x\"}");
    expect(&a, 401, "invalid_api_key");
    http_answer_free(&a);
    char value[64];
    a = http_ask(port, "OPTIONS", "/v1/completions", "Origin: https://example.org\r\n", NULL);
    assert_int_equal(a.status, 204);
    assert_true(http_header(&a, "Access-Control-Allow-Origin", value, sizeof value));
    assert_string_equal(value, "https://example.org");
    assert_true(http_header(&a, "Access-Control-Allow-Methods", value, sizeof value));
    http_answer_free(&a);
    stop(&h);
}

/* ---- Shutdown -------------------------------------------------------------------------------------- */

static void a_shutdown_lets_running_requests_finish(void **state) {
    (void)state;
    harness h;
    start(&h, &(fake_options){0}, NULL);
    int fd = open_request(atomic_load(&h.port), "{\"prompt\":\"<slow>.................................................."
                                                "..............\",\"temperature\":0,\"max_tokens\":100}");
    int idle = http_connect(atomic_load(&h.port));
    assert_true(wait_for_requests(h.engine, 1));
    kill(getpid(), SIGTERM);
    int refused = 0;
    for (int i = 0; i < 50 && refused != -1; i++) {
        usleep(10000);
        refused = http_connect(atomic_load(&h.port));
        if (refused >= 0) close(refused);
    }
    assert_int_equal(refused, -1);
    static const char ask[] = "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    assert_true(http_send(idle, ask, sizeof ask - 1));
    http_answer health = http_receive(idle);
    expect(&health, 503, "shutting_down");
    http_answer_free(&health);
    char seen[4096];
    size_t length = 0;
    for (ssize_t n; (n = recv(fd, seen + length, sizeof seen - 1 - length, 0)) > 0;) length += (size_t)n;
    seen[length] = '\0';
    assert_non_null(strstr(seen, "\"text\":\"<slow>..."));
    pthread_join(h.thread, NULL);
    assert_int_equal(h.status, BIS_OK);
    assert_int_equal(fake_engine_close(h.engine), 0);
    close(fd);
    close(idle);
}

static void set_short_drain(srv_options *options) { options->drain_seconds = 0; }

static void a_shutdown_ends_what_does_not_finish(void **state) {
    (void)state;
    harness h;
    start(&h, &(fake_options){0}, set_short_drain);
    int plain = open_request(atomic_load(&h.port), "{\"prompt\":\"<hang>\"}");
    int stream = open_request(atomic_load(&h.port), "{\"prompt\":\"<slow>\",\"ignore_eos\":true,\"stream\":true,"
                                                    "\"max_tokens\":4000}");
    assert_true(wait_for_requests(h.engine, 2));
    usleep(100000);
    stop(&h);
    http_answer a = http_receive(plain), b = http_receive(stream);
    expect(&a, 503, "shutting_down");
    expect(&b, 200, "data: {\"error\":");
    http_answer_free(&a);
    http_answer_free(&b);
    close(plain);
    close(stream);
}

static void a_second_signal_ends_at_once(void **state) {
    (void)state;
    harness h;
    start(&h, &(fake_options){0}, NULL);
    int fd = open_request(atomic_load(&h.port), "{\"prompt\":\"<hang>\"}");
    assert_true(wait_for_requests(h.engine, 1));
    double begin = bis_now_seconds();
    kill(getpid(), SIGTERM);
    usleep(100000);
    stop(&h);
    assert_true(bis_now_seconds() - begin < 5);
    close(fd);
}

static void a_taken_port_is_an_error_with_advice(void **state) {
    (void)state;
    srv_options options = srv_default_options();
    options.port = atomic_load(&shared.port);
    bis_error error;
    assert_int_equal(srv_run(&options, shared.engine, fake_engine_ops(), &error), BIS_ERR_IO);
    assert_non_null(strstr(error.text, "--port"));
}

int main(void) {
    bis_log_set_level(BIS_LOG_ERROR);
    const struct CMUnitTest on_shared[] = {
        cmocka_unit_test(every_route_answers),
        cmocka_unit_test(a_405_names_the_methods),
        cmocka_unit_test(request_ids_are_echoed_or_made),
        cmocka_unit_test(usage_counts_prompt_once_and_all_answers),
        cmocka_unit_test(choice_i_uses_seed_plus_i),
        cmocka_unit_test(more_choices_than_the_queue_holds_are_all_answered),
        cmocka_unit_test(logprobs_have_both_shapes),
        cmocka_unit_test(an_engine_failure_becomes_an_error),
        cmocka_unit_test(an_overlong_prompt_has_its_own_code),
        cmocka_unit_test(a_completion_stream_joins_to_the_plain_answer),
        cmocka_unit_test(a_chat_stream_begins_with_the_role),
        cmocka_unit_test(a_stop_string_never_leaks_into_a_stream),
        cmocka_unit_test(a_hang_up_cancels_at_every_stage),
        cmocka_unit_test(a_client_that_does_not_read_pauses_the_engine),
        cmocka_unit_test(two_requests_on_one_connection_are_answered),
        cmocka_unit_test(large_bodies_are_refused_with_413),
        cmocka_unit_test(large_chunked_bodies_are_refused_with_413),
        cmocka_unit_test(huge_headers_are_refused),
        cmocka_unit_test(memory_that_runs_out_fails_one_request_only),
        cmocka_unit_test(a_stream_stays_open_with_pings),
        cmocka_unit_test(a_taken_port_is_an_error_with_advice),
    };
    const struct CMUnitTest on_own[] = {
        cmocka_unit_test(the_queue_refuses_what_it_cannot_hold),
        cmocka_unit_test(a_request_with_a_slot_waits_for_the_engine),
        cmocka_unit_test(slow_senders_are_cut_off),
        cmocka_unit_test(only_requests_with_a_key_are_served),
        cmocka_unit_test(a_shutdown_lets_running_requests_finish),
        cmocka_unit_test(a_shutdown_ends_what_does_not_finish),
        cmocka_unit_test(a_second_signal_ends_at_once),
    };
    int failed = cmocka_run_group_tests(on_shared, start_shared, stop_shared);
    return failed + cmocka_run_group_tests(on_own, NULL, NULL);
}
