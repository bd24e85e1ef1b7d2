/* Tensors stored in safetensors files, read in place from memory-mapped files.
 *
 * A file is: the length of its header (8 bytes, little endian), the header (a JSON object: tensor name ->
 * dtype, shape, data_offsets), the data. A folder holds either model.safetensors or several such files (shards)
 * and model.safetensors.index.json, which says which shard holds which tensor.
 *
 * Everything the header says is checked before any of it is used: known dtype, size == shape times element
 * size, ranges inside the file. Tensors must cover the data without overlap, hole or rest, as the format asks of
 * every writer: so a header that does not belong to its data is found here and not as wrong numbers later.
 *
 * Immutable after opening; any thread may read. A file that is cut short by somebody else while it is mapped
 * ends the process with SIGBUS: replace model files by renaming new ones over them.
 */
#ifndef BISUP_RUNTIME_SAFETENSORS_H
#define BISUP_RUNTIME_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

enum { RT_SAFETENSORS_DIMS_MAX = 8, RT_SAFETENSORS_SHARDS_MAX = 4096 };

typedef enum rt_stored_type {
    RT_STORED_F4,
    RT_STORED_F6_E2M3,
    RT_STORED_F6_E3M2,
    RT_STORED_BOOL,
    RT_STORED_U8,
    RT_STORED_I8,
    RT_STORED_F8_E5M2,
    RT_STORED_F8_E4M3,
    RT_STORED_F8_E5M2FNUZ,
    RT_STORED_F8_E4M3FNUZ,
    RT_STORED_F8_E8M0,
    RT_STORED_I16,
    RT_STORED_U16,
    RT_STORED_F16,
    RT_STORED_BF16,
    RT_STORED_I32,
    RT_STORED_U32,
    RT_STORED_F32,
    RT_STORED_F64,
    RT_STORED_I64,
    RT_STORED_U64,
    RT_STORED_C64,
    RT_STORED_TYPE_COUNT
} rt_stored_type;

typedef struct rt_stored_tensor {
    const char *name;
    const char *file; /* path of the file that holds it */
    rt_stored_type type;
    int dims; /* 0 for a scalar */
    uint64_t shape[RT_SAFETENSORS_DIMS_MAX];
    const void *data; /* little endian, not aligned; inside the mapping (never NULL, also when bytes == 0) */
    size_t bytes;
} rt_stored_tensor;

typedef struct rt_safetensors rt_safetensors;

/* Opens one file. Errors name the file and, where there is one, the tensor. */
bis_status rt_safetensors_open(const char *path, rt_safetensors **out, bis_error *error);

/* Opens a folder's model.safetensors or, where there is none, the shards of model.safetensors.index.json. Shard
 * names must be plain file names. Every tensor of the index must be in the shard the index names. */
bis_status rt_safetensors_open_folder(const char *folder, rt_safetensors **out, bis_error *error);

/* Reads a file's image in memory, which must outlive *out; `name` stands for the path in errors. */
bis_status rt_safetensors_open_memory(const void *image, size_t size, const char *name, rt_safetensors **out,
                                      bis_error *error);

void rt_safetensors_close(rt_safetensors *file); /* NULL is allowed */

size_t rt_safetensors_count(const rt_safetensors *file);

/* The tensor at 0 <= index < count, in the order of names; valid until closing. */
const rt_stored_tensor *rt_safetensors_at(const rt_safetensors *file, size_t index);

/* NULL where there is no tensor of that name. Binary search. */
const rt_stored_tensor *rt_safetensors_find(const rt_safetensors *file, const char *name);

/* Unix time of the newest file's last change; 0 for memory. */
int64_t rt_safetensors_modified(const rt_safetensors *file);

/* As the header spells it, e.g. "F32", "I64". */
const char *rt_stored_type_name(rt_stored_type type);

#endif
