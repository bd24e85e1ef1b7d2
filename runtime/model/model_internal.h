/* What the files of the model loader share; nobody else includes it. */
#ifndef BISUP_RUNTIME_MODEL_INTERNAL_H
#define BISUP_RUNTIME_MODEL_INTERNAL_H

#include "runtime/model/model.h"
#include "runtime/model/safetensors.h"

struct rt_model {
    rt_model_config config;
    rt_safetensors *weights; /* NULL for a random model */
    void *memory;            /* the weights of a random model */
    rt_layer *layers;
    kn_tensor embedding, final_norm, head;
    uint64_t parameters, bytes;
    kn_type type; /* of most parameters */
};

/* One tensor the configuration asks for. */
typedef struct rt_model_part {
    const char *name; /* without the layer's prefix, e.g. "mlp.up_proj.weight" */
    int layer;        /* -1: not in a layer */
    int rows, cols;   /* rows 1: a vector */
    bool is_norm;
    kn_tensor *slot; /* where it goes */
} rt_model_part;

/* Called for every part in the order of the forward pass; a status other than BIS_OK ends the walk. */
typedef bis_status rt_model_visit(const rt_model_part *part, void *context, bis_error *error);
bis_status rt_model_walk(rt_model *model, rt_model_visit *visit, void *context, bis_error *error);

/* A model with its layers allocated and all tensors absent; NULL where there is no memory. */
rt_model *rt_model_make(const rt_model_config *config, bis_error *error);

/* Fills parameters, bytes, type, and the head of a tied model, once all tensors are there. */
void rt_model_complete(rt_model *model);

/* rt_model_config_read from memory; `name` stands for the path in errors. */
bis_status rt_model_config_parse(const char *text, size_t length, const char *name, rt_model_config *out,
                                 bis_error *error);

/* Adds the eos_token_id of a generation_config.json: chat models often list the token that ends a turn only there. */
bis_status rt_model_config_add_eos(const char *path, rt_model_config *config, bis_error *error);

#endif
