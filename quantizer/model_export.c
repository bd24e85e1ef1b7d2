#include "quantizer/model_export.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/alloc.h"
#include "common/file.h"
#include "kernels/tensor.h"
#include "quantizer/block_file.h"
#include "quantizer/safetensors_writer.h"
#include "runtime/model/metadata.h"

enum { CONFIG_MAX = 1 << 24, SIDE_FILE_MAX = 1 << 28, FORMAT_VERSION = 1, ROWS_PIECE = 64 };

/* ---- model.safetensors ---- */

/* Embedding or head: F16 rows made when they are written. */
typedef struct row_source {
    const qz_export *e;
    void (*rows)(const qz_transform *transform, int first, int count, float *out);
    const char *name;
} row_source;

static bis_status put_rows(void *user, qz_sink *sink, bis_error *error) {
    const row_source *source = user;
    size_t hidden = (size_t)qz_transform_shape(source->e->transform).hidden;
    float *values = bis_reallocarray(NULL, ROWS_PIECE * hidden, sizeof *values);
    uint16_t *halves = bis_reallocarray(NULL, ROWS_PIECE * hidden, sizeof *halves);
    bis_status status = BIS_OK;
    if (!values || !halves) status = bis_fail(error, BIS_ERR_NOMEM, "no memory to write %s", source->name);
    for (int first = 0; !status && first < source->e->vocab; first += ROWS_PIECE) {
        int left = source->e->vocab - first, count = left < ROWS_PIECE ? left : ROWS_PIECE;
        source->rows(source->e->transform, first, count, values);
        for (size_t i = 0; i < (size_t)count * hidden && !status; i++) {
            halves[i] = kn_f32_to_f16(values[i]);
            if (isfinite(kn_f16_to_f32(halves[i]))) continue;
            status = bis_fail(error, BIS_ERR_INVALID, "%s holds %g, which F16 cannot store", source->name,
                              (double)values[i]);
        }
        if (!status && !qz_sink_put(sink, halves, (size_t)count * hidden * sizeof *halves)) break;
    }
    bis_free(values);
    bis_free(halves);
    return status;
}

static void add_rows(qz_tensors *list, row_source *source) {
    uint64_t hidden = (uint64_t)qz_transform_shape(source->e->transform).hidden;
    qz_tensor *tensor = qz_tensors_add(list, source->name, RT_STORED_F16, (uint64_t)source->e->vocab, hidden, NULL);
    if (!tensor) return;
    tensor->fill = put_rows;
    tensor->user = source;
}

/* The tensors of a block's file, but for its figures. */
static void add_block(qz_tensors *list, const rt_safetensors *file) {
    for (size_t i = 0; i < rt_safetensors_count(file); i++) {
        const rt_stored_tensor *stored = rt_safetensors_at(file, i);
        if (!strcmp(stored->name, QZ_FIGURES_TENSOR)) continue;
        qz_tensors_add(list, stored->name, stored->type, stored->shape[0], stored->dims == 2 ? stored->shape[1] : 0,
                       stored->data);
    }
}

static bis_status open_blocks(const qz_export *e, rt_safetensors **files, qz_tensors *list, bis_error *error) {
    char path[PATH_MAX];
    bis_status status = BIS_OK;
    for (int layer = 0; layer < e->layers && !status; layer++) {
        status = qz_run_folder_file(e->folder, QZ_FILE_BLOCK, layer, path, error);
        if (!status) status = rt_safetensors_open(path, &files[layer], error);
        if (!status) add_block(list, files[layer]);
    }
    return status;
}

bis_status qz_export_weights(const qz_export *e, uint64_t *bytes, bis_error *error) {
    char path[PATH_MAX];
    struct stat info = {0};
    qz_tensors list = {0};
    row_source embedding = {e, qz_transform_embedding, "model.embed_tokens.weight"};
    row_source head = {e, qz_transform_head, "lm_head.weight"};
    int hidden = qz_transform_shape(e->transform).hidden;
    float *norm = bis_calloc((size_t)hidden, sizeof *norm);
    rt_safetensors **files = bis_calloc((size_t)e->layers, sizeof *files);
    bis_status status = bis_join_path(e->folder->result, "model.safetensors", path, sizeof path, error);
    if (!status && (!norm || !files)) status = bis_fail(error, BIS_ERR_NOMEM, "no memory to write %s", path);
    if (!status) status = open_blocks(e, files, &list, error);
    if (!status) {
        qz_transform_final_norm(e->transform, norm);
        qz_tensors_add(&list, "model.norm.weight", RT_STORED_F32, (uint64_t)hidden, 0, norm);
        add_rows(&list, &embedding);
        if (!qz_transform_tied(e->transform)) add_rows(&list, &head);
        status = qz_tensors_write(&list, path, error);
    }
    if (!status && !stat(path, &info)) *bytes = (uint64_t)info.st_size;
    for (int layer = 0; files && layer < e->layers; layer++) rt_safetensors_close(files[layer]);
    bis_free(files);
    bis_free(norm);
    qz_tensors_free(&list);
    return status;
}

