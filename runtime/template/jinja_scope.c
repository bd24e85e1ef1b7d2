/* Decides before the rendering which variable every name means, by jinja2's rules, which compile names to
 * Python's local variables:
 * - for, macro, call, with, filter and block-set bodies are scopes; if is not.
 * - A name that a scope sets is a variable of this scope. When the scope is entered (a loop body: in every
 *   round) it takes the value of the outer variable of that name; without an outer one it is unset, or looked up
 *   among the template's variables if it is set under a condition only or read first.
 * - A macro sees the variables around it as they are when it runs.
 */
#include <string.h>

#include "runtime/template/jinja_ast.h"

static rt_jvariable *find_own(rt_jrun *run, const rt_jframe *frame, const char *name) {
    for (size_t i = 0; i < frame->count && rt_jwork(run, 1); i++) {
        if (!strcmp(frame->variables[i].name, name)) return &frame->variables[i];
    }
    return NULL;
}

/* The variable `name` as seen from `frame`. */
static bool find_place(rt_jrun *run, const rt_jframe *frame, const char *name, rt_jplace *place) {
    int up = 0;
    for (; frame; frame = frame->parent) {
        const rt_jvariable *variable = find_own(run, frame, name);
        if (variable) {
            *place = (rt_jplace){up, variable->slot};
            return true;
        }
        if (frame->parent && frame->parent->function != frame->function) up++;
    }
    return false;
}

static rt_jvariable *define(rt_jrun *run, rt_jframe *frame, const char *name, rt_jload load) {
    static rt_jvariable nowhere;
    if (frame->count == frame->capacity) {
        size_t capacity = frame->capacity ? frame->capacity * 2 : 8;
        rt_jvariable *variables = rt_jalloc(run, capacity, sizeof *variables);
        if (!variables) return &nowhere;
        if (frame->count) memcpy(variables, frame->variables, frame->count * sizeof *variables);
        frame->variables = variables;
        frame->capacity = capacity;
    }
    rt_jvariable *variable = &frame->variables[frame->count++];
    *variable = (rt_jvariable){.name = name, .load = load, .slot = frame->function->slots++};
    return variable;
}

static int declare_parameter(rt_jrun *run, rt_jframe *frame, const char *name) {
    rt_jvariable *variable = find_own(run, frame, name);
    if (variable) variable->load = RT_JL_PARAMETER;
    else variable = define(run, frame, name, RT_JL_PARAMETER);
    return variable->slot;
}

static void declare_target(rt_jrun *run, rt_jframe *frame, const rt_jnode *target) {
    if (target->kind == RT_JN_NAME) declare_parameter(run, frame, target->name);
    for (size_t i = 0; i < target->items.count; i++) declare_target(run, frame, target->items.at[i]);
}

static void note_load(rt_jrun *run, rt_jframe *frame, const char *name) {
    rt_jplace ignored;
    if (!find_place(run, frame, name, &ignored)) define(run, frame, name, RT_JL_RESOLVE);
}

static void note_store(rt_jrun *run, rt_jframe *frame, const char *name, bool conditional) {
    if (find_own(run, frame, name)) return;
    rt_jplace outer;
    if (frame->parent && find_place(run, frame->parent, name, &outer)) {
        if (frame->parent->function != frame->function) outer.up++;
        rt_jvariable *variable = define(run, frame, name, RT_JL_ALIAS);
        if (!run->status) variable->source = outer;
    } else define(run, frame, name, conditional ? RT_JL_RESOLVE : RT_JL_UNSET);
}

/* ---- First pass over a scope: which names it reads and sets, without the scopes inside ---- */

static void note_nodes(rt_jrun *run, rt_jframe *frame, const rt_jnodes *nodes, bool conditional);

