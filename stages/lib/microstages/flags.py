"""What is wrong with a stage's command line, in the words of its interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from microstages.errors import UserError, nearest
from microstages.interface import InputSpec, Interface, OutputSpec, ParamSpec

# What stands for a value in `write it as --rank N`.
NOUNS = {"integer": "N", "number": "X", "list": "WORD"}
Spec = InputSpec | OutputSpec | ParamSpec


def noun(spec: Spec) -> str:
    """What stands for the value of a flag in help: N, X, WORD, TEXT or URI."""
    return NOUNS.get(spec.type, "TEXT") if isinstance(spec, ParamSpec) else "URI"


def usual(interface: Interface, name: str) -> str:
    """What to do about a wrong value of a parameter."""
    default = interface.params[name].default if name in interface.params else None
    see = f"see {interface.name} --help"
    return see if default is None else f"leave it out for the usual value, {default}; {see}"


def mistake(error: Exception, words: Sequence[str], interface: Interface) -> UserError:
    """What typer says of a command line (`words`), as an error of a user of this stage."""
    see = f"see {interface.name} --help"
    specs: dict[str, Spec] = {**interface.inputs, **interface.outputs, **interface.params}
    flags = {s.flag: name for name, s in specs.items()}
    kind, flag = type(error).__name__, _flag_of(error)
    if kind == "MissingParameter":
        wanted = [_flag(p) for p in error.ctx.command.params if p.required]  # type: ignore[attr-defined]
        given = words[: words.index("--")] if "--" in words else words
        missing = [f for f in wanted if not any(w == f or w.startswith(f"{f}=") for w in given)] or wanted
        them = [f"{f} {noun(specs[flags[f]])}" for f in missing]
        return UserError(f"{_and(missing)} {'are' if len(missing) > 1 else 'is'} missing",
                         fix=f"add {' '.join(them)}; {see}")  # fmt: skip
    if kind == "NoSuchOption":
        near = nearest(flag, _known(interface))
        return UserError(f"there is no flag {flag}", fix=near.strip(" ()").replace("'", "") or see)
    if kind == "BadOptionUsage" and flag in flags:
        spec = specs[flags[flag]]
        if isinstance(spec, ParamSpec) and spec.type == "boolean":
            return UserError("it takes no value", where=flag, fix=f"write {flag}, or --no-{flag[2:]}")
        return UserError("its value is missing", where=flag, fix=f"write it as {flag} {noun(spec)}; {see}")
    if kind == "BadParameter" and flag in flags and flags[flag] in interface.params:
        name = flags[flag]
        what = f"must be {interface.params[name].wanted()}, not {_value(flag, words)!r}"
        return UserError(what, where=flag, fix=usual(interface, name))
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    if "unexpected extra argument" in text:
        extra = text.rstrip(".)").rpartition("(")[2]
        return UserError(f"no flag stands before {extra!r}", fix=f"each value stands behind its flag; {see}")
    return UserError(text, fix=see)


def _flag_of(error: Exception) -> str:
    """The flag that an error is about; the empty string where it is about none."""
    if name := getattr(error, "option_name", ""):
        return str(name)
    return _flag(getattr(error, "param", None))


def _flag(param: Any) -> str:
    """The flag of one of typer's parameters."""
    return str((getattr(param, "opts", None) or [""])[0])


def _value(flag: str, words: Sequence[str]) -> str:
    """The last value that a command line gives a flag."""
    found = ""
    for at, word in enumerate(words):
        if word == flag and at + 1 < len(words):
            found = words[at + 1]
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found


def _known(interface: Interface) -> list[str]:
    yes = [s.flag for part in (interface.inputs, interface.outputs, interface.params) for s in part.values()]
    no = [f"--no-{p.flag[2:]}" for p in interface.params.values() if p.type == "boolean"]
    return [*yes, *no, *([interface.state.flag] if interface.state else [])]


def _and(words: Sequence[str]) -> str:
    return " and ".join([*([", ".join(words[:-1])] if words[:-1] else []), *words[-1:]])
