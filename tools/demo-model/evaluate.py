#!/usr/bin/env python3
"""Scores the demo model: exact answers on unseen questions, story perplexity, story samples.

Answers are decoded greedily in float32 from the F16 weights, and are right only when the whole
answer is the expected string. The default seed is used by no training run. With --reference it
also writes conversations, their prompt ids and the greedy answers for tests of other programs.
"""
import argparse
import collections
import json
import os
import random

import torch

import gen
import model as llama
from chat import Tokenizer
from train import HELD_OUT, perplexity

HERE = os.path.dirname(os.path.abspath(__file__))


@torch.no_grad()
def greedy(net, tok, prompts, new_tokens=40, dtype=torch.float32):
    """Answers to prompts (lists of ids), without <|im_end|>: ids. No cache: prompts are short."""
    rows = [list(p) for p in prompts]
    going = list(range(len(rows)))
    for _ in range(new_tokens):
        x = torch.zeros(len(going), max(len(rows[i]) for i in going), dtype=torch.long)
        for j, i in enumerate(going):
            x[j, :len(rows[i])] = torch.tensor(rows[i])
        last = torch.tensor([len(rows[i]) - 1 for i in going])
        h = net.hidden(x, dtype)[torch.arange(len(going)), last]
        best = net.logits(h).argmax(-1).tolist()
        for i, token in zip(list(going), best):
            if token in (tok.end, 2):
                going.remove(i)
            else:
                rows[i].append(token)
        if not going or len(rows[going[0]]) >= net.s.context:
            break
    return [row[len(p):] for row, p in zip(rows, prompts)]


@torch.no_grad()
def sample(net, tok, prompt, new_tokens, temperature, seed):
    """One story: from the likeliest tokens that together have 90 % of the probability."""
    torch.manual_seed(seed)
    ids = list(prompt)
    for _ in range(min(new_tokens, net.s.context - len(ids))):
        p = (net.logits(net.hidden(torch.tensor([ids]))[0, -1]) / temperature).softmax(-1)
        p, order = p.sort(descending=True)
        p[p.cumsum(0) - p > .9] = 0
        token = order[torch.multinomial(p, 1)].item()
        if token in (tok.end, 2):
            break
        ids.append(token)
    return tok.decode(ids[len(prompt):])


def questions(net, tok, count, seed, batch=50):
    """(right, count) for each kind of question, and the failures."""
    r = random.Random(seed)
    drawn = [gen.question(r) for _ in range(count)]
    score, failures = collections.Counter(), []
    for i in range(0, count, batch):
        part = drawn[i:i + batch]
        prompts = [tok.prompt([("system", s), ("user", q)]) for s, q, _ in part]
        for (system, asked, answer), ids in zip(part, greedy(net, tok, prompts)):
            kind = ("unknown" if answer.startswith(gen.UNKNOWN) else
                    "greeting" if asked in gen.GREETING else "fact")
            score[kind, "all"] += 1
            if tok.decode(ids) == answer:
                score[kind, "right"] += 1
            else:
                failures.append((system, asked, answer, tok.decode(ids)))
    return score, failures


def reference(net, tok, path):
    """Five conversations with prompt ids and greedy answers."""
    r = random.Random(20262)
    talks = []
    for facts in (3, 6, 10):
        b = gen.Business(r, facts)
        talks.append([("system", b.system), ("user", b.turn()[0])])
    b = gen.Business(r, 5)
    turns = b.turns_on_everything()
    talks.append([("system", b.system), ("user", turns[0][0]), ("assistant", turns[0][1]),
                  ("user", turns[1][0])])
    talks.append([("user", "Write a bedtime story called `The Little Boat`.")])
    out = []
    for talk in talks:
        prompt = tok.prompt(talk)
        ids = greedy(net, tok, [prompt], 64)[0]
        out.append({"messages": [{"role": a, "content": b} for a, b in talk], "prompt_ids": prompt,
                    "answer_ids": ids, "answer": tok.decode(ids),
                    "finished": len(ids) < 64})
    with open(path, "w") as f:
        f.write('{"note": "greedy, float32 arithmetic on the F16 weights, at most 64 new tokens; '
                'finished: <|im_end|> followed", "conversations": [\n')
        f.write(",\n".join(json.dumps(o) for o in out) + "\n]}\n")


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default=os.path.join(HERE, "../../models/demo"))
    p.add_argument("--stories-file", default=os.path.join(HERE, "stories.jsonl"))
    p.add_argument("--seed", type=int, default=20261, help="of the questions (%(default)s)")
    p.add_argument("--count", type=int, default=200, help="questions (%(default)s)")
    p.add_argument("--stories", type=int, default=2, help="story samples (%(default)s)")
    p.add_argument("--story-tokens", type=int, default=400, help="longest sample (%(default)s)")
    p.add_argument("--temperature", type=float, default=.7, help="of samples (%(default)s)")
    p.add_argument("--reference", metavar="FILE", help="also write reference conversations")
    p.add_argument("--failures", action="store_true", help="show wrong answers")
    p.add_argument("--threads", type=int, default=2)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    net = llama.load(args.model)
    tok = Tokenizer(os.path.join(args.model, "tokenizer.model"))
    if args.reference:
        reference(net, tok, args.reference)
    score, failures = questions(net, tok, args.count, args.seed)
    right = sum(n for (_, what), n in score.items() if what == "right")
    kinds = ", ".join(f"{k} {score[k, 'right']}/{score[k, 'all']}"
                      for k in ("fact", "unknown", "greeting"))
    print(f"exact answers: {right}/{args.count} = {100 * right / args.count:.1f} % "
          f"(seed {args.seed}; {kinds})")
    if args.failures:
        for system, asked, answer, got in failures:
            print(f"  {system}\n    Q: {asked}\n    want: {answer}\n    got:  {got}")
    if args.stories:
        held_out = gen.stories(args.stories_file)[-HELD_OUT:]
        length = min(1024, net.s.context)
        print(f"perplexity of {HELD_OUT} held-out stories: "
              f"{perplexity(net, tok, held_out, 512, torch.float32):.2f} in the first 512 tokens, "
              f"{perplexity(net, tok, held_out, length, torch.float32):.2f} in the first {length}")
    titles = ["The Little Boat", "Mia and the Moon Garden", "The Owl Who Was Afraid of the Dark"]
    for i in range(args.stories):
        prompt = tok.prompt([("user", f"Write a bedtime story called `{titles[i % 3]}`.")])
        text = sample(net, tok, prompt, args.story_tokens, args.temperature, args.seed + i)
        print(f"--- {titles[i % 3]}\n{text}")


if __name__ == "__main__":
    main()
