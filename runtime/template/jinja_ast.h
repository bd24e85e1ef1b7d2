/* Tokens and the syntax tree of a template, and the three passes that make it:
 * lexer (jinja_lexer.c), parser (jinja_parser.c, jinja_expression.c), scopes (jinja_scope.c).
 * All of it lives in the arena of the run that parses, which the template keeps. Internal to jinja_*.c.
 */
#ifndef BISUP_RUNTIME_JINJA_AST_H
#define BISUP_RUNTIME_JINJA_AST_H

#include "runtime/template/jinja_value.h"

/* ---- Tokens ---- */

typedef enum rt_jtoken_kind {
    RT_JT_EOF,
    RT_JT_DATA,
    RT_JT_BLOCK_BEGIN,
    RT_JT_BLOCK_END,
    RT_JT_VARIABLE_BEGIN,
    RT_JT_VARIABLE_END,
    RT_JT_NAME,
    RT_JT_STRING,
    RT_JT_NUMBER, /* value is an INT, BIGINT or FLOAT */
    RT_JT_OPERATOR
} rt_jtoken_kind;

typedef struct rt_jtoken {
    rt_jtoken_kind kind;
    int line;
    const char *text; /* name or operator, NUL-terminated */
    rt_jval value;    /* DATA, STRING and NUMBER */
} rt_jtoken;

typedef struct rt_jtokens {
    rt_jtoken *at; /* ends with RT_JT_EOF */
    size_t count, capacity;
} rt_jtokens;

/* The tokens of text[0..length), with trim_blocks and lstrip_blocks applied. Check run->status afterwards. */
rt_jtokens rt_jlex(rt_jrun *run, const char *text, size_t length);

/* ---- Tree ---- */

typedef enum rt_jkind {
    /* expressions */
    RT_JN_CONST,    /* value */
    RT_JN_NAME,     /* name, place */
    RT_JN_MEMBER,   /* name.attribute as the target of set: name, attribute, place */
    RT_JN_TUPLE,    /* items */
    RT_JN_LIST,     /* items */
    RT_JN_DICT,     /* items: key, value, key, value, ... */
    RT_JN_UNARY,    /* operation '-', '+' or '!', left */
    RT_JN_BINARY,   /* operation, left, right */
    RT_JN_AND,      /* left, right */
    RT_JN_OR,       /* left, right */
    RT_JN_CONCAT,   /* items */
    RT_JN_COMPARE,  /* left, items of kind OPERAND */
    RT_JN_OPERAND,  /* operation, left */
    RT_JN_IF_ELSE,  /* left if right else third (may be NULL) */
    RT_JN_GETATTR,  /* left, name */
    RT_JN_GETITEM,  /* left, right */
    RT_JN_SLICE,    /* left, right, third, each may be NULL */
    RT_JN_CALL,     /* left, arguments */
    RT_JN_FILTER,   /* left (NULL in a filter block), name, arguments */
    RT_JN_TEST,     /* left, name, arguments */
    RT_JN_ARGUMENT, /* name=left */
    /* statements */
    RT_JN_DATA,         /* value */
    RT_JN_OUTPUT,       /* left */
    RT_JN_FOR,          /* left (target) in right if third (or NULL): body, else: other; frame, else_frame;
                           with a condition also test_frame and items: the target as the condition sees it */
    RT_JN_IF,           /* left, body, items of kind IF (elif), other */
    RT_JN_SET,          /* left = right */
    RT_JN_SET_BLOCK,    /* left, right (filter chain or NULL), body, frame */
    RT_JN_MACRO,        /* name, place, items (parameters), other (defaults of the last ones), body, function */
    RT_JN_CALL_BLOCK,   /* left (a CALL), items, other, body, function */
    RT_JN_GENERATION,   /* body, function */
    RT_JN_FILTER_BLOCK, /* left (filter chain), body, frame */
    RT_JN_WITH,         /* items (targets), other (values), body, frame */
    RT_JN_BREAK,
    RT_JN_CONTINUE
} rt_jkind;

typedef enum rt_joperation {
    RT_JO_NONE,
    RT_JO_ADD,
    RT_JO_SUB,
    RT_JO_MUL,
    RT_JO_DIV,
    RT_JO_FLOORDIV,
    RT_JO_MOD,
    RT_JO_POW,
    RT_JO_NOT,
    RT_JO_EQ,
    RT_JO_NE,
    RT_JO_LT,
    RT_JO_LE,
    RT_JO_GT,
    RT_JO_GE,
    RT_JO_IN,
    RT_JO_NOT_IN
} rt_joperation;

