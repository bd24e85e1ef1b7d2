/* Values of the template language, the memory of a run, and its error state. Internal to jinja_*.c and chat*.c.
 *
 * Memory: everything a run (or a parsed template) makes lives in its arenas and is freed at once.
 * Values are immutable, so strings, lists and dictionaries are shared freely.
 *
 * Errors are sticky: rt_jfail records the first one, after which evaluation does nothing and values are none.
 * So code may go on with a dummy value; only loops and pointers to fresh memory need a check.
 */
#ifndef BISUP_RUNTIME_JINJA_VALUE_H
#define BISUP_RUNTIME_JINJA_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/status.h"
#include "runtime/template/jinja.h"

typedef enum rt_jtype {
    RT_J_MISSING, /* no value at all: an unset variable or an argument not given; never seen by templates */
    RT_J_UNDEFINED,
    RT_J_NONE,
    RT_J_BOOL,
    RT_J_INT,
    RT_J_BIGINT, /* decimal digits as they were written */
    RT_J_FLOAT,
    RT_J_STRING,
    RT_J_LIST,
    RT_J_TUPLE,
    RT_J_DICT,
    RT_J_VIEW, /* what dict.keys(), values() and items() return */
    RT_J_RANGE,
    RT_J_ITERATOR, /* a Python generator or iterator: lazy, can be used up only once */
    RT_J_NAMESPACE,
    RT_J_MACRO,
    RT_J_FUNCTION,
    RT_J_METHOD,
    RT_J_LOOP,
    RT_J_CYCLER,
    RT_J_JOINER
} rt_jtype;

typedef struct rt_jval rt_jval;
typedef struct rt_jdict rt_jdict;

typedef struct rt_jstr {
    const char *bytes; /* valid UTF-8; not NUL-terminated, may be part of another string's bytes */
    size_t length;     /* bytes */
    size_t chars;      /* code points */
    bool markup;       /* from the filters safe and escape: joining it with plain text escapes the latter */
} rt_jstr;

typedef struct rt_jundefined {
    const char *hint;  /* NULL, or the whole message */
    const char *name;  /* of the variable, attribute or element */
    const char *owner; /* NULL, or the type of the object that lacks it */
} rt_jundefined;

typedef struct rt_jlist rt_jlist;
typedef struct rt_jview rt_jview;
typedef struct rt_jrange {
    int64_t start, step, count;
    int64_t stop; /* as it is printed */
} rt_jrange;
typedef struct rt_jiter rt_jiter;
typedef struct rt_jmacro rt_jmacro;
typedef struct rt_jfunction rt_jfunction;
typedef struct rt_jmethod rt_jmethod;
typedef struct rt_jloop rt_jloop;
typedef struct rt_jcycler rt_jcycler;

struct rt_jval {
    rt_jtype type;
    union {
        bool boolean;
        int64_t integer;
        double real;
        const rt_jstr *string; /* also the digits of a BIGINT */
        const rt_jundefined *undefined;
        rt_jlist *list; /* LIST and TUPLE */
        rt_jdict *dict; /* DICT and NAMESPACE */
        const rt_jview *view;
        const rt_jrange *range;
        rt_jiter *iterator;
        const rt_jmacro *macro;
        const rt_jfunction *function;
        const rt_jmethod *method;
        rt_jloop *loop;
        rt_jcycler *cycler; /* CYCLER and JOINER */
        const void *object;
    } as;
};

struct rt_jlist {
    rt_jval *items;
    size_t count, capacity; /* they grow only while the list is being built */
};

typedef struct rt_jentry {
    rt_jval key, value;
    uint64_t hash;
} rt_jentry;

struct rt_jdict {
    rt_jentry *entries; /* in insertion order */
    size_t count, capacity;
    uint32_t *index; /* hash table of entry numbers + 1; NULL while the dictionary is small */
    size_t index_size;
};

typedef enum rt_jview_kind { RT_J_KEYS, RT_J_VALUES, RT_J_ITEMS } rt_jview_kind;

