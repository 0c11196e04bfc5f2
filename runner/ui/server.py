"""The server: one address of this machine, for who has its token. It answers GET, and knows no file but its own.

- It listens on 127.0.0.1. A request must name this machine in `Host` (any port: a tunnel has its own), so that a page
  of elsewhere whose name was bound to 127.0.0.1 gets nothing.
- The address that is printed carries a random token, once; after that the browser has a cookie that no script and no
  other site can use (HttpOnly, SameSite=Strict). What comes from another page, also from one of this machine on another
  port, is refused.
- Paths are matched against a few patterns; none is ever a path of the disk.
- The policy sent with each page allows scripts and styles of this server, and no markup made from text.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import re
import secrets
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from microstages.errors import UserError, from_os_error

from runner.ui.answers import Answers
from runner.ui.live import BEAT, EVERY, Event, trouble
from runner.ui.reading import MissingError
from runner.ui.routes import ENTRANCE, PAGE, Answer, answer

HERE = frozenset({"127.0.0.1", "localhost"})
MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
STREAMS = 32  # at once
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
ALWAYS = {
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
}  # fmt: skip
# A page that sets the cookie goes on by itself: after a redirect from another site it would not be sent.
ENTER = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="0;url={}"><title>…</title>
"""


class RefusedError(Exception):
    """A request that gets no answer: its status, and a sentence."""

    def __init__(self, status: int, text: str) -> None:
        self.status, self.text = status, text
        super().__init__(text)


