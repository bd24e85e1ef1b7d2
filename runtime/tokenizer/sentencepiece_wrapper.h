/* The sentencepiece library behind a C interface: the only C++ of the CPU build.
 *
 * No exception leaves it. It trusts the model bytes: the caller has checked them (see
 * tokenizer_sentencepiece.c). A loaded model may be used by any number of threads.
 */
#ifndef BISUP_RUNTIME_SENTENCEPIECE_WRAPPER_H
#define BISUP_RUNTIME_SENTENCEPIECE_WRAPPER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rt_spm rt_spm;

/* Loads a serialized model. NULL on failure, with the reason in message (always NUL-terminated). */
rt_spm *rt_spm_open(const void *model, size_t size, char *message, size_t message_size);
void rt_spm_close(rt_spm *spm); /* NULL is allowed */

int32_t rt_spm_size(const rt_spm *spm);
int32_t rt_spm_bos(const rt_spm *spm); /* -1: none */
int32_t rt_spm_eos(const rt_spm *spm);
int32_t rt_spm_unknown(const rt_spm *spm);

typedef enum rt_spm_result { RT_SPM_DONE, RT_SPM_STOPPED, RT_SPM_NO_MEMORY, RT_SPM_FAILED } rt_spm_result;

/* Calls emit for every id of the text, in order, until it returns false (RT_SPM_STOPPED). */
rt_spm_result rt_spm_encode(const rt_spm *spm, const char *text, size_t length, bool (*emit)(void *context, int32_t id),
                            void *context);

#ifdef __cplusplus
}
#endif
#endif
