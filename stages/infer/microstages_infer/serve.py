"""A model behind OpenAI's API, until it is told to stop.

It is ready when it says so: on stderr, and as the event `ready` (url, model) on stdout. Each request that was answered
is an event `request` (path, status, prompt_tokens, completion_tokens, seconds), never its text. SIGTERM or Ctrl-C: what
runs may end within the grace, the rest is refused; a second one ends at once. Exit code 143.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from microstages.artifact import Artifact
from microstages.errors import Stopped, UserError
from microstages.reporting import Reporter, number_of

from microstages_infer.api import Served
from microstages_infer.callers import loopback
from microstages_infer.connection import Done
from microstages_infer.decoding import Engine
from microstages_infer.http_server import Server
from microstages_infer.prompts import Wrap
from microstages_infer.rows import Rows, rows_of
from microstages_infer.sampling import Sampling
from microstages_infer.scheduler import Scheduler

KEY = "MICROSTAGES_API_KEY"
FREE = "choose another port or host; --port 0 takes a free one"


@dataclass(frozen=True)
class Settings:
    """Where to listen, and how much to do at once. `grace`: seconds."""

    host: str
    port: int
    served_name: str | None
    key_file: str | None
    concurrent: int
    waiting: int
    grace: float


def key_of(settings: Settings) -> str | None:
    """The key that requests must bring: of the file, else of the environment; None where there is none.

    Raises UserError where one is needed: on every address but this machine's own.
    """
    key, where = os.environ.get(KEY), f"${KEY}"
    if settings.key_file is not None:
        where = f"--api-key-file {settings.key_file}"
        try:
            key = Path(settings.key_file).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError("the key is not UTF-8", where=where, fix="write it as text, in one line") from None
        except OSError as error:
            raise UserError(f"it cannot be read: {error.strerror}", where=where, fix="check the path") from None
    if key is not None:
        key = key.strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            fix = "take letters, digits and signs of ASCII in one line, such as `openssl rand -hex 24` makes"
            raise UserError("this is not a key", where=where, fix=fix)
        return key
    if not _own(settings.host):
        raise UserError(
            "others can reach this address, and there is no key that they must bring",
            where=f"--host {settings.host}",
            fix=f"put a key into the variable {KEY}, or into a file for --api-key-file; or listen on 127.0.0.1",
        )
    return None


def _own(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if loopback(host):
        return True
    try:
        return all(loopback(str(found[4][0])) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except OSError:
        return False


class Place:
    """The address, taken before the model is loaded, which takes long. Raises UserError where that cannot be."""

    def __init__(self, settings: Settings, report: Reporter) -> None:
        self._settings, self._report = settings, report
        self._lock = threading.Lock()
        key = key_of(settings)
        try:
            self.server = Server(settings.host, settings.port, key, self._told)
        except (OSError, OverflowError, UnicodeError) as error:
            raise self._taken(error) from None

    def _taken(self, error: Exception) -> UserError:
        what = getattr(error, "strerror", None) or str(error)
        where = f"--host {self._settings.host} --port {self._settings.port}"
        return UserError(f"cannot listen there: {what}", where=where, fix=FREE)

    def _told(self, done: Done) -> None:
        """A line and an event for a request."""
        with self._lock:
            if not done.path:
                self._report.say(done.note)
                return
            tokens = {"prompt_tokens": done.prompt_tokens, "completion_tokens": done.completion_tokens}
            self._report.event("request", path=done.path, status=done.status, seconds=round(done.seconds, 4), **tokens)
            said = f"{done.prompt_tokens} + {done.completion_tokens} tokens" if done.status == 200 else done.note[:200]
            words = (time.strftime("%H:%M:%S"), done.status, done.path[:80], said, f"{done.seconds:.2f} s")
            self._report.say("  ".join(readable(str(w)) for w in words) + "\n")

    def serve(
        self, model: Artifact, engine: Engine, wrap: Wrap, sampling: Sampling, stop: tuple[str, ...],
        most: int | None, form: str | None,
    ) -> None:  # fmt: skip
        """Serve until told to stop: raises Stopped then."""
        s = self._settings
        rows = rows_of(engine, s.concurrent)
        name = s.served_name or _name(model)
        served = Served(name, model.digest, int(time.time()), engine, wrap, sampling, stop, most, form)
        scheduler = Scheduler(engine, rows, s.concurrent, s.waiting, lambda text: self._told(Done("", 500, note=text)))
        with _Told() as told:
            try:
                self.server.listen(served, scheduler, s.concurrent + s.waiting)
            except OSError as error:  # another one took the port while the model was loaded
                scheduler.close(0)
                raise self._taken(error) from None
            self._ready(served, rows)
            told.wait()
            running, _ = scheduler.counts
            self._report.log(f"stopping: {number_of(running, 'request')} may end within {s.grace:g} s")
            cut = scheduler.close(s.grace)
            self.server.shutdown()
            self.server.settle(2)
            self.server.server_close()
        raise Stopped("stopped" + (f"; {number_of(cut, 'request')} cut off" if cut else ""))

    def _ready(self, served: Served, rows: Rows) -> None:
        host, port = self._settings.host, self.server.server_port
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        engine = served.engine
        self._report.event("ready", url=url, host=host, port=port, model=served.name)
        said = f"serving {served.name} at {url}  ({engine.device}, {engine.precision}; {rows.how})"
        if served.form is not None and not served.wrap.chat_is_of(served.form):
            said += f"\n  it was tuned on prompts of the form {served.form!r}: /v1/completions takes them as they are"
        elif not engine.text.chat_template:
            said += "\n  it has no chat template: /v1/completions alone can be asked"
        self._report.log(said)


class _Told:
    """Waits for SIGTERM or Ctrl-C; a second one raises Stopped where the main thread is."""

    def __init__(self) -> None:
        self._stop: SimpleQueue[None] = SimpleQueue()  # the one thing to wait for that a signal's handler may use
        self._told = False

    def __enter__(self) -> _Told:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # it ends already

    def _signal(self, *_: Any) -> None:
        if self._told:
            raise Stopped("stopped at once")
        self._told = True
        self._stop.put(None)

    def wait(self) -> None:
        self._stop.get()


def readable(text: str) -> str:
    """Text on one line: what cannot be seen (control characters, line ends) is escaped, letters never."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _name(model: Artifact) -> str:
    """The last part of the model's place that says something."""
    parts = [p for p in model.uri.partition("@")[0].rstrip("/").replace("\\", "/").split("/") if p not in ("", ".")]
    return parts[-1] if parts else "model"
