/* The forward pass: logits of transformers on a tiny model of every family; the same bits however the rows are
 * cut into calls, mixed with other sequences, or shared between threads; greedy text of a float64 reference. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/file.h"
#include "runtime/forward.h"
#include "runtime/kv_pages.h"
#include "runtime/model/safetensors.h"
#include "tests/support/scratch.h"

enum { MAX_ROWS = 64, CONTEXT = 64 };

static const char *const FAMILIES[] = {
    "llama2-mha", "llama3-gqa-rope-f16", "llama-linear-rope-sharded", "llama-biases",
    "qwen2-tied", "qwen3-head-dim-bf16", "mistral-no-prefix",
};

typedef struct runner {
    rt_model *model;
    kn_backend *backend;
    rt_forward *forward;
    rt_kv_pages *pages;
    int vocab;
} runner;

static runner open_runner(const char *folder, const char *isa, int threads, int kv_bits, int context) {
    runner r = {0};
    bis_error error = {0};
    if (rt_model_open(folder, &r.model, &error)) fail_msg("%s", error.text);
    r.vocab = rt_model_get_config(r.model)->vocab;
    if (kn_cpu_open(threads, isa, context, 0, &r.backend, &error)) fail_msg("%s", error.text);
    if (rt_forward_open(r.model, r.backend, MAX_ROWS, MAX_ROWS, context, &r.forward, &error))
        fail_msg("%s", error.text);
    rt_kv_count pages = {.full = 4 * rt_kv_pages_for(context)};
    if (rt_kv_pages_open(rt_model_get_config(r.model), kv_bits, pages, &r.pages, &error)) fail_msg("%s", error.text);
    return r;
}

static void close_runner(runner *r) {
    rt_forward_close(r->forward);
    rt_kv_pages_close(r->pages);
    r->backend->ops->close(r->backend);
    rt_model_close(r->model);
}

/* Runs rows [first, first + count) of one sequence; returns the logits of all of them. */
static const float *run_rows(runner *r, const int32_t *tokens, int first, int count, const int32_t *pages) {
    int32_t positions[MAX_ROWS], wanted[MAX_ROWS];
    const int32_t *tables[MAX_ROWS];
    for (int i = 0; i < count; i++) {
        positions[i] = first + i;
        wanted[i] = i;
        tables[i] = pages;
    }
    rt_batch batch = {{count, positions, tables, NULL}, tokens + first, wanted, count};
    return rt_forward_run(r->forward, rt_kv_pages_cache(r->pages), &batch);
}

typedef struct expected {
    rt_safetensors *file;
    int32_t tokens[MAX_ROWS];
    int count;
    const float *logits;
} expected;

static expected open_expected(const char *folder) {
    expected e = {0};
    char path[256];
    bis_error error = {0};
    snprintf(path, sizeof path, "%s/expected.safetensors", folder);
    if (rt_safetensors_open(path, &e.file, &error)) fail_msg("%s", error.text);
    const rt_stored_tensor *ids = rt_safetensors_find(e.file, "input_ids");
    const rt_stored_tensor *logits = rt_safetensors_find(e.file, "logits");
    assert_true(ids && logits && ids->type == RT_STORED_I32 && logits->type == RT_STORED_F32);
    e.count = (int)ids->shape[0];
    memcpy(e.tokens, ids->data, ids->bytes);
    float *copy = malloc(logits->bytes); /* the file's data is not aligned */
    assert_non_null(copy);
    memcpy(copy, logits->data, logits->bytes);
    e.logits = copy;
    return e;
}

static void close_expected(expected *e) {
    rt_safetensors_close(e->file);
    free((void *)e->logits);
}

static double largest_difference(const float *a, const float *b, size_t count) {
    double largest = 0;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs((double)a[i] - b[i]);
        if (!(difference <= largest)) largest = difference; /* a NaN counts */
    }
    return largest;
}

