/* Calibration data: windows of a text as tokens, and the tokens of a system prompt before them. */
#ifndef BISUP_QUANTIZER_CALIBRATION_H
#define BISUP_QUANTIZER_CALIBRATION_H

#include <stdint.h>

#include "common/status.h"
#include "runtime/tokenizer/tokenizer.h"

typedef struct qz_calibration {
    int samples, tokens;  /* tokens: of each window */
    int32_t *ids;         /* [samples, tokens] */
    int prompt_tokens;    /* 0: none */
    int32_t *prompt;      /* [prompt_tokens] */
    uint64_t text_tokens; /* found in the text */
    uint64_t text_hash;   /* of the calibration file's bytes */
    uint64_t prompt_hash; /* of the prompt file's bytes; 0: none */
} qz_calibration;

typedef struct qz_calibration_options {
    const char *text;   /* file */
    const char *prompt; /* file, or NULL */
    int samples;
    int seq_len;        /* 0: 2048, or what `context` leaves beside the prompt where that is shorter */
    int context, vocab; /* the model's */
    uint64_t seed;
} qz_calibration_options;

/* Reads the files and draws the windows: at distinct places of the text that do not overlap, or, where the text is too
 * short for that, that overlap by at most half. A window begins with the token the model's tokenizer puts before a
 * text, if any; with a prompt, the prompt begins with it and the windows have none, because they continue the prompt.
 * Names of special tokens in the files are read as these tokens. Errors give the numbers of tokens found and needed. */
bis_status qz_calibration_read(const qz_calibration_options *options, const rt_tokenizer *tokenizer,
                               qz_calibration *out, bis_error *error);
void qz_calibration_free(qz_calibration *calibration);

/* Places of `samples` windows of `window` tokens in a text of `tokens`, in the order of use, to starts [samples].
 * BIS_ERR_INVALID where the text is too short. Same seed, same places. */
bis_status qz_calibration_draw(uint64_t tokens, int window, int samples, uint64_t seed, uint64_t *starts,
                               bis_error *error);

/* FNV-1a, 64 bits; begin with QZ_HASH_START. Tells inputs apart; no protection against intent. */
#define QZ_HASH_START 0xcbf29ce484222325u
uint64_t qz_hash(uint64_t hash, const void *bytes, size_t size);

#endif
