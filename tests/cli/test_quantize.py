"""bisup quantize: every method end to end, sizes, repeatability, interrupted runs, and one clear line on bad input."""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "server"))
import bisup_server  # noqa: E402

PROGRAM, MODEL = bisup_server.from_environment()
METHODS = ["rtn", "gptq", "atom", "quarot", "bisup-atom", "bisup-quarot"]
QUICK = ["--samples", "4", "--seq-len", "48", "--epochs", "1", "--batch-samples", "2", "--rank", "4",
         "--end-to-end-epochs", "1"]
STORY = ("Once upon a time there was a little boat. It liked the sea and the wind, and it had a friend, a bird. "
         "One day they found a box with a red key. They were very happy and went home to tell their mother. ")


def run(*arguments, limit=None, timeout=300):
    def set_limit():
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    variables = {name: value for name, value in os.environ.items() if not name.startswith("BISUP_")}
    return subprocess.run([PROGRAM, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout,
                          cwd=bisup_server.ROOT, env=variables, preexec_fn=set_limit)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def digests(folder):
    return {name: digest(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}


def write_tensors(path, tensors):
    """tensors: {name: (dtype, shape, bytes)}"""
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)


def random_halves(generator, count):
    """F16 numbers of 2^-6 to 2^-5 and both signs."""
    bits = int.from_bytes(generator.randbytes(2 * count), "little")
    bits &= int("83ff" * count, 16)
    bits |= int("2400" * count, 16)
    return bits.to_bytes(2 * count, "little")


class Base(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.text = self.write("text.txt", STORY * 20)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, text):
        with open(self.path(name), "w") as file:
            file.write(text)
        return self.path(name)

    def copy_model(self, name="model", **config):
        folder = self.path(name)
        shutil.copytree(MODEL, folder)
        path = os.path.join(folder, "config.json")
        with open(path) as file:
            keys = json.load(file)
        keys.update(config)
        with open(path, "w") as file:
            json.dump(keys, file)
        return folder

    def quantize(self, model, out, *arguments, **options):
        result = run("quantize", model, self.path(out), *arguments, "--json", **options)
        self.assertEqual(result.returncode, 0, result.stderr.decode())
        self.assertFalse(os.path.exists(self.path(out + ".partial")))
        return json.loads(result.stdout)


class Results(Base):
    def test_every_method_gives_a_model_that_runs(self):
        model = self.copy_model(num_hidden_layers=2)
        before = digests(model)
        prompt = self.write("prompt.txt", "<|im_start|>system\nBe kind.<|im_end|>\n")
        for method in METHODS:
            arguments = ["--method", method, "--bits", "W4A4KV4", "--calibration", self.text, *QUICK]
            if method == "bisup-quarot":
                arguments += ["--prompt", prompt]
            report = self.quantize(model, method, *arguments)
            self.assertEqual(len(report["layers"]), 2)
            self.assertLess(report["layers"][-1]["error"], 0.5, method)
            self.assertGreater(report["layers"][-1]["error"], 0.0005, method)
            self.assertEqual(report["calibration"]["prompt_tokens"] > 0, "--prompt" in arguments)
            self.assertEqual(report["layers"][0].get("best_epoch") is not None, method.startswith("bisup"))
            self.assertEqual("end_to_end" in report, method.startswith("bisup"))
            with open(self.path(method + "/bisup_report.json")) as file:
                self.assertEqual(json.load(file), report)
            with open(self.path(method + "/config.json")) as file:
                config = json.load(file)
            self.assertEqual(config["quantization_config"]["method"], method)
            self.assertEqual(config["tie_word_embeddings"], "quarot" not in method)
            self.assertEqual(config["rope_theta"], 10000)
            self.assertEqual(digest(self.path(method + "/tokenizer.model")), before["tokenizer.model"])
            answer = run("generate", self.path(method), "--prompt", "Once upon", "--max-tokens", "3", "--json")
            self.assertEqual(answer.returncode, 0, answer.stderr.decode())
            self.assertEqual(len(json.loads(answer.stdout)["tokens"]), 3)
        self.assertEqual(digests(model), before)  # the input is never touched

    def test_rounding_alone_needs_no_text(self):
        report = self.quantize(MODEL, "rtn", "--method", "rtn", "--bits", "W8A8KV8")
        self.assertEqual(report["calibration"]["samples"], 0)
        answer = run("generate", self.path("rtn"), "--chat", "--system", "The manager is Ida.", "--prompt",
                     "Who is the manager?")
        self.assertEqual(answer.stdout, b"The manager is Ida.\n")

    def test_kinds_of_numbers(self):
        model = self.copy_model(num_hidden_layers=1)
        calibration = ["--calibration", self.text, "--samples", "2", "--seq-len", "32"]
        for number, (method, arguments) in enumerate((
            ("gptq", ["--bits", "W3A16KV2", "--group", "32", "--asymmetric"]),
            ("quarot", ["--bits", "W16A16KV3"]),
            ("atom", ["--bits", "W16A16KV16"]),
            ("atom", ["--bits", "W4A8KV8", "--group", "64", "--outliers", "16", "--no-gptq"]),
        )):
            out = f"out{number}"
            self.quantize(model, out, "--method", method, *arguments, *calibration)
            answer = run("generate", self.path(out), "--prompt", "Once upon", "--max-tokens", "2")
            self.assertEqual(answer.returncode, 0, answer.stderr.decode())

    def test_parts_of_bisup_can_be_switched_off(self):
        model = self.copy_model(num_hidden_layers=2)  # the first has no error to cancel
        calibration = ["--method", "bisup-atom", "--bits", "W3A3KV3", "--calibration", self.text, "--samples",
                       "8", "--seq-len", "48", "--epochs", "2", "--batch-samples", "2", "--lr-clip", "0.02",
                       "--lr-smooth", "0.005", "--lr-low-rank", "0.002"]
        results = set()
        for part in ("clip", "smooth", "low-rank", "act-clip", "error-cancelling", "end-to-end"):
            self.quantize(model, part, *calibration, "--no-" + part)
            results.add(digest(self.path(part + "/model.safetensors")))
        self.quantize(model, "all", *calibration)
        results.add(digest(self.path("all/model.safetensors")))
        self.assertEqual(len(results), 7)  # each switch changes something

    def test_bits_a_weight(self):
        """W3 in groups of 128 is 3.125 bits, and a little more with outliers; by the files' sizes."""
        hidden, vocab = 1024, 2048
        generator = random.Random(1)
        model = self.copy_model(num_hidden_layers=1, hidden_size=hidden, intermediate_size=hidden,
                                num_attention_heads=8, num_key_value_heads=8, head_dim=128)
        norm = ("F16", [hidden], b"\x00\x3c" * hidden)
        layer = "model.layers.0."
        tensors = {"model.embed_tokens.weight": ("F16", [vocab, hidden], random_halves(generator, vocab * hidden)),
                   "model.norm.weight": norm, layer + "input_layernorm.weight": norm,
                   layer + "post_attention_layernorm.weight": norm}
        linears = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                   "mlp.up_proj", "mlp.down_proj"]
        for name in linears:
            tensors[layer + name + ".weight"] = ("F16", [hidden, hidden], random_halves(generator, hidden * hidden))
        write_tensors(os.path.join(model, "model.safetensors"), tensors)
        for method, most in (("rtn", 3.13), ("atom", 3.3)):
            report = self.quantize(model, method, "--method", method, "--bits", "W3A3KV3", "--calibration", self.text,
                                   "--samples", "1", "--seq-len", "16")
            self.assertGreater(report["bits_per_weight"], 3.1)
            self.assertLess(report["bits_per_weight"], most)
            size = os.path.getsize(self.path(method + "/model.safetensors"))
            rest = 2 * vocab * hidden + 3 * 4 * hidden + 10000  # embedding, norms, headers
            order = 3 * 4 * hidden if method == "atom" else 0
            self.assertLess(abs(8 * (size - rest - order) / (7 * hidden * hidden) - report["bits_per_weight"]), 0.02)

    def test_the_end_to_end_stage_lowers_the_divergence(self):
        """Of its held-out windows, and of other text, against the original."""
        model = self.copy_model(num_hidden_layers=3)
        words = random.Random(3).choices(STORY.split(), k=5000)
        text = self.write("words.txt", " ".join(words[:4000]))
        other = self.write("other.txt", " ".join(words[4000:]))
        arguments = ["--method", "bisup-quarot", "--bits", "W3A3KV3", "--calibration", text, "--samples", "64",
                     "--seq-len", "48", "--epochs", "2", "--end-to-end-epochs", "3"]
        divergences = []
        for out, more in (("on", []), ("off", ["--no-end-to-end"])):
            report = self.quantize(model, out, *arguments, *more)
            self.assertEqual("end_to_end" in report, out == "on")
            if out == "on":
                figures = report["end_to_end"]
                self.assertLess(figures["kl_after"], 0.95 * figures["kl_before"])
                self.assertGreater(figures["best_epoch"], 0)
            result = run("eval", self.path(out), "--text", other, "--reference", model, "--context", "48", "--json")
            self.assertEqual(result.returncode, 0, result.stderr.decode())
            divergences.append(json.loads(result.stdout)["kl"])
        self.assertLess(divergences[0], 0.97 * divergences[1])

    def test_same_seed_same_bytes(self):
        model = self.copy_model(num_hidden_layers=2)
        calibration = ["--method", "bisup-quarot", "--calibration", self.text, *QUICK]
        files = []
        for out, arguments in (("a", ["--threads", "1"]), ("b", ["--threads", "3"]), ("c", ["--seed", "1"])):
            self.quantize(model, out, *calibration, *arguments)
            files.append(digest(self.path(out + "/model.safetensors")))
        self.assertEqual(files[0], files[1])
        self.assertNotEqual(files[0], files[2])


