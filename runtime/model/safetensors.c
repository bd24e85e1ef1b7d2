#include "runtime/model/safetensors.h"

#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/alloc.h"
#include "common/file.h"
#include "runtime/model/metadata.h"

enum { LENGTH_BYTES = 8, HEADER_MAX = 100 * 1000 * 1000, INDEX_MAX = 100 * 1000 * 1000 };

typedef struct mapped_file {
    char *path;
    bis_mapping mapping; /* empty where the image is borrowed */
} mapped_file;

struct rt_safetensors {
    mapped_file *files;
    size_t file_count;
    rt_stored_tensor *tensors; /* names are owned; sorted by name once open */
    size_t count, capacity;
    int64_t modified;
};

/* A file's data section, in which the header's offsets count. */
typedef struct data_section {
    const char *path;
    const unsigned char *data;
    uint64_t size;
} data_section;

static const struct {
    const char *name;
    unsigned bits;
} stored_types[RT_STORED_TYPE_COUNT] = {
    [RT_STORED_F4] = {"F4", 4},
    [RT_STORED_F6_E2M3] = {"F6_E2M3", 6},
    [RT_STORED_F6_E3M2] = {"F6_E3M2", 6},
    [RT_STORED_BOOL] = {"BOOL", 8},
    [RT_STORED_U8] = {"U8", 8},
    [RT_STORED_I8] = {"I8", 8},
    [RT_STORED_F8_E5M2] = {"F8_E5M2", 8},
    [RT_STORED_F8_E4M3] = {"F8_E4M3", 8},
    [RT_STORED_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8},
    [RT_STORED_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8},
    [RT_STORED_F8_E8M0] = {"F8_E8M0", 8},
    [RT_STORED_I16] = {"I16", 16},
    [RT_STORED_U16] = {"U16", 16},
    [RT_STORED_F16] = {"F16", 16},
    [RT_STORED_BF16] = {"BF16", 16},
    [RT_STORED_I32] = {"I32", 32},
    [RT_STORED_U32] = {"U32", 32},
    [RT_STORED_F32] = {"F32", 32},
    [RT_STORED_F64] = {"F64", 64},
    [RT_STORED_I64] = {"I64", 64},
    [RT_STORED_U64] = {"U64", 64},
    [RT_STORED_C64] = {"C64", 64},
};

const char *rt_stored_type_name(rt_stored_type type) {
    return (unsigned)type < RT_STORED_TYPE_COUNT ? stored_types[type].name : "unknown";
}

/* ---- one tensor's entry in a header ---- */

static bis_status read_type(const cJSON *entry, rt_stored_tensor *tensor, bis_error *error) {
    const cJSON *item = rt_metadata_get(entry, "dtype");
    char shown[RT_METADATA_SHOWN_MAX];
    for (int i = 0; cJSON_IsString(item) && i < RT_STORED_TYPE_COUNT; i++) {
        if (!strcmp(item->valuestring, stored_types[i].name)) {
            tensor->type = (rt_stored_type)i;
            return BIS_OK;
        }
    }
    return bis_fail(error, BIS_ERR_FORMAT, "%s: tensor '%.80s' has the unknown dtype %s", tensor->file, tensor->name,
                    rt_metadata_show(item, shown));
}

/* Reads the shape and computes the bytes the tensor must have. */
static bis_status read_shape(const cJSON *entry, rt_stored_tensor *tensor, uint64_t *bytes, bis_error *error) {
    const cJSON *list = rt_metadata_get(entry, "shape"), *item;
    uint64_t bits = stored_types[tensor->type].bits;
    bool valid = cJSON_IsArray(list);
    int dims = 0;
    cJSON_ArrayForEach(item, list) {
        valid = valid && dims < RT_SAFETENSORS_DIMS_MAX && rt_metadata_whole(item, &tensor->shape[dims]) &&
                !__builtin_mul_overflow(bits, tensor->shape[dims], &bits);
        if (!valid) break;
        dims++;
    }
    if (!valid || bits % CHAR_BIT) {
        return bis_fail(
            error, BIS_ERR_FORMAT,
            "%s: tensor '%.80s' has a bad shape (at most %d whole numbers, together whole bytes below 2^61)",
            tensor->file, tensor->name, RT_SAFETENSORS_DIMS_MAX);
    }
    tensor->dims = dims;
    *bytes = bits / CHAR_BIT;
    return BIS_OK;
}

