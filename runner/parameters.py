"""The parameters of a stage as a pipeline gives them, checked; and good values, for remedies and examples."""

from __future__ import annotations

from typing import Any

from microstages.errors import nearest
from microstages.interface import Interface, ParamSpec

from runner.document import Node, Problems
from runner.problems import guess
from runner.references import FAILED
from runner.spec import StageSpec


def sample(wanted: ParamSpec) -> str:
    """A good value of a parameter, as YAML writes it."""
    value = wanted.default
    if value in (None, [], ""):
        value = wanted.choices[0] if wanted.choices else None
        if wanted.type == "list":
            return f"[{value}]" if value else "[one, another]"
        if wanted.type in ("integer", "number") and wanted.min is not None:
            value = wanted.min if not wanted.exclusive_min else wanted.min + 0.5
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}" if abs(value) < 1e6 else str(value)
    if isinstance(value, list):
        return f"[{', '.join(value)}]"
    return value or {"integer": "1", "number": "0.5", "boolean": "true"}.get(wanted.type, "some text")


# Values that say more of a parameter than "some text" does.
TELLING = {
    "template": '"{question}\\n{answer}"', "prompt_template": '"{question}\\n"', "completion_template": '"{answer}"',
    "completion": "answer", "prompt_field": "question", "completion_field": "answer", "messages_field": "messages",
    "columns": "[question, answer]", "where": '["language=en"]', "files": '["2025-*.jsonl"]', "split": '"train[:90%]"',
    "test_split": "validation", "end_token": '"<|im_end|>"', "joiner": '"\\n"', "delimiter": '";"',
    "chat_template": '"{% for m in messages %}{{ m.content }}{% endfor %}"', "prompt": '"Where is my parcel?"',
    "host": '"0.0.0.0"', "api_key_file": "key.txt", "served_name": "tones", "system": '"Answer in one word."',
    "stop": '["\\n"]', "target_modules": "[q_proj, v_proj]", "modules_to_save": "[lm_head]", "model_name": "tones",
}  # fmt: skip


NUMBERS = {"max_new_tokens": "100", "max_length": "512", "threads": "4", "workers": "4", "top_k": "40", "top_p": "0.9",
           "max_rows": "1000", "limit": "100", "stride": "256", "prompt_max_length": "384"}  # fmt: skip


def example(name: str, wanted: ParamSpec) -> str:
    """A value for an example, as YAML writes it: not the default, where another one is known to be good."""
    if name in TELLING and wanted.type in ("string", "list") and not wanted.choices:
        return TELLING[name]
    value = wanted.default
    if name in NUMBERS and wanted.type in ("integer", "number") and value is None:
        return NUMBERS[name]
    if wanted.type == "boolean" and value is not None:
        return str(not value).lower()
    if wanted.type == "string" and wanted.choices:
        return next((c for c in wanted.choices if c != value), wanted.choices[0])
    if wanted.type in ("integer", "number") and value is not None:
        for other in (value * 2, value / 2 if wanted.type == "number" else value // 2, value + 0.1, value + 1):
            try:
                if wanted.check(other) != value:
                    return f"{other:g}" if abs(other) < 1e6 else str(other)
            except ValueError:
                continue
    return sample(wanted)


# What makes a stage a program to talk to: it then leaves no result, so it has no place in a pipeline.
TALKS = {"infer": ("prompt", "chat", "serve")}


def talks(interface: Interface, name: str) -> str:
    """The flag with which a stage only talks, where a parameter is one or goes with one; else the empty string."""
    for mode in TALKS.get(interface.name, ()):
        known = interface.params.get(mode)
        if known and (name == mode or interface.params[name].help.startswith(f"of {known.flag}")):
            return known.flag
    return ""


def resolved(spec: StageSpec, interface: Interface, problems: Problems) -> dict[str, Any]:
    """The parameters of a stage, defaults filled in, each in its type; what is wrong goes to `problems`."""
    values: dict[str, Any] = {}
    for name in spec.params:
        if name not in interface.params:
            known = ", ".join(interface.params) or "none"
            what = f"{interface.name} has no parameter {name!r}{nearest(name, interface.params)}"
            fix = f"known: {known}" if len(known) < 100 else f"see `runner explain {spec.uses.value}`"
            if name in interface.inputs:
                what = f"{name!r} is an input of {interface.name}, not a parameter"
                fix = f"move it below `inputs:` of {spec.name}"
            problems.add(spec.param_keys[name], what, fix)
    for name, wanted in interface.params.items():
        if name not in spec.params:
            values[name] = wanted.default if wanted.default is None else wanted.check(wanted.default)
            if wanted.required and name not in [guess(n, interface.params) for n in spec.params]:
                what = f"stage {spec.name} needs the parameter {name!r}"
                problems.add(spec.place, what, f"add it below `params:` of {spec.name}: {wanted.wanted()}")
            continue
        node = spec.params[name]
        whose = f"{name} of stage {spec.name}" if node.origin else name
        key = node.origin.word.rpartition(".")[2] if node.origin else name
        near = guess(node.value, wanted.choices) if isinstance(node.value, str) else ""
        fix = f"write {key}: {near or sample(wanted)}" + (f" ({wanted.help})" if wanted.help else "")
        if FAILED in _strings(node):
            continue
        try:
            value = wanted.check(node.plain())
        except ValueError as error:
            problems.add_in(node.place, node.origin, f"{whose} {error}", fix, f"{name} {error}")
            continue
        if value in (None, []) and value != wanted.default:
            if wanted.default:  # a flag cannot say "nothing"
                what = f"must be {wanted.wanted()}, not empty"
                problems.add_in(node.place, node.origin, f"{whose} {what}", fix, f"{name} {what}")
            value = wanted.default
        if value != wanted.default and (flag := talks(interface, name)):
            why = "" if flag == wanted.flag else f" goes with {flag}, which"
            what = f"{name}{why} leaves no result"
            what = f"{what}, so a stage of a pipeline cannot have it"
            fix = f"leave it out: `{interface.name} {flag}` is for the command line, on a copy by `runner pull`"
            problems.add(node.place, what, fix)
        values[name] = value
    return values


def _strings(node: Node) -> list[Any]:
    return [v.value for v in node.value] if isinstance(node.value, list) else [node.value]
