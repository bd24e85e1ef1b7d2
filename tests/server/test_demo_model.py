"""The demo model served by the real program: the answers of its reference (PyTorch), and how many of 200 unseen
questions it answers exactly."""

import json
import os
import subprocess
import sys
import unittest
from concurrent.futures import ThreadPoolExecutor

import bisup_server

PROGRAM, MODEL = bisup_server.from_environment()
TOOLS = os.path.join(bisup_server.ROOT, "tools", "demo-model")
UNSEEN_SEED = 20261  # no training run uses it
QUESTIONS = 200
BAR = 0.90


def questions():
    command = [sys.executable, os.path.join(TOOLS, "gen.py"), "--seed", str(UNSEEN_SEED), "--count", str(QUESTIONS),
               "--json"]
    lines = subprocess.run(command, capture_output=True, check=True, cwd=TOOLS).stdout.decode().splitlines()
    return [json.loads(line) for line in lines]


def ask(server, case):
    messages = [{"role": "system", "content": case["system"]}, {"role": "user", "content": case["question"]}]
    answer = server.post("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 64})
    assert answer.status == 200, answer.body
    return answer.json()["choices"][0]["message"]["content"]


class DemoModel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = bisup_server.Server(PROGRAM, MODEL, "--no-log-requests").__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def test_prompt_ids_and_answers_are_those_of_the_reference(self):
        with open(os.path.join(TOOLS, "reference.json")) as file:
            cases = json.load(file)["conversations"]
        self.assertGreaterEqual(len(cases), 5)
        for case in cases:
            tokens = self.server.post("/tokenize", {"messages": case["messages"]}).json()
            self.assertEqual(tokens["tokens"], case["prompt_ids"])
            answer = self.server.post("/v1/chat/completions",
                                      {"messages": case["messages"], "temperature": 0, "max_tokens": 64}).json()
            self.assertEqual(answer["choices"][0]["message"]["content"], case["answer"])

    def test_exact_answers_to_unseen_questions(self):
        cases = questions()
        self.assertEqual(len(cases), QUESTIONS)
        with ThreadPoolExecutor(16) as pool:  # also a check that no answer lands at another client
            answers = list(pool.map(lambda case: ask(self.server, case), cases))
        exact = sum(answer == case["answer"] for answer, case in zip(answers, cases))
        print(f"exact answers: {exact} of {QUESTIONS} (seed {UNSEEN_SEED})")
        self.assertGreaterEqual(exact, BAR * QUESTIONS)


if __name__ == "__main__":
    bisup_server.run_tests()
