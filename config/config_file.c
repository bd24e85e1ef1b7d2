#include "config/config_file.h"

#include <ini.h>
#include <stdbool.h>
#include <string.h>

#include "common/buf.h"
#include "common/file.h"
#include "common/utf8.h"

enum { FILE_BYTES_MAX = 1 << 20 };

typedef struct reader {
    const char *name;
    const char *next, *end; /* the text not yet read */
    int line;               /* last line handed to libinih, from 1 */
    cfg_setting_fn on_setting;
    void *user;
    bis_error *error;
    bis_status status; /* the first failure */
} reader;

static bis_status refuse_line(reader *in, const char *why) {
    return bis_fail(in->error, BIS_ERR_FORMAT, "config file %s line %d: %s", in->name, in->line, why);
}

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

/* libinih would read an indented line as more of the value before it, cut a long line in two, and
 * pass over an empty section, so those are handled here. */
static char *next_line(char *out, int size, void *user) {
    reader *in = user;
    if (in->status || in->next == in->end) return NULL;
    const char *start = in->next;
    const char *newline = memchr(start, '\n', (size_t)(in->end - start));
    const char *stop = newline ? newline : in->end;
    in->next = newline ? newline + 1 : in->end;
    in->line++;
    while (start < stop && is_blank(*start)) start++;
    while (stop > start && is_blank(stop[-1])) stop--;
    size_t length = (size_t)(stop - start);
    bool comment = length > 0 && (*start == '#' || *start == ';');
    if (comment) length = 0;
    if (length > 0 && *start == '[') {
        in->status = refuse_line(in, "sections are not used here; remove the line");
    } else if (length + 3 > (size_t)size) {
        in->status = refuse_line(in, "the line is too long");
    }
    if (in->status) return NULL;
    memcpy(out, start, length);
    memcpy(out + length, "\n", 2);
    return out;
}

static int take_setting(void *user, const char *section, const char *name, const char *value) {
    (void)section; /* always empty, see next_line */
    reader *in = user;
    if (in->status) return 0;
    size_t length = 0; /* up to a comment: libinih knows ';' only */
    while (value[length] && !(value[length] == '#' && (length == 0 || is_blank(value[length - 1])))) length++;
    while (length > 0 && is_blank(value[length - 1])) length--;
    char text[INI_MAX_LINE];
    if (length >= sizeof text) {
        in->status = refuse_line(in, "the value is too long");
        return 0;
    }
    memcpy(text, value, length);
    text[length] = '\0';
    in->status = in->on_setting(in->user, in->line, name, text, in->error);
    return in->status == BIS_OK;
}

bis_status cfg_file_parse(const char *name, const char *text, size_t length, cfg_setting_fn on_setting, void *user,
                          bis_error *error) {
    if (length > 0 && (memchr(text, '\0', length) || !bis_utf8_valid(text, length))) {
        return bis_fail(error, BIS_ERR_FORMAT, "config file %s is not UTF-8 text", name);
    }
    if (length >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) { /* a byte order mark, as some editors write */
        text += 3;
        length -= 3;
    }
    reader in = {.name = name, .on_setting = on_setting, .user = user, .error = error};
    in.next = length ? text : "";
    in.end = in.next + length;
    int bad_line = ini_parse_stream(next_line, &in, take_setting, &in);
    if (bad_line < 0) return bis_fail(error, BIS_ERR_NOMEM, "no memory to read config file %s", name);
    if (bad_line > 0 && (!in.status || bad_line < in.line)) {
        in.line = bad_line;
        return refuse_line(&in, "this is not 'name = value'");
    }
    return in.status;
}

bis_status cfg_file_read(const char *path, cfg_setting_fn on_setting, void *user, bis_error *error) {
    bis_buf text = {0};
    bis_status status = bis_read_file(path, FILE_BYTES_MAX, &text, error);
    if (status) {
        bis_fail_within(error, "config file");
        return status;
    }
    status = cfg_file_parse(path, bis_buf_cstr(&text), text.length, on_setting, user, error);
    bis_buf_free(&text);
    return status;
}
