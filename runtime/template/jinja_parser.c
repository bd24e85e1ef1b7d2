/* Parses statements, and holds what both halves of the parser share. */
#include <stdio.h>
#include <string.h>

#include "runtime/template/jinja_ast.h"

/* ---- Shared helpers ---- */

rt_jnode *rt_jparse_node(rt_jparser *parser, rt_jkind kind, int line) {
    rt_jnode *node = rt_jalloc(parser->run, 1, sizeof *node);
    if (!node) node = parser->scratch;
    *node = (rt_jnode){.kind = kind, .line = line};
    return node;
}

static int highest(const rt_jnodes *nodes, int height) {
    for (size_t i = 0; i < nodes->count; i++) {
        if (nodes->at[i]->height > height) height = nodes->at[i]->height;
    }
    return height;
}

/* All later passes walk the tree by recursion, so its height is bounded, also that of a long a + b + c + ... */
rt_jnode *rt_jparse_done(rt_jparser *parser, rt_jnode *node) {
    const rt_jnode *const single[] = {node->left, node->right, node->third, node->star, node->star_star};
    int height = 0;
    for (size_t i = 0; i < sizeof single / sizeof *single; i++) {
        if (single[i] && single[i]->height > height) height = single[i]->height;
    }
    height = highest(&node->items, highest(&node->named, height));
    height = highest(&node->body, highest(&node->other, height));
    node->height = height + 1;
    if (node->height > 2 * RT_JINJA_NESTING_MAX) {
        rt_jparse_refuse(parser, node->line, BIS_ERR_LIMIT, "the template is nested too deeply");
    }
    return node;
}

void rt_jparse_add(rt_jparser *parser, rt_jnodes *nodes, rt_jnode *node) {
    if (nodes->count == nodes->capacity) {
        size_t capacity = nodes->capacity ? nodes->capacity * 2 : 4;
        rt_jnode **at = rt_jalloc(parser->run, capacity, sizeof(rt_jnode *));
        if (!at) return;
        if (nodes->count) memcpy(at, nodes->at, nodes->count * sizeof *at);
        nodes->at = at;
        nodes->capacity = capacity;
    }
    nodes->at[nodes->count++] = node;
}

bool rt_jparse_is(const rt_jparser *parser, rt_jtoken_kind kind, const char *text) {
    return parser->token->kind == kind && (!text || !strcmp(parser->token->text, text));
}

void rt_jparse_advance(rt_jparser *parser) {
    if (parser->token->kind != RT_JT_EOF) parser->token++;
}

bool rt_jparse_skip(rt_jparser *parser, rt_jtoken_kind kind, const char *text) {
    if (!rt_jparse_is(parser, kind, text)) return false;
    rt_jparse_advance(parser);
    return true;
}

static const char *describe(const rt_jtoken *token) {
    switch (token->kind) {
    case RT_JT_EOF: return "the end of the template";
    case RT_JT_DATA: return "text";
    case RT_JT_BLOCK_BEGIN: return "{%";
    case RT_JT_BLOCK_END: return "%}";
    case RT_JT_VARIABLE_BEGIN: return "{{";
    case RT_JT_VARIABLE_END: return "}}";
    case RT_JT_STRING: return "a string";
    case RT_JT_NUMBER: return "a number";
    case RT_JT_NAME:
    case RT_JT_OPERATOR: break;
    }
    return token->text;
}

void rt_jparse_refuse(rt_jparser *parser, int line, bis_status status, const char *problem) {
    parser->run->line = line;
    rt_jfail(parser->run, status, "%s", problem);
}

void rt_jparse_fail(rt_jparser *parser, const char *wanted) {
    parser->run->line = parser->token->line;
    rt_jfail(parser->run, BIS_ERR_INVALID, "expected %s, got '%.60s'", wanted, describe(parser->token));
}

void rt_jparse_expect(rt_jparser *parser, rt_jtoken_kind kind, const char *text) {
    if (rt_jparse_skip(parser, kind, text)) return;
    rt_jtoken wanted = {.kind = kind, .text = text};
    char quoted[40];
    snprintf(quoted, sizeof quoted, "'%s'", describe(&wanted));
    rt_jparse_fail(parser, quoted);
}

