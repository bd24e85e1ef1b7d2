#!/usr/bin/env python3
"""Trains the demo model on the CPU and writes it in Hugging Face format.

Every step is a batch of conversations about facts (the loss is on the answers only) and, from
--stories-from on, a batch of stories. The number of facts in a system prompt grows as the model
learns to look them up (see LEVELS). Until then some rows are random tokens repeated: copying is
the first thing that look-up needs. The learning rate is constant and falls to zero over the last
--decay-steps. A run continues from --state when that file exists, with other settings if wanted;
what is drawn depends on --seed and the step a run starts at.
"""
import argparse
import math
import os
import random
import re
import tempfile
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F

import gen
import model as llama
from chat import BOS, Tokenizer
from optim import Optimizer

HERE = os.path.dirname(os.path.abspath(__file__))
LEVELS = [(1, 1), (1, 2), (2, 3), (2, 5), (3, 7), (3, 10)]  # least and most facts in a prompt
LENGTHS = [64, 128, 192, 256, 384, 512, 1024]               # rows are padded to one of these
HELD_OUT = 60                                               # stories kept for the perplexity


class Data:
    """Draws training rows: (ids, is-answer flags), and makes batches of rows of like length."""

    def __init__(self, tokenizer, stories, seed):
        self.tok, self.stories, self.r = tokenizer, stories, random.Random(seed)
        self.level, self.copy_share = 0, 0.0
        self.names = {"she": [], "he": []}
        for name, group in (main_character(*s) for s in stories):
            if name and name not in self.names[group]:
                self.names[group].append(name)
        self.rows = {n: [] for n in LENGTHS}

    def conversation(self):
        r = self.r
        if r.random() < self.copy_share:                     # random tokens, repeated
            once = [r.randrange(self.tok.vocab) for _ in range(r.randint(8, 60))]
            return [BOS] + once + once, [False] * (len(once) + 1) + [True] * len(once)
        if r.random() < .03:
            return self.tok.conversation(*gen.small_talk(r))
        business = gen.Business(r, r.randint(*LEVELS[self.level]))
        turns = business.turns_on_everything()
        if r.random() < .3:
            turns = turns[:r.randint(1, 3)]
        ids, answer = self.tok.conversation(business.system, turns)
        if r.random() < .06:                                 # tolerate no BOS, or two
            one = r.random() < .5
            ids, answer = (ids[1:], answer[1:]) if one else ([BOS] + ids, [False] + answer)
        return ids, answer

    def story(self):
        r = self.r
        request, text = self.renamed(*r.choice(self.stories))
        system = None
        if r.random() < .4:
            system = r.choice(["You tell stories to children.", "You are a helpful assistant.",
                               gen.Business(r, r.randint(1, 4)).system])
        if r.random() < .25:
            title = request.split("`")[1]
            request = r.choice([f"Tell me a story called {title}.", "Tell me a short story.",
                                "Tell me a story.", f"Write a short story called `{title}`.",
                                "Write a short story."])
        return self.tok.conversation(system, [(request, text)])

    def renamed(self, request, text):
        """The story with another name for its main character, half of the time."""
        name, group = main_character(request, text)
        if not name or self.r.random() < .5:
            return request, text
        other = self.r.choice(self.names[group])
        if re.search(rf"\b{other}\b", text):
            return request, text
        return tuple(re.sub(rf"\b{name}\b", other, t) for t in (request, text))

    def conversations(self, tokens):
        while True:
            ids, answer = self.conversation()
            length = next(n for n in LENGTHS if len(ids) <= n + 1)
            rows = self.rows[length]
            rows.append((ids, answer))
            if len(rows) == tokens // length:
                self.rows[length] = []
                return pack(rows, length)

    def story_batch(self, tokens, length):
        return pack([self.story() for _ in range(tokens // length)], length)


def main_character(request, text):
    """(name, "he" or "she") of the person in the title; no name when that is not clear."""
    count = {w: len(re.findall(rf"\b{w}\b", text, re.I)) for w in ("he", "she")}
    group = max(count, key=count.get)
    if count[group] >= 3 * min(count.values()) + 2:
        for word in re.findall(r"[A-Z][a-z]{2,9}\b", request.split("`")[1]):
            if len(re.findall(rf"\b{word}\b", text)) >= 5 and word.lower() not in text.split() \
                    and not re.search(rf"\b(the|a|an|The|A|our) {word}\b", text):
                return word, group
    return None, group


def pack(rows, length):
    """Pads rows (the mask is causal, so padding needs no other) and lists the answer positions:
    input ids, flat positions with a loss, their targets, their weights."""
    x = torch.zeros(len(rows), length, dtype=torch.long)
    where, target = [], []
    for i, (ids, answer) in enumerate(rows):
        ids, answer = ids[:length + 1], answer[:length + 1]
        x[i, :len(ids) - 1] = torch.tensor(ids[:-1])
        for j in range(1, len(ids)):
            if answer[j]:
                where.append(i * length + j - 1)
                target.append(ids[j])
    weight = torch.full((len(where),), 1 / max(1, len(where)))
    return x, torch.tensor(where), torch.tensor(target), weight


@torch.no_grad()
def exact(net, tok, count, seed, facts=(3, 10), dtype=torch.bfloat16):
    """The share of unseen questions whose whole answer is the most likely token at every place:
    the same as greedy decoding giving exactly the answer."""
    r = random.Random(seed)
    right = 0
    rows = []
    for _ in range(count):
        system, asked, answer = gen.question(r, r.randint(*facts))
        rows.append(tok.conversation(system, [(asked, answer)]))
    rows.sort(key=lambda row: len(row[0]))
    for i in range(0, count, 50):
        part = rows[i:i + 50]
        x, where, target, _ = pack(part, max(len(ids) for ids, _ in part))
        guess = net.logits(net.hidden(x, dtype).flatten(0, 1)[where]).argmax(-1)
        wrong = set((where[guess != target] // x.shape[1]).tolist())
        right += len(part) - len(wrong)
    return right / count


@torch.no_grad()
def perplexity(net, tok, stories, length=512, dtype=torch.bfloat16):
    """Of story tokens, in the first `length` tokens of each conversation."""
    total = count = 0
    for i in range(0, len(stories), 10):
        rows = [tok.conversation(None, [s]) for s in stories[i:i + 10]]
        x, where, target, _ = pack(rows, length)
        h = net.hidden(x, dtype).flatten(0, 1)[where]
        total += F.cross_entropy(net.logits(h), target, reduction="sum").item()
        count += len(target)
    return math.exp(total / count)


def arguments():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="out", help="folder for the model (default %(default)s)")
    p.add_argument("--state", default="state.pt", help="weights and optimizer, to continue from")
    p.add_argument("--init", metavar="FOLDER",
                   help="without a state: begin with this model's weights, not from nothing")
    p.add_argument("--tokenizer", default=os.path.join(HERE, "../../models/demo/tokenizer.model"))
    p.add_argument("--stories", default=os.path.join(HERE, "stories.jsonl"))
    p.add_argument("--steps", type=int, default=6000, help="the last step (default %(default)s)")
    p.add_argument("--decay-steps", type=int, default=1500)
    p.add_argument("--tokens", type=int, default=8192, help="conversation tokens in a step")
    p.add_argument("--story-tokens", type=int, default=4096, help="story tokens in a step")
    p.add_argument("--story-length", type=int, default=512, choices=LENGTHS)
    p.add_argument("--fact-weight", type=float, default=1.0, help="of the loss on answers")
    p.add_argument("--story-weight", type=float, default=1.0, help="of the loss on stories")
    p.add_argument("--stories-from", type=int, default=1000, help="first step with stories")
    p.add_argument("--level", type=int, default=0, choices=range(len(LEVELS)),
                   help="the least level of prompts to begin with (default %(default)s)")
    p.add_argument("--copy-until", type=int, default=400, help="last step with repeated tokens")
    p.add_argument("--lr", type=float, default=0.02, help="for matrices")
    p.add_argument("--lr-other", type=float, default=3e-3, help="for embeddings and norms")
    p.add_argument("--decay", type=float, default=.1, help="weight decay of matrices")
    p.add_argument("--dropout", type=float, default=.1, help="in the pass over stories")
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--hidden", type=int, default=256)
    p.add_argument("--ffn", type=int, default=768)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--workers", type=int, default=2,
                   help="processes, each with its part of every batch")
    p.add_argument("--threads", type=int, default=1, help="of each worker (%(default)s)")
    p.add_argument("--check", type=int, default=100, help="steps between checks of the model")
    p.add_argument("--minutes", type=float, default=1e9, help="end this run after so long")
    p.add_argument("--decay-minutes", type=float, default=1, help="decay before that end")
    return p.parse_args()


class Log:
    """Prints on the first worker only."""

    def __init__(self, rank):
        self.rank = rank

    def __call__(self, text):
        if self.rank == 0:
            print(text, flush=True)


def average(net, workers, number):
    """Averages the gradients over the workers; and `number`, which is returned."""
    if workers == 1:
        return number
    grads = [p.grad for p in net.parameters()]
    flat = torch.cat([g.flatten() for g in grads] + [torch.tensor([number])])
    dist.all_reduce(flat)
    flat /= workers
    for g, part in zip(grads, flat.split([g.numel() for g in grads] + [1])):
        g.copy_(part.view_as(g))
    return flat[-1].item()


def work(rank, args):
    """One worker: the same weights as the others, its own data."""
    log = Log(rank)
    if args.workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{args.meeting}",
                                rank=rank, world_size=args.workers)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch._dynamo.config.automatic_dynamic_shapes = False   # one compilation for each length
    torch._dynamo.config.recompile_limit = 64
    tok = Tokenizer(args.tokenizer)
    stories = gen.stories(args.stories)
    stories, held_out = stories[:-HELD_OUT], stories[-HELD_OUT:]
    if args.init:
        net = llama.load(args.init)
    else:
        net = llama.Llama(llama.Shape(args.hidden, args.layers, ffn=args.ffn))
    optimizer = Optimizer(net, args.lr, args.lr_other, args.decay)
    step, tokens, level, minutes = 0, 0, 0, 0.0
    if os.path.exists(args.state):
        state = torch.load(args.state)
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        step, tokens, level, minutes = (state[k] for k in ("step", "tokens", "level", "minutes"))
    data = Data(tok, stories, f"{args.seed}:{step}:{rank}")
    data.level = max(level, args.level)
    torch.manual_seed(args.seed + 1000 * step + rank)       # dropout differs between workers
    loss_of = torch.compile(net.loss)

    def backward(batch, factor, drop=0.0):
        for t in batch[1:]:
            torch._dynamo.mark_dynamic(t, 0)
        loss = loss_of(*batch, drop) * factor
        loss.backward()
        return loss.item() / factor

    def keep():
        if rank:
            return
        llama.save(net, args.out)
        torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                    "tokens": tokens, "level": data.level, "minutes": minutes + spent()},
                   args.state + ".tmp")
        os.replace(args.state + ".tmp", args.state)

    def check():
        """Exact answers at this level and at all, log perplexity; each worker does a part."""
        part = [exact(net, tok, 100 // args.workers, 501 + 10 * rank, LEVELS[data.level]),
                exact(net, tok, 200 // args.workers, 502 + 10 * rank),
                math.log(perplexity(net, tok, held_out[rank:20:args.workers]))]
        values = torch.tensor(part)
        if args.workers > 1:
            dist.all_reduce(values)
        return (values / args.workers).tolist()

    start, first_tokens = time.time(), tokens

    def spent():
        return (time.time() - start) / 60

    log(f"parameters {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M, from step {step}, "
          f"{vars(args)}")
    mean, story_mean = None, None
    while step < args.steps:
        data.copy_share = .3 if step < args.copy_until else 0
        batch = data.conversations(args.tokens // args.workers)
        loss = backward(batch, args.fact_weight)
        tokens += batch[0].numel() * args.workers
        mean = loss if mean is None else .95 * mean + .05 * loss
        if step >= args.stories_from and args.story_tokens:
            batch = data.story_batch(args.story_tokens // args.workers, args.story_length)
            loss = backward(batch, args.story_weight, args.dropout)
            tokens += batch[0].numel() * args.workers
            story_mean = loss if story_mean is None else .95 * story_mean + .05 * loss
        elapsed = average(net, args.workers, spent())
        scale = min(1, (optimizer.steps + 1) / 50, (args.steps - step) / args.decay_steps,
                    max(0, args.minutes - elapsed) / args.decay_minutes)
        optimizer.step(scale)
        step += 1
        if step % 20 == 0 or step <= 5:
            told = f" story {story_mean:.3f}" if story_mean else ""
            log(f"step {step} min {minutes + spent():.1f} Mtok {tokens / 1e6:.2f} tok/s "
                f"{(tokens - first_tokens) / (60 * spent()):.0f} level {data.level} "
                f"loss {mean:.4f}{told} lr {scale:.2f}")
        if step % args.check == 0 or step == args.steps:
            now, full, ppl = check()
            told = f" story ppl {math.exp(ppl):.2f}" if story_mean else ""
            log(f"CHECK step {step} min {minutes + spent():.1f} Mtok {tokens / 1e6:.2f} "
                f"level {data.level} exact there {now:.3f}, on all {full:.3f}{told}")
            if now > .6 and data.level < len(LEVELS) - 1:
                data.level += 1
            keep()
        if elapsed > args.minutes:
            break
    keep()


def main():
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        args.meeting = os.path.join(folder, "meeting")
        if args.workers > 1:
            torch.multiprocessing.spawn(work, (args,), args.workers)
        else:
            work(0, args)


if __name__ == "__main__":
    main()
