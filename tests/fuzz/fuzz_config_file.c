/* Any bytes as a configuration file: refused or read, and each setting is tried as a value of each option. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "config/config_file.h"
#include "config/option_table.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bis_status take_setting(void *user, int line, const char *name, const char *value, bis_error *error) {
    (void)user;
    char text[160];
    for (int option = 0; option < CFG_OPTION_COUNT; option++) {
        _Alignas(16) char field[sizeof(cfg_ints)] = {0};
        if (!cfg_value_parse(&cfg_table[option], value, field)) {
            cfg_value_describe(&cfg_table[option], text, sizeof text);
        }
    }
    const char *names[CFG_OPTION_COUNT];
    for (int option = 0; option < CFG_OPTION_COUNT; option++) names[option] = cfg_table[option].name;
    cfg_nearest_name(name, names, CFG_OPTION_COUNT);
    if (line < 1 || !strcmp(name, "fail")) return bis_fail(error, BIS_ERR_INVALID, "refused");
    return BIS_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    bis_error error = {0};
    cfg_file_parse("x.conf", (const char *)data, size, take_setting, NULL, &error);
    return 0;
}
