#include <string.h>

#include "runtime/template/jinja_value.h"

typedef struct sorter {
    rt_jrun *run;
    rt_jval *items, *keys; /* in order of rising position */
    rt_jval *spare_items, *spare_keys;
    bool reverse;
} sorter;

/* Equal keys keep their order, also in a reversed sort. */
static bool goes_first(const sorter *sort, size_t left, size_t right) {
    rt_jval a = sort->keys[left], b = sort->keys[right];
    return sort->reverse ? rt_jcompare(sort->run, a, b, "<") >= 0 : rt_jcompare(sort->run, b, a, "<") >= 0;
}

static void merge(sorter *sort, size_t from, size_t middle, size_t to) {
    size_t left = from, right = middle;
    for (size_t at = from; at < to; at++) {
        if (!rt_jwork(sort->run, 1)) return;
        size_t pick = right >= to || (left < middle && goes_first(sort, left, right)) ? left++ : right++;
        sort->spare_items[at] = sort->items[pick];
        sort->spare_keys[at] = sort->keys[pick];
    }
    memcpy(sort->items + from, sort->spare_items + from, (to - from) * sizeof *sort->items);
    memcpy(sort->keys + from, sort->spare_keys + from, (to - from) * sizeof *sort->keys);
}

void rt_jsort(rt_jrun *run, rt_jval *items, rt_jval *keys, size_t count, bool reverse) {
    if (count < 2 || !items || !keys) return;
    sorter sort = {run,    items, keys, rt_jalloc(run, count, sizeof *items), rt_jalloc(run, count, sizeof *keys),
                   reverse};
    if (!sort.spare_items || !sort.spare_keys) return;
    for (size_t width = 1; width < count && !run->status; width *= 2) {
        for (size_t from = 0; from + width < count && !run->status; from += 2 * width) {
            size_t to = from + 2 * width < count ? from + 2 * width : count;
            merge(&sort, from, from + width, to);
        }
    }
}
