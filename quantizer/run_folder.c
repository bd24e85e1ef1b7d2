#include "quantizer/run_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"
#include "quantizer/safetensors_writer.h"

enum { IDENTITY_MAX = 1 << 20 };

static const char run_name[] = "run.json", report_name[] = "bisup_report.json";

/* ---- Paths ---- */

static bis_status join(char path[PATH_MAX], const char *folder, const char *name, bis_error *error) {
    return bis_join_path(folder, name, path, PATH_MAX, error);
}

/* OUT without slashes at its end. */
static bis_status copy_out(const char *out, char path[PATH_MAX], bis_error *error) {
    size_t length = strlen(out);
    while (length > 1 && out[length - 1] == '/') length--;
    if (!length || length + sizeof ".partial/block-000.safetensors.new" > PATH_MAX) {
        return bis_fail(error, BIS_ERR_INVALID, "'%.80s' cannot be the folder to write", out);
    }
    memcpy(path, out, length);
    path[length] = '\0';
    return BIS_OK;
}

/* The folder that holds `path`, resolved. */
static bool resolve_parent(const char *path, char resolved[PATH_MAX]) {
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    if (!slash) return realpath(".", resolved) != NULL;
    slash[slash == parent] = '\0';
    return realpath(parent, resolved) != NULL;
}

