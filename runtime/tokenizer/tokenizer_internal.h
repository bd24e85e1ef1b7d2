/* What the tokenizer's own files share: the loaded tokenizer and the functions that fill it.
 * Nobody else includes this; the public part is tokenizer.h.
 */
#ifndef BISUP_RUNTIME_TOKENIZER_INTERNAL_H
#define BISUP_RUNTIME_TOKENIZER_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"
#include "runtime/tokenizer/pretokenizer.h"
#include "runtime/tokenizer/sentencepiece_wrapper.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/tokenizer_added.h"
#include "runtime/tokenizer/tokenizer_bpe.h"
#include "runtime/tokenizer/tokenizer_normalizer.h"
#include "runtime/tokenizer/tokenizer_vocab.h"

struct cJSON;

#define RT_SPACE_MARK "\xe2\x96\x81" /* U+2581, SentencePiece's visible space */
/* How GPT-2 cuts text into words; byte-level tokenizers without a pattern of their own do the same. */
#define RT_GPT2_WORDS "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

enum {
    RT_TEMPLATE_MAX = 8,             /* ids before or after a text */
    RT_REPLACE_MAX = 4,              /* replacements a decoder makes */
    RT_REPLACE_TEXT_MAX = 16,        /* bytes of one, with its NUL */
    RT_BYTE_CHARACTERS = 256 + 68,   /* code points that byte-level BPE writes bytes with */
    RT_TOKENIZER_FILE_MAX = 1 << 28, /* bytes of one tokenizer file */
    RT_TEXT_MAX = 1 << 30            /* bytes of one text */
};

typedef enum rt_tokenizer_type {
    RT_TYPE_BYTE_BPE, /* symbols are bytes, spelled as visible characters in the files */
    RT_TYPE_BPE,      /* symbols are characters, unknown ones bytes or the unknown token */
    RT_TYPE_SENTENCEPIECE
} rt_tokenizer_type;

typedef enum rt_dummy_prefix { RT_DUMMY_NEVER, RT_DUMMY_FIRST, RT_DUMMY_ALWAYS } rt_dummy_prefix;

/* How token texts become text again. */
typedef struct rt_decode_rules {
    bool byte_level;    /* visible characters back to bytes */
    bool byte_fallback; /* "<0x0A>" is a byte */
    struct {
        char from[RT_REPLACE_TEXT_MAX], to[RT_REPLACE_TEXT_MAX]; /* `to` is never longer than `from` */
    } replace[RT_REPLACE_MAX];
    size_t replace_count;
    char strip;             /* this character is dropped at the very start, */
    size_t strip_count;     /* at most so many times */
    bool first_token_strip; /* every space of the first token is dropped (the Metaspace decoder) */
} rt_decode_rules;

struct rt_tokenizer {
    rt_tokenizer_type type;
    rt_vocab vocab;
    rt_added added;

    rt_normalizer normalizer; /* the two BPE types */
    rt_pretokenizer pretokenizer;
    rt_bpe bpe;
    int32_t byte_ids[256]; /* -1: the vocabulary has no token for that byte */
    bool has_all_bytes;
    int32_t unknown; /* -1: none; unknown characters are then dropped */
    bool fuse_unknown, byte_fallback, ignore_merges;

    rt_spm *spm;           /* SentencePiece */
    uint8_t *user_defined; /* by id: the library finds the piece's text anywhere by itself */
    int32_t spm_size;
    rt_dummy_prefix dummy_prefix;
    bool trims_spaces; /* the model removes leading and repeated spaces itself */

    rt_decode_rules decode;
    uint16_t character_of_byte[256]; /* the byte-level alphabet, both ways */
    int16_t byte_of_character[RT_BYTE_CHARACTERS];

    int32_t prefix[RT_TEMPLATE_MAX], suffix[RT_TEMPLATE_MAX]; /* RT_ENCODE_ADD_SPECIAL */
    size_t prefix_count, suffix_count;
    int32_t bos;
    int32_t eos[RT_EOS_MAX];
    size_t eos_count;
    char *bos_text, *eos_text; /* NULL: none */
};

/* What the files beside the tokenizer say. -1 stands for "not said". */
typedef struct rt_side_token {
    char *content;
    int32_t id; /* -1: whatever id the text has */
    bool special, normalized, left_strip, right_strip, single_word;
    bool defines; /* its flags replace those of an earlier definition */
} rt_side_token;

typedef struct rt_side {
    char *tokenizer_class; /* NULL: not said */
    int legacy, add_prefix_space, add_bos, add_eos;
    bool has_bos_entry; /* bos_token is given, perhaps as null */
    char *bos_text, *eos_text;
    rt_side_token *tokens; /* added_tokens_decoder, added_tokens.json, then the named special tokens */
    size_t token_count, token_capacity;
    int32_t bos_id; /* from config.json */
    int32_t eos_ids[RT_EOS_MAX];
    size_t eos_count;
} rt_side;

/* Reads the side files of a model folder that exist; all are optional. Free with rt_side_free. */
bis_status rt_side_read(const char *folder, rt_side *side, bis_error *error);
void rt_side_free(rt_side *side);
/* Adds their tokens and sets bos, eos and the ids around a text. After the tokenizer itself is loaded. */
bis_status rt_side_apply(const rt_side *side, rt_tokenizer *tokenizer, bis_error *error);

/* The loaders; `path` and `folder` name what exists. They fill a zeroed tokenizer whose ids are -1. */
bis_status rt_load_tokenizer_json(rt_tokenizer *tokenizer, const char *path, bis_error *error);
bis_status rt_load_vocab_merges(rt_tokenizer *tokenizer, const char *folder, const rt_side *side, bis_error *error);
bis_status rt_load_sentencepiece(rt_tokenizer *tokenizer, const char *path, const rt_side *side, bis_error *error);

/* Parts of tokenizer.json with files of their own. Errors name the component. */
bis_status rt_read_normalizer(rt_tokenizer *tokenizer, const struct cJSON *json, bis_error *error);
bis_status rt_read_pretokenizer(rt_tokenizer *tokenizer, const struct cJSON *json, bis_error *error);
bis_status rt_read_post_processor(rt_tokenizer *tokenizer, const struct cJSON *json, bis_error *error);
bis_status rt_read_decoder(rt_tokenizer *tokenizer, const struct cJSON *json, bis_error *error);

/* Reads and parses one JSON file; *out is freed with cJSON_Delete. */
bis_status rt_read_json_file(const char *path, struct cJSON **out, bis_error *error);
/* A whole number in [minimum, maximum]: true and *out. */
bool rt_json_integer(const struct cJSON *item, int32_t minimum, int32_t maximum, int32_t *out);

/* Adds an added token; where the text is in the vocabulary already, its id there counts. */
bis_status rt_put_added_token(rt_tokenizer *tokenizer, const char *content, const rt_added_token *flags,
                              bis_error *error);
/* One token's bytes for decoding; see rt_tokenizer_token_bytes. `first`: it begins a text. */
size_t rt_token_text(const rt_tokenizer *tokenizer, int32_t id, bool first, char out[RT_TOKEN_TEXT_MAX]);

#endif
