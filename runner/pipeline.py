"""A pipeline that can be planned: a spec checked against the stages that it uses.

References make the graph. Kinds, parameters and inputs are checked against each stage's interface, and every mistake
is told with its place before anything runs. Relative paths, whether written in the file or given by `--set`, start at
the pipeline file's folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from microstages import storage
from microstages.errors import UserError, nearest
from microstages.interface import Interface

from runner import select, stages
from runner.document import Node, PipelineError, Place, Problems, load
from runner.matrix import Variant, expand, once
from runner.parameters import resolved
from runner.problems import Origin, guess
from runner.references import FAILED
from runner.retry import Retry
from runner.select import Select
from runner.settings import override
from runner.spec import NAME, TARGET_TYPES, InputValue, Ref, Resources, Spec, StageSpec, parse_spec
from runner.targets import BUILT_IN, ELSEWHERE, Where, read_options


@dataclass(frozen=True)
class External:
    """An input from outside the pipeline: a full path or an address."""

    uri: str
    place: Place
    origin: Origin | None = None  # where a reference in its place was given

    def wrong(self, problems: Problems, whose: str, what: str, fix: str) -> None:
        """Tell a mistake in it, where its value was written, with the places that refer to it."""
        problems.add_in(self.place, self.origin, f"{whose}: {what}", fix, what)


@dataclass(frozen=True)
class Stage:
    """One stage, complete: parameters resolved, inputs known, the command ready."""

    name: str
    place: Place
    uses: str
    found: stages.Found
    command: tuple[str, ...]
    inputs: Mapping[str, Ref | External]
    params: Mapping[str, Any]
    resources: Resources
    where: Where
    retry: Retry
    timeout: float | None
    grace: float
    variant: Variant | None = None  # what a matrix made it
    select: Select | None = None  # it takes the best of some variants, and is never run

    @property
    def interface(self) -> Interface:
        return self.found.interface

    @property
    def upstream(self) -> tuple[str, ...]:
        """The stages whose outputs this one takes."""
        return tuple(dict.fromkeys(v.stage for v in self.inputs.values() if isinstance(v, Ref)))


@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline; `stages` are in an order in which they can run."""

    name: str
    file: Path
    store: str
    stages: Mapping[str, Stage]
    warnings: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.file.resolve().parent

    def needed_for(self, names: Set[str]) -> Pipeline:
        """This pipeline with only these stages and those before them."""
        keep = set(names)
        for stage in reversed(list(self.stages.values())):
            if stage.name in keep:
                keep |= set(stage.upstream)
        return replace(self, stages={k: v for k, v in self.stages.items() if k in keep})

    def named(self, name: str) -> set[str]:
        """The stage of this name, or all variants of one that has a matrix; empty where there is none."""
        if name in self.stages:
            return {name}
        return {s.name for s in self.stages.values() if s.variant and s.variant.base == name}

    def downstream(self, name: str) -> set[str]:
        """A stage, or its variants, and everything that takes from it, directly or not."""
        found = self.named(name)
        for stage in self.stages.values():
            if found & set(stage.upstream):
                found.add(stage.name)
        return found


def read(file: Path, settings: Sequence[str] = (), target: str | None = None, commands: bool = True) -> Pipeline:
    """Read and check a pipeline file. Raises PipelineError with everything that is wrong in it.

    `settings` are `--set` options, `target` replaces every stage's. Without `commands` the stages' programs need not
    be installed.
    """
    problems = Problems()
    found, _ = look(file, settings, target, commands, problems)
    problems.check()
    return found


def look(
    file: Path, settings: Sequence[str], target: str | None, commands: bool, problems: Problems
) -> tuple[Pipeline, Spec]:
    """As far as a pipeline can be read, and the file's values; what is wrong goes to `problems`. Raises PipelineError
    where the file is none."""
    root = override(load(file), settings)
    root, variants = expand(root, problems)
    spec = parse_spec(root, file, problems)
    checked = _Checker(spec, problems, target, commands, variants).checked()
    problems.found = once(problems.found, variants)
    warnings = []
    for name, place in spec.unused:
        if place.line and settings:
            continue  # an option may have taken the place of what referred to it
        if place.line:
            warnings.append(f"{place}: warning: the parameter {name!r} is not used")
        else:
            problems.add(place, f"the parameter {name!r} is not used by any stage", "check the spelling in the stages")
    store = spec.store.value if isinstance(spec.store.value, str) else ""
    return Pipeline(spec.name, file, full_uri(store, file.resolve().parent), checked, tuple(warnings)), spec


def full_uri(uri: str, base: Path) -> str:
    """A local path made absolute from `base`; an address as it is."""
    local = storage.local_path(uri)
    return uri if local is None else os.path.normpath(base / local)


