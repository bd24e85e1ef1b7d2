/* Log lines to standard error: "12:34:56.789 info  message". One call writes one line with one
 * write, so lines of several threads do not mix. Never used for results (those go to stdout). */
#ifndef BISUP_COMMON_LOG_H
#define BISUP_COMMON_LOG_H

typedef enum bis_log_level { BIS_LOG_DEBUG, BIS_LOG_INFO, BIS_LOG_WARN, BIS_LOG_ERROR } bis_log_level;

void bis_log_set_level(bis_log_level level);
void bis_log(bis_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define bis_debug(...) bis_log(BIS_LOG_DEBUG, __VA_ARGS__)
#define bis_info(...) bis_log(BIS_LOG_INFO, __VA_ARGS__)
#define bis_warn(...) bis_log(BIS_LOG_WARN, __VA_ARGS__)

#endif
