#include "runtime/kv_pages.h"

#include <stdint.h>
#include <sys/mman.h>

#include "common/alloc.h"

struct rt_kv_pages {
    kn_kv_cache cache;
    int32_t *free_numbers; /* a stack: the page given back last is taken first, while it is still in a cache */
    int free_count;
    size_t bytes;
};

/* Zeroed memory that the system provides page by page when it is first written. NULL: refused. */
static void *reserve(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static kn_kv_cache cache_of(const rt_model_config *model, int bits, int pages) {
    return (kn_kv_cache){.type = bits == 32 ? KN_F32 : KN_F16,
                         .layers = model->layers,
                         .kv_heads = model->kv_heads,
                         .head_dim = model->head_dim,
                         .pages = pages};
}

uint64_t rt_kv_page_bytes(const rt_model_config *model, int bits) {
    if (bits != 16 && bits != 32) return 0;
    kn_kv_cache cache = cache_of(model, bits, 0);
    return kn_kv_page_bytes(&cache);
}

bis_status rt_kv_pages_open(const rt_model_config *model, int bits, int pages, rt_kv_pages **out, bis_error *error) {
    uint64_t page_bytes = rt_kv_page_bytes(model, bits), bytes;
    if (!page_bytes) return bis_fail(error, BIS_ERR_INVALID, "kv-bits is %d: use 16 or 32", bits);
    if (pages < 1 || __builtin_mul_overflow(page_bytes, (uint64_t)pages, &bytes) || bytes > SIZE_MAX / 2) {
        return bis_fail(error, BIS_ERR_LIMIT, "the KV cache cannot have %d pages", pages);
    }
    rt_kv_pages *self = bis_calloc(1, sizeof *self);
    if (self) self->free_numbers = bis_calloc((size_t)pages, sizeof *self->free_numbers);
    if (self) self->cache = cache_of(model, bits, pages);
    if (self) self->cache.data = reserve((size_t)bytes);
    if (self) self->bytes = (size_t)bytes;
    if (!self || !self->free_numbers || !self->cache.data) {
        rt_kv_pages_close(self);
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for a KV cache of %.1f MB: use a smaller --kv-memory",
                        (double)bytes / 1e6);
    }
    for (int i = 0; i < pages; i++) self->free_numbers[i] = pages - 1 - i;
    self->free_count = pages;
    *out = self;
    return BIS_OK;
}

void rt_kv_pages_close(rt_kv_pages *pages) {
    if (!pages) return;
    if (pages->cache.data) munmap(pages->cache.data, pages->bytes);
    bis_free(pages->free_numbers);
    bis_free(pages);
}

const kn_kv_cache *rt_kv_pages_cache(const rt_kv_pages *pages) { return &pages->cache; }
int rt_kv_pages_total(const rt_kv_pages *pages) { return pages->cache.pages; }
int rt_kv_pages_free(const rt_kv_pages *pages) { return pages->free_count; }

bool rt_kv_pages_take(rt_kv_pages *pages, int count, int32_t *numbers) {
    if (count > pages->free_count) return false;
    for (int i = 0; i < count; i++) numbers[i] = pages->free_numbers[--pages->free_count];
    return true;
}

void rt_kv_pages_give_back(rt_kv_pages *pages, int count, const int32_t *numbers) {
    for (int i = count - 1; i >= 0; i--) pages->free_numbers[pages->free_count++] = numbers[i];
}

int rt_kv_pages_for(int tokens) { return (tokens + KN_PAGE_TOKENS - 1) / KN_PAGE_TOKENS; }
