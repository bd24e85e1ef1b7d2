#include "quantizer/tuned_file.h"

#include <stdio.h>
#include <string.h>

#include "quantizer/safetensors_writer.h"

enum { FIGURES = sizeof(qz_block_figures) / sizeof(double), RESULTS = 4, NAME_MAX_LENGTH = 32 };

static const char parameters_name[] = "parameters", result_name[] = "result";

static const char *number_name(const char *what, int number, char name[NAME_MAX_LENGTH]) {
    snprintf(name, NAME_MAX_LENGTH, "%s.%d", what, number);
    return name;
}

/* ---- Writing ---- */

static bis_status write_list(qz_tensors *list, const char *path, bis_error *error) {
    bis_status status = qz_tensors_write(list, path, error);
    qz_tensors_free(list);
    return status;
}

/* A vector of no numbers is not stored: the format has none. */
static void add_parameters(qz_tensors *list, const char *name, const qz_real *parameter, size_t count) {
    if (count) qz_tensors_add(list, name, RT_STORED_F32, count, 0, parameter);
}

bis_status qz_tuned_file_write(const char *path, const qz_shape *shape, double *const importance[QZ_SITES],
                               const qz_real *parameter, size_t count, const qz_block_figures *figures,
                               bis_error *error) {
    qz_tensors list = {0};
    char name[NAME_MAX_LENGTH];
    add_parameters(&list, parameters_name, parameter, count);
    for (int site = 0; site < QZ_SITES && importance; site++) {
        qz_tensors_add(&list, number_name("importance", site, name), RT_STORED_F64,
                       (uint64_t)qz_site_width(shape, (qz_site)site), 0, importance[site]);
    }
    qz_tensors_add(&list, QZ_FIGURES_TENSOR, RT_STORED_F64, FIGURES, 0, figures);
    return write_list(&list, path, error);
}

bis_status qz_end_file_write(const char *path, const qz_end_block *blocks, int layers, size_t count,
                             const qz_end_result *result, double seconds, bis_error *error) {
    qz_tensors list = {0};
    char name[NAME_MAX_LENGTH];
    const double figures[RESULTS] = {result->before, result->after, result->best_epoch, seconds};
    for (int i = 0; i < layers; i++) {
        add_parameters(&list, number_name(parameters_name, i, name), blocks[i].parameter, count);
    }
    qz_tensors_add(&list, result_name, RT_STORED_F64, RESULTS, 0, figures);
    return write_list(&list, path, error);
}

/* ---- Reading ---- */

static bis_status take(const rt_safetensors *file, const char *name, rt_stored_type type, size_t count, void *out,
                       bis_error *error) {
    if (!count) return BIS_OK;
    const rt_stored_tensor *tensor = rt_safetensors_find(file, name);
    if (!tensor || tensor->type != type || tensor->dims != 1 || tensor->shape[0] != count)
        return bis_fail(error, BIS_ERR_FORMAT, "tensor '%s' is not what this run writes", name);
    memcpy(out, tensor->data, count * (type == RT_STORED_F64 ? sizeof(double) : sizeof(float)));
    return BIS_OK;
}

static bis_status close_file(rt_safetensors *file, const char *path, bis_status status, bis_error *error) {
    rt_safetensors_close(file);
    return status ? bis_fail_within(error, "%s (remove its folder to begin anew)", path) : BIS_OK;
}

bis_status qz_tuned_file_read(const char *path, const qz_shape *shape, double *const importance[QZ_SITES],
                              qz_real *parameter, size_t count, qz_block_figures *figures, bis_error *error) {
    rt_safetensors *file = NULL;
    char name[NAME_MAX_LENGTH];
    bis_status status = rt_safetensors_open(path, &file, error);
    if (status) return status;
    status = take(file, parameters_name, RT_STORED_F32, count, parameter, error);
    for (int site = 0; site < QZ_SITES && importance && !status; site++) {
        status = take(file, number_name("importance", site, name), RT_STORED_F64,
                      (size_t)qz_site_width(shape, (qz_site)site), importance[site], error);
    }
    if (!status) status = take(file, QZ_FIGURES_TENSOR, RT_STORED_F64, FIGURES, figures, error);
    return close_file(file, path, status, error);
}

bis_status qz_end_file_read(const char *path, const qz_end_block *blocks, int layers, size_t count,
                            qz_end_result *result, double *seconds, bis_error *error) {
    rt_safetensors *file = NULL;
    char name[NAME_MAX_LENGTH];
    double figures[RESULTS] = {0};
    bis_status status = rt_safetensors_open(path, &file, error);
    if (status) return status;
    for (int i = 0; i < layers && !status; i++) {
        status = take(file, number_name(parameters_name, i, name), RT_STORED_F32, count, blocks[i].parameter, error);
    }
    if (!status) status = take(file, result_name, RT_STORED_F64, RESULTS, figures, error);
    if (!status) *result = (qz_end_result){figures[0], figures[1], (int)figures[2]};
    if (!status) *seconds = figures[3];
    return close_file(file, path, status, error);
}