struct rt_jview {
    rt_jview_kind kind;
    rt_jdict *dict;
};

struct rt_jcycler {
    rt_jlist *items; /* JOINER: the separator alone */
    size_t position;
};

typedef struct rt_jchunk {
    struct rt_jchunk *next;
    size_t size, used;
    char data[];
} rt_jchunk;

struct rt_jrun {
    rt_jchunk *objects, *texts; /* two arenas, so that the newest text can grow in place */
    size_t memory;              /* bytes of both */
    bis_status status;
    bis_error error;
    const char *name; /* of the template, for errors */
    int line;         /* where the run or the parser is now */
    int64_t steps_left;
    int depth, macro_depth;
    rt_jdict *variables;
    bis_buf output; /* blocks that capture their text cut it off the end again */
    const rt_jinja *jinja;
    void *frame; /* the variables of the running macro: see jinja_run.c */
};

/* ---- Run: memory, errors, bounds ---- */
rt_jrun *rt_jrun_new(const char *name); /* NULL: no memory. `name` must outlive it. */
void rt_jrun_free(rt_jrun *run);
void *rt_jalloc(rt_jrun *run, size_t count, size_t size); /* zeroed; NULL once the run has failed */
char *rt_jtext_alloc(rt_jrun *run, size_t length);        /* room for a string's bytes; NULL likewise */
/* Records the first failure. For BIS_ERR_INVALID and BIS_ERR_UNSUPPORTED the text gets "name, line N: " before it. */
void rt_jfail(rt_jrun *run, bis_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));
void rt_jfail_raw(rt_jrun *run, bis_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Counts work; false when the run has failed, also by running out of steps now. */
bool rt_jwork(rt_jrun *run, size_t steps);
bool rt_jwork_bytes(rt_jrun *run, size_t bytes);
/* Every recursion goes through this pair. rt_jenter returns false, without a need for rt_jleave, when it is too deep.
 */
bool rt_jenter(rt_jrun *run);
static inline void rt_jleave(rt_jrun *run) { run->depth--; }

/* ---- Making values (none when the run has failed) ---- */
static inline rt_jval rt_jnone(void) { return (rt_jval){.type = RT_J_NONE}; }
static inline rt_jval rt_jbool(bool value) { return (rt_jval){.type = RT_J_BOOL, .as.boolean = value}; }
static inline rt_jval rt_jint(int64_t value) { return (rt_jval){.type = RT_J_INT, .as.integer = value}; }
static inline rt_jval rt_jfloat(double value) { return (rt_jval){.type = RT_J_FLOAT, .as.real = value}; }
rt_jval rt_jstring(rt_jrun *run, const char *bytes, size_t length);     /* copies; must be valid UTF-8 */
rt_jval rt_jstring_from(rt_jrun *run, const char *text);                /* the same up to the NUL */
rt_jval rt_jstring_own(rt_jrun *run, const char *bytes, size_t length); /* bytes that live as long as the run */
rt_jval rt_jstring_part(rt_jrun *run, const rt_jstr *whole, size_t from, size_t to); /* shares the bytes */
rt_jval rt_jstring_join(rt_jrun *run, const rt_jstr *left, const rt_jstr *right);
rt_jval rt_jmarkup(rt_jrun *run, rt_jval string, bool markup);
rt_jval rt_jundefined_new(rt_jrun *run, const char *hint, const char *name, const char *owner);
rt_jlist *rt_jlist_new(rt_jrun *run, size_t capacity);
void rt_jlist_add(rt_jrun *run, rt_jlist *list, rt_jval value); /* list may be NULL after a failure */
rt_jval rt_jlist_value(rt_jlist *list, rt_jtype type);          /* type LIST or TUPLE; NULL gives none */
rt_jval rt_jpair(rt_jrun *run, rt_jval first, rt_jval second);
const char *rt_jcstr(rt_jrun *run, const rt_jstr *string); /* a NUL-terminated copy; "" after a failure */

/* ---- Dictionaries ---- */
rt_jdict *rt_jdict_new(rt_jrun *run);
void rt_jdict_set(rt_jrun *run, rt_jdict *dict, rt_jval key, rt_jval value);
const rt_jval *rt_jdict_get(rt_jrun *run, const rt_jdict *dict, rt_jval key); /* NULL: not there, or a failure */
const rt_jval *rt_jdict_find(rt_jrun *run, const rt_jdict *dict, const char *key);
rt_jval rt_jdict_value(rt_jdict *dict);

/* ---- What Python does with any two values ---- */
const char *rt_jtype_name(rt_jval value); /* "str", "dict", ... as Python calls it */
bool rt_jtruth(rt_jval value);
bool rt_jequal(rt_jrun *run, rt_jval a, rt_jval b);
int rt_jcompare(rt_jrun *run, rt_jval a, rt_jval b, const char *operator_text); /* <0, 0, >0; fails for mixed types */
bool rt_jis_number(rt_jval value);                                              /* bool, int or float */
double rt_jreal(rt_jval value);                                                 /* of a number */
bool rt_jinteger(rt_jval value, int64_t *out);                                  /* bool and int */
void rt_jfail_undefined(rt_jrun *run, rt_jval value); /* the message jinja2 gives for a use of an undefined value */

/* ---- Iteration (jinja_iter.c) ---- */
struct rt_jiter {
    bool (*next)(rt_jrun *run, rt_jiter *iter, rt_jval *out); /* false: at the end, or the run failed */
    const char *python_name;                                  /* when printed */
    rt_jval source;
    size_t position;
    rt_jiter *inner;
    void *state;
};
/* NULL, with a failure recorded, when value cannot be iterated. */
rt_jiter *rt_jiter_of(rt_jrun *run, rt_jval value);
bool rt_jiterable(rt_jval value);
bool rt_jiter_next(rt_jrun *run, rt_jiter *iter, rt_jval *out);
rt_jval rt_jiter_value(rt_jiter *iter);
rt_jlist *rt_jcollect(rt_jrun *run, rt_jval value); /* a fresh list of all items */
/* Number of items if the value knows it, as Python's len(); false if it has none. */
bool rt_jlength(rt_jval value, int64_t *out);
bool rt_jcontains(rt_jrun *run, rt_jval container, rt_jval item); /* `in` */
rt_jval rt_jrange_at(const rt_jrange *range, int64_t index);

/* ---- Texts (jinja_text.c) ---- */
void rt_jwrite(rt_jrun *run, bis_buf *out, rt_jval value); /* str(value) */
rt_jval rt_jstr_of(rt_jrun *run, rt_jval value);           /* str(value); a string is returned as it is */
rt_jval rt_jtake(rt_jrun *run, bis_buf *buf);              /* the buffer's text as a string; frees the buffer */
void rt_jwrite_repr(rt_jrun *run, bis_buf *out, rt_jval value);
enum { RT_JFLOAT_TEXT_MAX = 32 };
void rt_jfloat_text(double value, char text[RT_JFLOAT_TEXT_MAX]); /* repr(float) */
rt_jval rt_jescape(rt_jrun *run, rt_jval value);                  /* HTML-escaped markup; markup as it is */

typedef struct rt_jdump {
    bool ascii, sort;
    const rt_jstr *indent; /* NULL: on one line */
    const rt_jstr *item_separator, *key_separator;
} rt_jdump;
void rt_jdump_write(rt_jrun *run, bis_buf *out, rt_jval value, const rt_jdump *options); /* json.dumps */

/* ---- JSON texts (jinja_json.c) ---- */
/* `what` names the text in errors. Fails the run with BIS_ERR_INVALID for anything that is not one JSON value. */
rt_jval rt_jparse_json(rt_jrun *run, const char *json, const char *what);

/* ---- Sorting (jinja_sort.c) ---- */
void rt_jsort(rt_jrun *run, rt_jval *items, rt_jval *keys, size_t count, bool reverse); /* stable, by keys */

#endif
