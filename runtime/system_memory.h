/* How much memory the machine, or this process's control group, still has. */
#ifndef BISUP_RUNTIME_SYSTEM_MEMORY_H
#define BISUP_RUNTIME_SYSTEM_MEMORY_H

#include <stdint.h>

/* Bytes: the smaller of what the kernel calls available and what the control group's limit leaves. 1 GiB where
 * neither can be read. */
uint64_t rt_system_memory_available(void);

#endif
