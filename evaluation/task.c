#include "evaluation/task.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "common/file.h"
#include "evaluation/csv.h"

enum { FILE_MAX = 1 << 30, PATH_BYTES = 4096, HELLASWAG_LINES = 6, MMLU_FIELDS = 6 };

static const char LETTERS[] = "ABCD";
static const char TEST_ENDING[] = "_test.csv";

static bis_status no_memory(bis_error *error) {
    return bis_fail(error, BIS_ERR_NOMEM, "no memory for the task's questions");
}

/* ---- The lists ------------------------------------------------------------------------------- */

static bool add_question(ev_task *task, const ev_question *question) {
    if (task->count == task->capacity) {
        size_t capacity = task->capacity ? 2 * task->capacity : 256;
        ev_question *larger = bis_reallocarray(task->questions, capacity, sizeof *larger);
        if (!larger) return false;
        task->questions = larger;
        task->capacity = capacity;
    }
    task->questions[task->count++] = *question;
    return true;
}

static bool add_group(ev_task *task, const char *name, size_t length) {
    ev_group *larger = bis_reallocarray(task->groups, task->group_count + 1, sizeof *larger);
    if (!larger) return false;
    task->groups = larger;
    larger[task->group_count] = (ev_group){.name = bis_strndup(name, length)};
    return larger[task->group_count++].name != NULL;
}

/* The task owns the text from now on; the caller's is emptied. */
static bool keep_text(ev_task *task, bis_buf *text) {
    bis_buf *larger = bis_reallocarray(task->texts, task->text_count + 1, sizeof *larger);
    if (!larger) return false;
    task->texts = larger;
    larger[task->text_count++] = *text;
    *text = (bis_buf){0};
    return true;
}

void ev_task_free(ev_task *task) {
    for (size_t i = 0; i < task->group_count; i++) bis_free(task->groups[i].name);
    for (size_t i = 0; i < task->text_count; i++) bis_buf_free(&task->texts[i]);
    bis_free(task->questions);
    bis_free(task->groups);
    bis_free(task->texts);
    *task = (ev_task){0};
}

/* Questions points into a text that is ended by NUL bytes, so it may hold none of its own. */
static bis_status check_text(const char *name, const bis_buf *text, bis_error *error) {
    const char *data = bis_buf_cstr(text);
    if (text->length >= 3 && !memcmp(data, "BZh", 3)) {
        return bis_fail(error, BIS_ERR_FORMAT, "%s is compressed: unpack it first, with bunzip2 -k", name);
    }
    if (memchr(data, '\0', text->length)) {
        return bis_fail(error, BIS_ERR_FORMAT, "%s holds a NUL byte: it is no text", name);
    }
    return BIS_OK;
}

/* The number of an answer written as one letter or digit; -1: it is none. */
static int answer_number(const char *text, bool letters) {
    if (!*text || text[1]) return -1;
    if (*text >= '0' && *text < '0' + EV_CHOICES) return *text - '0';
    const char *letter = letters ? strchr(LETTERS, *text) : NULL;
    return letter ? (int)(letter - LETTERS) : -1;
}

/* ---- HellaSwag ------------------------------------------------------------------------------- */

/* Cuts the next line off `*at` and ends it with NUL; false at the end of the text. */
static bool take_line(char **at, char *end, char **line) {
    if (*at == end) return false;
    *line = *at;
    char *newline = memchr(*at, '\n', (size_t)(end - *at));
    char *stop = newline ? newline : end;
    *at = newline ? newline + 1 : end;
    if (stop > *line && stop[-1] == '\r') stop--;
    *stop = '\0';
    return true;
}

static bis_status check_hellaswag(const char *name, char *const *lines, int last_line, ev_question *question,
                                  bis_error *error) {
    int first = last_line - HELLASWAG_LINES + 1;
    question->text = lines[0];
    question->answer = answer_number(lines[1], false);
    if (question->answer < 0) {
        return bis_fail(error, BIS_ERR_FORMAT, "%s line %d: the number of the right ending (0 to 3) is '%.40s'", name,
                        first + 1, lines[1]);
    }
    for (int i = 0; i < HELLASWAG_LINES; i++) {
        if (!*lines[i]) return bis_fail(error, BIS_ERR_FORMAT, "%s line %d is empty", name, first + i);
    }
    for (int i = 0; i < EV_CHOICES; i++) question->choices[i] = lines[2 + i];
    return BIS_OK;
}

