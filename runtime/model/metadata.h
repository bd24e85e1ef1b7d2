/* JSON metadata of a model folder: config.json, safetensors headers, shard indexes.
 *
 * A thin layer over cJSON that adds what files from outside need: the place of a syntax error, whole numbers
 * that are checked to be whole, and Python's rule that the last of two equal keys counts. No state; any thread.
 */
#ifndef BISUP_RUNTIME_METADATA_H
#define BISUP_RUNTIME_METADATA_H

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

/* Parses length bytes that must hold one JSON object, in UTF-8, and nothing but white space after it. `name`
 * (a path) begins every error. The caller frees *out with cJSON_Delete. */
bis_status rt_metadata_parse(const char *text, size_t length, const char *name, cJSON **out, bis_error *error);

/* Reads and parses a whole file of at most `limit` bytes. */
bis_status rt_metadata_read(const char *path, size_t limit, cJSON **out, bis_error *error);

/* The value of a key (case matters; the last one where a key is repeated); NULL where there is none. */
const cJSON *rt_metadata_get(const cJSON *object, const char *key);

/* True where the item is a number. */
bool rt_metadata_number(const cJSON *item, double *out);

/* True where the item is a whole number of 0 to 2^53, which a double holds exactly. */
bool rt_metadata_whole(const cJSON *item, uint64_t *out);

enum { RT_METADATA_SHOWN_MAX = 64 };

/* The item in a few words for an error line: its JSON text, cut and marked "..." where too long, or "missing", "a
 * list", "an object". The result is `text` or static. */
const char *rt_metadata_show(const cJSON *item, char text[RT_METADATA_SHOWN_MAX]);

#endif
