/* Runs the statements of a template: loops, macros, assignments; and the public functions. */
#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"
#include "runtime/template/jinja_eval.h"

typedef enum flow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE } flow;

static flow run_nodes(rt_jrun *run, const rt_jnodes *nodes);

/* ---- Variables ---- */

static rt_jval look_up(rt_jrun *run, const char *name) {
    const rt_jval *value = rt_jdict_find(run, run->variables, name);
    if (value) return *value;
    const rt_jfunction *function = rt_jfind_global(name);
    return function ? (rt_jval){.type = RT_J_FUNCTION, .as.function = function} : (rt_jval){.type = RT_J_MISSING};
}

static void enter_frame(rt_jrun *run, const rt_jframe *frame) {
    rt_jslots *slots = run->frame;
    for (size_t i = 0; i < frame->count && rt_jwork(run, 1); i++) {
        const rt_jvariable *variable = &frame->variables[i];
        rt_jval *slot = &slots->at[variable->slot];
        switch (variable->load) {
        case RT_JL_PARAMETER: break;
        case RT_JL_RESOLVE: *slot = look_up(run, variable->name); break;
        case RT_JL_ALIAS: *slot = *rt_jplace_of(run, variable->source); break;
        case RT_JL_UNSET: *slot = (rt_jval){.type = RT_J_MISSING}; break;
        }
    }
}

static void assign(rt_jrun *run, const rt_jnode *target, rt_jval value);

static void assign_tuple(rt_jrun *run, const rt_jnode *target, rt_jval value) {
    rt_jlist *items = rt_jcollect(run, value);
    if (!items || run->status) return;
    if (items->count != target->items.count) {
        rt_jfail(run, BIS_ERR_INVALID, "cannot unpack %zu values into %zu names", items->count, target->items.count);
    }
    for (size_t i = 0; !run->status && i < items->count; i++) assign(run, target->items.at[i], items->items[i]);
}

static void assign(rt_jrun *run, const rt_jnode *target, rt_jval value) {
    if (run->status) return;
    if (target->kind == RT_JN_TUPLE) {
        assign_tuple(run, target, value);
        return;
    }
    rt_jval *slot = rt_jplace_of(run, target->place);
    if (target->kind == RT_JN_NAME) *slot = value;
    else if (slot->type == RT_J_NAMESPACE) {
        rt_jdict_set(run, slot->as.dict, rt_jstring_from(run, target->attribute), value);
    } else {
        run->line = target->line;
        rt_jfail(run, BIS_ERR_INVALID, "cannot assign attribute '%.60s' on '%.60s', which is not a namespace",
                 target->attribute, target->name);
    }
}

/* ---- Captured output ---- */

static rt_jval take_output(rt_jrun *run, size_t from) {
    rt_jval text = rt_jnone();
    if (!run->status) text = rt_jstring(run, bis_buf_cstr(&run->output) + from, run->output.length - from);
    run->output.length = from;
    return text;
}

/* What call and filter blocks give must be text already. */
static void write_string(rt_jrun *run, rt_jval value) {
    if (value.type == RT_J_STRING) rt_jwrite(run, &run->output, value);
    else rt_jfail(run, BIS_ERR_INVALID, "a call or filter block must give a str, not %s", rt_jtype_name(value));
}

/* ---- Loops ---- */

static bool passes(rt_jrun *run, rt_jloop *loop, rt_jval item) {
    rt_jslots *caller = run->frame; /* loop.last may be asked from within a macro */
    run->frame = loop->slots;
    assign(run, loop->node->items.at[0], item);
    enter_frame(run, loop->node->test_frame);
    bool passed = rt_jtruth(rt_jeval(run, loop->node->third));
    run->frame = caller;
    return passed && !run->status;
}

static bool pull(rt_jrun *run, rt_jloop *loop, rt_jval *item) {
    while (rt_jiter_next(run, loop->items, item)) {
        if (!loop->filtered || passes(run, loop, *item)) return true;
    }
    return false;
}

static bool peek(rt_jrun *run, rt_jloop *loop) {
    if (!loop->has_after) loop->has_after = pull(run, loop, &loop->after);
    return loop->has_after;
}

static bool advance(rt_jrun *run, rt_jloop *loop) {
    rt_jval item;
    if (!peek(run, loop)) return false;
    item = loop->after;
    loop->has_after = false;
    loop->index++;
    loop->before = loop->current;
    loop->current = item;
    return true;
}

