/* Opening a tokenizer, encoding, and what it knows about its tokens. Decoding: tokenizer_decoder.c. */
#include "runtime/tokenizer/tokenizer.h"

#include <string.h>
#include <sys/stat.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/utf8.h"
#include "runtime/tokenizer/tokenizer_internal.h"

enum { PATH_BYTES = 4096 };

bool rt_tokens_append(rt_tokens *tokens, int32_t id) {
    if (tokens->count == tokens->capacity) {
        size_t capacity = tokens->capacity ? tokens->capacity * 2 : 64;
        int32_t *ids = bis_reallocarray(tokens->ids, capacity, sizeof *ids);
        if (!ids) return false;
        tokens->ids = ids;
        tokens->capacity = capacity;
    }
    tokens->ids[tokens->count++] = id;
    return true;
}

void rt_tokens_free(rt_tokens *tokens) {
    bis_free(tokens->ids);
    *tokens = (rt_tokens){0};
}

/* ---- opening ---- */

/* Printable Latin-1 characters stand for themselves, the other bytes for U+0100 upwards. */
static void fill_byte_alphabet(rt_tokenizer *tokenizer) {
    uint16_t next = 256;
    for (int i = 0; i < RT_BYTE_CHARACTERS; i++) tokenizer->byte_of_character[i] = -1;
    for (uint16_t byte = 0; byte < 256; byte++) {
        bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
        uint16_t character = printable ? byte : next++;
        tokenizer->character_of_byte[byte] = character;
        tokenizer->byte_of_character[character] = (int16_t)byte;
    }
}

bis_status rt_put_added_token(rt_tokenizer *tokenizer, const char *content, const rt_added_token *flags,
                              bis_error *error) {
    rt_added_token token = *flags;
    int32_t known = rt_vocab_find(&tokenizer->vocab, content, strlen(content));
    bis_status status = BIS_OK;
    if (known >= 0) token.id = known;
    else status = rt_vocab_add(&tokenizer->vocab, content, strlen(content), token.id, error);
    return status ? status : rt_added_put(&tokenizer->added, content, &token, error);
}

static void find_byte_tokens(rt_tokenizer *tokenizer) {
    static const char hex[] = "0123456789ABCDEF";
    tokenizer->has_all_bytes = tokenizer->type != RT_TYPE_BPE || tokenizer->byte_fallback;
    for (unsigned byte = 0; byte < 256; byte++) {
        char text[] = "<0x00>";
        size_t length = 6;
        if (tokenizer->type == RT_TYPE_BYTE_BPE) length = bis_utf8_encode(tokenizer->character_of_byte[byte], text);
        else {
            text[3] = hex[byte >> 4];
            text[4] = hex[byte & 15];
        }
        tokenizer->byte_ids[byte] = rt_vocab_find(&tokenizer->vocab, text, length);
        if (tokenizer->byte_ids[byte] < 0) tokenizer->has_all_bytes = false;
    }
}

/* Every token must fit where its text is decoded to. */
static bis_status check_token_lengths(const rt_tokenizer *tokenizer, bis_error *error) {
    char text[RT_TOKEN_TEXT_MAX];
    for (int32_t id = 0; id < tokenizer->vocab.size; id++) {
        size_t length;
        const char *spelled = rt_vocab_text(&tokenizer->vocab, id, &length);
        if (spelled && length > RT_TOKEN_TEXT_MAX && rt_token_text(tokenizer, id, false, text) == 0) {
            return bis_fail(error, BIS_ERR_LIMIT, "token %d ('%.40s...') decodes to more than %d bytes", id, spelled,
                            RT_TOKEN_TEXT_MAX);
        }
    }
    return BIS_OK;
}

static bis_status finish_loading(rt_tokenizer *tokenizer, const rt_side *side, bis_error *error) {
    bis_status status = rt_side_apply(side, tokenizer, error);
    if (status) return status;
    find_byte_tokens(tokenizer);
    status = check_token_lengths(tokenizer, error);
    return status ? status : rt_added_build(&tokenizer->added, &tokenizer->normalizer, error);
}

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

