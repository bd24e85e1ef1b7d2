/* bisup info: what a model folder holds. */
#include <stdio.h>

#include "cli/cli.h"
#include "runtime/kv_pages.h"
#include "runtime/model/model.h"

enum { BITS_MAX = 32 };

/* "W16", or "W3A3KV3" of a quantized model. */
static const char *bits_text(const rt_model *model, char text[BITS_MAX]) {
    const rt_quantization *q = &rt_model_get_config(model)->quantization;
    if (q->present) snprintf(text, BITS_MAX, "W%dA%dKV%d", q->weight_bits, q->activation_bits, q->kv_bits);
    else snprintf(text, BITS_MAX, "W%zu", 8 * kn_type_bytes(rt_model_layer(model, 0)->q.type));
    return text;
}

static void print_quantization_json(const rt_quantization *q, bis_buf *out) {
    if (!q->present) {
        bis_buf_puts(out, ",\"method\":null,\"base\":null,\"group\":null,\"outliers\":null");
        return;
    }
    bis_buf_printf(out,
                   ",\"method\":\"%s\",\"base\":\"%s\",\"group\":%d,\"symmetric\":%s,"
                   "\"outliers\":{\"attn\":%d,\"o\":%d,\"ffn\":%d,\"down\":%d}",
                   q->method, q->base, q->group, q->weight_symmetric ? "true" : "false", q->outliers[RT_SITE_ATTN],
                   q->outliers[RT_SITE_O], q->outliers[RT_SITE_FFN], q->outliers[RT_SITE_DOWN]);
}

static void print_json(const rt_model *model, const rt_tokenizer *tokenizer, bis_buf *out) {
    const rt_model_config *c = rt_model_get_config(model);
    int kv_bits = c->quantization.kv_bits;
    char bits[BITS_MAX];
    bis_buf_printf(out, "{\"architecture\":\"%s\",\"parameters\":%llu,\"bits\":\"%s\",\"type\":\"%s\",\"bytes\":%llu",
                   c->architecture, (unsigned long long)rt_model_parameters(model), bits_text(model, bits),
                   rt_model_type_name(model), (unsigned long long)rt_model_bytes(model));
    print_quantization_json(&c->quantization, out);
    bis_buf_printf(out, ",\"bits_per_weight\":%.4f,\"kv_bits\":%d,\"kv_bytes_per_token\":%llu",
                   rt_model_bits_per_weight(model), kv_bits, (unsigned long long)rt_kv_token_bytes(c, kv_bits));
    bis_buf_printf(out,
                   ",\"hidden\":%d,\"layers\":%d,\"heads\":%d,\"kv_heads\":%d,\"head_dim\":%d,"
                   "\"ffn\":%d,\"vocab\":%d,\"context\":%d,\"tied_embeddings\":%s,\"tokenizer\":",
                   c->hidden, c->layers, c->heads, c->kv_heads, c->head_dim, c->ffn, c->vocab, c->context,
                   c->tied_embeddings ? "true" : "false");
    if (tokenizer) bis_buf_printf(out, "\"%s\"}\n", rt_tokenizer_kind(tokenizer));
    else bis_buf_puts(out, "null}\n");
}

static void print_quantization(const rt_model *model, bis_buf *out) {
    const rt_quantization *q = &rt_model_get_config(model)->quantization;
    char bits[BITS_MAX];
    bis_buf_printf(out, "quantization   %s by %s, base %s; %.2f bits a weight in the layers' matrices\n",
                   bits_text(model, bits), q->method, q->base, rt_model_bits_per_weight(model));
    bis_buf_printf(out, "groups         of %d columns, %s\n", q->group,
                   q->weight_symmetric ? "symmetric" : "asymmetric");
    bis_buf_printf(out, "outliers       INT8 columns in the inputs of q/k/v %d, o %d, gate/up %d, down %d\n",
                   q->outliers[RT_SITE_ATTN], q->outliers[RT_SITE_O], q->outliers[RT_SITE_FFN],
                   q->outliers[RT_SITE_DOWN]);
}

static void print_table(const rt_model *model, const rt_tokenizer *tokenizer, const char *folder, bis_buf *out) {
    const rt_model_config *c = rt_model_get_config(model);
    int kv_bits = c->quantization.kv_bits;
    bis_buf_printf(out, "model          %s\n", folder);
    bis_buf_printf(out, "architecture   %s\n", c->architecture);
    bis_buf_printf(out, "parameters     %.2f M\n", (double)rt_model_parameters(model) / 1e6);
    bis_buf_printf(out, "weights        %s, %.1f MB\n", rt_model_type_name(model), (double)rt_model_bytes(model) / 1e6);
    if (c->quantization.present) print_quantization(model, out);
    bis_buf_printf(out, "layers         %d of hidden size %d, FFN %d\n", c->layers, c->hidden, c->ffn);
    bis_buf_printf(out, "attention      %d heads of %d, %d KV heads%s%s\n", c->heads, c->head_dim, c->kv_heads,
                   c->qk_norm ? ", Q/K norm" : "", c->qkv_bias ? ", QKV bias" : "");
    bis_buf_printf(out, "vocabulary     %d%s\n", c->vocab, c->tied_embeddings ? ", head tied to the embedding" : "");
    bis_buf_printf(out, "context        %d tokens\n", c->context);
    bis_buf_printf(out, "KV cache       %llu bytes a token at %d bits\n",
                   (unsigned long long)rt_kv_token_bytes(c, kv_bits), kv_bits);
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
