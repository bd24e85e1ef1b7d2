/* Questions about facts, one JSON object a line. */
#include <cjson/cJSON.h>
#include <string.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/utf8.h"
#include "evaluation/task.h"

enum { FILE_MAX = 1 << 30 };

static bis_status copy_text(const cJSON *object, const char *key, char **out, bis_error *error) {
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!value) return BIS_OK;
    if (!cJSON_IsString(value)) return bis_fail(error, BIS_ERR_FORMAT, "\"%s\" is not a text", key);
    *out = bis_strdup(value->valuestring);
    return *out ? BIS_OK : bis_fail(error, BIS_ERR_NOMEM, "no memory for the questions");
}

static void free_fact(ev_fact *fact) {
    bis_free(fact->system);
    bis_free(fact->question);
    bis_free(fact->answer);
}

static bis_status parse_fact(const char *line, size_t length, ev_fact *out, bis_error *error) {
    if (!bis_utf8_valid(line, length) || memchr(line, '\0', length)) {
        return bis_fail(error, BIS_ERR_FORMAT, "it is not UTF-8 text");
    }
    const char *end = NULL;
    cJSON *object = cJSON_ParseWithLengthOpts(line, length, &end, 0);
    bool whole = object && cJSON_IsObject(object);
    for (; whole && end < line + length; end++) whole = strchr(" \t\r", *end) != NULL;
    bis_status status = whole ? BIS_OK : bis_fail(error, BIS_ERR_FORMAT, "it is not one JSON object");
    ev_fact fact = {0};
    if (!status) status = copy_text(object, "system", &fact.system, error);
    if (!status) status = copy_text(object, "question", &fact.question, error);
    if (!status) status = copy_text(object, "answer", &fact.answer, error);
    if (!status && (!fact.question || !fact.answer)) {
        status = bis_fail(error, BIS_ERR_FORMAT, "\"%s\" is missing", fact.question ? "answer" : "question");
    }
    cJSON_Delete(object);
    if (status) free_fact(&fact);
    else *out = fact;
    return status;
}

static bool add_fact(ev_facts *facts, const ev_fact *fact) {
    if (facts->count == facts->capacity) {
        size_t capacity = facts->capacity ? 2 * facts->capacity : 256;
        ev_fact *larger = bis_reallocarray(facts->items, capacity, sizeof *larger);
        if (!larger) return false;
        facts->items = larger;
        facts->capacity = capacity;
    }
    facts->items[facts->count++] = *fact;
    return true;
}

static bool is_blank(const char *line, size_t length) {
    for (size_t i = 0; i < length; i++) {
        if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r') return false;
    }
    return true;
}

bis_status ev_facts_parse(const char *name, const char *text, size_t length, ev_facts *out, bis_error *error) {
    ev_facts facts = {0};
    bis_status status = BIS_OK;
    const char *end = text + length;
    int number = 1;
    for (const char *line = text, *next; line < end && !status; line = next, number++) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        size_t line_length = (size_t)((newline ? newline : end) - line);
        next = newline ? newline + 1 : end;
        if (is_blank(line, line_length)) continue;
        ev_fact fact;
        status = parse_fact(line, line_length, &fact, error);
        if (status) {
            status = bis_fail_within(error, "%s line %d", name, number);
        } else if (!add_fact(&facts, &fact)) {
            free_fact(&fact);
            status = bis_fail(error, BIS_ERR_NOMEM, "no memory for the questions");
        }
    }
    if (!status && !facts.count) status = bis_fail(error, BIS_ERR_FORMAT, "%s holds no questions", name);
    if (status) ev_facts_free(&facts);
    else *out = facts;
    return status;
}

bis_status ev_facts_open(const char *path, ev_facts *out, bis_error *error) {
    bis_buf text = {0};
    bis_status status = bis_read_file(path, FILE_MAX, &text, error);
    if (!status) status = ev_facts_parse(path, bis_buf_cstr(&text), text.length, out, error);
    bis_buf_free(&text);
    return status;
}

void ev_facts_limit(ev_facts *facts, size_t limit) {
    while (limit && facts->count > limit) free_fact(&facts->items[--facts->count]);
}

void ev_facts_free(ev_facts *facts) {
    for (size_t i = 0; i < facts->count; i++) free_fact(&facts->items[i]);
    bis_free(facts->items);
    *facts = (ev_facts){0};
}
