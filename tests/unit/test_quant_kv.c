/* The cache with low-bit pages and with keys from before RoPE: attention of every CPU variant, in every mixture of
 * rows, against a computation in double on the values that the formats define; the pages' layout. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "kernels/cpu/cpu_kernels.h"
#include "tests/support/random_data.h"

enum { TOKENS = 61, LAYERS = 2, LAYER = 1, POOL = 16, SEQUENCES = 2, PAGES_MOST = 4, GARBAGE = 0xfb, ISAS = 3 };

static const char *const isas[ISAS] = {"reference", "avx2", "avx512"};

static bool has_isa(int isa) {
    return isa == 0 || (isa == 1 && kn_cpu_kernels_avx2()) || (isa == 2 && kn_cpu_kernels_avx512());
}

/* A sequence: its numbers, and its pages in a shuffled order. */
typedef struct sequence {
    int prompt;
    int32_t pages[POOL];
    float *k, *v, *q;      /* [TOKENS, heads, dim] */
    double *keys, *values; /* what the cache holds, keys as attention uses them [TOKENS, kv_heads, dim] */
    float *expected, *got; /* [TOKENS, heads, dim] */
} sequence;

typedef struct kv_case {
    kn_kv_cache cache;
    int heads;
    float *table; /* [TOKENS, dim] */
    sequence sequences[SEQUENCES];
} kv_case;

static float *random_array(size_t count) {
    float *out = test_alloc(count * sizeof *out);
    fill_random(out, count);
    return out;
}

/* One head's numbers as the cache gives them back. */
static void stored_values(const kn_kv_cache *cache, bool low, const float *x, double *out) {
    uint8_t stream[512];
    uint16_t scale, minimum;
    float decoded[256];
    if (low) {
        kn_kv_encode(cache->low_bits, x, cache->head_dim, stream, &scale, &minimum);
        kn_kv_decode(cache->low_bits, stream, scale, minimum, cache->head_dim, decoded);
    }
    for (int d = 0; d < cache->head_dim; d++) {
        if (low) out[d] = decoded[d];
        else out[d] = cache->type == KN_F16 ? kn_f16_to_f32(kn_f32_to_f16(x[d])) : x[d];
    }
}

static void rotate(double *x, const float *angles, int half) {
    for (int i = 0; i < half; i++) {
        double a = x[i], b = x[i + half], c = angles[i], s = angles[i + half];
        x[i] = a * c - b * s;
        x[i + half] = b * c + a * s;
    }
}

static void fill_sequence(kv_case *c, sequence *s, int index, int prompt) {
    const kn_kv_cache *cache = &c->cache;
    size_t dim = (size_t)cache->head_dim, stored = TOKENS * (size_t)cache->kv_heads * dim;
    size_t queries = TOKENS * (size_t)c->heads * dim;
    s->prompt = prompt;
    for (int i = 0; i < POOL; i++) s->pages[i] = -1;
    int full = cache->low_bits ? (prompt + KN_PAGE_TOKENS - 1) / KN_PAGE_TOKENS : PAGES_MOST;
    int low = cache->low_bits ? (TOKENS - prompt + KN_PAGE_TOKENS - 1) / KN_PAGE_TOKENS : 0;
    for (int i = 0; i < full; i++)
        s->pages[i] = (7 + 5 * (i + PAGES_MOST * index)) % POOL; /* 5 and 16 have no divisor */
    for (int i = 0; i < low; i++) s->pages[full + i] = (2 + 3 * (i + PAGES_MOST * index)) % POOL;
    s->k = random_array(stored);
    s->v = random_array(stored);
    s->q = random_array(queries);
    s->got = random_array(queries);
    s->expected = random_array(queries);
    s->keys = test_alloc(stored * sizeof *s->keys);
    s->values = test_alloc(stored * sizeof *s->values);
    for (size_t t = 0; t < TOKENS; t++) {
        for (size_t h = 0; h < (size_t)cache->kv_heads; h++) {
            size_t at = (t * (size_t)cache->kv_heads + h) * dim;
            bool is_low = cache->low_bits && (int)t >= prompt;
            stored_values(cache, is_low, s->k + at, s->keys + at);
            stored_values(cache, is_low, s->v + at, s->values + at);
            if (cache->key_table) rotate(s->keys + at, c->table + t * dim, cache->head_dim / 2);
        }
    }
}