const char *rt_jparse_expect_name(rt_jparser *parser) {
    const rt_jtoken *token = parser->token;
    if (token->kind != RT_JT_NAME) {
        rt_jparse_fail(parser, "a name");
        return "";
    }
    rt_jparse_advance(parser);
    return token->text;
}

bool rt_jparse_enter(rt_jparser *parser) {
    if (parser->run->status) return false;
    if (parser->depth >= RT_JINJA_NESTING_MAX) {
        rt_jparse_refuse(parser, parser->token->line, BIS_ERR_LIMIT, "the template is nested too deeply");
        return false;
    }
    parser->depth++;
    return true;
}

/* ---- Bodies ---- */

static rt_jnode *parse_statement(rt_jparser *parser);

static bool at_end_word(const rt_jparser *parser, const char *const *end_words) {
    for (; end_words && *end_words; end_words++) {
        if (parser->token[1].kind == RT_JT_NAME && !strcmp(parser->token[1].text, *end_words)) return true;
    }
    return false;
}

static rt_jnode *parse_output(rt_jparser *parser) {
    rt_jnode *node = rt_jparse_node(parser, RT_JN_OUTPUT, parser->token->line);
    rt_jparse_advance(parser);
    node->left = rt_jparse_tuple(parser, true);
    rt_jparse_expect(parser, RT_JT_VARIABLE_END, NULL);
    return rt_jparse_done(parser, node);
}

/* Adds nodes up to a {% tag whose name is one of end_words (a NULL-ended list), or to the end of the
 * template if there are none. The end word becomes the current token. */
static void parse_nodes(rt_jparser *parser, const char *const *end_words, rt_jnodes *out) {
    while (!parser->run->status && parser->token->kind != RT_JT_EOF) {
        if (parser->token->kind == RT_JT_DATA) {
            rt_jnode *node = rt_jparse_node(parser, RT_JN_DATA, parser->token->line);
            node->value = parser->token->value;
            rt_jparse_add(parser, out, rt_jparse_done(parser, node));
            rt_jparse_advance(parser);
        } else if (parser->token->kind == RT_JT_VARIABLE_BEGIN) {
            rt_jparse_add(parser, out, parse_output(parser));
        } else if (at_end_word(parser, end_words)) {
            rt_jparse_advance(parser);
            return;
        } else {
            rt_jparse_advance(parser);
            rt_jparse_add(parser, out, parse_statement(parser));
            rt_jparse_expect(parser, RT_JT_BLOCK_END, NULL);
        }
    }
    if (end_words && *end_words) rt_jparse_expect(parser, RT_JT_NAME, *end_words);
}

/* The body of a tag, from the tag's %} on. */
static void parse_body(rt_jparser *parser, const char *const *end_words, rt_jnodes *out) {
    rt_jparse_skip(parser, RT_JT_OPERATOR, ":");
    rt_jparse_expect(parser, RT_JT_BLOCK_END, NULL);
    if (!rt_jparse_enter(parser)) return;
    parse_nodes(parser, end_words, out);
    parser->depth--;
}

static void parse_whole_body(rt_jparser *parser, const char *end_word, rt_jnodes *out) {
    const char *const end_words[] = {end_word, NULL};
    parse_body(parser, end_words, out);
    rt_jparse_advance(parser);
}

/* ---- Statements; each starts behind its own tag name ---- */

static rt_jnode *parse_for(rt_jparser *parser, int line) {
    static const char *const end_words[] = {"endfor", "else", NULL};
    rt_jnode *node = rt_jparse_node(parser, RT_JN_FOR, line);
    parser->for_depth++;
    node->left = rt_jparse_target(parser, RT_JC_STORE, false);
    rt_jparse_expect(parser, RT_JT_NAME, "in");
    node->right = rt_jparse_tuple_before(parser, "recursive");
    if (rt_jparse_skip(parser, RT_JT_NAME, "if")) node->third = rt_jparse_expression(parser);
    if (rt_jparse_is(parser, RT_JT_NAME, "recursive")) {
        rt_jparse_refuse(parser, line, BIS_ERR_UNSUPPORTED, "recursive loops are not supported: use a macro");
    }
    parser->loop_depth++;
    parse_body(parser, end_words, &node->body);
    parser->loop_depth--;
    if (rt_jparse_skip(parser, RT_JT_NAME, "else")) parse_whole_body(parser, "endfor", &node->other);
    else rt_jparse_advance(parser);
    parser->for_depth--;
    return rt_jparse_done(parser, node);
}

