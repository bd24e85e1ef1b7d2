/* Configuration files: lines of `name = value`, read with libinih.
 *
 * A '#' or ';' at the start of a line or after a blank begins a comment. There are no sections, and a
 * value ends with its line. This part knows the syntax only: names and values go to the caller's function.
 */
#ifndef BISUP_CONFIG_CONFIG_FILE_H
#define BISUP_CONFIG_CONFIG_FILE_H

#include <stddef.h>

#include "common/status.h"

/* Called for each setting in the file's order; `value` has no blanks around it and may be empty. Both texts
 * are valid during the call only. A status other than BIS_OK (with *error filled) ends the reading. */
typedef bis_status (*cfg_setting_fn)(void *user, int line, const char *name, const char *value, bis_error *error);

/* Reads a file. Errors name it, and the line where there is one: those of bis_read_file, BIS_ERR_FORMAT for
 * wrong syntax, or what `on_setting` returned. */
bis_status cfg_file_read(const char *path, cfg_setting_fn on_setting, void *user, bis_error *error);

/* The same for text in memory; `name` stands for the file in messages. */
bis_status cfg_file_parse(const char *name, const char *text, size_t length, cfg_setting_fn on_setting, void *user,
                          bis_error *error);

#endif
