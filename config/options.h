/* Options of the command line: one table (options.def) gives the flags, the keys of configuration
 * files, the environment variables, the help and the typed fields below.
 *
 * A value comes from the last of these that gives one: default, configuration file (--config or
 * BISUP_CONFIG), environment (BISUP_*), flag. All are read by the same code and checked once, here;
 * a message names where the value came from. Unknown flags, keys and BISUP_* variables are refused
 * with the nearest name, because a setting that is silently ignored is worse than a failed start.
 * Files and the environment serve all commands, so there an option of another command is allowed.
 *
 * Used on the main thread before others start (it reads the environment); afterwards a cfg_options
 * is only read. This part does not open models, resolve paths or read key files.
 */
#ifndef BISUP_CONFIG_OPTIONS_H
#define BISUP_CONFIG_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/status.h"
#include "config/bits.h"

/* ---- Commands -------------------------------------------------------------------------------- */

typedef enum cfg_command {
    CFG_SERVE,
    CFG_GENERATE,
    CFG_INFO,
    CFG_TOKENIZE,
    CFG_BENCH,
    CFG_EVAL,
    CFG_QUANTIZE,
    CFG_HEALTH, /* asks a running server's /health; exit status 0 when it answers 200 */
    CFG_COMMAND_COUNT
} cfg_command;

/* The command of a name such as "serve". BIS_ERR_INVALID with the nearest name for others. */
bis_status cfg_command_parse(const char *name, cfg_command *out, bis_error *error);

/* "serve", ...; static. */
const char *cfg_command_name(cfg_command command);

/* ---- Values ---------------------------------------------------------------------------------- */

enum { CFG_INTS_MAX = 16, CFG_STRINGS_MAX = 4 };

typedef struct cfg_ints {
    int count;
    int values[CFG_INTS_MAX];
} cfg_ints;

typedef struct cfg_strings {
    int count;
    const char *values[CFG_STRINGS_MAX];
} cfg_strings;

typedef enum cfg_origin { CFG_FROM_DEFAULT, CFG_FROM_FILE, CFG_FROM_ENVIRONMENT, CFG_FROM_FLAG } cfg_origin;

/* CFG_OPTION_port, ...: one for each line of the table. */
typedef enum cfg_option {
#define X(field, name, kind, ...) CFG_OPTION_##field,
#include "config/options.def"
#undef X
    CFG_OPTION_COUNT
} cfg_option;

#define CFG_TYPE_STRING const char *
#define CFG_TYPE_CHOICE const char *
#define CFG_TYPE_INT int
#define CFG_TYPE_UINT64 uint64_t
#define CFG_TYPE_SIZE uint64_t
#define CFG_TYPE_FLOAT double
#define CFG_TYPE_BOOL bool
#define CFG_TYPE_BITS cfg_bits
#define CFG_TYPE_INTS cfg_ints
#define CFG_TYPE_STRINGS cfg_strings

typedef struct cfg_options {
/* const char *model; int port; uint64_t kv_memory; ...: see options.def. All are filled whatever the
 * command is. Strings are NULL when not given. */
#define X(field, name, kind, ...) CFG_TYPE_##kind field;
#include "config/options.def"
#undef X
    bool help; /* --help or -h was given; then nothing is checked */

    /* For cfg_option_source and cfg_option_given. */
    cfg_command command;
    cfg_origin origin[CFG_OPTION_COUNT];
    int line[CFG_OPTION_COUNT];        /* of the file, with CFG_FROM_FILE */
    char *file_text[CFG_OPTION_COUNT]; /* owned: texts that string fields point to */
} cfg_options;

/* ---- Functions ------------------------------------------------------------------------------- */

/* Reads all sources for `command`. argv[0..argc) are the arguments after the command's name:
 * `--name value`, `--name=value`, `--flag`, `--no-flag`, `--help` or `-h`, at most one other word, which is
 * the model folder (quantize takes a second, the folder to write), and `--`, after which everything is such a
 * word. The last of repeated flags wins.
 * Also checks what the command cannot do without (a model; a prompt for generate; a text for eval; an OUT and a
 * calibration text for quantize).
 * String fields point into argv, the environment, static text or memory owned by *out: argv and the
 * environment must outlive it. On success call cfg_options_free; on failure *out is unchanged.
 * BIS_ERR_INVALID for a wrong option or value, BIS_ERR_FORMAT for a malformed file, and the codes of
 * bis_read_file for one that cannot be read. */
bis_status cfg_load(cfg_command command, int argc, char *const *argv, cfg_options *out, bis_error *error);
void cfg_options_free(cfg_options *options);

/* True if a file, the environment or a flag gave the option. */
bool cfg_option_given(const cfg_options *options, cfg_option option);

/* Where the value came from, for messages: "--port", "BISUP_PORT in the environment",
 * "port in x.conf line 3", "the default of --port". Returns `text`; cut to `size`. */
const char *cfg_option_source(const cfg_options *options, cfg_option option, char *text, size_t size);

/* The place of `word` among the words of a CHOICE option, from 0; -1 if it is none of them. The words
 * of log-level are in the order of bis_log_level. */
int cfg_choice_index(cfg_option option, const char *word);

/* Prints what a command does, its options with defaults and environment names, and examples. */
void cfg_print_help(FILE *stream, cfg_command command);

/* Prints the list of commands (for `bisup --help`). */
void cfg_print_commands(FILE *stream);

#endif
