"""Starts the real program for tests, and speaks HTTP to it with the standard library only."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def from_environment():
    """The program and the model folder to test, from BISUP and MODEL; absolute paths."""
    program = os.environ.get("BISUP", os.path.join(ROOT, "build", "release", "bisup"))
    model = os.environ.get("MODEL", os.path.join(ROOT, "models", "demo"))
    return os.path.abspath(program), os.path.abspath(model)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body.decode("utf-8"))

    def error(self):
        return self.json()["error"]


class Server:
    """A running `bisup serve`; a context manager. Its log is kept and shown when it does not start."""

    def __init__(self, program, model, *arguments):
        self.port = free_port()
        self.log = tempfile.TemporaryFile(mode="w+b")
        command = [program, "serve", model, "--host", "127.0.0.1", "--port", str(self.port), *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=self.log)

    def __enter__(self):
        deadline = time.monotonic() + 120  # sanitizers on a busy machine
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.get("/health", timeout=2).status == 200:
                    return self
            except OSError:
                time.sleep(0.05)
        self.process.kill()
        raise RuntimeError("the server did not start:\n" + self.log_text())

    def __exit__(self, *unused):
        if self.process.poll() is None:
            self.stop()
        self.log.close()

    def stop(self, with_signal=signal.SIGTERM, timeout=60):
        """Ends the server and returns its exit status."""
        self.process.send_signal(with_signal)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def log_text(self):
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")

    def connection(self, timeout=120):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None, timeout=120):
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        if isinstance(body, str):
            body = body.encode("utf-8")
        connection = self.connection(timeout)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, body, **options):
        return self.request("POST", path, body, **options)

    def events(self, path, body):
        """Posts with stream = true; returns the data of all events, each of them a str."""
        connection = self.connection()
        try:
            connection.request("POST", path, json.dumps(dict(body, stream=True)))
            response = connection.getresponse()
            text = response.read()
            if response.status != 200:
                raise AssertionError(f"status {response.status}: {text!r}")
        finally:
            connection.close()
        events = []
        for event in text.split(b"\n\n"):
            event = event.decode("utf-8")  # every event alone must be valid
            if event.startswith("data: "):
                events.append(event[6:])
            elif event and not event.startswith(":"):
                raise AssertionError(f"not an event: {event!r}")
        return events

    def raw(self, timeout=30):
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self):
        with open(f"/proc/{self.process.pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def receive_all(connection):
    data = b""
    while True:
        try:
            piece = connection.recv(65536)
        except (ConnectionError, TimeoutError):
            return data
        if not piece:
            return data
        data += piece


class CountingResult(unittest.TextTestResult):
    passed = 0

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1


def run_tests():
    """Runs the tests of the main module; the last line is "N passed, N failed". Ends the process."""
    runner = unittest.TextTestRunner(verbosity=2, resultclass=CountingResult)
    result = unittest.main(testRunner=runner, exit=False).result
    failed = len(result.failures) + len(result.errors)
    sys.stderr.flush()
    for test, reason in result.skipped:
        print(f"skipped: {test.id()}: {reason}")
    skipped = f", {len(result.skipped)} skipped" if result.skipped else ""
    print(f"{result.passed} passed, {failed} failed{skipped}")
    sys.exit(1 if failed else 0)
