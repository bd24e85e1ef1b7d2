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
    kn_type type;                          /* of most parameters */
    char type_name[16];                    /* of a quantized model, e.g. "W3A3" */
    int32_t *orders;                       /* all layers' orders; NULL: none */
    uint64_t linear_weights, linear_bytes; /* of the layers' matrices */
};

/* One tensor the configuration asks for. */
typedef struct rt_model_part {
    const char *name; /* without the layer's prefix, e.g. "mlp.up_proj.weight" */
    int layer;        /* -1: not in a layer */
    int rows, cols;   /* rows 1: a vector */
    bool is_norm;
    bool is_linear;     /* a matrix of a layer */
    rt_site site;       /* whose input a linear reads */
    kn_tensor *slot;    /* where it goes */
    kn_qweight *packed; /* where a quantized linear goes instead, its name then ends before ".weight"; NULL: dense */
} rt_model_part;

/* Called for every part in the order of the forward pass; a status other than BIS_OK ends the walk. */
typedef bis_status rt_model_visit(const rt_model_part *part, void *context, bis_error *error);
bis_status rt_model_walk(rt_model *model, rt_model_visit *visit, void *context, bis_error *error);

/* A model with its layers allocated and all tensors absent; NULL where there is no memory. */
rt_model *rt_model_make(const rt_model_config *config, bis_error *error);

/* Fills parameters, bytes, type, and the head of a tied model, once all tensors are there. */
void rt_model_complete(rt_model *model);

/* What a model without quantization_config has. */
rt_quantization rt_quantization_none(void);

/* The format of the quantized linears that read a site. */
kn_weight_format rt_model_packed_format(const rt_model_config *config, rt_site site);

/* Whether a layer's inputs have orders of their own (Atom). RT_SITE_DOWN never has one. */
bool rt_model_has_orders(const rt_model_config *config);

/* Allocates what all layers' orders need and points each layer at its part; without orders nothing happens. */
bis_status rt_model_allocate_orders(rt_model *model, bis_error *error);

/* Binds a linear's quantized tensors; `name` is the linear's full name without ".weight". */
bis_status rt_model_bind_packed(const rt_model *model, const rt_model_part *part, const char *name, const char *folder,
                                bis_error *error);

/* Reads a quantized layer's orders and clips; `prefix` begins their names, such as "model.layers.3.". */
bis_status rt_model_read_inputs(rt_model *model, int layer, const char *prefix, const char *folder, bis_error *error);

/* The same for a model of random weights: some order, no clipping. */
void rt_model_random_inputs(rt_model *model);

/* rt_model_config_read from memory; `name` stands for the path in errors. */
bis_status rt_model_config_parse(const char *text, size_t length, const char *name, rt_model_config *out,
                                 bis_error *error);

/* Adds the eos_token_id of a generation_config.json: chat models often list the token that ends a turn only there. */
bis_status rt_model_config_add_eos(const char *path, rt_model_config *config, bis_error *error);

#endif
