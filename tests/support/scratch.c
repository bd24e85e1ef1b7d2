#include "tests/support/scratch.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[PATH_MAX / 4];

static void give_up(const char *what) {
    perror(what);
    exit(2);
}

const char *scratch_make(void) {
    scratch_remove();
    const char *parent = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/bisup-test-XXXXXX", parent && *parent ? parent : "/tmp");
    if (!mkdtemp(folder)) give_up(folder);
    return folder;
}

const char *scratch_path(const char *name) {
    static char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

void scratch_write(const char *name, const void *bytes, size_t size) {
    const char *path = scratch_path(name);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, size, file) != size || fclose(file)) give_up(path);
}

void scratch_write_text(const char *name, const char *text) { scratch_write(name, text, strlen(text)); }

void scratch_remove(void) {
    DIR *entries = *folder ? opendir(folder) : NULL;
    if (!entries) return;
    const struct dirent *entry;
    while ((entry = readdir(entries))) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) unlink(scratch_path(entry->d_name));
    }
    closedir(entries);
    rmdir(folder);
    *folder = '\0';
}

const char *shared_path(const char *name) {
    static char path[PATH_MAX];
    const char *root = getenv("BISUP_SHARED");
    snprintf(path, sizeof path, "%s/%s", root && *root ? root : "../shared", name);
    return path;
}
