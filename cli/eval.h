/* What the parts of bisup eval share: the opened model with its prompt, the columns to measure, and the printing. */
#ifndef BISUP_CLI_EVAL_H
#define BISUP_CLI_EVAL_H

#include "cli/cli.h"
#include "evaluation/choice.h"
#include "evaluation/lane.h"
#include "evaluation/metrics.h"
#include "evaluation/task.h"

/* How a column treats the prompt's keys and values. */
typedef enum eval_prompt { EVAL_PROMPT_FULL, EVAL_PROMPT_LOW, EVAL_PROMPT_NONE, EVAL_PROMPTS } eval_prompt;

typedef struct eval_columns {
    eval_prompt prompts[EVAL_PROMPTS];
    int count;
    bool named; /* there is a prompt, so that its treatment is told */
} eval_columns;

/* with_none: a column without the prompt makes sense. */
eval_columns eval_choose_columns(const cfg_options *options, int kv_bits, bool with_prompt, bool with_none);
const char *eval_prompt_name(eval_prompt prompt); /* "fp16", "low", "none" */

/* The model, and what else a run without the engine needs. Lanes are opened by the parts. */
typedef struct eval_run {
    const cfg_options *options;
    rt_model *model, *reference; /* reference NULL: none */
    rt_tokenizer *tokenizer;
    kn_backend *backend;
    ev_runner *runner, *reference_runner;
    rt_tokens prompt; /* of --prompt, as it stands before every text */
    int kv_bits;
    eval_columns columns;
    ev_lane *lanes[EVAL_PROMPTS];           /* by column */
    ev_lane *reference_lanes[EVAL_PROMPTS]; /* by column; columns with the same prompt share one */
} eval_run;

/* Opens the models and tokenizer, reads the prompt, and chooses the columns. Close also after a failure. */
bis_status eval_open(const cfg_options *options, eval_run *run, bis_error *error);
/* The most tokens that fit after the prompt in the models' contexts; at least 2, else an error. */
bis_status eval_room(const eval_run *run, int *room, bis_error *error);
/* Opens backend, runners and lanes for `room` tokens after the prompt; computes the prompt for each column. */
bis_status eval_open_lanes(eval_run *run, int room, bis_error *error);
void eval_close(eval_run *run);

/* The tasks. Each prints its result on success. */
int eval_perplexity(eval_run *run);
int eval_choices(eval_run *run, ev_task_kind kind);
int eval_facts(const cfg_options *options);

/* Appends "name": number, or null where it is not finite. */
void eval_json_number(bis_buf *out, const char *name, double value);
/* Appends what all results say: "prompt_kv", "prompt_tokens", "kv_bits". */
void eval_json_prompt(bis_buf *out, const eval_columns *columns, int column, size_t prompt_tokens, int kv_bits);
/* The column's name in tables: the prompt's treatment, or "-" without a prompt. */
const char *eval_column_name(const eval_columns *columns, int column);

#endif
