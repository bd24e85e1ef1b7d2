#include "runtime/tokenizer/tokenizer_bpe.h"

#include "common/alloc.h"

static size_t find_slot(const rt_bpe *bpe, int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t hash = key * 0x9e3779b97f4a7c15u;
    hash = (hash ^ hash >> 29) * 0xbf58476d1ce4e5b9u;
    size_t mask = bpe->slot_count - 1, slot = (size_t)(hash >> 32) & mask;
    while (bpe->slots[slot].merged >= 0 && (bpe->slots[slot].left != left || bpe->slots[slot].right != right)) {
        slot = (slot + 1) & mask;
    }
    return slot;
}

bis_status rt_bpe_reserve(rt_bpe *bpe, size_t rules, bis_error *error) {
    size_t slots = 16;
    while (slots < rules + rules / 2) slots *= 2;
    bpe->slots = bis_reallocarray(NULL, slots, sizeof *bpe->slots);
    if (!bpe->slots) return bis_fail(error, BIS_ERR_NOMEM, "no memory for %zu merges", rules);
    for (size_t i = 0; i < slots; i++) bpe->slots[i].merged = -1;
    bpe->slot_count = slots;
    bpe->limit = rules;
    return BIS_OK;
}

bool rt_bpe_add(rt_bpe *bpe, int32_t left, int32_t right, int32_t merged, uint32_t rank) {
    if (bpe->count >= bpe->limit) return false;
    rt_bpe_rule *rule = &bpe->slots[find_slot(bpe, left, right)];
    if (rule->merged < 0) bpe->count++;
    *rule = (rt_bpe_rule){left, right, merged, rank};
    return true;
}

void rt_bpe_free(rt_bpe *bpe) {
    bis_free(bpe->slots);
    *bpe = (rt_bpe){0};
}

bool rt_bpe_push(rt_bpe_work *work, int32_t id) {
    if (work->count == work->capacity) {
        size_t capacity = work->capacity ? work->capacity * 2 : 64;
        rt_bpe_symbol *symbols = bis_reallocarray(work->symbols, capacity, sizeof *symbols);
        if (!symbols) return false;
        work->symbols = symbols;
        work->capacity = capacity;
    }
    work->symbols[work->count++].id = id;
    return true;
}

static bool comes_first(rt_bpe_candidate a, rt_bpe_candidate b) {
    return a.rank != b.rank ? a.rank < b.rank : a.position < b.position;
}

static void sift_up(rt_bpe_candidate *heap, size_t at) {
    rt_bpe_candidate moving = heap[at];
    while (at > 0 && comes_first(moving, heap[(at - 1) / 2])) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = moving;
}

static void sift_down(rt_bpe_candidate *heap, size_t count, size_t at) {
    rt_bpe_candidate moving = heap[at];
    for (size_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && comes_first(heap[child + 1], heap[child])) child++;
        if (!comes_first(heap[child], moving)) break;
        heap[at] = heap[child];
    }
    heap[at] = moving;
}

/* Offers the pair of `position` and its right neighbour, if a rule merges them. */
static void offer_pair(const rt_bpe *bpe, rt_bpe_work *work, int32_t position) {
    if (position < 0) return;
    int32_t next = work->symbols[position].next;
    if (next < 0) return;
    const rt_bpe_rule *rule = &bpe->slots[find_slot(bpe, work->symbols[position].id, work->symbols[next].id)];
    if (rule->merged < 0) return;
    work->heap[work->heap_count] = (rt_bpe_candidate){rule->rank, position, rule->merged};
    sift_up(work->heap, work->heap_count++);
}

/* The heap starts with at most n-1 pairs, and each of the at most n-1 merges takes one out and
 * puts two in: 2n candidates always fit. */
static bool reserve_heap(rt_bpe_work *work) {
    size_t need = 2 * work->count;
    if (need <= work->heap_capacity) return true;
    rt_bpe_candidate *heap = bis_reallocarray(work->heap, need, sizeof *heap);
    if (!heap) return false;
    work->heap = heap;
    work->heap_capacity = need;
    return true;
}

/* A candidate is stale when one of its symbols changed since it was offered. */
static bool still_holds(const rt_bpe *bpe, const rt_bpe_work *work, rt_bpe_candidate candidate) {
    const rt_bpe_symbol *left = &work->symbols[candidate.position];
    if (left->id < 0 || left->next < 0) return false;
    return bpe->slots[find_slot(bpe, left->id, work->symbols[left->next].id)].merged == candidate.merged;
}

bool rt_bpe_merge(const rt_bpe *bpe, rt_bpe_work *work) {
    if (work->count < 2 || bpe->count == 0) return true;
    if (!reserve_heap(work)) return false;
    rt_bpe_symbol *symbols = work->symbols;
    int32_t count = (int32_t)work->count;
    for (int32_t i = 0; i < count; i++) {
        symbols[i].previous = i - 1;
        symbols[i].next = i + 1 < count ? i + 1 : -1;
    }
    work->heap_count = 0;
    for (int32_t i = 0; i < count; i++) offer_pair(bpe, work, i);
    while (work->heap_count > 0) {
        rt_bpe_candidate best = work->heap[0];
        work->heap[0] = work->heap[--work->heap_count];
        if (work->heap_count > 0) sift_down(work->heap, work->heap_count, 0);
        if (!still_holds(bpe, work, best)) continue;
        rt_bpe_symbol *left = &symbols[best.position], *right = &symbols[left->next];
        left->id = best.merged;
        right->id = -1;
        left->next = right->next;
        if (left->next >= 0) symbols[left->next].previous = best.position;
        offer_pair(bpe, work, left->previous);
        offer_pair(bpe, work, best.position);
    }
    work->count = 0;
    for (int32_t i = 0; i >= 0; i = symbols[i].next) symbols[work->count++].id = symbols[i].id;
    return true;
}

void rt_bpe_work_free(rt_bpe_work *work) {
    bis_free(work->symbols);
    bis_free(work->heap);
    *work = (rt_bpe_work){0};
}
