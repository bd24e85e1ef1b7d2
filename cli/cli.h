/* The commands of the bisup program. Each returns the process's exit status: 0 done, 1 failed, 2 wrong usage. */
#ifndef BISUP_CLI_CLI_H
#define BISUP_CLI_CLI_H

#include "common/status.h"
#include "config/options.h"
#include "runtime/engine.h"

int cli_serve(const cfg_options *options);
int cli_generate(const cfg_options *options);
int cli_info(const cfg_options *options);
int cli_tokenize(const cfg_options *options);
int cli_bench(const cfg_options *options);
int cli_eval(const cfg_options *options);
int cli_quantize(const cfg_options *options);
int cli_health(const cfg_options *options);

/* Prints "bisup: <text>" to standard error and returns 1. */
int cli_fail(const bis_error *error);

/* Writes a finished result to standard output; 1 with a message if it could not be built or written. */
int cli_print(bis_buf *text);

/* Engine options from the settings that serve and generate share. */
rt_engine_options cli_engine_options(const cfg_options *options);

/* The most memory this process has had in RAM, in bytes. */
uint64_t cli_peak_memory(void);

#endif
