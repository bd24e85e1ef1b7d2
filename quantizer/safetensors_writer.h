/* Writes safetensors files tensor after tensor, so that no file is ever in memory as a whole.
 *
 * Tensors are stored in falling order of element size, then by name: with the header's length a multiple of 8, each
 * tensor's numbers are aligned in a mapped file. A file appears under its name only when it is complete and on disk.
 */
#ifndef BISUP_QUANTIZER_SAFETENSORS_WRITER_H
#define BISUP_QUANTIZER_SAFETENSORS_WRITER_H

#include <stdbool.h>
#include <stdio.h>

#include "common/status.h"
#include "runtime/model/safetensors.h"

/* Where a tensor's bytes go while it is its turn. */
typedef struct qz_sink qz_sink;

/* Appends bytes to the tensor in turn; false after a failure, which qz_tensors_write reports. */
bool qz_sink_put(qz_sink *sink, const void *bytes, size_t size);

/* Puts all bytes of one tensor. A failure of its own (memory) is returned; others end in a false of qz_sink_put. */
typedef bis_status (*qz_tensor_fill)(void *user, qz_sink *sink, bis_error *error);

typedef struct qz_tensor {
    char name[96];
    rt_stored_type type; /* U8, I8, F16, I32, F32, F64 */
    int dims;            /* 1 or 2 */
    uint64_t shape[2];
    const void *data; /* borrowed until written; NULL: `fill` gives the bytes */
    qz_tensor_fill fill;
    void *user;
} qz_tensor;

/* A growing list; zero-initialise. A failed append is remembered and reported by qz_tensors_write. */
typedef struct qz_tensors {
    qz_tensor *items;
    size_t count, capacity;
    bool failed;
} qz_tensors;

/* cols 0: a vector of `rows` numbers. Returns the new entry, or NULL where there is no memory. */
qz_tensor *qz_tensors_add(qz_tensors *list, const char *name, rt_stored_type type, uint64_t rows, uint64_t cols,
                          const void *data);
void qz_tensors_free(qz_tensors *list);

size_t qz_tensor_bytes(const qz_tensor *tensor);

/* Sorts the list and writes it to `path` (through "<path>.new", which is gone after a failure). Names must be unique.
 */
bis_status qz_tensors_write(qz_tensors *list, const char *path, bis_error *error);

/* Writes a whole small file in the same way. */
bis_status qz_file_write(const char *path, const void *bytes, size_t size, bis_error *error);

#endif
