"""One connection of a served model: requests come in, within their time and size, and answers go out.

Every request has a time in which it must have come (a client that drips bytes cannot hold a thread), a size that it may
have, and an answer in OpenAI's form, errors too. A client that goes away stops what was made for it.
"""

from __future__ import annotations

import io
import json
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from microstages_infer.api import ApiError, Asked, Shape, parse, usage
from microstages_infer.callers import key_in, loops
from microstages_infer.decoding import Answer
from microstages_infer.scheduler import ClosedError, FullError, Job, Said

if TYPE_CHECKING:
    from microstages_infer.http_server import Server

BODY = 4 << 20  # bytes a request may have
LOOK = 0.2  # seconds between two looks whether the client is still there
RETRY = 2  # seconds after which a client that was turned away may try again
POSTS = {"/v1/chat/completions": True, "/v1/completions": False}  # whether it is a chat
GETS = ("/v1/models", "/health")


class GoneError(Exception):
    """The client went away, or takes nothing."""


@dataclass(frozen=True)
class Times:
    """Seconds: for a request to come, for a client to take what it is sent, for a connection without requests."""

    request: float = 30.0
    send: float = 30.0
    idle: float = 60.0


@dataclass(frozen=True)
class Done:
    """A request that was answered, for the log."""

    path: str
    status: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    note: str = ""


