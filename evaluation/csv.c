#include "evaluation/csv.h"

void ev_csv_start(ev_csv *csv, char *text, size_t length) {
    *csv = (ev_csv){.at = text, .end = text + length, .line = 1};
}

/* Moves over one line end, if the text stands at one. */
static bool take_line_end(ev_csv *csv) {
    bool crlf = csv->end - csv->at >= 2 && csv->at[0] == '\r' && csv->at[1] == '\n';
    if (!crlf && (csv->at == csv->end || *csv->at != '\n')) return false;
    csv->at += crlf ? 2 : 1;
    csv->line++;
    return true;
}

static bool at_field_end(const ev_csv *csv) {
    if (csv->at == csv->end || *csv->at == ',' || *csv->at == '\n') return true;
    return *csv->at == '\r' && csv->end - csv->at >= 2 && csv->at[1] == '\n';
}

/* Moves over a quoted field, after its opening quote, and packs its text to *write. */
static bis_status take_quoted(ev_csv *csv, char **write, bis_error *error) {
    int line = csv->line;
    for (;;) {
        if (csv->at == csv->end) {
            return bis_fail(error, BIS_ERR_FORMAT, "line %d: a quoted field has no closing quote", line);
        }
        if (*csv->at == '"') {
            csv->at++;
            if (csv->at == csv->end || *csv->at != '"') break;
        } else if (*csv->at == '\n') {
            csv->line++;
        }
        *(*write)++ = *csv->at++;
    }
    if (at_field_end(csv)) return BIS_OK;
    return bis_fail(error, BIS_ERR_FORMAT, "line %d: text after a closing quote; write a quote in a field as \"\"",
                    csv->line);
}

/* One field. Its NUL may take the place of the character that ends it, so that is told in *ended_record first. */
static bis_status take_field(ev_csv *csv, char **field, bool *ended_record, bis_error *error) {
    char *write = csv->at;
    *field = write;
    if (csv->at < csv->end && *csv->at == '"') {
        csv->at++;
        bis_status status = take_quoted(csv, &write, error);
        if (status) return status;
    } else {
        while (!at_field_end(csv)) csv->at++;
        write = csv->at;
    }
    *ended_record = csv->at == csv->end || *csv->at != ',';
    if (!*ended_record) csv->at++;
    else take_line_end(csv);
    *write = '\0';
    return BIS_OK;
}

bis_status ev_csv_next(ev_csv *csv, ev_csv_record *record, bool *done, bis_error *error) {
    while (take_line_end(csv)) {
    }
    *done = csv->at == csv->end;
    record->count = 0;
    record->line = csv->line;
    for (bool ended = *done; !ended;) {
        if (record->count == EV_CSV_FIELDS) {
            return bis_fail(error, BIS_ERR_FORMAT, "line %d: more than %d fields", record->line, (int)EV_CSV_FIELDS);
        }
        bis_status status = take_field(csv, &record->fields[record->count], &ended, error);
        if (status) return status;
        record->count++;
    }
    return BIS_OK;
}
