"""The requests and answers of OpenAI's API, as far as a served model has them: parsed once, at the edge, into values.

What a server like this cannot do is refused in words, never passed over: an answer that silently lacks what was asked
for is worse than none. https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from microstages.errors import UserError, nearest

from microstages_infer.decoding import Answer, Engine, Limits, encode
from microstages_infer.prompts import ROLES, Wrap
from microstages_infer.sampling import Sampling

ROOM = 4096  # tokens of an answer, where neither the request nor the server nor the context says less
PROMPTS = 32  # the most prompts of one request
# Fields that say nothing about the answer.
_IDLE = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
# Fields that are fine as long as they ask for nothing, with what asks for nothing.
_ONLY: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False,), "top_logprobs": (0,),
    "logit_bias": ({},), "presence_penalty": (0,), "frequency_penalty": (0,), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "audio": (), "prediction": (), "reasoning_effort": ("none",), "verbosity": (),
    "web_search_options": (),
}  # fmt: skip
_OURS = {"model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k",
         "repetition_penalty", "seed", "stop", "stream", "stream_options"}  # fmt: skip


class ApiError(Exception):
    """An answer that says what is wrong. `status` is of HTTP; the rest is the body's."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.kind, self.retry_after = kind, retry_after

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Served:
    """The model that is served, and what a request that does not say otherwise gets. `most`: `--max-new-tokens`."""

    name: str
    digest: str
    created: int
    engine: Engine
    wrap: Wrap
    sampling: Sampling
    stop: tuple[str, ...]
    most: int | None
    form: str | None  # how the prompts of its tuning were written, where that is known

    def entry(self) -> dict[str, Any]:
        """The model in a list of models."""
        entry = {"id": self.name, "object": "model", "created": self.created, "owned_by": "microstages"}
        return {**entry, "context_length": self.engine.context, "digest": self.digest}


@dataclass(frozen=True)
class Asked:
    """A request. `seeded`: it brings a seed of its own."""

    chat: bool
    prompts: tuple[tuple[int, ...], ...]
    limits: tuple[Limits, ...]
    sampling: Sampling
    seeded: bool
    stream: bool
    usage: bool


def parse(served: Served, body: bytes, *, chat: bool) -> Asked:
    """A request's body. Raises ApiError."""
    value = _object(body)
    _known(value, "prompt" if chat else "messages")
    if (name := _get(value, "model", str, served.name)) != served.name:
        raise ApiError(
            404, f"the model {name!r} is not served here; {served.name!r} is", param="model", code="model_not_found"
        )
    prompts = _chat(served, value) if chat else _prompts(served, value)
    stop = _stop(value.get("stop"))
    limits = tuple(Limits(_room(served, value, len(p), chat), (*stop, *served.stop)) for p in prompts)
    stream = _get(value, "stream", bool, False)
    options = _get(value, "stream_options", dict, None)
    if options is not None and not stream:
        raise ApiError(400, "it is for streams: set stream to true", param="stream_options")
    seed = _number(value, "seed", int, None, low=0)
    return Asked(
        chat, prompts, limits, _sampling(served, value, seed), seed is not None, stream,
        bool(options and _get(options, "include_usage", bool, False)),
    )  # fmt: skip


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body is not a JSON object")
    return {k: v for k, v in value.items() if v is not None}


def _known(value: Mapping[str, Any], other: str) -> None:
    """Raises ApiError for a field that is not known, or asks for what is not there."""
    for name, asked in value.items():
        if name in _ONLY:
            fine = _ONLY[name]
            if not any(asked == f and isinstance(asked, bool) == isinstance(f, bool) for f in fine):
                but = f"; {name} may be {' or '.join(json.dumps(f) for f in fine)}" if fine else ""
                raise ApiError(400, f"{name} is not supported here{but}", param=name, code="unsupported_parameter")
        elif name not in _OURS - {other} and name not in _IDLE:
            hint = nearest(name, _OURS - {other})
            raise ApiError(400, f"the field {name!r} is not known here{hint}", param=name, code="unknown_parameter")


