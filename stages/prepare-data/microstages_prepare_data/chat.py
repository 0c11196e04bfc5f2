"""Chat messages as text, and where in it the assistant speaks.

The text is what the model's own chat template renders. What stands before an assistant's turn is rendered alone, as
inference will render it; the turn is what follows it in the whole, through its end-of-turn token. That needs a
template that leaves earlier text as it is when messages are added. Where it does so only for the last turn (some
templates cut the reasoning out of earlier ones), the last turn alone is trained; where not even there, it is an error.
What the template writes behind the last end of turn is left out: generation has stopped there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from microstages.errors import UserError
from microstages.tokens import ModelText

from microstages_prepare_data.recipe import BadRowError, Parts, Recipe
from microstages_prepare_data.sources import Row, kind_of

Message = dict[str, Any]
_ANSWER = "This is the answer."
_PROBE = (
    {"role": "user", "content": "This is a question."},
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": "This is another."},
    {"role": "assistant", "content": _ANSWER},
)
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def end_of_turn(text: ModelText) -> str | None:
    """The token that the template writes behind an assistant's answer; None where it writes none.

    Raises UserError where the model has no template, or the template leaves the answer out.
    """
    full = text.render(_PROBE)
    at = full.rfind(_ANSWER)
    if at < 0:
        raise UserError(
            "the chat template leaves the assistant's answer out", where=text.folder, fix="give --template instead"
        )
    after = full[at + len(_ANSWER) :]
    tokens = {t.content for t in text.tokenizer.get_added_tokens_decoder().values()}
    found = [(after.index(t), -len(t), t) for t in tokens if t and t in after]
    return min(found)[2] if found else None


def keeps_earlier_turns(text: ModelText) -> bool:
    """Whether all turns can be trained, or only the last. Raises UserError where not even that."""
    full = text.render(_PROBE)
    first, last = (full.startswith(text.render(_PROBE[:i], add_generation_prompt=True)) for i in (1, 3))
    if not last:
        raise UserError(
            "the chat template changes earlier text when it adds an answer, so training would differ from inference",
            where=text.folder,
            fix="give --template instead, or mend chat_template.jinja: the text of a conversation must go on from its"
            " generation prompt",
        )
    return first


@dataclass(frozen=True)
class Chat:
    """Rows of chat messages. `end`: the template's end-of-turn token, None where it has none."""

    text: ModelText
    field: str
    end: str | None
    every_turn: bool
    answer: bool = True

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field,)

    def messages(self, row: Row) -> list[Message]:
        """What a row says. Raises BadRowError."""
        return _messages(row, self.field)

    def parts(self, row: Row) -> Parts:
        messages = self.messages(row)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        if not turns:
            raise BadRowError("it has no assistant message")
        if turns[0] == 0:
            raise BadRowError("it begins with an assistant message, so there is no prompt")
        last = turns[-1]
        messages = messages[: last + 1]
        if not messages[last]["content"].strip():
            raise BadRowError("the last assistant message is empty")
        full = rendered(self.text, messages)
        parts, at = [], 0
        for i in turns if self.every_turn else turns[-1:]:
            before = rendered(self.text, messages[:i], add_generation_prompt=True)
            if not full.startswith(before) or len(before) < at:
                if i == last:
                    raise BadRowError("the chat template changes what came before when this answer is added")
                continue
            stop = self._stop(full, len(before), messages[i]["content"].strip())
            parts += [full[at : len(before)], full[len(before) : stop]]
            at = stop
        return parts

    def _stop(self, full: str, start: int, content: str) -> int:
        """Where the turn that starts at `start` ends: behind its end-of-turn token."""
        found = full.find(content, start)
        behind = start if found < 0 else found + len(content)
        if self.end is None:
            if found < 0:
                raise BadRowError("the chat template changes the assistant's answer")
            return behind
        stop = full.find(self.end, behind)
        if stop < 0:
            raise BadRowError(f"the chat template writes no {self.end} behind the answer")
        return stop + len(self.end)

    def describe(self) -> dict[str, Any]:
        return {"kind": "chat", "messages_field": self.field}


@dataclass(frozen=True)
class AsChat(Chat):
    """Rows of a prompt and an answer (`of`), each said in a chat: the prompt by the user."""

    of: Recipe | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        assert self.of is not None
        return self.of.fields

    def messages(self, row: Row) -> list[Message]:
        assert self.of is not None
        *prompt, answer = self.of.parts(row)
        said = "".join(prompt).strip()
        if not said:
            raise BadRowError("its prompt is empty")
        return [{"role": "user", "content": said}, {"role": "assistant", "content": answer.strip()}]

    def describe(self) -> dict[str, Any]:
        """As the recipe's own, with what the chat template writes around the prompt."""
        assert self.of is not None
        said = {**self.of.describe(), "as_chat": True}
        whole = self.text.render([{"role": "user", "content": _ANSWER}], add_generation_prompt=True)
        head, _, tail = (t.replace("{", "{{").replace("}", "}}") for t in whole.rpartition(_ANSWER))
        if said["kind"] == "templates":
            return {**said, "prompt_template": f"{head}{said['prompt_template'].strip()}{tail}"}
        if said["kind"] == "fields":
            prompt, answer = f"{{{said['prompt_field']}}}", str(said["completion_field"])
        else:
            answer = str(said["completion"])
            prompt = str(said["template"]).rpartition(f"{{{answer}}}")[0].strip()
        template = f"{head}{prompt}{tail}{{{answer}}}"
        return {"kind": "template", "template": template, "completion": answer, "as_chat": True}


@dataclass(frozen=True)
class Conversation:
    """Rows of chat messages, each the one text that the chat template renders, to its end."""

    text: ModelText
    field: str
    answer: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field,)

    def parts(self, row: Row) -> Parts:
        return ["", rendered(self.text, _messages(row, self.field))]

    def describe(self) -> dict[str, Any]:
        return {"kind": "chat", "messages_field": self.field, "conversation": "text"}


@dataclass(frozen=True)
class WithTemplate(ModelText):
    """A model's text with another chat template."""

    template: str = ""

    @cached_property
    def chat_template(self) -> str | None:
        return self.template


def rendered(text: ModelText, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
    """Messages as the chat template writes them. Raises BadRowError where it cannot."""
    try:
        return text.render(messages, add_generation_prompt=add_generation_prompt)
    except UserError as error:
        raise BadRowError(error.what) from None
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise BadRowError(f"the chat template cannot render the messages: {error}") from None


def _messages(row: Row, field: str) -> list[Message]:
    """The messages of a row as `role` and `content`; `from` and `value` (ShareGPT) are read too. Raises BadRowError."""
    if field not in row:
        raise BadRowError(f"it has no field {field!r}")
    given = row[field]
    if not isinstance(given, list) or not given:
        raise BadRowError(f"the field {field!r} holds {kind_of(given) if given != [] else 'no messages'}, not messages")
    messages = []
    for n, m in enumerate(given, 1):
        if not isinstance(m, dict):
            raise BadRowError(f"message {n} is {kind_of(m)}, not an object")
        sharegpt = "from" in m and "role" not in m
        role = _ROLES.get(m["from"], m["from"]) if sharegpt else m.get("role")
        content = m.get("value" if sharegpt else "content")
        if isinstance(content, list) and all(isinstance(c, dict) and c.get("type") == "text" for c in content):
            content = "".join(str(c.get("text", "")) for c in content)
        if not isinstance(role, str):
            raise BadRowError(f"message {n} has no role")
        if not isinstance(content, str):
            raise BadRowError(f"message {n} has no text as its content")
        messages.append({**m, "role": role, "content": content})
    return messages
