"""From prompts to answers, for any engine: what ends an answer, its text, and the times.

An answer ends at a stop token, at a stop text (neither is part of it), or when its room is used up: the most new tokens
that were asked for, or what the model's context leaves beside the prompt.

Times: an answer waits for its batch. `first` is from the batch's start to its first token (prefill), `seconds` from
the batch's start to its own end. With one row in a batch these are the times of a request alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from microstages.errors import UserError
from microstages.tokens import ModelText

from microstages_infer.sampling import Sampler, Sampling

Choose = Callable[[Any], list[int]]  # logits (rows, vocabulary) -> a token for each row


class Engine(Protocol):
    """A loaded model. It knows nothing about what ends an answer."""

    name: str
    device: str
    precision: str
    text: ModelText
    context: int | None  # the most tokens of prompt and answer together, where the model has a limit
    together: int | None  # the same, in a batch of several prompts
    vocabulary: int | None  # ids below it are rows of the model
    stop_ids: frozenset[int]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        room: int,
        choose: Choose | None,
        took: Callable[[list[int]], bool],
        keep: bool = False,
    ) -> None:
        """Generate at most `room` tokens for each prompt; `took` gets each step's token of every row, and says
        whether to go on. Without `choose` the likeliest token is taken. `keep` (one prompt): what this and the
        next prompt begin with alike is computed once.
        """

    def read(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Any]:
        """Read whole sequences in one batch: for each the logits in front of its tokens from `start` (1 or more) on,
        shape (length - start, vocabulary), float32.
        """


@dataclass(frozen=True)
class Limits:
    """When answers end, beside at the model's stop tokens."""

    new_tokens: int
    stop: tuple[str, ...] = ()


@dataclass
class Answer:
    """`ids` are the tokens said, without a stop token; `generated` counts it. `problem`: why there is no answer."""

    prompt_tokens: int
    ids: list[int] = field(default_factory=list)
    text: str = ""
    ended: bool = False
    generated: int = 0
    first: float = 0.0
    seconds: float = 0.0
    problem: str | None = None


@dataclass
class Clock:
    """What the engine did, summed over batches: seconds, and tokens that are not padding."""

    prefill_seconds: float = 0.0
    prefill_tokens: int = 0
    decode_seconds: float = 0.0
    decode_tokens: int = 0


def encode(engine: Engine, prompt: str) -> list[int]:
    """The token ids of a prompt, as in training: special tokens only where the text says so.

    Raises UserError where the model has no row for one of them.
    """
    ids = list(engine.text.tokenizer.encode(prompt, add_special_tokens=False).ids)
    if engine.vocabulary is not None and max(ids, default=0) >= engine.vocabulary:
        raise UserError(
            f"the tokenizer makes token {max(ids)}, but the model has {engine.vocabulary} rows",
            where=engine.text.folder,
            fix="the tokenizer is not this model's: get or make the folder again",
        )
    return ids


def room(engine: Engine, prompt_tokens: int, wanted: int) -> int:
    """How many tokens may follow a prompt; 0 or less where the prompt alone fills the context."""
    return wanted if engine.context is None else min(wanted, engine.context - prompt_tokens)


class Making:
    """An answer in the making."""

    def __init__(self, engine: Engine, prompt: Sequence[int], limits: Limits, said: Callable[[str], None] | None):
        self.answer = Answer(len(prompt))
        self._text = engine.text
        self._stop_ids = engine.stop_ids
        self._limits, self._said = limits, said
        self.room = room(engine, len(prompt), limits.new_tokens)
        self.done = False
        self._shown = 0

    def take(self, token: int, since: float) -> None:
        a = self.answer
        a.generated += 1
        if token in self._stop_ids:
            a.ended = self.done = True
        else:
            a.ids.append(token)
            self.done = a.generated >= self.room
        if self._limits.stop or self._said or self.done:
            self._read()
        if self.done:
            a.seconds = time.perf_counter() - since

    def _read(self) -> None:
        a = self.answer
        a.text = self._text.tokenizer.decode(a.ids, skip_special_tokens=False)
        found = [at for at in (a.text.find(s) for s in self._limits.stop) if at >= 0]
        if found:
            a.text = a.text[: min(found)]
            a.ended = self.done = True
        if self._said is not None:
            safe = len(a.text) if self.done else len(a.text) - self._unsure(a.text)
            if safe > self._shown:
                self._said(a.text[self._shown : safe])
                self._shown = safe

    def _unsure(self, text: str) -> int:
        """Characters at the end that may still change: half of a character, or the beginning of a stop text."""
        sure = text.rstrip("\ufffd")
        begun = (n for s in self._limits.stop for n in range(1, len(s)) if sure.endswith(s[:n]))
        return len(text) - len(sure) + max(begun, default=0)

    def halt(self, since: float) -> None:
        if not self.done:
            self.done = True
            self._read()
            self.answer.seconds = time.perf_counter() - since


def answer(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    sampling: Sampling,
    *,
    numbers: Sequence[int] = (0,),
    clock: Clock | None = None,
    said: Callable[[str], None] | None = None,
    halted: Callable[[], bool] = lambda: False,
    keep: bool = False,
) -> list[Answer]:
    """Answers to one batch of prompts (token ids).

    `numbers` seed the rows. `said` gets the text of a single prompt's answer as it comes. `halted` stops early.
    A prompt that leaves no room gets an answer with a `problem`.
    """
    clock = clock or Clock()
    rows = [Making(engine, p, limits, said) for p in prompts]
    for row in rows:
        if row.answer.prompt_tokens == 0:
            row.done, row.answer.problem = True, "the prompt is empty"
        elif row.room < 1:
            row.done = True
            row.answer.problem = (
                f"the prompt of {row.answer.prompt_tokens} tokens leaves no room in the context of {engine.context}"
            )
    live = [(row, p, n) for row, p, n in zip(rows, prompts, numbers, strict=True) if not row.done]
    if not live:
        return [r.answer for r in rows]
    choose: Choose | None = None
    if not sampling.plain:
        samplers = [Sampler(sampling, n, p) for _, p, n in live]

        def choose(logits: Any) -> list[int]:
            return [s.pick(line) for s, line in zip(samplers, logits, strict=True)]

    began = last = time.perf_counter()
    first = True

    def took(tokens: list[int]) -> bool:
        nonlocal first, last
        now = time.perf_counter()
        going = 0
        for (row, _, _), token in zip(live, tokens, strict=True):
            if not row.done:
                going += 1
                row.take(token, began)
                if first:
                    row.answer.first = now - began
        if first:
            clock.prefill_seconds += now - began
            clock.prefill_tokens += sum(len(p) for _, p, _ in live)
        else:
            clock.decode_seconds += now - last
            clock.decode_tokens += going
        first = False
        if halted():
            for row, _, _ in live:
                row.halt(began)
        last = now
        return not all(row.done for row, _, _ in live)

    engine.generate([p for _, p, _ in live], max(row.room for row, _, _ in live), choose, took, keep)
    return [r.answer for r in rows]