def _get(value: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    found = value.get(name)
    if found is None:
        return default
    if not isinstance(found, kind):
        noun = {bool: "true or false", dict: "an object", str: "text"}[kind]
        raise ApiError(400, f"{name} is not {noun}", param=name)
    return found


def _number(
    value: Mapping[str, Any], name: str, kind: type, default: Any, *, low: float, high: float | None = None,
    above: bool = False,
) -> Any:  # fmt: skip
    found = value.get(name)
    if found is None:
        return default
    good = isinstance(found, int) or (kind is float and isinstance(found, float))
    if good and not isinstance(found, bool) and (found > low if above else found >= low) and found <= (high or 2**63):
        return found
    noun = "a whole number" if kind is int else "a number"
    limit = f"{'above' if above else 'of at least'} {low}" + (f" and at most {high}" if high is not None else "")
    raise ApiError(400, f"{name} is not {noun} {limit}", param=name)


def _sampling(served: Served, value: Mapping[str, Any], seed: int | None) -> Sampling:
    given = served.sampling
    top_k = _number(value, "top_k", int, given.top_k, low=-1)
    return replace(
        given,
        temperature=_number(value, "temperature", float, given.temperature, low=0, high=2),
        top_p=_number(value, "top_p", float, given.top_p, low=0, high=1, above=True),
        top_k=top_k if top_k and top_k > 0 else None,
        repetition_penalty=_number(value, "repetition_penalty", float, given.repetition_penalty, low=0, above=True),
        seed=given.seed if seed is None else seed,
    )


def _stop(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value if isinstance(value, list) else [] if value is None else None
    if texts is None or len(texts) > 4 or not all(isinstance(t, str) and t for t in texts):
        raise ApiError(400, "stop is not a text, or a list of at most 4 texts, none of them empty", param="stop")
    return tuple(texts)


def _room(served: Served, value: Mapping[str, Any], prompt: int, chat: bool) -> int:
    """The most tokens of an answer: what is asked for, else what the server and the model's context leave."""
    names = ("max_completion_tokens", "max_tokens") if chat else ("max_tokens",)
    if not chat and "max_completion_tokens" in value:
        raise ApiError(400, "completions call it max_tokens", param="max_completion_tokens", code="unknown_parameter")
    given = [(n, _number(value, n, int, None, low=1)) for n in names if n in value]
    if len(given) == 2 and given[0][1] != given[1][1]:
        raise ApiError(400, "max_tokens and max_completion_tokens differ: give one of them", param="max_tokens")
    name, wanted = given[0] if given else (names[-1], None)
    context = served.engine.context
    if served.most is not None and wanted is not None and wanted > served.most:
        raise ApiError(400, f"{name} may be at most {served.most} here", param=name)
    where = "messages" if chat else "prompt"
    if context is not None and prompt + (wanted or 1) > context:
        more = f" and {wanted} of the answer" if wanted else ""
        raise ApiError(
            400, f"the model's context is {context} tokens, and there are {prompt} in the {where}{more}", param=where,
            code="context_length_exceeded",
        )  # fmt: skip
    if wanted is not None:
        return int(wanted)
    left = [n for n in (served.most, None if context is None else context - prompt) if n is not None]
    return min([ROOM, *left])


def _prompts(served: Served, value: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """A text, token ids, or a list of either."""
    prompt = value.get("prompt")
    ids = isinstance(prompt, list) and prompt and all(isinstance(i, int) for i in prompt)
    several: Sequence[Any] = [prompt] if ids or not isinstance(prompt, list) else prompt
    if not 0 < len(several) <= PROMPTS:
        raise ApiError(400, f"give 1 to {PROMPTS} prompts", param="prompt")
    return tuple(_ids(served, p, served.wrap.prompt, "prompt") for p in several)


def _ids(served: Served, prompt: Any, text: Callable[[Any], str], param: str) -> tuple[int, ...]:
    if isinstance(prompt, list) and all(type(i) is int for i in prompt):
        size = served.engine.vocabulary or served.engine.text.tokenizer.get_vocab_size()
        if not all(0 <= i < size for i in prompt):
            raise ApiError(400, f"token ids of this model are 0 to {size - 1}", param=param)
        found = tuple(prompt)
    elif isinstance(prompt, str):
        try:
            prompt.encode()
            found = tuple(encode(served.engine, text(prompt)))
        except UserError as error:
            raise ApiError(400, error.what, param=param) from None
        except UnicodeEncodeError:
            raise ApiError(400, "it holds half of a surrogate pair, which is no text", param=param) from None
    else:
        raise ApiError(400, "the prompt is no text and no list of token ids", param=param)
    if not found:
        raise ApiError(400, f"the {param} is empty", param=param)
    return found


def _chat(served: Served, value: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages is not a list of at least one message", param="messages")
    read = [_message(m, f"messages[{i}]") for i, m in enumerate(messages)]
    if not served.engine.text.chat_template:
        form = f"; it was tuned on prompts of the form {served.form!r}" if served.form else ""
        raise ApiError(
            400, f"this model has no chat template: send its prompt, as it was tuned, to /v1/completions{form}",
            param="messages", code="no_chat_template",
        )  # fmt: skip
    wrap = served.wrap if read[0]["role"] != "system" else replace(served.wrap, system=None)
    try:
        said = wrap.messages(read)
    except UserError as error:
        raise ApiError(400, error.what, param="messages") from None
    return (_ids(served, said, str, "messages"),)


def _message(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ApiError(400, f"{where} is not an object", param=where)
    value = {k: v for k, v in value.items() if v is not None and v != []}
    role, content = value.get("role"), value.get("content")
    role = "system" if role == "developer" else role
    if role not in ROLES:
        raise ApiError(400, f"its role is none of {', '.join(ROLES)}", param=f"{where}.role")
    for name in value.keys() - {"role", "content", "name", "tool_call_id"}:
        raise ApiError(400, f"{name} is not supported here", param=f"{where}.{name}", code="unsupported_parameter")
    if isinstance(content, list):
        if not all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
            raise ApiError(400, "this model reads text only", param=f"{where}.content")
        content = "".join(p["text"] for p in content)
    if not isinstance(content, str):
        raise ApiError(400, "its content is not text", param=f"{where}.content")
    return {"role": role, "content": content}


# --- answers ---


class Shape:
    """The bodies that answer one request: whole, or in pieces."""

    def __init__(self, served: Served, asked: Asked, created: int) -> None:
        self._asked = asked
        kind = "chatcmpl" if asked.chat else "cmpl"
        self._whole = "chat.completion" if asked.chat else "text_completion"
        self._piece = "chat.completion.chunk" if asked.chat else "text_completion"
        self._head = {"id": f"{kind}-{secrets.token_hex(12)}", "created": created, "model": served.name,
                      "system_fingerprint": served.digest.removeprefix("sha256:")[:16]}  # fmt: skip

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The answers to all prompts."""
        choices = []
        for i, a in enumerate(answers):
            said = {"message": {"role": "assistant", "content": a.text}} if self._asked.chat else {"text": a.text}
            choices.append({"index": i, **said, "logprobs": None, "finish_reason": finish(a)})
        return {**self._head, "object": self._whole, "choices": choices, "usage": usage(answers)}

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a chat's stream begins with."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None) if self._asked.chat else None

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """Some text more."""
        return self._chunk(index, {"content": text} if self._asked.chat else text, None)

    def closing(self, index: int, answer: Answer) -> dict[str, Any]:
        """The end of one answer."""
        return self._chunk(index, {} if self._asked.chat else "", finish(answer))

    def counted(self, answers: Sequence[Answer]) -> dict[str, Any] | None:
        """The last piece, with the counts, where they are asked for."""
        if not self._asked.usage:
            return None
        return {**self._head, "object": self._piece, "choices": [], "usage": usage(answers)}

    def _chunk(self, index: int, said: Any, reason: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta" if self._asked.chat else "text": said, "logprobs": None}
        more = {"usage": None} if self._asked.usage else {}
        return {**self._head, "object": self._piece, "choices": [{**choice, "finish_reason": reason}], **more}


def finish(answer: Answer) -> str:
    """`stop`: at a stop token or text; `length`: its room was used up."""
    return "stop" if answer.ended else "length"


def usage(answers: Sequence[Answer]) -> dict[str, int]:
    """Tokens; a stop token counts."""
    prompt, said = sum(a.prompt_tokens for a in answers), sum(a.generated for a in answers)
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
