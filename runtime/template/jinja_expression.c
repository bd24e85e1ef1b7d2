/* Parses expressions. From weak to strong: if-else, or, and, not, comparisons, + -, ~, * / // %, **, unary + and -,
 * filters and tests, calls and subscripts. */
#include <string.h>

#include "runtime/template/jinja_ast.h"

static rt_jnode *parse_unary(rt_jparser *parser, bool filters);

static bool is_operator(const rt_jparser *parser, const char *text) {
    return rt_jparse_is(parser, RT_JT_OPERATOR, text);
}
static bool skip_operator(rt_jparser *parser, const char *text) { return rt_jparse_skip(parser, RT_JT_OPERATOR, text); }
static bool is_name(const rt_jparser *parser, const char *text) { return rt_jparse_is(parser, RT_JT_NAME, text); }
static bool skip_name(rt_jparser *parser, const char *text) { return rt_jparse_skip(parser, RT_JT_NAME, text); }

static rt_jnode *make_pair(rt_jparser *parser, rt_jkind kind, rt_joperation operation, int line, rt_jnode *left,
                           rt_jnode *right) {
    rt_jnode *node = rt_jparse_node(parser, kind, line);
    node->operation = operation;
    node->left = left;
    node->right = right;
    return rt_jparse_done(parser, node);
}

/* ---- Primaries ---- */

static rt_jnode *make_const(rt_jparser *parser, rt_jval value, int line) {
    rt_jnode *node = rt_jparse_node(parser, RT_JN_CONST, line);
    node->value = value;
    return rt_jparse_done(parser, node);
}

static rt_jnode *parse_name(rt_jparser *parser) {
    static const struct {
        const char *name;
        rt_jval value;
    } constants[] = {
        {"true", {.type = RT_J_BOOL, .as.boolean = true}},
        {"True", {.type = RT_J_BOOL, .as.boolean = true}},
        {"false", {.type = RT_J_BOOL, .as.boolean = false}},
        {"False", {.type = RT_J_BOOL, .as.boolean = false}},
        {"none", {.type = RT_J_NONE}},
        {"None", {.type = RT_J_NONE}},
    };
    int line = parser->token->line;
    const char *name = rt_jparse_expect_name(parser);
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++) {
        if (!strcmp(name, constants[i].name)) return make_const(parser, constants[i].value, line);
    }
    rt_jnode *node = rt_jparse_node(parser, RT_JN_NAME, line);
    node->name = name;
    return rt_jparse_done(parser, node);
}

static rt_jnode *parse_strings(rt_jparser *parser) {
    int line = parser->token->line;
    rt_jval value = parser->token->value;
    for (rt_jparse_advance(parser); parser->token->kind == RT_JT_STRING; rt_jparse_advance(parser)) {
        if (parser->run->status) break;
        value = rt_jstring_join(parser->run, value.as.string, parser->token->value.as.string);
    }
    return make_const(parser, value, line);
}

static rt_jnode *parse_list(rt_jparser *parser) {
    rt_jnode *node = rt_jparse_node(parser, RT_JN_LIST, parser->token->line);
    rt_jparse_advance(parser);
    while (!parser->run->status && !is_operator(parser, "]")) {
        rt_jparse_add(parser, &node->items, rt_jparse_expression(parser));
        if (!skip_operator(parser, ",")) break;
    }
    rt_jparse_expect(parser, RT_JT_OPERATOR, "]");
    return rt_jparse_done(parser, node);
}

static rt_jnode *parse_dict(rt_jparser *parser) {
    rt_jnode *node = rt_jparse_node(parser, RT_JN_DICT, parser->token->line);
    rt_jparse_advance(parser);
    while (!parser->run->status && !is_operator(parser, "}")) {
        rt_jparse_add(parser, &node->items, rt_jparse_expression(parser));
        rt_jparse_expect(parser, RT_JT_OPERATOR, ":");
        rt_jparse_add(parser, &node->items, rt_jparse_expression(parser));
        if (!skip_operator(parser, ",")) break;
    }
    rt_jparse_expect(parser, RT_JT_OPERATOR, "}");
    return rt_jparse_done(parser, node);
}