static kv_case make_case(kn_kv_cache cache, int heads, bool before_rope, const int prompts[SEQUENCES]) {
    kv_case c = {.cache = cache, .heads = heads};
    c.cache.layers = LAYERS;
    c.cache.pages = POOL;
    c.cache.low_pages = cache.low_bits ? POOL : 0;
    size_t dim = (size_t)cache.head_dim;
    c.table = test_alloc(TOKENS * dim * sizeof *c.table);
    for (size_t t = 0; t < TOKENS; t++) {
        for (size_t i = 0; i < dim / 2; i++) {
            double angle = (double)t * pow(100, -2.0 * (double)i / (double)dim);
            c.table[t * dim + i] = (float)cos(angle);
            c.table[t * dim + dim / 2 + i] = (float)sin(angle);
        }
    }
    if (before_rope) c.cache.key_table = c.table;
    c.cache.data = test_alloc(kn_kv_page_bytes(&c.cache) * POOL);
    c.cache.low_data = test_alloc(kn_kv_low_page_bytes(&c.cache) * POOL);
    for (int i = 0; i < SEQUENCES; i++) fill_sequence(&c, &c.sequences[i], i, prompts[i]);
    return c;
}

static void free_case(kv_case *c) {
    free(c->table);
    free(c->cache.data);
    free(c->cache.low_data);
    for (int i = 0; i < SEQUENCES; i++) {
        sequence *s = &c->sequences[i];
        void *all[] = {s->k, s->v, s->q, s->keys, s->values, s->expected, s->got};
        for (size_t m = 0; m < sizeof all / sizeof *all; m++) free(all[m]);
    }
}

/* What was never stored is no number, or huge, so that it shows where it is read. */
static void clear_cache(kv_case *c) {
    memset(c->cache.data, GARBAGE, kn_kv_page_bytes(&c->cache) * POOL);
    memset(c->cache.low_data, GARBAGE, kn_kv_low_page_bytes(&c->cache) * POOL);
}

/* Stores the tokens and attends, all in one call. which[i], position[i]: sequence and token of row i. */
static void run_rows(kv_case *c, kn_backend *backend, int count, const int *which, const int32_t *position) {
    const kn_kv_cache *cache = &c->cache;
    size_t dim = (size_t)cache->head_dim, stored = (size_t)cache->kv_heads * dim, queries = (size_t)c->heads * dim;
    const int32_t *pages[SEQUENCES * TOKENS];
    int32_t prompt[SEQUENCES * TOKENS];
    float *k = test_alloc((size_t)count * stored * sizeof *k), *v = test_alloc((size_t)count * stored * sizeof *v);
    float *q = test_alloc((size_t)count * queries * sizeof *q), *out = test_alloc((size_t)count * queries * sizeof *q);
    bool no_prompt = true;
    for (size_t i = 0; i < (size_t)count; i++) {
        const sequence *s = &c->sequences[which[i]];
        size_t t = (size_t)position[i];
        pages[i] = s->pages;
        prompt[i] = s->prompt;
        if (s->prompt) no_prompt = false;
        memcpy(k + i * stored, s->k + t * stored, stored * sizeof *k);
        memcpy(v + i * stored, s->v + t * stored, stored * sizeof *v);
        memcpy(q + i * queries, s->q + t * queries, queries * sizeof *q);
    }
    kn_rows rows = {count, position, pages, no_prompt ? NULL : prompt};
    backend->ops->kv_store(backend, cache, LAYER, &rows, k, v);
    backend->ops->attention(backend, cache, LAYER, &rows, q, c->heads, out);
    for (size_t i = 0; i < (size_t)count; i++) {
        memcpy(c->sequences[which[i]].got + (size_t)position[i] * queries, out + i * queries, queries * sizeof *out);
    }
    free(k);
    free(v);
    free(q);
    free(out);
}

typedef enum row_mix { WHOLE, ALTERNATING, CHUNKS, SINGLE, MIXES } row_mix;

/* All tokens of both sequences, cut and mixed in one of several ways. */
static void run_mix(kv_case *c, kn_backend *backend, row_mix mix) {
    int which[SEQUENCES * TOKENS], count = 0;
    int32_t position[SEQUENCES * TOKENS];
    clear_cache(c);
    for (int i = 0; i < SEQUENCES * TOKENS; i++, count++) {
        bool turns = mix != WHOLE;
        which[count] = turns ? i % SEQUENCES : i / TOKENS;
        position[count] = turns ? i / SEQUENCES : i % TOKENS;
        if ((mix == CHUNKS && random_below(20) == 0) || mix == SINGLE) {
            run_rows(c, backend, count + 1, which, position);
            count = -1;
        }
    }
    if (count) run_rows(c, backend, count, which, position);
}

static void check_in_double(const kv_case *c, const sequence *s) {
    int dim = c->cache.head_dim, kv_heads = c->cache.kv_heads, group = c->heads / kv_heads;
    for (int r = 0; r < TOKENS; r++) {
        for (int h = 0; h < c->heads; h++) {
            double weight[TOKENS], total = 0;
            const float *q = s->q + (r * c->heads + h) * dim;
            for (int t = 0; t <= r; t++) {
                double score = 0;
                for (int d = 0; d < dim; d++) score += q[d] * s->keys[(t * kv_heads + h / group) * dim + d];
                total += weight[t] = exp(score / sqrt(dim));
            }
            for (int d = 0; d < dim; d++) {
                double sum = 0;
                for (int t = 0; t <= r; t++) sum += weight[t] * s->values[(t * kv_heads + h / group) * dim + d];
                assert_true(fabs(s->expected[(r * c->heads + h) * dim + d] - sum / total) < 3e-5);
            }
        }
    }
}

