"""What stands beside the parameters of a stage's function: `Annotated[type, mark]`. See `stage`."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from microstages.interface import ParamSpec


class Input:
    """Marks a parameter `Annotated[Artifact, Input(kind, …)]`; `Artifact | None` and a default: optional."""

    def __init__(self, *kinds: str, help: str = "") -> None:
        self.kinds, self.help = kinds, help


class Output:
    """Marks a parameter `Annotated[Draft, Output(kind, name=…)]`. `name` is what a pipeline calls it."""

    def __init__(self, kind: str, *, name: str, help: str = "") -> None:
        self.kind, self.name, self.help = kind, name, help


class State:
    """Marks a parameter `Annotated[Place | None, State(help)] = None`: where the checkpoints of an unfinished run lie.

    It is no part of the fingerprint. After the outputs are committed the run's checkpoints are removed.
    """

    def __init__(self, help: str = "") -> None:
        self.help = help


class Param:
    """Marks a parameter `Annotated[int, Param(help, min=1, unit="tokens")] = 8`."""

    def __init__(
        self,
        help: str,
        *,
        min: float | None = None,
        max: float | None = None,
        above: float | None = None,
        below: float | None = None,
        unit: str = "",
        affects_result: bool = True,
    ) -> None:
        self.help, self.unit, self.affects_result = help, unit, affects_result
        self.min = above if above is not None else min
        self.max = below if below is not None else max
        self.exclusive_min, self.exclusive_max = above is not None, below is not None

    def spec(self, flag: str, type_: Any, default: Any, *, required: bool) -> ParamSpec:
        """The parameter as data, from its type in the signature and its default there."""
        nullable = False
        if get_origin(type_) in (Union, UnionType):
            rest = [t for t in get_args(type_) if t is not NoneType]
            nullable, type_ = len(rest) < len(get_args(type_)), rest[0]
        choices: tuple[str, ...] = ()
        if get_origin(type_) is list:
            if get_origin(inner := get_args(type_)[0]) is Literal:
                choices = get_args(inner)
            kind = "list"
        elif get_origin(type_) is Literal:
            kind, choices = "string", get_args(type_)
        else:
            kind = {str: "string", int: "integer", float: "number", bool: "boolean"}[type_]
        default = None if required else list(default) if kind == "list" and default is not None else default
        return ParamSpec(
            flag, kind, default, required, nullable, choices, self.min, self.max, self.exclusive_min,
            self.exclusive_max, self.unit, self.affects_result, self.help,
        )  # fmt: skip
