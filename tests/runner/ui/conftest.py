"""A project with some runs, and its pages: by HTTP, and in a browser."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runner.store import Store
from runner.ui.answers import Answers
from runner.ui.server import Server

HOSTILE = "<script>window.pwned=1</script><img src=x onerror=window.pwned=2>"
TRAIN = r"""
for i in 1 2 3 4 5 6 7 8; do
    echo "{\"event\": \"metric\", \"step\": $i, \"loss\": $((9 - i)).$rank, \"eval_loss\": 1.$i}"
done
echo '{"event": "progress", "label": "training", "done": 8, "total": 8, "unit": "steps", "loss": "1.5"}'
printf 'trained \033[31mred\033[0m \033]0;title\007with rank %s\r\nhalf\rwhole\n' "$rank" >&2
printf '{"rank": %s}' "$rank" > "$out/config.json"
printf '%s\n' 'HOSTILE' > "$out/words.txt"
printf 'a\0b' > "$out/weights.bin"
printf '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>' > "$out/curve.svg"
""".replace("HOSTILE", HOSTILE)
FAIL = f"""
if [ "$fail" = yes ]; then echo '{HOSTILE}' >&2; exit 3; fi
cp "$model/config.json" "$out/"
"""
# Works until it is told to go on, and says how far it is.
WAIT = r"""
i=0
while [ ! -e "$TRACE.go" ]; do
    i=$((i + 1))
    echo "{\"event\": \"progress\", \"label\": \"working\", \"done\": $i, \"total\": 100000, \"unit\": \"rows\"}"
    echo "line $i of words" >&2
    sleep 0.1
done
echo "the last words" >&2
cp "$model/config.json" "$out/"
"""
PIPELINE = """\
name: shown
params: {rank: 4, fail: "no"}
stages:
  trained: {uses: ./train, params: {rank: "${{ params.rank }}"}}
  checked: {uses: ./check, inputs: {model: "${{ stages.trained.out }}"}, params: {fail: "${{ params.fail }}"}}
"""


@dataclass
class Reply:
    """What a server answered."""

    status: int
    head: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Pages:
    """A server of a project, and a client that was let in."""

    hostile = HOSTILE

    def __init__(self, project: Any) -> None:
        store = Store(str(project.folder / ".runner/store"))
        self.project = project
        self.server = Server(Answers("shown", store, project.folder / ".runner"))
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.cookie = f"{self.server.cookie}={self.server.secret}"

    def url(self, path: str) -> str:
        """An address that lets a browser in."""
        return f"http://{self.host}{path}?token={self.server.token}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=90)

    def ask(self, path: str, method: str = "GET", head: dict[str, str | None] | None = None) -> Reply:
        """A request with the cookie; `head` adds, replaces, or with None leaves out."""
        connection = self.connect()
        sent = {"Host": self.host, "Cookie": self.cookie, **(head or {})}
        connection.putrequest(method, path, skip_host=True)
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        reply = Reply(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        connection.close()
        return reply

    def get(self, path: str) -> Any:
        """An answer that must be there."""
        reply = self.ask(path)
        assert reply.status == 200, reply.text
        return reply.json

    def stream(self, path: str) -> Stream:
        """The events of an address."""
        return Stream(self, path)

    def go(self) -> None:
        """Let the stage `slow` end."""
        (self.project.folder / "trace.go").touch()

    @contextmanager
    def running(self) -> Iterator[None]:
        """While `runner up` runs; it ends well, unless something else is wrong already."""
        runner = self.project.start("up")
        try:
            yield
            out, err = runner.communicate(timeout=90)
            assert runner.returncode == 0, out + err
        finally:
            self.go()
            runner.kill()
            runner.communicate()

    def close(self) -> None:
        self.server.shutdown()
        self.server.stop()
        self.thread.join()


class Stream:
    """Server-sent events as they come; ends where the server ends it."""

    def __init__(self, pages: Pages, path: str) -> None:
        self.connection = pages.connect()
        self.connection.request("GET", path, headers={"Host": pages.host, "Cookie": pages.cookie})
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200, self.answer.read()

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        name = ""
        while line := self.answer.readline():
            text = line.decode().rstrip("\n")
            if text.startswith("event: "):
                name = text.removeprefix("event: ")
            elif text.startswith("data: "):
                yield name, json.loads(text.removeprefix("data: "))

    def close(self) -> None:
        self.connection.close()


def new_project(request: pytest.FixtureRequest, folder: Path) -> Any:
    """A project of `tests/runner`, for longer than one test."""
    shared = request.config.pluginmanager.get_plugin(str(Path(__file__).parent.parent / "conftest.py"))
    made = shared.Project(folder)
    made.stage("train", TRAIN, outputs={"out": "model"}, params={"rank": {"type": "integer", "default": 4}})
    made.stage("check", FAIL, inputs={"model": ["model"]}, params={"fail": {"type": "string", "default": "no"}})
    made.pipeline(PIPELINE)
    return made


@pytest.fixture(scope="session")
def with_runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A project after four runs: all new, another rank, a failure, all reused."""
    made = new_project(request, tmp_path_factory.mktemp("shown"))
    for options, code in (((), 0), (("--set", "params.rank=8"), 0), (("--set", "params.fail=yes"), 70), ((), 0)):
        done = made.run("up", *options)
        assert done.code == code, done.err
    return made


@pytest.fixture(scope="session")
def shown(with_runs: Any) -> Iterator[Pages]:
    """The pages of that project, which no test changes."""
    made = Pages(with_runs)
    yield made
    made.close()


@pytest.fixture
def own(request: pytest.FixtureRequest, project: Any) -> Iterator[Pages]:
    """The pages of a project of one's own, which has no run yet."""
    new_project(request, project.folder)
    made = Pages(project)
    yield made
    made.close()


@pytest.fixture
def waits(own: Pages) -> Pages:
    """That project with a stage `slow` at its end, which works until `waits.go()`."""
    own.project.stage("wait", WAIT, inputs={"model": ["model"]})
    own.project.pipeline(PIPELINE + '  slow: {uses: ./wait, inputs: {model: "${{ stages.trained.out }}"}}\n')
    return own
