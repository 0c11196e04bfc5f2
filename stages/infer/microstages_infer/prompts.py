"""What is to be answered: rows of a data set, of prompts files, or one prompt, all in one form.

A prompts file is `.txt` (one prompt a line, blank lines left out) or else JSON: one object a line, or one array of
objects. An object has `prompt` or `messages`; a reference to compare with is its `completion` or `reference`, or the
last of the `messages` where the assistant says it.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microstages.artifact import Artifact
from microstages.dataset import held_out
from microstages.errors import UserError, json_mistake
from microstages.tokens import ModelText

_SAID = "what somebody says"
ROLES = ("system", "user", "assistant", "tool")
_FORMS = 'a row is {"prompt": …} or {"messages": […]}, with "completion" where the right answer is known'


@dataclass(frozen=True)
class Row:
    """One prompt as the model reads it, and the right answer where it is known."""

    prompt: str
    reference: str | None = None


@dataclass(frozen=True)
class Wrap:
    """How a bare prompt becomes the model's text: as it is, after a bos token, or as a user's message of a chat."""

    text: ModelText
    chat: bool = False
    system: str | None = None
    add_bos: bool = False

    def prompt(self, prompt: str) -> str:
        if self.chat:
            return self.messages([{"role": "user", "content": prompt}])
        if not self.add_bos:
            return prompt
        bos = self.text.special("bos_token")
        if bos is None:
            raise UserError("the model's tokenizer names no bos_token", where="--add-bos", fix="leave it out")
        return prompt if prompt.startswith(bos) else bos + prompt

    def lacks_bos(self, prompt: str) -> bool:
        """Whether the tokenizer by itself would put a bos token before this text, and none stands there."""
        bos = self.text.special("bos_token")
        own = self.text.tokenizer.encode("a", add_special_tokens=True).ids
        return bos is not None and own[:1] == [self.text.token_id(bos)] and not prompt.startswith(bos)

    def messages(self, messages: list[dict[str, str]]) -> str:
        first = [{"role": "system", "content": self.system}] if self.system is not None else []
        return self.text.render([*first, *messages], add_generation_prompt=True)

    def chat_is_of(self, form: str) -> bool:
        """Whether what is said in a chat becomes a prompt of a form: see `form_of`."""
        try:
            prompt = self.messages([{"role": "user", "content": _SAID}])
        except UserError:  # there is no chat template, or none for this
            return False
        # any prompt is of a form that is a field and little else: what begins the answer must stand there too
        return follows(form, prompt) and prompt.rpartition(_SAID)[2].strip() in form


def form_of(metadata: Mapping[str, Any]) -> str | None:
    """How the prompts were written that a model or an adapter was tuned on, where its manifest tells of a template.

    As there: {field} for what differs, {{ and }} for braces. Spaces before the answer belong to the answer.
    """
    said = metadata.get("template")
    if not isinstance(said, Mapping):
        return None
    kind, completion = said.get("kind"), said.get("completion")
    form = said.get({"template": "template", "templates": "prompt_template"}.get(str(kind), ""))
    if not isinstance(form, str):
        return None
    if kind == "template" and completion:
        form = form.rpartition(f"{{{completion}}}")[0].rstrip(" ")
    return form or None


def follows(form: str, prompt: str) -> bool:
    """Whether a prompt may have been written by a template; true too where the template cannot be read."""
    texts = [""]
    try:
        for text, field, _, _ in string.Formatter().parse(form):
            texts[-1] += text
            texts += [] if field is None else [""]
    except ValueError:
        return True
    first, *between, last = texts if len(texts) > 1 else [texts[0], ""]
    at = len(first) if prompt.startswith(first) else -1
    for text in between:
        at = prompt.find(text, at) + len(text) if at >= 0 and text in prompt[at:] else -1
    if len(texts) == 1:
        return prompt == first
    return at >= 0 and len(prompt) - len(last) >= at and prompt.endswith(last)


def from_dataset(dataset: Artifact) -> tuple[list[Row], int]:
    """The held-out rows, and how many of them were left out because no prompt is known for them.

    Raises UserError where nothing was held out, or no row has a prompt.
    """
    file = dataset.path / "test.jsonl"
    if not file.is_file():
        raise UserError(
            "this data set holds out no rows (there is no test.jsonl)",
            where=dataset.uri,
            fix="prepare it with a test share above 0, or give --prompts",
        )
    rows = [Row(r.prompt, r.completion) if r.prompt is not None else None for r in held_out(file)]
    known = [r for r in rows if r is not None]
    if not rows:
        raise UserError("this data set holds out no rows: test.jsonl is empty", where=file, fix="give --prompts")
    if not known:
        raise UserError(
            "the held-out rows are plain text: no prompt is known for any of them",
            where=file,
            fix="prepare the data with a template or with prompt and completion fields, or give --prompts",
        )
    return known, len(rows) - len(known)


def from_files(files: Artifact, wrap: Wrap) -> list[Row]:
    """The rows of prompts files, in the order of the files' names. Raises UserError with file and line."""
    rows: list[Row] = []
    for path in files.paths():
        if path.suffix.lower() == ".txt":
            rows += [Row(wrap.prompt(line)) for _, line in _lines(path)]
        else:
            for where, value in _objects(path):
                rows.append(_row(value, where, wrap))
    if not rows:
        raise UserError("there is no prompt in it", where=files.uri, fix=_FORMS)
    return rows


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as f:
        for number, raw in enumerate(f, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"this is not UTF-8: {error.reason}", where=f"{path}:{number}", fix="save the file as UTF-8"
                ) from None
            if line.strip():
                yield number, line


