/* Evaluates expressions and calls. */
#include "runtime/template/jinja_eval.h"

#include <string.h>

/* ---- Arguments ---- */

static size_t word_length(const char *words) { return strcspn(words, " "); }

static const char *next_word(const char *words) {
    words += word_length(words);
    return *words ? words + 1 : words;
}

static bool is_word(const rt_jstr *name, const char *words) {
    return name->length == word_length(words) && memcmp(name->bytes, words, name->length) == 0;
}

static bool bind_named(rt_jrun *run, const rt_jentry *entry, const char *callee, const char *names, rt_jbound *out) {
    size_t i = 0;
    for (const char *word = names; *word; word = next_word(word), i++) {
        if (!is_word(entry->key.as.string, word)) continue;
        if (out->at[i].type == RT_J_MISSING) {
            out->at[i] = entry->value;
            return true;
        }
        rt_jfail(run, BIS_ERR_INVALID, "%s() got several values for the argument '%.*s'", callee,
                 (int)word_length(word), word);
        return false;
    }
    rt_jfail(run, BIS_ERR_INVALID, "%s() got an unexpected keyword argument '%.60s'", callee,
             rt_jcstr(run, entry->key.as.string));
    return false;
}

bool rt_jbind(rt_jrun *run, const rt_jargs *args, const char *callee, const char *names, size_t required,
              rt_jbound *out) {
    *out = (rt_jbound){0};
    size_t known = 0;
    for (const char *word = names; *word; word = next_word(word)) known++;
    if (args->count > known) {
        rt_jfail(run, BIS_ERR_INVALID, "%s() takes at most %zu argument(s), %zu were given", callee, known,
                 args->count);
        return false;
    }
    for (size_t i = 0; i < args->count; i++) out->at[i] = args->at[i];
    for (size_t i = 0; args->named && i < args->named->count; i++) {
        if (!bind_named(run, &args->named->entries[i], callee, names, out)) return false;
    }
    const char *word = names;
    for (size_t i = 0; i < required; i++, word = next_word(word)) {
        if (out->at[i].type != RT_J_MISSING) continue;
        rt_jfail(run, BIS_ERR_INVALID, "%s() misses the argument '%.*s'", callee, (int)word_length(word), word);
        return false;
    }
    return !run->status;
}

int64_t rt_jarg_int(rt_jrun *run, rt_jval value, int64_t otherwise) {
    int64_t integer = otherwise;
    if (rt_jgiven(value) && !rt_jinteger(value, &integer)) {
        rt_jfail(run, BIS_ERR_INVALID, "'%s' object cannot be interpreted as an integer", rt_jtype_name(value));
    }
    return integer;
}

const rt_jstr *rt_jarg_string(rt_jrun *run, rt_jval value, const rt_jstr *otherwise) {
    static const rt_jstr empty = {"", 0, 0, false};
    if (!rt_jgiven(value)) return otherwise;
    if (value.type == RT_J_STRING) return value.as.string;
    rt_jfail(run, BIS_ERR_INVALID, "expected a str argument, not '%s'", rt_jtype_name(value));
    return &empty;
}

static void add_star(rt_jrun *run, rt_jargs *args, rt_jval value) {
    rt_jlist *more = rt_jcollect(run, value);
    rt_jval *at = more ? rt_jalloc(run, args->count + more->count, sizeof *at) : NULL;
    if (!at) return;
    if (args->count) memcpy(at, args->at, args->count * sizeof *at);
    if (more->count) memcpy(at + args->count, more->items, more->count * sizeof *at);
    args->at = at;
    args->count += more->count;
}

static void add_named(rt_jrun *run, rt_jdict *named, rt_jval key, rt_jval value) {
    if (key.type != RT_J_STRING) rt_jfail(run, BIS_ERR_INVALID, "keywords must be strings");
    else if (rt_jdict_get(run, named, key)) {
        rt_jfail(run, BIS_ERR_INVALID, "keyword argument repeated: '%.60s'", rt_jcstr(run, key.as.string));
    } else rt_jdict_set(run, named, key, value);
}

static rt_jdict *eval_named(rt_jrun *run, const rt_jnode *node) {
    rt_jdict *named = rt_jdict_new(run);
    if (!named) return NULL;
    for (size_t i = 0; i < node->named.count; i++) {
        const rt_jnode *argument = node->named.at[i];
        add_named(run, named, rt_jstring_from(run, argument->name), rt_jeval(run, argument->left));
    }
    if (!node->star_star) return named;
    rt_jval more = rt_jeval(run, node->star_star);
    if (more.type != RT_J_DICT) {
        rt_jfail(run, BIS_ERR_INVALID, "argument after ** must be a mapping, not %s", rt_jtype_name(more));
        return named;
    }
    for (size_t i = 0; i < more.as.dict->count && !run->status; i++) {
        add_named(run, named, more.as.dict->entries[i].key, more.as.dict->entries[i].value);
    }
    return named;
}