static rt_jnode *parse_if(rt_jparser *parser, int line) {
    static const char *const end_words[] = {"endif", "else", "elif", NULL};
    rt_jnode *node = rt_jparse_node(parser, RT_JN_IF, line), *branch = node;
    while (!parser->run->status) {
        branch->left = rt_jparse_tuple(parser, false);
        parse_body(parser, end_words, &branch->body);
        if (branch != node) rt_jparse_add(parser, &node->items, rt_jparse_done(parser, branch));
        branch = rt_jparse_node(parser, RT_JN_IF, parser->token->line);
        if (!rt_jparse_skip(parser, RT_JT_NAME, "elif")) break;
    }
    if (rt_jparse_skip(parser, RT_JT_NAME, "else")) parse_whole_body(parser, "endif", &node->other);
    else rt_jparse_advance(parser);
    return rt_jparse_done(parser, node);
}

static rt_jnode *parse_set(rt_jparser *parser, int line) {
    rt_jnode *node = rt_jparse_node(parser, RT_JN_SET, line);
    node->left = rt_jparse_target(parser, RT_JC_STORE, true);
    if (rt_jparse_skip(parser, RT_JT_OPERATOR, "=")) {
        node->right = rt_jparse_tuple(parser, true);
        return rt_jparse_done(parser, node);
    }
    node->kind = RT_JN_SET_BLOCK;
    while (!parser->run->status && rt_jparse_skip(parser, RT_JT_OPERATOR, "|")) {
        node->right = rt_jparse_filter(parser, node->right);
    }
    parse_whole_body(parser, "endset", &node->body);
    return rt_jparse_done(parser, node);
}

static void parse_parameters(rt_jparser *parser, rt_jnode *node) {
    rt_jparse_expect(parser, RT_JT_OPERATOR, "(");
    while (!parser->run->status && !rt_jparse_is(parser, RT_JT_OPERATOR, ")")) {
        rt_jparse_add(parser, &node->items, rt_jparse_name_target(parser, RT_JC_PARAMETER));
        if (rt_jparse_skip(parser, RT_JT_OPERATOR, "=")) {
            rt_jparse_add(parser, &node->other, rt_jparse_expression(parser));
        } else if (node->other.count) rt_jparse_fail(parser, "a default, as the parameters before have one");
        if (!rt_jparse_is(parser, RT_JT_OPERATOR, ")")) rt_jparse_expect(parser, RT_JT_OPERATOR, ",");
    }
    rt_jparse_expect(parser, RT_JT_OPERATOR, ")");
}

/* The body becomes a function of its own, so loops around it are out of reach for break. */
static rt_jnode *parse_function_body(rt_jparser *parser, rt_jnode *node, const char *end_word) {
    int loops = parser->loop_depth;
    parser->loop_depth = 0;
    parse_whole_body(parser, end_word, &node->body);
    parser->loop_depth = loops;
    return rt_jparse_done(parser, node);
}

static rt_jnode *parse_macro(rt_jparser *parser, int line) {
    rt_jnode *node = rt_jparse_node(parser, RT_JN_MACRO, line);
    node->name = rt_jparse_name_target(parser, RT_JC_STORE)->name;
    parse_parameters(parser, node);
    return parse_function_body(parser, node, "endmacro");
}

static rt_jnode *parse_call_block(rt_jparser *parser, int line) {
    rt_jnode *node = rt_jparse_node(parser, RT_JN_CALL_BLOCK, line);
    if (rt_jparse_is(parser, RT_JT_OPERATOR, "(")) parse_parameters(parser, node);
    node->left = rt_jparse_expression(parser);
    if (node->left->kind != RT_JN_CALL) rt_jparse_refuse(parser, line, BIS_ERR_INVALID, "expected a call");
    return parse_function_body(parser, node, "endcall");
}

static rt_jnode *parse_generation(rt_jparser *parser, int line) {
    return parse_function_body(parser, rt_jparse_node(parser, RT_JN_GENERATION, line), "endgeneration");
}

