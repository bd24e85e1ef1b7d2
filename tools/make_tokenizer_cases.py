#!/usr/bin/env python3
"""Writes tests/golden/tokenizer_cases.json: texts and the ids the usual Python libraries give them.

  make_tokenizer_cases.py SHARED_FOLDER

Needs the packages tokenizers and sentencepiece. Run from the repository root. The cases are made once
and committed; the tests compare with them and need no Python package. `flags` are those of
rt_tokenizer_encode: 1 adds the special tokens of the model, 2 parses special tokens in the text.
"""
import json
import os
import random
import re
import subprocess
import sys
import tempfile

import sentencepiece
import tokenizers

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "", " ", "  ", "\n", "\n\n\t", "Hello", " Hello", "Hello world", "  Hello  world  ", "▁Hello▁▁world",
    "I'll say it's THEY'RE don't I'VE'D", "1 12 123 1234 12345678901234567890", "3.14159, -2e10 (0x1F)",
    "def f(x):\n    return x  # comment\n\n\n    if y:\r\n\t\tpass\n", "Führer, naïve café, cafe\u0301, ﬁne ½ Ⅷ ①",
    "Привет, мир! Καλημέρα κόσμε", "日本語の文章です。我想在apple工作1314151天～", "한국어 텍스트 \u1112\u1161\u11ab", "नमस्ते दुनिया กรุงเทพ",
    "🚀 (normal) 😶‍🌫️ 👩‍👩‍👧‍👦 🇩🇪 ✅", "\u00a0nbsp\u2003em\u3000ideographic\u180emvs\u200bzwsp\ufeffbom", "a\u0300\u0301\u0302 x\u0344",
    "\U0010ffff\U000e0001\ufffd", "<0x0A><0x41>", "<|im_start|", "https://example.org/a?b=c&d=%20#e", "x" * 70, "ab" * 40,
    "=" * 33 + "\n" + "-" * 17, "'ſ 'K ’s", "\x01\x02\x7f\x1b[0m", "The quick brown fox jumps over the lazy dog.",
]


def random_texts(count, special):
    generator = random.Random(20)
    words = ["hello", " world", "The", " 4567", "\n\n", "   ", "'LL", "def f(x):", "<", "|>", "é", "e\u0301", "▁"]
    words += special * 2
    ranges = [(32, 126), (0xA0, 0x52F), (0x900, 0xE7F), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1F6FF)]

    def piece():
        if generator.random() < 0.5:
            return generator.choice(words)
        return chr(generator.randint(*generator.choice(ranges)))

    return ["".join(piece() for _ in range(generator.choice([2, 5, 12, 30]))) for _ in range(count)]


def json_cases(tokenizer, special):
    cases = []
    for text in TEXTS + random_texts(22, special):
        flags = 3 if any(token in text for token in special) else 1
        for variant in {flags, flags & 1}:
            tokenizer.encode_special_tokens = not variant & 2
            ids = tokenizer.encode(text, add_special_tokens=bool(variant & 1)).ids
            cases.append({"text": text, "flags": variant, "ids": ids})
    return cases


def sentencepiece_cases(model, special):
    """Special tokens are cut out; what lies between has a dummy prefix only at the very start."""
    with open(model, "rb") as file:
        proto = file.read()
    # Appending to a protobuf message overrides: here normalizer_spec { add_dummy_prefix: false }.
    plain = sentencepiece.SentencePieceProcessor(model_proto=proto + bytes([0x1A, 2, 0x18, 0]))
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    pattern = re.compile("(" + "|".join(map(re.escape, special)) + ")")
    cases = []
    for text in TEXTS + random_texts(22, special):
        ids = [processor.bos_id()]
        for i, part in enumerate(pattern.split(text)):
            if part in special:
                ids.append(processor.piece_to_id(part))
            elif part:
                ids += (processor if i == 0 else plain).encode(part)
        cases.append({"text": text, "flags": 3, "ids": ids})
    return cases


def llama3(shared):
    with tempfile.TemporaryDirectory() as folder:
        ranks = os.path.join(shared, "data/tokenizers/llama3/tokenizer.model")
        subprocess.run([sys.executable, "tools/convert_tiktoken.py", ranks, folder, "--family", "llama3"], check=True)
        return tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))


def qwen2(folder):
    files = [os.path.join(folder, name) for name in ("vocab.json", "merges.txt")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*files))
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(QWEN2_WORDS), "isolated")
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, byte_level])
    with open(os.path.join(folder, "tokenizer_config.json"), encoding="utf-8") as file:
        added = json.load(file)["added_tokens_decoder"]
    for token in (added[key] for key in sorted(added, key=int)):
        flags = {name: token[name] for name in ("lstrip", "normalized", "rstrip", "single_word", "special")}
        tokenizer.add_tokens([tokenizers.AddedToken(token["content"], **flags)])
    return tokenizer


def main():
    shared = sys.argv[1]
    data = os.path.join(shared, "data")
    chat = ["<|im_start|>", "<|im_end|>"]
    groups = []

    def add(folder, cases):
        groups.append({"folder": folder, "cases": cases})

    def from_json(folder):
        return tokenizers.Tokenizer.from_file(os.path.join(data, folder, "tokenizer.json"))

    add("llama3", json_cases(llama3(shared), ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>"]))
    add("shared:data/tokenizers/qwen2.5", json_cases(qwen2(os.path.join(data, "tokenizers/qwen2.5")), chat + ["<tool_call>"]))
    add("shared:data/tokenizers/mistral-32k-chatml-hf", json_cases(from_json("tokenizers/mistral-32k-chatml-hf"), ["<s>"] + chat))
    add("shared:data/models/story-llama-656k", json_cases(from_json("models/story-llama-656k"), ["<|start_story|>", "<unk>"]))
    for folder in ("tokenizers/llama2-32k", "models/stories260K-hf"):
        model = os.path.join(data, folder, "tokenizer.model")
        add("shared:data/" + folder, sentencepiece_cases(model, ["<s>", "</s>"]))
    add("models/demo", sentencepiece_cases("models/demo/tokenizer.model", ["<s>", "</s>"] + chat))
    with open("tests/golden/tokenizer_cases.json", "w", encoding="utf-8") as file:
        file.write("[\n")
        for i, group in enumerate(groups):
            rows = ",\n".join(json.dumps(case, ensure_ascii=True, separators=(",", ":")) for case in group["cases"])
            file.write('{"folder":"%s","cases":[\n%s\n]}%s\n' % (group["folder"], rows, "," if i + 1 < len(groups) else ""))
        file.write("]\n")


if __name__ == "__main__":
    main()
