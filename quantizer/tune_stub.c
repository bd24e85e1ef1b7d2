#include "quantizer/tune.h"
#include "common/alloc.h"
qz_tune_options qz_tune_default_options(void) { return (qz_tune_options){.clip=true,.smooth=true,.low_rank=true,.act_clip=true,.error_cancelling=true,.epochs=15,.batch=4,.rank=32,.lr_clip=5e-3,.lr_smooth=1e-3,.lr_low_rank=2e-4,.lr_act_clip=5e-3,.gradient_clip=0.3,.smooth_penalty=1e-2,.smooth_alpha=0,.held_out=0.125}; }
void qz_tuned_free(qz_tuned *t) { (void)t; }
bis_status qz_tune(qz_block *block, const qz_pass *pass, const qz_tune_options *options, const qz_real *x_q, const qz_real *target, int samples, int tokens, qz_tuned *out, bis_error *error) {
 (void)block;(void)pass;(void)options;(void)x_q;(void)target;(void)samples;(void)tokens;(void)out; return bis_fail(error, BIS_ERR_UNSUPPORTED, "tuning is not merged");}
#include "kernels/backend.h"
size_t kn_kv_low_page_bytes(const kn_kv_cache *cache) { (void)cache; return 0; }