static bool has_file(const char *folder, const char *name, char path[PATH_BYTES]) {
    return bis_join_path(folder, name, path, PATH_BYTES, NULL) == BIS_OK && bis_file_exists(path);
}

static bis_status load_folder(rt_tokenizer *tokenizer, const char *folder, const rt_side *side, bis_error *error) {
    char path[PATH_BYTES];
    if (has_file(folder, "tokenizer.json", path)) return rt_load_tokenizer_json(tokenizer, path, error);
    if (has_file(folder, "tokenizer.model", path)) return rt_load_sentencepiece(tokenizer, path, side, error);
    if (has_file(folder, "vocab.json", path) && has_file(folder, "merges.txt", path)) {
        return rt_load_vocab_merges(tokenizer, folder, side, error);
    }
    return bis_fail(error, BIS_ERR_NOT_FOUND,
                    "%s has no tokenizer: tokenizer.json, tokenizer.model, or vocab.json with merges.txt is needed",
                    folder);
}

static bis_status load(rt_tokenizer *tokenizer, const char *path, bis_error *error) {
    struct stat info;
    rt_side side = {.legacy = -1, .add_prefix_space = -1, .add_bos = -1, .add_eos = -1, .bos_id = -1};
    bis_status status;
    if (stat(path, &info) != 0) return bis_fail(error, BIS_ERR_NOT_FOUND, "cannot find %s", path);
    if (S_ISDIR(info.st_mode)) {
        status = rt_side_read(path, &side, error);
        if (!status) status = load_folder(tokenizer, path, &side, error);
    } else if (ends_with(path, ".json")) {
        status = rt_load_tokenizer_json(tokenizer, path, error);
    } else {
        status = rt_load_sentencepiece(tokenizer, path, &side, error);
    }
    if (!status) status = finish_loading(tokenizer, &side, error);
    rt_side_free(&side);
    return status;
}

bis_status rt_tokenizer_open(const char *folder, rt_tokenizer **out, bis_error *error) {
    rt_tokenizer *tokenizer = bis_calloc(1, sizeof *tokenizer);
    if (!tokenizer) return bis_fail(error, BIS_ERR_NOMEM, "no memory for the tokenizer");
    tokenizer->unknown = tokenizer->bos = -1;
    fill_byte_alphabet(tokenizer);
    bis_status status = load(tokenizer, folder, error);
    if (status) {
        rt_tokenizer_close(tokenizer);
        return status;
    }
    *out = tokenizer;
    return BIS_OK;
}

void rt_tokenizer_close(rt_tokenizer *tokenizer) {
    if (!tokenizer) return;
    rt_vocab_free(&tokenizer->vocab);
    rt_added_free(&tokenizer->added);
    rt_normalizer_free(&tokenizer->normalizer);
    rt_pretokenizer_free(&tokenizer->pretokenizer);
    rt_bpe_free(&tokenizer->bpe);
    bis_free(tokenizer->user_defined);
    rt_spm_close(tokenizer->spm);
    bis_free(tokenizer->bos_text);
    bis_free(tokenizer->eos_text);
    bis_free(tokenizer);
}

/* ---- encoding ---- */

/* One call of rt_tokenizer_encode: the working memory and where ids go. */
typedef struct encoder {
    const rt_tokenizer *tokenizer;
    bool parse_special;
    rt_tokens *out;
    bis_error *error;
    bis_buf normalized, scratch;
    rt_pieces pieces;
    rt_bpe_work work;
} encoder;

static bis_status no_memory(const encoder *e) {
    return bis_fail(e->error, BIS_ERR_NOMEM, "no memory to tokenize the text");
}

static bis_status emit(encoder *e, int32_t id) { return rt_tokens_append(e->out, id) ? BIS_OK : no_memory(e); }

