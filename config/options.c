#include "config/options.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "config/config_file.h"
#include "config/option_table.h"

enum { SHOWN_TEXT = 80 }; /* bytes of a wrong value or name that a message repeats */

static const char environment_prefix[] = "BISUP_";

static void *field_of(cfg_options *options, cfg_option option) { return (char *)options + cfg_table[option].offset; }

static bool belongs_to(cfg_option option, cfg_command command) { return cfg_table[option].commands >> command & 1; }

/* ---- Sources --------------------------------------------------------------------------------- */

static const char *describe_source(cfg_option option, cfg_origin origin, const char *path, int line, char *text,
                                   size_t size) {
    const cfg_entry *entry = &cfg_table[option];
    switch (origin) {
    case CFG_FROM_DEFAULT: snprintf(text, size, "default of --%s", entry->name); break;
    case CFG_FROM_FILE: snprintf(text, size, "config file %s line %d: %s", path, line, entry->name); break;
    case CFG_FROM_ENVIRONMENT: snprintf(text, size, "environment %s", entry->environment); break;
    case CFG_FROM_FLAG: snprintf(text, size, "--%s", entry->name); break;
    }
    return text;
}

bool cfg_option_given(const cfg_options *options, cfg_option option) {
    return options->origin[option] != CFG_FROM_DEFAULT;
}

const char *cfg_option_source(const cfg_options *options, cfg_option option, char *text, size_t size) {
    const char *path = options->config ? options->config : "";
    return describe_source(option, options->origin[option], path, options->line[option], text, size);
}

/* ---- Setting one option ---------------------------------------------------------------------- */

/* Checks the value wherever it comes from; keeps it unless a stronger source gave one already. */
static bis_status set_option(cfg_options *options, cfg_option option, cfg_origin origin, int line, const char *value,
                             bis_error *error) {
    const cfg_entry *entry = &cfg_table[option];
    char source[256], wanted[192];
    describe_source(option, origin, options->config ? options->config : "", line, source, sizeof source);
    if (!*value && origin != CFG_FROM_FLAG) {
        return bis_fail(error, BIS_ERR_INVALID, "%s is empty; give it a value or remove it", source);
    }
    bool stronger_given = options->origin[option] > origin;
    cfg_options unused = {0};
    cfg_options *target = stronger_given ? &unused : options;
    if (!cfg_value_parse(entry, value, field_of(target, option))) {
        cfg_value_describe(entry, wanted, sizeof wanted);
        return bis_fail(error, BIS_ERR_INVALID, "%s is '%.*s', but must be %s", source, SHOWN_TEXT, value, wanted);
    }
    if (stronger_given) return BIS_OK;
    options->origin[option] = origin;
    options->line[option] = line;
    return BIS_OK;
}

/* Of two options with one name, the one that the command takes. */
static cfg_option find_option(cfg_command command, const char *name, size_t length) {
    cfg_option found = CFG_OPTION_COUNT;
    for (cfg_option option = 0; option < CFG_OPTION_COUNT; option++) {
        const char *known = cfg_table[option].name;
        if (strlen(known) != length || memcmp(known, name, length) != 0) continue;
        if (belongs_to(option, command)) return option;
        if (found == CFG_OPTION_COUNT) found = option;
    }
    return found;
}

/* The same for a configuration file's key: a setting, also where the command has a flag of its own with this name. */
static cfg_option find_setting(const char *name, cfg_command command) {
    for (cfg_option option = 0; option < CFG_OPTION_COUNT; option++) {
        if (cfg_table[option].environment && !strcmp(cfg_table[option].name, name)) return option;
    }
    return find_option(command, name, strlen(name));
}

/* "; did you mean --port?" for the nearest of the names (which all have `prefix` before them), or "". */
static const char *suggest(const char *prefix, const char *word, const char *const *names, size_t count, char *text,
                           size_t size) {
    const char *nearest = cfg_nearest_name(word, names, count);
    if (nearest) snprintf(text, size, "; did you mean %s%s?", prefix, nearest);
    else *text = '\0';
    return text;
}

/* ---- Configuration file ---------------------------------------------------------------------- */

static bis_status refuse_key(const cfg_options *options, int line, const char *name, bool known, bis_error *error) {
    const char *names[CFG_OPTION_COUNT];
    size_t count = 0;
    char hint[128];
    if (known) {
        return bis_fail(error, BIS_ERR_INVALID, "config file %s line %d: '%s' is only a flag, no setting",
                        options->config, line, name);
    }
    for (cfg_option option = 0; option < CFG_OPTION_COUNT; option++) {
        if (cfg_table[option].environment && option != CFG_OPTION_config) names[count++] = cfg_table[option].name;
    }
    return bis_fail(error, BIS_ERR_INVALID, "config file %s line %d: unknown setting '%.*s'%s", options->config, line,
                    SHOWN_TEXT, name, suggest("", name, names, count, hint, sizeof hint));
}

