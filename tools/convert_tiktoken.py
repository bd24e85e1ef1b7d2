#!/usr/bin/env python3
"""Turns a tiktoken rank file into Hugging Face tokenizer files, for tests.

  convert_tiktoken.py RANKS OUT_FOLDER --family llama3     writes tokenizer.json
  convert_tiktoken.py RANKS OUT_FOLDER --family qwen2      writes vocab.json and merges.txt

A rank file has a line per token: its bytes in base64, and its rank, which is also its id. Every way
of cutting a token into two others is a merge rule with the rank of the whole.
"""
import argparse
import base64
import json
import os

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
LLAMA3_SPECIAL_COUNT = 256


def byte_alphabet():
    """The visible character that stands for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in alphabet)
    alphabet.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return alphabet


def read_ranks(path):
    ranks = {}
    with open(path, "rb") as lines:
        for line in lines:
            if line.strip():
                token, rank = line.split()
                ranks[base64.b64decode(token)] = int(rank)
    return ranks


def merge_rules(ranks):
    """(left, right) pairs, the lowest rank of the whole first."""
    rules = []
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        cuts = [cut for cut in cuts if cut[0] in ranks and cut[1] in ranks]
        rules += sorted(cuts, key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
    return rules


def llama3_special_tokens(first_id):
    reserved = 0
    tokens = []
    for i in range(LLAMA3_SPECIAL_COUNT):
        content = LLAMA3_NAMED.get(i)
        if content is None:
            content = f"<|reserved_special_token_{reserved}|>"
            reserved += 1
        tokens.append(
            {"id": first_id + i, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
        )
    return tokens


def llama3_tokenizer(vocab, merges):
    special = llama3_special_tokens(len(vocab))
    begin = special[0]["content"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_WORDS}, "behavior": "Isolated", "invert": False}
    sequence_a = {"Sequence": {"id": "A", "type_id": 0}}
    sequence_b = {"Sequence": {"id": "B", "type_id": 1}}
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": begin, "type_id": 0}}, sequence_a],
        "pair": [{"SpecialToken": {"id": begin, "type_id": 0}}, sequence_a, sequence_b],
        "special_tokens": {begin: {"id": begin, "ids": [special[0]["id"]], "tokens": [begin]}},
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {"type": "Sequence", "processors": [byte_level, template]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
            "vocab": vocab, "merges": merges,
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ranks")
    parser.add_argument("out")
    parser.add_argument("--family", choices=["llama3", "qwen2"], required=True)
    arguments = parser.parse_args()

    alphabet = byte_alphabet()
    ranks = read_ranks(arguments.ranks)

    def spell(token):
        return "".join(alphabet[byte] for byte in token)

    vocab = {spell(token): rank for token, rank in ranks.items()}
    merges = [f"{spell(left)} {spell(right)}" for left, right in merge_rules(ranks)]
    os.makedirs(arguments.out, exist_ok=True)

    def write(name, text):
        """Whole or not at all, so that a second reader never meets half a file."""
        path = os.path.join(arguments.out, name)
        with open(path + ".part", "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(path + ".part", path)

    if arguments.family == "llama3":
        write("tokenizer.json", json.dumps(llama3_tokenizer(vocab, merges), ensure_ascii=False))
    else:
        write("merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
        write("vocab.json", json.dumps(vocab, ensure_ascii=False))


if __name__ == "__main__":
    main()
