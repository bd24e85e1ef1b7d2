/* bisup info: what a model folder holds. */
#include <stdio.h>

#include "cli/cli.h"
#include "runtime/model/model.h"

static void print_json(const rt_model *model, const rt_tokenizer *tokenizer, bis_buf *out) {
    const rt_model_config *c = rt_model_get_config(model);
    kn_type type = rt_model_layer(model, 0)->q.type;
    bis_buf_printf(out, "{\"architecture\":\"%s\",\"parameters\":%llu,\"bits\":\"W%zu\",\"type\":\"%s\",\"bytes\":%llu",
                   c->architecture, (unsigned long long)rt_model_parameters(model), 8 * kn_type_bytes(type),
                   rt_model_type_name(model), (unsigned long long)rt_model_bytes(model));
    bis_buf_printf(out,
                   ",\"group\":null,\"hidden\":%d,\"layers\":%d,\"heads\":%d,\"kv_heads\":%d,\"head_dim\":%d,"
                   "\"ffn\":%d,\"vocab\":%d,\"context\":%d,\"tied_embeddings\":%s,\"tokenizer\":",
                   c->hidden, c->layers, c->heads, c->kv_heads, c->head_dim, c->ffn, c->vocab, c->context,
                   c->tied_embeddings ? "true" : "false");
    if (tokenizer) bis_buf_printf(out, "\"%s\"}\n", rt_tokenizer_kind(tokenizer));
    else bis_buf_puts(out, "null}\n");
}

static void print_table(const rt_model *model, const rt_tokenizer *tokenizer, const char *folder, bis_buf *out) {
    const rt_model_config *c = rt_model_get_config(model);
    bis_buf_printf(out, "model          %s\n", folder);
    bis_buf_printf(out, "architecture   %s\n", c->architecture);
    bis_buf_printf(out, "parameters     %.2f M\n", (double)rt_model_parameters(model) / 1e6);
    bis_buf_printf(out, "weights        %s, %.1f MB\n", rt_model_type_name(model), (double)rt_model_bytes(model) / 1e6);
    bis_buf_printf(out, "layers         %d of hidden size %d, FFN %d\n", c->layers, c->hidden, c->ffn);
    bis_buf_printf(out, "attention      %d heads of %d, %d KV heads%s%s\n", c->heads, c->head_dim, c->kv_heads,
                   c->qk_norm ? ", Q/K norm" : "", c->qkv_bias ? ", QKV bias" : "");
    bis_buf_printf(out, "vocabulary     %d%s\n", c->vocab, c->tied_embeddings ? ", head tied to the embedding" : "");
    bis_buf_printf(out, "context        %d tokens\n", c->context);
    bis_buf_printf(out, "KV cache       %d bytes a token at F16\n", 2 * 2 * c->layers * c->kv_heads * c->head_dim);
    bis_buf_printf(out, "tokenizer      %s\n", tokenizer ? rt_tokenizer_kind(tokenizer) : "none found");
}

int cli_info(const cfg_options *options) {
    rt_model *model;
    rt_tokenizer *tokenizer = NULL;
    bis_error error, no_tokenizer;
    if (rt_model_open(options->model, &model, &error)) return cli_fail(&error);
    if (rt_tokenizer_open(options->model, &tokenizer, &no_tokenizer) && !options->json) {
        fprintf(stderr, "bisup: %s\n", no_tokenizer.text); /* worth knowing, and the rest can still be shown */
    }
    bis_buf out = {0};
    if (options->json) print_json(model, tokenizer, &out);
    else print_table(model, tokenizer, options->model, &out);
    rt_tokenizer_close(tokenizer);
    rt_model_close(model);
    return cli_print(&out);
}
