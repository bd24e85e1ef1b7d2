#include "common/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static atomic_int minimum_level = BIS_LOG_INFO;

void bis_log_set_level(bis_log_level level) { atomic_store(&minimum_level, (int)level); }

void bis_log(bis_log_level level, const char *format, ...) {
    static const char *const names[] = {"debug", "info ", "warn ", "error"};
    if ((int)level < atomic_load(&minimum_level)) return;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct tm local;
    localtime_r(&now.tv_sec, &local);
    char line[1024];
    int head = snprintf(line, sizeof line, "%02d:%02d:%02d.%03ld %s ", local.tm_hour, local.tm_min, local.tm_sec,
                        now.tv_nsec / 1000000, names[level]);
    va_list arguments;
    va_start(arguments, format);
    int body = vsnprintf(line + head, sizeof line - (size_t)head - 1, format, arguments);
    va_end(arguments);
    size_t length = (size_t)head + (body > 0 ? (size_t)body : 0);
    if (length > sizeof line - 2) length = sizeof line - 2;
    line[length] = '\n';
    ssize_t written = write(STDERR_FILENO, line, length + 1);
    (void)written; /* a log line that cannot be written has nowhere to be reported */
}