/* `path` is `folder` or lies in it; both resolved. */
static bool lies_in(const char *path, const char *folder) {
    size_t length = strlen(folder);
    if (!strcmp(folder, "/")) return true;
    return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

/* ---- Removing ---- */

static bool is_dots(const char *name) { return !strcmp(name, ".") || !strcmp(name, ".."); }

static bool is_folder(const char *path) {
    struct stat info;
    return !lstat(path, &info) && S_ISDIR(info.st_mode);
}

/* Files in the folder: -1 where it cannot be read or holds a folder. */
static int count_files(const char *path) {
    DIR *stream = opendir(path);
    if (!stream) return -1;
    int count = 0;
    for (const struct dirent *entry; count >= 0 && (entry = readdir(stream));) {
        char inner[PATH_MAX];
        if (is_dots(entry->d_name)) continue;
        count = join(inner, path, entry->d_name, NULL) || is_folder(inner) ? -1 : count + 1;
    }
    closedir(stream);
    return count;
}

/* Removes the files of a folder and, up to `depth`, of the folders in it, and these; the folder itself stays. */
static void empty_folder(const char *path, int depth) {
    DIR *stream = opendir(path);
    if (!stream) return;
    for (const struct dirent *entry; (entry = readdir(stream));) {
        char inner[PATH_MAX];
        if (is_dots(entry->d_name) || join(inner, path, entry->d_name, NULL)) continue;
        if (!is_folder(inner)) {
            unlink(inner);
        } else if (depth > 0) {
            empty_folder(inner, depth - 1); /* NOLINT(misc-no-recursion): one level deep */
            rmdir(inner);
        }
    }
    closedir(stream);
}

/* ---- Checking ---- */

static bis_status check_existing(const char *path, bool force, bis_error *error) {
    struct stat info;
    char report[PATH_MAX];
    if (lstat(path, &info)) return BIS_OK;
    if (!S_ISDIR(info.st_mode)) return bis_fail(error, BIS_ERR_INVALID, "%s is there already and is no folder", path);
    int files = count_files(path);
    if (files == 0) return BIS_OK;
    bis_status status = join(report, path, report_name, error);
    if (status) return status;
    bool ours = files > 0 && bis_file_exists(report);
    if (ours && force) return BIS_OK;
    return bis_fail(error, BIS_ERR_INVALID,
                    ours ? "%s is there already: give another folder, or --force to replace it"
                         : "%s is there already and is no quantized model: give another folder",
                    path);
}

bis_status qz_run_folder_check(const char *model, const char *out, bool force, bis_error *error) {
    char path[PATH_MAX], parent[PATH_MAX], source[PATH_MAX], target[PATH_MAX];
    bis_status status = copy_out(out, path, error);
    if (status) return status;
    if (!resolve_parent(path, parent)) {
        return bis_fail(error, BIS_ERR_IO, "cannot write %s: %s", path, strerror(errno));
    }
    bool known = realpath(model, source) != NULL; /* opening the model will say what is wrong with it */
    bool in_source = known && lies_in(parent, source);
    bool same = known && realpath(path, target) && (lies_in(target, source) || lies_in(source, target));
    if (in_source || same) {
        return bis_fail(error, BIS_ERR_INVALID,
                        "the folder to write, %s, and the model %s lie in each other: give another folder", path,
                        model);
    }
    return check_existing(path, force, error);
}

/* ---- Opening ---- */

static bis_status make_folder(const char *path, bis_error *error) {
    if (!mkdir(path, 0777) || (errno == EEXIST && is_folder(path))) return BIS_OK;
    return bis_fail(error, BIS_ERR_IO, "cannot make the folder %s: %s", path, strerror(errno));
}

static bis_status lock_folder(qz_run_folder *folder, bis_error *error) {
    folder->lock = open(folder->partial, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder->lock < 0) {
        return bis_fail(error, BIS_ERR_IO, "cannot open the folder %s: %s", folder->partial, strerror(errno));
    }
    if (!flock(folder->lock, LOCK_EX | LOCK_NB) || errno != EWOULDBLOCK) return BIS_OK; /* not all disks have locks */
    close(folder->lock);
    return bis_fail(error, BIS_ERR_BUSY, "another bisup quantize is writing %s", folder->partial);
}

/* *known: run.json is there; *same: with this text. */
static bis_status compare_run(const char *path, const bis_buf *identity, bool *known, bool *same, bis_error *error) {
    bis_buf text = {0};
    *known = bis_file_exists(path);
    *same = false;
    if (!*known) return BIS_OK;
    bis_status status = bis_read_file(path, IDENTITY_MAX, &text, error);
    *same = !status && text.length == identity->length && !memcmp(bis_buf_cstr(&text), identity->data, text.length);
    bis_buf_free(&text);
    return status;
}

/* The folder is locked: decides whether its blocks are of this run. */
static bis_status enter(qz_run_folder *folder, const bis_buf *identity, bool *foreign, bis_error *error) {
    char path[PATH_MAX];
    bool known = false, same = false;
    bis_status status = join(path, folder->partial, run_name, error);
    if (!status) status = compare_run(path, identity, &known, &same, error);
    *foreign = status || (known && !same && !folder->force);
    if (status) return status;
    if (*foreign) {
        return bis_fail(error, BIS_ERR_INVALID,
                        "%s is of an unfinished run with other options or inputs: repeat that command to go on with "
                        "it, or give --force (or remove the folder) to begin anew",
                        folder->partial);
    }
    /* A run that ended before it had written run.json has left nothing else. */
    char unfinished[PATH_MAX];
    if (!known && !join(unfinished, folder->partial, "run.json.new", NULL)) unlink(unfinished);
    if (!known && count_files(folder->partial) != 0) {
        *foreign = true;
        return bis_fail(error, BIS_ERR_INVALID, "%s is there already and is no unfinished run: remove it",
                        folder->partial);
    }
    if (same) empty_folder(folder->result, 0);
    else empty_folder(folder->partial, 1);
    if (!same) status = qz_file_write(path, identity->data, identity->length, error);
    if (!status) status = make_folder(folder->result, error);
    return status;
}

bis_status qz_run_folder_open(const char *out, bool force, const bis_buf *identity, qz_run_folder *folder,
                              bis_error *error) {
    qz_run_folder f = {.force = force};
    bis_status status = copy_out(out, f.out, error);
    if (status) return status;
    snprintf(f.partial, sizeof f.partial, "%.*s.partial", PATH_MAX - 16, f.out);
    status = join(f.result, f.partial, "model", error);
    if (!status) status = make_folder(f.partial, error);
    if (!status) status = lock_folder(&f, error);
    if (status) return status;
    bool foreign = false;
    status = enter(&f, identity, &foreign, error);
    if (!status) *folder = f;
    else if (foreign) close(f.lock);
    else qz_run_folder_discard(&f);
    return status;
}

static void file_name(qz_run_file file, int layer, char *name, size_t size) {
    if (file == QZ_FILE_END_TO_END) snprintf(name, size, "end-to-end.tuned");
    else snprintf(name, size, "block-%03d.%s", layer, file == QZ_FILE_TUNED ? "tuned" : "safetensors");
}

bis_status qz_run_folder_file(const qz_run_folder *folder, qz_run_file file, int layer, char path[PATH_MAX],
                              bis_error *error) {
    char name[32];
    file_name(file, layer, name, sizeof name);
    return join(path, folder->partial, name, error);
}

/* ---- Ending ---- */

static bis_status move(const char *from, const char *to, bis_error *error) {
    if (!rename(from, to)) return BIS_OK;
    return bis_fail(error, BIS_ERR_IO, "cannot rename %s to %s: %s", from, to, strerror(errno));
}

bis_status qz_run_folder_finish(qz_run_folder *folder, bis_error *error) {
    char replaced[PATH_MAX];
    bis_status status = check_existing(folder->out, folder->force, error); /* it may have appeared meanwhile */
    if (!status) status = join(replaced, folder->partial, "replaced", error);
    if (status) return status;
    bool replaces = is_folder(folder->out) && count_files(folder->out) > 0;
    if (replaces) status = move(folder->out, replaced, error);
    if (!status) {
        status = move(folder->result, folder->out, error);
        if (status && replaces) (void)move(replaced, folder->out, NULL); /* as it was */
    }
    if (!status) qz_run_folder_discard(folder);
    return status;
}

void qz_run_folder_leave(qz_run_folder *folder) { close(folder->lock); }

void qz_run_folder_discard(qz_run_folder *folder) {
    empty_folder(folder->partial, 1);
    rmdir(folder->partial);
    close(folder->lock);
}
