/* The parts of the evaluator that know each other. Internal to jinja_*.c. */
#ifndef BISUP_RUNTIME_JINJA_EVAL_H
#define BISUP_RUNTIME_JINJA_EVAL_H

#include "runtime/template/jinja_ast.h"
#include "runtime/template/jinja_value.h"

/* ---- Calls ---- */

typedef struct rt_jargs {
    rt_jval *at;
    size_t count;
    const rt_jdict *named; /* NULL: none */
} rt_jargs;

/* A function, method (`self` is its object), filter or test (`self` is the value it is applied to). */
typedef rt_jval rt_jbuiltin(rt_jrun *run, rt_jval self, const rt_jargs *args);

struct rt_jfunction {
    const char *name;
    rt_jbuiltin *call;
};

struct rt_jmethod {
    rt_jval self;
    const char *name;
    rt_jbuiltin *call;
};

enum { RT_JBIND_MAX = 6 };
typedef struct rt_jbound {
    rt_jval at[RT_JBIND_MAX]; /* MISSING where no argument was given */
} rt_jbound;

/* Sorts the arguments into the parameters named in `names` ("sep maxsplit"), of which the first
 * `required` must be there. False, with a failure recorded, when they do not fit. */
bool rt_jbind(rt_jrun *run, const rt_jargs *args, const char *callee, const char *names, size_t required,
              rt_jbound *out);
/* Typed access to bound arguments: the default when MISSING or none, a failure when of another type. */
int64_t rt_jarg_int(rt_jrun *run, rt_jval value, int64_t otherwise);
const rt_jstr *rt_jarg_string(rt_jrun *run, rt_jval value, const rt_jstr *otherwise);
static inline bool rt_jgiven(rt_jval value) { return value.type != RT_J_MISSING && value.type != RT_J_NONE; }

rt_jval rt_jcall(rt_jrun *run, rt_jval callee, const rt_jargs *args);
bool rt_jcallable(rt_jval value);
rt_jval rt_jcall_filter(rt_jrun *run, const char *name, rt_jval value, const rt_jargs *args);
bool rt_jcall_test(rt_jrun *run, const char *name, rt_jval value, const rt_jargs *args);
bool rt_jfilter_exists(const char *name);
bool rt_jtest_exists(const char *name);
const rt_jfunction *rt_jfind_global(const char *name); /* NULL: none */
/* A method of a string, dict, list, ...; NULL: none. *forbidden: it exists in Python but would change the object. */
rt_jbuiltin *rt_jfind_method(rt_jval object, const char *name, bool *forbidden);

/* ---- Macros and loops (jinja_run.c) ---- */

/* The variables of one call of a function of the template. */
typedef struct rt_jslots {
    struct rt_jslots *outer; /* where the function was defined */
    rt_jval at[];
} rt_jslots;

struct rt_jmacro {
    const rt_jnode *node; /* MACRO, CALL_BLOCK or GENERATION */
    rt_jslots *outer;
};
const char *rt_jmacro_name(const rt_jmacro *macro);
rt_jval rt_jmacro_call(rt_jrun *run, const rt_jmacro *macro, const rt_jargs *args);

struct rt_jloop {
    const rt_jnode *node;
    rt_jslots *slots; /* of the function the loop stands in */
    rt_jiter *items;
    bool filtered;  /* the loop's condition still has to be asked */
    int64_t index;  /* of the current item, from 0 */
    int64_t length; /* -1: not known yet */
    rt_jval current, before, after;
    bool has_after; /* `after` holds an item that was taken early */
    rt_jval last_changed;
};
rt_jval rt_jloop_attribute(rt_jrun *run, rt_jloop *loop, const char *name); /* MISSING: there is none */

/* ---- Expressions ---- */
rt_jval rt_jeval(rt_jrun *run, const rt_jnode *node);
rt_jargs rt_jeval_args(rt_jrun *run, const rt_jnode *node);
rt_jval rt_jeval_filter_chain(rt_jrun *run, const rt_jnode *node, rt_jval text); /* of a filter or set block */
rt_jval *rt_jplace_of(rt_jrun *run, rt_jplace place);

rt_jval rt_jgetattr(rt_jrun *run, rt_jval object, const char *name);
rt_jval rt_jgetitem(rt_jrun *run, rt_jval object, rt_jval key);
rt_jval rt_jslice(rt_jrun *run, rt_jval object, rt_jval start, rt_jval stop, rt_jval step);
rt_jval rt_jbinary(rt_jrun *run, rt_joperation operation, rt_jval a, rt_jval b);
rt_jval rt_junary(rt_jrun *run, rt_joperation operation, rt_jval value);
bool rt_jcompare_with(rt_jrun *run, rt_joperation operation, rt_jval a, rt_jval b);

/* ---- Texts shared by methods and filters (jinja_strings.c, jinja_format.c) ---- */
typedef enum rt_jcase { RT_J_UPPER, RT_J_LOWER, RT_J_CAPITALIZE, RT_J_TITLE, RT_J_SWAP } rt_jcase;
rt_jval rt_jstring_case(rt_jrun *run, const rt_jstr *string, rt_jcase how);
/* sides: 1 left, 2 right, 3 both; chars NULL: whitespace. */
rt_jval rt_jstring_strip(rt_jrun *run, const rt_jstr *string, const rt_jstr *chars, int sides);
rt_jval rt_jstring_replace(rt_jrun *run, const rt_jstr *string, const rt_jstr *old_text, const rt_jstr *new_text,
                           int64_t limit); /* limit < 0: all */
rt_jlist *rt_jstring_lines(rt_jrun *run, const rt_jstr *string, bool keep_ends);
rt_jval rt_jstring_concat(rt_jrun *run, const rt_jstr *separator, rt_jval items, bool convert); /* str.join */
bool rt_jstring_all_cased(const rt_jstr *string, bool upper);                                   /* isupper, islower */
/* Byte offset of the index-th character. */
size_t rt_jstring_offset(rt_jrun *run, const rt_jstr *string, size_t index);
bool rt_jparse_int(rt_jrun *run, const rt_jstr *string, int base, rt_jval *out); /* Python's int(text, base) */
bool rt_jparse_float(rt_jrun *run, const rt_jstr *string, double *out);          /* Python's float(text) */
rt_jval rt_jformat_percent(rt_jrun *run, const rt_jstr *format, rt_jval values);
rt_jval rt_jformat_braces(rt_jrun *run, const rt_jstr *format, const rt_jargs *args);

#endif
