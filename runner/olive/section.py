"""A mapping of a config, read key by key; what nobody asked for is a mistake."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from microstages.errors import nearest

from runner.document import Node, Place, Problems

# What a value may be: its name, the words for it, and an example to write.
KINDS: Mapping[str, tuple[tuple[type, ...], str]] = {
    "text": ((str,), "text"),
    "flag": ((bool,), "true or false"),
    "whole": ((int,), "a whole number"),
    "number": ((int, float), "a number"),
    "list": ((list,), "a list"),
    "mapping": ((dict,), "a mapping"),
    "null": ((type(None),), "null"),
}

USED, SAME, NEEDLESS, CHANGED, LOST = "used", "default", "not needed", "changed", "without counterpart"


@dataclass(frozen=True)
class Fate:
    """What becomes of a key: `how` is one of the five words above, `becomes` says where it went, `why` why so."""

    path: str
    value: Any
    how: str
    becomes: str = ""
    why: str = ""


@dataclass
class Report:
    """The fates of all keys, in the order in which they were read, and what else is to be told."""

    fates: list[Fate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


class _Reading(ABC):
    """What follows from `take` and `fate`, for one mapping and for several."""

    @abstractmethod
    def take(self, key: str, *kinds: str, default: Any = None, of: str = "", among: Sequence[Any] = ()) -> Any: ...

    @abstractmethod
    def fate(self, key: str, how: str, text: str = "", why: str = "") -> None: ...

    def read(self, key: str, *kinds: str, how: str, text: str, why: str = "", default: Any = None, of: str = "") -> Any:
        """A key's value, with its fate told at once."""
        value = self.take(key, *kinds, default=default, of=of)
        self.fate(key, how, text, why)
        return value

    def ignore(self, kinds: Mapping[str, Sequence[str]], how: str, why: str) -> None:
        """Keys that become nothing, by the kinds of their values."""
        for key, wanted in kinds.items():
            self.take(key, *wanted)
            self.fate(key, how, *(("", why) if how == CHANGED else (why,)))