class Server(ThreadingHTTPServer):
    """Serves the answers of one store. Raises OSError where the port is taken."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answers: Answers, port: int = 0) -> None:
        self.answers = answers
        self.token, self.secret = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        self.over = threading.Event()
        self.streams = threading.BoundedSemaphore(STREAMS)
        super().__init__(("127.0.0.1", port), Handler)
        self.cookie = f"microstages-{self.server_port}"  # cookies know no ports: each server has its own

    @property
    def url(self) -> str:
        """Where it is, for who may see it."""
        return f"http://127.0.0.1:{self.server_port}/?token={self.token}"

    def stop(self) -> None:
        """End the streams, and listen no more."""
        self.over.set()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no error."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


@functools.cache
def own_files() -> dict[str, tuple[str, bytes, str]]:
    """What the pages are made of: path -> media type, bytes, tag."""
    found = {f"/static/{f.name}": f for f in files("runner.ui").joinpath("page").iterdir()}
    found["/static/chart.js"] = files("runner.compare").joinpath("chart.umd.min.js")
    out = {}
    for path, file in found.items():
        data = file.read_bytes()
        if path.endswith("chart.js"):
            data = data.partition(b"\n//# sourceMappingURL=")[0]
        media = MEDIA.get(f".{path.rpartition('.')[2]}", "application/octet-stream")
        out[path] = (media, data, f'"{hashlib.sha256(data).hexdigest()[:20]}"')
    return out


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "microstages", ""
    timeout = 60

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: an address may hold the token."""

    def do_GET(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:  # noqa: ARG002
        """Plain text, also for what is no HTTP."""
        self.close_connection = True
        allow = {"Allow": "GET, HEAD"} if code in (405, 501) else {}
        self._send(405 if code == 501 else code, "text/plain", f"{message or 'error'}\n".encode(), allow)

    def _handle(self) -> None:
        try:
            path, query = self._split()
            if "token" in query and ENTRANCE.fullmatch(path):
                self._enter(path, query)
                return
            self._check()
            if path in own_files():
                self._own(path)
            elif PAGE.fullmatch(path):
                media, data, _ = own_files()["/static/index.html"]
                self._send(200, media, data, {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"})
            else:
                self._answer(path, query)
        except RefusedError as error:
            self._send(error.status, "text/plain", f"{error.text}\n".encode(), {"Cache-Control": "no-store"})
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _split(self) -> tuple[str, dict[str, str]]:
        """The path, still quoted, and the query."""
        if not self.path.startswith("/") or self.path.startswith("//"):
            raise RefusedError(404, "not found")
        parts = urlsplit(self.path)
        try:
            query = {k: v[-1] for k, v in parse_qs(parts.query, max_num_fields=20, errors="strict").items()}
        except ValueError:
            raise RefusedError(400, "this query cannot be read") from None
        return parts.path, query

    # --- who may ask ---

    def _known_host(self) -> str:
        """The `Host` of a request that was meant for this machine."""
        hosts = self.headers.get_all("Host") or []
        found = re.fullmatch(r"([A-Za-z0-9.\-]+)(:\d{1,5})?", hosts[0]) if len(hosts) == 1 else None
        if found is None or found[1].lower() not in HERE:
            raise RefusedError(403, "refused: this server answers to 127.0.0.1 and localhost only")
        return hosts[0]

    def _check(self) -> None:
        """Raises RefusedError for who is not the browser that was let in."""
        host = self._known_host()
        origin = self.headers.get("Origin")
        if origin is not None and origin.lower() != f"http://{host}".lower():
            raise RefusedError(403, "refused: this is asked by another site's page")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise RefusedError(403, "refused: this is asked by another site's page")
        # other servers of this machine set cookies here as well, in whatever form
        cookies = "; ".join(self.headers.get_all("Cookie") or [])
        found = re.findall(rf"(?:^|;\s*){re.escape(self.server.cookie)}=([\w-]+)", cookies, re.ASCII)
        if not any(hmac.compare_digest(value.encode(), self.server.secret.encode()) for value in found):
            raise RefusedError(403, "refused: open the address, with its token, that `runner ui` printed")

    def _enter(self, path: str, query: dict[str, str]) -> None:
        """Give the cookie to who has the token."""
        self._known_host()
        if not hmac.compare_digest(query["token"].encode(), self.server.token.encode()):
            raise RefusedError(403, "refused: this token is of another `runner ui`; open the address that it printed")
        cookie = f"{self.server.cookie}={self.server.secret}; HttpOnly; SameSite=Strict; Path=/"
        head = {"Set-Cookie": cookie, "Cache-Control": "no-store", "Content-Security-Policy": "default-src 'none'"}
        self._send(200, "text/html", ENTER.format(escape(path)).encode(), head)

    # --- answers ---

    def _own(self, path: str) -> None:
        media, data, tag = own_files()[path]
        head = {"ETag": tag, "Cache-Control": "no-cache"}
        if self.headers.get("If-None-Match") == tag:
            self._send(304, media, b"", head)
        else:
            self._send(200, media, data, head)

    def _answer(self, path: str, query: dict[str, str]) -> None:
        words = [unquote(w, errors="replace") for w in path.split("/")[1:]]
        status, wrong = 200, None
        try:
            found = answer(self.server.answers, words, query, self._wait)
        except UserError as error:
            status, wrong = 404 if isinstance(error, MissingError) else 503, error
        except OSError as error:
            status, wrong = 503, from_os_error(error) or UserError(str(error))
        except Exception:
            traceback.print_exc()
            status, wrong = 500, UserError("this is a bug of ours", fix="Where runner ui was started there is more.")
        if wrong is not None:
            found = Answer({"error": trouble(wrong)})
        if found is None:
            raise RefusedError(404, "not found")
        if found.events is not None:
            self._stream(found.events)
            return
        data = found.body if found.body is not None else dumps(found.value).encode()
        self._send(status, found.media, data, {"Cache-Control": "no-store", **found.head})

    def _wait(self, seconds: float) -> bool:
        return self.server.over.wait(seconds)

    def _stream(self, events: Callable[[], Iterable[Event]]) -> None:
        """Server-sent events, as long as there are any and somebody listens."""
        if not self.server.streams.acquire(blocking=False):
            raise RefusedError(503, "too many pages are open at once")
        try:
            self.close_connection = True
            self._send(200, "text/event-stream", None, {"Cache-Control": "no-store", "Connection": "close"})
            quiet = 0.0
            for name, value in events() if self.command == "GET" else ():
                quiet = quiet + EVERY if name == "beat" else 0.0
                if name != "beat":
                    self.wfile.write(f"event: {name}\ndata: {dumps(value)}\n\n".encode())
                elif quiet >= BEAT:
                    quiet = 0.0
                    self.wfile.write(b": still here\n\n")
                self.wfile.flush()
        finally:
            self.server.streams.release()

    def _send(self, status: int, media: str, data: bytes | None, head: dict[str, str]) -> None:
        self.send_response(status)
        text = media.startswith("text/") or media == "application/json"
        self.send_header("Content-Type", f"{media}; charset=utf-8" if text else media)
        if data is not None:
            self.send_header("Content-Length", str(len(data)))
        for name, value in {**ALWAYS, "Content-Security-Policy": "default-src 'none'; sandbox", **head}.items():
            self.send_header(name, value)
        self.end_headers()
        if data and self.command != "HEAD":
            self.wfile.write(data)


def dumps(value: Any) -> str:
    """JSON on one line; numbers that JSON does not know become words."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):  # noqa: PLR0124
        return str(value)
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value
