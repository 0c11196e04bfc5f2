"""A socket of this machine in front of a server's (a Docker engine, a cluster) that can go away and come back."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path


class Relay:
    """Passes bytes on to the server at `to`: a path, or a port of this machine. It listens at `path`, or at `port`."""

    def __init__(self, to: str | int, path: Path | None = None) -> None:
        self.to, self.path, self.port = to, path, 0
        self._open: list[socket.socket] = []
        self._server: socket.socket | None = None
        self.up()

    def up(self) -> None:
        """Take connections, at the same place as before."""
        self._taken = True
        if self._server is not None:
            return
        if self.path:
            self.path.unlink(missing_ok=True)
            self._server = socket.socket(socket.AF_UNIX)
            self._server.bind(str(self.path))
            self._server.listen()
        else:
            self._server = socket.create_server(("127.0.0.1", 0))
            self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def cut(self) -> None:
        """End every connection; new ones are taken."""
        while self._open:
            _end(self._open.pop())

    def down(self) -> None:
        """End every connection, and take none. A port stays this one's: new connections end at once."""
        self._taken = False
        if self.path and self._server is not None:
            _end(self._server)
            self._server = None
            self.path.unlink(missing_ok=True)
        self.cut()

    def close(self) -> None:
        """For good."""
        self.down()
        if self._server is not None:
            _end(self._server)

    def _reach(self) -> socket.socket:
        if isinstance(self.to, int):
            return socket.create_connection(("127.0.0.1", self.to))
        far = socket.socket(socket.AF_UNIX)
        far.connect(self.to.removeprefix("unix://"))
        return far

    def _accept(self, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near = server.accept()[0]
                if not self._taken:
                    near.close()
                    continue
                far = self._reach()
                self._open += [near, far]
                for a, b in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(a, b), daemon=True).start()


def _pump(a: socket.socket, b: socket.socket) -> None:
    with suppress(OSError):
        while data := a.recv(65536):
            b.sendall(data)
        b.shutdown(socket.SHUT_WR)


def _end(s: socket.socket) -> None:
    with suppress(OSError):
        s.shutdown(socket.SHUT_RDWR)
    s.close()
