#include "quantizer/method.h"

#include <string.h>

enum { OUTLIER_STEP = 8, OUTLIERS_WIDE = 128, WIDE = 4096, OUTLIER_SHARE = 32, WHOLE_RANGE = 8 };

static const qz_method methods[] = {
    {"rtn", QZ_BASE_PLAIN, .weight_clip = 1, .act_clip = 1},
    {"gptq", QZ_BASE_PLAIN, .hessian = true, .weight_clip = 1, .act_clip = 1},
    {"atom", QZ_BASE_ATOM, .hessian = true, .weight_clip = 0.85, .act_clip = 0.9f},
    {"quarot", QZ_BASE_QUAROT, .hessian = true, .weight_clip = 0, .act_clip = 0.9f},
    {"bisup-atom", QZ_BASE_ATOM, .hessian = true, .tune = true, .weight_clip = 0.85, .act_clip = 0.9f},
    {"bisup-quarot", QZ_BASE_QUAROT, .hessian = true, .tune = true, .weight_clip = 0, .act_clip = 0.9f},
};

const qz_method *qz_method_find(const char *name) {
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        if (!strcmp(methods[i].name, name)) return &methods[i];
    }
    return NULL;
}

double qz_method_weight_clip(const qz_method *method, int bits) { return bits < WHOLE_RANGE ? method->weight_clip : 1; }

float qz_method_act_clip(const qz_method *method, int bits) { return bits < WHOLE_RANGE ? method->act_clip : 1; }

const char *qz_base_name(qz_base base) {
    switch (base) {
    case QZ_BASE_ATOM: return "atom";
    case QZ_BASE_QUAROT: return "quarot";
    case QZ_BASE_PLAIN: break;
    }
    return "plain";
}

int qz_outlier_columns(int wanted, int width, int hidden) {
    double exact = wanted ? (double)wanted * width / hidden : (double)width / OUTLIER_SHARE;
    if (!wanted && width >= WIDE) exact = OUTLIERS_WIDE;
    int most = width / 2 / OUTLIER_STEP * OUTLIER_STEP;
    int columns = exact < most ? (int)(exact / OUTLIER_STEP + 0.5) * OUTLIER_STEP : most;
    if (columns < OUTLIER_STEP) columns = OUTLIER_STEP;
    return columns < most ? columns : most;
}
