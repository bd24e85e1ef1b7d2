/* Fuzzes the safetensors header: whatever is accepted must lie inside the image and be found again by its name. */
#include <stdint.h>
#include <stdlib.h>

#include "runtime/model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    rt_safetensors *file;
    bis_error error;
    if (rt_safetensors_open_memory(data, size, "fuzz", &file, &error)) return 0;
    size_t covered = 0;
    for (size_t i = 0; i < rt_safetensors_count(file); i++) {
        const rt_stored_tensor *tensor = rt_safetensors_at(file, i);
        const uint8_t *begin = tensor->data;
        if (begin < data || begin > data + size || tensor->bytes > (size_t)(data + size - begin)) abort();
        if (rt_safetensors_find(file, tensor->name) != tensor) abort();
        covered += tensor->bytes;
    }
    if (covered > size) abort();
    rt_safetensors_close(file);
    return 0;
}
