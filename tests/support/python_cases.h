/* Template cases rendered by Python's jinja2 just now (tests/templates/compare.py), for comparison. */
#ifndef BISUP_TESTS_PYTHON_CASES_H
#define BISUP_TESTS_PYTHON_CASES_H

#include <stdbool.h>

#include "runtime/template/jinja_value.h"

typedef struct python_cases {
    rt_jrun *memory;
    const rt_jlist *list; /* of objects with the keys that compare.py writes */
} python_cases;

/* Runs compare.py with `what` ("snippets" or "chats") and, unless NULL, one more folder. Returns NULL on
 * success, else a static text that says why there are no cases: then the test is skipped. */
const char *python_cases_load(const char *what, const char *folder, python_cases *out);
void python_cases_free(python_cases *cases);

/* An entry of case `index` as a C string; NULL when it is null or missing. Valid until python_cases_free. */
const char *python_case_text(const python_cases *cases, size_t index, const char *key);
bool python_case_flag(const python_cases *cases, size_t index, const char *key);

#endif