/* The whole word's id where the model looks words up before merging; else -1. */
static int32_t find_whole_word(encoder *e, const char *word, size_t length) {
    const rt_tokenizer *tokenizer = e->tokenizer;
    if (!tokenizer->ignore_merges || length > RT_TOKEN_TEXT_MAX) return -1;
    if (tokenizer->type != RT_TYPE_BYTE_BPE) return rt_vocab_find(&tokenizer->vocab, word, length);
    char spelled[2 * RT_TOKEN_TEXT_MAX + BIS_UTF8_MAX];
    size_t spelled_length = 0;
    for (size_t i = 0; i < length; i++) {
        spelled_length +=
            bis_utf8_encode(tokenizer->character_of_byte[(unsigned char)word[i]], spelled + spelled_length);
    }
    return rt_vocab_find(&tokenizer->vocab, spelled, spelled_length);
}

/* Pushes the symbols of one unit (a byte, or a character) that the vocabulary lacks: its bytes, or
 * the unknown token, or nothing. */
static bool push_unknown(encoder *e, const char *unit, size_t length, bool *after_unknown) {
    const rt_tokenizer *tokenizer = e->tokenizer;
    bool as_bytes = tokenizer->byte_fallback && tokenizer->type == RT_TYPE_BPE;
    for (size_t i = 0; as_bytes && i < length; i++) as_bytes = tokenizer->byte_ids[(unsigned char)unit[i]] >= 0;
    if (as_bytes) {
        for (size_t i = 0; i < length; i++) {
            if (!rt_bpe_push(&e->work, tokenizer->byte_ids[(unsigned char)unit[i]])) return false;
        }
        return true;
    }
    if (tokenizer->unknown < 0 || (*after_unknown && tokenizer->fuse_unknown)) return true;
    *after_unknown = true;
    return rt_bpe_push(&e->work, tokenizer->unknown);
}

static bool push_symbols(encoder *e, const char *word, size_t length) {
    const rt_tokenizer *tokenizer = e->tokenizer;
    bool by_bytes = tokenizer->type == RT_TYPE_BYTE_BPE, after_unknown = false;
    for (size_t at = 0, unit; at < length; at += unit) {
        uint32_t c;
        unit = by_bytes ? 1 : bis_utf8_decode(word + at, length - at, &c);
        int32_t id =
            by_bytes ? tokenizer->byte_ids[(unsigned char)word[at]] : rt_vocab_find(&tokenizer->vocab, word + at, unit);
        if (id >= 0) after_unknown = false;
        if (!(id >= 0 ? rt_bpe_push(&e->work, id) : push_unknown(e, word + at, unit, &after_unknown))) return false;
    }
    return true;
}

static bis_status encode_word(encoder *e, const char *word, size_t length) {
    if (length > RT_TEXT_MAX) { /* normalizing can lengthen a text; symbols are counted in 31 bits */
        return bis_fail(e->error, BIS_ERR_LIMIT, "the normalized text is longer than %d bytes", RT_TEXT_MAX);
    }
    int32_t whole = find_whole_word(e, word, length);
    if (whole >= 0) return emit(e, whole);
    e->work.count = 0;
    if (!push_symbols(e, word, length) || !rt_bpe_merge(&e->tokenizer->bpe, &e->work)) return no_memory(e);
    bis_status status = BIS_OK;
    for (size_t i = 0; !status && i < e->work.count; i++) status = emit(e, e->work.symbols[i].id);
    return status;
}

static bis_status encode_words(encoder *e, const char *text, size_t length, bool at_start) {
    if (length == 0) return BIS_OK;
    bis_status status =
        rt_pretokenizer_apply(&e->tokenizer->pretokenizer, text, length, at_start, &e->pieces, e->error);
    for (size_t i = 0; !status && i < e->pieces.count; i++) {
        status = encode_word(e, e->pieces.text.data + e->pieces.list[i].start, e->pieces.list[i].length);
    }
    return status;
}

