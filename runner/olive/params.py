"""The parameters of a stage to be, each with the place in the config that says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from microstages.interface import Interface

from runner import stages
from runner.document import Place, Problems


@dataclass
class Params:
    """Values by name; `notes` are comments beside them. A value without a place is a default of Olive's."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, value: Any, place: Place | None = None, note: str = "") -> None:
        """One value; None is left to the stage."""
        if value is None:
            return
        self.values[name] = value
        if place:
            self.places[name] = place
        if note:
            self.notes[name] = note

    def merged(self, other: Params) -> Params:
        """Both; the other's values win."""
        return Params({**self.values, **other.values}, {**self.places, **other.places}, {**self.notes, **other.notes})


@lru_cache
def interface(uses: str) -> Interface:
    """What a stage of this repository takes."""
    return stages.find(uses, Path()).interface


def check(uses: str, params: Params, problems: Problems, place: Place) -> None:
    """Tell values that the stage does not take, at their places in the config."""
    known = interface(uses).params
    for name, value in params.values.items():
        if name not in known:
            problems.add(params.places.get(name, place), f"{uses} has no parameter {name!r}", "remove what asks for it")
            continue
        try:
            known[name].check(value)
        except ValueError as error:
            problems.add(params.places.get(name, place), f"{name} of {uses} {error}", known[name].help)


def differing(uses: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are not the stage's own defaults."""
    known = interface(uses).params
    return {k: v for k, v in params.items() if k not in known or v != known[k].default}
