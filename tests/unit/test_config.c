/* Options: defaults, sources and their order, every kind of value, and what is refused. */
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "config/config_file.h"
#include "config/option_table.h"
#include "config/options.h"

static char file_path[64];

static void write_file(const char *text, size_t length) {
    FILE *file = fopen(file_path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
}

static int set_up(void **state) {
    (void)state;
    for (int option = 0; option < CFG_OPTION_COUNT; option++) {
        if (cfg_table[option].environment) unsetenv(cfg_table[option].environment);
    }
    strcpy(file_path, "/tmp/bisup-test-config-XXXXXX");
    int descriptor = mkstemp(file_path);
    return descriptor < 0 ? -1 : close(descriptor);
}

static int tear_down(void **state) {
    (void)state;
    bis_alloc_fail_after(-1);
    return unlink(file_path);
}

/* Loads with the given NULL-terminated arguments. */
static bis_status load(cfg_command command, char *const *arguments, cfg_options *options, bis_error *error) {
    int count = 0;
    while (arguments[count]) count++;
    return cfg_load(command, count, arguments, options, error);
}

#define ARGS(...) ((char *const[]){__VA_ARGS__, NULL})

static void assert_loads(cfg_command command, char *const *arguments, cfg_options *options) {
    bis_error error = {0};
    if (load(command, arguments, options, &error) != BIS_OK) fail_msg("%s", error.text);
}

static void assert_refused(cfg_command command, char *const *arguments, const char *expected) {
    cfg_options options, before;
    memset(&options, 0x5a, sizeof options);
    memcpy(&before, &options, sizeof before);
    bis_error error = {0};
    if (load(command, arguments, &options, &error) == BIS_OK) fail_msg("accepted, but expected: %s", expected);
    assert_string_equal(error.text, expected);
    assert_memory_equal(&options, &before, sizeof options);
}

static void assert_file_refused(const char *text, const char *expected) {
    char wanted[256];
    write_file(text, strlen(text));
    snprintf(wanted, sizeof wanted, "config file %s %s", file_path, expected);
    assert_refused(CFG_SERVE, ARGS("m", "--config", file_path), wanted);
}

/* ---- The table ------------------------------------------------------------------------------- */

static void every_default_is_a_valid_value(void **state) {
    (void)state;
    for (int option = 0; option < CFG_OPTION_COUNT; option++) {
        const cfg_entry *entry = &cfg_table[option];
        _Alignas(16) char field[sizeof(cfg_ints)] = {0};
        if (*entry->default_text && !cfg_value_parse(entry, entry->default_text, field)) {
            fail_msg("the default of %s is not valid", entry->name);
        }
    }
}

static void every_environment_name_follows_from_the_option_name(void **state) {
    (void)state;
    for (int option = 0; option < CFG_OPTION_COUNT; option++) {
        const cfg_entry *entry = &cfg_table[option];
        if (!entry->environment) continue;
        char expected[64] = "BISUP_";
        for (size_t i = 0, at = strlen(expected); i <= strlen(entry->name); i++) {
            char c = entry->name[i];
            expected[at + i] = (char)(c == '-' ? '_' : c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
        }
        assert_string_equal(entry->environment, expected);
    }
}

static void option_names_are_unique_in_a_command_and_among_settings(void **state) {
    (void)state;
    for (int a = 0; a < CFG_OPTION_COUNT; a++) {
        for (int b = 0; b < a; b++) {
            bool settings = cfg_table[a].environment && cfg_table[b].environment;
            bool together = settings || (cfg_table[a].commands & cfg_table[b].commands);
            if (together) assert_string_not_equal(cfg_table[a].name, cfg_table[b].name);
        }
    }
}

static void defaults_are_those_of_the_table(void **state) {
    (void)state;
    cfg_options options;
    assert_loads(CFG_SERVE, ARGS("models/demo"), &options);
    assert_string_equal(options.model, "models/demo");
    assert_string_equal(options.host, "127.0.0.1");
    assert_int_equal(options.port, 8080);
    assert_null(options.api_key_file);
    assert_int_equal(options.max_body, 4 << 20);
    assert_int_equal(options.kv_bits, 0);
    assert_string_equal(options.prompt_kv, "fp16");
    assert_true(options.log_requests);
    assert_false(options.json);
    assert_true(options.top_p == 1.0);
    assert_int_equal(options.batch.count, 1);
    assert_int_equal(options.stop.count, 0);
    assert_false(cfg_option_given(&options, CFG_OPTION_port));
    assert_true(cfg_option_given(&options, CFG_OPTION_model));
    cfg_options_free(&options);
}

static void the_example_file_holds_the_defaults(void **state) {
    (void)state;
    cfg_options plain, example;
    assert_loads(CFG_SERVE, ARGS("m"), &plain);
    assert_loads(CFG_SERVE, ARGS("m", "--config", "config/bisup.conf.example"), &example);
    assert_string_equal(example.host, plain.host);
    assert_string_equal(example.cpu_isa, plain.cpu_isa);
    assert_string_equal(example.log_level, plain.log_level);
    assert_string_equal(example.prompt_kv, plain.prompt_kv);
    for (int option = 0; option < CFG_OPTION_COUNT; option++) {
        const cfg_entry *entry = &cfg_table[option];
        if (entry->kind == CFG_INT || entry->kind == CFG_BOOL) {
            size_t size = entry->kind == CFG_INT ? sizeof(int) : sizeof(bool);
            assert_memory_equal((char *)&example + entry->offset, (char *)&plain + entry->offset, size);
        }
        bool has_default = entry->environment && *entry->default_text && (entry->commands >> CFG_SERVE & 1);
        if (has_default && !cfg_option_given(&example, (cfg_option)option)) fail_msg("%s is missing", entry->name);
    }
    assert_int_equal(example.max_body, plain.max_body);
    assert_int_equal(example.kv_memory, plain.kv_memory);
    cfg_options_free(&plain);
    cfg_options_free(&example);
}

/* ---- Sources --------------------------------------------------------------------------------- */

static void a_flag_wins_over_environment_over_file_over_default(void **state) {
    (void)state;
    static const char text[] = "port = 1001\nhost = ::1\nmax-batch = 3\n";
    cfg_options options;
    char source[128], expected[128];
    write_file(text, strlen(text));
    setenv("BISUP_PORT", "1002", 1);
    setenv("BISUP_HOST", "0.0.0.0", 1);
    assert_loads(CFG_SERVE, ARGS("m", "--port", "1003", "--config", file_path), &options);
    assert_int_equal(options.port, 1003);
    assert_string_equal(options.host, "0.0.0.0");
    assert_int_equal(options.max_batch, 3);
    assert_string_equal(cfg_option_source(&options, CFG_OPTION_port, source, sizeof source), "--port");
    assert_string_equal(cfg_option_source(&options, CFG_OPTION_host, source, sizeof source), "environment BISUP_HOST");
    snprintf(expected, sizeof expected, "config file %s line 3: max-batch", file_path);
    assert_string_equal(cfg_option_source(&options, CFG_OPTION_max_batch, source, sizeof source), expected);
    assert_string_equal(cfg_option_source(&options, CFG_OPTION_threads, source, sizeof source), "default of --threads");
    cfg_options_free(&options);
}

static void the_environment_can_name_the_file_and_the_model(void **state) {
    (void)state;
    static const char text[] = "kv-memory = 2G\n";
    cfg_options options;
    write_file(text, strlen(text));
    setenv("BISUP_CONFIG", file_path, 1);
    setenv("BISUP_MODEL", "from-environment", 1);
    assert_loads(CFG_SERVE, (char *const[]){NULL}, &options);
    assert_string_equal(options.model, "from-environment");
    assert_int_equal(options.kv_memory, 2ull << 30);
    cfg_options_free(&options);
}

static void a_value_that_a_stronger_source_replaces_is_checked_too(void **state) {
    (void)state;
    setenv("BISUP_PORT", "x", 1);
    assert_refused(CFG_SERVE, ARGS("m", "--port", "1"),
                   "environment BISUP_PORT is 'x', but must be a whole number from 0 to 65535");
}

static void settings_of_other_commands_do_not_disturb(void **state) {
    (void)state;
    static const char text[] = "port = 99\n";
    cfg_options options;
    write_file(text, strlen(text));
    setenv("BISUP_MAX_QUEUE", "7", 1);
    assert_loads(CFG_INFO, ARGS("m", "--config", file_path), &options);
    cfg_options_free(&options);
}

static void variables_of_kubernetes_service_links_are_no_settings(void **state) {
    (void)state;
    static const char *const links[][2] = {
        {"BISUP_SERVICE_HOST", "10.0.0.7"},
        {"BISUP_SERVICE_PORT", "8080"},
        {"BISUP_SERVICE_PORT_HTTP", "8080"},
        {"BISUP_PORT", "tcp://10.0.0.7:8080"},
        {"BISUP_PORT_8080_TCP_PROTO", "tcp"},
        {"BISUP_API_PORT", "tcp://10.0.0.7:8080"},
        {"BISUP_PORT_8080_TCP", "tcp://10.0.0.7:8080"},
    };
    enum { COUNT = sizeof links / sizeof *links };
    cfg_options options;
    for (int i = 0; i < COUNT; i++) setenv(links[i][0], links[i][1], 1);
    assert_loads(CFG_SERVE, ARGS("m"), &options);
    assert_int_equal(options.port, 8080);
    for (int i = 0; i < COUNT; i++) unsetenv(links[i][0]);
    cfg_options_free(&options);
}

static void wrong_variables_are_refused_with_the_nearest_name(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        {"BISUP_PROT", "1", "environment BISUP_PROT: unknown setting; did you mean BISUP_PORT?"},
        {"BISUP_KV_MEMROY", "1G", "environment BISUP_KV_MEMROY: unknown setting; did you mean BISUP_KV_MEMORY?"},
        {"BISUP_SOMETHING_QUITE_DIFFERENT", "1", "environment BISUP_SOMETHING_QUITE_DIFFERENT: unknown setting"},
        {"BISUP_JSON", "1", "environment BISUP_JSON: unknown setting"},
        {"BISUP_PORT", "", "environment BISUP_PORT is empty; give it a value or remove it"},
        {"BISUP_API_KEY_FILE", "", "environment BISUP_API_KEY_FILE is empty; give it a value or remove it"},
        {"BISUP_PORT", "70000", "environment BISUP_PORT is '70000', but must be a whole number from 0 to 65535"},
        {"BISUP_LOG_REQUESTS", "maybe", "environment BISUP_LOG_REQUESTS is 'maybe', but must be true or false"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        setenv(cases[i][0], cases[i][1], 1);
        assert_refused(CFG_SERVE, ARGS("m"), cases[i][2]);
        unsetenv(cases[i][0]);
    }
}

/* ---- Files ----------------------------------------------------------------------------------- */

static void files_may_have_comments_blanks_and_any_line_ends(void **state) {
    (void)state;
    static const char text[] = "\xef\xbb\xbf# first\r\n\r\n   port=81  # why\r\n\t; other\nhost : ::1 ; also\n"
                               "model-name = a=b#c\nmax-body = 1M";
    cfg_options options;
    write_file(text, strlen(text));
    assert_loads(CFG_SERVE, ARGS("m", "--config", file_path), &options);
    assert_int_equal(options.port, 81);
    assert_string_equal(options.host, "::1");
    assert_string_equal(options.model_name, "a=b#c");
    assert_int_equal(options.max_body, 1 << 20);
    assert_int_equal(options.line[CFG_OPTION_max_body], 7);
    cfg_options_free(&options);
}

static void a_setting_is_not_a_flag_of_the_same_name(void **state) {
    (void)state;
    static const char text[] = "prompt-kv = low\n";
    cfg_options options;
    write_file(text, strlen(text));
    assert_loads(CFG_SERVE, ARGS("m", "--config", file_path), &options);
    assert_string_equal(options.prompt_kv, "low");
    cfg_options_free(&options);
    assert_loads(CFG_EVAL, ARGS("m", "--text", "t", "--config", file_path), &options);
    assert_string_equal(options.eval_prompt_kv, "all");
    cfg_options_free(&options);
    assert_loads(CFG_EVAL, ARGS("m", "--text", "t", "--prompt", "p", "--prompt-kv", "none"), &options);
    assert_string_equal(options.eval_prompt_kv, "none");
    assert_string_equal(options.prompt_kv, "fp16");
    cfg_options_free(&options);
}

static void wrong_files_are_refused_with_their_line(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"port = 1\nprot = 2\n", "line 2: unknown setting 'prot'; did you mean port?"},
        {"frobnicate = 2\n", "line 1: unknown setting 'frobnicate'"},
        {"\n\nport = many\n", "line 3: port is 'many', but must be a whole number from 0 to 65535"},
        {"port = 1\nport = 2\n", "line 2: 'port' is given twice"},
        {"[server]\nport = 1\n", "line 1: sections are not used here; remove the line"},
        {"# x\n [server]\n", "line 2: sections are not used here; remove the line"},
        {"port = 1\n\nnonsense\n", "line 3: this is not 'name = value'"},
        {"nonsense\nprot = 2\n", "line 1: this is not 'name = value'"},
        {"port =\n", "line 1: port is empty; give it a value or remove it"},
        {"json = true\n", "line 1: 'json' is only a flag, no setting"},
        {"config = other.conf\n", "line 1: 'config' is only a flag, no setting"},
        {"port = 1\n  2\n", "line 2: this is not 'name = value'"},
        {"cpu-isa = sse\n", "line 1: cpu-isa is 'sse', but must be auto, reference, avx2 or avx512"},
        {"kv-bits = 17\n", "line 1: kv-bits is '17', but must be 0, 2, 3, 4, 8, 16 or 32"},
        {"max-body = 1\n", "line 1: max-body is '1', but must be a size from 1K to 1G, such as 512K, 64M or 2G"},
        {"port = \xff\n", "is not UTF-8 text"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) assert_file_refused(cases[i][0], cases[i][1]);
}

static void a_line_is_never_cut(void **state) {
    (void)state;
    char text[512], wanted[128];
    cfg_options options;
    bool accepted = true;
    for (size_t length = 1; length < 400; length++) {
        memset(text, 'x', sizeof text);
        memcpy(text, "model-name = ", 13);
        text[13 + length] = '\0';
        write_file(text, strlen(text));
        bis_error error = {0};
        bis_status status = load(CFG_SERVE, ARGS("m", "--config", file_path), &options, &error);
        if (status == BIS_OK) {
            assert_true(accepted);
            assert_int_equal(strlen(options.model_name), length);
            cfg_options_free(&options);
        } else {
            accepted = false;
            snprintf(wanted, sizeof wanted, "config file %s line 1: the line is too long", file_path);
            assert_string_equal(error.text, wanted);
        }
    }
    assert_false(accepted);
}

static void a_missing_file_is_named(void **state) {
    (void)state;
    assert_refused(CFG_SERVE, ARGS("m", "--config", "/nonexistent/x.conf"),
                   "config file: cannot open /nonexistent/x.conf: No such file or directory");
    assert_refused(CFG_SERVE, ARGS("m", "--config", "/"), "config file: / is not a regular file");
}

static void a_file_with_a_nul_byte_is_refused(void **state) {
    (void)state;
    char wanted[128];
    write_file("port = 1\0 2\n", 12);
    snprintf(wanted, sizeof wanted, "config file %s is not UTF-8 text", file_path);
    assert_refused(CFG_SERVE, ARGS("m", "--config", file_path), wanted);
}

static void allocation_failures_are_reported_and_nothing_leaks(void **state) {
    (void)state;
    static const char text[] = "port = 1\nhost = ::1\nmodel-name = x\n";
    write_file(text, strlen(text));
    bool loaded = false;
    int failures = 0;
    for (long successes = 0; successes < 100 && !loaded; successes++) {
        cfg_options options;
        bis_error error = {0};
        bis_alloc_fail_after(successes);
        bis_status status = load(CFG_SERVE, ARGS("m", "--config", file_path), &options, &error);
        bis_alloc_fail_after(-1);
        loaded = status == BIS_OK;
        if (loaded) cfg_options_free(&options);
        else assert_int_equal(status, BIS_ERR_NOMEM);
        failures += !loaded;
    }
    assert_true(loaded);
    assert_true(failures >= 4);
}

/* ---- Flags ----------------------------------------------------------------------------------- */

static void all_forms_of_flags_are_read(void **state) {
    (void)state;
    cfg_options options;
    assert_loads(CFG_SERVE, ARGS("--port=1", "m", "--no-log-requests", "--port", "2"), &options);
    assert_int_equal(options.port, 2);
    assert_false(options.log_requests);
    assert_string_equal(options.model, "m");
    cfg_options_free(&options);
    assert_loads(CFG_GENERATE, ARGS("m", "--prompt=--x", "--chat=no", "--json", "--max-tokens", "-1"), &options);
    assert_string_equal(options.prompt, "--x");
    assert_false(options.chat);
    assert_true(options.json);
    assert_int_equal(options.max_tokens, -1);
    cfg_options_free(&options);
    assert_loads(CFG_SERVE, ARGS("--", "--odd-folder"), &options);
    assert_string_equal(options.model, "--odd-folder");
    cfg_options_free(&options);
    assert_loads(CFG_GENERATE, ARGS("m", "--prompt", ""), &options);
    assert_string_equal(options.prompt, "");
    cfg_options_free(&options);
}

static void a_repeated_stop_is_collected(void **state) {
    (void)state;
    cfg_options options;
    assert_loads(CFG_GENERATE, ARGS("m", "--prompt=p", "--stop", "a", "--stop=b"), &options);
    assert_int_equal(options.stop.count, 2);
    assert_string_equal(options.stop.values[0], "a");
    assert_string_equal(options.stop.values[1], "b");
    cfg_options_free(&options);
    assert_refused(CFG_GENERATE, ARGS("--stop=1", "--stop=2", "--stop=3", "--stop=4", "--stop=5"),
                   "--stop is '5', but must be not empty, and given at most 4 times");
}

static void wrong_flags_are_refused_with_the_nearest_name(void **state) {
    (void)state;
    static const struct {
        cfg_command command;
        char *arguments[4];
        const char *expected;
    } cases[] = {
        {CFG_SERVE, {"m", "--prot", "1"}, "unknown option '--prot'; did you mean --port?"},
        {CFG_SERVE, {"m", "--no-log-request"}, "unknown option '--no-log-request'; did you mean --no-log-requests?"},
        {CFG_SERVE, {"m", "--xyzzy"}, "unknown option '--xyzzy'; try --help"},
        {CFG_SERVE, {"m", "-p"}, "unknown option '-p'; try --help"},
        {CFG_SERVE, {"m", "--no-port"}, "unknown option '--no-port'; did you mean --port?"},
        {CFG_SERVE, {"m", "--port"}, "--port needs a value: --port N"},
        {CFG_GENERATE,
         {"m", "--prompt", "--json"},
         "--prompt needs a value: --prompt TEXT (or --prompt=..., if the value begins with --)"},
        {CFG_GENERATE, {"m", "--port", "1"}, "--port is for serve, health; generate does not take it"},
        {CFG_SERVE,
         {"m", "n"},
         "two models are given, 'm' and 'n'; give one (and put quotes around a text with spaces)"},
        {CFG_HEALTH, {"m"}, "unexpected argument 'm'; try --help"},
        {CFG_SERVE, {"m", "--port="}, "--port is '', but must be a whole number from 0 to 65535"},
        {CFG_SERVE, {NULL}, "serve needs a model folder (or BISUP_MODEL); try: bisup serve --help"},
        {CFG_GENERATE, {"m"}, "generate needs --prompt TEXT; try: bisup generate --help"},
        {CFG_GENERATE, {"m", "--prompt=p", "--system=s"}, "--system goes with --chat"},
        {CFG_EVAL, {"m"}, "eval needs --text FILE; try: bisup eval --help"},
        {CFG_BENCH, {NULL}, "bench needs a model folder or --shape CONFIG.json; try: bisup bench --help"},
        {CFG_BENCH, {"m", "--shape=s"}, "give a model or --shape, not both"},
        {CFG_BENCH, {"m", "--type=f32"}, "--type is for the random weights of --shape"},
        {CFG_QUANTIZE, {"m"}, "quantize needs OUT, the folder to write, after the model; try: bisup quantize --help"},
        {CFG_QUANTIZE,
         {"m", "o"},
         "quantize needs --calibration FILE (all methods but rtn); try: bisup quantize --help"},
        {CFG_QUANTIZE,
         {"m", "o", "p"},
         "unexpected argument 'p' after the model 'm' and the folder to write 'o'; try --help"},
        {CFG_QUANTIZE,
         {"m", "o", "--bits=W5A4KV4"},
         "--bits is 'W5A4KV4', but must be such as W4A4KV4: W and A with 3, 4, 8 or 16, KV with 2, 3, 4, 8 or 16 (16: "
         "not quantized)"},
        {CFG_QUANTIZE,
         {"m", "o", "--method=awq"},
         "--method is 'awq', but must be rtn, gptq, atom, quarot, bisup-atom or bisup-quarot"},
        {CFG_QUANTIZE, {"m", "o", "--group=16"}, "--group is '16', but must be 32, 64 or 128"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_refused(cases[i].command, cases[i].arguments, cases[i].expected);
    }
}

static void quantize_takes_two_folders(void **state) {
    (void)state;
    cfg_options options;
    assert_loads(CFG_QUANTIZE, ARGS("in", "--method", "rtn", "out", "--bits", "W3A16KV2"), &options);
    assert_string_equal(options.model, "in");
    assert_string_equal(options.out, "out");
    assert_string_equal(options.method, "rtn");
    assert_int_equal(options.bits.weight, 3);
    assert_int_equal(options.bits.activation, 16);
    assert_int_equal(options.bits.kv, 2);
    assert_true(options.clip && options.smooth && options.low_rank && options.gptq);
    cfg_options_free(&options);
    assert_loads(CFG_QUANTIZE, ARGS("--out=o", "m", "--calibration", "t", "--no-low-rank"), &options);
    assert_string_equal(options.out, "o");
    assert_string_equal(options.method, "bisup-quarot");
    assert_false(options.low_rank);
    cfg_options_free(&options);
}

static void a_name_can_mean_different_things_to_commands(void **state) {
    (void)state;
    cfg_options options;
    assert_loads(CFG_QUANTIZE, ARGS("m", "o", "--calibration", "t", "--prompt", "file"), &options);
    assert_string_equal(options.prompt_file, "file");
    assert_null(options.prompt);
    cfg_options_free(&options);
    assert_loads(CFG_GENERATE, ARGS("m", "--prompt", "text"), &options);
    assert_string_equal(options.prompt, "text");
    assert_null(options.prompt_file);
    cfg_options_free(&options);
}

static void a_text_can_be_taken_back(void **state) {
    (void)state;
    cfg_options options;
    assert_loads(CFG_QUANTIZE, ARGS("m", "o", "--calibration", "t", "--prompt", "file", "--no-prompt"), &options);
    assert_null(options.prompt_file);
    cfg_options_free(&options);
    setenv("BISUP_API_KEY_FILE", "keys", 1);
    assert_loads(CFG_SERVE, ARGS("m", "--no-api-key-file"), &options);
    assert_null(options.api_key_file);
    cfg_options_free(&options);
}

static void bits_are_read_strictly(void **state) {
    (void)state;
    static const char *const good[] = {"W3A3KV2", "W4A4KV4", "W8A8KV8", "W16A16KV16", "W16A4KV3"};
    static const char *const bad[] = {"",          "W4",       "W4A4",     "W4A4KV",   "W5A4KV4",  "W2A4KV4",
                                      "W4A2KV4",   "W4A4KV5",  "w4a4kv4",  "W04A4KV4", "W4A4KV4 ", " W4A4KV4",
                                      "W4 A4KV4",  "W4A4KV44", "A4W4KV4",  "W4A4K4",   "W4A4KV-4", "W+4A4KV4",
                                      "W4A4KV4W4", "W1A6KV4",  "W161A4KV4"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        cfg_bits bits;
        char text[CFG_BITS_TEXT_MAX];
        if (!cfg_bits_parse(good[i], &bits)) fail_msg("%s", good[i]);
        assert_string_equal(cfg_bits_text(&bits, text), good[i]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cfg_bits bits = {1, 2, 3};
        if (cfg_bits_parse(bad[i], &bits)) fail_msg("%s was read", bad[i]);
        assert_true(bits.weight == 1 && bits.activation == 2 && bits.kv == 3);
    }
}

static void a_very_long_name_is_refused_in_one_line(void **state) {
    (void)state;
    char flag[5000];
    memset(flag, 'a', sizeof flag - 1);
    memcpy(flag, "--", 2);
    flag[sizeof flag - 1] = '\0';
    cfg_options options;
    bis_error error = {0};
    assert_int_equal(load(CFG_SERVE, ARGS("m", flag), &options, &error), BIS_ERR_INVALID);
    assert_true(strlen(error.text) < 200);
}

static void help_needs_nothing_else(void **state) {
    (void)state;
    cfg_options options;
    assert_loads(CFG_GENERATE, ARGS("--help"), &options);
    assert_true(options.help);
    cfg_options_free(&options);
    assert_loads(CFG_SERVE, ARGS("-h"), &options);
    assert_true(options.help);
    cfg_options_free(&options);
}

/* ---- Values ---------------------------------------------------------------------------------- */

static void sizes_take_suffixes(void **state) {
    (void)state;
    static const struct {
        const char *text;
        bool valid;
        uint64_t bytes;
    } cases[] = {
        {"0", true, 0},
        {"1024", true, 1024},
        {"4k", true, 4096},
        {"4K", true, 4096},
        {"3M", true, 3 << 20},
        {"2GiB", true, 2ull << 30},
        {"1T", true, 1ull << 40},
        {"16T", true, 1ull << 44},
        {"17T", false, 0},
        {"", false, 0},
        {"K", false, 0},
        {"-1", false, 0},
        {"1.5G", false, 0},
        {"4iB", false, 0},
        {"1KB", false, 0},
        {" 1", false, 0},
        {"18446744073709551616", false, 0},
        {"18446744073709551615G", false, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t bytes = 77;
        bool valid = cfg_value_parse(&cfg_table[CFG_OPTION_kv_memory], cases[i].text, &bytes);
        if (valid != cases[i].valid) fail_msg("'%s' was %s", cases[i].text, valid ? "accepted" : "refused");
        assert_int_equal(bytes, valid ? cases[i].bytes : 77);
    }
}

static void numbers_are_read_exactly_or_refused(void **state) {
    (void)state;
    static const struct {
        cfg_option option;
        const char *text;
        bool valid;
    } cases[] = {
        {CFG_OPTION_port, "0", true},
        {CFG_OPTION_port, "65535", true},
        {CFG_OPTION_port, "65536", false},
        {CFG_OPTION_port, "-1", false},
        {CFG_OPTION_port, "+1", false},
        {CFG_OPTION_port, " 1", false},
        {CFG_OPTION_port, "1 ", false},
        {CFG_OPTION_port, "0x10", false},
        {CFG_OPTION_port, "1e3", false},
        {CFG_OPTION_port, "4294967297", false},
        {CFG_OPTION_port, "99999999999999999999", false},
        {CFG_OPTION_max_tokens, "-1", true},
        {CFG_OPTION_max_tokens, "-2", false},
        {CFG_OPTION_max_tokens, "-", false},
        {CFG_OPTION_limit, "2147483647", true},
        {CFG_OPTION_limit, "2147483648", false},
        {CFG_OPTION_temperature, "0.7", true},
        {CFG_OPTION_temperature, "2", true},
        {CFG_OPTION_temperature, "2.01", false},
        {CFG_OPTION_temperature, "nan", false},
        {CFG_OPTION_temperature, "inf", false},
        {CFG_OPTION_temperature, "", false},
        {CFG_OPTION_temperature, "1e-2", true},
        {CFG_OPTION_temperature, "1e", false},
        {CFG_OPTION_temperature, "0x1", false},
        {CFG_OPTION_top_p, "0", false},
        {CFG_OPTION_top_p, "1", true},
        {CFG_OPTION_seed, "18446744073709551615", true},
        {CFG_OPTION_seed, "18446744073709551616", false},
        {CFG_OPTION_seed, "-1", false},
        {CFG_OPTION_kv_bits, "16", true},
        {CFG_OPTION_kv_bits, "32", true},
        {CFG_OPTION_kv_bits, "24", false},
        {CFG_OPTION_kv_bits, "0", true},
        {CFG_OPTION_kv_bits, "3", true},
        {CFG_OPTION_kv_bits, "5", false},
        {CFG_OPTION_prompt_kv, "low", true},
        {CFG_OPTION_prompt_kv, "fp32", false},
        {CFG_OPTION_type, "bf16", true},
        {CFG_OPTION_type, "f", false},
        {CFG_OPTION_type, "f16|bf16", false},
        {CFG_OPTION_batch, "1,4,8", true},
        {CFG_OPTION_batch, "1,", false},
        {CFG_OPTION_batch, ",1", false},
        {CFG_OPTION_batch, "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", true},
        {CFG_OPTION_batch, "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", false},
        {CFG_OPTION_chat, "yes", true},
        {CFG_OPTION_chat, "2", false},
        {CFG_OPTION_chat, "TRUE", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const cfg_entry *entry = &cfg_table[cases[i].option];
        _Alignas(16) char field[sizeof(cfg_ints)], before[sizeof field];
        memset(field, 0x11, sizeof field);
        memcpy(before, field, sizeof field);
        bool valid = cfg_value_parse(entry, cases[i].text, field);
        if (valid != cases[i].valid) {
            fail_msg("%s '%s' was %s", entry->name, cases[i].text, valid ? "accepted" : "refused");
        }
        if (!valid) assert_memory_equal(field, before, sizeof field);
    }
}

static void lists_and_choices_give_their_values(void **state) {
    (void)state;
    cfg_options options;
    assert_loads(CFG_BENCH, ARGS("m", "--batch", "1,4,8", "--log-level=warn"), &options);
    assert_int_equal(options.batch.count, 3);
    assert_int_equal(options.batch.values[2], 8);
    assert_int_equal(cfg_choice_index(CFG_OPTION_log_level, options.log_level), 2);
    assert_int_equal(cfg_choice_index(CFG_OPTION_log_level, "warning"), -1);
    cfg_options_free(&options);
}

/* ---- Names ----------------------------------------------------------------------------------- */

static void commands_are_found_by_name(void **state) {
    (void)state;
    bis_error error = {0};
    cfg_command command = CFG_COMMAND_COUNT;
    for (int i = 0; i < CFG_COMMAND_COUNT; i++) {
        assert_int_equal(cfg_command_parse(cfg_command_name((cfg_command)i), &command, &error), BIS_OK);
        assert_int_equal(command, i);
    }
    assert_int_equal(cfg_command_parse("sevre", &command, &error), BIS_ERR_INVALID);
    assert_string_equal(error.text, "unknown command 'sevre'; did you mean serve?");
    assert_int_equal(cfg_command_parse("teapot", &command, &error), BIS_ERR_INVALID);
    assert_string_equal(error.text, "unknown command 'teapot'; try: bisup --help");
}

static void the_nearest_name_counts_letters_to_change(void **state) {
    (void)state;
    static const char *const names[] = {"port", "host", "temperature", "top-p", "top-k"};
    static const char *const cases[][2] = {
        {"prot", "port"},   {"por", "port"}, {"hosts", "host"},  {"temprature", "temperature"},
        {"top_p", "top-p"}, {"", NULL},      {"zzzzzzzz", NULL}, {"q", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *nearest = cfg_nearest_name(cases[i][0], names, sizeof names / sizeof *names);
        if (!cases[i][1]) assert_null(nearest);
        else assert_string_equal(nearest, cases[i][1]);
    }
}

static void help_names_every_option_of_its_command(void **state) {
    (void)state;
    for (int command = 0; command < CFG_COMMAND_COUNT; command++) {
        char *text = NULL;
        size_t length = 0;
        FILE *stream = open_memstream(&text, &length);
        assert_non_null(stream);
        cfg_print_help(stream, (cfg_command)command);
        assert_int_equal(fclose(stream), 0);
        for (int option = 0; option < CFG_OPTION_COUNT; option++) {
            const cfg_entry *entry = &cfg_table[option];
            char flag[96];
            bool on = entry->kind == CFG_BOOL && !strcmp(entry->default_text, "true");
            snprintf(flag, sizeof flag, "  --%s%s %s%s", on ? "[no-]" : "", entry->name, entry->hint,
                     *entry->hint ? "" : " ");
            bool shown = strstr(text, flag) != NULL, expected = entry->commands >> command & 1;
            if (shown != expected) fail_msg("help of %s and %s", cfg_command_name((cfg_command)command), flag);
        }
        for (const char *line = text; *line; line = strchr(line, '\n') + 1) assert_true(strcspn(line, "\n") <= 110);
        free(text);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(every_default_is_a_valid_value),
        TEST(every_environment_name_follows_from_the_option_name),
        TEST(option_names_are_unique_in_a_command_and_among_settings),
        TEST(defaults_are_those_of_the_table),
        TEST(the_example_file_holds_the_defaults),
        TEST(a_flag_wins_over_environment_over_file_over_default),
        TEST(the_environment_can_name_the_file_and_the_model),
        TEST(a_value_that_a_stronger_source_replaces_is_checked_too),
        TEST(settings_of_other_commands_do_not_disturb),
        TEST(variables_of_kubernetes_service_links_are_no_settings),
        TEST(wrong_variables_are_refused_with_the_nearest_name),
        TEST(files_may_have_comments_blanks_and_any_line_ends),
        TEST(a_setting_is_not_a_flag_of_the_same_name),
        TEST(wrong_files_are_refused_with_their_line),
        TEST(a_line_is_never_cut),
        TEST(a_missing_file_is_named),
        TEST(a_file_with_a_nul_byte_is_refused),
        TEST(allocation_failures_are_reported_and_nothing_leaks),
        TEST(all_forms_of_flags_are_read),
        TEST(a_repeated_stop_is_collected),
        TEST(wrong_flags_are_refused_with_the_nearest_name),
        TEST(quantize_takes_two_folders),
        TEST(a_name_can_mean_different_things_to_commands),
        TEST(a_text_can_be_taken_back),
        TEST(bits_are_read_strictly),
        TEST(a_very_long_name_is_refused_in_one_line),
        TEST(help_needs_nothing_else),
        TEST(sizes_take_suffixes),
        TEST(numbers_are_read_exactly_or_refused),
        TEST(lists_and_choices_give_their_values),
        TEST(commands_are_found_by_name),
        TEST(the_nearest_name_counts_letters_to_change),
        TEST(help_names_every_option_of_its_command),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
