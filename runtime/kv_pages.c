#include "runtime/kv_pages.h"

#include <stdint.h>
#include <sys/mman.h>

#include "common/alloc.h"

/* The free pages of one kind. A stack: the page given back last is taken first, while it is still in a cache. */
typedef struct page_pool {
    void *memory;
    size_t bytes;
    int32_t *numbers;
    int total, free;
} page_pool;

struct rt_kv_pages {
    kn_kv_cache cache;
    page_pool full, low;
};

/* ---- widths and sizes ---- */

bis_status rt_kv_bits(const rt_model_config *model, int asked, int *bits, bis_error *error) {
    int chosen = asked ? asked : model->quantization.kv_bits;
    if (chosen != 16 && chosen != 32 && !kn_bits_find(chosen)) {
        return bis_fail(error, BIS_ERR_INVALID, "kv-bits is %d: use 2, 3, 4, 8, 16 or 32, or 0 for the model's own",
                        asked);
    }
    *bits = chosen;
    return BIS_OK;
}

bool rt_kv_is_low(int bits) { return bits < 16; }

int rt_kv_low_head_dim(const rt_model_config *model, int bits) { return rt_kv_is_low(bits) ? model->head_dim : 0; }

static kn_kv_cache cache_of(const rt_model_config *model, int bits) {
    return (kn_kv_cache){.type = bits == 32 ? KN_F32 : KN_F16,
                         .layers = model->layers,
                         .kv_heads = model->kv_heads,
                         .head_dim = model->head_dim,
                         .low_bits = rt_kv_is_low(bits) ? bits : 0};
}

uint64_t rt_kv_full_page_bytes(const rt_model_config *model, int bits) {
    kn_kv_cache cache = cache_of(model, bits);
    return kn_kv_page_bytes(&cache);
}

uint64_t rt_kv_low_page_bytes(const rt_model_config *model, int bits) {
    kn_kv_cache cache = cache_of(model, bits);
    return cache.low_bits ? kn_kv_low_page_bytes(&cache) : 0;
}

uint64_t rt_kv_token_bytes(const rt_model_config *model, int bits) {
    uint64_t page = rt_kv_is_low(bits) ? rt_kv_low_page_bytes(model, bits) : rt_kv_full_page_bytes(model, bits);
    return page / KN_PAGE_TOKENS;
}

/* ---- one kind of pages ---- */

/* Zeroed memory that the system provides page by page when it is first written. False: refused. */
static bool open_pool(page_pool *pool, int pages, uint64_t page_bytes) {
    if (pages == 0) return true;
    uint64_t bytes;
    if (__builtin_mul_overflow(page_bytes, (uint64_t)pages, &bytes) || bytes > SIZE_MAX / 2) return false;
    pool->numbers = bis_calloc((size_t)pages, sizeof *pool->numbers);
    if (!pool->numbers) return false;
    void *memory = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return false;
    pool->memory = memory;
    pool->bytes = (size_t)bytes;
    for (int i = 0; i < pages; i++) pool->numbers[i] = pages - 1 - i;
    pool->total = pool->free = pages;
    return true;
}

static void close_pool(page_pool *pool) {
    if (pool->memory) munmap(pool->memory, pool->bytes);
    bis_free(pool->numbers);
}

static void take(page_pool *pool, int count, int32_t *numbers) {
    for (int i = 0; i < count; i++) numbers[i] = pool->numbers[--pool->free];
}

static void give_back(page_pool *pool, int count, const int32_t *numbers) {
    for (int i = count - 1; i >= 0; i--) pool->numbers[pool->free++] = numbers[i];
}

/* ---- both ---- */

bis_status rt_kv_pages_open(const rt_model_config *model, int bits, rt_kv_count count, rt_kv_pages **out,
                            bis_error *error) {
    uint64_t full_bytes = rt_kv_full_page_bytes(model, bits), low_bytes = rt_kv_low_page_bytes(model, bits);
    if (count.full < 0 || count.low < 0 || (count.full == 0 && count.low == 0) || (count.low && !low_bytes)) {
        return bis_fail(error, BIS_ERR_LIMIT, "a KV cache of %d bits cannot have %d full and %d low pages", bits,
                        count.full, count.low);
    }
    rt_kv_pages *self = bis_calloc(1, sizeof *self);
    if (self) self->cache = cache_of(model, bits);
    if (!self || !open_pool(&self->full, count.full, full_bytes) || !open_pool(&self->low, count.low, low_bytes)) {
        rt_kv_pages_close(self);
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for a KV cache of %.1f MB: use a smaller --kv-memory",
                        ((double)full_bytes * count.full + (double)low_bytes * count.low) / 1e6);
    }
    self->cache.data = self->full.memory;
    self->cache.pages = count.full;
    self->cache.low_data = self->low.memory;
    self->cache.low_pages = count.low;
    *out = self;
    return BIS_OK;
}

void rt_kv_pages_close(rt_kv_pages *pages) {
    if (!pages) return;
    close_pool(&pages->full);
    close_pool(&pages->low);
    bis_free(pages);
}

const kn_kv_cache *rt_kv_pages_cache(const rt_kv_pages *pages) { return &pages->cache; }

int rt_kv_pages_bits(const rt_kv_pages *pages) {
    if (pages->cache.low_bits) return pages->cache.low_bits;
    return pages->cache.type == KN_F32 ? 32 : 16;
}

rt_kv_count rt_kv_pages_total(const rt_kv_pages *pages) { return (rt_kv_count){pages->full.total, pages->low.total}; }

rt_kv_count rt_kv_pages_free(const rt_kv_pages *pages) { return (rt_kv_count){pages->full.free, pages->low.free}; }

int rt_kv_pages_for(int tokens) { return (tokens + KN_PAGE_TOKENS - 1) / KN_PAGE_TOKENS; }

rt_kv_count rt_kv_pages_need(int bits, int span, int tokens) {
    if (!rt_kv_is_low(bits)) return (rt_kv_count){.full = rt_kv_pages_for(tokens)};
    return (rt_kv_count){rt_kv_pages_for(span), rt_kv_pages_for(tokens - span)};
}

bool rt_kv_pages_take(rt_kv_pages *pages, rt_kv_count count, int32_t *numbers) {
    if (count.full > pages->full.free || count.low > pages->low.free) return false;
    take(&pages->full, count.full, numbers);
    take(&pages->low, count.low, numbers + count.full);
    return true;
}

void rt_kv_pages_give_back(rt_kv_pages *pages, rt_kv_count count, const int32_t *numbers) {
    give_back(&pages->full, count.full, numbers);
    give_back(&pages->low, count.low, numbers + count.full);
}
