"""What `make reproduce` measures: models, texts, cases; and how a case is run with the program.

A case is a dictionary; its result is kept in RESULTS/<name>.json, so that an interrupted run goes on where it was. The
result also holds the case itself: a result whose case has changed is measured again.
"""
import glob
import json
import os
import random
import shutil
import subprocess
import sys
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
SHARED = os.environ.get("BISUP_SHARED", os.path.join(ROOT, "..", "shared"))
DEMO_TOOLS = os.path.join(ROOT, "tools", "demo-model")
sys.path.insert(0, DEMO_TOOLS)
import gen  # noqa: E402

METHODS = ["rtn", "gptq", "atom", "quarot", "bisup-atom", "bisup-quarot"]
BITS = ["W8A8KV8", "W4A4KV4", "W3A3KV3"]
# Windows of calibration and passes over them. Windows that are new teach more than more passes; the demo model takes
# ten times as long as the story model. At 8 bits there is next to nothing to learn.
BASE_SAMPLES = 64
TUNING = {"story": {"samples": 512, "epochs": 3, "end_to_end": 2}, "demo": {"samples": 128, "epochs": 6, "end_to_end": 1}}
TUNING_8_BITS = {"samples": 64, "epochs": 4, "end_to_end": 1}
TUNING_ABLATION = {"samples": 64, "epochs": 10, "end_to_end": 0}
# The ablation, block by block (no end-to-end stage) but for its last row. Name on the page: flags.
PARTS = {"all of BiSup": [], "without clip": ["--no-clip"], "without smooth": ["--no-smooth"],
         "without low-rank": ["--no-low-rank"], "without act-clip": ["--no-act-clip"],
         "without error-cancelling": ["--no-error-cancelling"], "without trying GPTQ": ["--no-gptq"]}
TUNED = ("bisup-atom", "bisup-quarot")
SEEDS = [1, 2, 3]
EVAL_SEED = 20263        # of conversations: used by no training, calibration or other test
QUESTION_SEED = 20264    # of the questions of the prompt-KV experiment
HELD_OUT = 60            # the last stories, which the demo model was not trained on
CONTEXT = 256


