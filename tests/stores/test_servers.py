"""The object stores that other tests stand on do what their fixtures say: they keep data, and spoil it when told to."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import IncompleteRead, RemoteDisconnected
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Barrier, Thread

import fsspec
import pytest
from stores import proxy as proxy_program
from stores import servers
from stores.fixtures import running
from stores.proxy import FATES, Plan, Proxy
from stores.servers import Server, UnavailableError, answers

BODY = bytes(range(256)) * 400
only_azurite = pytest.mark.parametrize("remote", ["azurite"], indirect=True)


class Hello(BaseHTTPRequestHandler):
    """A server that counts what it is asked, and answers with BODY over a connection that stays open."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hello():
    """A proxy before a plain HTTP server."""
    Hello.asked = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    proxy = Proxy(server.server_address[1]).start()
    yield proxy
    proxy.stop()
    server.shutdown()
    server.server_close()


def get(port: int, timeout: float = 20) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=timeout) as answer:
        return bytes(answer.read())


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def files(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The driver of an address and the path in it."""
    return fsspec.core.url_to_fs(uri)


def test_what_is_put_is_there_and_comes_back(remote, tmp_path: Path):
    (tmp_path / "here").write_bytes(BODY)
    fs, folder = files(remote.uri())
    fs.put_file(str(tmp_path / "here"), f"{folder}/deep/there")
    fs.get_file(f"{folder}/deep/there", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == BODY
    assert fs.find(folder) == [f"{folder}/deep/there"]


def test_an_address_is_fresh_each_time(remote):
    one, other = remote.uri("models"), remote.uri("models")
    assert one != other
    assert one.startswith("abfs://models-" if remote.name == "azurite" else "s3://models-")
    fs, folder = files(other)
    assert fs.find(folder) == []


def test_of_eight_who_create_a_file_at_once_one_does(remote):
    fs, folder = files(remote.uri())
    together = Barrier(8)

    def create(i: int) -> bool:
        together.wait()
        try:
            fs.pipe_file(f"{folder}/commit.json", str(i).encode(), mode="create")
            return True
        except FileExistsError:
            return False

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert won.count(True) == 1
    assert fs.cat_file(f"{folder}/commit.json") == str(won.index(True)).encode()


def test_a_program_of_its_own_reaches_the_store(remote):
    uri = f"{remote.uri()}/word"
    code = f"import fsspec; fs, path = fsspec.core.url_to_fs({uri!r}); fs.pipe_file(path, b'yes')"
    subprocess.run([sys.executable, "-c", code], env=remote.environment, check=True)
    fs, path = files(uri)
    assert fs.cat_file(path) == b"yes"


@only_azurite
def test_a_restart_keeps_the_data_and_the_port(remote):
    port = remote.port
    fs, folder = files(remote.uri())
    fs.pipe_file(f"{folder}/kept", b"yes")
    remote.restart()
    assert remote.port == port
    assert fs.cat_file(f"{folder}/kept") == b"yes"


def test_a_killed_server_is_gone_until_it_is_started(remote):
    remote.kill()
    assert not answers(remote.port)
    remote.uri()
    assert answers(remote.port)


def test_a_server_that_does_not_start_says_why(tmp_path: Path):
    program = [sys.executable, "-c", "raise SystemExit('no room')"]
    with pytest.raises(UnavailableError, match="no room"):
        Server(lambda _: program, tmp_path / "log").start()


def test_a_server_does_not_outlive_who_started_it(tmp_path: Path):
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(proxy_program.__file__).parent.parent)!r})
from pathlib import Path
from stores.servers import Server
server = Server(lambda port: [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)], Path("log"))
server.start()
print(server.port, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == -9
    wait_until(lambda: not answers(int(done.stdout)))


@pytest.mark.parametrize("required, outcome", [("0", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_a_missing_server_is_told_or_where_it_is_required_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, required: str, outcome: type[Exception]
):
    monkeypatch.setenv("MICROSTAGES_REQUIRE_STORES", required)
    monkeypatch.setattr(servers, "AZURITE", Path("/nonexistent"))
    with pytest.raises(outcome, match=r"(?i)object stores .*not tested: Azurite is not installed: make stores"):
        next(running(servers.azurite, tmp_path_factory))


def test_a_proxy_without_a_plan_changes_nothing(spoiled):
    fs, folder = files(spoiled.uri())
    fs.pipe_file(f"{folder}/file", BODY)
    assert fs.cat_file(f"{folder}/file") == BODY
    assert set(spoiled.proxy.seen) == {"pass"}


def test_a_proxy_hears_what_the_server_keeps(spoiled):
    fs, folder = files(spoiled.uri())
    fs.pipe_file(f"{folder}/a file", BODY)
    assert [p.rpartition("/")[2] for p in spoiled.proxy.held if p.endswith("file")] == ["a file"]
    fs.rm_file(f"{folder}/a file")
    assert not [p for p in spoiled.proxy.held if p.endswith("file")]


def test_drivers_really_go_through_the_proxy(spoiled):
    fs, folder = files(spoiled.uri())
    fs.pipe_file(f"{folder}/file", BODY)
    spoiled.proxy.follow(Plan(delay=1.0, seconds=0.01))
    assert fs.cat_file(f"{folder}/file") == BODY
    assert spoiled.proxy.seen["delay"] >= 1


def test_an_answer_ends_in_the_middle(hello: Proxy):
    hello.follow(Plan(script=("truncate",)))
    with pytest.raises(IncompleteRead) as error:
        get(hello.port)
    assert len(error.value.partial) == len(BODY) // 2
    assert get(hello.port) == BODY


def test_a_dropped_question_never_reaches_the_server(hello: Proxy):
    hello.follow(Plan(script=("drop",)))
    with pytest.raises((ConnectionResetError, RemoteDisconnected)):
        get(hello.port)
    assert Hello.asked == 0


def test_a_lost_answer_was_given(hello: Proxy):
    hello.follow(Plan(script=("lose",)))
    with pytest.raises((ConnectionResetError, RemoteDisconnected)):
        get(hello.port)
    assert Hello.asked == 1


def test_silence_lasts_until_the_caller_gives_up(hello: Proxy):
    hello.follow(Plan(script=("silence",)))
    with pytest.raises(TimeoutError):
        get(hello.port, timeout=0.5)
    assert Hello.asked == 0


def test_switched_off_it_refuses_and_on_again_it_answers(hello: Proxy):
    port = hello.port
    hello.off()
    with pytest.raises(urllib.error.URLError, match="refused"):
        get(port)
    hello.on()
    assert get(port) == BODY


def test_a_plan_is_the_same_on_every_run():
    def drawn(plan: Plan) -> list[str]:
        return [fate for fate, _ in zip(plan.fates(), range(500), strict=False)]

    plan = Plan(script=("lose",), seed=7, drop=0.1, truncate=0.1, silence=0.05)
    assert drawn(plan) == drawn(plan) != drawn(Plan(script=("lose",), seed=8, drop=0.1, truncate=0.1, silence=0.05))
    assert drawn(plan)[0] == "lose"
    assert set(drawn(plan)[1:]) == {"pass", "drop", "truncate", "silence"}
    assert sum(fate != "pass" for fate in drawn(Plan(drop=0.5, most=3))) == 3
    assert set(FATES) == {f for f in FATES if drawn(Plan(**{f: 1.0})) == [f] * 500}


def test_the_proxy_is_a_program_too(hello: Proxy):
    command = [sys.executable, proxy_program.__file__, str(hello.port), "--truncate", "1", "--most", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        port = json.loads(program.stdout.readline())["port"]
        with pytest.raises(IncompleteRead):
            get(port)
        assert get(port) == BODY
        program.stdin.write("off\n")
        program.stdin.flush()
        assert json.loads(program.stdout.readline()) == {"truncate": 1, "pass": 1}
        assert not answers(port)
        program.stdin.close()
    assert program.returncode == 0
