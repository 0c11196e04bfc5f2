"""One typed function becomes a command line program that keeps the stage contract.

    @stage("merge", package="microstages_merge")
    def merge(
        run: Run,
        base_model: Annotated[Artifact, Input("model", help="the model that the adapter was trained on")],
        adapter: Annotated[Artifact, Input("adapter")],
        output: Annotated[Draft, Output("model", name="model")],
        dtype: Annotated[Literal["base", "fp32"], Param("type of the weights")] = "base",
    ) -> None:
        \"""Merge an adapter into its base model.\"""

`merge()` (the decorated function is the program) parses the flags, opens and verifies the inputs, makes the output
draft, calls the function, commits. `merge describe` prints the interface. Exit codes: see `errors`.
"""

from __future__ import annotations

import inspect
import os
import secrets
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from microstages import storage, watch
from microstages.artifact import Artifact, Draft, open_artifact
from microstages.errors import (
    EXIT_BUG,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_USER,
    DamagedError,
    Stopped,
    UserError,
    as_user_error,
)
from microstages.flags import mistake, noun, usual
from microstages.identity import code_identity, fingerprint
from microstages.interface import InputSpec, Interface, OutputSpec, ParamSpec, StateSpec
from microstages.marks import Input, Output, Param, State
from microstages.nodes import Nodes
from microstages.provenance import hardware, software
from microstages.reporting import Reporter, Transfers, duration, number_of, reporting, size
from microstages.state import Place


@dataclass
class Run:
    """What a stage function may use beside its artifacts."""

    report: Reporter
    params: Mapping[str, Any]
    nodes: Nodes = field(default_factory=Nodes)  # the nodes that run this stage together

    def log(self, text: str) -> None:
        self.report.log(text)

    def warn(self, text: str) -> None:
        self.report.warn(text)