class Section(_Reading):
    """One mapping. `path` is where it stands in the config: `passes.lora.config`."""

    def __init__(self, node: Node, path: str, report: Report, problems: Problems) -> None:
        self.node, self.path, self.report, self.problems = node, path, report, problems
        self.values: Mapping[str, Node] = node.value if isinstance(node.value, dict) else {}
        self.asked: dict[str, None] = {}
        self.told: set[str] = set()
        self.opened: dict[str, Section] = {}
        if not isinstance(node.value, dict):
            self.wrong(node.place, f"{path or 'the config'} must be a mapping, not {node.kind()}", "write { … }")

    def wrong(self, place: Place, what: str, fix: str) -> None:
        """Something that the person who wrote the config has to mend."""
        self.problems.add(place, what, fix)

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def place(self, key: str) -> Place:
        return self.values[key].place if key in self.values else self.node.place

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def given(self, key: str) -> bool:
        """Whether a key has a value that is not null."""
        return key in self.values and self.values[key].value is not None

    def take(self, key: str, *kinds: str, default: Any = None, of: str = "", among: Sequence[Any] = ()) -> Any:
        """The plain value of a key; `default` where it is not given, or null, or wrong (which is told).

        `of`: the kind of a list's entries; `among`: the values that Olive takes.
        """
        self.asked[key] = None
        node = self.values.get(key)
        if node is None or node.value is None:
            return default
        if not _fits(node, kinds):
            wanted = " or ".join(KINDS[k][1] for k in kinds)
            self.wrong(node.place, f"{self.at(key)} must be {wanted}, not {_shown(node)}", "see Olive's documentation")
            self.told.add(key)
            return default
        if of and isinstance(node.value, list):
            for entry in node.value:
                if not _fits(entry, (of,)):
                    what = f"{self.at(key)} holds {_shown(entry)}; {KINDS[of][1]} is wanted"
                    self.wrong(entry.place, what, "see Olive's documentation")
                    self.told.add(key)
                    return default
        value = node.plain()
        if "whole" in kinds and isinstance(value, float) and "number" not in kinds:
            value = int(value)
        if among and value not in among:
            fix = f"one of: {', '.join(map(str, among))}"
            self.wrong(node.place, f"{self.at(key)} is {_shown(node)}{nearest(str(value), list(map(str, among)))}", fix)
            self.told.add(key)
            return default
        return value

    def word(self, key: str, known: Mapping[str, str], default: str = "") -> str:
        """One of some names in any case; what stands for it. `known` has the names as Olive writes them."""
        given = self.take(key, "text")
        if given is None:
            return default
        lower = {name.lower(): meaning for name, meaning in known.items()}
        found = lower.get(given.lower())
        if found is None:
            what = f"{self.at(key)} is {given!r}{nearest(given, known) or nearest(given.lower(), lower)}"
            self.wrong(self.place(key), what, f"known here: {', '.join(known)}")
            self.told.add(key)
            return default
        return found

    def kind(self, known: Mapping[str, str], default: str | None = None) -> str:
        """What the `type` of this mapping stands for; empty where it is wrong, or missing without a default."""
        if not self.given("type") and "type" not in self.told and default is None:
            self.asked["type"] = None
            near = [key for key in self.values if key not in self.asked and nearest(key, ["type"])]
            for key in near:
                place = self.node.keys.get(key, self.node.place)
                what = f"unknown key {self.at(key)}{nearest(key, ['type'])}"
                self.wrong(place, what, f"type is one of: {', '.join(known)}")
            if not near:
                self.wrong(self.node.place, f"{self.path} has no type", f"one of: {', '.join(known)}")
            return ""
        return self.word("type", known, default or "")

    def child(self, key: str) -> Section | None:
        """The mapping below a key; None where it is not there."""
        self.asked[key] = None
        if self._nothing(key, {}):
            return None
        self.told.add(key)
        if key not in self.opened:
            self.opened[key] = Section(self.values[key], self.at(key), self.report, self.problems)
        return self.opened[key]

    def _nothing(self, key: str, empty: Any) -> bool:
        """Whether a key is not there or holds nothing; what is empty is told."""
        if self.given(key) and self.values[key].value != empty:
            return False
        self.fate(key, SAME, "it is empty")
        return True

    def children(self, key: str) -> Iterator[Section]:
        """The mappings of a list below a key."""
        self.asked[key] = None
        if self._nothing(key, []):
            return
        node = self.values[key]
        self.told.add(key)
        if not isinstance(node.value, list):
            self.wrong(node.place, f"{self.at(key)} must be a list, not {node.kind()}", "write [ … ]")
            return
        for n, entry in enumerate(node.value):
            yield Section(entry, f"{self.at(key)}[{n}]", self.report, self.problems)

    def fate(self, key: str, how: str, text: str = "", why: str = "") -> None:
        """Say what becomes of a key, where it is there. `text`: what it becomes, or why nothing does."""
        self.asked[key] = None
        if key not in self.values or key in self.told:
            return
        self.told.add(key)
        if self.values[key].value is None:
            how, text, why = SAME, "", "null is as if it were not there"
        elif how not in (USED, CHANGED):
            text, why = "", text
        value = "…" if key.endswith("token") and self.values[key].kind() == "text" else self.values[key].plain()
        self.report.fates.append(Fate(self.at(key), value, how, text, why))

    def close(self) -> None:
        """All keys have been asked for: one that was not is no key of Olive, one without a fate a fault of ours."""
        for key, node in self.values.items():
            if key not in self.asked:
                place = self.node.keys.get(key, node.place)
                known = f"known here: {', '.join(sorted(self.asked)) or 'nothing'}"
                what = f"unknown key {self.at(key)}{nearest(key, list(self.asked))}"
                self.wrong(
                    place, what, known if len(self.asked) <= 20 else "Olive has no such key here: correct or remove it"
                )
            elif key not in self.told:
                raise AssertionError(f"the fate of {self.at(key)} is not told")


class Layers(_Reading):
    """One mapping that may be spread over several: the first that has a key counts, all of them know it."""

    def __init__(self, *sections: Section | None) -> None:
        self.sections = [s for s in sections if s is not None]

    def holder(self, key: str) -> Section | None:
        """The section that has a value for a key."""
        for section in self.sections:
            section.asked[key] = None
        return next((s for s in self.sections if s.given(key)), None)

    def take(self, key: str, *kinds: str, default: Any = None, of: str = "", among: Sequence[Any] = ()) -> Any:
        """As a section's."""
        holder = self.holder(key)
        return holder.take(key, *kinds, default=default, of=of, among=among) if holder else default

    def fate(self, key: str, how: str, text: str = "", why: str = "") -> None:
        """As a section's; a value that an earlier section overrules is told as such."""
        holder = self.holder(key)
        for section in self.sections:
            if holder is None or section is holder:
                section.fate(key, how, text, why)
            else:
                section.fate(key, NEEDLESS, f"{holder.at(key)} says it")


def _fits(node: Node, kinds: Sequence[str]) -> bool:
    for kind in kinds:
        types = KINDS[kind][0]
        if isinstance(node.value, types) and (bool in types or not isinstance(node.value, bool)):
            return True
        if kind == "whole" and isinstance(node.value, float) and node.value.is_integer():
            return True  # 50.0, as Olive's own recipes have it
    return False


def _shown(node: Node) -> str:
    return node.kind() if isinstance(node.value, (dict, list, type(None))) else repr(node.value)
