/* Fuzzes tokenizer.model: what passes our own checks is given to the sentencepiece library, which must then
 * load it or refuse it, and encode. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "runtime/tokenizer/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[] = "/tmp/bisup-fuzz-XXXXXX";
static int descriptor = -1;

static void remove_file(void) { unlink(path); }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] = "Hello  wor\xff\xc3\xa9 ab <s> 123\n\xf0\x9f\x9a\x80\xe2\x96\x81 e\xcc\x81";
    if (descriptor < 0) {
        descriptor = mkstemp(path);
        if (descriptor < 0) abort();
        atexit(remove_file);
    }
    if (ftruncate(descriptor, 0) || pwrite(descriptor, data, size, 0) != (ssize_t)size) abort();
    rt_tokenizer *tokenizer;
    bis_error error;
    if (rt_tokenizer_open(path, &tokenizer, &error)) return 0;
    rt_tokens tokens = {0};
    bis_buf back = {0};
    if (rt_tokenizer_encode(tokenizer, text, sizeof text - 1, 3, &tokens, &error) == BIS_OK &&
        rt_tokenizer_decode(tokenizer, tokens.ids, tokens.count, false, &back, &error) != BIS_OK) {
        abort();
    }
    bis_buf_free(&back);
    rt_tokens_free(&tokens);
    rt_tokenizer_close(tokenizer);
    return 0;
}