static bool ends_tuple(const rt_jparser *parser, const char *end_word) {
    rt_jtoken_kind kind = parser->token->kind;
    return kind == RT_JT_VARIABLE_END || kind == RT_JT_BLOCK_END || is_operator(parser, ")") ||
           (end_word && is_name(parser, end_word));
}

typedef rt_jnode *parse_function(rt_jparser *parser);

/* One expression, or several with commas as a tuple. Only in brackets may it be empty. */
static rt_jnode *parse_items(rt_jparser *parser, parse_function *parse, const char *end_word, bool brackets) {
    rt_jnode *node = rt_jparse_node(parser, RT_JN_TUPLE, parser->token->line);
    bool comma = false;
    while (!parser->run->status && !ends_tuple(parser, end_word)) {
        rt_jparse_add(parser, &node->items, parse(parser));
        if (!skip_operator(parser, ",")) break;
        comma = true;
    }
    if (!comma && node->items.count) return node->items.at[0];
    if (!comma && !brackets) rt_jparse_fail(parser, "an expression");
    return rt_jparse_done(parser, node);
}

static rt_jnode *parse_brackets(rt_jparser *parser) {
    rt_jparse_advance(parser);
    rt_jnode *node = parse_items(parser, rt_jparse_expression, NULL, true);
    rt_jparse_expect(parser, RT_JT_OPERATOR, ")");
    return node;
}

static rt_jnode *parse_primary(rt_jparser *parser) {
    const rt_jtoken *token = parser->token;
    switch (token->kind) {
    case RT_JT_NAME: return parse_name(parser);
    case RT_JT_STRING: return parse_strings(parser);
    case RT_JT_NUMBER: rt_jparse_advance(parser); return make_const(parser, token->value, token->line);
    default: break;
    }
    if (is_operator(parser, "(")) return parse_brackets(parser);
    if (is_operator(parser, "[")) return parse_list(parser);
    if (is_operator(parser, "{")) return parse_dict(parser);
    rt_jparse_fail(parser, "an expression");
    return parser->scratch;
}

/* ---- Calls, subscripts, filters, tests ---- */

static void parse_argument(rt_jparser *parser, rt_jnode *node) {
    bool named = parser->token->kind == RT_JT_NAME && parser->token[1].kind == RT_JT_OPERATOR &&
                 !strcmp(parser->token[1].text, "=");
    int line = parser->token->line;
    if (skip_operator(parser, "*")) {
        if (node->star || node->star_star) rt_jparse_fail(parser, "one *argument");
        node->star = rt_jparse_expression(parser);
    } else if (skip_operator(parser, "**")) {
        if (node->star_star) rt_jparse_fail(parser, "one **argument");
        node->star_star = rt_jparse_expression(parser);
    } else if (named) {
        if (node->star_star) rt_jparse_fail(parser, "no argument after **");
        rt_jnode *argument = rt_jparse_node(parser, RT_JN_ARGUMENT, line);
        argument->name = rt_jparse_expect_name(parser);
        rt_jparse_advance(parser);
        argument->left = rt_jparse_expression(parser);
        rt_jparse_add(parser, &node->named, rt_jparse_done(parser, argument));
    } else {
        if (node->named.count || node->star || node->star_star) rt_jparse_fail(parser, "a named argument");
        rt_jparse_add(parser, &node->items, rt_jparse_expression(parser));
    }
}

static void parse_arguments(rt_jparser *parser, rt_jnode *node) {
    rt_jparse_expect(parser, RT_JT_OPERATOR, "(");
    while (!parser->run->status && !is_operator(parser, ")")) {
        parse_argument(parser, node);
        if (!skip_operator(parser, ",")) break;
    }
    rt_jparse_expect(parser, RT_JT_OPERATOR, ")");
}

static rt_jnode *parse_call(rt_jparser *parser, rt_jnode *callee) {
    rt_jnode *node = rt_jparse_node(parser, RT_JN_CALL, parser->token->line);
    node->left = callee;
    parse_arguments(parser, node);
    return rt_jparse_done(parser, node);
}

static rt_jnode *parse_slice_part(rt_jparser *parser) {
    if (is_operator(parser, ":") || is_operator(parser, "]") || is_operator(parser, ",")) return NULL;
    return rt_jparse_expression(parser);
}