/* The first run is checked in double, the others against its bits. */
static void check_case(kv_case *c) {
    bool first = true;
    size_t bytes = TOKENS * (size_t)c->heads * (size_t)c->cache.head_dim * sizeof(float);
    for (int run = 0; run < ISAS * 2 * MIXES; run++) {
        int isa = run / (2 * MIXES), threads = run / MIXES % 2 ? 5 : 1;
        if (!has_isa(isa)) continue;
        kn_backend *backend;
        bis_error error;
        if (kn_cpu_open(threads, isas[isa], TOKENS, c->cache.head_dim, &backend, &error)) fail_msg("%s", error.text);
        run_mix(c, backend, (row_mix)(run % MIXES));
        backend->ops->close(backend);
        for (int i = 0; i < SEQUENCES; i++) {
            sequence *s = &c->sequences[i];
            if (first) {
                memcpy(s->expected, s->got, bytes);
                check_in_double(c, s);
            }
            assert_memory_equal(s->got, s->expected, bytes);
        }
        first = false;
    }
}

static void test_low_attention(void **state) {
    (void)state;
    static const int bits[] = {2, 3, 4, 8}, prompts[] = {0, 1, 15, 16, 17, 40}, dims[] = {10, 16, 22};
    for (int i = 0; i < 24; i++) {
        int spans[SEQUENCES] = {prompts[i / 4], i % 4 == 2 ? 0 : prompts[random_below(6)]};
        kn_kv_cache cache = {.type = i % 3 ? KN_F16 : KN_F32, .low_bits = bits[i % 4], .kv_heads = 1 + i % 2};
        cache.head_dim = dims[(i / 2) % 3];
        kv_case c = make_case(cache, cache.kv_heads * (1 + i % 3), (i / 4 + i) % 2 == 0, spans);
        check_case(&c);
        free_case(&c);
    }
    int spans[SEQUENCES] = {17, 0};
    kv_case c = make_case((kn_kv_cache){.type = KN_F16, .low_bits = 3, .kv_heads = 2, .head_dim = 128}, 4, true, spans);
    check_case(&c);
    free_case(&c);
}

/* Runs both cases on the same numbers; every output must be the same to the bit. */
static void check_same_output(kv_case *a, kv_case *b, int low_head_dim) {
    kn_backend *backend;
    bis_error error;
    if (kn_cpu_open(3, "auto", TOKENS, low_head_dim, &backend, &error)) fail_msg("%s", error.text);
    run_mix(a, backend, CHUNKS);
    run_mix(b, backend, WHOLE);
    size_t bytes = TOKENS * (size_t)a->heads * (size_t)a->cache.head_dim * sizeof(float);
    for (int i = 0; i < SEQUENCES; i++) assert_memory_equal(a->sequences[i].got, b->sequences[i].got, bytes);
    backend->ops->close(backend);
}

/* The sequences of `from` in place of b's own. */
static void take_numbers(const kv_case *from, kv_case *b) {
    size_t dim = (size_t)b->cache.head_dim, stored = TOKENS * (size_t)b->cache.kv_heads * dim;
    for (int i = 0; i < SEQUENCES; i++) {
        memcpy(b->sequences[i].k, from->sequences[i].k, stored * sizeof(float));
        memcpy(b->sequences[i].v, from->sequences[i].v, stored * sizeof(float));
        memcpy(b->sequences[i].q, from->sequences[i].q, TOKENS * (size_t)b->heads * dim * sizeof(float));
    }
}

/* Full pages with key_table: what one gets by rotating first and storing after (F32: nothing is lost between). */
static void test_key_table_is_rope(void **state) {
    (void)state;
    enum { KV_HEADS = 2, DIM = 20 };
    int spans[SEQUENCES] = {0, 0};
    kn_kv_cache cache = {.type = KN_F32, .kv_heads = KV_HEADS, .head_dim = DIM};
    kv_case plain = make_case(cache, 4, false, spans), before = make_case(cache, 4, true, spans);
    take_numbers(&before, &plain);
    const kn_cpu_kernels *reference = kn_cpu_kernels_reference();
    for (int i = 0; i < SEQUENCES; i++) {
        for (size_t head = 0; head < TOKENS * KV_HEADS; head++) {
            const float *angles = plain.table + head / KV_HEADS * DIM;
            reference->rope(plain.sequences[i].k + head * DIM, angles, angles + DIM / 2, DIM / 2);
        }
    }
    check_same_output(&plain, &before, DIM);
    free_case(&plain);
    free_case(&before);
}

