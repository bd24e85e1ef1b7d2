#include "runtime/system_memory.h"

#include <stdio.h>

/* The first number in a file such as /sys/fs/cgroup/memory.max; UINT64_MAX for "max" or no such file. */
static uint64_t number_in(const char *path) {
    unsigned long long value = UINT64_MAX;
    FILE *file = fopen(path, "r");
    if (!file) return UINT64_MAX;
    if (fscanf(file, "%llu", &value) != 1) value = UINT64_MAX;
    fclose(file);
    return value;
}

static uint64_t kernel_available(void) {
    FILE *file = fopen("/proc/meminfo", "r");
    if (!file) return UINT64_MAX;
    char line[128];
    unsigned long long kilobytes = 0;
    while (fgets(line, sizeof line, file) && sscanf(line, "MemAvailable: %llu kB", &kilobytes) != 1) {
    }
    fclose(file);
    return kilobytes ? kilobytes * 1024 : UINT64_MAX;
}

uint64_t rt_system_memory_available(void) {
    uint64_t available = kernel_available();
    uint64_t limit = number_in("/sys/fs/cgroup/memory.max"), used = number_in("/sys/fs/cgroup/memory.current");
    if (limit != UINT64_MAX && used != UINT64_MAX) {
        uint64_t left = limit > used ? limit - used : 0;
        if (left < available) available = left;
    }
    return available == UINT64_MAX ? (uint64_t)1 << 30 : available;
}
