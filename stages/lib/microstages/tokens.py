"""A model folder's tokenizer, chat template and end tokens, without transformers: starts in 0.1 s.

`tokenizers` reads `tokenizer.json`; the chat template (`chat_template.jinja`, or `chat_template` in
`tokenizer_config.json`) is rendered by jinja2's immutable sandbox with the settings of transformers, so that the text
is the same. Templates are the model author's code: the sandbox is what keeps them harmless.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from microstages.errors import UserError, json_mistake, redo


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises UserError where it is missing or none."""
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UserError("there is no such file", where=file, fix="check that the folder is complete") from None
    except (ValueError, UnicodeDecodeError) as error:
        at, what = json_mistake(error)
        raise UserError(f"this is not JSON: {what}", where=f"{file}{at}", fix=f"correct it, or {redo(file)}") from None
    if not isinstance(value, dict):
        raise UserError("this is not a JSON object", where=file, fix=redo(file))
    return value


@dataclass(frozen=True)
class ModelText:
    """How a model reads and ends text. `folder` is the model's folder on this machine."""

    folder: Path

    @cached_property
    def tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer`; adds no special tokens unless asked. Raises UserError where there is none."""
        file = self.folder / "tokenizer.json"
        if not file.is_file():
            raise UserError(
                "the model has no tokenizer.json",
                where=self.folder,
                fix="save it there: AutoTokenizer.from_pretrained(…, use_fast=True).save_pretrained(folder)",
            )
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises plain Exception
            raise UserError(f"this tokenizer cannot be read: {error}", where=file, fix=redo(file)) from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def sha256(self) -> str:
        """sha256 of `tokenizer.json`: the same value, the same token ids."""
        self.tokenizer  # noqa: B018  (says what is wrong where there is none)
        return hashlib.sha256((self.folder / "tokenizer.json").read_bytes()).hexdigest()

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`."""
        return read_json(self.folder / "config.json")

    @cached_property
    def _tokenizer_config(self) -> dict[str, Any]:
        file = self.folder / "tokenizer_config.json"
        return read_json(file) if file.is_file() else {}

    @cached_property
    def _special_tokens(self) -> dict[str, Any]:
        file = self.folder / "special_tokens_map.json"
        known = {k: v for k, v in self._tokenizer_config.items() if k.endswith("_token") and v is not None}
        return {**(read_json(file) if file.is_file() else {}), **known}

    def special(self, name: str) -> str | None:
        """The text of `bos_token`, `eos_token`, `pad_token` or `unk_token`; None where the model has none."""
        value = self._special_tokens.get(name)
        return value.get("content") if isinstance(value, Mapping) else value

    def token_id(self, text: str) -> int | None:
        """The id of a text that is exactly one token, None otherwise."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids[0] if len(ids) == 1 else None

    @cached_property
    def stop_ids(self) -> list[int]:
        """The ids that end generation: `generation_config.json`, else `config.json`, else the tokenizer's eos token."""
        file = self.folder / "generation_config.json"
        for source in (read_json(file) if file.is_file() else {}, self.config):
            value = source.get("eos_token_id")
            if value is not None:
                return [int(v) for v in value] if isinstance(value, list) else [int(value)]
        eos = self.special("eos_token")
        found = self.token_id(eos) if eos else None
        return [] if found is None else [found]

    @cached_property
    def chat_template(self) -> str | None:
        """The jinja source of the chat template, None where the model has none."""
        file = self.folder / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        value = self._tokenizer_config.get("chat_template")
        if isinstance(value, list):  # several named templates
            value = next((t["template"] for t in value if t.get("name") == "default"), None)
        return value

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str:
        """Messages (`role`, `content`) as the text that the model was trained on.

        Raises UserError where the model has no chat template or the template refuses the messages.
        """
        from jinja2 import TemplateError

        try:
            return str(
                self._compiled.render(
                    messages=list(messages),
                    add_generation_prompt=add_generation_prompt,
                    **{k: self.special(k) or "" for k in ("bos_token", "eos_token", "pad_token", "unk_token")},
                )
            )
        except TemplateError as error:
            raise UserError(f"the chat template refuses the messages: {error}", where=self.folder) from None

    @cached_property
    def _compiled(self) -> Any:
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if not self.chat_template:
            raise UserError(
                "the model has no chat template",
                where=self.folder,
                fix="use a text template or prompt and completion fields, or a model that was tuned for chat",
            )

        def raise_exception(message: str) -> None:
            raise TemplateError(message)

        def tojson(value: Any, **options: Any) -> str:
            return json.dumps(value, ensure_ascii=False, **options)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = raise_exception
        environment.filters["tojson"] = tojson
        try:
            return environment.from_string(self.chat_template)
        except TemplateError as error:
            raise UserError(f"the chat template cannot be read: {error}", where=self.folder) from None