/* A filtered or lazy sequence has to be taken to its end to be counted. */
static int64_t loop_length(rt_jrun *run, rt_jloop *loop) {
    if (loop->length >= 0) return loop->length;
    rt_jlist *rest = rt_jlist_new(run, 8);
    rt_jval item;
    while (pull(run, loop, &item)) rt_jlist_add(run, rest, item);
    if (!rest || run->status) return 0;
    loop->items = rt_jiter_of(run, rt_jlist_value(rest, RT_J_LIST));
    loop->filtered = false;
    return loop->length = (int64_t)rest->count + loop->index + 1 + loop->has_after;
}

static rt_jval loop_cycle(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    if (args->count == 0) {
        rt_jfail(run, BIS_ERR_INVALID, "loop.cycle needs at least one value");
        return rt_jnone();
    }
    return args->at[self.as.loop->index % (int64_t)args->count];
}

static rt_jval loop_changed(rt_jrun *run, rt_jval self, const rt_jargs *args) {
    rt_jlist *values = rt_jlist_new(run, args->count);
    for (size_t i = 0; i < args->count; i++) rt_jlist_add(run, values, args->at[i]);
    rt_jval tuple = rt_jlist_value(values, RT_J_TUPLE);
    rt_jloop *loop = self.as.loop;
    if (loop->last_changed.type == RT_J_TUPLE && rt_jequal(run, loop->last_changed, tuple)) return rt_jbool(false);
    loop->last_changed = tuple;
    return rt_jbool(true);
}

static rt_jval loop_method(rt_jrun *run, rt_jloop *loop, const char *name, rt_jbuiltin *call) {
    rt_jmethod *method = rt_jalloc(run, 1, sizeof *method);
    if (!method) return rt_jnone();
    *method = (rt_jmethod){{.type = RT_J_LOOP, .as.loop = loop}, name, call};
    return (rt_jval){.type = RT_J_METHOD, .as.method = method};
}

rt_jval rt_jloop_attribute(rt_jrun *run, rt_jloop *loop, const char *name) {
    if (!strcmp(name, "index")) return rt_jint(loop->index + 1);
    if (!strcmp(name, "index0")) return rt_jint(loop->index);
    if (!strcmp(name, "first")) return rt_jbool(loop->index == 0);
    if (!strcmp(name, "last")) return rt_jbool(!peek(run, loop));
    if (!strcmp(name, "length")) return rt_jint(loop_length(run, loop));
    if (!strcmp(name, "revindex")) return rt_jint(loop_length(run, loop) - loop->index);
    if (!strcmp(name, "revindex0")) return rt_jint(loop_length(run, loop) - loop->index - 1);
    if (!strcmp(name, "depth")) return rt_jint(1);
    if (!strcmp(name, "depth0")) return rt_jint(0);
    if (!strcmp(name, "cycle")) return loop_method(run, loop, "cycle", loop_cycle);
    if (!strcmp(name, "changed")) return loop_method(run, loop, "changed", loop_changed);
    if (!strcmp(name, "previtem")) {
        return loop->index > 0 ? loop->before : rt_jundefined_new(run, "there is no previous item", name, NULL);
    }
    if (!strcmp(name, "nextitem")) {
        return peek(run, loop) ? loop->after : rt_jundefined_new(run, "there is no next item", name, NULL);
    }
    return (rt_jval){.type = RT_J_MISSING};
}

static flow run_for(rt_jrun *run, const rt_jnode *node) {
    rt_jval source = rt_jeval(run, node->right);
    rt_jiter *items = rt_jiter_of(run, source);
    rt_jloop *loop = rt_jalloc(run, 1, sizeof *loop);
    if (!loop || run->status) return FLOW_NEXT;
    *loop = (rt_jloop){.node = node, .slots = run->frame, .items = items, .filtered = node->third, .index = -1};
    if (loop->filtered || !rt_jlength(source, &loop->length)) loop->length = -1;
    bool any = false; /* a round that ends by break or continue does not count: so it is in jinja2 */
    while (advance(run, loop)) {
        assign(run, node->left, loop->current);
        if (node->frame->loop_slot >= 0) {
            loop->slots->at[node->frame->loop_slot] = (rt_jval){.type = RT_J_LOOP, .as.loop = loop};
        }
        enter_frame(run, node->frame);
        flow next = run_nodes(run, &node->body);
        if (next == FLOW_BREAK) break;
        if (next == FLOW_NEXT) any = true;
    }
    if (any || run->status || !node->else_frame) return FLOW_NEXT;
    enter_frame(run, node->else_frame);
    return run_nodes(run, &node->other);
}

/* ---- Macros ---- */

const char *rt_jmacro_name(const rt_jmacro *macro) { return macro->node->name ? macro->node->name : "caller"; }

