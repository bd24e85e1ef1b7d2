#include "runtime/tokenizer/pretokenizer.h"

#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "common/alloc.h"
#include "common/utf8.h"

/* Bounds of one match: patterns that need more are not tokenizer patterns. */
enum { MATCH_STEPS_MAX = 10 * 1000 * 1000, MATCH_HEAP_KIB_MAX = 64 * 1024 };

struct rt_pre_step {
    enum { STEP_SPLIT, STEP_PREFIX, STEP_REPLACE_SPACE } kind;
    pcre2_code *pattern; /* STEP_SPLIT */
    bool invert;
    rt_split_behaviour behaviour;
    char *text; /* the prefix, or what replaces a space */
    rt_prefix_rule rule;
};

/* Unicode's White_Space as ranges of a character class. PCRE2's own \s also takes U+180E, which the
 * tokenizers' expression engine does not. */
#define SPACE_RANGES                                                                                                   \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

bool rt_is_white_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* Copies the pattern with \s (and \S outside brackets) spelled out as Unicode's white space. */
static bool spell_out_space(const char *pattern, bis_buf *out) {
    bool in_class = false;
    for (const char *p = pattern; *p; p++) {
        if (*p == '\\' && p[1] == 's') {
            bis_buf_puts(out, in_class ? SPACE_RANGES : "[" SPACE_RANGES "]");
            p++;
        } else if (*p == '\\' && p[1] == 'S' && !in_class) {
            bis_buf_puts(out, "[^" SPACE_RANGES "]");
            p++;
        } else if (*p == '\\' && p[1]) {
            bis_buf_append(out, p, 2);
            p++;
        } else {
            if (*p == '[') in_class = true;
            if (*p == ']') in_class = false;
            bis_buf_putc(out, *p);
        }
    }
    return !out->failed;
}

static bis_status add_step(rt_pretokenizer *pretokenizer, rt_pre_step step, bis_error *error) {
    rt_pre_step *steps = bis_reallocarray(pretokenizer->steps, pretokenizer->count + 1, sizeof *steps);
    if (!steps) {
        if (step.pattern) pcre2_code_free(step.pattern);
        bis_free(step.text);
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for the pre-tokenizer");
    }
    pretokenizer->steps = steps;
    steps[pretokenizer->count++] = step;
    return BIS_OK;
}

bis_status rt_pretokenizer_split(rt_pretokenizer *pretokenizer, const char *pattern, bool literal, bool invert,
                                 rt_split_behaviour behaviour, bis_error *error) {
    bis_buf spelled = {0};
    bool ok = literal ? bis_buf_puts(&spelled, pattern) : spell_out_space(pattern, &spelled);
    if (!ok) {
        bis_buf_free(&spelled);
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for the pre-tokenizer");
    }
    int code;
    PCRE2_SIZE offset;
    uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C);
    pcre2_code *compiled =
        pcre2_compile((PCRE2_SPTR)bis_buf_cstr(&spelled), spelled.length, options, &code, &offset, NULL);
    bis_buf_free(&spelled);
    if (!compiled) {
        PCRE2_UCHAR message[128] = "";
        pcre2_get_error_message(code, message, sizeof message);
        return bis_fail(error, BIS_ERR_FORMAT, "the split pattern '%.120s' is not accepted: %s", pattern,
                        (const char *)message);
    }
    pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE); /* where there is no JIT, matching is only slower */
    rt_pre_step step = {.kind = STEP_SPLIT, .pattern = compiled, .invert = invert, .behaviour = behaviour};
    return add_step(pretokenizer, step, error);
}

static bis_status add_text_step(rt_pretokenizer *pretokenizer, rt_pre_step step, const char *text, bis_error *error) {
    step.text = bis_strdup(text);
    if (!step.text) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the pre-tokenizer");
    return add_step(pretokenizer, step, error);
}

bis_status rt_pretokenizer_prefix(rt_pretokenizer *pretokenizer, const char *prefix, rt_prefix_rule rule,
                                  bis_error *error) {
    return add_text_step(pretokenizer, (rt_pre_step){.kind = STEP_PREFIX, .rule = rule}, prefix, error);
}

