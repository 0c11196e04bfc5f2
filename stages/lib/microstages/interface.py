"""What a stage takes and gives, as data: derived from its typed function, committed as `interface.json`.

The runner reads it to check a pipeline before anything runs; a stage in another language writes it by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from microstages.errors import UserError, nearest

SCHEMA = 1
TYPES = ("string", "integer", "number", "boolean", "list")


@dataclass(frozen=True)
class InputSpec:
    """One input: the kinds of artifact it takes (`files`: any file, folder or pattern); whether it must be given."""

    flag: str
    kinds: tuple[str, ...]
    required: bool = True
    help: str = ""


@dataclass(frozen=True)
class OutputSpec:
    """One output: the kind of artifact that it is."""

    flag: str
    kind: str
    help: str = ""


@dataclass(frozen=True)
class StateSpec:
    """The place for what an unfinished run keeps, so that the next start goes on from there."""

    flag: str
    help: str = ""


@dataclass(frozen=True)
class ParamSpec:
    """One parameter. `affects_result` is false for what only changes speed: it is left out of the fingerprint.

    `min` and `max` are inclusive unless the matching `exclusive_*` is set. A `list` holds strings.
    """

    flag: str
    type: str
    default: Any = None
    required: bool = False
    nullable: bool = False
    choices: tuple[str, ...] = ()
    min: float | None = None
    max: float | None = None
    exclusive_min: bool = False
    exclusive_max: bool = False
    unit: str = ""
    affects_result: bool = True
    help: str = ""

    def check(self, value: Any) -> Any:
        """The value in the parameter's type. Raises ValueError that says what is wanted."""
        if value is None:
            if self.nullable:
                return None
            raise ValueError(f"must be {self.wanted()}, not empty")
        if self.type == "boolean":
            if not isinstance(value, bool):
                raise ValueError(f"must be true or false, not {value!r}")
        elif self.type == "integer":
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"must be {self.wanted()}, not {value!r}")
        elif self.type == "number":
            if isinstance(value, str):  # YAML reads 1e-4 as text
                try:
                    value = float(value)
                except ValueError:
                    raise ValueError(f"must be {self.wanted()}, not {value!r}") from None
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"must be {self.wanted()}, not {value!r}")
            value = float(value)
        elif self.type == "list":
            if isinstance(value, str) or not isinstance(value, (list, tuple)):
                raise ValueError(f"must be a list, not {value!r}")
            if not all(isinstance(v, (str, int, float)) and not isinstance(v, bool) for v in value):
                raise ValueError(f"must be a list of words, not {value!r}")
            value = [str(v) for v in value]
            for v in value:
                self._check_choice(v)
        else:
            if not isinstance(value, str):
                raise ValueError(f"must be {self.wanted()}, not {value!r}")
            self._check_choice(value)
        if self.type in ("integer", "number") and not self._in_range(value):
            raise ValueError(f"must be {self.wanted()}, not {value:.15g}")
        return value

    def _check_choice(self, value: str) -> None:
        if self.choices and value not in self.choices:
            raise ValueError(f"must be {self.wanted()}, not {value!r}{nearest(value, self.choices)}")

    def _in_range(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        low = self.min is None or (value > self.min if self.exclusive_min else value >= self.min)
        high = self.max is None or (value < self.max if self.exclusive_max else value <= self.max)
        return low and high

    def wanted(self) -> str:
        """In words, what a value must be."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        noun = {"string": "text", "integer": "a whole number", "number": "a number", "list": "a list"}.get(
            self.type, "a value"
        )
        limits = []
        if self.min is not None:
            limits.append(f"above {self.min:.15g}" if self.exclusive_min else f"at least {self.min:.15g}")
        if self.max is not None:
            limits.append(f"below {self.max:.15g}" if self.exclusive_max else f"at most {self.max:.15g}")
        return noun + (f" {' and '.join(limits)}" if limits else "")


@dataclass(frozen=True)
class Interface:
    """A stage's name, what it takes and gives, how it is started and which folders hold its code."""

    name: str
    version: str
    summary: str
    command: tuple[str, ...]
    inputs: Mapping[str, InputSpec]
    outputs: Mapping[str, OutputSpec]
    params: Mapping[str, ParamSpec]
    code: tuple[str, ...] = (".",)
    manifest: str = "stage"  # who writes artifact.json: the stage itself, or the runner for a plain command
    image: str = ""  # the container image that a plain command runs in, where it runs in one
    state: StateSpec | None = None  # None: a stage that keeps nothing of an unfinished run
    schema: int = field(default=SCHEMA)

    def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters, defaults filled in, each in its type. Raises ValueError naming the parameter."""
        for name in given:
            if name not in self.params:
                raise ValueError(f"{self.name} has no parameter {name!r}{nearest(name, self.params)}")
        values = {}
        for name, spec in self.params.items():
            if name not in given and spec.required:
                raise ValueError(f"{self.name} needs the parameter {name!r}")
            try:
                values[name] = spec.check(given[name]) if name in given else spec.default
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
        return values

    def identity_params(self, resolved: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that the fingerprint covers."""
        return {k: v for k, v in resolved.items() if self.params[k].affects_result}

    def to_json(self) -> str:
        def lean(value: dict[str, Any], keep: tuple[str, ...]) -> dict[str, Any]:
            return {k: v for k, v in value.items() if k in keep or not (v is None or v is False or v in ("", (), []))}

        value = {
            "schema": self.schema,
            "name": self.name,
            "version": self.version,
            "summary": self.summary,
            "command": self.command,
            "code": self.code,
            "manifest": self.manifest,
            **({"image": self.image} if self.image else {}),
            "inputs": {k: asdict(v) for k, v in self.inputs.items()},
            "outputs": {k: asdict(v) for k, v in self.outputs.items()},
            **({"state": asdict(self.state)} if self.state else {}),
            "params": {
                k: lean(asdict(v), ("flag", "type", "default", "affects_result")) for k, v in self.params.items()
            },
        }
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"

    @staticmethod
    def load(file: Path) -> Interface:
        """Read `interface.json`. Raises UserError naming what is wrong in it."""
        try:
            data = file.read_bytes()
        except OSError:
            raise UserError(
                "there is no such file", where=file, fix="a stage's folder holds its interface.json"
            ) from None
        return Interface.parse(data, file)

    @staticmethod
    def parse(data: bytes | str, where: object) -> Interface:
        """Interface from JSON text. Raises UserError naming what is wrong in it."""
        fix = "compare it with the output of a stage's `describe`"
        try:
            v = json.loads(data)
            if v.get("schema") != SCHEMA:
                raise UserError(f"interface schema {v.get('schema')!r} is not known here", where=where, fix=fix)
            inputs = {k: InputSpec(**{**i, "kinds": tuple(i["kinds"])}) for k, i in v["inputs"].items()}
            outputs = {k: OutputSpec(**o) for k, o in v["outputs"].items()}
            params = {k: ParamSpec(**{**p, "choices": tuple(p.get("choices", ()))}) for k, p in v["params"].items()}
            interface = Interface(
                v["name"], v["version"], v["summary"], tuple(v["command"]), inputs, outputs, params,
                tuple(v.get("code", (".",))), v.get("manifest", "stage"), str(v.get("image", "")),
                StateSpec(**v["state"]) if v.get("state") else None,
            )  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"this interface cannot be read: {error}", where=where, fix=fix) from None
        for name, p in params.items():
            if p.type not in TYPES:
                raise UserError(f"parameter {name!r} has the unknown type {p.type!r}", where=where, fix=fix)
        return interface
