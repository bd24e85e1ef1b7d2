/* Token ids back to text: one token's bytes, a whole sequence, and piece by piece while generating.
 *
 * Both ways share one rule for bytes that form no character, so that the pieces of the incremental
 * decoder join to the full text: with a byte-level vocabulary every longest unfinished character
 * becomes one U+FFFD, with byte fallback every single byte does (as the usual implementations do).
 */
#include <string.h>

#include "common/utf8.h"
#include "runtime/tokenizer/tokenizer_internal.h"

static const char REPLACEMENT[] = "\xef\xbf\xbd";

/* A byte-level token back to its bytes. A token with a character outside the alphabet (some added
 * ones) is plain text. Returns 0 where more than RT_TOKEN_TEXT_MAX bytes would come out. */
static size_t from_alphabet(const rt_tokenizer *tokenizer, const char *text, size_t length,
                            char out[RT_TOKEN_TEXT_MAX]) {
    size_t bytes = 0;
    for (size_t at = 0; at < length;) {
        uint32_t c;
        at += bis_utf8_decode(text + at, length - at, &c);
        if (c >= RT_BYTE_CHARACTERS || tokenizer->byte_of_character[c] < 0) {
            bytes = length <= RT_TOKEN_TEXT_MAX ? length : 0;
            memcpy(out, text, bytes);
            return bytes;
        }
        if (bytes == RT_TOKEN_TEXT_MAX) return 0;
        out[bytes++] = (char)tokenizer->byte_of_character[c];
    }
    return bytes;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

/* The value of "<0x0A>", or -1. */
static int fallback_byte(const char *text, size_t length) {
    if (length != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') return -1;
    int high = hex_digit(text[3]), low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* Replaces in place; `to` is never longer than `from`. */
static size_t replace_all(char *text, size_t length, const char *from, const char *to) {
    size_t from_length = strlen(from), to_length = strlen(to), written = 0;
    for (size_t at = 0; at < length;) {
        if (length - at >= from_length && memcmp(text + at, from, from_length) == 0) {
            memcpy(text + written, to, to_length);
            written += to_length;
            at += from_length;
        } else {
            text[written++] = text[at++];
        }
    }
    return written;
}

size_t rt_token_text(const rt_tokenizer *tokenizer, int32_t id, bool first, char out[RT_TOKEN_TEXT_MAX]) {
    const rt_decode_rules *rules = &tokenizer->decode;
    size_t length;
    const char *text = rt_vocab_text(&tokenizer->vocab, id, &length);
    if (!text) return 0;
    if (rules->byte_level) return from_alphabet(tokenizer, text, length, out);
    if (length > RT_TOKEN_TEXT_MAX) return 0;
    memcpy(out, text, length);
    for (size_t i = 0; i < rules->replace_count; i++) {
        const char *to = first && rules->first_token_strip ? "" : rules->replace[i].to;
        length = replace_all(out, length, rules->replace[i].from, to);
    }
    int byte = rules->byte_fallback ? fallback_byte(out, length) : -1;
    if (byte < 0) return length;
    out[0] = (char)byte;
    return 1;
}

size_t rt_tokenizer_token_bytes(const rt_tokenizer *tokenizer, int32_t id, char out[RT_TOKEN_TEXT_MAX]) {
    return rt_token_text(tokenizer, id, false, out);
}

void rt_decoder_start(rt_decoder *decoder, const rt_tokenizer *tokenizer, bool skip_special) {
    *decoder = (rt_decoder){.tokenizer = tokenizer, .skip_special = skip_special};
}

/* How many bytes at text[0..length), which begin no valid character, one U+FFFD stands for. */
static size_t broken_length(const rt_tokenizer *tokenizer, const char *text, size_t length) {
    size_t bytes = 1;
    if (!tokenizer->decode.byte_level) return bytes;
    /* The longest start of a valid character; its last byte is the one that more bytes could follow. */
    for (size_t n = 2; n <= 3 && n <= length; n++) {
        if (bis_utf8_complete_prefix(text, n) == 0) bytes = n;
    }
    return bytes;
}

/* Writes the characters of text[0..length) and U+FFFD for what is none. */
static size_t write_characters(const rt_tokenizer *tokenizer, const char *text, size_t length, char *out) {
    size_t written = 0;
    for (size_t at = 0; at < length;) {
        uint32_t c;
        size_t bytes = bis_utf8_decode(text + at, length - at, &c);
        if (bytes) {
            memcpy(out + written, text + at, bytes);
            written += bytes;
            at += bytes;
        } else {
            memcpy(out + written, REPLACEMENT, 3);
            written += 3;
            at += broken_length(tokenizer, text + at, length - at);
        }
    }
    return written;
}

static size_t push_token(rt_decoder *decoder, int32_t id, bool first, char out[RT_DECODER_TEXT_MAX]) {
    const rt_tokenizer *tokenizer = decoder->tokenizer;
    if (decoder->skip_special && rt_tokenizer_is_special(tokenizer, id)) return 0;
    char text[4 + RT_TOKEN_TEXT_MAX];
    size_t held = decoder->pending_length;
    memcpy(text, decoder->pending, held);
    size_t length = held + rt_token_text(tokenizer, id, first, text + held);
    size_t complete = bis_utf8_complete_prefix(text, length);
    decoder->pending_length = (unsigned)(length - complete);
    memcpy(decoder->pending, text + complete, length - complete);
    return write_characters(tokenizer, text, complete, out);
}

size_t rt_decoder_push(rt_decoder *decoder, int32_t id, char out[RT_DECODER_TEXT_MAX]) {
    return push_token(decoder, id, false, out);
}

size_t rt_decoder_finish(rt_decoder *decoder, char out[RT_DECODER_TEXT_MAX]) {
    size_t length = decoder->pending_length;
    decoder->pending_length = 0;
    return write_characters(decoder->tokenizer, (const char *)decoder->pending, length, out);
}

bis_status rt_tokenizer_decode(const rt_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special,
                               bis_buf *out, bis_error *error) {
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= tokenizer->vocab.size) {
            return bis_fail(error, BIS_ERR_INVALID, "token id %d is outside the vocabulary of %d tokens", ids[i],
                            tokenizer->vocab.size);
        }
    }
    rt_decoder decoder;
    rt_decoder_start(&decoder, tokenizer, skip_special);
    char text[RT_DECODER_TEXT_MAX];
    size_t strip = tokenizer->decode.strip_count, start = out->length;
    bool first = true;
    for (size_t i = 0; i <= count; i++) {
        bool skipped = i < count && skip_special && rt_tokenizer_is_special(tokenizer, ids[i]);
        if (skipped) continue;
        size_t length = i < count ? push_token(&decoder, ids[i], first, text) : rt_decoder_finish(&decoder, text);
        size_t drop = 0;
        first = false;
        while (strip > 0 && drop < length && text[drop] == tokenizer->decode.strip) {
            drop++;
            strip--;
        }
        if (drop < length) strip = 0; /* the text has begun */
        if (!bis_buf_append(out, text + drop, length - drop)) {
            if (out->data) out->data[out->length = start] = '\0';
            return bis_fail(error, BIS_ERR_NOMEM, "no memory for the text");
        }
    }
    return BIS_OK;
}