bis_status rt_pretokenizer_replace_space(rt_pretokenizer *pretokenizer, const char *with, bis_error *error) {
    return add_text_step(pretokenizer, (rt_pre_step){.kind = STEP_REPLACE_SPACE}, with, error);
}

static bool push_piece(rt_pieces *pieces, size_t start, size_t end) {
    if (start == end) return true;
    if (pieces->count == pieces->capacity) {
        size_t capacity = pieces->capacity ? pieces->capacity * 2 : 64;
        rt_piece *list = bis_reallocarray(pieces->list, capacity, sizeof *list);
        if (!list) return false;
        pieces->list = list;
        pieces->capacity = capacity;
    }
    pieces->list[pieces->count++] = (rt_piece){start, end - start};
    return true;
}

/* One cut in the making: parts arrive in order, alternately or repeatedly matching. */
typedef struct cutter {
    rt_pieces *out;
    rt_split_behaviour behaviour;
    size_t held_start, held_end; /* the piece that a later part may still join; empty: none */
    bool held_match;
} cutter;

/* Whether the new part joins the held piece. */
static bool part_joins(const cutter *cut, bool match) {
    switch (cut->behaviour) {
    case RT_SPLIT_MERGED_WITH_PREVIOUS: return match && !cut->held_match;
    case RT_SPLIT_MERGED_WITH_NEXT: return !match && cut->held_match;
    case RT_SPLIT_CONTIGUOUS: return match == cut->held_match;
    default: return false;
    }
}

static bool add_part(cutter *cut, size_t start, size_t end, bool match) {
    if (start == end) return true;
    if (cut->behaviour == RT_SPLIT_REMOVED) return match || push_piece(cut->out, start, end);
    if (cut->held_end > cut->held_start && part_joins(cut, match)) {
        cut->held_end = end;
    } else {
        if (!push_piece(cut->out, cut->held_start, cut->held_end)) return false;
        cut->held_start = start;
        cut->held_end = end;
    }
    cut->held_match = match;
    return true;
}

static int match_at(const pcre2_code *pattern, const char *text, size_t length, size_t from, pcre2_match_data *data,
                    pcre2_match_context *context) {
    int found = pcre2_match(pattern, (PCRE2_SPTR)text, length, from, PCRE2_NO_UTF_CHECK, data, context);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
        found = pcre2_match(pattern, (PCRE2_SPTR)text, length, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, context);
    }
    return found;
}

/* Cuts text[start..start+length) and appends the pieces to *out. */
static bis_status split_piece(const rt_pre_step *step, const char *base, rt_piece piece, pcre2_match_data *data,
                              pcre2_match_context *context, rt_pieces *out, bis_error *error) {
    const char *text = base + piece.start;
    cutter cut = {out, step->behaviour, piece.start, piece.start, false};
    const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(data);
    bool ok = true;
    for (size_t from = 0, done = 0; ok;) {
        int found = from <= piece.length ? match_at(step->pattern, text, piece.length, from, data, context)
                                         : PCRE2_ERROR_NOMATCH;
        if (found == PCRE2_ERROR_NOMATCH) {
            ok = add_part(&cut, piece.start + done, piece.start + piece.length, step->invert) &&
                 push_piece(out, cut.held_start, cut.held_end);
            break;
        }
        if (found == PCRE2_ERROR_NOMEMORY) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the pre-tokenizer");
        if (found < 0) {
            return bis_fail(error, BIS_ERR_LIMIT, "the tokenizer's split pattern needs too many steps on this text");
        }
        size_t start = bounds[0], end = bounds[1];
        if (start < done) start = done; /* \K can move the start */
        if (end < start) end = start;
        ok = add_part(&cut, piece.start + done, piece.start + start, step->invert) &&
             add_part(&cut, piece.start + start, piece.start + end, !step->invert);
        uint32_t c;
        from = end > from || end > start ? end : end + bis_utf8_decode(text + end, piece.length - end, &c);
        if (from == end && end == start && end >= piece.length) from = piece.length + 1;
        done = end;
    }
    return ok ? BIS_OK : bis_fail(error, BIS_ERR_NOMEM, "no memory for the pre-tokenizer");
}

