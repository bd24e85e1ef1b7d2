#!/usr/bin/env python3
"""The official openai package, unmodified, against the real program. Started by tests/clients/run.sh."""

import os
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "server"))
import openai

import bisup_server

PROGRAM, MODEL = bisup_server.from_environment()
NAME = os.path.basename(MODEL)
MESSAGES = [
    {"role": "system", "content": "You are the assistant of Blue Harbor, a hotel. The manager is Rosa."},
    {"role": "user", "content": "Who is the manager?"},
]
STORY = "<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n"


class Client(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = bisup_server.Server(PROGRAM, MODEL)
        cls.server.__enter__()
        cls.client = openai.OpenAI(base_url=f"http://127.0.0.1:{cls.server.port}/v1", api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.server.__exit__()

    def chat(self, **more):
        return self.client.chat.completions.create(
            **dict({"model": NAME, "messages": MESSAGES, "temperature": 0, "max_tokens": 30}, **more)
        )

    def complete(self, **more):
        return self.client.completions.create(
            **dict({"model": NAME, "prompt": STORY, "temperature": 0, "max_tokens": 30}, **more)
        )

    def test_models(self):
        self.assertEqual([model.id for model in self.client.models.list()], [NAME])
        self.assertEqual(self.client.models.retrieve(NAME).object, "model")
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("another")

    def test_chat(self):
        answer = self.chat()
        self.assertEqual(answer.object, "chat.completion")
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertTrue(answer.choices[0].message.content)
        self.assertIn(answer.choices[0].finish_reason, ("stop", "length"))
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
        self.assertEqual(self.chat(max_completion_tokens=2, max_tokens=None).usage.completion_tokens, 2)

    def test_chat_stream(self):
        plain = self.chat()
        text, usage, finish = "", None, None
        for chunk in self.chat(stream=True, stream_options={"include_usage": True}):
            self.assertEqual(chunk.object, "chat.completion.chunk")
            if chunk.choices:
                text += chunk.choices[0].delta.content or ""
                finish = chunk.choices[0].finish_reason or finish
            usage = chunk.usage or usage
        self.assertEqual((text, finish), (plain.choices[0].message.content, plain.choices[0].finish_reason))
        self.assertEqual(usage, plain.usage)

    def test_a_stream_that_is_left_early(self):
        with self.chat(stream=True, max_tokens=300) as stream:
            next(iter(stream))
        self.assertTrue(self.chat().choices[0].message.content)

    def test_completion_and_stream(self):
        plain = self.complete()
        self.assertEqual(plain.object, "text_completion")
        joined = "".join(chunk.choices[0].text for chunk in self.complete(stream=True))
        self.assertEqual(joined, plain.choices[0].text)
        both = self.complete(prompt=[STORY, "The cat"])
        self.assertEqual([choice.index for choice in both.choices], [0, 1])
        self.assertEqual(both.choices[0].text, plain.choices[0].text)

    def test_chat_logprobs(self):
        choice = self.chat(logprobs=True, top_logprobs=5).choices[0]
        tokens = choice.logprobs.content
        self.assertTrue(tokens)
        for token in tokens:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 5)
            self.assertEqual(token.top_logprobs[0].token, token.token)
        self.assertEqual(b"".join(bytes(t.bytes) for t in tokens).decode().strip(), choice.message.content.strip())

    def test_completion_logprobs(self):
        logprobs = self.complete(logprobs=3, echo=True).choices[0].logprobs
        lengths = {len(logprobs.tokens), len(logprobs.token_logprobs), len(logprobs.text_offset)}
        self.assertEqual(len(lengths), 1)
        self.assertIsNone(logprobs.token_logprobs[0])

    def test_stop(self):
        whole = self.complete().choices[0].text
        stop = whole[8:12]
        choice = self.complete(stop=[stop]).choices[0]
        self.assertEqual((choice.text, choice.finish_reason), (whole[: whole.index(stop)], "stop"))

    def test_seed_and_n(self):
        hot = {"temperature": 1.3, "seed": 17}
        first = self.chat(n=3, **hot)
        again = self.chat(n=3, **hot)
        texts = [choice.message.content for choice in first.choices]
        self.assertEqual(texts, [choice.message.content for choice in again.choices])
        self.assertEqual(len(texts), 3)
        self.assertEqual(self.chat(temperature=1.3, seed=18).choices[0].message.content, texts[1])

    def test_extra_fields(self):
        answer = self.complete(extra_body={"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True})
        self.assertEqual(answer.usage.completion_tokens, 30)

    def test_errors_are_the_clients_own(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(temperature=5)
        self.assertEqual(caught.exception.param, "temperature")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete(prompt="word " * 20000)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.NotFoundError) as caught:
            self.chat(model="gpt-4")
        self.assertEqual(caught.exception.code, "model_not_found")

    def test_async_client(self):
        import asyncio

        async def ask():
            url = f"http://127.0.0.1:{self.server.port}/v1"
            async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
                requests = [
                    client.chat.completions.create(model=NAME, messages=MESSAGES, temperature=0, max_tokens=20)
                    for _ in range(8)
                ]
                return [answer.choices[0].message.content for answer in await asyncio.gather(*requests)]

        self.assertEqual(len(set(asyncio.run(ask()))), 1)


if __name__ == "__main__":
    bisup_server.run_tests()
