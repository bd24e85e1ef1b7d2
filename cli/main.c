/* bisup: reads the command and its settings, and runs it. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "cli/cli.h"
#include "common/log.h"
#include "common/version.h"

int cli_fail(const bis_error *error) {
    fprintf(stderr, "bisup: %s\n", error->text);
    return 1;
}

int cli_print(bis_buf *text) {
    bool ok = !text->failed && fwrite(bis_buf_cstr(text), 1, text->length, stdout) == text->length;
    ok = fflush(stdout) == 0 && ok;
    bis_buf_free(text);
    if (ok) return 0;
    fprintf(stderr, "bisup: the result could not be written to standard output\n");
    return 1;
}

rt_engine_options cli_engine_options(const cfg_options *options) {
    rt_engine_options engine = rt_engine_default_options();
    engine.model = options->model;
    engine.model_name = options->model_name;
    engine.cpu_isa = options->cpu_isa;
    engine.threads = options->threads;
    engine.max_batch = options->max_batch;
    engine.max_context = options->max_context;
    engine.prefill_chunk = options->prefill_chunk;
    engine.max_queue = options->max_queue;
    engine.kv_bits = options->kv_bits;
    engine.prompt_kv_low = !strcmp(options->prompt_kv, "low");
    engine.kv_bytes = options->kv_memory;
    return engine;
}

uint64_t cli_peak_memory(void) {
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (uint64_t)usage.ru_maxrss * 1024 : 0;
}

static int run(cfg_command command, const cfg_options *options) {
    switch (command) {
    case CFG_SERVE: return cli_serve(options);
    case CFG_GENERATE: return cli_generate(options);
    case CFG_INFO: return cli_info(options);
    case CFG_TOKENIZE: return cli_tokenize(options);
    case CFG_BENCH: return cli_bench(options);
    case CFG_EVAL: return cli_eval(options);
    case CFG_QUANTIZE: return cli_quantize(options);
    case CFG_HEALTH: return cli_health(options);
    case CFG_COMMAND_COUNT: break;
    }
    return 2;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN); /* a reader that went away is an error to report, not a reason to die */
    signal(SIGXFSZ, SIG_IGN); /* so is a file that may not grow */
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        cfg_print_commands(argc < 2 ? stderr : stdout);
        return argc < 2 ? 2 : 0;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("bisup %s\n", BISUP_VERSION);
        return 0;
    }
    bis_error error = {0};
    cfg_command command;
    cfg_options options;
    if (cfg_command_parse(argv[1], &command, &error) || cfg_load(command, argc - 2, argv + 2, &options, &error)) {
        cli_fail(&error);
        fprintf(stderr, "Try 'bisup --help'.\n");
        return 2;
    }
    if (options.help) {
        cfg_print_help(stdout, command);
        cfg_options_free(&options);
        return 0;
    }
    int level = cfg_choice_index(CFG_OPTION_log_level, options.log_level);
    if (level >= 0) bis_log_set_level((bis_log_level)level);
    int status = run(command, &options);
    cfg_options_free(&options);
    return status;
}
