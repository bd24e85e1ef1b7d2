#include "runtime/model/config_reader.h"

#include <math.h>
#include <stdio.h>

const cJSON *rt_config_value(const cJSON *object, const char *key) {
    const cJSON *item = rt_metadata_get(object, key);
    return cJSON_IsNull(item) ? NULL : item;
}

void rt_config_refuse(rt_config_reader *r, bis_status status, const char *key, const cJSON *item,
                      const char *accepted) {
    char shown[RT_METADATA_SHOWN_MAX];
    if (r->status) return;
    r->status =
        bis_fail(r->error, status, "%s: %s is %s; accepted: %s", r->path, key, rt_metadata_show(item, shown), accepted);
}

int rt_config_whole(rt_config_reader *r, const cJSON *object, const char *key, int minimum, int maximum, int fallback) {
    const cJSON *item = rt_config_value(object, key);
    uint64_t value;
    if (!item && fallback != RT_CONFIG_REQUIRED) return fallback;
    if (rt_metadata_whole(item, &value) && value >= (uint64_t)minimum && value <= (uint64_t)maximum) return (int)value;
    char accepted[64];
    snprintf(accepted, sizeof accepted, "a whole number from %d to %d", minimum, maximum);
    rt_config_refuse(r, BIS_ERR_FORMAT, key, item, accepted);
    return minimum;
}

double rt_config_real(rt_config_reader *r, const cJSON *object, const char *key, double minimum, double maximum,
                      double fallback) {
    const cJSON *item = rt_config_value(object, key);
    if (!item && !isnan(fallback)) return fallback;
    double value;
    if (rt_metadata_number(item, &value) && value >= minimum && value <= maximum) return value;
    char accepted[64];
    snprintf(accepted, sizeof accepted, "a number from %g to %g", minimum, maximum);
    rt_config_refuse(r, BIS_ERR_FORMAT, key, item, accepted);
    return minimum;
}

bool rt_config_flag(rt_config_reader *r, const cJSON *object, const char *key, bool fallback) {
    return rt_config_value(object, key) ? rt_config_required_flag(r, object, key) : fallback;
}

bool rt_config_required_flag(rt_config_reader *r, const cJSON *object, const char *key) {
    const cJSON *item = rt_config_value(object, key);
    if (!cJSON_IsBool(item)) rt_config_refuse(r, BIS_ERR_FORMAT, key, item, "true or false");
    return cJSON_IsTrue(item);
}
