#!/usr/bin/env python3
"""Checks which file may include what, that file stems are unique, and that no file is too long.

The rules are the table of ARCHITECTURE.md. Usage: check_includes.py FILE... (paths from the
repository's root). Prints one line for each fault; exit status 1 if there is any.
"""
import fnmatch
import os
import re
import sys

MAX_LINES = 1000

# Folder of the including file: patterns of our own headers it may include, besides its own folder's.
ALLOWED = {
    "common": [],
    "config": ["common/*"],
    "kernels": ["common/*"],
    "runtime": ["common/*", "kernels/*"],
    "runtime/model": ["common/*", "kernels/*", "runtime/system_memory.h"],
    "runtime/tokenizer": ["common/*"],
    "runtime/template": ["common/*", "runtime/tokenizer/tokenizer.h"],
    "quantizer": ["common/*", "kernels/*", "runtime/model/model.h", "runtime/model/safetensors.h",
                  "runtime/model/metadata.h", "runtime/tokenizer/tokenizer.h", "runtime/rope.h",
                  "runtime/system_memory.h"],
    "evaluation": ["common/*", "kernels/backend.h", "runtime/engine.h", "runtime/forward.h", "runtime/kv_pages.h",
                   "runtime/model/model.h", "runtime/tokenizer/tokenizer.h"],
    "server": ["common/*", "config/*", "runtime/engine.h"],
    "cli": ["*"],
    "tests": ["*"],
    "tools": ["*"],
}

# Outside header: the files that may include it.
OUTSIDE = {
    "microhttpd.h": ["server/http_*.c"],
    "uv.h": ["server/loop*.c"],
    "ini.h": ["config/config_file.c"],
    "pcre2.h": ["runtime/tokenizer/pretokenizer.c"],
    "sentencepiece_processor.h": ["runtime/tokenizer/sentencepiece_wrapper.cc"],
    "cjson/cJSON.h": ["server/openai_*", "runtime/model/*", "runtime/tokenizer/*", "runtime/template/chat.c",
                      "quantizer/model_export.c", "evaluation/task_facts.c", "tests/*", "tools/*"],
    "cmocka.h": ["tests/*"],
    "cuda*.h": ["kernels/cuda/*"],
    "cblas.h": ["quantizer/compute.c", "tests/*"],
}

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def rule_folder(path):
    """The folder of the table that a file belongs to: the innermost one that is listed, or None."""
    folder = os.path.dirname(path)
    while folder and folder not in ALLOWED:
        folder = os.path.dirname(folder)
    return folder or None


def matches(path, patterns):
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def check_include(path, quote, header):
    """The fault of one #include line, or None."""
    folder = rule_folder(path)
    if quote == '"':
        if "/" not in header:
            return f'"{header}": name our headers from the root, such as "{os.path.dirname(path)}/{header}"'
        own = header.startswith(folder + "/")
        if not own and not matches(header, ALLOWED[folder]):
            return f'"{header}": {folder}/ may not include this'
        return None
    for pattern, users in OUTSIDE.items():
        if fnmatch.fnmatchcase(header, pattern) and not matches(path, users):
            return f"<{header}>: only {', '.join(users)} may include this"
    return None


def check_file(path):
    faults = []
    if not rule_folder(path):
        faults.append(f"{path}: this folder is not in the table of tools/check_includes.py")
        return faults
    with open(path, encoding="utf-8") as source:
        lines = source.read().splitlines()
    if len(lines) > MAX_LINES:
        faults.append(f"{path}: {len(lines)} lines; split it by subject (at most {MAX_LINES})")
    for number, line in enumerate(lines, 1):
        include = INCLUDE.match(line)
        fault = include and check_include(path, *include.groups())
        if fault:
            faults.append(f"{path}:{number}: {fault}")
    return faults


def check_stems(paths):
    """A stem names one header and its source, so that a name says which file is meant."""
    faults = []
    seen = {}
    for path in paths:
        stem, ending = os.path.splitext(os.path.basename(path))
        kind = "header" if ending in (".h", ".cuh") else "source"
        other = seen.setdefault((stem, kind), path)
        folder_differs = os.path.dirname(seen.setdefault((stem, "any"), path)) != os.path.dirname(path)
        if other != path:
            faults.append(f"{path}: {other} has the same stem")
        elif folder_differs:
            faults.append(f"{path}: {seen[(stem, 'any')]} has the same stem")
    return faults


def main():
    paths = sorted(sys.argv[1:])
    if not paths:
        sys.exit("usage: check_includes.py FILE...")
    faults = check_stems(paths)
    for path in paths:
        faults += check_file(path)
    print("\n".join(faults), end="\n" if faults else "")
    sys.exit(1 if faults else 0)


main()