static bis_status read_range(const cJSON *entry, const data_section *section, uint64_t want, rt_stored_tensor *tensor,
                             bis_error *error) {
    const cJSON *list = rt_metadata_get(entry, "data_offsets");
    uint64_t begin, end;
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != 2 || !rt_metadata_whole(list->child, &begin) ||
        !rt_metadata_whole(list->child->next, &end) || begin > end) {
        return bis_fail(error, BIS_ERR_FORMAT, "%s: tensor '%.80s' has bad data_offsets (two ascending whole numbers)",
                        tensor->file, tensor->name);
    }
    if (end > section->size) {
        return bis_fail(error, BIS_ERR_FORMAT,
                        "%s is cut short: tensor '%.80s' ends at data byte %llu of %llu; copy the file again",
                        tensor->file, tensor->name, (unsigned long long)end, (unsigned long long)section->size);
    }
    if (end - begin != want) {
        return bis_fail(error, BIS_ERR_FORMAT,
                        "%s: tensor '%.80s' has %llu bytes of data where its shape and dtype need %llu", tensor->file,
                        tensor->name, (unsigned long long)(end - begin), (unsigned long long)want);
    }
    tensor->data = section->data + begin;
    tensor->bytes = (size_t)want;
    return BIS_OK;
}

static bis_status read_entry(const cJSON *entry, const data_section *section, rt_stored_tensor *tensor,
                             bis_error *error) {
    if (!cJSON_IsObject(entry)) {
        return bis_fail(error, BIS_ERR_FORMAT, "%s: the header's entry '%.80s' is not an object", tensor->file,
                        tensor->name);
    }
    uint64_t bytes = 0;
    bis_status status = read_type(entry, tensor, error);
    if (!status) status = read_shape(entry, tensor, &bytes, error);
    if (!status) status = read_range(entry, section, bytes, tensor, error);
    return status;
}

/* ---- a header ---- */

static bis_status out_of_memory(const char *path, bis_error *error) {
    return bis_fail(error, BIS_ERR_NOMEM, "%s: no memory for the list of tensors", path);
}

static bis_status add_tensor(rt_safetensors *file, const rt_stored_tensor *tensor, bis_error *error) {
    if (file->count == file->capacity) {
        size_t capacity = file->capacity ? 2 * file->capacity : 64;
        rt_stored_tensor *grown = bis_reallocarray(file->tensors, capacity, sizeof *grown);
        if (!grown) return out_of_memory(tensor->file, error);
        file->tensors = grown;
        file->capacity = capacity;
    }
    char *name = bis_strdup(tensor->name);
    if (!name) return out_of_memory(tensor->file, error);
    file->tensors[file->count] = *tensor;
    file->tensors[file->count++].name = name;
    return BIS_OK;
}

static int by_place(const void *left, const void *right) {
    const rt_stored_tensor *a = left, *b = right;
    if (a->data != b->data) return (const char *)a->data < (const char *)b->data ? -1 : 1;
    return (a->bytes > b->bytes) - (a->bytes < b->bytes); /* empty tensors before the one that starts there */
}

static int by_name(const void *left, const void *right) {
    return strcmp(((const rt_stored_tensor *)left)->name, ((const rt_stored_tensor *)right)->name);
}

/* The tensors from index `first` on must cover the data section without overlap, hole or rest. */
static bis_status check_cover(rt_safetensors *file, size_t first, const data_section *section, bis_error *error) {
    size_t count = file->count - first;
    if (count) qsort(file->tensors + first, count, sizeof *file->tensors, by_place);
    const unsigned char *expected = section->data;
    for (size_t i = first; i < file->count; i++) {
        const rt_stored_tensor *tensor = &file->tensors[i];
        if (tensor->data != expected) {
            bool overlaps = (const unsigned char *)tensor->data < expected;
            return bis_fail(error, BIS_ERR_FORMAT, "%s: the data of tensor '%.80s' %s: the header is wrong",
                            section->path, tensor->name,
                            overlaps ? "overlaps another tensor's" : "follows bytes that belong to no tensor");
        }
        expected += tensor->bytes;
    }
    uint64_t rest = section->size - (uint64_t)(expected - section->data);
    if (rest == 0) return BIS_OK;
    return bis_fail(error, BIS_ERR_FORMAT, "%s: the last %llu bytes belong to no tensor: the header is wrong",
                    section->path, (unsigned long long)rest);
}

static bis_status read_header(rt_safetensors *file, const cJSON *header, const data_section *section,
                              bis_error *error) {
    size_t first = file->count;
    const cJSON *entry;
    cJSON_ArrayForEach(entry, header) {
        if (!strcmp(entry->string, "__metadata__")) continue; /* free text of the writer */
        rt_stored_tensor tensor = {.name = entry->string, .file = section->path};
        bis_status status = read_entry(entry, section, &tensor, error);
        if (!status) status = add_tensor(file, &tensor, error);
        if (status) return status;
    }
    return check_cover(file, first, section, error);
}

