#include "runtime/model/metadata.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/buf.h"
#include "common/file.h"
#include "common/utf8.h"

static bis_status fail_at(const char *text, const char *at, const char *name, bis_error *error) {
    size_t line = 1, column = 1;
    for (const char *p = text; p < at; p++) {
        column++;
        if (*p == '\n') {
            line++;
            column = 1;
        }
    }
    /* The parser does not say whether it met an error or ran out of memory. */
    return bis_fail(error, BIS_ERR_FORMAT, "%s: not valid JSON (or no memory to parse it) near line %zu, column %zu",
                    name, line, column);
}

bis_status rt_metadata_parse(const char *text, size_t length, const char *name, cJSON **out, bis_error *error) {
    if (!bis_utf8_valid(text, length)) return bis_fail(error, BIS_ERR_FORMAT, "%s: the JSON text is not UTF-8", name);
    const char *stopped = text;
    cJSON *root = cJSON_ParseWithLengthOpts(text, length, &stopped, 0);
    if (!root) return fail_at(text, stopped, name, error);
    const char *end = text + length;
    while (stopped < end && strchr(" \t\r\n", *stopped) && *stopped) stopped++;
    bis_status status = BIS_OK;
    if (stopped < end) status = fail_at(text, stopped, name, error);
    else if (!cJSON_IsObject(root)) status = bis_fail(error, BIS_ERR_FORMAT, "%s: not a JSON object", name);
    if (status) cJSON_Delete(root);
    else *out = root;
    return status;
}

bis_status rt_metadata_read(const char *path, size_t limit, cJSON **out, bis_error *error) {
    bis_buf text = {0};
    bis_status status = bis_read_file(path, limit, &text, error);
    if (!status) status = rt_metadata_parse(bis_buf_cstr(&text), text.length, path, out, error);
    bis_buf_free(&text);
    return status;
}

const cJSON *rt_metadata_get(const cJSON *object, const char *key) {
    const cJSON *found = NULL, *item;
    cJSON_ArrayForEach(item, object) {
        if (item->string && !strcmp(item->string, key)) found = item;
    }
    return found;
}

bool rt_metadata_number(const cJSON *item, double *out) {
    if (!cJSON_IsNumber(item)) return false;
    *out = item->valuedouble;
    return true;
}

bool rt_metadata_whole(const cJSON *item, uint64_t *out) {
    double value;
    if (!rt_metadata_number(item, &value) || !(value >= 0 && value <= 0x1p53) || value != floor(value)) return false;
    *out = (uint64_t)value;
    return true;
}

const char *rt_metadata_show(const cJSON *item, char text[RT_METADATA_SHOWN_MAX]) {
    if (!item) return "missing";
    if (cJSON_IsArray(item)) return "a list";
    if (cJSON_IsObject(item)) return "an object";
    char *full = cJSON_PrintUnformatted(item);
    if (!full) return "a value";
    static const char mark[] = "...";
    size_t length = strlen(full), room = RT_METADATA_SHOWN_MAX - sizeof mark;
    bool fits = length <= room;
    if (!fits) length = bis_utf8_complete_prefix(full, room);
    snprintf(text, RT_METADATA_SHOWN_MAX, "%.*s%s", (int)length, full, fits ? "" : mark);
    cJSON_free(full);
    return text;
}