static rt_jval make_macro(rt_jrun *run, const rt_jnode *node) {
    rt_jmacro *macro = rt_jalloc(run, 1, sizeof *macro);
    if (!macro) return rt_jnone();
    *macro = (rt_jmacro){node, run->frame};
    return (rt_jval){.type = RT_J_MACRO, .as.macro = macro};
}

static rt_jslots *new_slots(rt_jrun *run, const rt_jfunc *function, rt_jslots *outer) {
    rt_jslots *slots = rt_jalloc(run, 1, sizeof *slots + (size_t)function->slots * sizeof(rt_jval));
    if (slots) slots->outer = outer; /* all values are MISSING, which is zero */
    return slots;
}

/* Named arguments that no parameter took. */
static void pass_rest(rt_jrun *run, const rt_jmacro *macro, const rt_jargs *args, const bool *used, rt_jslots *slots) {
    const rt_jfunc *function = macro->node->function;
    rt_jdict *rest = function->kwargs >= 0 ? rt_jdict_new(run) : NULL;
    for (size_t i = 0; args->named && i < args->named->count; i++) {
        const rt_jentry *entry = &args->named->entries[i];
        if (used[i]) continue;
        if (rest) rt_jdict_set(run, rest, entry->key, entry->value);
        else {
            rt_jfail(run, BIS_ERR_INVALID, "macro '%.60s' takes no keyword argument '%.60s'", rt_jmacro_name(macro),
                     rt_jcstr(run, entry->key.as.string));
        }
    }
    if (rest) slots->at[function->kwargs] = rt_jdict_value(rest);
}

static bool take_named(const rt_jargs *args, const char *name, bool *used, rt_jval *out) {
    for (size_t i = 0; args->named && i < args->named->count; i++) {
        const rt_jstr *key = args->named->entries[i].key.as.string;
        if (used[i] || key->length != strlen(name) || memcmp(key->bytes, name, key->length) != 0) continue;
        used[i] = true;
        *out = args->named->entries[i].value;
        return true;
    }
    return false;
}

static void pass_arguments(rt_jrun *run, const rt_jmacro *macro, const rt_jargs *args, rt_jslots *slots) {
    const rt_jnode *node = macro->node;
    const rt_jfunc *function = node->function;
    bool *used = rt_jalloc(run, args->named ? args->named->count : 0, sizeof *used);
    if (!used) return;
    for (size_t i = 0; i < node->items.count; i++) {
        rt_jval *slot = &slots->at[node->items.at[i]->place.slot];
        if (i < args->count) *slot = args->at[i];
        else take_named(args, node->items.at[i]->name, used, slot);
    }
    if (function->caller >= 0 && !take_named(args, "caller", used, &slots->at[function->caller])) {
        slots->at[function->caller] = rt_jundefined_new(run, "No caller defined", "caller", NULL);
    }
    pass_rest(run, macro, args, used, slots);
    if (function->varargs >= 0) {
        rt_jlist *rest = rt_jlist_new(run, 0);
        for (size_t i = node->items.count; i < args->count; i++) rt_jlist_add(run, rest, args->at[i]);
        slots->at[function->varargs] = rt_jlist_value(rest, RT_J_TUPLE);
    } else if (args->count > node->items.count) {
        rt_jfail(run, BIS_ERR_INVALID, "macro '%.60s' takes not more than %zu argument(s)", rt_jmacro_name(macro),
                 node->items.count);
    }
}

static void fill_defaults(rt_jrun *run, const rt_jnode *node, rt_jslots *slots) {
    size_t without = node->items.count - node->other.count;
    for (size_t i = 0; i < node->items.count && !run->status; i++) {
        rt_jval *slot = &slots->at[node->items.at[i]->place.slot];
        if (slot->type != RT_J_MISSING) continue;
        if (i >= without) *slot = rt_jeval(run, node->other.at[i - without]);
        else *slot = rt_jundefined_new(run, "a macro's parameter was not provided", node->items.at[i]->name, NULL);
    }
}

rt_jval rt_jmacro_call(rt_jrun *run, const rt_jmacro *macro, const rt_jargs *args) {
    if (run->macro_depth >= RT_JINJA_MACRO_DEPTH_MAX) {
        rt_jfail(run, BIS_ERR_LIMIT, "the template's macros call each other more than %d deep",
                 RT_JINJA_MACRO_DEPTH_MAX);
    }
    rt_jslots *slots = run->status ? NULL : new_slots(run, macro->node->function, macro->outer);
    if (!slots) return rt_jnone();
    pass_arguments(run, macro, args, slots);
    rt_jslots *caller = run->frame;
    int line = run->line;
    size_t from = run->output.length;
    run->frame = slots;
    run->macro_depth++;
    enter_frame(run, macro->node->frame);
    fill_defaults(run, macro->node, slots);
    run_nodes(run, &macro->node->body);
    run->macro_depth--;
    run->frame = caller;
    if (!run->status) run->line = line;
    return take_output(run, from);
}

