"""Several nodes (machines) that make one result together: each runs the same stage program, node 0 writes.

`MICROSTAGES_NODES` (2 or more) and `MICROSTAGES_NODE_RANK` (from 0) say so, `MASTER_ADDR` and `MASTER_PORT` where node
0 is heard. Node 0 listens there; the others, the helpers, connect. Then:

1. `exchange` tells each node what all of them say; first they say what they run, and must say the same.
2. The node that ends before the result is there tells how, or its connection breaks, or it is silent for `SILENCE`
   seconds: all others end, too, with its exit code, or 75 where it was lost.
3. Node 0 commits the result and says so; the helpers, who have waited for that, end with 0.

JSON lines over TCP. Nothing secret is said, and nothing that is heard is run or unpickled.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from microstages.errors import (
    EXIT_BUG,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_TEMPORARY,
    EXIT_USER,
    Stopped,
    TemporaryError,
    UserError,
    as_user_error,
)

PORT = 29500
COMING = 900.0  # seconds that nodes may start apart: one may wait for a machine, or for its image
BEAT = 10.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one: the node is lost
GREETING = 10.0  # seconds that a connection may take to say who it is, or to be answered
FAREWELL = 5.0  # seconds for the last words to arrive
LONGEST = 1 << 20  # bytes of a line


@dataclass(frozen=True)
class End:
    """How a node ended: the exit code, and the words of its error."""

    rank: int
    code: int
    what: str = ""
    where: str = ""
    fix: str = ""

    @staticmethod
    def of(rank: int, error: BaseException | None) -> End:
        """The end of this node, by the error that it ends with."""
        known = as_user_error(error)
        if known is not None:
            return End(rank, known.exit_code, known.what, known.where, known.fix)
        if error is None or isinstance(error, Stopped):
            return End(rank, EXIT_OK if error is None else EXIT_STOPPED, str(error or ""))
        return End(rank, EXIT_BUG, f"{type(error).__name__}: {error}")

    @staticmethod
    def lost(rank: int) -> End:
        return End(rank, EXIT_TEMPORARY, "this node is lost: it died, or the network between the nodes broke", "",
                   "run again")  # fmt: skip

    def error(self) -> BaseException:
        """What another node ends with because of it."""
        where = f"node {self.rank}" + (f", {self.where}" if self.where else "")
        if self.code == EXIT_STOPPED:
            return Stopped(f"stopped with node {self.rank}" + (f": {self.what}" if self.what else ""))
        if self.code == EXIT_USER:
            return UserError(self.what, where=where, fix=self.fix)
        if self.code == EXIT_TEMPORARY:
            return TemporaryError(self.what, where=where, fix=self.fix)
        return RuntimeError(f"{where} failed, its log says more: {self.what}")


class Nodes:
    """This node (`rank`) of `size`. As a context it is connected with the others; when it ends it tells them how.

    With one node nothing is connected, and every method returns at once.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, address: str = "", port: int = PORT,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self.rank, self.size, self.address, self.port = rank, size, address, port
        self.end: End | None = None  # how the first of the others ended; a helper: also that node 0 is done
        self._log, self._state = log, threading.Condition()
        self._lines: dict[int, _Line] = {}
        self._heard: dict[int, list[Any]] = {}
        self._call: Callable[[], None] | None = None
        self._readers: list[threading.Thread] = []
        self._over = threading.Event()
        self._until = 0.0

    @staticmethod
    def here(stage: str, able: bool, log: Callable[[str], None]) -> Nodes:
        """What the environment says. Raises UserError where it does not fit together, or the stage is not `able`."""
        size = _number("MICROSTAGES_NODES", 1)
        if size <= 1:
            return Nodes()
        if not able:
            raise UserError(f"{stage} runs on one node", where="MICROSTAGES_NODES", fix="leave it out")
        name = "MICROSTAGES_NODE_RANK" if "MICROSTAGES_NODE_RANK" in os.environ else "NODE_RANK"  # Azure ML's
        rank = _number(name, -1)
        if not 0 <= rank < size:
            what = "it is not set" if rank < 0 else f"there is no node {rank} among {size}: they count from 0"
            raise UserError(what, where="MICROSTAGES_NODE_RANK", fix=f"give each node a number from 0 to {size - 1}")
        address, port = os.environ.get("MASTER_ADDR", ""), _number("MASTER_PORT", PORT)
        if not address:
            raise UserError("it is not set", where="MASTER_ADDR", fix="give the name or address of node 0")
        if not 0 < port < 1 << 16:
            raise UserError(f"{port} is not a port", where="MASTER_PORT", fix="give a number from 1 to 65535")
        return Nodes(rank, size, address, port, log)

    @property
    def several(self) -> bool:
        return self.size > 1

    def __enter__(self) -> Nodes:
        if self.several:
            self._until = time.monotonic() + COMING
            if self.rank == 0:
                threading.Thread(target=self._welcome, args=(self._listen(),), daemon=True).start()
            else:
                self._begin(0, self._connect())
            threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.several:
            return
        self._over.set()
        with self._state:
            lines = list(self._lines.values())
        for line in lines:
            line.send(ended=asdict(End.of(self.rank, error)))
            line.finish()
        until = time.monotonic() + FAREWELL
        for reader in self._readers:
            reader.join(max(0.0, until - time.monotonic()))
        for line in lines:
            line.close()

    def exchange(self, value: Any) -> list[Any]:
        """What all nodes say, by rank; `value` (JSON) is what this one says. Every node calls it equally often.

        Raises the error of a node that ended; TemporaryError where one does not come.
        """
        if not self.several:
            return [value]
        if self.rank:
            self._lines[0].send(say=value)
            self._await(lambda: bool(self._heard[0]))
            return list(self._heard[0].pop(0))
        others = range(1, self.size)
        self._await(lambda: len(self._lines) == len(others), self._until)
        self._await(lambda: all(self._heard[r] for r in others))
        said = [value, *(self._heard[r].pop(0) for r in others)]
        for line in self._lines.values():
            line.send(say=said)
        return said

    def meet(self, fingerprint: str) -> None:
        """Wait for all nodes. Raises UserError where they do not run the same."""
        said = self.exchange(fingerprint)
        if other := next((r for r, v in enumerate(said) if v != said[0]), 0):
            raise UserError(
                f"it runs something else than node 0 ({said[other]}, {said[0]}): other code, parameters or inputs",
                where=f"node {other}",
                fix="start all nodes with the same image, flags and inputs",
            )

    def on_end(self, call: Callable[[], None] | None) -> None:
        """Call it, in a thread, when another node ends too early, also where one has; None: no more."""
        with self._state:
            self._call = call
            early = self.end is not None and self.end.code != EXIT_OK
        if early and call is not None:
            call()

    def check(self, seconds: float = 0.0) -> None:
        """Raise the error of a node that ended too early, or does within so many seconds."""
        with self._state:
            self._state.wait_for(lambda: self.end is not None, seconds)
            if self.end is not None and self.end.code != EXIT_OK:
                raise self.end.error()

    def wait(self) -> None:
        """In a helper: wait for node 0's result. Raises as node 0 ends, where there is none."""
        if self.several and self.rank:
            with self._state:
                while self.end is None:
                    self._state.wait(BEAT)
            self.check()

    def _await(self, ready: Callable[[], bool], until: float | None = None) -> None:
        with self._state:
            while not ready():
                if self.end is not None:
                    raise self.end.error()
                if until is not None and time.monotonic() >= until:
                    missing = [str(r) for r in range(1, self.size) if r not in self._lines]
                    raise TemporaryError(
                        f"after {COMING:.0f} seconds node {', '.join(missing)} of {self.size} has not come",
                        where=f"{self.address}:{self.port}",
                        fix="see why it did not start, or did not reach node 0, and run again",
                    )
                self._state.wait(1.0)

    # --- connections ---

    def _listen(self) -> socket.socket:
        """Node 0's port, on all its addresses."""
        try:
            try:
                return socket.create_server(("", self.port), family=socket.AF_INET6, dualstack_ipv6=True)
            except (OSError, ValueError) as error:  # this machine has no IPv6
                if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                    raise
                return socket.create_server(("", self.port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            fix = "another program has it, or an earlier run that is ending: try again, or set another port"
            raise TemporaryError("it is in use", where=f"MASTER_PORT={self.port}", fix=fix) from None

    def _welcome(self, server: socket.socket) -> None:
        """In a thread: let the helpers in, until all are there."""
        server.settimeout(0.5)
        with server:
            while len(self._lines) < self.size - 1 and not self._over.is_set():
                with suppress(OSError):
                    threading.Thread(target=self._greet, args=(_Line(server.accept()[0]),), daemon=True).start()

    def _greet(self, line: _Line) -> None:
        hello = line.read()
        rank = hello.get("node")
        if isinstance(rank, int) and hello.get("nodes") != self.size:
            line.send(refused=f"it is one of {hello.get('nodes')} nodes, node 0 one of {self.size}")
        elif isinstance(rank, int) and 0 < rank < self.size:
            with self._state:
                free = rank not in self._lines and self.end is None and not self._over.is_set()
                if free:
                    line.send(welcome=True)
                    self._begin(rank, line)
                    return
        line.finish()
        line.close()

    def _connect(self) -> _Line:
        """A helper's connection with node 0, when that is there. Raises TemporaryError where it does not come."""
        where, told, why = f"{self.address}:{self.port}", time.monotonic() + GREETING, ""
        while True:
            try:
                line = _Line(socket.create_connection((self.address, self.port), GREETING))
                line.send(node=self.rank, nodes=self.size)
                answer = line.read()
                if "welcome" in answer:
                    return line
                line.close()
                if "refused" in answer:
                    raise UserError(str(answer["refused"]), where="MICROSTAGES_NODES", fix="give all nodes the same")
                why = "what listens there does not let this node in"
            except socket.gaierror:
                why = "this name does not resolve"
            except OSError as error:
                why = f"nobody answers ({error.strerror or error})"
            now = time.monotonic()
            if now >= self._until:
                fix = "see whether node 0 runs, and whether MASTER_ADDR and MASTER_PORT name it, and run again"
                raise TemporaryError(f"node 0 is not reached, after {COMING:.0f} seconds: {why}", where=where, fix=fix)
            if now >= told:
                told = self._until + 1
                self._log(f"waiting for node 0 at {where}: {why}")
            time.sleep(0.5)

    def _begin(self, rank: int, line: _Line) -> None:
        with self._state:
            self._lines[rank], self._heard[rank] = line, []
            reader = threading.Thread(target=self._read, args=(rank, line), daemon=True)
            self._readers.append(reader)
            reader.start()
            self._state.notify_all()

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            for line in list(self._lines.values()):
                line.send(beat=True)

    def _read(self, rank: int, line: _Line) -> None:
        """In a thread: hear what another node says, to its end."""
        while value := line.read():
            if "say" in value:
                with self._state:
                    self._heard[rank].append(value["say"])
                    self._state.notify_all()
            elif "ended" in value:
                self._ended(End(**value["ended"]))
                break
        else:
            self._ended(End.lost(rank))
        line.finish()

    def _ended(self, end: End) -> None:
        """Another node has ended: remember the first, tell the others."""
        with self._state:
            if self._over.is_set() or self.end is not None:
                return
            self.end, call = end, self._call
            lines = [] if self.rank else [line for rank, line in self._lines.items() if rank != end.rank]
            self._state.notify_all()
        for line in lines:
            line.send(ended=asdict(end))
        if call is not None and end.code != EXIT_OK:
            call()


class _Line:
    """A connection that carries one JSON object a line. A broken one takes everything and says nothing."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SILENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._file, self._sending = connection, connection.makefile("rb"), threading.Lock()

    def send(self, **value: Any) -> None:
        with self._sending, suppress(OSError, ValueError):
            self._socket.sendall(json.dumps(value).encode() + b"\n")

    def read(self) -> dict[str, Any]:
        """The next object; empty where the connection ended, broke, was silent for too long, or says something else."""
        try:
            line = self._file.readline(LONGEST)
            value = json.loads(line) if line.endswith(b"\n") else {}
            return value if isinstance(value, dict) else {}
        except (OSError, ValueError):
            return {}

    def finish(self) -> None:
        """Say no more; what was said arrives."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise UserError(f"{text!r} is not a whole number", where=name, fix="give a whole number") from None