static rt_jnode *parse_filter_block(rt_jparser *parser, int line) {
    rt_jnode *node = rt_jparse_node(parser, RT_JN_FILTER_BLOCK, line);
    do node->left = rt_jparse_filter(parser, node->left);
    while (!parser->run->status && rt_jparse_skip(parser, RT_JT_OPERATOR, "|"));
    parse_whole_body(parser, "endfilter", &node->body);
    return rt_jparse_done(parser, node);
}

static rt_jnode *parse_with(rt_jparser *parser, int line) {
    rt_jnode *node = rt_jparse_node(parser, RT_JN_WITH, line);
    while (!parser->run->status && parser->token->kind != RT_JT_BLOCK_END) {
        if (node->items.count) rt_jparse_expect(parser, RT_JT_OPERATOR, ",");
        rt_jparse_add(parser, &node->items, rt_jparse_name_target(parser, RT_JC_PARAMETER));
        rt_jparse_expect(parser, RT_JT_OPERATOR, "=");
        rt_jparse_add(parser, &node->other, rt_jparse_expression(parser));
    }
    parse_whole_body(parser, "endwith", &node->body);
    return rt_jparse_done(parser, node);
}

static rt_jnode *parse_print(rt_jparser *parser, int line) {
    rt_jnode *node = rt_jparse_node(parser, RT_JN_OUTPUT, line);
    node->left = rt_jparse_node(parser, RT_JN_CONCAT, line);
    do rt_jparse_add(parser, &node->left->items, rt_jparse_expression(parser));
    while (!parser->run->status && rt_jparse_skip(parser, RT_JT_OPERATOR, ","));
    rt_jparse_done(parser, node->left);
    return rt_jparse_done(parser, node);
}

static rt_jnode *parse_loop_control(rt_jparser *parser, rt_jkind kind, int line) {
    if (parser->loop_depth == 0) {
        rt_jparse_refuse(parser, line, BIS_ERR_INVALID, "break and continue are only allowed in a loop");
    }
    return rt_jparse_done(parser, rt_jparse_node(parser, kind, line));
}

static rt_jnode *parse_break(rt_jparser *parser, int line) { return parse_loop_control(parser, RT_JN_BREAK, line); }
static rt_jnode *parse_continue(rt_jparser *parser, int line) {
    return parse_loop_control(parser, RT_JN_CONTINUE, line);
}

static rt_jnode *parse_statement(rt_jparser *parser) {
    static const struct {
        const char *name;
        rt_jnode *(*parse)(rt_jparser *parser, int line);
    } statements[] = {
        {"for", parse_for},
        {"if", parse_if},
        {"set", parse_set},
        {"macro", parse_macro},
        {"call", parse_call_block},
        {"filter", parse_filter_block},
        {"with", parse_with},
        {"print", parse_print},
        {"generation", parse_generation},
        {"break", parse_break},
        {"continue", parse_continue},
    };
    static const char *const left_out[] = {"include", "import", "from", "extends", "block", "autoescape"};
    int line = parser->token->line;
    const char *name = parser->token->kind == RT_JT_NAME ? parser->token->text : "";
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++) {
        if (strcmp(name, statements[i].name) != 0) continue;
        rt_jparse_advance(parser);
        return statements[i].parse(parser, line);
    }
    parser->run->line = line;
    for (size_t i = 0; i < sizeof left_out / sizeof *left_out; i++) {
        if (strcmp(name, left_out[i]) != 0) continue;
        rt_jfail(parser->run, BIS_ERR_UNSUPPORTED, "the tag '%s' is not supported in chat templates", name);
    }
    rt_jparse_fail(parser, "a tag that is known and fits here");
    return parser->scratch;
}

rt_jnode *rt_jparse_template(rt_jrun *run, const rt_jtokens *tokens) {
    rt_jparser parser = {.run = run, .token = tokens->at, .scratch = rt_jalloc(run, 1, sizeof(rt_jnode))};
    if (run->status) return NULL;
    rt_jnode *root = rt_jparse_node(&parser, RT_JN_GENERATION, 1);
    parse_nodes(&parser, NULL, &root->body);
    rt_jparse_done(&parser, root);
    return run->status ? NULL : root;
}