static bis_status take_file_setting(void *user, int line, const char *name, const char *value, bis_error *error) {
    cfg_options *options = user;
    cfg_option option = find_setting(name, options->command);
    bool known = option != CFG_OPTION_COUNT;
    if (!known || !cfg_table[option].environment || option == CFG_OPTION_config) {
        return refuse_key(options, line, name, known, error);
    }
    if (options->file_text[option]) {
        return bis_fail(error, BIS_ERR_INVALID, "config file %s line %d: '%s' is given twice", options->config, line,
                        name);
    }
    options->file_text[option] = bis_strdup(value);
    if (!options->file_text[option]) return bis_fail(error, BIS_ERR_NOMEM, "no memory to read the configuration");
    return set_option(options, option, CFG_FROM_FILE, line, options->file_text[option], error);
}

/* ---- Environment ----------------------------------------------------------------------------- */

/* A Kubernetes service named "bisup" puts BISUP_PORT=tcp://10.0.0.7:8080, BISUP_SERVICE_HOST,
 * BISUP_PORT_8080_TCP and such into the environment of pods; these are no settings. */
static bool is_service_link(const char *variable, const char *value) {
    size_t length = strcspn(variable, "=");
    const char *host = strstr(variable, "_SERVICE_HOST"), *port = strstr(variable, "_SERVICE_PORT");
    if ((host && host < variable + length) || (port && port < variable + length)) return true;
    for (const char *at = variable; (at = strstr(at, "_PORT")) && at < variable + length; at++) {
        if (at[5] == '_' && at[6] >= '0' && at[6] <= '9') return true;
        if (at[5] == '=' && strstr(value, "://")) return true;
    }
    return false;
}

static bis_status refuse_variable(const char *name, size_t length, bis_error *error) {
    const char *names[CFG_OPTION_COUNT];
    size_t count = 0, prefix = strlen(environment_prefix);
    char word[64], hint[128];
    for (cfg_option option = 0; option < CFG_OPTION_COUNT; option++) {
        if (cfg_table[option].environment) names[count++] = cfg_table[option].environment + prefix;
    }
    snprintf(word, sizeof word, "%.*s", (int)(length < sizeof word ? length : sizeof word - 1), name);
    return bis_fail(error, BIS_ERR_INVALID, "environment %s: unknown setting%s", word,
                    suggest(environment_prefix, word + prefix, names, count, hint, sizeof hint));
}

static bis_status take_variable(cfg_options *options, const char *variable, bis_error *error) {
    static const char tests_data[] = "BISUP_SHARED"; /* where the tests find their data; no setting */
    const char *equals = strchr(variable, '=');
    if (!equals || strncmp(variable, environment_prefix, strlen(environment_prefix)) != 0) return BIS_OK;
    size_t length = (size_t)(equals - variable);
    if (is_service_link(variable, equals + 1)) return BIS_OK;
    if (length == strlen(tests_data) && !memcmp(variable, tests_data, length)) return BIS_OK;
    for (cfg_option option = 0; option < CFG_OPTION_COUNT; option++) {
        const char *name = cfg_table[option].environment;
        if (!name || strlen(name) != length || memcmp(name, variable, length) != 0) continue;
        return set_option(options, option, CFG_FROM_ENVIRONMENT, 0, equals + 1, error);
    }
    return refuse_variable(variable, length, error);
}

static bis_status take_environment(cfg_options *options, bis_error *error) {
    bis_status status = BIS_OK;
    for (char **variable = environ; variable && *variable && !status; variable++) {
        status = take_variable(options, *variable, error);
    }
    return status;
}

/* ---- Flags ----------------------------------------------------------------------------------- */

/* The option exists, but not for this command: says which commands take it. */
static bis_status refuse_for_command(cfg_option option, cfg_command command, bis_error *error) {
    char takers[128] = "";
    size_t used = 0;
    for (cfg_command other = 0; other < CFG_COMMAND_COUNT; other++) {
        if (!belongs_to(option, other) || used >= sizeof takers) continue;
        const char *between = used ? ", " : "";
        used += (size_t)snprintf(takers + used, sizeof takers - used, "%s%s", between, cfg_command_name(other));
    }
    return bis_fail(error, BIS_ERR_INVALID, "--%s is for %s; %s does not take it", cfg_table[option].name, takers,
                    cfg_command_name(command));
}