static rt_jnode *parse_subscribed(rt_jparser *parser) {
    int line = parser->token->line;
    rt_jnode *first = is_operator(parser, ":") ? NULL : rt_jparse_expression(parser);
    if (!skip_operator(parser, ":")) return first ? first : parser->scratch;
    rt_jnode *node = rt_jparse_node(parser, RT_JN_SLICE, line);
    node->left = first;
    node->right = parse_slice_part(parser);
    if (skip_operator(parser, ":")) node->third = parse_slice_part(parser);
    return rt_jparse_done(parser, node);
}

static rt_jnode *parse_brackets_subscript(rt_jparser *parser, rt_jnode *object, int line) {
    rt_jnode *tuple = rt_jparse_node(parser, RT_JN_TUPLE, line);
    while (!parser->run->status && !is_operator(parser, "]")) {
        rt_jparse_add(parser, &tuple->items, parse_subscribed(parser));
        if (!skip_operator(parser, ",")) break;
    }
    rt_jparse_expect(parser, RT_JT_OPERATOR, "]");
    rt_jnode *index = tuple->items.count == 1 ? tuple->items.at[0] : rt_jparse_done(parser, tuple);
    return make_pair(parser, RT_JN_GETITEM, RT_JO_NONE, line, object, index);
}

static rt_jnode *parse_subscript(rt_jparser *parser, rt_jnode *object) {
    int line = parser->token->line;
    if (skip_operator(parser, "[")) return parse_brackets_subscript(parser, object, line);
    rt_jparse_advance(parser);
    const rt_jtoken *token = parser->token;
    if (token->kind == RT_JT_NUMBER && token->value.type == RT_J_INT) {
        rt_jparse_advance(parser);
        rt_jnode *index = make_const(parser, token->value, token->line);
        return make_pair(parser, RT_JN_GETITEM, RT_JO_NONE, line, object, index);
    }
    rt_jnode *node = rt_jparse_node(parser, RT_JN_GETATTR, line);
    node->left = object;
    node->name = rt_jparse_expect_name(parser);
    return rt_jparse_done(parser, node);
}

static rt_jnode *parse_postfix(rt_jparser *parser, rt_jnode *node) {
    while (!parser->run->status) {
        if (is_operator(parser, ".") || is_operator(parser, "[")) node = parse_subscript(parser, node);
        else if (is_operator(parser, "(")) node = parse_call(parser, node);
        else break;
    }
    return node;
}

static const char *parse_dotted_name(rt_jparser *parser) {
    const char *name = rt_jparse_expect_name(parser);
    if (is_operator(parser, ".")) rt_jparse_fail(parser, "a filter or test without a dot in its name");
    return name;
}

rt_jnode *rt_jparse_filter(rt_jparser *parser, rt_jnode *operand) {
    rt_jnode *node = rt_jparse_node(parser, RT_JN_FILTER, parser->token->line);
    node->left = operand;
    node->name = parse_dotted_name(parser);
    if (is_operator(parser, "(")) parse_arguments(parser, node);
    return rt_jparse_done(parser, node);
}

/* A test may take one argument without brackets: x is divisibleby 3 */
static bool starts_test_argument(const rt_jparser *parser) {
    switch (parser->token->kind) {
    case RT_JT_STRING:
    case RT_JT_NUMBER: return true;
    case RT_JT_NAME: return !is_name(parser, "else") && !is_name(parser, "or") && !is_name(parser, "and");
    default: return is_operator(parser, "[") || is_operator(parser, "{");
    }
}

static rt_jnode *parse_test(rt_jparser *parser, rt_jnode *operand) {
    rt_jnode *node = rt_jparse_node(parser, RT_JN_TEST, parser->token->line);
    rt_jparse_advance(parser);
    bool negated = skip_name(parser, "not");
    node->left = operand;
    node->name = parse_dotted_name(parser);
    if (is_operator(parser, "(")) parse_arguments(parser, node);
    else if (starts_test_argument(parser)) {
        if (is_name(parser, "is")) rt_jparse_fail(parser, "one test, not a chain of them");
        rt_jparse_add(parser, &node->items, parse_postfix(parser, parse_primary(parser)));
    }
    rt_jparse_done(parser, node);
    return negated ? make_pair(parser, RT_JN_UNARY, RT_JO_NOT, node->line, node, NULL) : node;
}