static void note(rt_jrun *run, rt_jframe *frame, const rt_jnode *node, bool conditional) {
    if (!node || run->status) return;
    switch (node->kind) {
    case RT_JN_NAME:
        if (node->context == RT_JC_PARAMETER) declare_parameter(run, frame, node->name);
        else if (node->context == RT_JC_STORE) note_store(run, frame, node->name, conditional);
        else note_load(run, frame, node->name);
        return;
    case RT_JN_MEMBER: note_load(run, frame, node->name); return;
    case RT_JN_MACRO: note_store(run, frame, node->name, conditional); return;
    case RT_JN_SET:
        note(run, frame, node->right, conditional);
        note(run, frame, node->left, conditional);
        return;
    case RT_JN_FOR: note(run, frame, node->right, conditional); return;
    case RT_JN_SET_BLOCK:
    case RT_JN_CALL_BLOCK:
    case RT_JN_FILTER_BLOCK: note(run, frame, node->left, conditional); return;
    case RT_JN_WITH: note_nodes(run, frame, &node->other, conditional); return;
    case RT_JN_GENERATION: return;
    case RT_JN_IF:
        note(run, frame, node->left, conditional);
        note_nodes(run, frame, &node->body, true);
        note_nodes(run, frame, &node->items, true);
        note_nodes(run, frame, &node->other, true);
        return;
    default: break;
    }
    note(run, frame, node->left, conditional);
    note(run, frame, node->right, conditional);
    note(run, frame, node->third, conditional);
    note_nodes(run, frame, &node->items, conditional);
    note_nodes(run, frame, &node->named, conditional);
    note(run, frame, node->star, conditional);
    note(run, frame, node->star_star, conditional);
}

static void note_nodes(rt_jrun *run, rt_jframe *frame, const rt_jnodes *nodes, bool conditional) {
    for (size_t i = 0; i < nodes->count; i++) note(run, frame, nodes->at[i], conditional);
}

/* ---- Does a body use one of the special names (loop, caller, kwargs, varargs) without setting it first? ---- */

typedef enum special_use { USE_NONE, USE_READ, USE_SET } special_use;

static special_use find_use(const rt_jnode *node, const char *name);

static special_use find_use_in(const rt_jnodes *nodes, const char *name) {
    for (size_t i = 0; i < nodes->count; i++) {
        special_use use = find_use(nodes->at[i], name);
        if (use != USE_NONE) return use;
    }
    return USE_NONE;
}

static special_use find_use(const rt_jnode *node, const char *name) {
    if (!node) return USE_NONE;
    if (node->kind == RT_JN_NAME) {
        if (strcmp(node->name, name) != 0) return USE_NONE;
        return node->context == RT_JC_LOAD ? USE_READ : USE_SET;
    }
    const rt_jnode *const single[] = {node->left, node->right, node->third, node->star, node->star_star};
    const rt_jnodes *const several[] = {&node->items, &node->named, &node->body, &node->other};
    for (size_t i = 0; i < sizeof single / sizeof *single; i++) {
        special_use use = find_use(single[i], name);
        if (use != USE_NONE) return use;
    }
    for (size_t i = 0; i < sizeof several / sizeof *several; i++) {
        special_use use = find_use_in(several[i], name);
        if (use != USE_NONE) return use;
    }
    return USE_NONE;
}

/* ---- Second pass: places for the names, and the scopes inside ---- */

static void resolve_nodes(rt_jrun *run, rt_jframe *frame, const rt_jnodes *nodes);
static void resolve(rt_jrun *run, rt_jframe *frame, rt_jnode *node);

static rt_jframe *new_frame(rt_jrun *run, rt_jframe *parent, rt_jfunc *function) {
    rt_jframe *frame = rt_jalloc(run, 1, sizeof *frame);
    if (frame) *frame = (rt_jframe){.parent = parent, .function = function, .loop_slot = -1};
    return frame;
}

/* The condition of a loop runs ahead of its body (loop.last looks at the next item), so its
 * target has variables of its own. */
static rt_jnode *copy_target(rt_jrun *run, const rt_jnode *target) {
    rt_jnode *copy = rt_jalloc(run, 1, sizeof *copy);
    if (!copy) return NULL;
    *copy = *target;
    if (target->items.count) copy->items.at = rt_jalloc(run, target->items.count, sizeof(rt_jnode *));
    for (size_t i = 0; copy->items.at && i < target->items.count; i++) {
        copy->items.at[i] = copy_target(run, target->items.at[i]);
    }
    return copy;
}

static void resolve_for(rt_jrun *run, rt_jframe *frame, rt_jnode *node) {
    resolve(run, frame, node->right);
    node->frame = new_frame(run, frame, frame->function);
    if (!node->frame) return;
    if (find_use_in(&node->body, "loop") == USE_READ) {
        node->frame->loop_slot = declare_parameter(run, node->frame, "loop");
    }
    declare_target(run, node->frame, node->left);
    note_nodes(run, node->frame, &node->body, false);
    if (node->third) {
        node->test_frame = new_frame(run, frame, frame->function);
        rt_jnode *target = copy_target(run, node->left);
        if (!node->test_frame || run->status) return;
        declare_target(run, node->test_frame, target);
        note(run, node->test_frame, node->third, false);
        resolve(run, node->test_frame, target);
        resolve(run, node->test_frame, node->third);
        rt_jparser parser = {.run = run};
        rt_jparse_add(&parser, &node->items, target);
    }
    resolve(run, node->frame, node->left);
    resolve_nodes(run, node->frame, &node->body);
    if (node->other.count) {
        node->else_frame = new_frame(run, frame, frame->function);
        if (!node->else_frame) return;
        note_nodes(run, node->else_frame, &node->other, false);
        resolve_nodes(run, node->else_frame, &node->other);
    }
}

