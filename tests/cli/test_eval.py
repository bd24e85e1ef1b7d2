"""bisup eval on the demo model. What it says is computed a second time from the log-probabilities that the server
gives for the same text, and from the server's answers."""

import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "server"))
import bisup_server  # noqa: E402

PROGRAM, MODEL = bisup_server.from_environment()
TEXT = ("Once upon a time there was a little boat. It sailed on the lake every day. One day the wind was strong, and "
        "the boat was afraid. A big ship came and said: Do not be afraid, I will help you home. ")
PROMPT = "You work for Red Tower, a bank. The manager is Ida. We open at nine. "
HELLASWAG = [
    ("Story: Once upon a time there was a", 1, ["purple.", "little girl named Lily.", "xq zz", "the of"]),
    ("Story: Once upon a time there was a boy. He", 0, ["was very happy.", "qqq", "zzz wvu", "table sky"]),
    ("Story: The sun is", 3, ["hot and bright in the sky.", "mmm nn", "vv bb cc", "cold xx yy"]),  # wrong on purpose
]
LETTERS = {
    "version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz\u0120")}, "merges": []},
}


def run(*arguments):
    variables = {name: value for name, value in os.environ.items() if not name.startswith("BISUP_")}
    return subprocess.run([PROGRAM, "eval", *arguments], capture_output=True, timeout=300, cwd=bisup_server.ROOT,
                          env=variables)


def run_json(*arguments):
    result = run(*arguments, "--json")
    assert result.returncode == 0, result.stderr.decode()
    return json.loads(result.stdout, parse_constant=lambda word: 1 / 0)  # no NaN or Infinity