class _Checker:
    def __init__(
        self, spec: Spec, problems: Problems, target: str | None, commands: bool, variants: Mapping[str, Variant]
    ) -> None:
        self.spec, self.problems, self.target, self.commands = spec, problems, target, commands
        self.variants = variants
        self.base = spec.file.resolve().parent
        known = [t for t in spec.targets.values() if t.type in TARGET_TYPES]
        self.options = {t.name: read_options(t.type, t.name, t.nodes, problems, t.keys) for t in known}
        self.found = {name: self.find(stage) for name, stage in spec.stages.items()}
        self.selects = {name: self.choose(name, s.select) for name, s in spec.stages.items() if s.select is not None}

    def checked(self) -> dict[str, Stage]:
        order = self.order()
        made = {name: self.stage(self.spec.stages[name]) for name in self.spec.stages}
        return {name: stage for name in order if (stage := made[name]) is not None}

    def find(self, stage: StageSpec) -> stages.Found | None:
        if not isinstance(stage.uses.value, str) or stage.uses.value in ("", FAILED):
            return None
        try:
            return stages.find(stage.uses.value, self.base)
        except PipelineError as error:  # of its interface.json
            used = f"stage {stage.name} ({stage.uses.place}) uses it"
            for p in error.problems:
                self.problems.add(p.place, p.what, f"{p.fix}; {used}")
            return None
        except UserError as error:
            what = f"{error.where}: {error.what}" if error.where else error.what
            self.problems.add_in(stage.uses.place, stage.uses.origin, what, error.fix)
            return None

    def choose(self, name: str, node: Node) -> Select | None:
        """A stage that selects: it is found as what it takes is."""
        found = select.read(name, node, self.spec.stages, self.variants, self.problems)
        if found and found.candidates:
            self.found[name] = self.found.get(found.candidates[0].taken)
        return found

    def takes_from(self, name: str) -> list[str]:
        """The stages whose outputs a stage takes, or looks at."""
        if chosen := self.selects.get(name):
            return list(dict.fromkeys(s for c in chosen.candidates for s in (c.measured, c.taken)))
        return [v.value.stage for v in self.spec.stages[name].inputs.values() if isinstance(v.value, Ref)]

    def order(self) -> list[str]:
        """The stages, each after those it takes from, otherwise as in the file. A cycle is a problem."""
        order: list[str] = []
        state: dict[str, int] = {}

        def visit(name: str, path: tuple[str, ...]) -> None:
            if state.get(name) == 2 or name not in self.spec.stages:
                return
            if state.get(name) == 1:
                ring = [*path[path.index(name) :], name]
                what = f"these stages wait for each other: {' → '.join(reversed(ring))}"
                stage = self.spec.stages[name]
                self.problems.add(stage.place, what, "a stage can only take from stages before it")
                return
            state[name] = 1
            for up in self.takes_from(name):
                visit(up, (*path, name))
            state[name] = 2
            order.append(name)

        for name in self.spec.stages:
            visit(name, ())
        return order

    def stage(self, spec: StageSpec) -> Stage | None:
        where = self.resolve_target(spec)
        found = self.found[spec.name]
        if spec.select is not None:
            chosen = self.selects[spec.name]
            if chosen is None or found is None:
                return None
            looked_at = {s: f.interface.outputs for s in self.takes_from(spec.name) if (f := self.found.get(s))}
            return Stage(
                spec.name, spec.place, "select", found, (), select.inputs(chosen, looked_at), {}, spec.resources, where,
                spec.retry, None, spec.grace, select=chosen,
            )  # fmt: skip
        if found is None:
            for value in spec.inputs.values():
                self.reference(value)
            return None
        interface = found.interface
        inputs: dict[str, Ref | External] = {}
        meant: set[str] = set()  # told already, by another spelling
        for name, value in spec.inputs.items():
            if name not in interface.inputs:
                known = ", ".join(interface.inputs) or "none"
                what = f"{interface.name} has no input {name!r}{nearest(name, interface.inputs)}"
                self.problems.add(value.key, what, f"its inputs: {known}")
                self.reference(value)
                meant.add(guess(name, interface.inputs))
            elif (given := self.input(spec, interface, name, value)) is not None:
                inputs[name] = given
        for name, wanted in interface.inputs.items():
            if wanted.required and not spec.odd and name not in {*spec.inputs, *meant}:
                what = f"stage {spec.name} needs the input {name!r} ({' or '.join(wanted.kinds)})"
                form = f'FOLDER, or {name}: "${{{{ stages.STAGE.OUTPUT }}}}"'
                self.problems.add(spec.place, what, f"add it below `inputs:` of {spec.name}: {name}: {form}")
        params = resolved(spec, interface, self.problems)
        words: tuple[str, ...] = ()
        inside = where.kind in ("docker", *ELSEWHERE)
        if found.identity and where.kind == "process":
            what = f"the image {spec.uses.value!r} cannot run as a process"
            self.problems.add(spec.uses.place, what, "run with --target docker")
        elif where.kind == "azureml" and interface.manifest == "runner":
            fix = "a job there has one image, which must publish too: give this stage another target, such as docker"
            self.problems.add(spec.uses.place, f"{interface.name} is a plain command: {where.name} cannot run it", fix)
        elif inside and interface.manifest == "runner" and not found.image:
            fix = 'add "image": "name:tag" to its interface.json, or run it with `target: process`'
            self.problems.add(spec.uses.place, f"{interface.name} is a plain command without an image", fix)
        elif self.commands and (not inside or found.image):
            try:
                words = stages.command(found, inside=inside or (where.kind == "auto" and bool(found.image)))
            except UserError as error:
                self.problems.add(spec.uses.place, error.what, error.fix)
        self.reachable(where, spec, inputs)
        return Stage(
            spec.name, spec.place, str(spec.uses.value), found, words, inputs, params, spec.resources, where,
            spec.retry, spec.timeout, spec.grace, self.variants.get(spec.name),
        )  # fmt: skip

    def reachable(self, where: Where, spec: StageSpec, inputs: Mapping[str, Ref | External]) -> None:
        """What runs elsewhere needs a store that is reached from there; it is told once. Where that is a folder on a
        volume, inputs from outside must lie on one too: into other stores they are copied."""
        store = self.spec.store
        if where.kind not in ELSEWHERE or not isinstance(store.value, str):
            return
        folder = storage.local_path(full_uri(store.value, self.base))
        if folder is None:
            return
        if not where.sees(folder):
            what = f"stage {spec.name} runs on {where.name}, and the store {store.value!r} is a folder of this machine"
            fix = "write `store: abfs://container/folder` (or s3://…, gs://…), or give it with --set store=…"
            place = store.place if store.place.line else spec.place
            if not self.problems_at(place):
                self.problems.add(place, what, fix)
            return
        for name, value in inputs.items():
            path = storage.local_path(value.uri) if isinstance(value, External) else None
            if isinstance(value, External) and path is not None and not where.sees(path):
                what = f"stage {spec.name} runs on {where.name}, and its input {name} is on no volume of it"
                self.problems.add(value.place, what, "move it to a volume, or keep the artifacts in an object store")

    def reference(self, value: InputValue) -> str | None:
        """The kind that a reference leads to, None where that cannot be known. What is wrong is told."""
        ref = value.value
        if not isinstance(ref, Ref):
            return None
        if ref.stage not in self.spec.stages:
            near = guess(ref.stage, self.spec.stages)
            if near and not NAME.fullmatch(near):
                return None  # that stage's name is told
            what = f"there is no stage {ref.stage!r}{nearest(ref.stage, self.spec.stages)}"
            self.problems.add(value.place, what, f"stages: {', '.join(self.spec.stages)}")
            return None
        other = self.found.get(ref.stage)
        if other is None:
            return None
        outputs = other.interface.outputs
        if ref.output not in outputs:
            what = f"stage {ref.stage} ({other.interface.name}) has no output {ref.output!r}"
            self.problems.add(value.place, what + nearest(ref.output, outputs), f"its outputs: {', '.join(outputs)}")
            return None
        return outputs[ref.output].kind

    def input(self, spec: StageSpec, interface: Interface, name: str, value: InputValue) -> Ref | External | None:
        wanted = interface.inputs[name]
        if value.value is None:
            if wanted.required and not self.problems_at(value.place):
                what = f"the input {name!r} of stage {spec.name} is empty"
                self.problems.add(value.place, what, f"give {' or '.join(wanted.kinds)}")
            return None
        if isinstance(value.value, Ref):
            kind = self.reference(value)
            if kind is not None and kind not in wanted.kinds and "files" not in wanted.kinds:
                what = f"{name!r} of {interface.name} takes {' or '.join(wanted.kinds)}, not {kind}"
                fix = self.offers(wanted.kinds, spec.name)
                self.problems.add(value.place, what, fix)
            return value.value
        return External(full_uri(value.value, self.base), value.place, value.origin)

    def offers(self, kinds: Sequence[str], but: str) -> str:
        """Which outputs of this pipeline are of a kind."""
        refs = [
            f"${{{{ stages.{stage}.{output} }}}}"
            for stage, found in self.found.items()
            for output, o in (found.interface.outputs.items() if found else ())
            if o.kind in kinds and stage != but
        ]
        return f"of that kind: {', '.join(refs)}" if refs else "give a path or address of that kind"

    def problems_at(self, place: Place) -> bool:
        return any(p.place == place for p in self.problems.found)

    def resolve_target(self, spec: StageSpec) -> Where:
        node = Node(self.target, Place("--target")) if self.target else spec.target or self.spec.target
        name = node.value
        if not isinstance(name, str) or name in ("", FAILED):
            return Where()
        if name not in self.spec.targets and name in BUILT_IN:
            return Where(name, name)
        if name not in self.spec.targets:
            known = list(dict.fromkeys([*BUILT_IN, *self.spec.targets]))
            what = f"there is no target {name!r}{nearest(name, known)}"
            self.problems.add(node.place, what, f"targets: {', '.join(known)}")
            return Where()
        kind = self.spec.targets[name].type
        return Where(kind, name, self.options[name])