/* A prompt span that holds all tokens: the bits of a cache without low pages. */
static void test_all_in_prompt(void **state) {
    (void)state;
    int spans[SEQUENCES] = {TOKENS, TOKENS + 30};
    kn_kv_cache cache = {.type = KN_F16, .kv_heads = 2, .head_dim = 24};
    kv_case plain = make_case(cache, 6, false, spans);
    cache.low_bits = 2;
    int whole[SEQUENCES] = {TOKENS, TOKENS};
    kv_case low = make_case(cache, 6, false, whole);
    low.sequences[1].prompt = spans[1];
    take_numbers(&plain, &low);
    check_same_output(&plain, &low, 24);
    free_case(&plain);
    free_case(&low);
}

/* One token's bytes stand where backend.h says, and nothing else of the page was written. */
static void test_low_page_layout(void **state) {
    (void)state;
    static const int bits[] = {2, 3, 4, 8};
    enum { KV_HEADS = 3, DIM = 10, PROMPT = 17, TOKEN = 17 + 16 + 5 }; /* the sixth slot of the second low page */
    for (int b = 0; b < 4; b++) {
        int spans[SEQUENCES] = {PROMPT, 0};
        kv_case c =
            make_case((kn_kv_cache){.low_bits = bits[b], .kv_heads = KV_HEADS, .head_dim = DIM}, 3, false, spans);
        size_t stream = (size_t)(DIM * bits[b] + 7) / 8, head = 16 * stream + 32 + 32;
        assert_int_equal(kn_kv_low_head_bytes(&c.cache), head);
        assert_int_equal(kn_kv_low_page_bytes(&c.cache), head * KV_HEADS * 2 * LAYERS);
        assert_int_equal(kn_kv_head_bytes(&c.cache), 16 * DIM * 4);
        size_t pool = kn_kv_low_page_bytes(&c.cache) * POOL;
        uint8_t *expected = test_alloc(pool);
        memset(expected, GARBAGE, pool);
        const sequence *s = &c.sequences[0];
        for (size_t kv = 0; kv < 2; kv++) {
            for (size_t h = 0; h < KV_HEADS; h++) {
                const float *x = (kv ? s->v : s->k) + ((size_t)TOKEN * KV_HEADS + h) * DIM;
                uint8_t *at = expected + (size_t)s->pages[2 + 1] * kn_kv_low_page_bytes(&c.cache) +
                              ((LAYER * 2 + kv) * KV_HEADS + h) * head;
                uint16_t scale, minimum;
                kn_kv_encode(bits[b], x, DIM, at + 5 * stream, &scale, &minimum);
                memcpy(at + 16 * stream + (size_t)5 * 2, &scale, 2);
                memcpy(at + 16 * stream + 32 + (size_t)5 * 2, &minimum, 2);
            }
        }
        clear_cache(&c);
        kn_backend *backend;
        bis_error error;
        assert_int_equal(kn_cpu_open(2, "auto", TOKENS, DIM, &backend, &error), BIS_OK);
        int32_t position = TOKEN, prompt = PROMPT;
        const int32_t *pages = s->pages;
        kn_rows rows = {1, &position, &pages, &prompt};
        backend->ops->kv_store(backend, &c.cache, LAYER, &rows, s->k + (size_t)TOKEN * KV_HEADS * DIM,
                               s->v + (size_t)TOKEN * KV_HEADS * DIM);
        backend->ops->close(backend);
        assert_memory_equal(c.cache.low_data, expected, pool);
        const uint8_t *full = c.cache.data;
        for (size_t i = 0; i < kn_kv_page_bytes(&c.cache) * POOL; i++) assert_int_equal(full[i], GARBAGE);
        free(expected);
        free_case(&c);
    }
}

static void test_open_without_memory(void **state) {
    (void)state;
    bis_error error;
    kn_backend *backend = NULL;
    long allowed = 0;
    for (; allowed < 20; allowed++) {
        bis_alloc_fail_after(allowed);
        bis_status status = kn_cpu_open(2, "auto", 100, 64, &backend, &error);
        if (!status) break;
        assert_int_equal(status, BIS_ERR_NOMEM);
        assert_null(backend);
    }
    bis_alloc_fail_after(-1);
    assert_in_range(allowed, 4, 10); /* the backend, scores, pages and their numbers, and the pool's own */
    backend->ops->close(backend);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_low_attention),       cmocka_unit_test(test_key_table_is_rope),
        cmocka_unit_test(test_all_in_prompt),       cmocka_unit_test(test_low_page_layout),
        cmocka_unit_test(test_open_without_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
