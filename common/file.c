#include "common/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static bis_status open_regular(const char *path, int *descriptor, size_t *size, bis_error *error) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        bis_status status = errno == ENOENT || errno == ENOTDIR ? BIS_ERR_NOT_FOUND : BIS_ERR_IO;
        return bis_fail(error, status, "cannot open %s: %s", path, strerror(errno));
    }
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(fd);
        return bis_fail(error, BIS_ERR_IO, "%s is not a regular file", path);
    }
    *descriptor = fd;
    *size = (size_t)info.st_size;
    return BIS_OK;
}

bis_status bis_map_file(const char *path, bis_mapping *out, bis_error *error) {
    int fd;
    size_t size;
    bis_status status = open_regular(path, &fd, &size, error);
    if (status) return status;
    void *data = NULL;
    if (size > 0) data = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    int cause = errno;
    close(fd);
    if (data == MAP_FAILED) return bis_fail(error, BIS_ERR_IO, "cannot map %s: %s", path, strerror(cause));
    *out = (bis_mapping){data, size};
    return BIS_OK;
}

void bis_unmap_file(bis_mapping *mapping) {
    if (mapping->data) munmap((void *)mapping->data, mapping->size);
    *mapping = (bis_mapping){0};
}

bis_status bis_read_file(const char *path, size_t limit, bis_buf *out, bis_error *error) {
    int fd;
    size_t size;
    bis_status status = open_regular(path, &fd, &size, error);
    if (status) return status;
    if (size > limit) {
        close(fd);
        return bis_fail(error, BIS_ERR_LIMIT, "%s has %zu bytes; at most %zu are accepted here", path, size, limit);
    }
    if (!bis_buf_reserve(out, size)) status = bis_fail(error, BIS_ERR_NOMEM, "no memory to read %s", path);
    size_t done = 0;
    while (!status && done < size) {
        ssize_t n = read(fd, out->data + done, size - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) status = bis_fail(error, BIS_ERR_IO, "cannot read %s: %s", path, strerror(errno));
        if (n <= 0) break;
        done += (size_t)n;
    }
    close(fd);
    if (status) {
        bis_buf_free(out);
        return status;
    }
    out->length = done;
    out->data[done] = '\0';
    return BIS_OK;
}

bis_status bis_join_path(const char *folder, const char *name, char *path, size_t path_size, bis_error *error) {
    if (!*name || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, "..")) {
        return bis_fail(error, BIS_ERR_FORMAT, "'%.80s' is not a plain file name", name);
    }
    int length = snprintf(path, path_size, "%s/%s", folder, name);
    if (length < 0 || (size_t)length >= path_size) {
        return bis_fail(error, BIS_ERR_LIMIT, "the path %.80s/... is too long", folder);
    }
    return BIS_OK;
}

int bis_file_exists(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode) && access(path, R_OK) == 0;
}