static bis_status split_pieces(const rt_pre_step *step, const rt_pieces *in, rt_pieces *out, bis_error *error) {
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    bis_status status = BIS_OK;
    if (!context || !data) {
        status = bis_fail(error, BIS_ERR_NOMEM, "no memory for the pre-tokenizer");
    } else {
        pcre2_set_match_limit(context, MATCH_STEPS_MAX);
        pcre2_set_heap_limit(context, MATCH_HEAP_KIB_MAX);
    }
    for (size_t i = 0; !status && i < in->count; i++) {
        status = split_piece(step, in->text.data, in->list[i], data, context, out, error);
    }
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    return status;
}

static bool wants_prefix(const rt_pre_step *step, const char *text, size_t length, bool at_start) {
    size_t prefix_length = strlen(step->text);
    if (step->rule == RT_PREFIX_FIRST && !at_start) return false;
    return length < prefix_length || memcmp(text, step->text, prefix_length) != 0;
}

/* Rewrites the pieces one by one into out->text. */
static bis_status rewrite_pieces(const rt_pre_step *step, const rt_pieces *in, bool at_start, rt_pieces *out,
                                 bis_error *error) {
    bool ok = true;
    for (size_t i = 0; ok && i < in->count; i++) {
        const char *text = in->text.data + in->list[i].start;
        size_t length = in->list[i].length, start = out->text.length;
        if (step->kind == STEP_PREFIX) {
            if (wants_prefix(step, text, length, at_start && i == 0)) bis_buf_puts(&out->text, step->text);
            bis_buf_append(&out->text, text, length);
        } else {
            for (size_t done = 0; done < length;) {
                const char *space = memchr(text + done, ' ', length - done);
                size_t plain = space ? (size_t)(space - text) - done : length - done;
                bis_buf_append(&out->text, text + done, plain);
                if (space) bis_buf_puts(&out->text, step->text);
                done += plain + (space != NULL);
            }
        }
        ok = !out->text.failed && push_piece(out, start, out->text.length);
    }
    return ok ? BIS_OK : bis_fail(error, BIS_ERR_NOMEM, "no memory for the pre-tokenizer");
}

bis_status rt_pretokenizer_apply(const rt_pretokenizer *pretokenizer, const char *text, size_t length, bool at_start,
                                 rt_pieces *out, bis_error *error) {
    bis_buf_clear(&out->text);
    out->count = 0;
    if (!bis_buf_append(&out->text, text, length) || !push_piece(out, 0, length)) {
        return bis_fail(error, BIS_ERR_NOMEM, "no memory for the pre-tokenizer");
    }
    bis_status status = BIS_OK;
    rt_pieces next = {0};
    for (size_t i = 0; !status && i < pretokenizer->count; i++) {
        const rt_pre_step *step = &pretokenizer->steps[i];
        next.count = 0;
        bis_buf_clear(&next.text);
        status = step->kind == STEP_SPLIT ? split_pieces(step, out, &next, error)
                                          : rewrite_pieces(step, out, at_start, &next, error);
        rt_pieces swap = *out;
        *out = next;
        next = swap;
        if (step->kind == STEP_SPLIT) { /* cutting leaves the text where it is */
            bis_buf keep = next.text;
            next.text = out->text;
            out->text = keep;
        }
    }
    rt_pieces_free(&next);
    return status;
}

void rt_pretokenizer_free(rt_pretokenizer *pretokenizer) {
    for (size_t i = 0; i < pretokenizer->count; i++) {
        pcre2_code_free(pretokenizer->steps[i].pattern);
        bis_free(pretokenizer->steps[i].text);
    }
    bis_free(pretokenizer->steps);
    *pretokenizer = (rt_pretokenizer){0};
}

void rt_pieces_free(rt_pieces *pieces) {
    bis_buf_free(&pieces->text);
    bis_free(pieces->list);
    *pieces = (rt_pieces){0};
}
