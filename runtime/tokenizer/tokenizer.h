/* Text to token ids and back, for the tokenizers Llama- and Qwen-family models ship:
 *   tokenizer.json       byte-level BPE, or SentencePiece-style BPE with byte fallback
 *   tokenizer.model      SentencePiece (through the library)
 *   vocab.json + merges.txt   byte-level BPE
 * in this order of preference, completed by tokenizer_config.json, added_tokens.json,
 * special_tokens_map.json and generation_config.json / config.json (bos, eos).
 *
 * A tokenizer is immutable after rt_tokenizer_open: all functions may be called from any thread.
 * It knows nothing of chat: see chat.h.
 */
#ifndef BISUP_RUNTIME_TOKENIZER_H
#define BISUP_RUNTIME_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/status.h"

typedef struct rt_tokenizer rt_tokenizer;

/* A growable list of token ids; zero-initialise, free with rt_tokens_free. */
typedef struct rt_tokens {
    int32_t *ids;
    size_t count, capacity;
} rt_tokens;

bool rt_tokens_append(rt_tokens *tokens, int32_t id); /* false: out of memory */
void rt_tokens_free(rt_tokens *tokens);

enum {
    RT_TOKEN_TEXT_MAX = 512, /* bytes one token may decode to; longer vocabulary entries are refused at load */
    RT_EOS_MAX = 16          /* end-of-sequence ids of one model */
};

/* Flags of rt_tokenizer_encode. */
enum {
    RT_ENCODE_ADD_SPECIAL = 1u,  /* add BOS/EOS where the model's own tokenizer does */
    RT_ENCODE_PARSE_SPECIAL = 2u /* the text's special-token strings ("<|im_start|>") become their ids; without
                                    it they are plain text. Added tokens that are not special always match. */
};

/* `folder` is a model folder, or a single tokenizer.json / tokenizer.model file (without the
 * side files). On success the caller owns *out. Errors name the file and what is wrong with it. */
bis_status rt_tokenizer_open(const char *folder, rt_tokenizer **out, bis_error *error);
void rt_tokenizer_close(rt_tokenizer *tokenizer); /* NULL is allowed */

/* Appends the ids of text[0..length) to *out. Invalid UTF-8 is encoded byte by byte where the
 * vocabulary has bytes, else as U+FFFD. Linear-logarithmic in length, also for one endless word. */
bis_status rt_tokenizer_encode(const rt_tokenizer *tokenizer, const char *text, size_t length, unsigned flags,
                               rt_tokens *out, bis_error *error);

/* Appends the text of ids[0..count) to *out, as Hugging Face's decode does with
 * clean_up_tokenization_spaces=False. Bytes that form no character become U+FFFD.
 * BIS_ERR_INVALID for an id outside [0, vocabulary size). */
bis_status rt_tokenizer_decode(const rt_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special,
                               bis_buf *out, bis_error *error);

/* The raw bytes of one token (a space for U+2581, the byte for "<0x0A>"), without any stripping.
 * Returns their number, at most RT_TOKEN_TEXT_MAX; 0 for ids outside the vocabulary. */
size_t rt_tokenizer_token_bytes(const rt_tokenizer *tokenizer, int32_t id, char out[RT_TOKEN_TEXT_MAX]);

int32_t rt_tokenizer_vocab_size(const rt_tokenizer *tokenizer); /* largest id + 1 */
bool rt_tokenizer_is_special(const rt_tokenizer *tokenizer, int32_t id);
int32_t rt_tokenizer_find(const rt_tokenizer *tokenizer, const char *token_text); /* exact entry; -1 if none */
int32_t rt_tokenizer_bos(const rt_tokenizer *tokenizer);                          /* -1 if none */
size_t rt_tokenizer_eos(const rt_tokenizer *tokenizer, int32_t ids[RT_EOS_MAX]);  /* all end-of-turn/sequence ids */
const char *rt_tokenizer_bos_text(const rt_tokenizer *tokenizer);                 /* "" if none: for chat templates */
const char *rt_tokenizer_eos_text(const rt_tokenizer *tokenizer);
const char *
rt_tokenizer_kind(const rt_tokenizer *tokenizer); /* "sentencepiece", "byte-level BPE", ... for `bisup info` */

/* Incremental decoding of a continuation: text comes out as soon as its characters are complete,
 * never half a UTF-8 character. Holds no memory of its own. A leading space is kept (the text
 * continues a prompt). One thread at a time. */
typedef struct rt_decoder {
    const rt_tokenizer *tokenizer;
    bool skip_special;
    unsigned char pending[4];
    unsigned pending_length;
} rt_decoder;

enum { RT_DECODER_TEXT_MAX = 3 * (RT_TOKEN_TEXT_MAX + 4) }; /* each invalid byte becomes three (U+FFFD) */

void rt_decoder_start(rt_decoder *decoder, const rt_tokenizer *tokenizer, bool skip_special);
/* Writes the text that became complete to out (not NUL-terminated); returns its length. */
size_t rt_decoder_push(rt_decoder *decoder, int32_t id, char out[RT_DECODER_TEXT_MAX]);
/* At the end: what is still pending can never be completed and comes out as U+FFFD. */
size_t rt_decoder_finish(rt_decoder *decoder, char out[RT_DECODER_TEXT_MAX]);

#endif
