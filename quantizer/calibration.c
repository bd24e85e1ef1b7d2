#include "quantizer/calibration.h"

#include <string.h>

#include "common/alloc.h"
#include "common/file.h"

enum { TEXT_MAX = 1 << 30, PROMPT_MAX = 1 << 24, USUAL_SEQ_LEN = 2048 };

uint64_t qz_hash(uint64_t hash, const void *bytes, size_t size) {
    const unsigned char *at = bytes;
    for (size_t i = 0; i < size; i++) hash = (hash ^ at[i]) * 0x100000001b3u;
    return hash;
}

/* ---- Windows ---- */

/* SplitMix64. */
static uint64_t random_next(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* The bias of the remainder is below 2^-32 for any text that fits in memory. */
static uint64_t random_below(uint64_t *state, uint64_t limit) { return random_next(state) % limit; }

/* The first `wanted` of a random order of 0 .. count - 1. */
static bis_status choose(uint64_t count, int wanted, uint64_t *state, uint64_t *out, bis_error *error) {
    uint64_t *places = bis_reallocarray(NULL, (size_t)count, sizeof *places);
    if (!places) return bis_fail(error, BIS_ERR_NOMEM, "no memory to choose the calibration windows");
    for (uint64_t i = 0; i < count; i++) places[i] = i;
    for (int i = 0; i < wanted; i++) {
        uint64_t other = (uint64_t)i + random_below(state, count - (uint64_t)i);
        out[i] = places[other];
        places[other] = places[i];
    }
    bis_free(places);
    return BIS_OK;
}

bis_status qz_calibration_draw(uint64_t tokens, int window, int samples, uint64_t seed, uint64_t *starts,
                               bis_error *error) {
    uint64_t size = (uint64_t)window, count = (uint64_t)samples;
    uint64_t least = size + (count - 1) * ((size + 1) / 2);
    if (tokens < least) {
        return bis_fail(error, BIS_ERR_INVALID,
                        "the calibration text has %llu tokens, but %d windows of %d need at least %llu (%llu to not "
                        "overlap): give more text, fewer --samples or a shorter --seq-len",
                        (unsigned long long)tokens, samples, window, (unsigned long long)least,
                        (unsigned long long)(count * size));
    }
    uint64_t state = seed, places = tokens / size, stride = size;
    if (places < count) {
        places = count;
        stride = count > 1 ? (tokens - size) / (count - 1) : size;
    }
    uint64_t spare = tokens - size - (places - 1) * stride;
    uint64_t offset = random_below(&state, spare + 1);
    bis_status status = choose(places, samples, &state, starts, error);
    for (int i = 0; !status && i < samples; i++) starts[i] = starts[i] * stride + offset;
    return status;
}

/* ---- Reading ---- */

static bis_status encode_file(const char *path, size_t limit, const rt_tokenizer *tokenizer, int vocab, rt_tokens *out,
                              uint64_t *hash, bis_error *error) {
    bis_buf text = {0};
    bis_status status = bis_read_file(path, limit, &text, error);
    if (!status) {
        *hash = qz_hash(QZ_HASH_START, bis_buf_cstr(&text), text.length);
        status = rt_tokenizer_encode(tokenizer, bis_buf_cstr(&text), text.length, RT_ENCODE_PARSE_SPECIAL, out, error);
    }
    bis_buf_free(&text);
    for (size_t i = 0; !status && i < out->count; i++) {
        if (out->ids[i] < vocab) continue;
        status = bis_fail(error, BIS_ERR_FORMAT, "the tokenizer gives id %d, but vocab_size is %d", out->ids[i], vocab);
    }
    return status;
}

/* The token that the tokenizer puts before any text, or -1. */
static bis_status find_first_token(const rt_tokenizer *tokenizer, int vocab, int32_t *out, bis_error *error) {
    rt_tokens tokens = {0};
    bis_status status = rt_tokenizer_encode(tokenizer, "", 0, RT_ENCODE_ADD_SPECIAL, &tokens, error);
    int32_t bos = rt_tokenizer_bos(tokenizer);
    bool adds = !status && bos >= 0 && bos < vocab && tokens.count > 0 && tokens.ids[0] == bos;
    rt_tokens_free(&tokens);
    if (!status) *out = adds ? bos : -1;
    return status;
}

static bis_status read_prompt(const qz_calibration_options *options, const rt_tokenizer *tokenizer, int32_t first,
                              qz_calibration *c, bis_error *error) {
    rt_tokens tokens = {0};
    bis_status status =
        encode_file(options->prompt, PROMPT_MAX, tokenizer, options->vocab, &tokens, &c->prompt_hash, error);
    bool own_first = first >= 0 && tokens.count > 0 && tokens.ids[0] == first;
    size_t added = first >= 0 && !own_first;
    if (!status && (tokens.count == 0 || tokens.count + added + 2 > (size_t)options->context)) {
        status =
            bis_fail(error, BIS_ERR_INVALID, "the prompt %s has %zu tokens: give 1 to %d, the model's context is %d",
                     options->prompt, tokens.count, options->context - 3, options->context);
    }
    if (!status) c->prompt = bis_reallocarray(NULL, tokens.count + added, sizeof *c->prompt);
    if (!status && !c->prompt) status = bis_fail(error, BIS_ERR_NOMEM, "no memory for the prompt's tokens");
    if (!status) {
        if (added) c->prompt[0] = first;
        memcpy(c->prompt + added, tokens.ids, tokens.count * sizeof *tokens.ids);
        c->prompt_tokens = (int)(tokens.count + added);
    }
    rt_tokens_free(&tokens);
    return status;
}

static bis_status choose_length(const qz_calibration_options *options, qz_calibration *c, bis_error *error) {
    int room = options->context - c->prompt_tokens;
    c->tokens = options->seq_len ? options->seq_len : USUAL_SEQ_LEN < room ? USUAL_SEQ_LEN : room;
    if (c->tokens >= 2 && c->tokens <= room) return BIS_OK;
    if (!c->prompt_tokens) {
        return bis_fail(error, BIS_ERR_INVALID, "--seq-len is %d: use 2 to %d, the model's context", c->tokens, room);
    }
    return bis_fail(error, BIS_ERR_INVALID,
                    "--seq-len is %d: use 2 to %d, what the prompt's %d tokens leave of the "
                    "context of %d",
                    c->tokens, room, c->prompt_tokens, options->context);
}

static bis_status draw_windows(const qz_calibration_options *options, const rt_tokens *text, int32_t first,
                               qz_calibration *c, bis_error *error) {
    int before = first >= 0 && !c->prompt_tokens, window = c->tokens - before;
    uint64_t *starts = bis_reallocarray(NULL, (size_t)options->samples, sizeof *starts);
    c->ids = bis_reallocarray(NULL, (size_t)options->samples * (size_t)c->tokens, sizeof *c->ids);
    bis_status status = BIS_OK;
    if (!starts || !c->ids) status = bis_fail(error, BIS_ERR_NOMEM, "no memory for the calibration windows");
    if (!status) {
        status = qz_calibration_draw(text->count, window, options->samples, options->seed, starts, error);
    }
    for (int i = 0; !status && i < options->samples; i++) {
        int32_t *ids = c->ids + (size_t)i * (size_t)c->tokens;
        if (before) ids[0] = first;
        memcpy(ids + before, text->ids + starts[i], (size_t)window * sizeof *ids);
    }
    bis_free(starts);
    c->samples = options->samples;
    return status;
}

bis_status qz_calibration_read(const qz_calibration_options *options, const rt_tokenizer *tokenizer,
                               qz_calibration *out, bis_error *error) {
    qz_calibration c = {0};
    rt_tokens text = {0};
    int32_t first = -1;
    bis_status status = find_first_token(tokenizer, options->vocab, &first, error);
    if (!status && options->prompt) status = read_prompt(options, tokenizer, first, &c, error);
    if (!status) status = choose_length(options, &c, error);
    if (!status) status = encode_file(options->text, TEXT_MAX, tokenizer, options->vocab, &text, &c.text_hash, error);
    if (!status) {
        c.text_tokens = text.count;
        status = draw_windows(options, &text, first, &c, error);
        if (status == BIS_ERR_INVALID) status = bis_fail_within(error, "%s", options->text);
    }
    rt_tokens_free(&text);
    if (status) qz_calibration_free(&c);
    else *out = c;
    return status;
}

void qz_calibration_free(qz_calibration *calibration) {
    bis_free(calibration->ids);
    bis_free(calibration->prompt);
    *calibration = (qz_calibration){0};
}