/* ---- config.json ---- */

/* Replaces all of a repeated key. */
static bool set_item(cJSON *object, const char *key, cJSON *item) {
    while (cJSON_GetObjectItemCaseSensitive(object, key)) cJSON_DeleteItemFromObjectCaseSensitive(object, key);
    return item && cJSON_AddItemToObject(object, key, item);
}

static cJSON *describe_outliers(const qz_spec *spec) {
    static const char *const names[QZ_SITES] = {"attn", "o", "ffn", "down"};
    cJSON *object = cJSON_CreateObject();
    for (int site = 0; object && site < QZ_SITES; site++) {
        if (cJSON_AddNumberToObject(object, names[site], spec->outliers[site])) continue;
        cJSON_Delete(object);
        object = NULL;
    }
    return object;
}

static cJSON *describe(const qz_export *e) {
    const qz_spec *spec = e->spec;
    qz_base base = e->method->base;
    if (base == QZ_BASE_ATOM && !spec->outliers[QZ_SITE_ATTN]) base = QZ_BASE_PLAIN; /* nothing was reordered */
    cJSON *object = cJSON_CreateObject();
    cJSON *outliers = describe_outliers(spec);
    bool ok = object && outliers && cJSON_AddStringToObject(object, "quant_method", "bisup") &&
              cJSON_AddNumberToObject(object, "version", FORMAT_VERSION) &&
              cJSON_AddStringToObject(object, "method", e->method->name) &&
              cJSON_AddStringToObject(object, "base", qz_base_name(base)) &&
              cJSON_AddNumberToObject(object, "weight_bits", spec->weight_bits) &&
              cJSON_AddNumberToObject(object, "activation_bits", spec->act_bits) &&
              cJSON_AddNumberToObject(object, "kv_bits", spec->kv_bits) &&
              cJSON_AddNumberToObject(object, "group_size", spec->group) &&
              cJSON_AddBoolToObject(object, "weight_symmetric", spec->weight_symmetric);
    if (ok && cJSON_AddItemToObject(object, "outliers", outliers)) outliers = NULL; /* now the object's */
    ok = ok && !outliers && cJSON_AddBoolToObject(object, "key_before_rope", spec->key_before_rope) &&
         cJSON_AddBoolToObject(object, "key_hadamard", spec->key_hadamard) &&
         cJSON_AddBoolToObject(object, "heads_hadamard", spec->heads_hadamard) &&
         cJSON_AddBoolToObject(object, "ffn_hadamard", spec->ffn_hadamard);
    cJSON_Delete(outliers);
    if (ok) return object;
    cJSON_Delete(object);
    return NULL;
}

static bis_status write_config(const qz_export *e, bis_error *error) {
    char from[PATH_MAX], to[PATH_MAX];
    cJSON *config = NULL;
    char *text = NULL;
    bis_status status = bis_join_path(e->model, "config.json", from, sizeof from, error);
    if (!status) status = bis_join_path(e->folder->result, "config.json", to, sizeof to, error);
    if (!status) status = rt_metadata_read(from, CONFIG_MAX, &config, error);
    if (status) return status;
    bool ok = set_item(config, "quantization_config", describe(e)) &&
              set_item(config, "tie_word_embeddings", cJSON_CreateBool(qz_transform_tied(e->transform)));
    if (ok) text = cJSON_Print(config);
    if (text) status = qz_file_write(to, text, strlen(text), error);
    else status = bis_fail(error, BIS_ERR_NOMEM, "no memory to write %s", to);
    cJSON_free(text);
    cJSON_Delete(config);
    return status;
}

/* ---- Copies ---- */

/* What a model folder may hold beside config.json and weights, and the commands read. */
static const char *const side_files[] = {
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
};

bis_status qz_export_side_files(const qz_export *e, bis_error *error) {
    char from[PATH_MAX], to[PATH_MAX];
    bis_status status = write_config(e, error);
    for (size_t i = 0; i < sizeof side_files / sizeof *side_files && !status; i++) {
        bis_buf bytes = {0};
        status = bis_join_path(e->model, side_files[i], from, sizeof from, error);
        if (!status) status = bis_join_path(e->folder->result, side_files[i], to, sizeof to, error);
        if (status || !bis_file_exists(from)) continue;
        status = bis_read_file(from, SIDE_FILE_MAX, &bytes, error);
        if (!status) status = qz_file_write(to, bis_buf_cstr(&bytes), bytes.length, error);
        bis_buf_free(&bytes);
    }
    return status;
}
