/* Files: read-only mappings, whole small files, paths. */
#ifndef BISUP_COMMON_FILE_H
#define BISUP_COMMON_FILE_H

#include <stddef.h>

#include "common/buf.h"
#include "common/status.h"

typedef struct bis_mapping {
    const unsigned char *data; /* page-aligned; NULL for an empty file */
    size_t size;
} bis_mapping;

/* Maps a regular file read-only and shared. Errors name the path. Unmap with bis_unmap_file. */
bis_status bis_map_file(const char *path, bis_mapping *out, bis_error *error);
void bis_unmap_file(bis_mapping *mapping);

/* Reads a whole regular file of at most `limit` bytes into *out (which must be empty). */
bis_status bis_read_file(const char *path, size_t limit, bis_buf *out, bis_error *error);

/* Writes "folder/name" to path; name must be a plain file name (no '/', not "." or ".."),
 * because it may come from a model's own files. */
bis_status bis_join_path(const char *folder, const char *name, char *path, size_t path_size, bis_error *error);

/* 1 if the path names a regular file one can read, else 0. */
int bis_file_exists(const char *path);

#endif
