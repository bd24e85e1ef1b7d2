#include "runtime/template/jinja_value.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"

enum { OBJECT_CHUNK = 16 << 10, TEXT_CHUNK = 8 << 10, ALIGNMENT = 8, SMALL_DICT = 8 };

/* ---- Run ---- */

rt_jrun *rt_jrun_new(const char *name) {
    rt_jrun *run = bis_calloc(1, sizeof *run);
    if (!run) return NULL;
    run->name = name;
    run->steps_left = RT_JINJA_STEPS_MAX;
    return run;
}

static void free_chunks(rt_jchunk *chunk) {
    while (chunk) {
        rt_jchunk *next = chunk->next;
        bis_free(chunk);
        chunk = next;
    }
}

void rt_jrun_free(rt_jrun *run) {
    if (!run) return;
    free_chunks(run->objects);
    free_chunks(run->texts);
    bis_buf_free(&run->output);
    bis_free(run);
}

static rt_jchunk *add_chunk(rt_jrun *run, rt_jchunk **arena, size_t size) {
    if (size > RT_JINJA_MEMORY_MAX || run->memory + size > RT_JINJA_MEMORY_MAX) {
        rt_jfail(run, BIS_ERR_LIMIT, "the template needs more than %d MB of memory", RT_JINJA_MEMORY_MAX >> 20);
        return NULL;
    }
    rt_jchunk *chunk = bis_malloc(sizeof *chunk + size);
    if (!chunk) {
        rt_jfail(run, BIS_ERR_NOMEM, "no memory for the chat template");
        return NULL;
    }
    *chunk = (rt_jchunk){*arena, size, 0};
    *arena = chunk;
    run->memory += size;
    return chunk;
}

void *rt_jalloc(rt_jrun *run, size_t count, size_t size) {
    if (run->status) return NULL;
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || bytes > RT_JINJA_MEMORY_MAX) bytes = RT_JINJA_MEMORY_MAX + 1u;
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    rt_jchunk *chunk = run->objects;
    if (!chunk || chunk->size - chunk->used < bytes) {
        chunk = add_chunk(run, &run->objects, bytes > OBJECT_CHUNK ? bytes : OBJECT_CHUNK);
        if (!chunk) return NULL;
    }
    _Static_assert(sizeof(rt_jchunk) % ALIGNMENT == 0, "the data follows the header aligned");
    void *memory = chunk->data + chunk->used;
    chunk->used += bytes;
    return memset(memory, 0, bytes);
}

char *rt_jtext_alloc(rt_jrun *run, size_t length) {
    if (run->status) return NULL;
    rt_jchunk *chunk = run->texts;
    if (!chunk || chunk->size - chunk->used < length) {
        size_t size = length > RT_JINJA_MEMORY_MAX ? length : length + length / 2;
        chunk = add_chunk(run, &run->texts, size > TEXT_CHUNK ? size : TEXT_CHUNK);
        if (!chunk) return NULL;
    }
    char *bytes = chunk->data + chunk->used;
    chunk->used += length;
    return bytes;
}