static bis_status read_image(rt_safetensors *file, const unsigned char *image, size_t size, const char *path,
                             bis_error *error) {
    if (size < LENGTH_BYTES) {
        return bis_fail(error, BIS_ERR_FORMAT, "%s is not a safetensors file: it has only %zu bytes", path, size);
    }
    uint64_t length = 0;
    for (int i = LENGTH_BYTES; i-- > 0;) length = length << 8 | image[i];
    if (length > HEADER_MAX) {
        return bis_fail(error, BIS_ERR_FORMAT,
                        "%s is not a safetensors file: its header would have %llu bytes (at most %d are accepted)",
                        path, (unsigned long long)length, HEADER_MAX);
    }
    if (length > size - LENGTH_BYTES) {
        return bis_fail(error, BIS_ERR_FORMAT, "%s is cut short: its header has %llu bytes, the file %zu", path,
                        (unsigned long long)length, size);
    }
    cJSON *header;
    bis_status status = rt_metadata_parse((const char *)image + LENGTH_BYTES, (size_t)length, path, &header, error);
    if (status) return status;
    size_t start = LENGTH_BYTES + (size_t)length;
    data_section section = {path, image + start, size - start};
    status = read_header(file, header, &section, error);
    cJSON_Delete(header);
    return status;
}

/* ---- files ---- */

/* NULL where there is no memory. */
static rt_safetensors *make_reader(size_t files) {
    rt_safetensors *file = bis_calloc(1, sizeof *file);
    if (file) file->files = bis_calloc(files, sizeof *file->files);
    if (file && file->files) return file;
    bis_free(file);
    return NULL;
}

static mapped_file *add_path(rt_safetensors *file, const char *path) {
    mapped_file *next = &file->files[file->file_count];
    next->path = bis_strdup(path);
    if (!next->path) return NULL;
    file->file_count++;
    return next;
}

static bis_status add_file(rt_safetensors *file, const char *path, bis_error *error) {
    mapped_file *added = add_path(file, path);
    if (!added) return out_of_memory(path, error);
    bis_status status = bis_map_file(path, &added->mapping, error);
    if (!status) status = read_image(file, added->mapping.data, added->mapping.size, added->path, error);
    if (status) return status;
    struct stat info;
    if (stat(path, &info) == 0 && info.st_mtime > file->modified) file->modified = info.st_mtime;
    return BIS_OK;
}

/* Sorts by name and gives the reader away, or closes it after a failure. */
static bis_status finish(bis_status status, rt_safetensors *file, rt_safetensors **out, bis_error *error) {
    if (!status && file->count) qsort(file->tensors, file->count, sizeof *file->tensors, by_name);
    for (size_t i = 1; !status && i < file->count; i++) {
        const rt_stored_tensor *tensor = &file->tensors[i];
        if (by_name(tensor - 1, tensor) == 0) {
            status = bis_fail(error, BIS_ERR_FORMAT, "%s: tensor '%.80s' is stored twice", tensor->file, tensor->name);
        }
    }
    if (status) rt_safetensors_close(file);
    else *out = file;
    return status;
}

bis_status rt_safetensors_open(const char *path, rt_safetensors **out, bis_error *error) {
    rt_safetensors *file = make_reader(1);
    if (!file) return out_of_memory(path, error);
    return finish(add_file(file, path, error), file, out, error);
}

bis_status rt_safetensors_open_memory(const void *image, size_t size, const char *name, rt_safetensors **out,
                                      bis_error *error) {
    rt_safetensors *file = make_reader(1);
    if (!file) return out_of_memory(name, error);
    const mapped_file *added = add_path(file, name);
    bis_status status = added ? read_image(file, image, size, added->path, error) : out_of_memory(name, error);
    return finish(status, file, out, error);
}

/* ---- shards ---- */

