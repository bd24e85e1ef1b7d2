/* Reads CSV (RFC 4180) in place: fields are unquoted and ended by NUL inside the caller's own buffer.
 *
 * Records end with LF or CRLF; a quoted field may hold commas, line breaks and "" for a quote. Empty lines are skipped.
 * Needs no memory. The text must not hold NUL bytes.
 */
#ifndef BISUP_EVALUATION_CSV_H
#define BISUP_EVALUATION_CSV_H

#include <stdbool.h>
#include <stddef.h>

#include "common/status.h"

enum { EV_CSV_FIELDS = 16 }; /* the most fields of a record */

typedef struct ev_csv {
    char *at, *end; /* what is left; *end is writable (a buffer's NUL) */
    int line;       /* of `at`, from 1 */
} ev_csv;

typedef struct ev_csv_record {
    char *fields[EV_CSV_FIELDS]; /* valid as long as the buffer */
    int count;
    int line; /* where it begins */
} ev_csv_record;

void ev_csv_start(ev_csv *csv, char *text, size_t length);

/* The next record; *done: there is none. BIS_ERR_FORMAT with the line (not the file: the caller adds it). */
bis_status ev_csv_next(ev_csv *csv, ev_csv_record *record, bool *done, bis_error *error);

#endif