static double family_difference(const char *family, const char *isa, int kv_bits) {
    char folder[256];
    snprintf(folder, sizeof folder, "tests/golden/models/%s", family);
    runner r = open_runner(folder, isa, 2, kv_bits, CONTEXT);
    expected e = open_expected(folder);
    int32_t pages[8];
    assert_true(rt_kv_pages_take(r.pages, (rt_kv_count){rt_kv_pages_for(e.count), 0}, pages));
    const float *logits = run_rows(&r, e.tokens, 0, e.count, pages);
    double difference = largest_difference(logits, e.logits, (size_t)e.count * (size_t)r.vocab);
    close_expected(&e);
    close_runner(&r);
    return difference;
}

static void test_logits_agree_with_transformers(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof FAMILIES / sizeof *FAMILIES; i++) {
        double difference = family_difference(FAMILIES[i], "auto", 32);
        print_message("%-28s largest difference %.1e\n", FAMILIES[i], difference);
        assert_true(difference <= 1e-4);
        assert_true(family_difference(FAMILIES[i], "reference", 32) <= 1e-4);
    }
}

static void test_f16_kv_cache_stays_close(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof FAMILIES / sizeof *FAMILIES; i++) {
        double difference = family_difference(FAMILIES[i], "auto", 16);
        assert_true(difference > 0 && difference <= 0.05);
    }
}

/* One sequence computed at once, in chunks, token by token, on other thread counts and instruction sets, with
 * another sequence's rows around it: always the same bits. */
static void test_rows_are_bit_identical_however_computed(void **state) {
    (void)state;
    static const char *const isas[] = {"auto", "avx2", "reference"};
    for (size_t f = 0; f < sizeof FAMILIES / sizeof *FAMILIES; f++) {
        for (int kv_bits = 16; kv_bits <= 32; kv_bits += 16) {
            char folder[256];
            snprintf(folder, sizeof folder, "tests/golden/models/%s", FAMILIES[f]);
            expected e = open_expected(folder);
            float *whole = NULL;
            for (int threads = 1; threads <= 3; threads++) {
                runner r = open_runner(folder, isas[threads - 1], threads, kv_bits, CONTEXT);
                size_t vocab = (size_t)r.vocab, all = (size_t)e.count * vocab;
                int32_t pages[8];
                assert_true(rt_kv_pages_take(r.pages, (rt_kv_count){rt_kv_pages_for(e.count), 0}, pages));
                const float *logits = run_rows(&r, e.tokens, 0, e.count, pages);
                if (!whole) {
                    whole = malloc(all * sizeof *whole);
                    assert_non_null(whole);
                    memcpy(whole, logits, all * sizeof *whole);
                }
                assert_memory_equal(logits, whole, all * sizeof *whole);
                for (int chunk = 1; chunk <= 17; chunk += 4) {
                    for (int first = 0; first < e.count; first += chunk) {
                        int count = e.count - first < chunk ? e.count - first : chunk;
                        logits = run_rows(&r, e.tokens, first, count, pages);
                        assert_memory_equal(logits, whole + (size_t)first * vocab,
                                            (size_t)count * vocab * sizeof *whole);
                    }
                }
                close_runner(&r);
            }
            free(whole);
            close_expected(&e);
        }
    }
}

