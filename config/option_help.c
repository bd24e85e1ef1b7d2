#include "config/option_table.h"

#include <string.h>

enum { TEXT_COLUMN = 28, WIDTH = 110 };

typedef struct command_text {
    const char *name, *arguments, *summary, *examples;
} command_text;

static const command_text commands[CFG_COMMAND_COUNT] = {
    [CFG_SERVE] = {"serve", "[MODEL] [options]", "Serve a model over the OpenAI REST API.",
                   "bisup serve models/demo\n"
                   "bisup serve models/demo --host 0.0.0.0 --port 9000 --api-key-file keys.txt\n"
                   "BISUP_KV_MEMORY=2G bisup serve --config bisup.conf"},
    [CFG_GENERATE] = {"generate", "MODEL --prompt TEXT [options]", "Continue a text, or answer one chat message.",
                      "bisup generate models/demo --prompt 'Once upon a time' --max-tokens 100\n"
                      "bisup generate models/demo --chat --system 'Answer in one word.' --prompt 'Red or blue?'\n"
                      "bisup generate models/demo --prompt Hello --temperature 0.8 --top-p 0.95 --seed 7 --json"},
    [CFG_INFO] = {"info", "MODEL [--json]", "Show what a model folder holds.",
                  "bisup info models/demo\n"
                  "bisup info models/demo --json"},
    [CFG_TOKENIZE] = {"tokenize", "MODEL [options]", "Turn standard input into token ids, or ids into text.",
                      "echo 'Hello there' | bisup tokenize models/demo\n"
                      "echo '1 15043 727' | bisup tokenize models/demo --decode"},
    [CFG_BENCH] = {"bench", "MODEL | --shape CONFIG.json [options]", "Measure tokens a second of prefill and decode.",
                   "bisup bench models/demo --batch 1,4,8\n"
                   "bisup bench --shape tools/shapes/110m.json --type f16 --threads 4 --json"},
    [CFG_EVAL] = {"eval", "MODEL --text FILE | --task NAME --data PATH [options]",
                  "Measure quality: perplexity, distance to a reference model, tasks.",
                  "bisup eval models/demo --text story.txt --context 512\n"
                  "bisup eval out/w4 --text story.txt --reference models/demo --prompt system.txt --json\n"
                  "bisup eval models/demo --task hellaswag --data hellaswag_val_full.txt --limit 400\n"
                  "bisup eval out/w4 --task facts --data questions.jsonl --kv-bits 3"},
    [CFG_QUANTIZE] = {"quantize", "MODEL OUT --calibration FILE [options]",
                      "Write a quantized model that every other command reads.",
                      "bisup quantize models/demo demo-w4 --calibration text.txt --samples 64 --seq-len 256\n"
                      "bisup quantize models/demo demo-w3 --method bisup-atom --bits W3A3KV3 --calibration text.txt\n"
                      "bisup quantize models/demo demo-w8 --method rtn --bits W8A8KV8"},
    [CFG_HEALTH] = {"health", "[--host ADDRESS] [--port N]",
                    "Ask a running server whether it is ready; exit status 0 if so.",
                    "bisup health\n"
                    "bisup health --port 9000"},
};

const char *cfg_command_name(cfg_command command) { return commands[command].name; }

bis_status cfg_command_parse(const char *name, cfg_command *out, bis_error *error) {
    const char *names[CFG_COMMAND_COUNT];
    for (cfg_command command = 0; command < CFG_COMMAND_COUNT; command++) {
        names[command] = commands[command].name;
        if (strcmp(name, names[command]) != 0) continue;
        *out = command;
        return BIS_OK;
    }
    const char *nearest = cfg_nearest_name(name, names, CFG_COMMAND_COUNT);
    if (nearest) return bis_fail(error, BIS_ERR_INVALID, "unknown command '%.80s'; did you mean %s?", name, nearest);
    return bis_fail(error, BIS_ERR_INVALID, "unknown command '%.80s'; try: bisup --help", name);
}

/* Prints a word, after a space, or on a new line where the rest of this one is too short. */
static void print_word(FILE *stream, const char *word, int length, int *column) {
    if (*column > TEXT_COLUMN && *column + 1 + length > WIDTH) {
        fprintf(stream, "\n%*s", TEXT_COLUMN, "");
        *column = TEXT_COLUMN;
    }
    *column += fprintf(stream, "%s%.*s", *column > TEXT_COLUMN ? " " : "", length, word);
}

/* Prints `text` from TEXT_COLUMN on, broken at spaces, and `tail` unbroken; `column` is where the line stands. */
static void print_text(FILE *stream, int column, const char *text, const char *tail) {
    if (column >= TEXT_COLUMN) column = fprintf(stream, "\n") - 1;
    column += fprintf(stream, "%*s", TEXT_COLUMN - column, "");
    while (*text) {
        int length = (int)strcspn(text, " ");
        print_word(stream, text, length, &column);
        text += length + (text[length] == ' ');
    }
    if (*tail) print_word(stream, tail, (int)strlen(tail), &column);
    fputc('\n', stream);
}

static void print_option(FILE *stream, const cfg_entry *entry) {
    bool on_by_default = entry->kind == CFG_BOOL && !strcmp(entry->default_text, "true");
    int column = fprintf(stream, "  --%s%s%s%s", on_by_default ? "[no-]" : "", entry->name, *entry->hint ? " " : "",
                         entry->hint);
    const char *default_text = entry->kind != CFG_BOOL ? entry->default_text : on_by_default ? "on" : "";
    const char *environment = entry->environment ? entry->environment : "";
    char facts[96] = "";
    if (*default_text || *environment) {
        snprintf(facts, sizeof facts, "(%s%s%s%s)", *default_text ? "default " : "", default_text,
                 *default_text && *environment ? ", " : "", environment);
    }
    print_text(stream, column, entry->help, facts);
}

void cfg_print_help(FILE *stream, cfg_command command) {
    const command_text *text = &commands[command];
    fprintf(stream, "bisup %s %s\n\n%s\n\nOptions:\n", text->name, text->arguments, text->summary);
    for (cfg_option option = 0; option < CFG_OPTION_COUNT; option++) {
        if (cfg_table[option].commands >> command & 1) print_option(stream, &cfg_table[option]);
    }
    print_text(stream, fprintf(stream, "  --help"), "this text", "");
    fputs("\nA flag wins over the environment, which wins over the file of --config.\n\nExamples:\n", stream);
    for (const char *line = text->examples; *line;) {
        int length = (int)strcspn(line, "\n");
        fprintf(stream, "  %.*s\n", length, line);
        line += length + (line[length] == '\n');
    }
}

void cfg_print_commands(FILE *stream) {
    fputs("bisup: an LLM inference server\n\nCommands:\n", stream);
    for (cfg_command command = 0; command < CFG_COMMAND_COUNT; command++) {
        int column = fprintf(stream, "  bisup %s", commands[command].name);
        print_text(stream, column, commands[command].summary, "");
    }
    fputs("\n'bisup COMMAND --help' lists the options of a command. Start with: bisup serve models/demo\n", stream);
}