class Stage:
    """A stage as a program. Calling it runs `sys.argv`; `main(argv)` runs other arguments and returns the exit code."""

    def __init__(
        self, name: str, package: str, uses: Sequence[str], function: Callable[..., None], nodes: bool = False
    ) -> None:
        self.name, self.package, self.uses, self.function, self.nodes = name, package, tuple(uses), function, nodes

    def __call__(self) -> None:
        sys.exit(self.main(sys.argv[1:]))

    def main(self, argv: Sequence[str]) -> int:
        if list(argv[:1]) == ["describe"]:
            print(self.interface().to_json(), end="")
            return EXIT_OK
        if list(argv) == ["--version"]:
            print(f"{self.name} {self.version}")
            return EXIT_OK
        from typer.exceptions import TyperException

        code = EXIT_OK

        def body(**values: Any) -> None:
            nonlocal code
            code = self._run(values)

        try:
            result = self._program(body)(args=list(argv), standalone_mode=False, prog_name=self.name)
            return result if isinstance(result, int) and result else code
        except TyperException as error:
            print(f"{self.name}: error: {mistake(error, argv, self.interface())}", file=sys.stderr)
            return EXIT_USER
        except (KeyboardInterrupt, EOFError):
            return EXIT_STOPPED

    # --- the interface, derived from the signature ---

    def interface(self) -> Interface:
        """What the typed function says, as data."""
        inputs: dict[str, InputSpec] = {}
        outputs: dict[str, OutputSpec] = {}
        params: dict[str, ParamSpec] = {}
        state: StateSpec | None = None
        for name, (type_, mark, default) in self._signature().items():
            flag = "--" + name.replace("_", "-")
            if isinstance(mark, Input):
                inputs[name] = InputSpec(flag, mark.kinds, default is inspect.Parameter.empty, mark.help)
            elif isinstance(mark, Output):
                outputs[mark.name] = OutputSpec(flag, mark.kind, mark.help)
            elif isinstance(mark, State):
                state = StateSpec(flag, mark.help)
            elif isinstance(mark, Param):
                required = default is inspect.Parameter.empty
                params[name] = mark.spec(flag, type_, default, required=required)
        folders = ("lib/training" if u == "microstages_training" else "lib" for u in self.uses)
        code = (self.package, "../lib/microstages", *(f"../{f}/{u}" for f, u in zip(folders, self.uses, strict=True)))
        return Interface(
            self.name, self.version, inspect.getdoc(self.function).split("\n")[0],  # type: ignore[union-attr]
            (self.name,), inputs, outputs, params, code, state=state,
        )  # fmt: skip

    @property
    def version(self) -> str:
        return str(sys.modules[self.package].__version__)

    def _signature(self) -> dict[str, tuple[Any, Any, Any]]:
        hints = get_type_hints(self.function, include_extras=True)
        out = {}
        for name, p in inspect.signature(self.function).parameters.items():
            hint = hints[name]
            if hint is Run:
                continue
            if get_origin(hint) is not Annotated:
                raise TypeError(f"{self.name}: {name} is not Annotated")
            type_, mark = get_args(hint)[:2]
            out[name] = (type_, mark, p.default)
        return out

    def _program(self, body: Callable[..., None]) -> Any:
        import typer

        interface = self.interface()
        specs: dict[str, Any] = {**interface.inputs, **interface.params}
        parameters = []
        for name, (_, mark, default) in self._signature().items():
            empty = default is inspect.Parameter.empty
            kind: Any = str
            if isinstance(mark, Output):
                help_ = f"[{mark.kind}] {mark.help or 'a new folder or address to write to'}"
                panel: Any = {"metavar": "URI"}
            elif isinstance(mark, Input):
                help_ = f"[{' or '.join(mark.kinds)}] {mark.help}"
                panel = {"metavar": "URI"}
            elif isinstance(mark, State):
                help_, panel = mark.help, {"metavar": "URI"}
            else:
                spec: ParamSpec = specs[name]
                kind = {"integer": int, "number": float, "boolean": bool, "list": list[str]}.get(spec.type, str)
                notes = [", ".join(spec.choices)] if spec.choices else []
                if spec.min is not None or spec.max is not None:
                    notes.append(spec.wanted().removeprefix("a whole number ").removeprefix("a number "))
                notes += [spec.unit] if spec.unit else []
                help_ = mark.help + (f" [{'; '.join(notes)}]" if notes else "")
                panel = {"metavar": noun(spec)} if spec.type != "boolean" else {}
            if default is None or isinstance(default, (list, tuple)):
                panel["show_default"] = False
            flag = "--" + name.replace("_", "-")
            names = (f"{flag}/--no-{flag[2:]}",) if kind is bool else (flag,)
            optional = kind | None if default is None else kind
            annotated = Annotated[optional, typer.Option(*names, help=help_, **panel)]  # type: ignore[valid-type]
            parameters.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if empty else default,
                    annotation=annotated,
                )
            )

        def command(**values: Any) -> None:
            body(**values)

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__ = inspect.getdoc(self.function)
        app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
        more = f"`{self.name} describe` prints inputs, outputs and parameters as JSON; --version its version."
        app.command(epilog=more)(command)
        return app

    # --- running ---

    def _run(self, values: dict[str, Any]) -> int:
        # OpenMP's threads spin while they wait: too long, and a program that wants a core slows them down tenfold; not
        # at all, and the many small steps of a small model take three times as long. This is some ten microseconds.
        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault("GOMP_SPINCOUNT", "20000")
        signal.signal(signal.SIGTERM, _stop)
        signal.signal(signal.SIGINT, _stop)
        with reporting(self.name) as report:
            code = self._reported(values, report)
            if report.tracking:
                report.tracking.close({EXIT_OK: "FINISHED", EXIT_STOPPED: "KILLED"}.get(code, "FAILED"))
            return code

    def _reported(self, values: dict[str, Any], report: Reporter) -> int:
        try:
            with Nodes.here(self.name, self.nodes, lambda text: report.say(f"{text}\n")) as nodes:
                heard = Reporter(self.name, None, sys.stderr) if nodes.rank else report  # a helper has no events
                watch.current = Transfers(heard)
                self._work(values, heard, nodes)
            return EXIT_OK
        except Stopped as stopped:
            report.log(f"{self.name}: {str(stopped) or 'stopped; nothing unfinished is left behind'}")
            return EXIT_STOPPED
        except Exception as error:
            known = as_user_error(error)
            return self._failed(report, known) if known else self._bug(report)
        finally:
            watch.current = watch.SILENT

    def _failed(self, report: Reporter, error: UserError) -> int:
        damaged = {"damaged": storage.public(error.artifact)} if isinstance(error, DamagedError) else {}
        report.event(
            "error", message=str(error), what=error.what, where=error.where, fix=error.fix, exit_code=error.exit_code,
            **damaged,
        )  # fmt: skip
        report._clear()
        report.say(f"{self.name}: error: {error}\n")
        return error.exit_code

    def _bug(self, report: Reporter) -> int:
        text = traceback.format_exc()
        report.event("error", message=text.strip().split("\n")[-1], exit_code=EXIT_BUG)
        report.say(f"{text}{self.name}: this is a bug of ours: please report it with the lines above\n")
        return EXIT_BUG

    def _work(self, values: dict[str, Any], report: Reporter, nodes: Nodes) -> None:
        began = time.time()
        interface = self.interface()
        given = {k: v for k, v in values.items() if k in interface.params}
        try:
            params = interface.resolve(given)
        except ValueError as error:
            name, _, what = str(error).partition(" ")
            raise UserError(what, where="--" + name.replace("_", "-"), fix=usual(interface, name)) from None
        if nodes.rank == 0 and os.environ.get("MLFLOW_TRACKING_URI"):
            from microstages.mlflow import of_environment

            report.tracking = of_environment(self.name, params, report.warn)
        arguments: dict[str, Any] = dict(params)
        inputs: dict[str, Artifact] = {}
        for name, spec in interface.inputs.items():
            arguments[name] = None
            if values[name] is not None:
                with _told_of(spec.flag, values[name]):
                    arguments[name] = inputs[name] = open_artifact(values[name], spec.kinds)
        digests = {k: a.digest for k, a in inputs.items()}
        code = self.code_identity()
        print_ = fingerprint(self.name, code, interface.identity_params(params), digests)
        nodes.meet(print_)
        outputs: dict[str, Draft] = {}
        run = Run(report, params, nodes)
        place: Place | None = None
        try:
            for name, (_, mark, _) in self._signature().items():
                if isinstance(mark, State):
                    arguments[name] = place = Place(values[name], print_) if values[name] else None
                if isinstance(mark, Output):
                    draft = None
                    if values[name] is not None:
                        uri = values[name] if nodes.rank == 0 else _nowhere()
                        with _told_of(interface.outputs[mark.name].flag, uri):
                            draft = outputs[mark.name] = Draft(uri, mark.kind)
                    arguments[name] = draft
            hints = get_type_hints(self.function)
            if run_name := next((k for k, h in hints.items() if h is Run), None):
                arguments[run_name] = run
            self.function(**arguments)
            if nodes.rank:
                nodes.wait()
                return
            provenance = {
                "stage": self.name,
                "version": self.version,
                "code": code,
                "fingerprint": print_,
                "params": params,
                "inputs": {k: {"uri": storage.public(values[k]), "digest": a.digest} for k, a in inputs.items()},
                "software": software(),
                "hardware": hardware(),
                "started": _iso(began),
                "finished": _iso(time.time()),
            }
            for name, draft in outputs.items():
                manifest = draft.commit(provenance)
                uri = storage.public(draft.uri)
                report.event("artifact", output=name, uri=uri, digest=manifest.digest, size=manifest.size)
                took, files = duration(time.time() - began), number_of(len(manifest.files), "file")
                report.log(f"{self.name}: wrote {uri}  {size(manifest.size)}, {files}, in {took}")
            if place is not None:
                _clear(place, report)
        finally:
            for draft in outputs.values():
                draft.__exit__(None, None, None)

    def code_identity(self) -> str:
        """Identity of this stage's code as it is installed here; equal to what the runner computes from a checkout."""
        import importlib.util

        folders = []
        for package in (self.package, "microstages", *self.uses):
            spec = importlib.util.find_spec(package)
            if spec is None or not spec.submodule_search_locations:
                raise UserError(f"the package {package} is not installed", fix=f"install the stage {self.name} again")
            folders.append(Path(spec.submodule_search_locations[0]))
        return code_identity(folders)


