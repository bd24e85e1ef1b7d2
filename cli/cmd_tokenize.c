/* bisup tokenize: text on standard input to token ids, or with --decode the other way. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/cli.h"

enum { INPUT_MAX = 1 << 28 };

static bis_status read_input(bis_buf *text, bis_error *error) {
    char block[65536];
    size_t n;
    while ((n = fread(block, 1, sizeof block, stdin)) > 0) {
        if (text->length + n > INPUT_MAX) return bis_fail(error, BIS_ERR_LIMIT, "standard input has more than 256 MB");
        if (!bis_buf_append(text, block, n)) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the text");
    }
    return ferror(stdin) ? bis_fail(error, BIS_ERR_IO, "standard input cannot be read") : BIS_OK;
}

/* One token a line: its id and its text; or {"tokens":[...],"count":n}. */
static bis_status encode(const rt_tokenizer *tokenizer, const cfg_options *options, const bis_buf *text, bis_buf *out,
                         bis_error *error) {
    rt_tokens tokens = {0};
    unsigned flags =
        (options->add_special ? RT_ENCODE_ADD_SPECIAL : 0) | (options->parse_special ? RT_ENCODE_PARSE_SPECIAL : 0);
    bis_status status = rt_tokenizer_encode(tokenizer, bis_buf_cstr(text), text->length, flags, &tokens, error);
    if (options->json) bis_buf_puts(out, "{\"tokens\":[");
    for (size_t i = 0; i < tokens.count && !status; i++) {
        if (options->json) {
            bis_buf_printf(out, "%s%d", i ? "," : "", tokens.ids[i]);
            continue;
        }
        char bytes[RT_TOKEN_TEXT_MAX];
        size_t length = rt_tokenizer_token_bytes(tokenizer, tokens.ids[i], bytes);
        bis_buf_printf(out, "%d\t", tokens.ids[i]);
        bis_buf_json_string(out, bytes, length);
        bis_buf_putc(out, '\n');
    }
    if (options->json) bis_buf_printf(out, "],\"count\":%zu}\n", tokens.count);
    rt_tokens_free(&tokens);
    return status;
}

/* Numbers separated by anything that is not part of a number: lists, JSON arrays and lines all work. */
static bis_status read_ids(const char *text, rt_tokens *tokens, bis_error *error) {
    for (const char *p = text; *p;) {
        if ((*p < '0' || *p > '9') && *p != '-') {
            p++;
            continue;
        }
        char *end;
        errno = 0;
        long id = strtol(p, &end, 10);
        if (end == p || errno || id < 0 || id > INT32_MAX) {
            return bis_fail(error, BIS_ERR_INVALID, "'%.20s' is not a token id", p);
        }
        if (!rt_tokens_append(tokens, (int32_t)id)) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the ids");
        p = end;
    }
    return BIS_OK;
}

static bis_status decode(const rt_tokenizer *tokenizer, const cfg_options *options, const bis_buf *text, bis_buf *out,
                         bis_error *error) {
    rt_tokens tokens = {0};
    bis_buf decoded = {0};
    bis_status status = read_ids(bis_buf_cstr(text), &tokens, error);
    if (!status) status = rt_tokenizer_decode(tokenizer, tokens.ids, tokens.count, false, &decoded, error);
    if (!status && options->json) {
        bis_buf_puts(out, "{\"text\":");
        bis_buf_json_string(out, bis_buf_cstr(&decoded), decoded.length);
        bis_buf_puts(out, "}\n");
    } else if (!status) {
        bis_buf_append(out, bis_buf_cstr(&decoded), decoded.length);
        bis_buf_putc(out, '\n');
    }
    bis_buf_free(&decoded);
    rt_tokens_free(&tokens);
    return status;
}

int cli_tokenize(const cfg_options *options) {
    rt_tokenizer *tokenizer;
    bis_error error;
    bis_buf text = {0}, out = {0};
    if (rt_tokenizer_open(options->model, &tokenizer, &error)) return cli_fail(&error);
    bis_status status = read_input(&text, &error);
    if (!status) {
        status = options->decode ? decode(tokenizer, options, &text, &out, &error)
                                 : encode(tokenizer, options, &text, &out, &error);
    }
    rt_tokenizer_close(tokenizer);
    bis_buf_free(&text);
    if (!status) return cli_print(&out);
    bis_buf_free(&out);
    return cli_fail(&error);
}