static rt_jnode *parse_filters(rt_jparser *parser, rt_jnode *node) {
    while (!parser->run->status) {
        if (skip_operator(parser, "|")) node = rt_jparse_filter(parser, node);
        else if (is_name(parser, "is")) node = parse_test(parser, node);
        else if (is_operator(parser, "(")) node = parse_call(parser, node);
        else break;
    }
    return node;
}

/* ---- Operators ---- */

static rt_jnode *parse_unary(rt_jparser *parser, bool filters) {
    if (!rt_jparse_enter(parser)) return parser->scratch;
    int line = parser->token->line;
    rt_jnode *node;
    if (skip_operator(parser, "-")) {
        node = make_pair(parser, RT_JN_UNARY, RT_JO_SUB, line, parse_unary(parser, false), NULL);
    } else if (skip_operator(parser, "+")) {
        node = make_pair(parser, RT_JN_UNARY, RT_JO_ADD, line, parse_unary(parser, false), NULL);
    } else node = parse_primary(parser);
    node = parse_postfix(parser, node);
    if (filters) node = parse_filters(parser, node);
    parser->depth--;
    return node;
}

static rt_jnode *parse_operand(rt_jparser *parser) { return parse_unary(parser, true); }

typedef struct operator_word {
    const char *text;
    rt_joperation operation;
} operator_word;

/* A row of left-associative operators of one strength. `next` parses what binds tighter. */
static rt_jnode *parse_row(rt_jparser *parser, const operator_word *words, size_t count, parse_function *next) {
    int line = parser->token->line;
    rt_jnode *left = next(parser);
    for (size_t i = 0; i < count && !parser->run->status; i++) {
        if (!skip_operator(parser, words[i].text)) continue;
        left = make_pair(parser, RT_JN_BINARY, words[i].operation, line, left, next(parser));
        line = parser->token->line;
        i = (size_t)-1; /* look for the first of the words again */
    }
    return left;
}

static rt_jnode *parse_power(rt_jparser *parser) {
    static const operator_word words[] = {{"**", RT_JO_POW}};
    return parse_row(parser, words, 1, parse_operand);
}

static rt_jnode *parse_product(rt_jparser *parser) {
    static const operator_word words[] = {{"*", RT_JO_MUL}, {"/", RT_JO_DIV}, {"//", RT_JO_FLOORDIV}, {"%", RT_JO_MOD}};
    return parse_row(parser, words, 4, parse_power);
}

static rt_jnode *parse_concat(rt_jparser *parser) {
    int line = parser->token->line;
    rt_jnode *first = parse_product(parser);
    if (!is_operator(parser, "~")) return first;
    rt_jnode *node = rt_jparse_node(parser, RT_JN_CONCAT, line);
    rt_jparse_add(parser, &node->items, first);
    while (!parser->run->status && skip_operator(parser, "~")) {
        rt_jparse_add(parser, &node->items, parse_product(parser));
    }
    return rt_jparse_done(parser, node);
}

static rt_jnode *parse_sum(rt_jparser *parser) {
    static const operator_word words[] = {{"+", RT_JO_ADD}, {"-", RT_JO_SUB}};
    return parse_row(parser, words, 2, parse_concat);
}

static rt_joperation take_comparison(rt_jparser *parser) {
    static const operator_word words[] = {{"==", RT_JO_EQ}, {"!=", RT_JO_NE}, {"<", RT_JO_LT},
                                          {"<=", RT_JO_LE}, {">", RT_JO_GT},  {">=", RT_JO_GE}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (skip_operator(parser, words[i].text)) return words[i].operation;
    }
    if (skip_name(parser, "in")) return RT_JO_IN;
    bool not_in = is_name(parser, "not") && parser->token[1].kind == RT_JT_NAME && !strcmp(parser->token[1].text, "in");
    if (!not_in) return RT_JO_NONE;
    rt_jparse_advance(parser);
    rt_jparse_advance(parser);
    return RT_JO_NOT_IN;
}