typedef enum rt_jcontext { RT_JC_LOAD, RT_JC_STORE, RT_JC_PARAMETER } rt_jcontext;

/* Where a name's value is: `up` functions outwards, at `slot`. */
typedef struct rt_jplace {
    int up, slot;
} rt_jplace;

typedef struct rt_jnode rt_jnode;

typedef struct rt_jnodes {
    rt_jnode **at;
    size_t count, capacity;
} rt_jnodes;

/* What a scope does to its own variables each time it is entered. */
typedef enum rt_jload { RT_JL_PARAMETER, RT_JL_RESOLVE, RT_JL_ALIAS, RT_JL_UNSET } rt_jload;

typedef struct rt_jvariable {
    const char *name;
    rt_jload load;
    rt_jplace source; /* of an ALIAS: the outer variable whose value is copied */
    int slot;
} rt_jvariable;

/* The unit of running code with its own slots: the template, a macro, a call or generation block. */
typedef struct rt_jfunc {
    int slots;
    int caller, kwargs, varargs; /* slots of the special names, -1 when the body does not use them */
} rt_jfunc;

typedef struct rt_jframe {
    struct rt_jframe *parent;
    rt_jfunc *function;
    rt_jvariable *variables;
    size_t count, capacity;
    int loop_slot; /* of the special name `loop`, -1 when the body does not use it */
} rt_jframe;

struct rt_jnode {
    rt_jkind kind;
    rt_joperation operation;
    rt_jcontext context;
    int line, height;
    rt_jplace place;
    const char *name, *attribute;
    rt_jval value;
    rt_jnode *left, *right, *third;
    rt_jnodes items; /* positional arguments of CALL, FILTER and TEST */
    rt_jnodes named; /* their ARGUMENTs */
    rt_jnode *star, *star_star;
    rt_jnodes body, other;
    rt_jframe *frame, *test_frame, *else_frame;
    rt_jfunc *function;
};

/* ---- Parser ---- */

typedef struct rt_jparser {
    rt_jrun *run;
    const rt_jtoken *token; /* the current one; token[1] is valid unless it is EOF */
    int depth;
    int loop_depth;    /* loops around, within the same function: where break and continue may stand */
    int for_depth;     /* for statements around, targets included: where `loop` may not be set */
    rt_jnode *scratch; /* returned instead of a new node after a failure, so that no parse function returns NULL */
} rt_jparser;

/* Helpers shared by jinja_parser.c and jinja_expression.c. */
rt_jnode *rt_jparse_node(rt_jparser *parser, rt_jkind kind, int line);
rt_jnode *rt_jparse_done(rt_jparser *parser, rt_jnode *node); /* call it when all children are set; returns node */
void rt_jparse_add(rt_jparser *parser, rt_jnodes *nodes, rt_jnode *node);
bool rt_jparse_is(const rt_jparser *parser, rt_jtoken_kind kind, const char *text);
bool rt_jparse_skip(rt_jparser *parser, rt_jtoken_kind kind, const char *text); /* takes the token if it is this */
void rt_jparse_expect(rt_jparser *parser, rt_jtoken_kind kind, const char *text);
const char *rt_jparse_expect_name(rt_jparser *parser);
void rt_jparse_advance(rt_jparser *parser);
void rt_jparse_fail(rt_jparser *parser, const char *wanted); /* "expected ..., got ..." */
void rt_jparse_refuse(rt_jparser *parser, int line, bis_status status, const char *problem);
bool rt_jparse_enter(rt_jparser *parser);

rt_jnode *rt_jparse_expression(rt_jparser *parser);
rt_jnode *rt_jparse_tuple(rt_jparser *parser, bool conditional); /* `conditional`: x if y may stand without brackets */
rt_jnode *rt_jparse_tuple_before(rt_jparser *parser, const char *end_word); /* no condition; ends at that name, too */
rt_jnode *rt_jparse_target(rt_jparser *parser, rt_jcontext context, bool members); /* what stands left of = or in */
rt_jnode *rt_jparse_name_target(rt_jparser *parser, rt_jcontext context);
rt_jnode *rt_jparse_filter(rt_jparser *parser, rt_jnode *node); /* at the filter's name */

/* The whole template; NULL after a failure. */
rt_jnode *rt_jparse_template(rt_jrun *run, const rt_jtokens *tokens);

/* Gives every name its place. `root` is the node from rt_jparse_template. */
void rt_jscope_resolve(rt_jrun *run, rt_jnode *root);

struct rt_jinja {
    rt_jrun *memory;
    const char *name;
    rt_jnode *root; /* body, frame, function */
};

#endif
