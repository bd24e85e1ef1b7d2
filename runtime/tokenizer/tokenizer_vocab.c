#include "runtime/tokenizer/tokenizer_vocab.h"

#include <stdbool.h>
#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"

/* FNV-1a; the final mix spreads it over the low bits the table uses. */
static uint32_t hash_text(const char *text, size_t length) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)text[i]) * 0x100000001b3u;
    return (uint32_t)(hash ^ hash >> 32);
}

/* The slot that holds this text, or the free slot where it belongs. */
static uint32_t find_slot(const rt_vocab *vocab, const char *text, size_t length) {
    uint32_t mask = vocab->slot_count - 1, slot = hash_text(text, length) & mask;
    for (;; slot = (slot + 1) & mask) {
        uint32_t index = vocab->slots[slot];
        if (index == 0) return slot;
        const rt_vocab_entry *entry = &vocab->entries[index - 1];
        if (entry->length == length && memcmp(vocab->text.data + entry->offset, text, length) == 0) return slot;
    }
}

static bool grow_entries(rt_vocab *vocab) {
    uint32_t capacity = vocab->capacity ? vocab->capacity * 2 : 256;
    rt_vocab_entry *entries = bis_reallocarray(vocab->entries, capacity, sizeof *entries);
    if (!entries) return false;
    vocab->entries = entries;
    uint32_t *slots = bis_calloc((size_t)capacity * 2, sizeof *slots);
    if (!slots) return false;
    bis_free(vocab->slots);
    vocab->slots = slots;
    vocab->slot_count = capacity * 2;
    vocab->capacity = capacity;
    for (uint32_t i = 0; i < vocab->count; i++) {
        const rt_vocab_entry *entry = &entries[i];
        slots[find_slot(vocab, vocab->text.data + entry->offset, entry->length)] = i + 1;
    }
    return true;
}

static bool grow_ids(rt_vocab *vocab, int32_t id) {
    int32_t capacity = vocab->id_capacity ? vocab->id_capacity : 256;
    while (capacity <= id) capacity *= 2;
    int32_t *entry_of_id = bis_reallocarray(vocab->entry_of_id, (size_t)capacity, sizeof *entry_of_id);
    if (!entry_of_id) return false;
    for (int32_t i = vocab->id_capacity; i < capacity; i++) entry_of_id[i] = -1;
    vocab->entry_of_id = entry_of_id;
    vocab->id_capacity = capacity;
    return true;
}

bis_status rt_vocab_add(rt_vocab *vocab, const char *text, size_t length, int32_t id, bis_error *error) {
    int shown = length > 40 ? 40 : (int)length;
    if (id < 0 || id >= RT_VOCAB_MAX) {
        return bis_fail(error, BIS_ERR_LIMIT, "token '%.*s' has id %d; ids from 0 to %d are accepted", shown, text, id,
                        RT_VOCAB_MAX - 1);
    }
    if (length > RT_VOCAB_TEXT_MAX || vocab->text.length + length > RT_VOCAB_BYTES_MAX) {
        return bis_fail(error, BIS_ERR_LIMIT, "token %d ('%.*s...') is longer than the %d bytes accepted", id, shown,
                        text, RT_VOCAB_TEXT_MAX);
    }
    if (!bis_utf8_valid(text, length)) return bis_fail(error, BIS_ERR_FORMAT, "token %d is not valid UTF-8", id);
    if (rt_vocab_find(vocab, text, length) >= 0) {
        return bis_fail(error, BIS_ERR_FORMAT, "token '%.*s' is listed twice", shown, text);
    }
    bool grown = (vocab->count < vocab->capacity || grow_entries(vocab)) &&
                 (id < vocab->id_capacity || grow_ids(vocab, id)) && bis_buf_append(&vocab->text, text, length);
    if (!grown) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the vocabulary");
    vocab->entries[vocab->count] = (rt_vocab_entry){(uint32_t)(vocab->text.length - length), (uint16_t)length, id};
    vocab->slots[find_slot(vocab, text, length)] = vocab->count + 1;
    vocab->entry_of_id[id] = (int32_t)vocab->count;
    vocab->count++;
    if (id >= vocab->size) vocab->size = id + 1;
    return BIS_OK;
}

int32_t rt_vocab_find(const rt_vocab *vocab, const char *text, size_t length) {
    if (vocab->count == 0) return -1;
    uint32_t index = vocab->slots[find_slot(vocab, text, length)];
    return index ? vocab->entries[index - 1].id : -1;
}

const char *rt_vocab_text(const rt_vocab *vocab, int32_t id, size_t *length) {
    if (id < 0 || id >= vocab->size || vocab->entry_of_id[id] < 0) return NULL;
    const rt_vocab_entry *entry = &vocab->entries[vocab->entry_of_id[id]];
    *length = entry->length;
    return vocab->text.data + entry->offset;
}

void rt_vocab_free(rt_vocab *vocab) {
    bis_buf_free(&vocab->text);
    bis_free(vocab->entries);
    bis_free(vocab->entry_of_id);
    bis_free(vocab->slots);
    *vocab = (rt_vocab){0};
}
