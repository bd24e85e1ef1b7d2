/* A template, then (behind a NUL byte) a JSON object with its variables. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/alloc.h"
#include "common/utf8.h"
#include "runtime/template/jinja_value.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { STEPS = 50000 }; /* far below the real bound, so that endless templates do not slow the search down */

static const char usual_variables[] =
    "{\"messages\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", \"content\": \"\xc3\xbc "
    "x\"}, {\"role\": \"assistant\", \"tool_calls\": [{\"id\": \"1\", \"function\": {\"name\": \"f\", \"arguments\": "
    "{\"a\": 1.5}}}]}], \"tools\": [{\"type\": \"function\"}], \"n\": 3, \"add_generation_prompt\": true}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char *text = bis_strndup((const char *)data, size); /* the JSON text ends with a NUL */
    rt_jinja *jinja = NULL;
    rt_jrun *run = NULL;
    bis_error error = {0};
    bis_buf out = {0};
    if (!text) return 0;
    size_t length = strlen(text);
    const char *variables = length < size ? text + length + 1 : usual_variables;
    bis_status status = rt_jinja_parse("fuzz", text, length, &jinja, &error);
    if (!status) status = rt_jinja_begin(jinja, &run, &error);
    if (!status) {
        run->steps_left = STEPS;
        status = rt_jinja_set_members(run, variables, &error);
        if (!status) status = rt_jinja_render(run, &out, &error);
    }
    if (status == BIS_OK ? !bis_utf8_valid(bis_buf_cstr(&out), out.length) : error.text[0] == '\0') __builtin_trap();
    bis_buf_free(&out);
    rt_jinja_end(run);
    rt_jinja_free(jinja);
    bis_free(text);
    return 0;
}