class _Timed(io.RawIOBase):
    """A connection to read from, until a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self.until = connection, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._timed = _Timed(self.connection)
        self.rfile = io.BufferedReader(self._timed)

    def handle_one_request(self) -> None:
        """Wait for a request, as long as a connection may be idle."""
        self._timed.until = time.monotonic() + self.server.times.idle
        self._sent = False
        super().handle_one_request()

    def parse_request(self) -> bool:
        """The first line is here: from now on the rest has its time."""
        self._began = time.perf_counter()
        self._timed.until = time.monotonic() + self.server.times.request
        if not super().parse_request():
            return False
        if self.request_version == "HTTP/0.9":
            self.send_error(HTTPStatus.BAD_REQUEST, "this speaks HTTP/1.1")
            return False
        return True

    def do_GET(self) -> None:
        with self.server.request():
            self._answer(self._get)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        with self.server.request():
            self._answer(self._post)

    def _answer(self, work: Callable[[str], Done]) -> None:
        path = self.path.partition("?")[0]
        try:
            self._allowed(path)
            done = work(path)
        except ApiError as error:
            done = Done(path, error.status, note=error.message)
            self._refuse(error)
        except GoneError:
            self.close_connection = True
            done = Done(path, 499, note="the client went away")
        except Exception:  # ours: the client is told, and so are we
            self.server.told(Done("", 500, note=traceback.format_exc()))
            self.close_connection = True
            done = Done(path, 500, note="a fault of this server")
            if not self._sent:
                self._refuse(ApiError(500, "this is a fault of the server", kind="server_error"))
        if path in POSTS or done.status >= 400:
            self.server.told(Done(**{**vars(done), "seconds": time.perf_counter() - self._began}))

    # --- who may ---

    def _allowed(self, path: str) -> None:
        if self.server.keyless:
            # no page of a browser on this machine may talk to it under another name, or from another place
            host, origin = self.headers.get("Host"), self.headers.get("Origin")
            for url in (f"//{host}" if host else None, origin):
                if url is not None and not loops(url):
                    self.close_connection = True
                    raise ApiError(
                        403, "without a key only this machine may ask: no other Host, no other Origin", code="forbidden"
                    )
        elif path != "/health" and not self.server.allows(key := key_in(self.headers.get("Authorization"))):
            self.close_connection = True
            missing = "give the key of this server: Authorization: Bearer …"
            raise ApiError(401, "this is not the key of this server" if key else missing, code="invalid_api_key")

    # --- what is asked ---

    def _get(self, path: str) -> Done:
        self.close_connection |= self.headers.get("Content-Length", "0") != "0"  # what comes with it is not read
        served, name = self.server.served, unquote(path.removeprefix("/v1/models/"))
        if path == "/health":
            running, waiting = self.server.scheduler.counts
            closed, works = self.server.scheduler.closed, self.server.scheduler.works
            status = 503 if closed or not works else 200
            said = "stopping" if closed else "ok" if works else "broken"
            self._send(status, {"status": said, "running": running, "waiting": waiting})
            return Done(path, status)
        if path == "/v1/models":
            self._send(200, {"object": "list", "data": [served.entry()]})
        elif name == served.name:
            self._send(200, served.entry())
        else:
            raise _nowhere(path)
        return Done(path, 200)

    def _post(self, path: str) -> Done:
        body = self._body()
        if path not in POSTS:
            raise _nowhere(path)
        asked = parse(self.server.served, body, chat=POSTS[path])
        heard: SimpleQueue[Said] = SimpleQueue()
        number = 0 if asked.seeded else self.server.next_number()
        jobs = [
            Job(ids, limits, asked.sampling, heard, number + i, i, asked.stream)
            for i, (ids, limits) in enumerate(zip(asked.prompts, asked.limits, strict=True))
        ]
        try:
            self.server.scheduler.submit(jobs)
        except FullError:
            raise ApiError(
                429, "too many requests wait; try again in a moment", kind="rate_limit_error",
                code="rate_limit_exceeded", retry_after=RETRY,
            ) from None  # fmt: skip
        except ClosedError:
            raise _stopping() from None
        try:
            answers = (self._stream if asked.stream else self._whole)(asked, jobs, heard)
        except BaseException:
            self.server.scheduler.cancel(jobs)
            raise
        counts = usage(answers)
        return Done(path, 200, counts["prompt_tokens"], counts["completion_tokens"])

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            raise ApiError(411, "send a Content-Length", code="length_required")
        length = self.headers.get("Content-Length") or ""
        if not (length.isascii() and length.isdigit()):
            self.close_connection = True
            raise ApiError(411, "send a Content-Length", code="length_required")
        if int(length) > BODY:
            self.close_connection = True
            raise ApiError(413, f"the request is larger than {BODY >> 20} MiB", code="request_too_large")
        try:
            body = self.rfile.read(int(length))
        except TimeoutError:
            self.close_connection = True
            raise ApiError(408, "the request did not come in time", code="timeout") from None
        except OSError:
            raise GoneError from None
        if len(body) < int(length):
            raise GoneError
        return body

    # --- what is answered ---

    def _hear(self, jobs: list[Job], heard: SimpleQueue[Said]) -> Iterator[Said]:
        """What is said, until all jobs are done. Raises ApiError where one fails, GoneError."""
        left = len(jobs)
        while left:
            try:
                said = heard.get(timeout=LOOK)
            except Empty:
                self._still_there()
                continue
            if said.stopped:
                raise _stopping()
            if said.failure:
                raise ApiError(500, said.failure, kind="server_error")
            left -= said.answer is not None
            yield said

    def _whole(self, asked: Asked, jobs: list[Job], heard: SimpleQueue[Said]) -> list[Answer]:
        found = {said.job.index: said.answer for said in self._hear(jobs, heard) if said.answer is not None}
        answers = [found[i] for i in range(len(jobs))]
        self._send(200, Shape(self.server.served, asked, int(time.time())).whole(answers))
        return answers

    def _stream(self, asked: Asked, jobs: list[Job], heard: SimpleQueue[Said]) -> list[Answer]:
        """The answer as server-sent events. It begins with its first word: until then an error has its own status."""
        shape = Shape(self.server.served, asked, int(time.time()))
        found: dict[int, Answer] = {}
        said_already: set[int] = set()
        try:
            for said in self._hear(jobs, heard):
                self._begin_stream()
                index = said.job.index
                if index not in said_already and (opening := shape.opening(index)):
                    self._event(opening)
                said_already.add(index)
                if said.text:
                    self._event(shape.piece(index, said.text))
                if said.answer is not None:
                    found[index] = said.answer
                    self._event(shape.closing(index, said.answer))
        except ApiError as error:
            if not self._sent:
                raise
            self._event(error.body)
            self._end_stream()
            self.close_connection = True
            self.server.scheduler.cancel(jobs)
            return list(found.values())
        answers = [found[i] for i in range(len(jobs))]
        if counted := shape.counted(answers):
            self._event(counted)
        self._write(self._framed(b"data: [DONE]\n\n"))
        self._end_stream()
        return answers

    def _begin_stream(self) -> None:
        if self._sent:
            return
        self._chunked = self.request_version != "HTTP/1.0"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-cache")
        if self._chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.close_connection = True
        self._flush()

    def _event(self, value: Any) -> None:
        self._write(self._framed(b"data: " + _json(value) + b"\n\n"))

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data

    def _end_stream(self) -> None:
        if self._chunked:
            self._write(b"0\r\n\r\n")

    def _still_there(self) -> None:
        """Raises GoneError where the client closed the connection."""
        try:
            self.connection.settimeout(0)
            if self.connection.recv(1, socket.MSG_PEEK) == b"":
                raise GoneError
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            raise GoneError from None

    def _refuse(self, error: ApiError) -> None:
        with suppress(GoneError):
            self._send(error.status, error.body, retry=error.retry_after)
            if self.close_connection:
                self._discard()

    def _discard(self) -> None:
        """Read what still comes, a little: else the connection's end could overtake the answer."""
        self._timed.until = time.monotonic() + 2
        with suppress(OSError, ValueError):
            self.connection.shutdown(socket.SHUT_WR)
            while self.rfile.read1(1 << 16):
                pass

    def _send(self, status: int, value: Any, *, retry: int | None = None) -> None:
        data = _json(value) + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if retry is not None:
            self.send_header("Retry-After", str(retry))
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        if status == 405:
            self.send_header("Allow", "POST" if self.path.partition("?")[0] in POSTS else "GET, HEAD")
        if self.close_connection:
            self.send_header("Connection", "close")
        self._flush(b"" if self.command == "HEAD" else data)

    def _flush(self, body: bytes = b"") -> None:
        """Headers and body in one write."""
        head = b"".join(self._headers_buffer) + b"\r\n"
        self._headers_buffer: list[bytes] = []
        self._sent = True
        self._write(head + body)

    def _write(self, data: bytes) -> None:
        try:
            self.connection.settimeout(self.server.times.send)
            self.connection.sendall(data)
        except (OSError, ValueError):
            raise GoneError from None

    # --- what the parent class says ---

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """What the parent refuses: a request that is none, a method that nobody knows."""
        path = getattr(self, "path", "").partition("?")[0]
        self.close_connection, self.request_version = True, "HTTP/1.1"
        self.command = getattr(self, "command", None) or "GET"
        if code == HTTPStatus.NOT_IMPLEMENTED:
            known = path in POSTS or path in GETS
            self._refuse(ApiError(405, f"{self.command} is not possible here") if known else _nowhere(path))
        else:
            self._refuse(ApiError(int(code), message or HTTPStatus(code).phrase))

    def version_string(self) -> str:
        """Who answers."""
        return "microstages-infer"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: `told` says what is worth it."""


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _nowhere(path: str) -> ApiError:
    if path in POSTS or path in GETS:
        return ApiError(405, f"{path} wants {'POST' if path in POSTS else 'GET'}", code="method_not_allowed")
    known = ", ".join([*POSTS, *GETS])
    return ApiError(404, f"there is nothing at {path}; there is {known}", code="not_found")


def _stopping() -> ApiError:
    return ApiError(503, "the server is stopping", kind="server_error", code="stopping", retry_after=RETRY)