def _objects(path: Path) -> Iterator[tuple[str, Any]]:
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip().startswith("["):
        text = "\n".join([first[1], *(line for _, line in lines)])
        for number, value in enumerate(_json(text, str(path)), 1):
            yield f"{path} row {number}", value
        return
    for number, line in (first, *lines):
        yield f"{path}:{number}", _json(line, f"{path}:{number}")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        at, what = json_mistake(error)
        if ":" in where.rpartition("/")[2]:  # one line of the file
            at = at and f":{at.rpartition(':')[2]}"
        fix = f"{_FORMS}; plain text prompts go in a .txt file"
        raise UserError(f"this is not JSON: {what}", where=f"{where}{at}", fix=fix) from None


def _not_text(name: str, value: Any, where: str) -> UserError:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    said = json.dumps(value, ensure_ascii=False)
    fix = f"write it in quotes: {json.dumps({name: said}, ensure_ascii=False)}" if number else _FORMS
    return UserError(f"its {name} is not text but {said[:40]}{'…' * (len(said) > 40)}", where=where, fix=fix)


def _row(value: Any, where: str, wrap: Wrap) -> Row:
    if not isinstance(value, Mapping):
        raise UserError("this row is not a JSON object", where=where, fix=_FORMS)
    known = [k for k in ("prompt", "messages") if value.get(k) is not None]
    if len(known) != 1:
        what = "both prompt and messages" if known else "neither prompt nor messages"
        raise UserError(f"this row has {what}", where=where, fix=_FORMS)
    reference = value.get("completion", value.get("reference"))
    if reference is not None and not isinstance(reference, str):
        raise _not_text("completion", reference, where)
    if known == ["prompt"]:
        if not isinstance(value["prompt"], str):
            raise _not_text("prompt", value["prompt"], where)
        return Row(wrap.prompt(value["prompt"]), reference)
    messages = value["messages"]
    good = isinstance(messages, list) and all(
        isinstance(m, Mapping) and m.get("role") in ROLES and isinstance(m.get("content"), str) for m in messages
    )
    if not good or not messages:
        raise UserError(
            "its messages are not a list of role and content",
            where=where,
            fix=f'a message is {{"role": …, "content": …}}; the roles are {", ".join(ROLES)}',
        )
    messages = [{"role": m["role"], "content": m["content"]} for m in messages]
    if messages[-1]["role"] == "assistant":
        last = messages.pop()["content"]
        reference = reference if reference is not None else last
        if not messages:
            raise UserError("its messages hold nothing to answer", where=where, fix=_FORMS)
    if wrap.system is not None and messages[0]["role"] == "system":
        messages = messages[1:]
    return Row(wrap.messages(messages), reference)