def stage(
    name: str, *, package: str, uses: Sequence[str] = (), nodes: bool = False
) -> Callable[[Callable[..., None]], Stage]:
    """Make a typed function a stage. `uses`: further packages of this project that its code is made of.

    `nodes`: it can run on several nodes together (see `nodes`). Then the function runs on each of them, with
    `run.nodes`; what it writes counts on node 0, and its events do.
    """
    return lambda function: Stage(name, package, uses, function, nodes)


def _nowhere() -> str:
    """A place for what a helper writes: its drafts are never committed, and removed at the end."""
    return os.path.join(tempfile.gettempdir(), f"helper-{secrets.token_hex(4)}")


@contextmanager
def _told_of(flag: str, uri: str) -> Iterator[None]:
    """What is wrong with an artifact says by which flag it was given."""
    try:
        yield
    except (UserError, OSError) as error:
        known = as_user_error(error)
        if known is None:
            raise
        known.where = f"{flag} {known.where or storage.public(uri)}"
        raise known from None


def _clear(place: Place, report: Reporter) -> None:
    """Remove the checkpoints of a finished run. Its result stands, so a failure is only told."""
    try:
        place.clear()
    except (UserError, OSError) as error:
        report.warn(f"the checkpoints at {storage.public(place.uri)} could not be removed: {error}")


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise Stopped()


def _iso(t: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(t))
