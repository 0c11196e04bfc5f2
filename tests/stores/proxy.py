"""A proxy that spoils connections by a plan: what a network does on a bad day, the same on every run.

A connection is a row of exchanges: the client speaks, the server answers. Each exchange has a fate:

    pass        nothing happens
    drop        the connection is reset before the server hears anything
    lose        the server hears and does it; the connection is reset in place of the answer
    delay       the answer comes late
    truncate    the answer ends in the middle of its body
    silence     nobody answers; the connection stays open

As a program it speaks one line of JSON, `{"port": …}`, and obeys lines on its stdin: `off` (connections are refused and
the open ones reset), `on`, `seen` (it prints how many exchanges had which fate), and the end of stdin.

    python tests/stores/proxy.py PORT_OF_THE_SERVER --seed 7 --drop 0.02 --truncate 0.05 --delay 0.1 --seconds 0.5
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import socket
import struct
import sys
import threading
import urllib.parse
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"
FATES = ("drop", "lose", "delay", "truncate", "silence")
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets


@dataclass(frozen=True)
class Plan:
    """Which exchange has which fate: first those of `script`, one after the other, then chances from a seed.

    The chances lie between 0 and 1 and add up to at most 1; `seconds` is how late a delayed answer comes; after `most`
    spoiled exchanges all pass.
    """

    script: tuple[str, ...] = ()
    seed: int = 0
    drop: float = 0.0
    lose: float = 0.0
    delay: float = 0.0
    truncate: float = 0.0
    silence: float = 0.0
    seconds: float = 0.2
    most: int | None = None

    def fates(self) -> Iterator[str]:
        """The fates in the order of the exchanges, without end."""
        draws, spoiled = random.Random(self.seed), 0
        chances = [getattr(self, name) for name in FATES]
        yield from self.script
        while True:
            (fate,) = draws.choices(("pass", *FATES), [1 - sum(chances), *chances])
            fate = "pass" if self.most is not None and spoiled >= self.most else fate
            spoiled += fate != "pass"
            yield fate


@dataclass
class Exchange:
    """The present exchange of a connection; `left` counts the bytes of its answer that still pass, None for all."""

    fate: str = "pass"
    answered: bool = True
    left: int | None = None
    method: str = ""
    path: str = ""


@dataclass(eq=False)
class Proxy:
    """127.0.0.1:`port` leads to 127.0.0.1:`server`, by `plan`. Runs in a thread of its own from `start` to `stop`."""

    server: int
    plan: Plan = field(default_factory=Plan)
    port: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    carried: int = 0  # bytes, in both directions
    held: set[str] = field(default_factory=set)  # the paths that the server has said it keeps: put, and not deleted

    def __post_init__(self) -> None:
        self._fates = self.plan.fates()
        self._open: set[asyncio.StreamWriter] = set()
        self._listening: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> Proxy:
        self._thread.start()
        self.on()
        return self

    def stop(self) -> None:
        self.off()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def follow(self, plan: Plan) -> None:
        """Another plan from now on, from its beginning; `seen` counts anew."""
        self.plan, self._fates = plan, plan.fates()
        self.seen.clear()

    def on(self) -> None:
        """Listen, on the same port as before."""
        self._run(self._listen())

    def off(self) -> None:
        """Refuse connections and reset those that are open."""
        self._run(self._close())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _listen(self) -> None:
        if self._listening is None:
            self._listening = await asyncio.start_server(self._connection, HOST, self.port)
            self.port = self._listening.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        for writer in list(self._open):
            reset(writer)
        while self._open:
            await asyncio.sleep(0.01)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        behind: asyncio.StreamWriter | None = None
        try:
            answers, behind = await asyncio.open_connection(HOST, self.server)
            exchange = Exchange()
            asking = asyncio.ensure_future(self._ask(reader, behind, writer, exchange))
            answering = asyncio.ensure_future(self._answer(answers, writer, exchange))
            await asyncio.wait((asking, answering), return_when=asyncio.FIRST_COMPLETED)
            for task in (asking, answering):
                task.cancel()
            await asyncio.gather(asking, answering, return_exceptions=True)
        except OSError:  # the server is gone
            reset(writer)
        finally:
            for end in (writer, behind):
                if end is not None:
                    end.close()
            self._open.discard(writer)

    async def _ask(
        self,
        reader: asyncio.StreamReader,
        behind: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        exchange: Exchange,
    ) -> None:
        """From the client to the server. What it says after an answer begins another exchange."""
        while data := await reader.read(1 << 16):
            self.carried += len(data)
            if exchange.answered:
                exchange.fate, exchange.answered, exchange.left = next(self._fates), False, None
                self.seen[exchange.fate] += 1
                exchange.method, exchange.path = asked(data)
            if exchange.fate == "drop":
                reset(client)
                return
            if exchange.fate != "silence":
                behind.write(data)
                await behind.drain()

    def _note(self, exchange: Exchange, answer: bytes) -> None:
        """What the server says that it did."""
        status = answer.partition(b" ")[2][:3]
        if exchange.method == "PUT" and status in (b"200", b"201"):
            self.held.add(exchange.path)
        elif exchange.method == "DELETE" and status in (b"202", b"204"):
            self.held.discard(exchange.path)

    async def _answer(self, answers: asyncio.StreamReader, client: asyncio.StreamWriter, exchange: Exchange) -> None:
        """From the server to the client."""
        while data := await answers.read(1 << 16):
            # "go on" is no answer: the client still has the body of its request to send
            if not exchange.answered and not data.startswith(b"HTTP/1.1 100"):
                exchange.answered = True
                self._note(exchange, data)
                if exchange.fate == "lose":
                    reset(client)
                    return
                if exchange.fate == "delay":
                    await asyncio.sleep(self.plan.seconds)
                if exchange.fate == "truncate":
                    exchange.left = half(data)
            if exchange.left is not None:
                data = data[: exchange.left]
                exchange.left -= len(data)
            self.carried += len(data)
            client.write(data)
            await client.drain()
            if exchange.left == 0:
                return
        if exchange.fate == "silence":  # the server hung up on one who says nothing
            await asyncio.Event().wait()


def asked(beginning: bytes) -> tuple[str, str]:
    """The method and the decoded path of a request, by its first bytes."""
    method, _, rest = beginning.partition(b"\r\n")[0].decode("latin-1").partition(" ")
    return method, urllib.parse.unquote(rest.partition(" ")[0].partition("?")[0])


def half(beginning: bytes) -> int:
    """How many bytes of an answer pass that ends in the middle: its head and half of its body, by its first bytes."""
    head, blank, _ = beginning.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    body = int(length[1]) if length else 0
    return len(head + blank) + body // 2 if body > 1 else len(head) // 2


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that the other side sees a reset, and what was not sent is lost."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", type=int, help="the port of the server on 127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="the port to listen on; a free one by default")
    parser.add_argument("--seed", type=int, default=0, help="of the chances")
    for name in FATES:
        parser.add_argument(f"--{name}", type=float, default=0.0, metavar="CHANCE", help="of an exchange, 0 to 1")
    parser.add_argument("--seconds", type=float, default=0.2, help="how late a delayed answer comes")
    parser.add_argument("--most", type=int, help="spoil so many exchanges and no more")
    given = vars(parser.parse_args())
    server, port = given.pop("server"), given.pop("port")
    proxy = Proxy(server, Plan(**given), port).start()
    print(json.dumps({"port": proxy.port}), flush=True)
    for line in sys.stdin:
        if line.strip() == "off":
            proxy.off()
        elif line.strip() == "on":
            proxy.on()
        print(json.dumps(dict(proxy.seen)), flush=True)
    proxy.stop()


if __name__ == "__main__":
    main()