class Setup:
    """Folders, models and texts of a run."""

    def __init__(self, program, folder, threads):
        self.program, self.folder, self.threads = program, folder, threads
        self.results = os.path.join(folder, "results")
        self.work = os.path.join(folder, "work")
        for path in (self.results, self.work):
            os.makedirs(path, exist_ok=True)
        self.models, self.missing = {}, []
        self._demo()
        self._story()

    # ---- models and texts ----

    def _variant(self, name, source):
        """The outlier-equivalent variant: the same function, with a large model's outliers."""
        path = os.path.join(self.folder, "models", name)
        if not os.path.exists(os.path.join(path, "config.json")):
            shutil.rmtree(path, ignore_errors=True)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            run([sys.executable, os.path.join(ROOT, "tools", "outlier_variant.py"), source, path])
        return path

    def _add(self, name, source, calibration, text):
        self.models[name] = {"path": source, "calibration": calibration, "text": text}
        variant = name + "-outliers"
        self.models[variant] = dict(self.models[name], path=self._variant(variant, source))

    def _demo(self):
        """Calibration text of the repository; evaluation on conversations drawn with another seed, and on stories
        that were not trained on."""
        calibration = os.path.join(DEMO_TOOLS, "calibration.txt")
        r = random.Random(EVAL_SEED)
        talks = []
        for _ in range(120):
            business = gen.Business(r)
            turns = business.turns_on_everything()[:4]
            talks.append(chatml(business.system, turns))
        stories = gen.stories(os.path.join(DEMO_TOOLS, "stories.jsonl"))[-HELD_OUT:]
        with open(calibration, encoding="utf-8") as f:
            used = f.read()
        stories = [s for s in stories if s[1][:200] not in used]
        talks += [chatml(None, [s]) for s in stories[:20]]
        r.shuffle(talks)
        text = os.path.join(self.folder, "demo-eval.txt")
        write(text, "\n".join(talks))
        self._add("demo", os.path.join(ROOT, "models", "demo"), calibration, text)

    def _story(self):
        """The first stories are for evaluation, the last for calibration; what lies between is for experiments."""
        source = os.path.join(SHARED, "data", "models", "story-llama-656k")
        stories = os.path.join(SHARED, "data", "text", "tinystories", "tiny_stories.txt")
        if not (os.path.exists(source) and os.path.exists(stories)):
            self.missing.append(f"story-llama-656k: {source} or {stories} is not there")
            return
        with open(stories, encoding="utf-8") as f:
            # the model knows a blank line as one newline
            all_text = f.read().replace("\n\n", "\n")
        text, calibration = (os.path.join(self.folder, n) for n in ("story-eval.txt", "story-calibration.txt"))
        write(text, all_text[:110_000])
        write(calibration, all_text[300_000:])
        self._add("story", source, calibration, text)

    # ---- cases ----

    def quantize(self, case, out):
        model = self.models[case["model"]]
        command = [self.program, "quantize", model["path"], out, "--method", case["method"], "--bits", case["bits"],
                   "--group", "128", "--seed", str(case["seed"]), "--threads", str(self.threads), "--json"]
        if case["method"] != "rtn":
            command += ["--calibration", model["calibration"], "--samples", str(case["samples"]), "--seq-len",
                        str(CONTEXT)]
        if case["method"] in TUNED:
            command += ["--epochs", str(case["epochs"])]
            command += (["--end-to-end-epochs", str(case["end_to_end"])] if case["end_to_end"] else
                        ["--no-end-to-end"])
        if "part" in case:
            command += PARTS[case["part"]]
        return run_json(command)

    def evaluate(self, case, path):
        model = self.models[case["model"]]
        return run_json([self.program, "eval", path, "--text", model["text"], "--reference", model["path"], "--context",
                         str(CONTEXT), "--limit", str(case["tokens"]), "--threads", str(self.threads), "--json"])

    def measure(self, name, case):
        """The result of a case, from the file of an earlier run where there is one."""
        path = os.path.join(self.results, name + ".json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                kept = json.load(f)
            if kept["case"] == case:
                return kept
        start = time.time()
        result = {"case": case}
        if case["kind"] == "quality":
            out = os.path.join(self.work, name)
            for stale in (out, out + ".partial"):
                shutil.rmtree(stale, ignore_errors=True)
            result["quantize"] = self.quantize(case, out)
            result["eval"] = self.evaluate(case, out)
            shutil.rmtree(out)
        else:
            result["facts"] = self.facts(case)
        result["seconds"] = round(time.time() - start, 1)
        write(path + ".tmp", json.dumps(result, indent=1) + "\n")
        os.replace(path + ".tmp", path)
        return result

    def facts(self, case):
        """Exact answers with full-precision weights and a low-bit KV cache: what the prompt's precision is worth. Base
        "plain" quantizes K before RoPE, as Atom does; "quarot" after a rotation."""
        model = self.models[case["model"]]["path"]
        if case["base"] == "quarot":
            source, model = model, os.path.join(self.work, case["model"] + "-rotated")
            if not os.path.exists(model):
                run([self.program, "quantize", source, model, "--method", "quarot", "--bits", "W16A16KV4",
                     "--calibration", self.models[case["model"]]["calibration"], "--samples", "8", "--seq-len", "64",
                     "--json"])
        questions = os.path.join(self.folder, "questions.jsonl")
        with open(questions, "w", encoding="utf-8") as f:
            subprocess.run([sys.executable, os.path.join(DEMO_TOOLS, "gen.py"), "--seed", str(QUESTION_SEED), "--count",
                            str(case["questions"]), "--facts", "10", "--json"], check=True, stdout=f)
        return run_json([self.program, "eval", model, "--task", "facts", "--data", questions,
                         "--kv-bits", str(case["kv_bits"]), "--prompt-kv", case["prompt_kv"], "--threads",
                         str(self.threads), "--json"])

    def cases(self, tokens):
        """(name, case) of everything, in the order of what a reader would miss first."""
        def quality(model, method, bits, seed, part=None):
            case = {"kind": "quality", "model": model, "method": method, "bits": bits, "seed": seed, "tokens": tokens}
            if method in TUNED:
                case.update(TUNING_ABLATION if part else TUNING_8_BITS if bits == "W8A8KV8" else
                            TUNING[model.split("-")[0]])
            elif method != "rtn":
                case["samples"] = BASE_SAMPLES
            if part:
                case["part"] = part
            suffix = "_" + part.replace(" ", "-") if part else ""
            return f"{model}_{method}_{bits}_s{seed}{suffix}", case

        order = sorted(self.models, key=lambda m: m.startswith("demo"))
        for bits in BITS:
            for model in order:
                for method in METHODS:
                    if method not in TUNED:
                        yield quality(model, method, bits, SEEDS[0])
        for model in ("demo", "demo-outliers"):
            for base in ("plain", "quarot"):
                for kv_bits in (16, 4, 3, 2):
                    for prompt_kv in ("fp16",) if kv_bits == 16 else ("fp16", "low"):
                        yield f"facts_{model}_{base}_kv{kv_bits}_{prompt_kv}", {
                            "kind": "facts", "model": model, "base": base, "kv_bits": kv_bits, "prompt_kv": prompt_kv,
                            "questions": 200}
        for seed in SEEDS:
            for bits in reversed(BITS):
                if bits == "W8A8KV8" and seed != SEEDS[0]:
                    continue  # next to nothing is lost at 8 bits, and nothing varies
                for model in order:
                    for method in TUNED:
                        yield quality(model, method, bits, seed)
            if seed == SEEDS[0]:
                for model in order:
                    if model.startswith("story"):  # the demo model would take ten times as long
                        for method in TUNED:
                            for part in PARTS:
                                yield quality(model, method, "W3A3KV3", seed, part)


def chatml(system, turns):
    messages = ([("system", system)] if system else []) + [m for q, a in turns for m in (("user", q), ("assistant", a))]
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages).rstrip("\n")


def write(path, text):
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nexit status {done.returncode}\n{done.stderr.decode()}")
    return done.stdout.decode()


def run_json(command):
    return json.loads(run(command))


def load_results(folder):
    """All results by name."""
    found = {}
    for path in sorted(glob.glob(os.path.join(folder, "results", "*.json"))):
        with open(path, encoding="utf-8") as f:
            found[os.path.basename(path)[:-5]] = json.load(f)
    return found
