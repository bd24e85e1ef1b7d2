#!/usr/bin/env python3
"""Renders templates with Python's jinja2, set up as transformers does, for the unit tests to compare with.

    compare.py snippets OUT.json     every snippet of snippets.txt (lines of ---- are between them)
    compare.py chats OUT.json [FOLDER...]   every *.jinja of own/ and of the folders x conversations.json

The output is one JSON array of objects; "expected" is the rendered text, or null where Python raises.
Exit code 77: jinja2 is not installed.
"""
import datetime
import itertools
import json
import pathlib
import sys

try:
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment
except ImportError:
    sys.exit(77)

HERE = pathlib.Path(__file__).parent
FIXED_TIME = datetime.datetime(2024, 7, 26, 13, 5, 9)  # the tests give rt_jinja_fix_time the same moment


class Generation(jinja2.ext.Extension):
    """{% generation %}: marks what the assistant says; here it only renders its body, as a macro."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("render_body"), [], [], body).set_lineno(line)

    def render_body(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def make_environment():
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = FIXED_TIME.strftime
    return environment


ENVIRONMENT = make_environment()


def render(source, variables):
    """(text, None), or (None, the error)."""
    try:
        text = ENVIRONMENT.from_string(source).render(**variables)
        text.encode("utf-8")
        return text, None
    except Exception as error:  # whatever Python raises, the interpreter must refuse, too
        return None, f"{type(error).__name__}: {error}"


SNIPPET_VARIABLES = {
    "name": "World",
    "text": "  Hello, wörld! ñ 日本語 🎉  ",
    "n": 7,
    "x": 2.5,
    "one": 1.0,
    "big": 123456789012345678901234567890,
    "yes": True,
    "no": False,
    "nothing": None,
    "empty": "",
    "items": [3, 1, 2],
    "words": ["pear", "Apple", "fig", "apple"],
    "nested": {"a": {"b": [10, {"c": "deep"}]}, "items": 5, "list": [1, 2]},
    "user": {"name": "Ann", "age": 31, "tags": ["x", "y"], "note": None},
    "users": [
        {"name": "Bob", "age": 25, "city": {"zip": 9}},
        {"name": "ann", "age": 31, "city": {"zip": 3}},
        {"name": "Cid", "age": 25, "city": {"zip": 5}},
    ],
    "mixed": {"s": "a'b\"c\n\t\\é\u200b", "f": [0.1, 1e16, 1e-5, -0.0, 100.0, 1.5e300], "b": [True, None], "i": -12},
}


def snippets():
    parts = (HERE / "snippets.txt").read_text(encoding="utf-8").split("\n----\n")
    variables = json.dumps(SNIPPET_VARIABLES)
    for source in parts:
        expected, error = render(source, json.loads(variables))
        yield {"name": source, "source": source, "variables": variables, "expected": expected, "error": error}


def chats(folders):
    conversations = json.loads((HERE / "conversations.json").read_text(encoding="utf-8"))
    folders = [HERE / "own", *map(pathlib.Path, folders)]
    for path in itertools.chain.from_iterable(sorted(folder.glob("*.jinja")) for folder in folders):
        source = path.read_bytes().decode("utf-8")
        for case, prompt in itertools.product(conversations, (False, True)):
            variables = case.get("variables", {})
            arguments = {
                "messages": case["messages"],
                "tools": case.get("tools"),
                "documents": None,
                "bos_token": "<s>",
                "eos_token": "</s>",
                "add_generation_prompt": prompt,
                **variables,
            }
            expected, error = render(source, json.loads(json.dumps(arguments)))
            yield {
                "name": f"{path.name} with {case['name']}, prompt {prompt}",
                "source": source,
                "messages": json.dumps(case["messages"], ensure_ascii=False),
                "tools": json.dumps(case["tools"]) if "tools" in case else None,
                "variables": json.dumps(variables),
                "prompt": prompt,
                "expected": expected,
                "error": error,
            }


def main():
    what, out, *folders = sys.argv[1:]
    results = list(snippets() if what == "snippets" else chats(folders))
    pathlib.Path(out).write_text(json.dumps(results, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
