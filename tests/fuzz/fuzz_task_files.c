/* Fuzzes the files of evaluation tasks. The first byte chooses the format; the rest is the file. What is accepted must
 * be renderable, and a limit must keep its promise. */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/alloc.h"
#include "evaluation/task.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use_task(ev_task *task) {
    bis_buf out = {0};
    for (size_t i = 0; i < task->count; i++) {
        const ev_question *question = &task->questions[i];
        if (question->answer < 0 || question->answer >= EV_CHOICES) abort();
        bis_buf_clear(&out);
        ev_task_context(task, question, EV_SHOTS_MAX, &out);
        for (int c = 0; c < EV_CHOICES; c++) ev_task_choice(task, question, c, &out);
    }
    bis_buf_free(&out);
    size_t limit = task->count / 2;
    ev_task_limit(task, limit);
    if (limit && task->count != limit) abort();
}

static void fuzz_mmlu(bis_buf *text, bool shots) {
    ev_task task = {.kind = EV_MMLU};
    bis_error error;
    task.groups = bis_calloc(1, sizeof *task.groups);
    if (!task.groups) return;
    task.group_count = 1;
    task.groups[0].name = bis_strdup("some_subject");
    if (task.groups[0].name && ev_mmlu_parse("x.csv", text, 0, shots, &task, &error) == BIS_OK) use_task(&task);
    ev_task_free(&task);
}

static void fuzz_hellaswag(bis_buf *text) {
    ev_task task = {.kind = EV_HELLASWAG};
    bis_error error;
    if (ev_hellaswag_parse("x.txt", text, &task, &error) == BIS_OK) use_task(&task);
    ev_task_free(&task);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size) return 0;
    ev_facts facts;
    bis_error error;
    bis_buf text = {0};
    if (size > 1 && !bis_buf_append(&text, data + 1, size - 1)) return 0;
    switch (*data % 4) {
    case 0: fuzz_mmlu(&text, false); break;
    case 1: fuzz_mmlu(&text, true); break;
    case 2: fuzz_hellaswag(&text); break;
    default:
        if (ev_facts_parse("x.jsonl", bis_buf_cstr(&text), text.length, &facts, &error) == BIS_OK) {
            ev_facts_free(&facts);
        }
    }
    bis_buf_free(&text);
    return 0;
}
