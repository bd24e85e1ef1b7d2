#!/usr/bin/env python3
"""Trains the demo model's tokenizer: SentencePiece BPE with 2048 pieces, byte fallback, every
digit a piece of its own, and the chat markers and the line end as user-defined symbols.

The tokenizer.model in models/demo was made from the same recipe with another random sequence;
a new one does not fit weights trained with the old one.
"""
import argparse
import os
import random
import tempfile

import sentencepiece

import gen

HERE = os.path.dirname(os.path.abspath(__file__))


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="tokenizer", help="prefix of the files written")
    p.add_argument("--stories", default=os.path.join(HERE, "stories.jsonl"))
    p.add_argument("--conversations", type=int, default=6000, help="how many to add to the text")
    p.add_argument("--seed", type=int, default=7)
    args = p.parse_args()
    r = random.Random(args.seed)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as text:
        for request, story in gen.stories(args.stories):
            text.write(f"{request}\n{story}\n")
        for _ in range(args.conversations):
            business = gen.Business(r)
            text.write(business.system + "\n")
            for question, answer in business.turns_on_everything()[:3]:
                text.write(f"{question}\n{answer}\n")
        text.flush()
        sentencepiece.SentencePieceTrainer.train(
            input=text.name, model_prefix=args.out, model_type="bpe", vocab_size=2048,
            byte_fallback=True, split_digits=True,
            user_defined_symbols=["<|im_start|>", "<|im_end|>", "\n"],
            unk_id=0, bos_id=1, eos_id=2, pad_id=-1, normalization_rule_name="identity",
            remove_extra_whitespaces=False, add_dummy_prefix=True,
            allow_whitespace_only_pieces=True, max_sentence_length=20000)


if __name__ == "__main__":
    main()
