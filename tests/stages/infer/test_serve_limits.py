"""Given clients that are many, slow, gone or wrong, then the server keeps its limits and says so.

The server is real; the model says a script, one byte a step, and only as many steps as the test lets it.
"""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from microstages.reporting import Reporter
from microstages_infer.connection import BODY, Done, Times
from microstages_infer.serve import Place, Settings
from stages.infer.serving import WAIT, Local, answer, events


@pytest.fixture
def local() -> Iterator[Callable[..., Local]]:
    """`local(…)` makes a server that is closed at the end."""
    made: list[Local] = []

    def make(*arguments: Any, **options: Any) -> Local:
        made.append(Local(*arguments, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_more_than_may_wait_are_turned_away_and_the_others_answered(local: Callable[..., Local]) -> None:
    server = local(most=2, line=1)
    running = server.start("one", "two")
    waiting = server.send("three")
    server.counts(2, 1)
    refused = server.send("four")
    response = refused.getresponse()
    assert response.status == 429 and int(response.headers["Retry-After"]) > 0
    assert json.loads(response.read())["error"]["code"] == "rate_limit_exceeded"
    # the connection is good for another try
    server.gate.let(None)
    said = [answer(c)[1]["choices"][0]["text"] for c in (*running, waiting)]
    assert said == ["one", "two", "three"]
    refused.request("POST", "/v1/completions", json.dumps({"prompt": "four"}))
    assert answer(refused)[1]["choices"][0]["text"] == "four"


def test_who_waits_joins_what_runs(local: Callable[..., Local]) -> None:
    """Given a long answer that has begun, when another request comes, then it is answered before the first ends."""
    server = local(most=2)
    long, short = server.start("a long answer that goes on and on", "hi")
    server.gate.let(2)
    assert answer(short)[1]["choices"][0]["text"] == "hi"
    assert server.scheduler.counts == (1, 0)
    server.gate.let(None)
    assert answer(long)[1]["choices"][0]["text"] == "a long answer that goes on and on"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("state", ["running", "waiting"])
def test_a_client_that_goes_away_stops_its_answer(local: Callable[..., Local], state: str, stream: bool) -> None:
    server = local(most=1)
    (first,) = server.start("a long answer that goes on and on", stream=stream)
    gone = first
    if state == "waiting":
        gone = server.send("never said", stream=stream)
        server.counts(1, 1)
    assert gone.sock is not None
    gone.sock.shutdown(socket.SHUT_RDWR)
    gone.close()
    done = server.told.get(timeout=WAIT)
    assert done.status == 499
    if state == "running":
        server.gate.let(1)  # the step that it is in
        server.gate.until(lambda: not server.gate.texts)
        assert server.gate.steps == 1
    else:
        assert server.scheduler.counts == (1, 0)
    server.counts(int(state == "waiting"), 0)


def test_told_to_stop_it_ends_what_runs_and_refuses_the_rest(local: Callable[..., Local]) -> None:
    server = local(most=1)
    (running,) = server.start("to the end", stream=True)
    waiting = server.send("never")
    server.counts(1, 1)
    closing = threading.Thread(target=server.scheduler.close, args=(WAIT,))
    closing.start()
    status, body = answer(waiting)
    assert status == 503 and body["error"]["code"] == "stopping"
    status, body = server.ask("too late")
    assert status == 503 and body["error"]["code"] == "stopping"
    health = server.connect()
    health.request("GET", "/health")
    assert answer(health) == (503, {"status": "stopping", "running": 1, "waiting": 0})
    server.gate.let(None)
    found = events(running.getresponse())
    assert "".join(e["choices"][0]["text"] for e in found[:-1]) == "to the end" and found[-1] == "[DONE]"
    closing.join(WAIT)
    assert not closing.is_alive()


def test_after_the_grace_what_still_runs_is_cut_off_and_told(local: Callable[..., Local]) -> None:
    server = local(most=2)
    stream, whole = (*server.start("a stream", stream=True), *server.start("a whole"))
    cut: list[int] = []
    closing = threading.Thread(target=lambda: cut.append(server.scheduler.close(0)))
    closing.start()
    pause = threading.Event()
    while not server.scheduler._ended:
        pause.wait(0.01)
    server.gate.let(1)  # the step that was under way
    closing.join(WAIT)
    assert cut == [2] and answer(whole)[0] == 503
    last = events(stream.getresponse())[-1]
    assert last["error"]["code"] == "stopping"


def test_an_error_of_the_model_is_told_and_the_next_request_is_answered(local: Callable[..., Local]) -> None:
    server = local()
    (asked,) = server.start("x and y")
    server.gate.broken = RuntimeError("secret: x and y")
    server.gate.let(1)
    status, body = answer(asked)
    assert status == 500 and body["error"]["message"] == "the model failed"
    assert "RuntimeError" in server.wrong[0]
    server.gate.let(None)
    assert server.ask("again")[1]["choices"][0]["text"] == "again"
    server.gate.broken = MemoryError()
    assert server.ask("more")[1]["error"]["message"] == "there is not enough memory for this"


def test_an_error_where_an_answer_leaves_ends_nothing_but_the_answers_that_run(local: Callable[..., Local]) -> None:
    server = local(None)
    server.gate.stuck = MemoryError()
    assert server.ask("more")[1]["error"]["message"] == "there is not enough memory for this"
    assert server.ask("again")[1]["choices"][0]["text"] == "again"
    connection = server.connect()
    connection.request("GET", "/health")
    assert answer(connection) == (200, {"status": "ok", "running": 0, "waiting": 0})


# --- words ---


def test_stop_texts_cut_precisely_and_nothing_half_is_streamed(local: Callable[..., Local]) -> None:
    """Tokens are bytes here: stop texts and characters are always parts of several."""
    server = local(None)
    text = "né 100 €! ST. STOP and more"
    cases: list[tuple[Any, str, str]] = [
        ("STOP", "né 100 €! ST. ", "stop"), (["zzz", "€!"], "né 100 ", "stop"), (None, text, "stop"),
        ("0 €", "né 10", "stop"),  # what the stop text begins with, behind which a character comes in pieces
        (["STOP", "ST."], "né 100 €! ", "stop"), ("é", "n", "stop"), ("more!", text, "stop"),
    ]  # fmt: skip
    for stop, wanted, why in cases:
        (choice,) = server.ask(text, stop=stop)[1]["choices"]
        assert (choice["text"], choice["finish_reason"]) == (wanted, why)
        *pieces, last, done = events(server.send(text, stop=stop, stream=True).getresponse())
        said = [p["choices"][0]["text"] for p in pieces]
        assert "".join(said) == wanted and "\ufffd" not in "".join(said) and done == "[DONE]"
        assert last["choices"][0]["finish_reason"] == why
        assert all(p["choices"][0]["finish_reason"] is None for p in pieces)
    status, body = server.ask(text, max_tokens=3)
    assert body["choices"][0] == {"index": 0, "text": "né", "logprobs": None, "finish_reason": "length"}
    assert status == 200 and body["usage"]["completion_tokens"] == 3


def test_an_old_client_gets_a_stream_that_ends_with_the_connection(local: Callable[..., Local]) -> None:
    body = b'{"prompt": "hi", "stream": true}'
    head = b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body)
    found = local(None).raw(head + body)
    assert b"chunked" not in found and found.endswith(b"data: [DONE]\n\n")


NO_REQUESTS = [
    '{"prompt": {}}', '{"prompt": {"a": 1}}', r'{"prompt": "\ud800"}', '{"temperature": NaN}',
    '{"repetition_penalty": 1e999}', "[]", "{", "\xff", "[" * 9999,
]  # fmt: skip


@pytest.mark.parametrize("value", NO_REQUESTS)
def test_what_is_no_json_or_no_number(quiet: Local, value: str) -> None:
    connection = quiet.connect()
    connection.request("POST", "/v1/completions", value.encode("latin-1"))
    status, body = answer(connection)
    assert status == 400 and body["error"]["message"]


# --- what is no request ---

HEAD = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
WRONG = {
    "no length": (f"{HEAD}\r\n", 411),
    "chunked": (f"{HEAD}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n", 411),
    "too large": (f"{HEAD}Content-Length: {BODY + 1}\r\n\r\n{{", 413),
    "a length that is none": (f"{HEAD}Content-Length: -1\r\n\r\n", 411),
    "another protocol": ("\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
    "HTTP/0.9": ("GET /health\r\n\r\n", 400),
    "another method": ("BREW /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    "a long line": ("GET /" + "a" * 70000 + " HTTP/1.1\r\n\r\n", 414),
    "many headers": (HEAD + "".join(f"X-{i}: a\r\n" for i in range(200)) + "\r\n", 431),
    "nothing there": ("GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
    "a name that is not ours": ("GET /v1/models HTTP/1.1\r\nHost: a.example\r\n\r\n", 403),
    "a page's script": (f"{HEAD}Origin: https://a.example\r\nContent-Length: 2\r\n\r\n{{}}", 403),
    "a page of nowhere": (f"{HEAD}Origin: null\r\nContent-Length: 2\r\n\r\n{{}}", 403),
}


@pytest.fixture(scope="module")
def quiet() -> Iterator[Local]:
    server = Local(None, times=Times(request=0.5, idle=0.5))
    yield server
    server.close()


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_request_gets_an_answer_all_the_same(quiet: Local, name: str) -> None:
    request, status = WRONG[name]
    head, _, body = quiet.raw(request.encode("latin-1")).partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode(), head
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


def test_a_request_that_does_not_come_in_time_holds_nobody(quiet: Local) -> None:
    """Given clients that send nothing, a part of the headers, or a part of the body, then they are let go."""
    assert quiet.raw(b"") == b""
    assert quiet.raw(b"POST /v1/completions HTTP/1.1\r\nHost: local") == b""
    found = quiet.raw(f"{HEAD}Content-Length: 20\r\n\r\n{{".encode())
    assert found.split()[1] == b"408" and json.loads(found.partition(b"\r\n\r\n")[2])["error"]["code"] == "timeout"
    assert quiet.ask("well")[0] == 200


def test_too_many_connections_are_turned_away(local: Callable[..., Local]) -> None:
    server = local(None)
    server.server._places = 3
    open_ = [server.connect() for _ in range(4)]
    for connection in open_[:3]:
        connection.connect()
        connection.request("GET", "/health")
        assert answer(connection)[0] == 200
    open_[3].request("GET", "/health")
    assert answer(open_[3])[0] == 503


def test_a_key_is_wanted_by_all_but_the_health_check(local: Callable[..., Local]) -> None:
    server = local(None, key="abc-123")
    missing, wrong = "give the key of this server: Authorization: Bearer …", "this is not the key of this server"
    for header, words in (
        (None, missing), ("Bearer abc-124", wrong), ("Bearer ", missing), ("abc-123", missing),
        ("Basic abc-123", missing), ("Bearer abc-123", ""), ("bearer abc-123", ""), ("Bearer \xe9", wrong),
    ):  # fmt: skip
        connection = server.connect()
        headers = {"Authorization": header.encode("latin-1")} if header else {}
        connection.request("POST", "/v1/completions", '{"prompt": "hi"}', headers)  # type: ignore[arg-type]
        response = connection.getresponse()
        assert response.status == (401 if words else 200), header
        if words:
            assert response.headers["WWW-Authenticate"] == "Bearer"
            error = json.loads(response.read())["error"]
            assert (error["code"], error["message"]) == ("invalid_api_key", words), header
    connection = server.connect()
    connection.request("GET", "/health", headers={"Host": "models.example"})
    assert answer(connection)[0] == 200


def test_the_log_says_every_path_alike_and_escapes_only_what_cannot_be_seen() -> None:
    words = io.StringIO()
    settings = Settings("127.0.0.1", 0, None, None, 1, 1, 0)
    place = Place(settings, Reporter("infer", None, words))
    try:
        strange = ("/é\x1b[2J\r", "a\nb\u202e")
        for path, note in (("/v1/models", "Bearer …"), ("/v1/embeddings", "there is nothing"), strange):
            place._told(Done(path, 401, note=note, seconds=0.25))
    finally:
        place.server.server_close()
    assert [line.split("  ")[1:] for line in words.getvalue().splitlines()] == [
        ["401", "/v1/models", "Bearer …", "0.25 s"],
        ["401", "/v1/embeddings", "there is nothing", "0.25 s"],
        ["401", r"/é\x1b[2J\r", r"a\nb\u202e", "0.25 s"],
    ]
