#include "runtime/tokenizer/tokenizer_normalizer.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "common/alloc.h"

bool rt_normalizer_add(rt_normalizer *normalizer, rt_normal_kind kind, const char *from, const char *to) {
    rt_normal_step *steps = bis_reallocarray(normalizer->steps, normalizer->count + 1, sizeof *steps);
    if (!steps) return false;
    normalizer->steps = steps;
    rt_normal_step step = {kind, from ? bis_strdup(from) : NULL, to ? bis_strdup(to) : NULL};
    if ((from && !step.from) || (to && !step.to)) {
        bis_free(step.from);
        bis_free(step.to);
        return false;
    }
    steps[normalizer->count++] = step;
    return true;
}

static bool replace_all(const rt_normal_step *step, const char *text, size_t length, bis_buf *out) {
    size_t from_length = strlen(step->from), done = 0;
    const char *hit;
    while ((hit = memmem(text + done, length - done, step->from, from_length)) != NULL) {
        bis_buf_append(out, text + done, (size_t)(hit - text) - done);
        bis_buf_puts(out, step->to);
        done = (size_t)(hit - text) + from_length;
    }
    return bis_buf_append(out, text + done, length - done);
}

/* True where every normal form leaves the text as it is: ASCII only. */
static bool is_ascii(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)text[i] >= 0x80) return false;
    }
    return true;
}

static bool normal_form(rt_normal_kind kind, const char *text, size_t length, bis_buf *out) {
    if (is_ascii(text, length)) return bis_buf_append(out, text, length);
    int options = UTF8PROC_STABLE;
    options |= kind == RT_NORMAL_NFC || kind == RT_NORMAL_NFKC ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
    if (kind == RT_NORMAL_NFKC || kind == RT_NORMAL_NFKD) options |= UTF8PROC_COMPAT;
    utf8proc_uint8_t *result = NULL;
    utf8proc_ssize_t bytes =
        utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)length, &result, (utf8proc_option_t)options);
    if (bytes < 0) return false; /* the text is valid UTF-8, so only memory can be missing */
    bool ok = bis_buf_append(out, result, (size_t)bytes);
    free(result);
    return ok;
}

static bool apply_step(const rt_normal_step *step, const char *text, size_t length, bool continues, bis_buf *out) {
    switch (step->kind) {
    case RT_NORMAL_PREPEND:
        if (length > 0 && !continues) bis_buf_puts(out, step->to);
        return bis_buf_append(out, text, length);
    case RT_NORMAL_REPLACE: return replace_all(step, text, length, out);
    default: return normal_form(step->kind, text, length, out);
    }
}

bis_status rt_normalizer_apply(const rt_normalizer *normalizer, const char *text, size_t length, bool continues,
                               bis_buf *out) {
    bis_buf_clear(out);
    if (normalizer->count == 0) return bis_buf_append(out, text, length) ? BIS_OK : BIS_ERR_NOMEM;
    bis_buf other = {0};
    bool ok = true;
    for (size_t i = 0; ok && i < normalizer->count; i++) {
        bis_buf_clear(&other);
        ok = apply_step(&normalizer->steps[i], text, length, continues, &other);
        bis_buf swap = *out;
        *out = other;
        other = swap;
        text = bis_buf_cstr(out);
        length = out->length;
    }
    bis_buf_free(&other);
    return ok ? BIS_OK : BIS_ERR_NOMEM;
}

void rt_normalizer_free(rt_normalizer *normalizer) {
    for (size_t i = 0; i < normalizer->count; i++) {
        bis_free(normalizer->steps[i].from);
        bis_free(normalizer->steps[i].to);
    }
    bis_free(normalizer->steps);
    *normalizer = (rt_normalizer){0};
}