static bool has_parameter(const rt_jnode *node, const char *name) {
    for (size_t i = 0; i < node->items.count; i++) {
        if (!strcmp(node->items.at[i]->name, name)) return true;
    }
    return false;
}

static int declare_special(rt_jrun *run, const rt_jnode *node, const char *name) {
    if (has_parameter(node, name) || find_use_in(&node->body, name) != USE_READ) return -1;
    return declare_parameter(run, node->frame, name);
}

/* Macros, call blocks and generation blocks. */
static void resolve_function(rt_jrun *run, rt_jframe *parent, rt_jnode *node) {
    node->function = rt_jalloc(run, 1, sizeof *node->function);
    node->frame = node->function ? new_frame(run, parent, node->function) : NULL;
    if (!node->frame) return;
    note_nodes(run, node->frame, &node->items, false);
    note_nodes(run, node->frame, &node->other, false);
    note_nodes(run, node->frame, &node->body, false);
    *node->function = (rt_jfunc){.slots = node->function->slots, .caller = -1, .kwargs = -1, .varargs = -1};
    if (parent) {
        node->function->caller = declare_special(run, node, "caller");
        node->function->kwargs = declare_special(run, node, "kwargs");
        node->function->varargs = declare_special(run, node, "varargs");
    }
    resolve_nodes(run, node->frame, &node->items);
    resolve_nodes(run, node->frame, &node->other);
    resolve_nodes(run, node->frame, &node->body);
}

static void resolve_block(rt_jrun *run, rt_jframe *frame, rt_jnode *node, rt_jnode *filter) {
    node->frame = new_frame(run, frame, frame->function);
    if (!node->frame) return;
    note_nodes(run, node->frame, &node->body, false);
    note(run, node->frame, filter, false);
    resolve_nodes(run, node->frame, &node->body);
    resolve(run, node->frame, filter);
}

static void resolve_with(rt_jrun *run, rt_jframe *frame, rt_jnode *node) {
    resolve_nodes(run, frame, &node->other);
    node->frame = new_frame(run, frame, frame->function);
    if (!node->frame) return;
    note_nodes(run, node->frame, &node->items, false);
    note_nodes(run, node->frame, &node->body, false);
    resolve_nodes(run, node->frame, &node->items);
    resolve_nodes(run, node->frame, &node->body);
}

static void resolve(rt_jrun *run, rt_jframe *frame, rt_jnode *node) {
    if (!node || run->status) return;
    switch (node->kind) {
    case RT_JN_FOR: resolve_for(run, frame, node); return;
    case RT_JN_WITH: resolve_with(run, frame, node); return;
    case RT_JN_FILTER_BLOCK: resolve_block(run, frame, node, node->left); return;
    case RT_JN_SET_BLOCK:
        resolve(run, frame, node->left);
        resolve_block(run, frame, node, node->right);
        return;
    case RT_JN_CALL_BLOCK:
        resolve(run, frame, node->left);
        resolve_function(run, frame, node);
        return;
    case RT_JN_GENERATION: resolve_function(run, frame, node); return;
    case RT_JN_MACRO:
        find_place(run, frame, node->name, &node->place);
        resolve_function(run, frame, node);
        return;
    case RT_JN_NAME:
    case RT_JN_MEMBER: find_place(run, frame, node->name, &node->place); return;
    default: break;
    }
    resolve(run, frame, node->left);
    resolve(run, frame, node->right);
    resolve(run, frame, node->third);
    resolve(run, frame, node->star);
    resolve(run, frame, node->star_star);
    resolve_nodes(run, frame, &node->items);
    resolve_nodes(run, frame, &node->named);
    resolve_nodes(run, frame, &node->body);
    resolve_nodes(run, frame, &node->other);
}

static void resolve_nodes(rt_jrun *run, rt_jframe *frame, const rt_jnodes *nodes) {
    for (size_t i = 0; i < nodes->count; i++) resolve(run, frame, nodes->at[i]);
}

void rt_jscope_resolve(rt_jrun *run, rt_jnode *root) { resolve_function(run, NULL, root); }
