#include "quantizer/safetensors_writer.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/buf.h"

enum { HEADER_ALIGNMENT = 8, LENGTH_BYTES = 8 };

struct qz_sink {
    FILE *file;
    size_t left; /* of the tensor in turn */
    bool failed, too_much;
    int cause; /* errno of the failure */
};

bool qz_sink_put(qz_sink *sink, const void *bytes, size_t size) {
    if (size > sink->left) sink->failed = sink->too_much = true;
    if (sink->failed) return false;
    if (size && fwrite(bytes, 1, size, sink->file) != size) {
        sink->cause = errno;
        sink->failed = true;
        return false;
    }
    sink->left -= size;
    return true;
}

/* ---- The list ---- */

static size_t element_bytes(rt_stored_type type) {
    switch (type) {
    case RT_STORED_F64: return 8;
    case RT_STORED_F32:
    case RT_STORED_I32: return 4;
    case RT_STORED_F16: return 2;
    default: return 1;
    }
}

size_t qz_tensor_bytes(const qz_tensor *tensor) {
    size_t elements = (size_t)tensor->shape[0] * (tensor->dims == 2 ? (size_t)tensor->shape[1] : 1);
    return elements * element_bytes(tensor->type);
}

qz_tensor *qz_tensors_add(qz_tensors *list, const char *name, rt_stored_type type, uint64_t rows, uint64_t cols,
                          const void *data) {
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 64;
        qz_tensor *items = bis_reallocarray(list->items, capacity, sizeof *items);
        if (!items) {
            list->failed = true;
            return NULL;
        }
        list->items = items;
        list->capacity = capacity;
    }
    qz_tensor *tensor = &list->items[list->count];
    *tensor = (qz_tensor){.type = type, .dims = cols ? 2 : 1, .shape = {rows, cols}, .data = data};
    int length = snprintf(tensor->name, sizeof tensor->name, "%s", name);
    if (length < 0 || (size_t)length >= sizeof tensor->name) {
        list->failed = true;
        return NULL;
    }
    list->count++;
    return tensor;
}

void qz_tensors_free(qz_tensors *list) {
    bis_free(list->items);
    *list = (qz_tensors){0};
}

static int by_size_and_name(const void *a, const void *b) {
    const qz_tensor *x = a, *y = b;
    size_t x_size = element_bytes(x->type), y_size = element_bytes(y->type);
    if (x_size != y_size) return x_size > y_size ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* ---- The file ---- */

static bool make_header(const qz_tensors *list, bis_buf *header) {
    size_t offset = 0;
    bis_buf_putc(header, '{');
    for (size_t i = 0; i < list->count; i++) {
        const qz_tensor *tensor = &list->items[i];
        size_t end = offset + qz_tensor_bytes(tensor);
        if (i) bis_buf_putc(header, ',');
        bis_buf_json_string(header, tensor->name, strlen(tensor->name));
        bis_buf_printf(header, ":{\"dtype\":\"%s\",\"shape\":[%llu", rt_stored_type_name(tensor->type),
                       (unsigned long long)tensor->shape[0]);
        if (tensor->dims == 2) bis_buf_printf(header, ",%llu", (unsigned long long)tensor->shape[1]);
        bis_buf_printf(header, "],\"data_offsets\":[%zu,%zu]}", offset, end);
        offset = end;
    }
    bis_buf_putc(header, '}');
    while (!header->failed && header->length % HEADER_ALIGNMENT) bis_buf_putc(header, ' ');
    return !header->failed;
}

static void put_header(qz_sink *sink, const bis_buf *header) {
    unsigned char length[LENGTH_BYTES];
    for (int i = 0; i < LENGTH_BYTES; i++) length[i] = (unsigned char)((uint64_t)header->length >> (8 * i));
    sink->left = LENGTH_BYTES + header->length;
    qz_sink_put(sink, length, LENGTH_BYTES);
    qz_sink_put(sink, header->data, header->length);
}

static bis_status put_tensors(const qz_tensors *list, qz_sink *sink, bis_error *error) {
    bis_status status = BIS_OK;
    for (size_t i = 0; i < list->count && !status && !sink->failed; i++) {
        const qz_tensor *tensor = &list->items[i];
        sink->left = qz_tensor_bytes(tensor);
        if (tensor->data) qz_sink_put(sink, tensor->data, sink->left);
        else status = tensor->fill(tensor->user, sink, error);
        if (!status && !sink->failed && sink->left) {
            status =
                bis_fail(error, BIS_ERR_INTERNAL, "tensor %s was given %zu bytes too few", tensor->name, sink->left);
        }
    }
    return status;
}

static bis_status fail_write(const char *path, int cause, bis_error *error) {
    return bis_fail(error, BIS_ERR_IO, "cannot write %s: %s", path, strerror(cause));
}

/* Ends the file: what `sink` remembers, the stream's buffer, the disk, and the name, in that order. */
static bis_status finish(bis_status status, qz_sink *sink, const char *temporary, const char *path, bis_error *error) {
    if (!status && sink->too_much) status = bis_fail(error, BIS_ERR_INTERNAL, "%s was given too many bytes", path);
    if (!status && sink->failed) status = fail_write(path, sink->cause, error);
    if (!status && (fflush(sink->file) || fsync(fileno(sink->file)))) status = fail_write(path, errno, error);
    if (fclose(sink->file) && !status) status = fail_write(path, errno, error);
    if (!status && rename(temporary, path)) status = fail_write(path, errno, error);
    if (status) unlink(temporary);
    return status;
}

static bis_status begin(const char *path, char temporary[PATH_MAX], qz_sink *sink, bis_error *error) {
    int length = snprintf(temporary, PATH_MAX, "%s.new", path);
    if (length < 0 || length >= PATH_MAX) return bis_fail(error, BIS_ERR_LIMIT, "the path %.80s... is too long", path);
    *sink = (qz_sink){.file = fopen(temporary, "wbe")};
    return sink->file ? BIS_OK : fail_write(path, errno, error);
}

bis_status qz_tensors_write(qz_tensors *list, const char *path, bis_error *error) {
    char temporary[PATH_MAX];
    bis_buf header = {0};
    qz_sink sink;
    if (!list->failed && list->count) qsort(list->items, list->count, sizeof *list->items, by_size_and_name);
    bis_status status = BIS_OK;
    if (list->failed || !make_header(list, &header)) {
        status = bis_fail(error, BIS_ERR_NOMEM, "no memory for the list of tensors of %s", path);
    }
    if (!status) status = begin(path, temporary, &sink, error);
    if (!status) {
        put_header(&sink, &header);
        status = finish(put_tensors(list, &sink, error), &sink, temporary, path, error);
    }
    bis_buf_free(&header);
    return status;
}

bis_status qz_file_write(const char *path, const void *bytes, size_t size, bis_error *error) {
    char temporary[PATH_MAX];
    qz_sink sink;
    bis_status status = begin(path, temporary, &sink, error);
    if (status) return status;
    sink.left = size;
    qz_sink_put(&sink, bytes, size);
    return finish(BIS_OK, &sink, temporary, path, error);
}
