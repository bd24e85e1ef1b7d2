/* The option table as data, and the reading of single values: what the files of this folder share. */
#ifndef BISUP_CONFIG_OPTION_TABLE_H
#define BISUP_CONFIG_OPTION_TABLE_H

#include <stddef.h>

#include "config/options.h"

typedef enum cfg_kind {
    CFG_STRING,
    CFG_CHOICE,
    CFG_INT,
    CFG_UINT64,
    CFG_SIZE,
    CFG_FLOAT,
    CFG_BOOL,
    CFG_BITS,
    CFG_INTS,
    CFG_STRINGS
} cfg_kind;

typedef struct cfg_entry {
    const char *name;
    cfg_kind kind;
    const char *default_text;
    double least, most; /* both included */
    const char *hint;
    const char *environment; /* NULL: only a flag */
    unsigned commands;       /* bit 1 << cfg_command */
    const char *help;
    size_t offset; /* of the field in cfg_options */
} cfg_entry;

extern const cfg_entry cfg_table[CFG_OPTION_COUNT];

/* Reads `text` as a value of the entry into *field. False if it is none, and *field is as before.
 * String fields point into `text` or static memory. A STRINGS field gets one more string. */
bool cfg_value_parse(const cfg_entry *entry, const char *text, void *field);

/* Puts what a value must be into `out`, such as "a whole number from 0 to 65535". */
void cfg_value_describe(const cfg_entry *entry, char *out, size_t size);

/* The entry's default: also what a field of zeros becomes. All defaults of the table are valid. */
void cfg_value_default(const cfg_entry *entry, void *field);

/* The one of `count` names that is a likely meaning of `word` (at most a third of it mistyped), or NULL. */
const char *cfg_nearest_name(const char *word, const char *const *names, size_t count);

#endif
