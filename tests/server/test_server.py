#!/usr/bin/env python3
"""The real program over HTTP. Standard library only; the last line is "N passed, N failed".

    BISUP=build/release/bisup [MODEL=models/demo] tests/server/test_server.py [unittest options]
"""

import concurrent.futures
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bisup_server
from bisup_server import Server, receive_all

PROGRAM, MODEL = bisup_server.from_environment()

SYSTEM = "You are the assistant of Blue Harbor, a hotel. The manager is Rosa. The door code is 4711."
STORY = "<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def chat(question, **more):
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return dict({"messages": messages, "temperature": 0, "max_tokens": 40}, **more)


def completion(prompt=STORY, **more):
    return dict({"prompt": prompt, "temperature": 0, "max_tokens": 40}, **more)


class WithServer(unittest.TestCase):
    arguments = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server(PROGRAM, MODEL, *cls.arguments)
        cls.server.__enter__()

    @classmethod
    def tearDownClass(cls):
        status = cls.server.stop()
        log = cls.server.log_text()
        cls.server.log.close()
        if status != 0:
            raise AssertionError(f"the server ended with status {status}:\n{log[-4000:]}")

    def ok(self, path, body):
        answer = self.server.post(path, body)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json()

    def text(self, body):
        return self.ok(COMPLETIONS, body)["choices"][0]["text"]

    def wait_until_idle(self, seconds=20):
        """The process stops computing: nothing runs for clients that have gone."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            before = self.server.cpu_seconds()
            time.sleep(0.3)
            if self.server.cpu_seconds() - before <= 0.05:
                return
        self.fail("the server still computes")


class Routes(WithServer):
    def test_health_version_models(self):
        self.assertEqual(self.server.get("/health").json(), {"status": "ok"})
        self.assertRegex(self.server.get("/version").json()["version"], r"^\d+\.\d+")
        models = self.server.get("/v1/models").json()
        self.assertEqual(models["object"], "list")
        card = models["data"][0]
        self.assertEqual((card["object"], card["id"]), ("model", os.path.basename(MODEL)))
        self.assertIsInstance(card["created"], int)
        self.assertEqual(self.server.get("/v1/models/" + card["id"]).json(), card)
        missing = self.server.get("/v1/models/none")
        self.assertEqual((missing.status, missing.error()["code"]), (404, "model_not_found"))

    def test_unknown_paths_and_methods(self):
        for path in ("/", "/v1", "/v1/chat", "/v1/embeddings/", "/../etc/passwd", "/%2e%2e/x", "/v1/models%00"):
            answer = self.server.get(path)
            self.assertIn(answer.status, (200, 404), path)  # a path cut at NUL may be a good one
        for method, path in (("GET", CHAT), ("PUT", CHAT), ("DELETE", "/health"), ("POST", "/v1/models")):
            answer = self.server.request(method, path)
            self.assertEqual(answer.status, 405, (method, path))
            self.assertIn(answer.headers["Allow"].split(",")[0], ("GET", "POST"))
        self.assertEqual(self.server.request("HEAD", "/health").status, 200)
        self.assertEqual(self.server.request("OPTIONS", CHAT).status, 204)

    def test_request_ids(self):
        answer = self.server.get("/health", headers={"x-request-id": "abc-1"})
        self.assertEqual(answer.headers["x-request-id"], "abc-1")
        self.assertTrue(self.server.get("/health").headers["x-request-id"])
        odd = self.server.get("/health", headers={"x-request-id": "a" * 1000}).headers["x-request-id"]
        self.assertNotEqual(odd, "a" * 1000)

    def test_tokenize_and_back(self):
        for text in ("Hello world", "  spaces  ", "Grüße, 你好 😀\n", "a" * 500):
            tokens = self.ok("/tokenize", {"content": text, "add_special": False})
            self.assertEqual(tokens["count"], len(tokens["tokens"]))
            back = self.ok("/detokenize", {"tokens": tokens["tokens"]})
            self.assertEqual(back["content"].strip(), text.strip())
            self.assertEqual(back["prompt"], back["content"])

    def test_template_and_tokens_agree_with_usage(self):
        body = {"messages": chat("Who is the manager?")["messages"]}
        prompt = self.ok("/apply-template", body)["prompt"]
        self.assertIn("Rosa", prompt)
        tokens = self.ok("/tokenize", body)
        usage = self.ok(CHAT, chat("Who is the manager?"))["usage"]
        self.assertEqual(tokens["count"], usage["prompt_tokens"])

    def test_one_connection_serves_many_requests(self):
        connection = self.server.connection()
        for _ in range(20):
            connection.request("POST", COMPLETIONS, json.dumps(completion(max_tokens=3)))
            response = connection.getresponse()
            self.assertEqual(response.status, 200)
            response.read()
        connection.close()


class Generation(WithServer):
    def test_chat_object(self):
        answer = self.ok(CHAT, chat("Who is the manager?", model=os.path.basename(MODEL)))
        self.assertTrue(answer["id"].startswith("chatcmpl-"))
        self.assertEqual(answer["object"], "chat.completion")
        self.assertLess(abs(answer["created"] - time.time()), 100)
        choice = answer["choices"][0]
        self.assertEqual(choice["message"]["role"], "assistant")
        self.assertTrue(choice["message"]["content"])
        self.assertIsNone(choice["logprobs"])
        self.assertIn(choice["finish_reason"], ("stop", "length"))
        usage = answer["usage"]
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])
        self.assertIn("cached_tokens", usage["prompt_tokens_details"])
        self.assertIn("reasoning_tokens", usage["completion_tokens_details"])

    def test_max_tokens_and_length(self):
        for count in (1, 2, 7):
            answer = self.ok(COMPLETIONS, completion(max_tokens=count, ignore_eos=True))
            self.assertEqual(answer["usage"]["completion_tokens"], count)
            self.assertEqual(answer["choices"][0]["finish_reason"], "length")

    def test_greedy_is_repeatable(self):
        texts = {self.text(completion()) for _ in range(3)}
        self.assertEqual(len(texts), 1)

    def test_chat_stream_is_the_plain_answer(self):
        body = chat("What is the door code?")
        plain = self.ok(CHAT, body)
        events = self.server.events(CHAT, dict(body, stream_options={"include_usage": True}))
        self.assertEqual(events[-1], "[DONE]")
        chunks = [json.loads(event) for event in events[:-1]]
        self.assertEqual({c["object"] for c in chunks}, {"chat.completion.chunk"})
        self.assertEqual(len({(c["id"], c["created"]) for c in chunks}), 1)
        self.assertEqual(chunks[-1]["choices"], [])
        self.assertEqual(chunks[-1]["usage"], plain["usage"])
        pieces = [c["choices"][0] for c in chunks[:-1]]
        self.assertTrue(all(c["usage"] is None for c in chunks[:-1]))
        self.assertEqual(pieces[0]["delta"]["role"], "assistant")
        self.assertEqual([p["finish_reason"] for p in pieces[:-1]], [None] * (len(pieces) - 1))
        self.assertEqual(pieces[-1]["finish_reason"], plain["choices"][0]["finish_reason"])
        joined = "".join(p["delta"].get("content", "") for p in pieces)
        self.assertEqual(joined, plain["choices"][0]["message"]["content"])

    def test_completion_stream_is_the_plain_answer(self):
        for prompt in ("Once upon a time", "Ein Märchen: 你好 😀"):
            body = completion(prompt, max_tokens=60, ignore_eos=True)
            plain = self.ok(COMPLETIONS, body)["choices"][0]
            events = self.server.events(COMPLETIONS, body)
            pieces = [json.loads(event)["choices"][0] for event in events[:-1]]
            self.assertEqual("".join(p["text"] for p in pieces), plain["text"])
            self.assertEqual(pieces[-1]["finish_reason"], "length")

    def test_broken_characters_never_leave_the_server(self):
        # Random bytes of many seeds: hot sampling picks byte tokens that form no character.
        for seed in range(8):
            body = completion(temperature=2, seed=seed, max_tokens=60, ignore_eos=True)
            plain = self.text(body)
            events = self.server.events(COMPLETIONS, body)
            self.assertEqual("".join(json.loads(e)["choices"][0]["text"] for e in events[:-1]), plain)

    def test_stop_strings_end_the_text_and_never_leak(self):
        whole = self.text(completion(max_tokens=60))
        self.assertGreater(len(whole), 20)
        for start, length in ((10, 1), (8, 5), (5, 12)):
            stop = whole[start : start + length]
            expected = whole[: whole.index(stop)]
            body = completion(max_tokens=60, stop=[stop, "\x01never"])
            answer = self.ok(COMPLETIONS, body)["choices"][0]
            self.assertEqual((answer["text"], answer["finish_reason"]), (expected, "stop"))
            events = self.server.events(COMPLETIONS, body)
            self.assertEqual("".join(json.loads(e)["choices"][0]["text"] for e in events[:-1]), expected)
        # Text that was held back for a stop that never came is flushed.
        body = completion(max_tokens=60, stop=whole[-5:] + "\x01")
        self.assertEqual(self.text(body), whole)

    def forced(self, word):
        """The id of a word's last token, for logit_bias to force or stop_token_ids to find."""
        return self.ok("/tokenize", {"content": word, "add_special": False})["tokens"][-1]

    def test_stop_token_ids(self):
        word = self.forced("dog")
        body = completion(max_tokens=5, logit_bias={str(word): 100})
        self.assertEqual(self.ok(COMPLETIONS, body)["choices"][0]["finish_reason"], "length")
        answer = self.ok(COMPLETIONS, dict(body, stop_token_ids=[word]))
        self.assertEqual((answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]), ("", "stop"))

    def test_seeds(self):
        def sample(seed):
            return self.text(completion(temperature=1.5, seed=seed, max_tokens=30))

        first = [sample(seed) for seed in range(6)]
        self.assertEqual(first, [sample(seed) for seed in range(6)])
        self.assertGreater(len(set(first)), 3)
        unseeded = {self.text(completion(temperature=1.5, max_tokens=30)) for _ in range(6)}
        self.assertGreater(len(unseeded), 3)

    def test_n_uses_the_following_seeds(self):
        body = completion(temperature=1.2, max_tokens=20, seed=100)
        several = self.ok(COMPLETIONS, dict(body, n=4))
        self.assertEqual([c["index"] for c in several["choices"]], [0, 1, 2, 3])
        alone = [self.text(dict(body, seed=100 + i)) for i in range(4)]
        self.assertEqual([c["text"] for c in several["choices"]], alone)
        streamed = ["", "", "", ""]
        for event in self.server.events(COMPLETIONS, dict(body, n=4))[:-1]:
            piece = json.loads(event)["choices"][0]
            streamed[piece["index"]] += piece["text"]
        self.assertEqual(streamed, alone)
        many = self.ok(COMPLETIONS, completion(max_tokens=2, n=128))
        self.assertEqual(len(many["choices"]), 128)

    def test_several_prompts(self):
        prompts = ["Once upon a time", "The little dog", "One day"]
        answer = self.ok(COMPLETIONS, completion(prompts, n=2))
        texts = [c["text"] for c in answer["choices"]]
        alone = [self.text(completion(prompt)) for prompt in prompts]
        self.assertEqual(texts, [text for text in alone for _ in range(2)])
        ids = [self.ok("/tokenize", {"content": prompt})["tokens"] for prompt in prompts]
        again = self.ok(COMPLETIONS, completion(ids))
        self.assertEqual([c["text"] for c in again["choices"]], alone)

    def test_chat_logprobs(self):
        answer = self.ok(CHAT, chat("Who is the manager?", logprobs=True, top_logprobs=3))["choices"][0]
        content = answer["logprobs"]["content"]
        self.assertEqual(b"".join(bytes(t["bytes"]) for t in content).decode().strip(),
                         answer["message"]["content"].strip())
        for token in content:
            self.assertLessEqual(token["logprob"], 0)
            tops = [top["logprob"] for top in token["top_logprobs"]]
            self.assertEqual(len(tops), 3)
            self.assertEqual(tops, sorted(tops, reverse=True))
            self.assertAlmostEqual(tops[0], token["logprob"], places=5)  # greedy takes the best
        streamed = []
        for event in self.server.events(CHAT, chat("Who is the manager?", logprobs=True, top_logprobs=3))[:-1]:
            logprobs = json.loads(event)["choices"][0]["logprobs"]
            streamed += logprobs["content"] if logprobs else []
        self.assertEqual(streamed, content)

    def test_logprobs_of_a_prompt_are_those_of_generating_it(self):
        text = "Once upon a time there was a little dog."
        ids = self.ok("/tokenize", {"content": text})["tokens"]
        echo = self.ok(COMPLETIONS, completion(text, max_tokens=0, echo=True, logprobs=2))["choices"][0]
        self.assertEqual((echo["text"], echo["finish_reason"]), (text, "length"))
        logprobs = echo["logprobs"]
        self.assertEqual({len(values) for values in logprobs.values()}, {len(ids)})
        self.assertIsNone(logprobs["token_logprobs"][0])
        for k in (1, len(ids) // 2, len(ids) - 1):
            body = completion(ids[:k], max_tokens=1, logprobs=0, logit_bias={str(ids[k]): 100})
            forced = self.ok(COMPLETIONS, body)["choices"][0]["logprobs"]
            self.assertEqual(forced["tokens"], [logprobs["tokens"][k]])
            self.assertAlmostEqual(forced["token_logprobs"][0], logprobs["token_logprobs"][k], places=3)

    def test_probabilities_of_all_alternatives_sum_to_at_most_one(self):
        answer = self.ok(CHAT, chat("Hello", logprobs=True, top_logprobs=20, max_tokens=5))["choices"][0]
        for token in answer["logprobs"]["content"]:
            total = sum(math.exp(top["logprob"]) for top in token["top_logprobs"])
            self.assertLessEqual(total, 1.0001)
            self.assertGreater(total, 0.05)

    def test_logit_bias_forces_and_forbids(self):
        word = self.forced("dog")
        forced = self.text(completion(max_tokens=3, logit_bias={str(word): 100}))
        self.assertEqual(forced, forced[: len(forced) // 3] * 3)
        forbidden = self.text(completion(max_tokens=3, logit_bias={str(word): -100}))
        self.assertNotIn("dog", forbidden)

    def test_content_parts_and_developer_role(self):
        plain = self.ok(CHAT, chat("What is the door code?"))["choices"][0]["message"]
        parts = chat("")
        parts["messages"][0]["role"] = "developer"
        parts["messages"][1]["content"] = [{"type": "text", "text": "What is the door code?"}]
        self.assertEqual(self.ok(CHAT, parts)["choices"][0]["message"], plain)


class BadInput(WithServer):
    arguments = ("--max-body", "1M")

    def refused(self, path, body, status=400, param=None, **options):
        start = time.monotonic()
        answer = self.server.post(path, body, **options)
        self.assertLess(time.monotonic() - start, 10)
        shown = body if isinstance(body, (str, bytes)) else json.dumps(body)
        self.assertEqual(answer.status, status, (shown[:200], answer.body[:300]))
        error = answer.error()
        self.assertEqual(set(error), {"message", "type", "param", "code"})
        self.assertTrue(error["message"])
        if param:
            self.assertEqual(error["param"], param)
        return error

    def test_integers_out_of_range(self):
        fields = {
            CHAT: ("n", "max_tokens", "max_completion_tokens", "top_logprobs", "seed", "top_k"),
            COMPLETIONS: ("n", "max_tokens", "logprobs", "seed", "top_k", "best_of"),
        }
        base = {CHAT: chat("x", logprobs=True), COMPLETIONS: completion("x")}
        for path, names in fields.items():
            for name in names:
                for value in ("-1", "2147483648", "9223372036854775808", "1e308", "1.5", '"1"'):
                    if name == "seed" and value == "2147483648":
                        continue  # a good seed
                    text = json.dumps(dict(base[path], **{name: "@"})).replace('"@"', value)
                    self.refused(path, text, param=name)

    def test_large_counts_are_refused_quickly(self):
        self.refused(CHAT, chat("x", n=10**9), param="n")
        self.refused(CHAT, chat("x", logprobs=True, top_logprobs=10**6), param="top_logprobs")
        self.refused(CHAT, chat("x", stop=["a"] * 10**5), param="stop")
        self.refused(CHAT, chat("x", logit_bias={str(i): 1 for i in range(50000)}), param="logit_bias")

    def test_empty_prompts(self):
        for prompt in ("", [], [[]], [""], None, 5, {}, ["a", 1], [1.5], [-1]):
            self.refused(COMPLETIONS, completion(prompt), param="prompt")
        self.refused(COMPLETIONS, {}, param="prompt")
        for messages in ([], None, {}, "x", [1]):
            self.refused(CHAT, {"messages": messages})
        self.refused(COMPLETIONS, completion([10**6]))

    def test_prompts_longer_than_the_context(self):
        long = "word " * 20000
        self.assertEqual(self.refused(COMPLETIONS, completion(long))["code"], "context_length_exceeded")
        self.assertEqual(self.refused(CHAT, chat(long))["code"], "context_length_exceeded")
        self.assertEqual(self.refused(COMPLETIONS, completion([5] * 100000))["code"], "context_length_exceeded")

    def test_more_tokens_than_fit_end_with_length(self):
        answer = self.ok(COMPLETIONS, completion(max_tokens=10**6, ignore_eos=True))
        self.assertEqual(answer["choices"][0]["finish_reason"], "length")

    def test_malformed_json(self):
        for body in ("", "{", "[]", "null", '{"messages":[}', "{'a':1}", b"\xff\xfe", b'{"a":"\xff"}', '{"a":NaN}',
                     '{"a":"\\u0000"}', '{"a":"\\ud800"}', '{"seed":' + "9" * 500 + "}", '{"n":1,"n":1}x'):
            self.refused(CHAT, body)

    def test_deep_nesting(self):
        for depth in (64, 100, 1000, 100000):
            for field in ("messages", "ignored", "tools"):
                for opening, closing in (("[", "]"), ('{"a":', "}")):
                    body = '{"%s":%s1%s}' % (field, opening * depth, closing * depth)
                    self.refused(CHAT, body)

    def test_wrong_types(self):
        for more, param in (
            ({"temperature": "hot"}, "temperature"), ({"temperature": 3}, "temperature"), ({"top_p": -1}, "top_p"),
            ({"stream": "yes"}, "stream"), ({"stop": 5}, "stop"), ({"stop": ["a"] * 5}, "stop"),
            ({"model": 5}, "model"), ({"logit_bias": [1]}, "logit_bias"), ({"response_format": {"type": "json_object"}},
             "response_format"), ({"tools": "x"}, "tools"), ({"stop_token_ids": [-5]}, "stop_token_ids"),
        ):
            self.refused(CHAT, chat("x", **more), param=param)
        self.refused(COMPLETIONS, completion("x", suffix="y"), param="suffix")
        self.refused(CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]})
        self.assertEqual(self.refused(CHAT, chat("x", model="gpt-4"), status=404)["code"], "model_not_found")
        self.refused(COMPLETIONS, completion("x", stop_token_ids=[5], logit_bias={"99999999": 1}))

    def test_unknown_fields_are_ignored(self):
        self.ok(CHAT, chat("x", store=True, metadata={"a": "b"}, parallel_tool_calls=False, service_tier="auto"))

    def test_large_bodies(self):
        self.refused(COMPLETIONS, b" " * (3 << 20), status=413)
        connection = self.server.connection()
        connection.request("POST", COMPLETIONS, iter([b" " * 65536] * 64), {}, encode_chunked=True)
        self.assertEqual(connection.getresponse().status, 413)
        connection.close()
        before = self.server.resident_bytes()
        with self.server.raw() as raw:  # a body without end is cut, not kept
            raw.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n")
            with self.assertRaises(OSError):
                for _ in range(5000):
                    raw.sendall(b" " * 65536)
        self.assertLess(self.server.resident_bytes() - before, 64 << 20)

    def test_large_and_malformed_heads(self):
        with self.server.raw() as raw:
            try:
                raw.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Large: " + b"a" * (10 << 20) + b"\r\n\r\n")
            except OSError:
                pass  # refused while sending
            head = receive_all(raw)
            self.assertTrue(head == b"" or head.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400")), head[:100])
        for text in (b"\r\n\r\n", b"GET\r\n\r\n", b"\x00\x01\x02\r\n\r\n", b"GET /health\r\n\r\n",
                     b"GET /health HTTP/9.9\r\n\r\n", b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
                     b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
                     b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"):
            with self.server.raw(timeout=1) as raw:
                raw.sendall(text)
                answer = receive_all(raw)
                self.assertNotRegex(answer, b"^HTTP/1.1 5(?!05)")
        self.assertEqual(self.server.get("/health").status, 200)

    def tearDown(self):
        self.assertEqual(self.server.get("/health").status, 200)


class Load(WithServer):
    arguments = ("--max-queue", "200")

    def test_64_clients_get_their_own_answers(self):
        def question(i):
            return completion(f"The secret number of child {i} is {1000 + 37 * i}. Once upon a time", max_tokens=12)

        alone = [self.text(question(i)) for i in range(32)]
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            together = list(pool.map(lambda i: self.text(question(i % 32)), range(128)))
        for i, text in enumerate(together):
            self.assertEqual(text, alone[i % 32])
        self.assertGreater(len(set(alone)), 8)

    def test_64_streams_at_once(self):
        def stream(i):
            events = self.server.events(COMPLETIONS, completion(f"Tale {i}. Once upon", max_tokens=20))
            return "".join(json.loads(e)["choices"][0]["text"] for e in events[:-1])

        alone = [stream(i) for i in range(16)]
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            together = list(pool.map(lambda i: stream(i % 16), range(128)))
        self.assertEqual(together, [alone[i % 16] for i in range(128)])

    def health_seconds(self):
        start = time.monotonic()
        self.assertEqual(self.server.get("/health").status, 200)
        return time.monotonic() - start

    def test_health_answers_beside_a_thousand_idle_connections(self):
        idle = [self.server.raw() for _ in range(1000)]
        try:
            for i, raw in enumerate(idle):  # a third silent, a third slow heads, a third slow bodies
                if i % 3 == 1:
                    raw.sendall(b"GET /health HTTP/1.1\r\nX-Slow:")
                elif i % 3 == 2:
                    raw.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
            self.assertLess(min(self.health_seconds() for _ in range(5)), 1)
            self.assertTrue(self.text(completion(max_tokens=3)))
        finally:
            for raw in idle:
                raw.close()

    def test_health_answers_beside_slow_readers(self):
        slow = []
        for _ in range(100):
            raw = self.server.raw()
            body = json.dumps(completion(max_tokens=400, ignore_eos=True, stream=True, n=2)).encode()
            raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            slow.append(raw)
        self.assertLess(min(self.health_seconds() for _ in range(5)), 1)
        for raw in slow:
            raw.close()
        self.wait_until_idle()

    def test_disconnects_stop_the_work(self):
        for stream in (False, True):
            for wait in (0.0, 0.05, 0.4):
                raw = self.server.raw()
                body = json.dumps(completion(max_tokens=400, ignore_eos=True, n=128, stream=stream)).encode()
                raw.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                time.sleep(wait)
                raw.close()
                self.wait_until_idle(5)
        self.assertTrue(self.text(completion(max_tokens=3)))


class Queue(WithServer):
    arguments = ("--max-batch", "1", "--max-queue", "2")

    def test_a_full_queue_gives_429(self):
        def ask(_):
            return self.server.post(COMPLETIONS, completion(max_tokens=300, ignore_eos=True))

        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(ask, range(32)))
        statuses = {answer.status for answer in answers}
        self.assertEqual(statuses, {200, 429})
        refused = next(answer for answer in answers if answer.status == 429)
        self.assertGreaterEqual(int(refused.headers["retry-after"]), 1)
        self.assertEqual(refused.error()["code"], "queue_full")
        self.assertTrue(self.text(completion(max_tokens=3)))


class Keys(unittest.TestCase):
    def test_keys_and_origins(self):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as keys:
            keys.write("first-key\nsecond-key\n")
            keys.flush()
            with Server(PROGRAM, MODEL, "--api-key-file", keys.name, "--cors-origin", "*") as server:
                self.assertEqual(server.get("/health").status, 200)
                for path in ("/v1/models", "/version", "/nowhere"):
                    self.assertEqual(server.get(path).status, 401)
                for path in (CHAT, COMPLETIONS, "/tokenize", "/detokenize", "/apply-template"):
                    answer = server.post(path, {})
                    self.assertEqual((answer.status, answer.error()["code"]), (401, "invalid_api_key"))
                for key, status in (("first-key", 200), ("second-key", 200), ("first-ke", 401), ("", 401)):
                    answer = server.get("/v1/models", headers={"Authorization": "Bearer " + key})
                    self.assertEqual(answer.status, status)
                preflight = server.request("OPTIONS", CHAT, headers={"Origin": "https://a.example"})
                self.assertEqual(preflight.headers["Access-Control-Allow-Origin"], "*")
                self.assertIn("POST", preflight.headers["Access-Control-Allow-Methods"])


class Shutdown(unittest.TestCase):
    def drain(self, with_signal):
        with Server(PROGRAM, MODEL) as server:
            done = []
            body = completion(max_tokens=300, ignore_eos=True, n=8)
            thread = threading.Thread(target=lambda: done.append(server.post(COMPLETIONS, body)))
            thread.start()
            time.sleep(0.1)
            status = server.stop(with_signal)
            thread.join()
            self.assertEqual(status, 0)
            self.assertEqual(done[0].status, 200)
            self.assertEqual(len(done[0].json()["choices"]), 8)

    def test_sigterm_drains_and_exits_0(self):
        self.drain(signal.SIGTERM)

    def test_sigint_drains_and_exits_0(self):
        self.drain(signal.SIGINT)

    def test_the_drain_has_an_end(self):
        with Server(PROGRAM, MODEL, "--drain-seconds", "0") as server:
            done = []
            body = completion(max_tokens=400, ignore_eos=True, n=128)
            thread = threading.Thread(target=lambda: done.append(server.post(COMPLETIONS, body)))
            thread.start()
            time.sleep(0.3)
            start = time.monotonic()
            self.assertEqual(server.stop(), 0)
            self.assertLess(time.monotonic() - start, 10)
            thread.join()
            self.assertEqual(done[0].status, 503)

    def test_a_taken_port_ends_with_status_1(self):
        with Server(PROGRAM, MODEL) as server:
            command = [PROGRAM, "serve", MODEL, "--port", str(server.port)]
            result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60)
            self.assertEqual(result.returncode, 1)
            self.assertIn(str(server.port), result.stderr.decode())


if __name__ == "__main__":
    bisup_server.run_tests()
