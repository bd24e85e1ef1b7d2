/* bisup quantize: writes a quantized model folder. */
#include "cli/cli.h"

int cli_quantize(const cfg_options *options) {
    (void)options;
    return 1;
}