static void run_call_block(rt_jrun *run, const rt_jnode *node) {
    rt_jval callee = rt_jeval(run, node->left->left);
    rt_jargs args = rt_jeval_args(run, node->left);
    rt_jdict *named = rt_jdict_new(run);
    for (size_t i = 0; named && args.named && i < args.named->count; i++) {
        rt_jdict_set(run, named, args.named->entries[i].key, args.named->entries[i].value);
    }
    rt_jdict_set(run, named, rt_jstring_from(run, "caller"), make_macro(run, node));
    args.named = named;
    write_string(run, rt_jcall(run, callee, &args));
}

static void run_generation(rt_jrun *run, const rt_jnode *node) {
    rt_jargs none = {0};
    rt_jval macro = make_macro(run, node);
    if (!run->status) rt_jwrite(run, &run->output, rt_jmacro_call(run, macro.as.macro, &none));
}

/* ---- Blocks ---- */

static flow run_if(rt_jrun *run, const rt_jnode *node) {
    if (rt_jtruth(rt_jeval(run, node->left))) return run_nodes(run, &node->body);
    for (size_t i = 0; i < node->items.count && !run->status; i++) {
        const rt_jnode *branch = node->items.at[i];
        run->line = branch->line;
        if (rt_jtruth(rt_jeval(run, branch->left))) return run_nodes(run, &branch->body);
    }
    return run_nodes(run, &node->other);
}

/* Runs a block and cuts its text off the output again. A break inside drops the text. */
static flow capture(rt_jrun *run, const rt_jnode *node, rt_jval *text) {
    size_t from = run->output.length;
    enter_frame(run, node->frame);
    flow next = run_nodes(run, &node->body);
    *text = take_output(run, from);
    return next;
}

static flow run_set_block(rt_jrun *run, const rt_jnode *node) {
    rt_jval text;
    flow next = capture(run, node, &text);
    if (next != FLOW_NEXT) return next;
    assign(run, node->left, node->right ? rt_jeval_filter_chain(run, node->right, text) : text);
    return FLOW_NEXT;
}

static flow run_filter_block(rt_jrun *run, const rt_jnode *node) {
    rt_jval text;
    flow next = capture(run, node, &text);
    if (next == FLOW_NEXT) write_string(run, rt_jeval_filter_chain(run, node->left, text));
    return next;
}

static flow run_with(rt_jrun *run, const rt_jnode *node) {
    rt_jval *values = rt_jalloc(run, node->other.count, sizeof *values);
    if (!values) return FLOW_NEXT;
    for (size_t i = 0; i < node->other.count; i++) values[i] = rt_jeval(run, node->other.at[i]);
    for (size_t i = 0; i < node->items.count; i++) assign(run, node->items.at[i], values[i]);
    enter_frame(run, node->frame);
    return run_nodes(run, &node->body);
}

static flow run_node(rt_jrun *run, const rt_jnode *node) {
    switch (node->kind) {
    case RT_JN_DATA:
    case RT_JN_OUTPUT: {
        rt_jval value = node->kind == RT_JN_DATA ? node->value : rt_jeval(run, node->left);
        if (!run->status) rt_jwrite(run, &run->output, value);
        return FLOW_NEXT;
    }
    case RT_JN_FOR: return run_for(run, node);
    case RT_JN_IF: return run_if(run, node);
    case RT_JN_SET: assign(run, node->left, rt_jeval(run, node->right)); return FLOW_NEXT;
    case RT_JN_SET_BLOCK: return run_set_block(run, node);
    case RT_JN_MACRO: *rt_jplace_of(run, node->place) = make_macro(run, node); return FLOW_NEXT;
    case RT_JN_CALL_BLOCK: run_call_block(run, node); return FLOW_NEXT;
    case RT_JN_GENERATION: run_generation(run, node); return FLOW_NEXT;
    case RT_JN_FILTER_BLOCK: return run_filter_block(run, node);
    case RT_JN_WITH: return run_with(run, node);
    case RT_JN_BREAK: return FLOW_BREAK;
    case RT_JN_CONTINUE: return FLOW_CONTINUE;
    default: return FLOW_NEXT;
    }
}

