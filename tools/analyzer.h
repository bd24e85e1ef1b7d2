/* For clang-tidy only: promises of functions whose source it does not see with their caller. tidy_one.sh
 * includes this before each file. */
#ifndef BISUP_TOOLS_ANALYZER_H
#define BISUP_TOOLS_ANALYZER_H

#include <cjson/cJSON.h>

#include "common/status.h"

/* Returns the status it is given, which is never BIS_OK. */
#define bis_fail(error, status, ...) (bis_fail(error, status, __VA_ARGS__), (status))

/* False for NULL. */
static inline cJSON_bool false_for_null(const cJSON *item, cJSON_bool answer) { return item ? answer : 0; }
#define cJSON_IsArray(item) false_for_null(item, cJSON_IsArray(item))
#define cJSON_IsObject(item) false_for_null(item, cJSON_IsObject(item))
#define cJSON_IsString(item) false_for_null(item, cJSON_IsString(item))
#define cJSON_IsNumber(item) false_for_null(item, cJSON_IsNumber(item))
#define cJSON_IsBool(item) false_for_null(item, cJSON_IsBool(item))
#define cJSON_IsNull(item) false_for_null(item, cJSON_IsNull(item))
#define cJSON_IsTrue(item) false_for_null(item, cJSON_IsTrue(item))

#endif