/* Normalizes a part without raw added tokens, then seeks those of the normalized text. */
static bis_status encode_bpe(encoder *e, const char *text, size_t length, bool at_start, bool continues) {
    const rt_tokenizer *tokenizer = e->tokenizer;
    if (tokenizer->normalizer.count > 0) {
        bis_status status = rt_normalizer_apply(&tokenizer->normalizer, text, length, continues, &e->normalized);
        if (status) return no_memory(e);
        text = bis_buf_cstr(&e->normalized);
        length = e->normalized.length;
    }
    size_t done = 0;
    rt_added_match match;
    for (size_t from = 0; rt_added_next(&tokenizer->added, &tokenizer->added.normalized, text, length, from,
                                        e->parse_special, &match);) {
        from = match.resume;
        if (match.plain) continue;
        bis_status status = BIS_OK;
        if (match.start > done) status = encode_words(e, text + done, match.start - done, at_start && done == 0);
        if (!status) status = emit(e, match.token->id);
        if (status) return status;
        done = match.end;
    }
    return encode_words(e, text + done, length - done, at_start && done == 0);
}

static bool emit_piece(void *context, int32_t id) {
    encoder *e = context;
    return rt_tokens_append(e->out, id);
}

static bis_status encode_sentencepiece(encoder *e, const char *text, size_t length, bool at_start, bool continues) {
    const rt_tokenizer *tokenizer = e->tokenizer;
    bool prefixed =
        tokenizer->dummy_prefix == RT_DUMMY_ALWAYS ? !continues : tokenizer->dummy_prefix == RT_DUMMY_FIRST && at_start;
    if (prefixed && tokenizer->trims_spaces) { /* the dummy prefix stands for the spaces it removes */
        for (; length > 0 && *text == ' '; length--) text++;
        if (length == 0) return BIS_OK;
    }
    if (prefixed) {
        bis_buf_clear(&e->normalized);
        bis_buf_puts(&e->normalized, RT_SPACE_MARK);
        if (!bis_buf_append(&e->normalized, text, length)) return no_memory(e);
        text = e->normalized.data;
        length = e->normalized.length;
    }
    rt_spm_result result = rt_spm_encode(tokenizer->spm, text, length, emit_piece, e);
    if (result == RT_SPM_FAILED) {
        return bis_fail(e->error, BIS_ERR_INTERNAL, "the sentencepiece library could not encode the text");
    }
    return result == RT_SPM_DONE ? BIS_OK : no_memory(e);
}

/* Encodes a part between added tokens: its valid runs as text, and other bytes one by one. */
static bis_status encode_part(encoder *e, const char *text, size_t length, bool at_start, bool continues) {
    bis_status status = BIS_OK;
    for (size_t at = 0; !status && at < length;) {
        size_t run = 0, bytes;
        uint32_t c;
        while ((bytes = bis_utf8_decode(text + at + run, length - at - run, &c)) > 0) run += bytes;
        bool first = at_start && at == 0, goes_on = continues || at > 0;
        if (run == 0) status = emit(e, e->tokenizer->byte_ids[(unsigned char)text[at++]]);
        else if (e->tokenizer->spm) status = encode_sentencepiece(e, text + at, run, first, goes_on);
        else status = encode_bpe(e, text + at, run, first, goes_on);
        at += run;
    }
    return status;
}

/* Whether SentencePiece would find this token although it is to be plain text. */
static bool is_found_anyway(const rt_tokenizer *tokenizer, int32_t id) {
    return id < tokenizer->spm_size && tokenizer->user_defined[id];
}

/* Splits the text at the added tokens. A user-defined piece that is to be plain text is cut after its
 * first character, so that the library does not find it. */
static bis_status encode_text(encoder *e, const char *text, size_t length) {
    const rt_added *added = &e->tokenizer->added;
    bool continues = false;
    size_t done = 0, from = 0;
    bis_status status = BIS_OK;
    rt_added_match match;
    while (!status && rt_added_next(added, &added->raw, text, length, from, e->parse_special, &match)) {
        from = match.resume;
        if (match.plain && (match.start < done || !is_found_anyway(e->tokenizer, match.token->id))) continue;
        uint32_t c;
        size_t end = match.start;
        if (match.plain) end += bis_utf8_decode(text + end, length - end, &c);
        if (end > done) status = encode_part(e, text + done, end - done, done == 0, continues);
        if (!status && !match.plain) status = emit(e, match.token->id);
        done = match.plain ? end : match.end;
        continues = match.plain;
    }
    return status ? status : encode_part(e, text + done, length - done, done == 0, continues);
}

