"""What a stage says of its own command line, in the words of a pipeline: `--bad-rows skip` is `bad_rows: skip` there.

A stage does not know who started it, so it speaks of flags. Its interface tells which parameter each of them is.
"""

from __future__ import annotations

import re
import shlex

from microstages.errors import UserError
from microstages.interface import Interface, ParamSpec

_VALUE = re.compile(r"[ =]('[^']*'|\"[^\"]*\"|[^\s,;:()]+)")
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?")


def translated(error: UserError, interface: Interface, stage: str) -> UserError:
    """An error of a stage that a pipeline names `stage`. A place and a remedy say where in the pipeline they are."""
    words = _Words(interface)
    what, _ = words.of(error.what)
    fix, given = words.of(error.fix)
    where = error.where
    if found := words.flags.match(where):
        part, name = words.known[found[0]]
        where = f"stages.{stage}.{part}.{name}"
    if given:
        below = " and ".join(dict.fromkeys(part for part, _, _ in given))
        setting = {f"stages.{stage}.{part}.{name}={value}" for part, name, value in given if value}
        option = f"--set {shlex.quote(setting.pop())}" if len(setting) == 1 else ""
        if words.ends:
            fix += f" below {below} of stage {stage}" + (f" ({option})" if option else "")
        else:
            fix += f" (below {below} of stage {stage}{f': {option}' if option else ''})"
    same = (what, where, fix) == (error.what, error.where, error.fix)
    return error if same else UserError(what, where=where, fix=fix)


class _Words:
    """The flags of an interface. `ends`: whether the text that was translated last ends with one."""

    def __init__(self, interface: Interface) -> None:
        self.interface, self.ends = interface, False
        self.known = {p.flag: ("params", name) for name, p in interface.params.items()}
        self.known |= {
            f"--no-{p.flag.removeprefix('--')}": ("params", name)
            for name, p in interface.params.items() if p.type == "boolean"
        }  # fmt: skip
        self.known |= {i.flag: ("inputs", name) for name, i in interface.inputs.items()}
        flags = "|".join(sorted(map(re.escape, self.known), key=len, reverse=True))
        self.flags = re.compile(rf"(?<![\w-])(?:{flags})(?![\w-])" if flags else r"(?!)")

    def of(self, text: str) -> tuple[str, list[tuple[str, str, str]]]:
        """A text with parameters in place of flags; what it names: `params` or `inputs`, the name, the value or
        nothing."""
        out, at, given = "", 0, []
        while found := self.flags.search(text, at):
            part, name = self.known[found[0]]
            value, end = self._value(name, found[0], text, found.end()) if part == "params" else ("", found.end())
            out += text[at : found.start()] + (f"{name}: {value}" if value else name)
            given.append((part, name, value))
            at = end
        self.ends = bool(given) and at == len(text)
        return out + text[at:], given

    def _value(self, name: str, flag: str, text: str, at: int) -> tuple[str, int]:
        """What follows a flag where that is a value of it and no word of the sentence, as YAML has it; and its end."""
        spec = self.interface.params[name]
        if spec.type == "boolean":
            return ("true" if flag == spec.flag else "false"), at
        found = _VALUE.match(text, at)
        if found is None or not _fits(spec, found[1]):
            return "", at
        return (f"[{found[1]}]" if spec.type == "list" else found[1]), found.end()


def _fits(spec: ParamSpec, word: str) -> bool:
    """Whether a word behind a flag is a value of it."""
    if word[0] in "'\"" or word == str(spec.default) or word in spec.choices:
        return True
    if spec.type in ("integer", "number"):
        return bool(_NUMBER.fullmatch(word))
    return not spec.choices and ("=" in word or bool(re.search(rf"\b{re.escape(word)}: ", spec.help)))