static void test_sequences_do_not_see_each_other(void **state) {
    (void)state;
    const char *folder = "tests/golden/models/qwen2-tied";
    expected e = open_expected(folder);
    runner r = open_runner(folder, "auto", 2, 16, CONTEXT);
    size_t vocab = (size_t)r.vocab;
    int32_t pages[3][4], tokens[MAX_ROWS], positions[MAX_ROWS], wanted[MAX_ROWS];
    const int32_t *tables[MAX_ROWS];
    for (int s = 0; s < 3; s++) assert_true(rt_kv_pages_take(r.pages, (rt_kv_count){4, 0}, pages[s]));
    float *alone = malloc(20 * vocab * sizeof *alone);
    assert_non_null(alone);
    memcpy(alone, run_rows(&r, e.tokens, 0, 20, pages[0]), 20 * vocab * sizeof *alone);
    int n = 0;
    for (int i = 0; i < 20; i++) { /* three sequences' rows interleaved; only the middle one is the known one */
        for (int s = 0; s < 3; s++, n++) {
            tokens[n] = s == 1 ? e.tokens[i] : (e.tokens[i] + s + i) % r.vocab;
            positions[n] = i;
            tables[n] = pages[s];
            wanted[n] = n;
        }
    }
    rt_batch batch = {{n, positions, tables, NULL}, tokens, wanted, n};
    const float *logits = rt_forward_run(r.forward, rt_kv_pages_cache(r.pages), &batch);
    for (int i = 0; i < 20; i++) {
        assert_memory_equal(logits + (size_t)(3 * i + 1) * vocab, alone + (size_t)i * vocab, vocab * sizeof *alone);
    }
    free(alone);
    close_runner(&r);
    close_expected(&e);
}

static int32_t argmax(const float *logits, int vocab) {
    int best = 0;
    for (int i = 1; i < vocab; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    return best;
}

static void check_greedy(runner *r, const cJSON *run) {
    int32_t tokens[CONTEXT * 8], pages[CONTEXT];
    int count = 0, done = 0;
    const cJSON *id;
    cJSON_ArrayForEach(id, cJSON_GetObjectItem(run, "prompt_ids")) tokens[count++] = id->valueint;
    const cJSON *output = cJSON_GetObjectItem(run, "output_ids");
    int total = count + cJSON_GetArraySize(output);
    assert_true(total > count + 10 && total < (int)(sizeof tokens / sizeof *tokens));
    rt_kv_count need = {rt_kv_pages_for(total), 0};
    assert_true(rt_kv_pages_take(r->pages, need, pages));
    cJSON_ArrayForEach(id, output) {
        const float *logits = run_rows(r, tokens, done, count - done, pages);
        int32_t best = argmax(logits + (size_t)(count - done - 1) * (size_t)r->vocab, r->vocab);
        assert_int_equal(best, id->valueint);
        done = count;
        tokens[count++] = best;
    }
    rt_kv_pages_give_back(r->pages, need, pages);
}

static void check_greedy_model(const char *name, const char *folder) {
    bis_buf text = {0};
    bis_error error;
    if (bis_read_file(shared_path("data/derived/reference_greedy_fp64.json"), 1 << 20, &text, &error)) {
        print_message("skipped: %s\n", error.text);
        skip();
    }
    cJSON *reference = cJSON_Parse(text.data);
    assert_non_null(reference);
    const cJSON *run, *runs = cJSON_GetObjectItem(cJSON_GetObjectItem(reference, "models"), name);
    assert_true(cJSON_GetArraySize(runs) > 0);
    runner r = open_runner(shared_path(folder), "auto", 2, 32, CONTEXT * 4);
    cJSON_ArrayForEach(run, runs) check_greedy(&r, run);
    close_runner(&r);
    cJSON_Delete(reference);
    bis_buf_free(&text);
}

static void test_greedy_ids_of_story_llama(void **state) {
    (void)state;
    check_greedy_model("story-llama-656k", "data/models/story-llama-656k");
}

static void test_greedy_ids_of_stories260k(void **state) {
    (void)state;
    check_greedy_model("stories260K", "data/models/stories260K-hf");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits_agree_with_transformers),
        cmocka_unit_test(test_f16_kv_cache_stays_close),
        cmocka_unit_test(test_rows_are_bit_identical_however_computed),
        cmocka_unit_test(test_sequences_do_not_see_each_other),
        cmocka_unit_test(test_greedy_ids_of_story_llama),
        cmocka_unit_test(test_greedy_ids_of_stories260k),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