rt_jargs rt_jeval_args(rt_jrun *run, const rt_jnode *node) {
    rt_jargs args = {.at = rt_jalloc(run, node->items.count, sizeof(rt_jval))};
    if (!args.at) return args;
    for (; args.count < node->items.count; args.count++)
        args.at[args.count] = rt_jeval(run, node->items.at[args.count]);
    if (node->star) add_star(run, &args, rt_jeval(run, node->star));
    if (node->named.count || node->star_star) args.named = eval_named(run, node);
    return args;
}

/* ---- Calls ---- */

bool rt_jcallable(rt_jval value) {
    switch (value.type) {
    case RT_J_UNDEFINED: /* in Python it has __call__, which raises */
    case RT_J_MACRO:
    case RT_J_FUNCTION:
    case RT_J_METHOD:
    case RT_J_LOOP:
    case RT_J_JOINER: return true;
    default: return false;
    }
}

static rt_jval call_joiner(rt_jrun *run, rt_jcycler *joiner) {
    if (joiner->position++ == 0) return rt_jstring_from(run, "");
    return joiner->items->items[0];
}

rt_jval rt_jcall(rt_jrun *run, rt_jval callee, const rt_jargs *args) {
    if (!rt_jenter(run)) return rt_jnone();
    rt_jval result = rt_jnone();
    switch (callee.type) {
    case RT_J_MACRO: result = rt_jmacro_call(run, callee.as.macro, args); break;
    case RT_J_FUNCTION: result = callee.as.function->call(run, rt_jnone(), args); break;
    case RT_J_METHOD: result = callee.as.method->call(run, callee.as.method->self, args); break;
    case RT_J_JOINER: result = call_joiner(run, callee.as.cycler); break;
    case RT_J_UNDEFINED: rt_jfail_undefined(run, callee); break;
    case RT_J_LOOP: rt_jfail(run, BIS_ERR_UNSUPPORTED, "recursive loops are not supported: use a macro"); break;
    default: rt_jfail(run, BIS_ERR_INVALID, "'%s' object is not callable", rt_jtype_name(callee));
    }
    rt_jleave(run);
    return run->status ? rt_jnone() : result;
}

/* ---- Expressions ---- */

rt_jval *rt_jplace_of(rt_jrun *run, rt_jplace place) {
    rt_jslots *slots = run->frame;
    for (int i = 0; i < place.up; i++) slots = slots->outer;
    return &slots->at[place.slot];
}

static rt_jval eval_name(rt_jrun *run, const rt_jnode *node) {
    rt_jval value = *rt_jplace_of(run, node->place);
    return value.type == RT_J_MISSING ? rt_jundefined_new(run, NULL, node->name, NULL) : value;
}

static rt_jval eval_items(rt_jrun *run, const rt_jnode *node) {
    rt_jlist *list = rt_jlist_new(run, node->items.count);
    for (size_t i = 0; i < node->items.count; i++) rt_jlist_add(run, list, rt_jeval(run, node->items.at[i]));
    return rt_jlist_value(list, node->kind == RT_JN_LIST ? RT_J_LIST : RT_J_TUPLE);
}

static rt_jval eval_dict(rt_jrun *run, const rt_jnode *node) {
    rt_jdict *dict = rt_jdict_new(run);
    for (size_t i = 0; i + 1 < node->items.count; i += 2) {
        rt_jval key = rt_jeval(run, node->items.at[i]);
        rt_jdict_set(run, dict, key, rt_jeval(run, node->items.at[i + 1]));
    }
    return rt_jdict_value(dict);
}

static rt_jval eval_concat(rt_jrun *run, const rt_jnode *node) {
    rt_jval text = rt_jstring_own(run, "", 0);
    for (size_t i = 0; i < node->items.count; i++) {
        rt_jval part = rt_jstr_of(run, rt_jeval(run, node->items.at[i]));
        if (run->status) return rt_jnone();
        if (i == 0) text = rt_jmarkup(run, part, false);
        else text = rt_jstring_join(run, text.as.string, part.as.string);
    }
    return text;
}

static rt_jval eval_comparison(rt_jrun *run, const rt_jnode *node) {
    rt_jval left = rt_jeval(run, node->left);
    bool holds = true;
    for (size_t i = 0; holds && i < node->items.count && !run->status; i++) {
        rt_jval right = rt_jeval(run, node->items.at[i]->left);
        if (run->status) break;
        holds = rt_jcompare_with(run, node->items.at[i]->operation, left, right);
        left = right;
    }
    return rt_jbool(holds);
}