class Folder(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cls.text = cls.write("text.txt", TEXT)
        cls.prompt = cls.write("prompt.txt", PROMPT)

    @classmethod
    def write(cls, name, text):
        path = os.path.join(cls.folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path


class WithServer(Folder):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = bisup_server.Server(PROGRAM, MODEL, "--no-log-requests").__enter__()
        cls.addClassCleanup(cls.server.__exit__)

    def logprobs(self, text):
        """[(token's text, log-probability)] of a text's tokens after the first."""
        answer = self.server.post("/v1/completions", {"prompt": text, "echo": True, "logprobs": 0, "max_tokens": 0})
        self.assertEqual(answer.status, 200, answer.body)
        found = answer.json()["choices"][0]["logprobs"]
        return list(zip(found["tokens"], found["token_logprobs"]))[1:]

    def likelihood(self, context, ending):
        """log p of the ending: its tokens are those after the ones the context has alone."""
        alone, whole = self.logprobs(context), self.logprobs(context + ending)
        self.assertEqual([token for token, _ in alone], [token for token, _ in whole[:len(alone)]])
        return sum(value for _, value in whole[len(alone):])

    def test_perplexity(self):
        result = run_json(MODEL, "--text", self.text)
        expected = [value for _, value in self.logprobs(TEXT)]
        self.assertEqual(result["tokens"], len(expected))
        self.assertAlmostEqual(result["nll"], -sum(expected) / len(expected), delta=1e-5)
        self.assertAlmostEqual(result["ppl"], math.exp(result["nll"]), delta=1e-3)

    def test_hellaswag(self):
        lines = [line for context, label, endings in HELLASWAG for line in (context, str(label), *endings)]
        path = self.write("hellaswag.txt", "\n".join(lines) + "\n")
        right = right_norm = 0
        for context, label, endings in HELLASWAG:
            sums = [self.likelihood(context, " " + ending) for ending in endings]
            norms = [value / len(ending) for value, ending in zip(sums, endings)]
            right += sums.index(max(sums)) == label
            right_norm += norms.index(max(norms)) == label
        self.assertEqual(right_norm, 2)  # by hand
        result = run_json(MODEL, "--task", "hellaswag", "--data", path)
        self.assertEqual(result["items"], 3)
        self.assertAlmostEqual(result["accuracy"], right / 3, places=6)
        self.assertAlmostEqual(result["accuracy_norm"], right_norm / 3, places=6)
        self.assertAlmostEqual(result["stderr_norm"], math.sqrt(2 / 3 * 1 / 3 / 3), places=6)
        self.assertEqual(run_json(MODEL, "--task", "hellaswag", "--data", path, "--limit", "2")["items"], 2)

    def test_mmlu(self):
        questions = {"art_history": [("Who painted?", "abcd", 2), ("When?", "wxyz", 0)],
                     "zoo": [("What flies?", ["owl", "cow", "dog", "cat, or so"], 1)]}
        for subject, rows in questions.items():
            self.write(f"mmlu/test/{subject}_test.csv", "question,choice0,choice1,choice2,choice3,answer\n" + "".join(
                ",".join(f'"{field}"' for field in (text, *choices, "ABCD"[answer])) + "\n"
                for text, choices, answer in rows))
            self.write(f"mmlu/dev/{subject}_dev.csv", "First?,1,2,3,4,B\nSecond?,5,6,7,8,D\n")
        right = {}
        for subject, rows in questions.items():
            head = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
            head += "First?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\nSecond?\nA. 5\nB. 6\nC. 7\nD. 8\nAnswer: D\n\n"
            right[subject] = 0
            for text, choices, answer in rows:
                lines = "".join(f"\n{letter}. {choice}" for letter, choice in zip("ABCD", choices))
                context = head + text + lines + "\nAnswer:"
                sums = [self.likelihood(context, " " + letter) for letter in "ABCD"]
                right[subject] += sums.index(max(sums)) == answer
        result = run_json(MODEL, "--task", "mmlu", "--data", os.path.join(self.folder, "mmlu"))
        self.assertEqual(result["items"], 3)
        self.assertAlmostEqual(result["accuracy"], sum(right.values()) / 3, places=6)
        for subject, rows in questions.items():
            group = result["columns"][0]["groups"][subject]
            self.assertEqual(group["items"], len(rows))
            self.assertAlmostEqual(group["accuracy"], right[subject] / len(rows), places=6)

    def test_facts(self):
        tools = os.path.join(bisup_server.ROOT, "tools", "demo-model")
        lines = subprocess.run([sys.executable, os.path.join(tools, "gen.py"), "--seed", "20263", "--count", "20",
                                "--json"], capture_output=True, check=True, cwd=tools).stdout.decode()
        cases = [json.loads(line) for line in lines.splitlines()]
        cases[0]["answer"] += "?"  # one that is wrong for sure
        path = self.write("facts.jsonl", "".join(json.dumps(case) + "\n" for case in cases))
        exact = 0
        for case in cases:
            messages = [{"role": "system", "content": case["system"]}, {"role": "user", "content": case["question"]}]
            answer = self.server.post("/v1/chat/completions",
                                      {"messages": messages, "temperature": 0, "max_tokens": 64}).json()
            exact += answer["choices"][0]["message"]["content"] == case["answer"]
        self.assertGreater(exact, 10)
        result = run_json(MODEL, "--task", "facts", "--data", path)
        self.assertEqual((result["exact"], result["items"]), (exact, 20))
        self.assertEqual([column["prompt_kv"] for column in result["columns"]], ["fp16"])
        low = run_json(MODEL, "--task", "facts", "--data", path, "--kv-bits", "2", "--limit", "10")
        self.assertEqual([column["prompt_kv"] for column in low["columns"]], ["fp16", "low"])
        self.assertEqual((low["kv_bits"], low["items"]), (2, 10))


class Distance(Folder):
    def test_a_model_and_itself(self):
        result = run_json(MODEL, "--text", self.text, "--reference", MODEL, "--kv-bits", "32")
        self.assertEqual((result["kl"], result["kl_stderr"], result["kl_p99"], result["top1"]), (0, 0, 0, 1))
        self.assertEqual(result["ppl"], result["ppl_reference"])

    def changed_model(self):
        """A copy of the demo model whose last norm's gains are changed a little."""
        folder = os.path.join(self.folder, "changed")
        if os.path.exists(folder):
            return folder
        shutil.copytree(MODEL, folder)
        path = os.path.join(folder, "model.safetensors")
        with open(path, "rb") as file:
            data = bytearray(file.read())
        size = struct.unpack("<Q", data[:8])[0]
        begin, end = json.loads(data[8:8 + size])["model.norm.weight"]["data_offsets"]
        gains = struct.unpack(f"<{(end - begin) // 2}e", data[8 + size + begin:8 + size + end])
        gains = [gain * (1 + 0.2 * math.sin(i)) for i, gain in enumerate(gains)]
        data[8 + size + begin:8 + size + end] = struct.pack(f"<{len(gains)}e", *gains)
        os.chmod(path, 0o600)
        with open(path, "wb") as file:
            file.write(data)
        return folder

    def test_a_changed_model(self):
        changed, arguments = self.changed_model(), ["--text", self.text, "--kv-bits", "32"]
        there = run_json(changed, *arguments, "--reference", MODEL)
        back = run_json(MODEL, *arguments, "--reference", changed)
        self.assertEqual(there["ppl_reference"], run_json(MODEL, *arguments)["ppl"])
        self.assertEqual(there["ppl"], run_json(changed, *arguments)["ppl"])
        self.assertEqual(back["top1"], there["top1"])
        self.assertTrue(0 < there["kl"] < there["kl_p99"] < 5, there)
        self.assertTrue(0 < there["kl_stderr"] < there["kl"], there)
        self.assertNotEqual(there["kl"], back["kl"])  # KL has a direction
        self.assertAlmostEqual(there["kl"], back["kl"], delta=there["kl"] / 2)

    def test_a_prompt(self):
        arguments = [MODEL, "--text", self.text, "--reference", MODEL, "--prompt", self.prompt]
        result = run_json(*arguments)
        self.assertEqual([column["prompt_kv"] for column in result["columns"]], ["fp16", "none"])
        self.assertEqual(result["columns"][0]["tokens"], result["columns"][1]["tokens"])
        self.assertEqual(result["columns"][1]["prompt_tokens"], 0)
        plain = run_json(MODEL, "--text", self.text, "--context", str(result["context"]))
        self.assertEqual(result["columns"][1]["ppl"], plain["ppl"])
        self.assertNotEqual(result["ppl"], plain["ppl"])
        for bits in ("3", "2"):  # more bits lose next to nothing here
            result = run_json(*arguments, "--kv-bits", bits)
            self.assertEqual([column["prompt_kv"] for column in result["columns"]], ["fp16", "low", "none"])
            self.assertLess(result["columns"][0]["kl"], result["columns"][1]["kl"])
            alone = run_json(*arguments, "--kv-bits", bits, "--prompt-kv", "low")
            self.assertEqual(alone["columns"], result["columns"][1:2])
            self.assertEqual(alone["kl"], result["columns"][1]["kl"])

    def test_the_table_has_the_figures(self):
        table = run(MODEL, "--text", self.text, "--reference", MODEL, "--prompt", self.prompt, "--kv-bits", "3")
        result = run_json(MODEL, "--text", self.text, "--reference", MODEL, "--prompt", self.prompt, "--kv-bits", "3")
        rows = [line.split() for line in table.stdout.decode().splitlines()[-3:]]
        for row, column in zip(rows, result["columns"]):
            self.assertEqual(row[0], column["prompt_kv"])
            self.assertAlmostEqual(float(row[1]), column["ppl"], places=3)
            self.assertAlmostEqual(float(row[3]), column["kl"], places=5)

    def test_outliers_leave_the_function_as_it_is(self):
        tool = os.path.join(bisup_server.ROOT, "tools", "outlier_variant.py")
        golden = os.path.join(bisup_server.ROOT, "tests", "golden", "models")
        variant = os.path.join(self.folder, "outliers")
        subprocess.run([sys.executable, tool, MODEL, variant, "--seed", "1"], check=True)
        result = run_json(variant, "--text", self.text, "--reference", MODEL, "--kv-bits", "32")
        self.assertLess(result["kl_p99"], 1e-7)
        self.assertAlmostEqual(result["ppl"] / result["ppl_reference"], 1, delta=1e-5)
        low = [run_json(model, "--text", self.text, "--reference", MODEL, "--kv-bits", "4")["kl"]
               for model in (variant, MODEL)]
        self.assertGreater(low[0], 3 * low[1])  # what the tool is for: a low-bit cache suffers
        self.assertNotEqual(subprocess.run([sys.executable, tool, MODEL, variant], capture_output=True).returncode, 0)
        for name in sorted(os.listdir(golden)):  # every family: biases, Q/K norms, shards, BF16, tied embeddings
            original, variant = (os.path.join(self.folder, kind + name) for kind in ("original-", "variant-"))
            shutil.copytree(os.path.join(golden, name), original)
            with open(os.path.join(original, "tokenizer.json"), "w", encoding="utf-8") as file:
                json.dump(LETTERS, file)  # any tokenizer with few enough ids
            subprocess.run([sys.executable, tool, original, variant], check=True)
            letters = self.write("letters.txt", "the quick brown fox jumps over the lazy dog " * 2)
            result = run_json(variant, "--text", letters, "--reference", original, "--kv-bits", "32")
            self.assertLess(result["kl_p99"], 1e-6, name)
            self.assertAlmostEqual(result["nll"], math.log(result["ppl_reference"]), delta=1e-4)


class BadInput(Folder):
    def refused(self, *arguments, status, says):
        result = run(*arguments)
        message = result.stderr.decode()
        self.assertEqual(result.returncode, status, message)
        self.assertIn(says, message)
        self.assertEqual(result.stdout, b"")

    def test_wrong_usage(self):
        for arguments, says in (
            (["--task", "hellaswag"], "--data"),
            (["--task", "quiz", "--data", "x"], "task"),
            (["--text", self.text, "--data", "x"], "--data"),
            (["--text", self.text, "--task", "mmlu", "--data", "x"], "--text"),
            (["--task", "mmlu", "--data", "x", "--reference", MODEL], "--reference"),
            (["--task", "mmlu", "--data", "x", "--context", "20"], "--context"),
            (["--text", self.text, "--prompt-kv", "low"], "--prompt"),
            (["--task", "facts", "--data", "x", "--prompt", self.prompt], "--prompt"),
            (["--task", "facts", "--data", "x", "--prompt-kv", "none"], "none"),
        ):
            self.refused(MODEL, *arguments, status=2, says=says)

    def test_wrong_files(self):
        golden = os.path.join(bisup_server.ROOT, "tests", "golden", "models", "llama2-mha")
        broken = self.write("broken.txt", "context\n7\na\nb\nc\nd\n")
        line = '{"question": "a", "answer": "b"}\n'
        broken_facts = self.write("broken.jsonl", line + '{"question": 1}\n')
        empty = self.write("empty.txt", "")
        long_prompt = self.write("long.txt", "word " * 3000)
        for arguments, says in (
            (["--text", self.text, "--reference", "models/none"], "models/none"),
            (["--text", self.text, "--reference", golden], "vocabulary"),
            (["--text", self.text, "--prompt", "none.txt"], "none.txt"),
            (["--text", self.text, "--prompt", long_prompt], "no room"),
            (["--text", self.text, "--prompt", self.prompt, "--context", "1020"], "beside the prompt"),
            (["--text", empty], "at least 2"),
            (["--task", "hellaswag", "--data", "none.txt"], "none.txt"),
            (["--task", "hellaswag", "--data", broken], "line 2"),
            (["--task", "hellaswag", "--data", empty], "no questions"),
            (["--task", "mmlu", "--data", self.folder], "SUBJECT_test.csv"),
            (["--task", "facts", "--data", broken_facts], "line 2"),
            (["--task", "facts", "--data", self.text], "line 1"),
        ):
            self.refused(MODEL, *arguments, status=1, says=says)

    def test_a_model_without_a_template_answers_no_facts(self):
        folder = os.path.join(self.folder, "no-template")
        shutil.copytree(MODEL, folder)
        path = os.path.join(folder, "tokenizer_config.json")
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        del config["chat_template"]
        os.chmod(path, 0o600)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        facts = self.write("facts.jsonl", '{"question": "a", "answer": "b"}\n')
        self.refused(folder, "--task", "facts", "--data", facts, status=1, says="chat template")


if __name__ == "__main__":
    bisup_server.run_tests()
