#include "runtime/event_ring.h"

#include <string.h>

#include "common/alloc.h"

/* What an event is in the ring: this head, then top_count entries, the text, and the error's text with its NUL. */
typedef struct ring_head {
    rt_event_kind kind;
    int32_t token;
    float logprob;
    int top_count;
    rt_finish finish;
    int prompt_tokens, cached_tokens, completion_tokens;
    bis_status error_status;
    size_t text_length, error_length;
} ring_head;

bool rt_event_ring_open(rt_event_ring *ring, size_t capacity) {
    *ring = (rt_event_ring){.bytes = bis_malloc(capacity), .capacity = capacity};
    return ring->bytes != NULL;
}

void rt_event_ring_close(rt_event_ring *ring) {
    bis_free(ring->bytes);
    *ring = (rt_event_ring){0};
}

size_t rt_event_ring_need(int top, size_t text, bool with_error) {
    return sizeof(ring_head) + (size_t)top * sizeof(rt_logprob) + text + (with_error ? BIS_ERROR_TEXT_MAX : 0);
}

size_t rt_event_ring_room(const rt_event_ring *ring) { return ring->capacity - ring->used; }

static void put_bytes(rt_event_ring *ring, const void *bytes, size_t length) {
    if (!length) return;
    size_t end = (ring->start + ring->used) % ring->capacity, first = ring->capacity - end;
    if (first > length) first = length;
    memcpy(ring->bytes + end, bytes, first);
    memcpy(ring->bytes, (const char *)bytes + first, length - first);
    ring->used += length;
}

static void take_bytes(rt_event_ring *ring, void *bytes, size_t length) {
    if (!length) return;
    size_t first = ring->capacity - ring->start;
    if (first > length) first = length;
    memcpy(bytes, ring->bytes + ring->start, first);
    memcpy((char *)bytes + first, ring->bytes, length - first);
    ring->start = (ring->start + length) % ring->capacity;
    ring->used -= length;
}

bool rt_event_ring_put(rt_event_ring *ring, const rt_event *event) {
    bool with_error = event->kind == RT_EVENT_DONE && event->finish == RT_FINISH_ERROR;
    ring_head head = {.kind = event->kind,
                      .token = event->token,
                      .logprob = event->logprob,
                      .top_count = event->top_count,
                      .finish = event->finish,
                      .prompt_tokens = event->prompt_tokens,
                      .cached_tokens = event->cached_tokens,
                      .completion_tokens = event->completion_tokens,
                      .error_status = with_error ? event->error.status : BIS_OK,
                      .text_length = event->text_length,
                      .error_length = with_error ? strlen(event->error.text) + 1 : 0};
    size_t tops = (size_t)event->top_count * sizeof *event->top;
    if (sizeof head + tops + head.text_length + head.error_length > rt_event_ring_room(ring)) return false;
    put_bytes(ring, &head, sizeof head);
    put_bytes(ring, event->top, tops);
    put_bytes(ring, event->text, head.text_length);
    put_bytes(ring, event->error.text, head.error_length);
    return true;
}

bool rt_event_ring_take(rt_event_ring *ring, rt_event *event) {
    if (ring->used == 0) return false;
    ring_head head;
    take_bytes(ring, &head, sizeof head);
    event->kind = head.kind;
    event->token = head.token;
    event->logprob = head.logprob;
    event->top_count = head.top_count;
    event->finish = head.finish;
    event->prompt_tokens = head.prompt_tokens;
    event->cached_tokens = head.cached_tokens;
    event->completion_tokens = head.completion_tokens;
    event->text_length = head.text_length;
    event->error.status = head.error_status;
    event->error.text[0] = '\0';
    take_bytes(ring, event->top, (size_t)head.top_count * sizeof *event->top);
    take_bytes(ring, event->text, head.text_length);
    take_bytes(ring, event->error.text, head.error_length);
    return true;
}