static flow run_nodes(rt_jrun *run, const rt_jnodes *nodes) {
    flow next = FLOW_NEXT;
    if (!rt_jenter(run)) return next;
    for (size_t i = 0; i < nodes->count && next == FLOW_NEXT && rt_jwork(run, 1); i++) {
        run->line = nodes->at[i]->line;
        next = run_node(run, nodes->at[i]);
    }
    rt_jleave(run);
    return next;
}

/* ---- Public ---- */

static bis_status report(const rt_jrun *run, bis_error *error) {
    return run->status ? bis_fail(error, run->status, "%s", run->error.text) : BIS_OK;
}

bis_status rt_jinja_parse(const char *name, const char *text, size_t length, rt_jinja **out, bis_error *error) {
    if (length > RT_JINJA_SOURCE_MAX) {
        return bis_fail(error, BIS_ERR_LIMIT, "%.200s has %zu bytes; a template may have at most %d", name, length,
                        RT_JINJA_SOURCE_MAX);
    }
    if (!bis_utf8_valid(text, length) || memchr(text, '\0', length)) {
        return bis_fail(error, BIS_ERR_INVALID, "%.200s is not UTF-8 text without NUL characters", name);
    }
    rt_jinja *jinja = bis_calloc(1, sizeof *jinja);
    char *own_name = bis_strdup(name);
    rt_jrun *run = own_name ? rt_jrun_new(own_name) : NULL;
    if (!jinja || !run) {
        bis_free(jinja);
        bis_free(own_name);
        rt_jrun_free(run);
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for %.200s", name);
    }
    *jinja = (rt_jinja){.memory = run, .name = own_name};
    run->line = 1;
    rt_jtokens tokens = rt_jlex(run, text, length);
    jinja->root = rt_jparse_template(run, &tokens);
    if (jinja->root) rt_jscope_resolve(run, jinja->root);
    bis_status status = report(run, error);
    if (status) rt_jinja_free(jinja);
    else *out = jinja;
    return status;
}

void rt_jinja_free(rt_jinja *jinja) {
    if (!jinja) return;
    rt_jrun_free(jinja->memory);
    bis_free((char *)jinja->name);
    bis_free(jinja);
}

bis_status rt_jinja_begin(const rt_jinja *jinja, rt_jrun **out, bis_error *error) {
    rt_jrun *run = rt_jrun_new(jinja->name);
    if (run) run->variables = rt_jdict_new(run);
    if (!run || !run->variables) {
        rt_jrun_free(run);
        return bis_fail(error, BIS_ERR_NOMEM, "no memory to render %.200s", jinja->name);
    }
    run->jinja = jinja;
    *out = run;
    return BIS_OK;
}

static bis_status set_variable(rt_jrun *run, const char *name, rt_jval value, bis_error *error) {
    rt_jdict_set(run, run->variables, rt_jstring_from(run, name), value);
    return report(run, error);
}

bis_status rt_jinja_set_json(rt_jrun *run, const char *name, const char *json, bis_error *error) {
    return set_variable(run, name, rt_jparse_json(run, json, name), error);
}

bis_status rt_jinja_set_text(rt_jrun *run, const char *name, const char *text, bis_error *error) {
    return set_variable(run, name, rt_jstring_from(run, text), error);
}

bis_status rt_jinja_set_bool(rt_jrun *run, const char *name, bool value, bis_error *error) {
    return set_variable(run, name, rt_jbool(value), error);
}

bis_status rt_jinja_set_members(rt_jrun *run, const char *json, bis_error *error) {
    rt_jval value = rt_jparse_json(run, json, "the template variables");
    if (value.type != RT_J_DICT && !run->status) {
        rt_jfail(run, BIS_ERR_INVALID, "the template variables must be a JSON object");
    }
    for (size_t i = 0; !run->status && i < value.as.dict->count; i++) {
        rt_jdict_set(run, run->variables, value.as.dict->entries[i].key, value.as.dict->entries[i].value);
    }
    return report(run, error);
}

bis_status rt_jinja_render(rt_jrun *run, bis_buf *out, bis_error *error) {
    const rt_jnode *root = run->jinja->root;
    run->frame = new_slots(run, root->function, NULL);
    if (!run->status) {
        enter_frame(run, root->frame);
        run_nodes(run, &root->body);
    }
    if (!run->status && !bis_buf_append(out, bis_buf_cstr(&run->output), run->output.length)) {
        out->failed = false;
        rt_jfail_raw(run, BIS_ERR_NOMEM, "no memory for the rendered template");
    }
    return report(run, error);
}

void rt_jinja_end(rt_jrun *run) { rt_jrun_free(run); }
