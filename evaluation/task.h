/* Questions with answers to choose from, or to give exactly, read from the files in which they are published.
 *
 *   hellaswag  a text of six lines a question: context, number of the right ending (0 to 3), four endings
 *   mmlu       a folder with test/SUBJECT_test.csv and dev/SUBJECT_dev.csv: question, four choices, answer (A to D or 0
 *              to 3); a first line of names is skipped. Questions of dev/ are the worked examples before a question.
 *   facts      one JSON object a line: {"system": ..., "question": ..., "answer": ...}; system may be absent
 *
 * Immutable after opening. It knows no tokenizer and no model.
 */
#ifndef BISUP_EVALUATION_TASK_H
#define BISUP_EVALUATION_TASK_H

#include <stddef.h>

#include "common/buf.h"
#include "common/status.h"

enum { EV_CHOICES = 4, EV_SHOTS_MAX = 5 };

typedef struct ev_question {
    const char *text;
    const char *choices[EV_CHOICES];
    int answer; /* 0 .. EV_CHOICES-1 */
    int group;  /* of ev_task.groups */
} ev_question;

typedef enum ev_task_kind { EV_HELLASWAG, EV_MMLU } ev_task_kind;

/* A subject, with its worked examples. HellaSwag has one group, without examples. */
typedef struct ev_group {
    char *name;
    ev_question shots[EV_SHOTS_MAX];
    int shot_count;
} ev_group;

typedef struct ev_task {
    ev_task_kind kind;
    ev_question *questions; /* by group */
    size_t count, capacity;
    ev_group *groups;
    size_t group_count;
    bis_buf *texts; /* files' contents, which the questions point into */
    size_t text_count;
} ev_task;

/* path: hellaswag's file, or mmlu's folder. Errors name the file and the line. Free with ev_task_free. */
bis_status ev_task_open(ev_task_kind kind, const char *path, ev_task *out, bis_error *error);
void ev_task_free(ev_task *task);

/* Keeps `limit` questions (0: all), as evenly from the groups as there are questions, the first ones of each. */
void ev_task_limit(ev_task *task, size_t limit);

/* Appends what the model reads before a choice: for mmlu with the first `shots` worked examples of the subject. */
void ev_task_context(const ev_task *task, const ev_question *question, int shots, bis_buf *out);
/* Appends a choice as it continues the context: hellaswag " " and the ending, mmlu " " and the letter. */
void ev_task_choice(const ev_task *task, const ev_question *question, int choice, bis_buf *out);

/* The parsers, for tests: they take over *text on success. `name` appears in errors. */
bis_status ev_hellaswag_parse(const char *name, bis_buf *text, ev_task *task, bis_error *error);
/* Adds the questions of a file to group `group`, as questions or (shots) as its worked examples. */
bis_status ev_mmlu_parse(const char *name, bis_buf *text, int group, bool shots, ev_task *task, bis_error *error);

typedef struct ev_fact {
    char *system; /* NULL: none */
    char *question, *answer;
} ev_fact;

typedef struct ev_facts {
    ev_fact *items;
    size_t count, capacity;
} ev_facts;

bis_status ev_facts_open(const char *path, ev_facts *out, bis_error *error);
bis_status ev_facts_parse(const char *name, const char *text, size_t length, ev_facts *out, bis_error *error);
void ev_facts_limit(ev_facts *facts, size_t limit); /* keeps the first `limit`; 0: all */
void ev_facts_free(ev_facts *facts);

#endif
