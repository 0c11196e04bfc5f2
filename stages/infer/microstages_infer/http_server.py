"""HTTP for a served model, with the standard library alone: a thread for each connection, and not too many of them.

Nothing of what is asked or answered is logged, and no key.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from typing import Any

from microstages_infer.api import Served
from microstages_infer.connection import Done, GoneError, Handler, Times
from microstages_infer.scheduler import Scheduler

CONNECTIONS = 64  # more than requests that run or wait: idle ones, those that are refused, health checks


class Server(ThreadingHTTPServer):
    """`told` gets each request that was answered. Bound at once; answers after `listen`."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self, host: str, port: int, key: str | None, told: Callable[[Done], None], times: Times | None = None
    ) -> None:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.address_family = family
        self.served: Served
        self.scheduler: Scheduler
        self.told, self.times = told, times or Times()
        self._key = None if key is None else hashlib.sha256(key.encode()).digest()
        self._lock = threading.Condition()
        self._connections, self._requests, self._number, self._places = 0, 0, 0, 0
        super().__init__(address[:2], Handler, bind_and_activate=False)  # type: ignore[arg-type]
        try:
            self.server_bind()
        except OSError:
            self.server_close()
            raise

    def server_bind(self) -> None:
        """Bind, without the look-up of the host's full name that its parent does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def listen(self, served: Served, scheduler: Scheduler, places: int) -> None:
        """Take connections; `places`: requests that may run or wait."""
        self.served, self.scheduler, self._places = served, scheduler, places + CONNECTIONS
        self.server_activate()
        threading.Thread(target=self.serve_forever, args=(0.1,), name="http", daemon=True).start()

    def allows(self, key: str) -> bool:
        """Whether this is the key, or none is needed; compared in constant time."""
        given = hashlib.sha256(key.encode("latin-1", "replace")).digest()
        return self._key is None or hmac.compare_digest(given, self._key)

    @property
    def keyless(self) -> bool:
        return self._key is None

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request that is being answered."""
        with self._lock:
            self._requests += 1
        try:
            yield
        finally:
            with self._lock:
                self._requests -= 1
                self._lock.notify_all()

    def settle(self, seconds: float) -> None:
        """Wait until no request is being answered, but not longer than this."""
        with self._lock:
            self._lock.wait_for(lambda: not self._requests, seconds)

    def next_number(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, or none where too many are there."""
        with self._lock:
            free = self._connections < self._places
            self._connections += free
        if free:
            super().process_request(request, client_address)
            return
        body = b'{"error": {"message": "too many connections", "type": "server_error", "param": null, "code": null}}'
        with suppress(OSError):
            request.settimeout(1)
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nConnection: close\r\nContent-Type: "
                            b"application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))  # fmt: skip
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._connections -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A connection that broke is nobody's fault; anything else is ours, and is told."""
        if not isinstance(sys.exc_info()[1], (OSError, GoneError)):
            self.told(Done("", 500, note=traceback.format_exc()))
