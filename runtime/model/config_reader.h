/* Reading checked values from the objects of config.json; shared by the files that read it.
 *
 * The first failure sticks: later reads return their fallback and the caller checks once. Each failure is one line with
 * the file, the key, its value and what is accepted. No state of its own; any thread.
 */
#ifndef BISUP_RUNTIME_CONFIG_READER_H
#define BISUP_RUNTIME_CONFIG_READER_H

#include <limits.h>

#include "runtime/model/metadata.h"
#include "runtime/model/model.h"

enum { RT_CONFIG_REQUIRED = INT_MIN };

typedef struct rt_config_reader {
    const char *path;
    const cJSON *root;
    bis_error *error;
    bis_status status;
} rt_config_reader;

/* NULL where the key is missing or null, which mean the same for every key but bos and eos. */
const cJSON *rt_config_value(const cJSON *object, const char *key);

/* Fails with "<file>: <key> is <item>; accepted: <accepted>". */
void rt_config_refuse(rt_config_reader *r, bis_status status, const char *key, const cJSON *item, const char *accepted);

/* fallback RT_CONFIG_REQUIRED: the key must be there. */
int rt_config_whole(rt_config_reader *r, const cJSON *object, const char *key, int minimum, int maximum, int fallback);

/* A finite number in [minimum, maximum]; fallback NAN: required. */
double rt_config_real(rt_config_reader *r, const cJSON *object, const char *key, double minimum, double maximum,
                      double fallback);

bool rt_config_flag(rt_config_reader *r, const cJSON *object, const char *key, bool fallback);
bool rt_config_required_flag(rt_config_reader *r, const cJSON *object, const char *key);

/* Fills config->quantization from quantization_config, once the sizes are known; without that key: not quantized. */
void rt_quantization_read(rt_config_reader *r, rt_model_config *config);

#endif
