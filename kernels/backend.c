/* The cache's layout in bytes, which all backends share. */
#include "kernels/backend.h"

#include <assert.h>

static_assert(KN_PAGE_TOKENS % 2 == 0, "a low page's F16 numbers stand at even addresses, whatever its codes' bits");

static size_t heads_of_page(const kn_kv_cache *cache) { return (size_t)cache->kv_heads * 2 * (size_t)cache->layers; }

size_t kn_kv_head_bytes(const kn_kv_cache *cache) {
    return (size_t)KN_PAGE_TOKENS * (size_t)cache->head_dim * kn_type_bytes(cache->type);
}

size_t kn_kv_page_bytes(const kn_kv_cache *cache) { return kn_kv_head_bytes(cache) * heads_of_page(cache); }

size_t kn_kv_low_head_bytes(const kn_kv_cache *cache) {
    if (!cache->low_bits) return 0;
    return KN_PAGE_TOKENS * (kn_packed_bytes(cache->head_dim, cache->low_bits) + 2 * sizeof(uint16_t));
}

size_t kn_kv_low_page_bytes(const kn_kv_cache *cache) { return kn_kv_low_head_bytes(cache) * heads_of_page(cache); }