bis_status ev_hellaswag_parse(const char *name, bis_buf *text, ev_task *task, bis_error *error) {
    bis_status status = check_text(name, text, error);
    if (status) return status;
    if (!add_group(task, "hellaswag", strlen("hellaswag"))) return no_memory(error);
    char *at = text->data, *end = at ? at + text->length : NULL, *lines[HELLASWAG_LINES];
    while (end && end > at && (end[-1] == '\n' || end[-1] == '\r')) end--; /* empty lines at the end */
    int count = 0;
    for (int number = 1; take_line(&at, end, &lines[count]); number++) {
        if (++count < HELLASWAG_LINES) continue;
        ev_question question = {0};
        status = check_hellaswag(name, lines, number, &question, error);
        if (status) return status;
        if (!add_question(task, &question)) return no_memory(error);
        count = 0;
    }
    if (count) {
        return bis_fail(error, BIS_ERR_FORMAT, "%s ends within a question: %d of %d lines after %zu questions", name,
                        count, (int)HELLASWAG_LINES, task->count);
    }
    return keep_text(task, text) ? BIS_OK : no_memory(error);
}

/* ---- MMLU ------------------------------------------------------------------------------------ */

static bis_status take_mmlu(const char *name, const ev_csv_record *record, ev_question *question, bis_error *error) {
    if (record->count != MMLU_FIELDS) {
        return bis_fail(error, BIS_ERR_FORMAT,
                        "%s line %d: %d fields where there should be %d (question, four choices, answer)", name,
                        record->line, record->count, (int)MMLU_FIELDS);
    }
    question->text = record->fields[0];
    for (int i = 0; i < EV_CHOICES; i++) question->choices[i] = record->fields[1 + i];
    question->answer = answer_number(record->fields[MMLU_FIELDS - 1], true);
    if (question->answer >= 0) return BIS_OK;
    return bis_fail(error, BIS_ERR_FORMAT, "%s line %d: the answer is '%.40s', but must be A to D or 0 to 3", name,
                    record->line, record->fields[MMLU_FIELDS - 1]);
}

static bool is_title(const ev_csv_record *record) {
    return record->count == MMLU_FIELDS && !strcmp(record->fields[MMLU_FIELDS - 1], "answer");
}

bis_status ev_mmlu_parse(const char *name, bis_buf *text, int group, bool shots, ev_task *task, bis_error *error) {
    bis_status status = check_text(name, text, error);
    if (status || !text->data) return status;
    ev_group *target = &task->groups[group];
    ev_csv csv;
    ev_csv_record record;
    bool done = false;
    ev_csv_start(&csv, text->data, text->length);
    for (bool first = true;; first = false) {
        if (ev_csv_next(&csv, &record, &done, error)) return bis_fail_within(error, "%s", name);
        if (done) break;
        if (first && is_title(&record)) continue;
        ev_question question = {.group = group};
        status = take_mmlu(name, &record, &question, error);
        if (status) return status;
        if (!shots && !add_question(task, &question)) return no_memory(error);
        if (shots && target->shot_count < EV_SHOTS_MAX) target->shots[target->shot_count++] = question;
    }
    return keep_text(task, text) ? BIS_OK : no_memory(error);
}

static bis_status read_mmlu(const char *folder, const char *part, int group, bool shots, ev_task *task,
                            bis_error *error) {
    char path[PATH_BYTES];
    int length = snprintf(path, sizeof path, "%s/%s/%s_%s.csv", folder, part, task->groups[group].name, part);
    if (length < 0 || (size_t)length >= sizeof path) {
        return bis_fail(error, BIS_ERR_INVALID, "%s: the path is too long", folder);
    }
    bis_buf text = {0};
    bis_status status = bis_read_file(path, FILE_MAX, &text, error);
    if (!status) status = ev_mmlu_parse(path, &text, group, shots, task, error);
    bis_buf_free(&text);
    return status;
}

static int compare_groups(const void *a, const void *b) {
    return strcmp(((const ev_group *)a)->name, ((const ev_group *)b)->name);
}

/* Makes a group of each SUBJECT_test.csv, in the order of names. */
static bis_status list_subjects(const char *folder, ev_task *task, bis_error *error) {
    char path[PATH_BYTES];
    bis_status status = bis_join_path(folder, "test", path, sizeof path, error);
    if (status) return status;
    DIR *listing = opendir(path);
    if (!listing) {
        return bis_fail(error, errno == ENOENT || errno == ENOTDIR ? BIS_ERR_NOT_FOUND : BIS_ERR_IO,
                        "%s: %s; mmlu needs a folder with test/SUBJECT_test.csv and dev/SUBJECT_dev.csv", path,
                        strerror(errno));
    }
    for (const struct dirent *entry; !status && (entry = readdir(listing));) {
        size_t length = strlen(entry->d_name), ending = strlen(TEST_ENDING);
        if (length <= ending || strcmp(entry->d_name + length - ending, TEST_ENDING) != 0) continue;
        if (!add_group(task, entry->d_name, length - ending)) status = no_memory(error);
    }
    closedir(listing);
    if (!status && !task->group_count) {
        status = bis_fail(error, BIS_ERR_NOT_FOUND, "%s has no files SUBJECT_test.csv", path);
    }
    if (!status) qsort(task->groups, task->group_count, sizeof *task->groups, compare_groups);
    return status;
}