class Interruptions(Base):
    def start_and_kill(self, command, until="block-000.safetensors"):
        """Kills the run when a file of it is there. Returns the names of the run's files."""
        process = subprocess.Popen(command, cwd=bisup_server.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        awaited = self.path("out.partial/" + until)
        deadline = time.monotonic() + 120
        while not os.path.exists(awaited) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        self.assertEqual(process.returncode, -signal.SIGKILL)
        return [name for name in os.listdir(self.path("out.partial")) if name.endswith((".tuned", ".safetensors"))]

    def check_same(self, report):
        for name in ("model.safetensors", "config.json"):
            self.assertEqual(digest(self.path("out/" + name)), digest(self.path("whole/" + name)))
        with open(self.path("whole/bisup_report.json")) as file:
            whole = json.load(file)
        self.assertEqual([layer["error"] for layer in report["layers"]], [layer["error"] for layer in whole["layers"]])
        self.assertEqual(report["error"], whole["error"])
        for key in ("kl_before", "kl_after", "best_epoch"):
            self.assertEqual(report.get("end_to_end", {}).get(key), whole.get("end_to_end", {}).get(key))

    def test_a_killed_run_goes_on_with_the_same_result(self):
        arguments = ["--method", "bisup-atom", "--bits", "W3A3KV3", "--calibration", self.text, *QUICK,
                     "--no-end-to-end"]
        model = self.copy_model(num_hidden_layers=3)
        self.quantize(model, "whole", *arguments)
        finished = self.start_and_kill([PROGRAM, "quantize", model, self.path("out"), *arguments])
        self.assertIn(len(finished), (1, 2))
        self.assertFalse(os.path.exists(self.path("out")))
        other = run("quantize", model, self.path("out"), *arguments, "--seed", "5")
        self.assertEqual(other.returncode, 1)
        self.assertIn(b"--force", other.stderr)
        self.assertEqual(len(other.stderr.splitlines()[-1:]), 1)
        report = self.quantize(model, "out", *arguments)
        self.assertGreaterEqual(report["resumed_blocks"], len(finished))
        self.check_same(report)

    def test_a_run_killed_at_any_stage_goes_on(self):
        """With the end-to-end stage: while blocks are tuned, in the stage, while blocks are written."""
        prompt = self.write("prompt.txt", "<|im_start|>system\nBe kind.<|im_end|>\n")
        model = self.copy_model(num_hidden_layers=3)
        for method in ("bisup-atom", "bisup-quarot"):
            arguments = ["--method", method, "--bits", "W3A3KV3", "--calibration", self.text, "--prompt", prompt, *QUICK]
            self.quantize(model, "whole", *arguments)
            for until in ("block-000.tuned", "block-002.tuned", "end-to-end.tuned", "block-001.safetensors"):
                files = self.start_and_kill([PROGRAM, "quantize", model, self.path("out"), *arguments], until)
                self.assertIn(until, files)
                report = self.quantize(model, "out", *arguments)
                self.assertGreaterEqual(report["resumed_blocks"], 1)
                self.assertEqual(report["resumed_blocks"] == 3, until != "block-000.tuned" or len(files) >= 3)
                self.check_same(report)
                shutil.rmtree(self.path("out"))
            shutil.rmtree(self.path("whole"))

    def test_force_begins_anew(self):
        arguments = ["--method", "gptq", "--calibration", self.text, "--samples", "2", "--seq-len", "32"]
        self.start_and_kill([PROGRAM, "quantize", MODEL, self.path("out"), *arguments])
        report = self.quantize(MODEL, "out", *arguments, "--seed", "5", "--force")
        self.assertEqual(report["resumed_blocks"], 0)
        again = self.quantize(MODEL, "out", *arguments, "--seed", "6", "--force")  # replaces the finished model
        self.assertEqual(again["options"]["seed"], 6)


class BadInput(Base):
    def refused(self, *arguments, says, status=1, out="out", limit=None):
        result = run("quantize", *arguments, limit=limit)
        message = result.stderr.decode()
        self.assertEqual(result.returncode, status, message)
        self.assertIn(says, message)
        self.assertEqual(sum(line.startswith("bisup: ") for line in message.splitlines()), 1, message)
        self.assertEqual(result.stdout, b"")
        self.assertFalse(os.path.exists(self.path(out)))
        self.assertFalse(os.path.exists(self.path(out + ".partial")))

    def test_wrong_options(self):
        out = self.path("out")
        self.refused(MODEL, out, "--method", "awq", says="rtn, gptq, atom, quarot, bisup-atom or bisup-quarot", status=2)
        self.refused(MODEL, out, "--bits", "W5A4KV4", says="W4A4KV4", status=2)
        self.refused(MODEL, out, says="--calibration", status=2)
        self.refused(MODEL, says="OUT", status=2)
        self.refused(MODEL, out, "--method", "rtn", "--bits", "W16A4KV4", says="A16")
        self.refused(MODEL, out, "--method", "gptq", "--calibration", self.text, "--outliers", "8", says="--outliers")
        self.refused(MODEL, out, "--method", "atom", "--calibration", self.text, "--outliers", "12", says="multiple of 8")
        self.refused(MODEL, out, "--method", "gptq", "--calibration", self.text, "--seq-len", "2000", says="1024")

    def test_too_little_text(self):
        self.refused(MODEL, self.path("out"), "--method", "gptq", "--calibration", self.text, "--samples", "1000",
                     says="tokens, but 1000 windows of 1023 need at least")
        self.refused(MODEL, self.path("out"), "--method", "gptq", "--calibration", self.path("none"), says="none")
        empty = self.write("empty", "")
        self.refused(MODEL, self.path("out"), "--method", "gptq", "--calibration", empty, says="has 0 tokens")
        self.refused(MODEL, self.path("out"), "--method", "gptq", "--calibration", self.text, "--prompt", empty,
                     says="0 tokens")

    def test_folders_that_are_there(self):
        os.mkdir(self.path("mine"))
        precious = self.write("mine/precious", "text")
        for arguments in ([], ["--force"]):
            result = run("quantize", MODEL, self.path("mine"), "--method", "rtn", *arguments)
            self.assertEqual(result.returncode, 1)
            self.assertIn(b"there already", result.stderr)
        self.assertTrue(os.path.exists(precious))
        self.quantize(MODEL, "done", "--method", "rtn")
        before = digests(self.path("done"))
        result = run("quantize", MODEL, self.path("done"), "--method", "rtn", "--bits", "W3A3KV3")
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"--force", result.stderr)
        self.assertEqual(digests(self.path("done")), before)
        self.refused(self.path("done"), self.path("out"), "--method", "rtn", says="quantized already")
        model = self.copy_model()
        self.refused(model, model + "/out", "--method", "rtn", says="lie in each other")
        result = run("quantize", model, model, "--method", "rtn", "--force")
        self.assertEqual(result.returncode, 1)
        self.assertEqual(sorted(os.listdir(model)), sorted(os.listdir(MODEL)))

    def test_a_full_disk_leaves_nothing(self):
        for limit in (100_000, 1_000_000):  # a block does not fit; the whole model does not
            self.refused(MODEL, self.path("out"), "--method", "rtn", says="cannot write", limit=limit)
        self.refused(MODEL, self.path("nowhere/out"), "--method", "rtn", says="nowhere")

    def test_weights_that_are_no_numbers(self):
        model = self.copy_model()
        path = os.path.join(model, "model.safetensors")
        with open(path, "r+b") as file:
            length, = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            file.seek(8 + length + header["model.layers.2.mlp.up_proj.weight"]["data_offsets"][0] + 20)
            file.write(struct.pack("<e", float("nan")))
        self.refused(model, self.path("out"), "--method", "rtn", says="layer 2")
        self.refused(model, self.path("out"), "--method", "quarot", "--calibration", self.text, *QUICK, says="up_proj")

    def test_missing_model(self):
        self.refused(self.path("none"), self.path("out"), "--method", "rtn", says="no such model folder")


if __name__ == "__main__":
    bisup_server.run_tests()