void rt_jfail_raw(rt_jrun *run, bis_status status, const char *format, ...) {
    if (run->status) return;
    char text[BIS_ERROR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    run->status = bis_fail(&run->error, status, "%s", text);
}

void rt_jfail(rt_jrun *run, bis_status status, const char *format, ...) {
    if (run->status) return;
    char text[BIS_ERROR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    run->status = run->line > 0 ? bis_fail(&run->error, status, "%.200s, line %d: %s", run->name, run->line, text)
                                : bis_fail(&run->error, status, "%s", text);
}

bool rt_jwork(rt_jrun *run, size_t steps) {
    if (run->status) return false;
    run->steps_left -= steps < RT_JINJA_STEPS_MAX ? (int64_t)steps : RT_JINJA_STEPS_MAX;
    if (run->steps_left >= 0) return true;
    rt_jfail(run, BIS_ERR_LIMIT, "the template runs for more than %d steps", RT_JINJA_STEPS_MAX);
    return false;
}

bool rt_jwork_bytes(rt_jrun *run, size_t bytes) { return rt_jwork(run, bytes / 64); }

bool rt_jenter(rt_jrun *run) {
    if (run->status) return false;
    if (run->depth >= RT_JINJA_DEPTH_MAX) {
        rt_jfail(run, BIS_ERR_LIMIT, "the template is nested too deeply or calls itself without end");
        return false;
    }
    run->depth++;
    return true;
}

/* ---- Strings ---- */

static size_t count_chars(const char *bytes, size_t length) {
    size_t chars = 0;
    for (size_t i = 0; i < length; i++) chars += ((unsigned char)bytes[i] & 0xc0) != 0x80;
    return chars;
}

static rt_jval make_string(rt_jrun *run, const char *bytes, size_t length, size_t chars) {
    rt_jstr *string = rt_jalloc(run, 1, sizeof *string);
    if (!string) return rt_jnone();
    *string = (rt_jstr){bytes, length, chars, false};
    return (rt_jval){.type = RT_J_STRING, .as.string = string};
}

rt_jval rt_jstring_own(rt_jrun *run, const char *bytes, size_t length) {
    if (!rt_jwork_bytes(run, length)) return rt_jnone();
    return make_string(run, bytes, length, count_chars(bytes, length));
}

rt_jval rt_jstring(rt_jrun *run, const char *bytes, size_t length) {
    char *copy = rt_jtext_alloc(run, length);
    if (!copy) return rt_jnone();
    if (length) memcpy(copy, bytes, length);
    return rt_jstring_own(run, copy, length);
}

rt_jval rt_jstring_from(rt_jrun *run, const char *text) { return rt_jstring(run, text, strlen(text)); }

rt_jval rt_jstring_part(rt_jrun *run, const rt_jstr *whole, size_t from, size_t to) {
    bool ascii = whole->chars == whole->length;
    if (!ascii && !rt_jwork_bytes(run, to - from)) return rt_jnone();
    size_t chars = ascii ? to - from : count_chars(whole->bytes + from, to - from);
    return rt_jmarkup(run, make_string(run, whole->bytes + from, to - from, chars), whole->markup);
}

/* Chains of + and ~ are what templates mostly do. When the left text is the newest one, the
 * right one is put behind it; the left string stays valid, for it never looks past its length. */
static bool extend_in_place(rt_jrun *run, const rt_jstr *left, const rt_jstr *right) {
    rt_jchunk *chunk = run->texts;
    if (!chunk || left->bytes + left->length != chunk->data + chunk->used) return false;
    if (chunk->size - chunk->used < right->length) return false;
    memcpy(chunk->data + chunk->used, right->bytes, right->length);
    chunk->used += right->length;
    return true;
}

rt_jval rt_jstring_join(rt_jrun *run, const rt_jstr *left, const rt_jstr *right) {
    size_t length = left->length + right->length, chars = left->chars + right->chars;
    if (!rt_jwork_bytes(run, right->length)) return rt_jnone();
    if (left->length && right->length && extend_in_place(run, left, right)) {
        return make_string(run, left->bytes, length, chars);
    }
    if (!rt_jwork_bytes(run, left->length)) return rt_jnone();
    char *bytes = rt_jtext_alloc(run, length);
    if (!bytes) return rt_jnone();
    if (left->length) memcpy(bytes, left->bytes, left->length);
    if (right->length) memcpy(bytes + left->length, right->bytes, right->length);
    return make_string(run, bytes, length, chars);
}

rt_jval rt_jmarkup(rt_jrun *run, rt_jval string, bool markup) {
    if (string.type != RT_J_STRING || string.as.string->markup == markup) return string;
    rt_jval copy = make_string(run, string.as.string->bytes, string.as.string->length, string.as.string->chars);
    if (copy.type == RT_J_STRING) ((rt_jstr *)copy.as.string)->markup = markup;
    return copy;
}

const char *rt_jcstr(rt_jrun *run, const rt_jstr *string) {
    char *copy = rt_jalloc(run, string->length + 1, 1);
    if (!copy) return "";
    if (string->length) memcpy(copy, string->bytes, string->length);
    return copy;
}

rt_jval rt_jundefined_new(rt_jrun *run, const char *hint, const char *name, const char *owner) {
    rt_jundefined *undefined = rt_jalloc(run, 1, sizeof *undefined);
    if (!undefined) return rt_jnone();
    *undefined = (rt_jundefined){hint, name, owner};
    return (rt_jval){.type = RT_J_UNDEFINED, .as.undefined = undefined};
}

void rt_jfail_undefined(rt_jrun *run, rt_jval value) {
    const rt_jundefined *undefined = value.as.undefined;
    if (undefined->hint) rt_jfail(run, BIS_ERR_INVALID, "%s", undefined->hint);
    else if (undefined->owner) {
        rt_jfail(run, BIS_ERR_INVALID, "'%s object' has no attribute or element '%.100s'", undefined->owner,
                 undefined->name);
    } else rt_jfail(run, BIS_ERR_INVALID, "'%.100s' is undefined", undefined->name);
}

/* ---- Lists ---- */

rt_jlist *rt_jlist_new(rt_jrun *run, size_t capacity) {
    rt_jlist *list = rt_jalloc(run, 1, sizeof *list);
    if (!list) return NULL;
    list->items = rt_jalloc(run, capacity, sizeof *list->items);
    list->capacity = capacity;
    return list->items ? list : NULL;
}

void rt_jlist_add(rt_jrun *run, rt_jlist *list, rt_jval value) {
    if (!list || !rt_jwork(run, 1)) return;
    if (list->count == list->capacity) {
        size_t capacity = list->capacity < 4 ? 8 : list->capacity * 2;
        rt_jval *items = rt_jalloc(run, capacity, sizeof *items);
        if (!items) return;
        if (list->count) memcpy(items, list->items, list->count * sizeof *items);
        list->items = items;
        list->capacity = capacity;
    }
    list->items[list->count++] = value;
}

rt_jval rt_jlist_value(rt_jlist *list, rt_jtype type) {
    return list ? (rt_jval){.type = type, .as.list = list} : rt_jnone();
}

rt_jval rt_jpair(rt_jrun *run, rt_jval first, rt_jval second) {
    rt_jlist *pair = rt_jlist_new(run, 2);
    rt_jlist_add(run, pair, first);
    rt_jlist_add(run, pair, second);
    return rt_jlist_value(pair, RT_J_TUPLE);
}

/* ---- Dictionaries ---- */

static uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 29;
}

static uint64_t hash_bytes(const char *bytes, size_t length) {
    uint64_t hash = length, word;
    for (; length >= sizeof word; bytes += sizeof word, length -= sizeof word) {
        memcpy(&word, bytes, sizeof word);
        hash = mix(hash, word);
    }
    word = 0;
    if (length) memcpy(&word, bytes, length);
    return mix(hash, word);
}

/* Equal values must have equal hashes: 1, 1.0 and true are equal. */
static uint64_t hash_number(double real) {
    uint64_t bits;
    if (real == 0) real = 0; /* minus zero equals zero */
    memcpy(&bits, &real, sizeof bits);
    return mix(1, bits);
}

static uint64_t hash_value(rt_jrun *run, rt_jval value) {
    switch (value.type) {
    case RT_J_BOOL:
    case RT_J_INT:
    case RT_J_FLOAT: return hash_number(rt_jreal(value));
    case RT_J_STRING:
    case RT_J_BIGINT:
        rt_jwork_bytes(run, value.as.string->length);
        return hash_bytes(value.as.string->bytes, value.as.string->length);
    case RT_J_TUPLE: {
        uint64_t hash = 3;
        if (!rt_jwork(run, 1) || !rt_jenter(run)) return hash;
        for (size_t i = 0; i < value.as.list->count; i++) hash = mix(hash, hash_value(run, value.as.list->items[i]));
        rt_jleave(run);
        return hash;
    }
    case RT_J_LIST:
    case RT_J_DICT:
    case RT_J_VIEW: rt_jfail(run, BIS_ERR_INVALID, "unhashable type: '%s'", rt_jtype_name(value)); return 0;
    case RT_J_NONE:
    case RT_J_UNDEFINED: return mix(2, (uint64_t)value.type);
    default: return mix(4, (uint64_t)(uintptr_t)value.as.object);
    }
}

rt_jdict *rt_jdict_new(rt_jrun *run) { return rt_jalloc(run, 1, sizeof(rt_jdict)); }

rt_jval rt_jdict_value(rt_jdict *dict) { return dict ? (rt_jval){.type = RT_J_DICT, .as.dict = dict} : rt_jnone(); }

static rt_jentry *find_entry(rt_jrun *run, const rt_jdict *dict, rt_jval key, uint64_t hash) {
    if (!dict->index) {
        for (size_t i = 0; i < dict->count; i++) {
            if (dict->entries[i].hash == hash && rt_jequal(run, dict->entries[i].key, key)) return &dict->entries[i];
        }
        return NULL;
    }
    for (size_t slot = hash & (dict->index_size - 1); dict->index[slot]; slot = (slot + 1) & (dict->index_size - 1)) {
        rt_jentry *entry = &dict->entries[dict->index[slot] - 1];
        if (entry->hash == hash && rt_jequal(run, entry->key, key)) return entry;
        if (!rt_jwork(run, 1)) return NULL;
    }
    return NULL;
}

static void index_entry(rt_jdict *dict, size_t number) {
    size_t slot = dict->entries[number].hash & (dict->index_size - 1);
    while (dict->index[slot]) slot = (slot + 1) & (dict->index_size - 1);
    dict->index[slot] = (uint32_t)number + 1;
}

static bool grow_dict(rt_jrun *run, rt_jdict *dict) {
    size_t capacity = dict->capacity ? dict->capacity * 2 : SMALL_DICT;
    rt_jentry *entries = rt_jalloc(run, capacity, sizeof *entries);
    uint32_t *index = capacity > SMALL_DICT ? rt_jalloc(run, 2 * capacity, sizeof *index) : NULL;
    if (!entries || (capacity > SMALL_DICT && !index)) return false;
    if (dict->count) memcpy(entries, dict->entries, dict->count * sizeof *entries);
    *dict = (rt_jdict){entries, dict->count, capacity, index, 2 * capacity};
    for (size_t i = 0; index && i < dict->count; i++) index_entry(dict, i);
    return true;
}

void rt_jdict_set(rt_jrun *run, rt_jdict *dict, rt_jval key, rt_jval value) {
    if (!dict || !rt_jwork(run, 1)) return;
    uint64_t hash = hash_value(run, key);
    rt_jentry *entry = find_entry(run, dict, key, hash);
    if (run->status) return;
    if (entry) {
        entry->value = value;
        return;
    }
    if (dict->count == dict->capacity && !grow_dict(run, dict)) return;
    dict->entries[dict->count] = (rt_jentry){key, value, hash};
    if (dict->index) index_entry(dict, dict->count);
    dict->count++;
}

const rt_jval *rt_jdict_get(rt_jrun *run, const rt_jdict *dict, rt_jval key) {
    uint64_t hash = hash_value(run, key);
    rt_jentry *entry = run->status ? NULL : find_entry(run, dict, key, hash);
    return entry ? &entry->value : NULL;
}

const rt_jval *rt_jdict_find(rt_jrun *run, const rt_jdict *dict, const char *key) {
    rt_jstr string = {key, strlen(key), 0, false};
    return rt_jdict_get(run, dict, (rt_jval){.type = RT_J_STRING, .as.string = &string});
}

/* ---- Comparing ---- */

const char *rt_jtype_name(rt_jval value) {
    static const char *const view_names[] = {"dict_keys", "dict_values", "dict_items"};
    switch (value.type) {
    case RT_J_MISSING:
    case RT_J_UNDEFINED: return "Undefined";
    case RT_J_NONE: return "NoneType";
    case RT_J_BOOL: return "bool";
    case RT_J_INT:
    case RT_J_BIGINT: return "int";
    case RT_J_FLOAT: return "float";
    case RT_J_STRING: return value.as.string->markup ? "Markup" : "str";
    case RT_J_LIST: return "list";
    case RT_J_TUPLE: return "tuple";
    case RT_J_DICT: return "dict";
    case RT_J_VIEW: return view_names[value.as.view->kind];
    case RT_J_RANGE: return "range";
    case RT_J_ITERATOR: return value.as.iterator->python_name;
    case RT_J_NAMESPACE: return "Namespace";
    case RT_J_MACRO: return "Macro";
    case RT_J_FUNCTION: return "function";
    case RT_J_METHOD: return "method";
    case RT_J_LOOP: return "LoopContext";
    case RT_J_CYCLER: return "Cycler";
    case RT_J_JOINER: return "Joiner";
    }
    return "object";
}

bool rt_jtruth(rt_jval value) {
    int64_t length;
    switch (value.type) {
    case RT_J_MISSING:
    case RT_J_UNDEFINED:
    case RT_J_NONE: return false;
    case RT_J_BOOL: return value.as.boolean;
    case RT_J_INT: return value.as.integer != 0;
    case RT_J_FLOAT: return value.as.real != 0;
    default: return !rt_jlength(value, &length) || length != 0;
    }
}

bool rt_jis_number(rt_jval value) {
    return value.type == RT_J_BOOL || value.type == RT_J_INT || value.type == RT_J_FLOAT;
}

double rt_jreal(rt_jval value) {
    if (value.type == RT_J_FLOAT) return value.as.real;
    return value.type == RT_J_BOOL ? value.as.boolean : (double)value.as.integer;
}

bool rt_jinteger(rt_jval value, int64_t *out) {
    if (value.type != RT_J_BOOL && value.type != RT_J_INT) return false;
    *out = value.type == RT_J_BOOL ? value.as.boolean : value.as.integer;
    return true;
}

static bool numbers_equal(rt_jval a, rt_jval b) {
    int64_t x, y;
    if (rt_jinteger(a, &x) && rt_jinteger(b, &y)) return x == y;
    return rt_jreal(a) == rt_jreal(b);
}

static bool lists_equal(rt_jrun *run, const rt_jlist *a, const rt_jlist *b) {
    if (a->count != b->count) return false;
    for (size_t i = 0; i < a->count; i++) {
        if (!rt_jequal(run, a->items[i], b->items[i])) return false;
    }
    return true;
}

static bool dicts_equal(rt_jrun *run, const rt_jdict *a, const rt_jdict *b) {
    if (a->count != b->count) return false;
    for (size_t i = 0; i < a->count; i++) {
        rt_jentry *other = find_entry(run, b, a->entries[i].key, a->entries[i].hash);
        if (!other || !rt_jequal(run, a->entries[i].value, other->value)) return false;
    }
    return true;
}

static bool ranges_equal(const rt_jrange *a, const rt_jrange *b) {
    if (a->count != b->count) return false;
    return a->count == 0 || (a->start == b->start && (a->count == 1 || a->step == b->step));
}

bool rt_jequal(rt_jrun *run, rt_jval a, rt_jval b) {
    if (rt_jis_number(a) && rt_jis_number(b)) return numbers_equal(a, b);
    if (a.type != b.type || !rt_jenter(run)) return false;
    bool equal = false;
    switch (a.type) {
    case RT_J_MISSING:
    case RT_J_UNDEFINED:
    case RT_J_NONE: equal = true; break;
    case RT_J_BIGINT:
    case RT_J_STRING:
        equal = a.as.string->length == b.as.string->length && rt_jwork_bytes(run, a.as.string->length) &&
                memcmp(a.as.string->bytes, b.as.string->bytes, a.as.string->length) == 0;
        break;
    case RT_J_LIST:
    case RT_J_TUPLE: equal = rt_jwork(run, 1) && lists_equal(run, a.as.list, b.as.list); break;
    case RT_J_DICT: equal = rt_jwork(run, 1) && dicts_equal(run, a.as.dict, b.as.dict); break;
    case RT_J_RANGE: equal = ranges_equal(a.as.range, b.as.range); break;
    default: equal = a.as.object == b.as.object;
    }
    rt_jleave(run);
    return equal;
}

static int compare_bytes(const rt_jstr *a, const rt_jstr *b) {
    size_t common = a->length < b->length ? a->length : b->length;
    int order = common ? memcmp(a->bytes, b->bytes, common) : 0;
    return order ? order : (a->length > b->length) - (a->length < b->length);
}

static int compare_numbers(rt_jval a, rt_jval b) {
    int64_t x, y;
    if (rt_jinteger(a, &x) && rt_jinteger(b, &y)) return (x > y) - (x < y);
    double p = rt_jreal(a), q = rt_jreal(b);
    return (p > q) - (p < q);
}

/* An integer beyond 64 bits against another number: the sign decides, else the digits. */
static int compare_big(rt_jval a, rt_jval b) {
    if (b.type != RT_J_BIGINT) return a.as.string->bytes[0] == '-' ? -1 : 1;
    if (a.type != RT_J_BIGINT) return b.as.string->bytes[0] == '-' ? 1 : -1;
    bool negative = a.as.string->bytes[0] == '-';
    if (negative != (b.as.string->bytes[0] == '-')) return negative ? -1 : 1;
    size_t x = a.as.string->length, y = b.as.string->length;
    int order = x != y ? (x > y) - (x < y) : compare_bytes(a.as.string, b.as.string);
    return negative ? -order : order;
}

int rt_jcompare(rt_jrun *run, rt_jval a, rt_jval b, const char *operator_text) {
    if (rt_jis_number(a) && rt_jis_number(b)) return compare_numbers(a, b);
    if (a.type == RT_J_STRING && b.type == RT_J_STRING) {
        return rt_jwork_bytes(run, a.as.string->length) ? compare_bytes(a.as.string, b.as.string) : 0;
    }
    if ((a.type == RT_J_BIGINT || rt_jis_number(a)) && (b.type == RT_J_BIGINT || rt_jis_number(b))) {
        return compare_big(a, b);
    }
    if (a.type == b.type && (a.type == RT_J_LIST || a.type == RT_J_TUPLE)) {
        if (!rt_jenter(run)) return 0;
        int order = 0;
        size_t i = 0;
        const rt_jlist *x = a.as.list, *y = b.as.list;
        while (i < x->count && i < y->count && rt_jwork(run, 1) && rt_jequal(run, x->items[i], y->items[i])) i++;
        if (i < x->count && i < y->count) order = rt_jcompare(run, x->items[i], y->items[i], operator_text);
        else order = (x->count > y->count) - (x->count < y->count);
        rt_jleave(run);
        return order;
    }
    if (a.type == RT_J_UNDEFINED) rt_jfail_undefined(run, a);
    else if (b.type == RT_J_UNDEFINED) rt_jfail_undefined(run, b);
    else {
        rt_jfail(run, BIS_ERR_INVALID, "'%s' not supported between instances of '%s' and '%s'", operator_text,
                 rt_jtype_name(a), rt_jtype_name(b));
    }
    return 0;
}