static rt_jnode *parse_comparison(rt_jparser *parser) {
    int line = parser->token->line;
    rt_jnode *first = parse_sum(parser), *node = NULL;
    while (!parser->run->status) {
        rt_joperation operation = take_comparison(parser);
        if (operation == RT_JO_NONE) break;
        if (!node) node = rt_jparse_node(parser, RT_JN_COMPARE, line);
        node->left = first;
        rt_jnode *operand = parse_sum(parser);
        rt_jparse_add(parser, &node->items, make_pair(parser, RT_JN_OPERAND, operation, operand->line, operand, NULL));
    }
    return node ? rt_jparse_done(parser, node) : first;
}

static rt_jnode *parse_not(rt_jparser *parser) {
    if (!is_name(parser, "not")) return parse_comparison(parser);
    if (!rt_jparse_enter(parser)) return parser->scratch;
    int line = parser->token->line;
    rt_jparse_advance(parser);
    rt_jnode *node = make_pair(parser, RT_JN_UNARY, RT_JO_NOT, line, parse_not(parser), NULL);
    parser->depth--;
    return node;
}

static rt_jnode *parse_and(rt_jparser *parser) {
    int line = parser->token->line;
    rt_jnode *left = parse_not(parser);
    while (!parser->run->status && skip_name(parser, "and")) {
        left = make_pair(parser, RT_JN_AND, RT_JO_NONE, line, left, parse_not(parser));
    }
    return left;
}

static rt_jnode *parse_or(rt_jparser *parser) {
    int line = parser->token->line;
    rt_jnode *left = parse_and(parser);
    while (!parser->run->status && skip_name(parser, "or")) {
        left = make_pair(parser, RT_JN_OR, RT_JO_NONE, line, left, parse_and(parser));
    }
    return left;
}

rt_jnode *rt_jparse_expression(rt_jparser *parser) {
    if (!rt_jparse_enter(parser)) return parser->scratch;
    int line = parser->token->line;
    rt_jnode *value = parse_or(parser);
    while (!parser->run->status && skip_name(parser, "if")) {
        rt_jnode *node = rt_jparse_node(parser, RT_JN_IF_ELSE, line);
        node->left = value;
        node->right = parse_or(parser);
        if (skip_name(parser, "else")) node->third = rt_jparse_expression(parser);
        value = rt_jparse_done(parser, node);
    }
    parser->depth--;
    return value;
}

rt_jnode *rt_jparse_tuple(rt_jparser *parser, bool conditional) {
    return parse_items(parser, conditional ? rt_jparse_expression : parse_or, NULL, false);
}

rt_jnode *rt_jparse_tuple_before(rt_jparser *parser, const char *end_word) {
    return parse_items(parser, parse_or, end_word, false);
}

/* ---- Targets of assignments ---- */

static rt_jnode *parse_member_or_primary(rt_jparser *parser) {
    rt_jnode *node = parse_primary(parser);
    if (node->kind != RT_JN_NAME || !skip_operator(parser, ".")) return node;
    node->kind = RT_JN_MEMBER;
    node->attribute = rt_jparse_expect_name(parser);
    return node;
}

static void set_context(rt_jparser *parser, rt_jnode *target, rt_jcontext context, bool members) {
    if (target->kind == RT_JN_TUPLE) {
        for (size_t i = 0; i < target->items.count; i++) set_context(parser, target->items.at[i], context, members);
        return;
    }
    bool allowed = target->kind == RT_JN_NAME || (members && target->kind == RT_JN_MEMBER);
    if (!allowed) rt_jparse_refuse(parser, target->line, BIS_ERR_INVALID, "cannot assign to this expression");
    else if (target->kind == RT_JN_NAME && context == RT_JC_STORE && parser->for_depth > 0 &&
             !strcmp(target->name, "loop")) {
        rt_jparse_refuse(parser, target->line, BIS_ERR_INVALID, "cannot assign to the special loop variable");
    }
    target->context = context;
}

rt_jnode *rt_jparse_target(rt_jparser *parser, rt_jcontext context, bool members) {
    rt_jnode *target = parse_items(parser, members ? parse_member_or_primary : parse_primary, "in", false);
    set_context(parser, target, context, members);
    return target;
}

rt_jnode *rt_jparse_name_target(rt_jparser *parser, rt_jcontext context) {
    rt_jnode *target = parse_name(parser);
    set_context(parser, target, context, false);
    return target;
}