/* A copy in which every invalid byte is U+FFFD, for vocabularies that cannot spell bytes. */
static bool replace_invalid(const char *text, size_t length, bis_buf *out) {
    for (size_t at = 0, bytes; at < length; at += bytes ? bytes : 1) {
        uint32_t c;
        bytes = bis_utf8_decode(text + at, length - at, &c);
        if (bytes) bis_buf_append(out, text + at, bytes);
        else bis_buf_puts(out, "\xef\xbf\xbd");
    }
    return !out->failed;
}

bis_status rt_tokenizer_encode(const rt_tokenizer *tokenizer, const char *text, size_t length, unsigned flags,
                               rt_tokens *out, bis_error *error) {
    if (length > RT_TEXT_MAX) {
        return bis_fail(error, BIS_ERR_LIMIT, "the text has %zu bytes; at most %d can be tokenized", length,
                        RT_TEXT_MAX);
    }
    encoder e = {
        .tokenizer = tokenizer, .parse_special = (flags & RT_ENCODE_PARSE_SPECIAL) != 0, .out = out, .error = error};
    bool add_special = (flags & RT_ENCODE_ADD_SPECIAL) != 0;
    size_t count_before = out->count;
    bis_status status = BIS_OK;
    for (size_t i = 0; add_special && !status && i < tokenizer->prefix_count; i++) {
        status = emit(&e, tokenizer->prefix[i]);
    }
    if (!tokenizer->has_all_bytes && !bis_utf8_valid(text, length)) {
        if (replace_invalid(text, length, &e.scratch)) {
            text = e.scratch.data;
            length = e.scratch.length;
        } else if (!status) {
            status = no_memory(&e);
        }
    }
    if (!status) status = encode_text(&e, text, length);
    for (size_t i = 0; add_special && !status && i < tokenizer->suffix_count; i++) {
        status = emit(&e, tokenizer->suffix[i]);
    }
    if (status) out->count = count_before;
    bis_buf_free(&e.normalized);
    bis_buf_free(&e.scratch);
    rt_pieces_free(&e.pieces);
    rt_bpe_work_free(&e.work);
    return status;
}

/* ---- what it knows ---- */

int32_t rt_tokenizer_vocab_size(const rt_tokenizer *tokenizer) { return tokenizer->vocab.size; }

bool rt_tokenizer_is_special(const rt_tokenizer *tokenizer, int32_t id) {
    const rt_added_token *token = rt_added_find(&tokenizer->added, id);
    return token && token->special;
}

int32_t rt_tokenizer_find(const rt_tokenizer *tokenizer, const char *token_text) {
    return rt_vocab_find(&tokenizer->vocab, token_text, strlen(token_text));
}

int32_t rt_tokenizer_bos(const rt_tokenizer *tokenizer) { return tokenizer->bos; }

size_t rt_tokenizer_eos(const rt_tokenizer *tokenizer, int32_t ids[RT_EOS_MAX]) {
    memcpy(ids, tokenizer->eos, tokenizer->eos_count * sizeof *ids);
    return tokenizer->eos_count;
}

const char *rt_tokenizer_bos_text(const rt_tokenizer *tokenizer) {
    return tokenizer->bos_text ? tokenizer->bos_text : "";
}

const char *rt_tokenizer_eos_text(const rt_tokenizer *tokenizer) {
    return tokenizer->eos_text ? tokenizer->eos_text : "";
}

const char *rt_tokenizer_kind(const rt_tokenizer *tokenizer) {
    switch (tokenizer->type) {
    case RT_TYPE_BYTE_BPE: return "byte-level BPE";
    case RT_TYPE_SENTENCEPIECE: return "sentencepiece";
    default: return tokenizer->byte_fallback ? "BPE with byte fallback" : "BPE";
    }
}
