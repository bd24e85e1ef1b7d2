/* Fuzzes tokenizer.json and, after the first NUL byte, tokenizer_config.json. A tokenizer that is
 * accepted must encode and decode, and the pieces of the incremental decoder must join to the whole. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/utf8.h"
#include "runtime/tokenizer/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[] = "/tmp/bisup-fuzz-XXXXXX";
static char json_path[64], config_path[64];

static void remove_folder(void) {
    unlink(json_path);
    unlink(config_path);
    rmdir(folder);
}

static void make_folder(void) {
    if (*json_path) return;
    if (!mkdtemp(folder)) abort();
    snprintf(json_path, sizeof json_path, "%s/tokenizer.json", folder);
    snprintf(config_path, sizeof config_path, "%s/tokenizer_config.json", folder);
    atexit(remove_folder);
    bis_log_set_level(BIS_LOG_ERROR);
}

static void write_file(const char *path, const uint8_t *data, size_t size) {
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file)) abort();
}

static void check_decoding(const rt_tokenizer *tokenizer, const rt_tokens *tokens) {
    bis_buf whole = {0};
    if (rt_tokenizer_decode(tokenizer, tokens->ids, tokens->count, false, &whole, NULL)) abort();
    if (!bis_utf8_valid(bis_buf_cstr(&whole), whole.length)) abort();
    bis_buf_free(&whole);
    rt_decoder decoder;
    char piece[RT_DECODER_TEXT_MAX];
    rt_decoder_start(&decoder, tokenizer, true);
    for (size_t i = 0; i < tokens->count; i++) {
        if (!bis_utf8_valid(piece, rt_decoder_push(&decoder, tokens->ids[i], piece))) abort();
    }
    if (!bis_utf8_valid(piece, rt_decoder_finish(&decoder, piece))) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] = "Hello  wor\xff\xc3\xa9 ab <s> 123\n\xf0\x9f\x9a\x80\xe2\x96\x81 e\xcc\x81";
    make_folder();
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    size_t json_size = nul ? (size_t)(nul - data) : size;
    write_file(json_path, data, json_size);
    if (nul) write_file(config_path, nul + 1, size - json_size - 1);
    else unlink(config_path);
    rt_tokenizer *tokenizer;
    bis_error error;
    if (rt_tokenizer_open(folder, &tokenizer, &error)) return 0;
    for (unsigned flags = 0; flags < 4; flags++) {
        rt_tokens tokens = {0};
        if (rt_tokenizer_encode(tokenizer, text, sizeof text - 1, flags, &tokens, &error) == BIS_OK) {
            check_decoding(tokenizer, &tokens);
        }
        rt_tokens_free(&tokens);
    }
    rt_tokenizer_close(tokenizer);
    return 0;
}
