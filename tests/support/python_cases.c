#include "tests/support/python_cases.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/file.h"

enum { NO_JINJA = 77, OUTPUT_MAX = 64 << 20 };

static const char *run_python(const char *what, const char *folder, const char *path) {
    char command[1024];
    snprintf(command, sizeof command, "python3 -W ignore tests/templates/compare.py %s '%s' %s%s%s", what, path,
             folder ? "'" : "", folder ? folder : "", folder ? "'" : "");
    FILE *pipe = popen(command, "r");
    int result = pipe ? pclose(pipe) : -1;
    if (result == 0) return NULL;
    if (WIFEXITED(result) && WEXITSTATUS(result) == NO_JINJA) return "python3 has no jinja2 (Debian: python3-jinja2)";
    if (WIFEXITED(result) && WEXITSTATUS(result) == 127) return "there is no python3";
    return "tests/templates/compare.py failed";
}

const char *python_cases_load(const char *what, const char *folder, python_cases *out) {
    char path[] = "/tmp/bisup-cases-XXXXXX";
    int descriptor = mkstemp(path);
    if (descriptor < 0) return "cannot make a temporary file";
    close(descriptor);
    const char *problem = run_python(what, folder, path);
    bis_buf text = {0};
    if (!problem && bis_read_file(path, OUTPUT_MAX, &text, NULL)) problem = "cannot read what compare.py wrote";
    unlink(path);
    if (problem) return problem;
    out->memory = rt_jrun_new("cases");
    rt_jval cases = rt_jnone();
    if (out->memory) cases = rt_jparse_json(out->memory, bis_buf_cstr(&text), "the output of compare.py");
    bis_buf_free(&text);
    if (cases.type != RT_J_LIST) {
        python_cases_free(out);
        return "compare.py wrote something else than a list of cases";
    }
    out->list = cases.as.list;
    return NULL;
}

void python_cases_free(python_cases *cases) {
    rt_jrun_free(cases->memory);
    *cases = (python_cases){0};
}

const char *python_case_text(const python_cases *cases, size_t index, const char *key) {
    const rt_jval *value = rt_jdict_find(cases->memory, cases->list->items[index].as.dict, key);
    return value && value->type == RT_J_STRING ? rt_jcstr(cases->memory, value->as.string) : NULL;
}

bool python_case_flag(const python_cases *cases, size_t index, const char *key) {
    const rt_jval *value = rt_jdict_find(cases->memory, cases->list->items[index].as.dict, key);
    return value && rt_jtruth(*value);
}