static rt_jval eval_if_else(rt_jrun *run, const rt_jnode *node) {
    if (rt_jtruth(rt_jeval(run, node->right))) return rt_jeval(run, node->left);
    if (node->third) return rt_jeval(run, node->third);
    return rt_jundefined_new(run, "the inline if-expression evaluated to false and no else section was defined", "",
                             NULL);
}

static rt_jval eval_or_none(rt_jrun *run, const rt_jnode *node) { return node ? rt_jeval(run, node) : rt_jnone(); }

static rt_jval eval_item(rt_jrun *run, const rt_jnode *node) {
    rt_jval object = rt_jeval(run, node->left);
    const rt_jnode *index = node->right;
    if (index->kind != RT_JN_SLICE) {
        rt_jval key = rt_jeval(run, index);
        return run->status ? rt_jnone() : rt_jgetitem(run, object, key);
    }
    rt_jval start = eval_or_none(run, index->left), stop = eval_or_none(run, index->right);
    rt_jval step = eval_or_none(run, index->third);
    return run->status ? rt_jnone() : rt_jslice(run, object, start, stop, step);
}

static rt_jval eval_test(rt_jrun *run, const rt_jnode *node) {
    rt_jval value = rt_jeval(run, node->left);
    rt_jargs args = rt_jeval_args(run, node);
    return run->status ? rt_jnone() : rt_jbool(rt_jcall_test(run, node->name, value, &args));
}

static rt_jval apply_filter(rt_jrun *run, const rt_jnode *node, rt_jval value) {
    rt_jargs args = rt_jeval_args(run, node);
    return run->status ? rt_jnone() : rt_jcall_filter(run, node->name, value, &args);
}

rt_jval rt_jeval_filter_chain(rt_jrun *run, const rt_jnode *node, rt_jval text) {
    return apply_filter(run, node, node->left ? rt_jeval_filter_chain(run, node->left, text) : text);
}

static rt_jval eval_call(rt_jrun *run, const rt_jnode *node) {
    rt_jval callee = rt_jeval(run, node->left);
    rt_jargs args = rt_jeval_args(run, node);
    if (run->status) return rt_jnone();
    run->line = node->line;
    return rt_jcall(run, callee, &args);
}

static rt_jval eval_binary(rt_jrun *run, const rt_jnode *node) {
    rt_jval left = rt_jeval(run, node->left), right = rt_jeval(run, node->right);
    return run->status ? rt_jnone() : rt_jbinary(run, node->operation, left, right);
}

static rt_jval eval_either(rt_jrun *run, const rt_jnode *node, bool stop_at) {
    rt_jval left = rt_jeval(run, node->left);
    return rt_jtruth(left) == stop_at ? left : rt_jeval(run, node->right);
}

static rt_jval eval_unary(rt_jrun *run, const rt_jnode *node) {
    rt_jval value = rt_jeval(run, node->left);
    return run->status ? rt_jnone() : rt_junary(run, node->operation, value);
}

static rt_jval eval_attribute(rt_jrun *run, const rt_jnode *node) {
    rt_jval object = rt_jeval(run, node->left);
    return run->status ? rt_jnone() : rt_jgetattr(run, object, node->name);
}

static rt_jval eval_node(rt_jrun *run, const rt_jnode *node) {
    switch (node->kind) {
    case RT_JN_CONST: return node->value;
    case RT_JN_NAME: return eval_name(run, node);
    case RT_JN_TUPLE:
    case RT_JN_LIST: return eval_items(run, node);
    case RT_JN_DICT: return eval_dict(run, node);
    case RT_JN_UNARY: return eval_unary(run, node);
    case RT_JN_BINARY: return eval_binary(run, node);
    case RT_JN_AND: return eval_either(run, node, false);
    case RT_JN_OR: return eval_either(run, node, true);
    case RT_JN_CONCAT: return eval_concat(run, node);
    case RT_JN_COMPARE: return eval_comparison(run, node);
    case RT_JN_IF_ELSE: return eval_if_else(run, node);
    case RT_JN_GETATTR: return eval_attribute(run, node);
    case RT_JN_GETITEM: return eval_item(run, node);
    case RT_JN_CALL: return eval_call(run, node);
    case RT_JN_FILTER: return apply_filter(run, node, rt_jeval(run, node->left));
    case RT_JN_TEST: return eval_test(run, node);
    default: rt_jfail(run, BIS_ERR_INVALID, "a slice is only allowed alone in brackets"); return rt_jnone();
    }
}

rt_jval rt_jeval(rt_jrun *run, const rt_jnode *node) {
    if (!rt_jwork(run, 1) || !rt_jenter(run)) return rt_jnone();
    rt_jval value = eval_node(run, node);
    rt_jleave(run);
    return run->status ? rt_jnone() : value;
}
