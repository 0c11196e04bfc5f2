"""One prompt, or a conversation: the answer is shown as it comes.

The words go to stderr, where people read. On stdout, where it is no terminal, each piece is an event `text`, and the
whole an event `answer` (prompt, text, ended, tokens, first_seconds, seconds).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from microstages.errors import UserError
from microstages.reporting import Reporter

from microstages_infer.decoding import Answer, Clock, Engine, Limits, answer, encode
from microstages_infer.sampling import Sampling

HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def one(engine: Engine, prompt: str, limits: Limits, sampling: Sampling, report: Reporter) -> tuple[Answer, Clock]:
    """The answer to one prompt, shown as it comes. Raises UserError where the prompt leaves no room for one."""
    clock = Clock()
    made = _say(engine, encode(engine, prompt), limits, sampling, report, prompt=prompt, clock=clock)
    if made.problem:
        raise UserError(made.problem, where="--prompt", fix="give a shorter one, or a model with a longer context")
    return made, clock


def chat(engine: Engine, system: str | None, limits: Limits, sampling: Sampling, report: Reporter) -> None:
    """A conversation with a person, or with the lines of stdin: each is what the user says next.

    Raises UserError where the model has no chat template.
    """
    engine.text.render([{"role": "user", "content": "?"}], add_generation_prompt=True)  # says so at once if it cannot
    opening = [] if system is None else [{"role": "system", "content": system}]
    turns: list[dict[str, str]] = []
    number = 0
    with _Interruptible() as interrupt:
        for line in _lines(interrupt, report):
            if line.startswith("/"):
                if line in ("/exit", "/quit"):
                    return
                turns = [] if line == "/reset" else turns
                report.log("(the conversation is forgotten)" if line == "/reset" else f"({HELP})")
                continue
            turns.append({"role": "user", "content": line})
            prompt, forgotten = _fitting(engine, opening, turns, limits)
            if forgotten:
                report.log(f"(the {forgotten} oldest messages no longer fit the model's context and are forgotten)")
            made = _say(
                engine, prompt, limits, sampling, report, prompt=line, number=number, keep=True,
                halted=interrupt.answering(),
            )  # fmt: skip
            interrupt.idle()
            number += 1
            if made.problem:
                turns.pop()
                report.warn(f"this message is too long: {made.problem}")
                continue
            turns.append({"role": "assistant", "content": made.text})


def _say(
    engine: Engine,
    ids: list[int],
    limits: Limits,
    sampling: Sampling,
    report: Reporter,
    *,
    prompt: str,
    number: int = 0,
    keep: bool = False,
    clock: Clock | None = None,
    halted: Callable[[], bool] = lambda: False,
) -> Answer:
    def said(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
        report.event("text", text=text)

    made = answer(engine, [ids], limits, sampling, numbers=(number,), clock=clock, said=said, halted=halted, keep=keep)[
        0
    ]
    if made.problem:
        return made
    if made.text and not made.text.endswith("\n"):
        sys.stderr.write("\n")
    report.event(
        "answer", prompt=prompt, text=made.text, ended=made.ended, tokens=made.generated,
        first_seconds=round(made.first, 4), seconds=round(made.seconds, 4),
    )  # fmt: skip
    if report.terminal:
        rate = (made.generated - 1) / (made.seconds - made.first) if made.seconds > made.first else 0.0
        cut = "" if made.ended else ", not ended"
        speed = f", {rate:,.0f} tokens/s" if rate else ""
        sys.stderr.write(f"\x1b[2m[{made.generated} tokens{cut}, first after {made.first:.2f} s{speed}]\x1b[0m\n")
    sys.stderr.flush()
    return made


def _fitting(
    engine: Engine, opening: list[dict[str, str]], turns: list[dict[str, str]], limits: Limits
) -> tuple[list[int], int]:
    """The conversation's token ids; where it fills the context, the oldest pairs of `turns` are dropped until an answer
    has room (a quarter of the context at least, or what was asked for).
    """
    forgotten = 0
    while True:
        ids = encode(engine, engine.text.render([*opening, *turns], add_generation_prompt=True))
        if engine.context is None or len(turns) < 3:
            return ids, forgotten
        if len(ids) + min(limits.new_tokens, engine.context // 4) <= engine.context:
            return ids, forgotten
        del turns[:2]
        forgotten += 2


class _Interruptible:
    """Ctrl-C stops the answer that is being made; with none it interrupts the reading of a line."""

    def __init__(self) -> None:
        self._answering = self._stopped = False

    def __enter__(self) -> _Interruptible:
        self._old = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._old)

    def _interrupt(self, *_: Any) -> None:
        if not self._answering:
            raise KeyboardInterrupt
        self._stopped = True

    def answering(self) -> Callable[[], bool]:
        self._answering, self._stopped = True, False
        return lambda: self._stopped

    def idle(self) -> None:
        self._answering = False


def _lines(interrupt: _Interruptible, report: Reporter) -> Iterator[str]:
    """What the user says, without blank lines: read with line editing on a terminal."""
    if not sys.stdin.isatty():
        for number, raw in enumerate(sys.stdin.buffer, 1):
            try:
                line = raw.decode("utf-8").strip()
            except UnicodeDecodeError:
                raise UserError("this is not UTF-8", where=f"stdin:{number}", fix="send UTF-8") from None
            if line:
                yield line
        return
    with suppress(ImportError):
        import readline  # noqa: F401  (input() then edits lines and remembers them)
    report.log(f"({HELP})")
    while True:
        interrupt.idle()
        try:
            line = input("> ").strip()
        except EOFError:
            sys.stderr.write("\n")
            return
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            report.log("(Ctrl-D leaves)")
            continue
        if line:
            yield line
