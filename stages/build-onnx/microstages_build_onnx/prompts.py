"""The prompts to compare on: from a file, the held-out rows of a data set, or a few of our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from microstages.artifact import Artifact
from microstages.dataset import held_out
from microstages.errors import UserError, json_mistake
from microstages.tokens import ModelText

ROW = 'write one object a line: {"prompt": "…"} or {"messages": […]}'
OWN = (
    "The old house stood at the end of the road, and nobody had",
    "She opened the letter slowly and read the first line:",
    "In the morning the rain had stopped, but the river",
    "Three things are needed to bake good bread:",
    "“I cannot believe it,” he said,",
    "The children ran down to the sea because",
    "Once upon a time there was a king who",
    "It was the best day of my life when",
    "Why does the moon look larger near the horizon?",
    "The train left at 7:45 and arrived at",
    "Nothing in the letter surprised me more than",
    "Dear Sir, I am writing to you about",
    "A dog, a cat and 12 mice live in",
    "When the door opened, everybody",
    "What is the difference between fear and surprise?",
    "He looked at the map again and",
)


@dataclass(frozen=True)
class Prompts:
    """`texts` as they are given to the model, `ids` as the model's tokenizer reads them, cut to fit the context."""

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    origin: str


def gather(
    text: ModelText, context_length: int, count: int, tokens: int, file: Artifact | None, dataset: Artifact | None
) -> Prompts:
    """At most `count` distinct prompts that leave room for `tokens` more. Raises UserError where there are none."""
    if file is not None and dataset is not None:
        raise UserError("prompts come from one place", where="--prompts", fix="give --prompts or --dataset, not both")
    room = context_length - tokens - 1
    if room < 1:
        raise UserError(
            f"{tokens} tokens do not fit into the model's {context_length}", where="--compare-tokens",
            fix=f"use at most {max(1, context_length // 2)}",
        )  # fmt: skip
    if file is not None:
        origin, found = "prompts", _from_file(file, text)
    elif dataset is not None:
        origin, found = "dataset", _from_dataset(dataset)
    else:
        origin, found = "built-in", _own(text)
    texts: dict[str, tuple[int, ...]] = {}
    for prompt in found:
        ids = tuple(text.tokenizer.encode(prompt, add_special_tokens=False).ids[-room:])
        if ids:
            texts.setdefault(prompt, ids)
        if len(texts) == count:
            break
    if not texts:
        where = file.uri if file else dataset.uri if dataset else ""
        raise UserError("there is no prompt in it", where=where, fix="give a file with a prompt on each line")
    return Prompts(tuple(texts), tuple(texts.values()), origin)


def _own(text: ModelText) -> Iterator[str]:
    """As the model is used: through its chat template where it has one, which takes a user's turn."""
    for prompt in OWN:
        try:
            yield text.render([{"role": "user", "content": prompt}], add_generation_prompt=True)
        except UserError:
            yield prompt


def chats(text: ModelText) -> list[tuple[list[dict[str, str]], str]]:
    """Conversations and what the model's chat template makes of them; those that it refuses are left out."""
    out = []
    user, answer = {"role": "user", "content": "Hello!\n2 + 2?"}, {"role": "assistant", "content": " It is 4. "}
    for messages in ([user], [user, answer, user], [{"role": "system", "content": "Be kind."}, user]):
        try:
            out.append((messages, text.render(messages, add_generation_prompt=True)))
        except UserError:
            continue
    return out


def _from_dataset(dataset: Artifact) -> Iterator[str]:
    for row in held_out(dataset.file("test.jsonl", fix="prepare the data with test_fraction above 0")):
        yield row.prompt if row.prompt is not None else row.text[: max(1, len(row.text) // 2)]


def _from_file(artifact: Artifact, text: ModelText) -> Iterator[str]:
    """JSON Lines or one JSON array with `prompt` or `messages`, or plain text with a prompt on each line."""
    for path in artifact.paths():
        try:
            content = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"this is not UTF-8: {error}", where=path, fix="save the file as UTF-8") from None
        start = "" if path.suffix == ".txt" else content.lstrip()[:1]
        if start == "[":
            for number, value in enumerate(_parsed(content, str(path)), 1):
                yield _prompt(value, f"{path}: row {number}", text)
            continue
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                where = f"{path}:{number}"
                yield _prompt(_parsed(line, where), where, text) if start == "{" else line


def _parsed(content: str, where: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        at, what = json_mistake(error)
        column = at.rpartition(":")[2]
        raise UserError(f"this is not JSON: {what}", where=f"{where}:{column}" if at else where, fix=ROW) from None


def _prompt(row: Any, where: str, text: ModelText) -> str:
    if isinstance(row, dict) and isinstance(row.get("prompt"), str):
        return str(row["prompt"])
    messages = row.get("messages") if isinstance(row, dict) else None
    if isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages):
        if messages[-1].get("role") == "assistant":  # the answer that is known
            messages = messages[:-1]
        return text.render(messages, add_generation_prompt=True)
    raise UserError("there is neither prompt nor messages in this row", where=where, fix=ROW)