static bis_status open_mmlu(const char *folder, ev_task *task, bis_error *error) {
    bis_status status = list_subjects(folder, task, error);
    for (size_t i = 0; i < task->group_count && !status; i++) {
        status = read_mmlu(folder, "dev", (int)i, true, task, error);
        if (!status) status = read_mmlu(folder, "test", (int)i, false, task, error);
    }
    return status;
}

/* ---- Both ------------------------------------------------------------------------------------ */

static bis_status open_hellaswag(const char *path, ev_task *task, bis_error *error) {
    bis_buf text = {0};
    bis_status status = bis_read_file(path, FILE_MAX, &text, error);
    if (!status) status = ev_hellaswag_parse(path, &text, task, error);
    bis_buf_free(&text);
    return status;
}

bis_status ev_task_open(ev_task_kind kind, const char *path, ev_task *out, bis_error *error) {
    ev_task task = {.kind = kind};
    bis_status status = kind == EV_MMLU ? open_mmlu(path, &task, error) : open_hellaswag(path, &task, error);
    if (!status && !task.count) status = bis_fail(error, BIS_ERR_FORMAT, "%s holds no questions", path);
    if (status) {
        ev_task_free(&task);
        return status;
    }
    *out = task;
    return BIS_OK;
}

static size_t group_size(const ev_task *task, size_t first) {
    size_t size = 1;
    while (first + size < task->count && task->questions[first + size].group == task->questions[first].group) size++;
    return size;
}

/* Questions kept where no group may keep more than `most`. */
static size_t count_with(const ev_task *task, size_t most) {
    size_t total = 0;
    for (size_t first = 0, size; first < task->count; first += size) {
        size = group_size(task, first);
        total += size < most ? size : most;
    }
    return total;
}

void ev_task_limit(ev_task *task, size_t limit) {
    if (!limit || limit >= task->count) return;
    size_t most = task->count, too_few = 0; /* the least `most` that gives as many as the limit */
    while (most - too_few > 1) {
        size_t middle = too_few + (most - too_few) / 2;
        if (count_with(task, middle) < limit) too_few = middle;
        else most = middle;
    }
    size_t kept = 0, spare = count_with(task, most) - limit; /* the last groups with `most` keep one less */
    size_t full = 0;
    for (size_t first = 0, size; first < task->count; first += size) {
        size = group_size(task, first);
        full += size >= most;
    }
    for (size_t first = 0, size; first < task->count; first += size) {
        size = group_size(task, first);
        size_t keep = size < most ? size : most - (full <= spare);
        full -= size >= most;
        for (size_t i = 0; i < keep; i++) task->questions[kept++] = task->questions[first + i];
    }
    task->count = kept;
}

static void append_mmlu(const ev_question *question, bis_buf *out) {
    const char *text = question->text;
    size_t length = strlen(text);
    while (length && strchr(" \t\r\n", text[length - 1])) length--;
    while (length && strchr(" \t\r\n", *text)) text++, length--;
    bis_buf_append(out, text, length);
    for (int i = 0; i < EV_CHOICES; i++) bis_buf_printf(out, "\n%c. %s", LETTERS[i], question->choices[i]);
    bis_buf_puts(out, "\nAnswer:");
}

void ev_task_context(const ev_task *task, const ev_question *question, int shots, bis_buf *out) {
    if (task->kind == EV_HELLASWAG) {
        bis_buf_puts(out, question->text);
        return;
    }
    const ev_group *group = &task->groups[question->group];
    bis_buf_puts(out, "The following are multiple choice questions (with answers) about ");
    for (const char *c = group->name; *c; c++) bis_buf_putc(out, *c == '_' ? ' ' : *c);
    bis_buf_puts(out, ".\n\n");
    for (int i = 0; i < shots && i < group->shot_count; i++) {
        append_mmlu(&group->shots[i], out);
        bis_buf_printf(out, " %c\n\n", LETTERS[group->shots[i].answer]);
    }
    append_mmlu(question, out);
}

void ev_task_choice(const ev_task *task, const ev_question *question, int choice, bis_buf *out) {
    if (task->kind == EV_MMLU) bis_buf_printf(out, " %c", LETTERS[choice]);
    else bis_buf_printf(out, " %s", question->choices[choice]);
}
