"""A served model for tests: the program itself, or its server in this process over an engine that says a script."""

from __future__ import annotations

import http.client
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from microstages_infer.api import Served
from microstages_infer.connection import Done, Times
from microstages_infer.http_server import Server
from microstages_infer.rows import swap_out
from microstages_infer.sampling import Sampling
from microstages_infer.scheduler import Scheduler

WAIT = 60  # seconds until a test gives up


class Program:
    """`infer --serve` as a program of its own."""

    def __init__(self, folder: Path, *arguments: object, **environment: str) -> None:
        command = [sys.executable, "-m", "microstages_infer.cli", *map(str, arguments), "--serve"]
        if "--port" not in command:
            command += ["--port", "0"]
        self.stderr_file = folder / "stderr"
        with self.stderr_file.open("w") as stderr:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**os.environ, **environment}
            )
        self.events: list[dict[str, Any]] = []
        self._heard: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self.ready = self.event("ready")
        self.url, self.port, self.model = self.ready["url"], self.ready["port"], self.ready["model"]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._heard.put(json.loads(line))
        self._heard.put(None)

    def event(self, kind: str) -> dict[str, Any]:
        """The next event of a kind. Fails where the program ends without one."""
        while True:
            event = self._heard.get(timeout=WAIT)
            assert event is not None, self.stderr
            self.events.append(event)
            if event["event"] == kind:
                return event

    @property
    def stderr(self) -> str:
        return self.stderr_file.read_text()

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(WAIT)


class Gate:
    """Rows that say the bytes of each prompt, one a step, as far as they are let: `let` steps, or all where None."""

    together, how = True, "a script"

    def __init__(self, let: int | None = 0) -> None:
        self.texts: list[list[int]] = []
        self.places: list[int] = []
        self.changed = threading.Condition()
        self.steps, self._let = 0, let
        self.broken: Exception | None = None  # raised at the next step
        self.stuck: Exception | None = None  # raised where the next row leaves

    def let(self, steps: int | None) -> None:
        """That many steps more; None: any."""
        with self.changed:
            self._let = None if steps is None else (self._let or 0) + steps
            self.changed.notify_all()

    def until(self, true: Any) -> None:
        """Wait until something is so; the thread of the model tells of each change."""
        with self.changed:
            assert self.changed.wait_for(true, WAIT)

    def join(self, ids: Sequence[int], room: int) -> Any:  # noqa: ARG002
        with self.changed:
            self.texts.append(list(ids))
            self.places.append(0)
            self.changed.notify_all()
        return self._logits(len(self.texts) - 1)

    def step(self, tokens: Sequence[int]) -> Any:
        with self.changed:
            assert self.changed.wait_for(lambda: self._let is None or self._let > 0, WAIT)
            if self._let is not None:
                self._let -= 1
            self.steps += 1
            self.changed.notify_all()
        if self.broken is not None:
            error, self.broken = self.broken, None
            raise error
        self.places = [p + 1 for p in self.places]
        return np.stack([self._logits(row) for row in range(len(tokens))])

    def leave(self, row: int) -> None:
        if self.stuck is not None:
            error, self.stuck = self.stuck, None
            raise error
        with self.changed:
            swap_out(self.texts, row)
            swap_out(self.places, row)
            self.changed.notify_all()

    def clear(self) -> None:
        self.texts, self.places = [], []

    def _logits(self, row: int) -> Any:
        text, place = self.texts[row], self.places[row]
        logits = np.zeros(257, np.float32)
        logits[text[place] if place < len(text) else 256] = 1
        return logits


def served(**changes: Any) -> Served:
    """A model whose tokens are bytes, and 256, which ends."""
    tokenizer = SimpleNamespace(
        encode=lambda text, **_: SimpleNamespace(ids=list(text.encode())),
        decode=lambda ids, **_: bytes(ids).decode(errors="replace"),
    )
    text = SimpleNamespace(tokenizer=tokenizer, chat_template=None, folder="script")
    engine: Any = SimpleNamespace(text=text, stop_ids=frozenset({256}), context=200, vocabulary=257, device="cpu")
    wrap: Any = SimpleNamespace(prompt=lambda text: text)
    values: dict[str, Any] = {
        "name": "script", "digest": "sha256:00", "created": 1, "engine": engine, "wrap": wrap, "sampling": Sampling(),
        "stop": (), "most": None, "form": None,
    }  # fmt: skip
    return Served(**{**values, **changes})


class Local:
    """The server in this process, over `Gate`."""

    def __init__(
        self, let: int | None = 0, most: int = 2, line: int = 2, key: str | None = None, times: Times | None = None,
        **changes: Any,
    ) -> None:  # fmt: skip
        self.gate = Gate(let)
        self.wrong: list[str] = []
        self.told: queue.SimpleQueue[Done] = queue.SimpleQueue()
        model = served(**changes)
        self.scheduler = Scheduler(model.engine, self.gate, most, line, self.wrong.append)
        self.server = Server("127.0.0.1", 0, key, self.told.put, times)
        self.server.listen(model, self.scheduler, most + line)
        self.port = self.server.server_port
        self.open: list[http.client.HTTPConnection] = []

    def connect(self) -> http.client.HTTPConnection:
        self.open.append(http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT))
        return self.open[-1]

    def send(self, prompt: str, **more: Any) -> http.client.HTTPConnection:
        """A completion that is asked for; the answer is not read yet."""
        connection = self.connect()
        connection.request("POST", "/v1/completions", json.dumps({"prompt": prompt, "max_tokens": 50, **more}))
        return connection

    def start(self, *prompts: str, **more: Any) -> list[http.client.HTTPConnection]:
        """Requests that run, one step apart; the model waits in a step."""
        made = []
        for running, prompt in enumerate(prompts, self.scheduler.counts[0]):
            made.append(self.send(prompt, **more))
            if running:
                self.counts(running, 1)
                self.gate.let(1)
            self.counts(running + 1, 0)
        return made

    def counts(self, running: int, waiting: int) -> None:
        """Until that many run and wait."""
        pause = threading.Event()
        for _ in range(WAIT * 100):
            if self.scheduler.counts == (running, waiting):
                return
            pause.wait(0.01)
        raise AssertionError(f"{self.scheduler.counts} run and wait, not {(running, waiting)}")

    def ask(self, prompt: str, **more: Any) -> tuple[int, Any]:
        return answer(self.send(prompt, **more))

    def raw(self, request: bytes) -> bytes:
        """What comes back on a connection until it is closed."""
        import socket

        with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT) as s:
            s.sendall(request)
            found = b""
            while part := s.recv(65536):
                found += part
        return found

    def close(self) -> None:
        self.gate.let(None)
        for connection in self.open:
            connection.close()
        self.scheduler.close(WAIT)
        self.server.shutdown()
        self.server.server_close()


def answer(connection: http.client.HTTPConnection) -> tuple[int, Any]:
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def events(lines: Any) -> list[Any]:
    """The data of server-sent events; the last is `[DONE]` where it is."""
    data = [line[6:].strip() for line in lines if line.startswith(b"data: ")]
    return [d.decode() if d == b"[DONE]" else json.loads(d) for d in data]
