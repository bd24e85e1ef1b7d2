/* A bounded queue of events, stored compactly in a ring of bytes. Not synchronised: request.c locks. */
#ifndef BISUP_RUNTIME_EVENT_RING_H
#define BISUP_RUNTIME_EVENT_RING_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/engine.h"

typedef struct rt_event_ring {
    char *bytes;
    size_t capacity, start, used;
} rt_event_ring;

bool rt_event_ring_open(rt_event_ring *ring, size_t capacity); /* false: out of memory */
void rt_event_ring_close(rt_event_ring *ring);

/* Bytes the largest event with `top` alternatives and `text` bytes of text can take. */
size_t rt_event_ring_need(int top, size_t text, bool with_error);

size_t rt_event_ring_room(const rt_event_ring *ring);
bool rt_event_ring_put(rt_event_ring *ring, const rt_event *event); /* false: no room */
bool rt_event_ring_take(rt_event_ring *ring, rt_event *event);      /* false: empty */

#endif