static int by_text(const void *left, const void *right) {
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* The distinct file names of a weight map, borrowed from it; the caller frees the list. */
static bis_status list_shards(const cJSON *map, const char *index, const char ***out, size_t *count, bis_error *error) {
    size_t entries = 0, kept = 0;
    const cJSON *entry;
    cJSON_ArrayForEach(entry, map) entries++;
    if (!cJSON_IsObject(map) || entries == 0) {
        return bis_fail(error, BIS_ERR_FORMAT, "%s: weight_map must be an object: tensor name to file name", index);
    }
    const char **names = bis_reallocarray(NULL, entries, sizeof *names);
    if (!names) return out_of_memory(index, error);
    cJSON_ArrayForEach(entry, map) {
        if (!cJSON_IsString(entry)) {
            bis_free(names);
            return bis_fail(error, BIS_ERR_FORMAT, "%s: the file of tensor '%.80s' is not a string", index,
                            entry->string);
        }
        names[kept++] = entry->valuestring;
    }
    qsort(names, entries, sizeof *names, by_text);
    kept = 1;
    for (size_t i = 1; i < entries; i++) {
        if (strcmp(names[i], names[kept - 1]) != 0) names[kept++] = names[i];
    }
    if (kept > RT_SAFETENSORS_SHARDS_MAX) {
        bis_free(names);
        return bis_fail(error, BIS_ERR_LIMIT, "%s names %zu files; at most %d are accepted", index, kept,
                        RT_SAFETENSORS_SHARDS_MAX);
    }
    *out = names;
    *count = kept;
    return BIS_OK;
}

static bis_status add_shards(rt_safetensors *file, const char *folder, const char *const *names, size_t count,
                             const char *index, bis_error *error) {
    for (size_t i = 0; i < count; i++) {
        char path[PATH_MAX];
        bis_status status = bis_join_path(folder, names[i], path, sizeof path, error);
        if (status) return bis_fail_within(error, "%s", index);
        status = add_file(file, path, error);
        if (status == BIS_ERR_NOT_FOUND) {
            return bis_fail(error, status, "%s is missing: shard %zu of the %zu named in %s", path, i + 1, count,
                            index);
        }
        if (status) return status;
    }
    return BIS_OK;
}

/* Runs after sorting: the index may not promise what the shards do not hold. */
static bis_status check_map(const rt_safetensors *file, const cJSON *map, const char *index, bis_error *error) {
    const cJSON *entry;
    cJSON_ArrayForEach(entry, map) {
        const rt_stored_tensor *tensor = rt_safetensors_find(file, entry->string);
        const char *base = tensor ? strrchr(tensor->file, '/') : NULL;
        if (!base || strcmp(base + 1, entry->valuestring) != 0) {
            return bis_fail(error, BIS_ERR_FORMAT, "%s says that tensor '%.80s' is in %.80s, but it is not", index,
                            entry->string, entry->valuestring);
        }
    }
    return BIS_OK;
}

static bis_status open_sharded(const char *folder, const char *index, const cJSON *map, rt_safetensors **out,
                               bis_error *error) {
    const char **names = NULL;
    size_t count = 0;
    bis_status status = list_shards(map, index, &names, &count, error);
    if (status) return status;
    rt_safetensors *file = make_reader(count), *opened = NULL;
    status = file ? add_shards(file, folder, names, count, index, error) : out_of_memory(index, error);
    status = finish(status, file, &opened, error);
    bis_free(names);
    if (!status) status = check_map(opened, map, index, error);
    if (status) rt_safetensors_close(opened);
    else *out = opened;
    return status;
}

bis_status rt_safetensors_open_folder(const char *folder, rt_safetensors **out, bis_error *error) {
    char path[PATH_MAX];
    bis_status status = bis_join_path(folder, "model.safetensors", path, sizeof path, error);
    if (status) return status;
    if (bis_file_exists(path)) return rt_safetensors_open(path, out, error);
    status = bis_join_path(folder, "model.safetensors.index.json", path, sizeof path, error);
    if (status) return status;
    if (!bis_file_exists(path)) {
        return bis_fail(error, BIS_ERR_NOT_FOUND,
                        "%s holds no weights: neither model.safetensors nor model.safetensors.index.json can be read "
                        "there (other formats such as .bin or .gguf must be converted to safetensors first)",
                        folder);
    }
    cJSON *root;
    status = rt_metadata_read(path, INDEX_MAX, &root, error);
    if (status) return status;
    status = open_sharded(folder, path, rt_metadata_get(root, "weight_map"), out, error);
    cJSON_Delete(root);
    return status;
}

void rt_safetensors_close(rt_safetensors *file) {
    if (!file) return;
    for (size_t i = 0; i < file->count; i++) bis_free((char *)file->tensors[i].name);
    bis_free(file->tensors);
    for (size_t i = 0; i < file->file_count; i++) {
        bis_unmap_file(&file->files[i].mapping);
        bis_free(file->files[i].path);
    }
    bis_free(file->files);
    bis_free(file);
}

/* ---- looking up ---- */

size_t rt_safetensors_count(const rt_safetensors *file) { return file->count; }

const rt_stored_tensor *rt_safetensors_at(const rt_safetensors *file, size_t index) { return &file->tensors[index]; }

const rt_stored_tensor *rt_safetensors_find(const rt_safetensors *file, const char *name) {
    if (file->count == 0) return NULL;
    rt_stored_tensor key = {.name = name};
    return bsearch(&key, file->tensors, file->count, sizeof key, by_name);
}

int64_t rt_safetensors_modified(const rt_safetensors *file) { return file->modified; }