static bis_status refuse_flag(cfg_command command, const char *name, size_t length, bis_error *error) {
    enum { WITH_NO = 2 * CFG_OPTION_COUNT, NAME_MAX_BYTES = 40 };
    char negated[CFG_OPTION_COUNT][NAME_MAX_BYTES];
    const char *names[WITH_NO];
    size_t count = 0;
    char word[64], hint[128];
    for (cfg_option option = 0; option < CFG_OPTION_COUNT; option++) {
        if (!belongs_to(option, command)) continue;
        names[count++] = cfg_table[option].name;
        if (cfg_table[option].kind != CFG_BOOL) continue;
        snprintf(negated[option], NAME_MAX_BYTES, "no-%s", cfg_table[option].name);
        names[count++] = negated[option];
    }
    snprintf(word, sizeof word, "%.*s", (int)(length < sizeof word ? length : sizeof word - 1), name);
    suggest("--", word, names, count, hint, sizeof hint);
    return bis_fail(error, BIS_ERR_INVALID, "unknown option '--%s'%s", word, *hint ? hint : "; try --help");
}

/* One argument that begins with "--", with `next` after it (or NULL). *taken: how many arguments it uses. */
static bis_status take_flag(cfg_options *options, const char *argument, const char *next, int *taken,
                            bis_error *error) {
    const char *name = argument + 2;
    const char *equals = strchr(name, '=');
    size_t length = equals ? (size_t)(equals - name) : strlen(name);
    const char *value = equals ? equals + 1 : NULL;
    cfg_option option = find_option(options->command, name, length);
    bool take_back = false;
    *taken = 1;
    if (option == CFG_OPTION_COUNT && !value && !strncmp(name, "no-", 3)) {
        option = find_option(options->command, name + 3, length - 3);
        take_back = option != CFG_OPTION_COUNT && cfg_table[option].kind == CFG_STRING;
        value = "false";
        if (option != CFG_OPTION_COUNT && cfg_table[option].kind != CFG_BOOL && !take_back) option = CFG_OPTION_COUNT;
    }
    if (option == CFG_OPTION_COUNT) return refuse_flag(options->command, name, length, error);
    if (!belongs_to(option, options->command)) return refuse_for_command(option, options->command, error);
    if (take_back) {
        *(const char **)field_of(options, option) = NULL;
        options->origin[option] = CFG_FROM_FLAG;
        return BIS_OK;
    }
    if (!value && cfg_table[option].kind == CFG_BOOL) value = "true";
    if (!value) {
        if (!next || !strncmp(next, "--", 2)) {
            return bis_fail(error, BIS_ERR_INVALID, "%s needs a value: %s %s%s%s%s", argument, argument,
                            cfg_table[option].hint, next ? " (or " : "", next ? argument : "",
                            next ? "=..., if the value begins with --)" : "");
        }
        value = next;
        *taken = 2;
    }
    return set_option(options, option, CFG_FROM_FLAG, 0, value, error);
}

static bis_status take_word(cfg_options *options, const char *word, bis_error *error) {
    if (!belongs_to(CFG_OPTION_model, options->command)) {
        return bis_fail(error, BIS_ERR_INVALID, "unexpected argument '%.*s'; try --help", SHOWN_TEXT, word);
    }
    bool has_model = options->origin[CFG_OPTION_model] == CFG_FROM_FLAG;
    if (has_model && belongs_to(CFG_OPTION_out, options->command)) {
        if (!options->out) return set_option(options, CFG_OPTION_out, CFG_FROM_FLAG, 0, word, error);
        return bis_fail(error, BIS_ERR_INVALID,
                        "unexpected argument '%.*s' after the model '%.*s' and the folder to "
                        "write '%.*s'; try --help",
                        SHOWN_TEXT, word, SHOWN_TEXT, options->model, SHOWN_TEXT, options->out);
    }
    if (has_model) {
        return bis_fail(error, BIS_ERR_INVALID,
                        "two models are given, '%.*s' and '%.*s'; give one (and put quotes "
                        "around a text with spaces)",
                        SHOWN_TEXT, options->model, SHOWN_TEXT, word);
    }
    return set_option(options, CFG_OPTION_model, CFG_FROM_FLAG, 0, word, error);
}

static bis_status take_arguments(cfg_options *options, int argc, char *const *argv, bis_error *error) {
    bool only_words = false;
    bis_status status = BIS_OK;
    for (int i = 0, taken = 1; i < argc && !status && !options->help; i += taken, taken = 1) {
        const char *argument = argv[i];
        if (only_words || *argument != '-') {
            status = take_word(options, argument, error);
        } else if (!strcmp(argument, "--")) {
            only_words = true;
        } else if (!strcmp(argument, "--help") || !strcmp(argument, "-h")) {
            options->help = true;
        } else if (argument[1] == '-') {
            status = take_flag(options, argument, i + 1 < argc ? argv[i + 1] : NULL, &taken, error);
        } else {
            status = bis_fail(error, BIS_ERR_INVALID, "unknown option '%.*s'; try --help", SHOWN_TEXT, argument);
        }
    }
    return status;
}

