"""The command line: every command on real input, its JSON keys, exit statuses, and one clear line on bad input."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "server"))
import bisup_server  # noqa: E402

PROGRAM, MODEL = bisup_server.from_environment()
SHARED = os.environ.get("BISUP_SHARED", os.path.join(bisup_server.ROOT, "..", "shared"))


def run(*arguments, text="", environment=None):
    variables = {name: value for name, value in os.environ.items() if not name.startswith("BISUP_")}
    variables.update(environment or {})
    return subprocess.run([PROGRAM, *arguments], input=text.encode(), capture_output=True, timeout=300,
                          cwd=bisup_server.ROOT, env=variables)


def run_json(*arguments, text=""):
    result = run(*arguments, "--json", text=text)
    assert result.returncode == 0, result.stderr.decode()
    return json.loads(result.stdout)


class Commands(unittest.TestCase):
    def test_help_and_version(self):
        self.assertEqual(run().returncode, 2)
        for arguments in (["--help"], ["help"], ["--version"]):
            result = run(*arguments)
            self.assertEqual((result.returncode, result.stderr), (0, b""))
        for command in "serve generate info tokenize bench eval health".split():
            result = run(command, "--help")
            self.assertEqual(result.returncode, 0)
            self.assertIn(b"bisup " + command.encode(), result.stdout)
            self.assertIn(command.encode(), run("--help").stdout)

    def test_info(self):
        info = run_json("info", MODEL)
        self.assertEqual(info["architecture"], "llama")
        self.assertEqual(info["bytes"], 2 * info["parameters"])
        self.assertEqual((info["bits"], info["group"], info["method"]), ("W16", None, None))
        self.assertEqual((info["bits_per_weight"], info["kv_bits"]), (16, 16))
        self.assertEqual(info["kv_bytes_per_token"], 2 * 2 * info["layers"] * info["kv_heads"] * info["head_dim"])
        self.assertIn(b"tokenizer", run("info", MODEL).stdout)

    def test_info_of_every_family(self):
        folder = os.path.join(bisup_server.ROOT, "tests", "golden", "models")
        families = {run_json("info", os.path.join(folder, name))["architecture"] for name in os.listdir(folder)}
        self.assertEqual(families, {"llama", "mistral", "qwen2", "qwen3"})

    def test_tokenize_and_decode(self):
        text = "Hello wörld 😀\n\n  two spaces"
        tokens = run_json("tokenize", MODEL, text=text)
        self.assertEqual(tokens["count"], len(tokens["tokens"]))
        lines = run("tokenize", MODEL, text=text).stdout.decode().splitlines()
        self.assertEqual([int(line.split("\t")[0]) for line in lines], tokens["tokens"])
        back = run_json("tokenize", MODEL, "--decode", text=json.dumps(tokens["tokens"]))
        self.assertEqual(back["text"], text)

    def test_tokenize_special(self):
        plain = run_json("tokenize", MODEL, text="<|im_end|>")["tokens"]
        special = run_json("tokenize", MODEL, "--parse-special", text="<|im_end|>")["tokens"]
        self.assertGreater(len(plain), 1)
        self.assertIn(4, special)
        self.assertEqual(run_json("tokenize", MODEL, "--add-special", text="a")["tokens"][0], 1)

    def test_generate(self):
        arguments = ["generate", MODEL, "--prompt", "Once upon a time", "--max-tokens", "12"]
        answer = run_json(*arguments)
        self.assertEqual(len(answer["tokens"]), answer["completion_tokens"])
        self.assertIn(answer["finish_reason"], ("stop", "length"))
        self.assertEqual(run(*arguments).stdout.decode(), answer["text"] + "\n")
        self.assertEqual(run_json(*arguments, "--threads", "1", "--cpu-isa", "avx2")["tokens"], answer["tokens"])

    def test_generate_chat(self):
        answer = run_json("generate", MODEL, "--chat", "--system", "You work for Red Tower, a bank. The manager is Ida.",
                          "--prompt", "Who is the manager?")
        self.assertEqual(answer["text"], "The manager is Ida.")
        self.assertEqual(answer["finish_reason"], "stop")

    def test_generate_stops_and_samples(self):
        arguments = ["generate", MODEL, "--prompt", "Once upon a time", "--max-tokens", "30"]
        whole = run_json(*arguments)["text"]
        stop = whole[10:14]
        cut = run_json(*arguments, "--stop", stop)
        self.assertEqual(cut["text"], whole[:whole.index(stop)])
        self.assertEqual(cut["finish_reason"], "stop")
        sampled = [run_json(*arguments, "--temperature", "1.5", "--seed", seed)["text"] for seed in ("1", "1", "2")]
        self.assertEqual(sampled[0], sampled[1])
        self.assertNotEqual(sampled[0], sampled[2])

    def test_bench(self):
        result = run_json("bench", MODEL, "--prompt-tokens", "16", "--generate", "4", "--batch", "1,3", "--repeat", "1")
        self.assertEqual([case["batch"] for case in result["cases"]], [1, 3])
        for case in result["cases"]:
            for key in ("prefill_tok_s", "decode_tok_s", "bytes_per_token", "peak_rss_bytes"):
                self.assertGreater(case[key], 0)

    def test_bench_of_a_shape(self):
        shape = os.path.join(bisup_server.ROOT, "tests", "golden", "models", "qwen2-tied", "config.json")
        for number_type in ("f32", "f16", "bf16"):
            result = run_json("bench", "--shape", shape, "--type", number_type, "--prompt-tokens", "8", "--generate", "2",
                              "--repeat", "1")
            self.assertEqual(result["type"], number_type.upper())

    def test_eval(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("Once upon a time there was a little boat. " * 20)
            file.flush()
            whole = run_json("eval", MODEL, "--text", file.name)
            again = run_json("eval", MODEL, "--text", file.name, "--threads", "1", "--prefill-chunk", "3")
            windows = run_json("eval", MODEL, "--text", file.name, "--context", "32")
        self.assertEqual(whole["ppl"], again["ppl"])
        self.assertGreater(windows["ppl"], whole["ppl"])  # less to look back at
        self.assertLess(windows["tokens"], whole["tokens"])  # each window's first token is not scored
        self.assertIn("kv_bits", whole)

    def test_low_bit_kv(self):
        ask = ("generate", MODEL, "--chat", "--system", "You are the assistant of Blue Harbor, a hotel. The door code "
               "is 4711.", "--prompt", "What is the door code?", "--max-tokens", "12")
        full = run_json(*ask)["text"]
        self.assertIn("4711", full)
        self.assertEqual(run_json(*ask, "--kv-bits", "8")["text"], full)
        self.assertEqual(run_json(*ask, "--kv-bits", "4", "--prompt-kv", "fp16")["text"], full)
        story = ("generate", MODEL, "--prompt", "Once upon a time", "--max-tokens", "60")
        self.assertNotEqual(run_json(*story, "--kv-bits", "2")["text"], run_json(*story)["text"])
        bench = run_json("bench", MODEL, "--prompt-tokens", "20", "--generate", "4", "--repeat", "1", "--kv-bits", "3")
        self.assertEqual(bench["kv_bits"], 3)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("Once upon a time there was a little boat. " * 20)
            file.flush()
            ppl = [run_json("eval", MODEL, "--text", file.name, "--kv-bits", bits)["ppl"] for bits in ("0", "8", "2")]
        self.assertAlmostEqual(ppl[0], ppl[1], delta=0.02 * ppl[0])
        self.assertNotAlmostEqual(ppl[2], ppl[0], delta=0.02 * ppl[0])
        few = run(*ask, "--kv-bits", "4", "--kv-memory", "1K")
        self.assertEqual(few.returncode, 1)
        self.assertIn(b"raise --kv-memory", few.stderr)

    def test_eval_agrees_with_transformers(self):
        # 41.83872984 is what transformers 5.23 gives in float32 for the same windows, summed in float64.
        model = os.path.join(SHARED, "data", "models", "story-llama-656k")
        text = os.path.join(SHARED, "data", "text", "tinystories", "tinystories_small.txt")
        if not os.path.exists(model) or not os.path.exists(text):
            self.skipTest("the shared data is not there: " + SHARED)
        result = run_json("eval", model, "--text", text, "--limit", "20000", "--kv-bits", "32")
        self.assertEqual(result["tokens"], 19960)
        self.assertAlmostEqual(result["ppl"], 41.83872984, delta=0.0005)

    def test_health_of_a_server_and_of_none(self):
        with bisup_server.Server(PROGRAM, MODEL) as server:
            self.assertEqual(run("health", "--port", str(server.port)).returncode, 0)
        result = run("health", "--port", str(bisup_server.free_port()))
        self.assertEqual(result.returncode, 1)
        self.assertIn(b"no server answers", result.stderr)

    def test_file_environment_and_flag(self):
        with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
            file.write("threads = 100000\n")
            file.flush()
            from_file = run("generate", MODEL, "--prompt", "x", "--config", file.name)
            self.assertEqual(from_file.returncode, 2)
            self.assertIn(file.name.encode(), from_file.stderr)
        result = run("generate", MODEL, "--prompt", "x", environment={"BISUP_THREADS": "many"})
        self.assertEqual(result.returncode, 2)
        self.assertIn(b"BISUP_THREADS", result.stderr)
        result = run("generate", MODEL, "--prompt", "x", "--max-tokens", "1", "--threads", "1",
                     environment={"BISUP_THREADS": "many"})
        self.assertEqual(result.returncode, 2)  # a wrong value is told even where a flag outranks it


class BadInput(unittest.TestCase):
    """One line that names what is wrong; never a crash (a negative exit status), never success."""

    def refused(self, *arguments, status, says, text=""):
        result = run(*arguments, text=text)
        message = result.stderr.decode()
        self.assertEqual(result.returncode, status, message)
        self.assertIn(says, message)
        self.assertEqual(result.stdout, b"")
        return message

    def test_wrong_usage(self):
        self.refused("sreve", status=2, says="serve")
        self.refused("serve", MODEL, "--prot", "1", status=2, says="--port")
        self.refused("serve", MODEL, "--port", "70000", status=2, says="port")
        self.refused("generate", MODEL, status=2, says="prompt")
        self.refused("eval", MODEL, status=2, says="text")
        self.refused("bench", status=2, says="model")
        self.refused("bench", "--shape", "tools/shapes/110m.json", "--batch", "1,x", status=2, says="batch")

    def test_missing_files(self):
        for command in (["info"], ["serve"], ["tokenize"], ["generate", "--prompt", "x"], ["bench"]):
            self.refused(command[0], "models/none", *command[1:], status=1, says="models/none")
        self.refused("eval", MODEL, "--text", "none.txt", status=1, says="none.txt")
        self.refused("bench", "--shape", "none.json", status=1, says="none.json")

    def damaged(self, damage):
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        for name in os.listdir(MODEL):
            shutil.copy(os.path.join(MODEL, name), folder)
        damage(folder)
        return folder

    def test_a_damaged_model_is_refused_with_the_file_and_the_reason(self):
        def truncate(name, size):
            return lambda folder: os.truncate(os.path.join(folder, name), size)

        def edit(name, old, new):
            def change(folder):
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    content = file.read()
                assert old in content
                with open(path, "wb") as file:
                    file.write(content.replace(old, new, 1))
            return change

        def remove(name):
            return lambda folder: os.remove(os.path.join(folder, name))

        for damage, says in (
            (truncate("model.safetensors", 1000000), "model.safetensors"),
            (truncate("model.safetensors", 5), "model.safetensors"),
            (truncate("config.json", 40), "config.json"),
            (truncate("tokenizer.model", 1000), "tokenizer.model"),
            (truncate("tokenizer_config.json", 100), "tokenizer_config.json"),
            (remove("config.json"), "config.json"),
            (remove("model.safetensors"), "model.safetensors"),
            (remove("tokenizer.model"), "tokenizer"),
            (edit("config.json", b'"llama"', b'"mamba"'), "mamba"),
            (edit("config.json", b'"hidden_size": 256', b'"hidden_size": 128'), "model.safetensors"),
            (edit("config.json", b'"vocab_size": 2048', b'"vocab_size": 2047'), "2047"),
            (edit("model.safetensors", b"data_offsets", b"data_offsetz"), "model.safetensors"),
            (edit("tokenizer_config.json", b"{% endfor %}", b"{% endfro %}"), "endfro"),
        ):
            message = self.refused("serve", self.damaged(damage), "--port", "0", status=1, says=says)
            self.assertLess(len(message.splitlines()[-1]), 600)

    def test_prompts_that_do_not_fit(self):
        self.refused("generate", MODEL, "--prompt", "word " * 3000, status=1, says="tokens")
        self.refused("tokenize", MODEL, "--decode", text="1 2 99999", status=1, says="99999")
        self.refused("tokenize", MODEL, "--decode", text="-1", status=1, says="-1")
        with tempfile.NamedTemporaryFile("w") as file:
            self.refused("eval", MODEL, "--text", file.name, status=1, says="tokens")

    def test_too_little_memory(self):
        self.refused("generate", MODEL, "--prompt", "x", "--kv-memory", "1K", status=1, says="kv-memory")

    def test_closed_standard_output(self):
        process = subprocess.Popen([PROGRAM, "info", MODEL], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.close()
        process.stderr.read()
        process.stderr.close()
        self.assertGreaterEqual(process.wait(60), 0)


if __name__ == "__main__":
    bisup_server.run_tests()
