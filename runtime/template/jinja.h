/* A sandboxed interpreter of the Jinja2 template language, as far as chat templates use it.
 *
 * It renders as Python's jinja2 does in transformers' apply_chat_template: an immutable sandbox,
 * trim_blocks and lstrip_blocks on, loop controls, the `generation` tag, undefined names that print
 * as nothing, and the functions raise_exception, strftime_now and tojson without HTML escaping.
 * Strings are Unicode, numbers print as Python prints them, and names are resolved before the
 * rendering with jinja2's own scoping rules.
 *
 * A parsed template is immutable and can be rendered by several threads at once; a run (one
 * rendering with its variables) belongs to one thread. A run has bounded steps, memory, output
 * and nesting, whatever the template does; a thread that renders needs 1 MB of stack.
 *
 * Deliberately not here: includes, imports, inheritance, recursive loops, autoescape, integers
 * beyond 64 bits in calculations (they can be printed and compared).
 */
#ifndef BISUP_RUNTIME_JINJA_H
#define BISUP_RUNTIME_JINJA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/status.h"

typedef struct rt_jinja rt_jinja;
typedef struct rt_jrun rt_jrun;

enum {
    RT_JINJA_SOURCE_MAX = 1 << 20,         /* bytes of a template */
    RT_JINJA_NESTING_MAX = 200,            /* levels of nested expressions or blocks in a template */
    RT_JINJA_DEPTH_MAX = 1500,             /* nested evaluations while rendering, macro calls included */
    RT_JINJA_MACRO_DEPTH_MAX = 100,        /* macros that call each other */
    RT_JINJA_STEPS_MAX = 10 * 1000 * 1000, /* evaluations, loop rounds, and bytes worked on / 64 */
    RT_JINJA_MEMORY_MAX = 256 << 20,       /* bytes one run may allocate */
    RT_JINJA_OUTPUT_MAX = 16 << 20,        /* bytes one run may write */
    RT_JINJA_JSON_DEPTH_MAX = 100,         /* nesting of a JSON text given as a variable */
    RT_JINJA_RANGE_MAX = 100 * 1000        /* items of one range(), as in jinja2's sandbox */
};

/* Parses text[0..length), UTF-8 without NUL. `name` (copied) appears in errors together with the line.
 * BIS_ERR_INVALID for what jinja2 would refuse, BIS_ERR_UNSUPPORTED for what is left out here,
 * BIS_ERR_LIMIT, BIS_ERR_NOMEM. The caller owns *out. */
bis_status rt_jinja_parse(const char *name, const char *text, size_t length, rt_jinja **out, bis_error *error);
void rt_jinja_free(rt_jinja *jinja); /* NULL is allowed */

/* Starts a rendering of `jinja`, which must outlive it. End it with rt_jinja_end. */
bis_status rt_jinja_begin(const rt_jinja *jinja, rt_jrun **out, bis_error *error);

/* Give the template a variable; a later value replaces an earlier one. BIS_ERR_INVALID for bad JSON. */
bis_status rt_jinja_set_json(rt_jrun *run, const char *name, const char *json, bis_error *error);
bis_status rt_jinja_set_text(rt_jrun *run, const char *name, const char *text, bis_error *error);
bis_status rt_jinja_set_bool(rt_jrun *run, const char *name, bool value, bis_error *error);
/* Every member of the JSON object `json` becomes a variable. */
bis_status rt_jinja_set_members(rt_jrun *run, const char *json, bis_error *error);

/* Appends the rendered text to *out; on failure *out is as before. Only once per run.
 * BIS_ERR_INVALID with the text given to raise_exception, or with template name, line and cause;
 * BIS_ERR_LIMIT when a bound above is reached. */
bis_status rt_jinja_render(rt_jrun *run, bis_buf *out, bis_error *error);
void rt_jinja_end(rt_jrun *run); /* NULL is allowed */

/* Tests only: strftime_now sees this moment (seconds since 1970, UTC); negative: the real clock and zone. */
void rt_jinja_fix_time(int64_t unix_seconds);

#endif