/* ---- What a command cannot do without -------------------------------------------------------- */

static bis_status require(bool present, const char *what, cfg_command command, bis_error *error) {
    if (present) return BIS_OK;
    return bis_fail(error, BIS_ERR_INVALID, "%s needs %s; try: bisup %s --help", cfg_command_name(command), what,
                    cfg_command_name(command));
}

static bis_status refuse_pair(bool wrong, const char *why, bis_error *error) {
    return wrong ? bis_fail(error, BIS_ERR_INVALID, "%s", why) : BIS_OK;
}

static bis_status check_eval(const cfg_options *options, bis_error *error) {
    bool text = !strcmp(options->task, "perplexity"), facts = !strcmp(options->task, "facts");
    bool prompt_kv = cfg_option_given(options, CFG_OPTION_eval_prompt_kv);
    bool context = cfg_option_given(options, CFG_OPTION_context);
    bis_status status = BIS_OK;
    if (text) status = require(options->text != NULL, "--text FILE", CFG_EVAL, error);
    else status = require(options->data != NULL, "--data PATH for this task", CFG_EVAL, error);
    const struct {
        bool wrong;
        const char *why;
    } pairs[] = {
        {text && options->data, "--data is for the questions of --task; the text to predict is --text"},
        {!text && options->text, "--text is for perplexity; the questions of --task are --data"},
        {!text && options->reference, "--reference goes with --task perplexity"},
        {!text && context, "--context goes with --task perplexity"},
        {facts && options->prompt_file, "--prompt is not for facts: their system messages are the prompt"},
        {facts && !strcmp(options->eval_prompt_kv, "none"),
         "facts stand in the prompt: --prompt-kv none leaves them out"},
        {!facts && prompt_kv && !options->prompt_file, "--prompt-kv goes with --prompt FILE"},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs && !status; i++) {
        status = refuse_pair(pairs[i].wrong, pairs[i].why, error);
    }
    return status;
}

static bis_status check_command(const cfg_options *options, bis_error *error) {
    cfg_command command = options->command;
    bool model = options->model != NULL;
    bis_status status = BIS_OK;
    if (command == CFG_BENCH) {
        bool model_flag = options->origin[CFG_OPTION_model] == CFG_FROM_FLAG;
        status = require(model || options->shape, "a model folder or --shape CONFIG.json", command, error);
        if (!status) {
            status = refuse_pair(options->shape && model_flag, "give a model or --shape, not both", error);
        }
        bool type_unused = !options->shape && cfg_option_given(options, CFG_OPTION_type);
        if (!status) status = refuse_pair(type_unused, "--type is for the random weights of --shape", error);
    } else if (belongs_to(CFG_OPTION_model, command)) {
        status = require(model, "a model folder (or BISUP_MODEL)", command, error);
    }
    if (!status && command == CFG_GENERATE) {
        status = require(options->prompt != NULL, "--prompt TEXT", command, error);
        if (!status) status = refuse_pair(options->system && !options->chat, "--system goes with --chat", error);
    }
    if (!status && command == CFG_EVAL) status = check_eval(options, error);
    if (!status && command == CFG_QUANTIZE) {
        bool calibrates = strcmp(options->method, "rtn") != 0;
        status = require(options->out != NULL, "OUT, the folder to write, after the model", command, error);
        if (!status && calibrates) {
            status = require(options->calibration != NULL, "--calibration FILE (all methods but rtn)", command, error);
        }
    }
    return status;
}

/* ---- All together ---------------------------------------------------------------------------- */

bis_status cfg_load(cfg_command command, int argc, char *const *argv, cfg_options *out, bis_error *error) {
    cfg_options options = {.command = command};
    for (cfg_option option = 0; option < CFG_OPTION_COUNT; option++) {
        cfg_value_default(&cfg_table[option], field_of(&options, option));
    }
    bis_status status = take_arguments(&options, argc, argv, error);
    if (!status && !options.help) {
        status = take_environment(&options, error);
        if (!status && options.config) status = cfg_file_read(options.config, take_file_setting, &options, error);
        if (!status) status = check_command(&options, error);
    }
    if (status) {
        cfg_options_free(&options);
        return status;
    }
    *out = options;
    return BIS_OK;
}

void cfg_options_free(cfg_options *options) {
    for (cfg_option option = 0; option < CFG_OPTION_COUNT; option++) bis_free(options->file_text[option]);
    *options = (cfg_options){0};
}
