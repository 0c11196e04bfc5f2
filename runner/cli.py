"""`runner`: the commands, their options and their exit codes. What they do lives in the other modules.

argparse, and imports inside the commands: `runner` starts in a blink, and `up` with nothing to do ends in one.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from microstages.errors import EXIT_BUG, EXIT_OK, EXIT_STOPPED, EXIT_USER, UserError, from_os_error, nearest

if TYPE_CHECKING:
    from runner.execute import Outcome
    from runner.history import History
    from runner.pipeline import Pipeline
    from runner.plan import Choice, Facts, Step
    from runner.store import Store

DEFAULT = "pipeline.yaml"
EPILOG = "Exit codes: 0 done, 2 something to mend, 70 a fault in a stage, 75 try again later, 143 stopped."


def up(args: argparse.Namespace) -> int:
    """Run the pipeline: what changed, and what follows from it."""
    import time

    began = time.monotonic()
    work = Work(args, create=True)
    from runner.execute import Execution
    from runner.view import make_view, say

    view = make_view(list(work.pipeline.stages), args.quiet, sys.stderr if args.json else sys.stdout)
    try:
        execution = Execution(
            work.pipeline, work.store, work.history, facts=work.facts, choice=work.choice, view=view, jobs=args.jobs
        )
        outcome = execution.run()
    finally:
        view.close()
        work.history.close()
    seconds = time.monotonic() - began
    if args.json:
        _print_json(_as_data(work.pipeline, outcome, execution.run_id, seconds))
    elif not args.quiet and outcome.code == EXIT_OK:
        from runner.summary import summary

        counts = {s: list(outcome.states.values()).count(s) for s in ("done", "reused")}
        say("\n" + summary(work.pipeline, outcome.results, seconds, counts), sys.stdout)
    elif not args.quiet:
        say(f"\n{work.pipeline.name}: {outcome.status}; `runner up` again continues from here", sys.stdout)
    return outcome.code


def run(args: argparse.Namespace) -> int:
    """Run one stage of the pipeline; the stages before it must be done. The same as up --only STAGE."""
    args.only, args.first, args.jobs = args.stage, None, 0
    return up(args)


def plan(args: argparse.Namespace) -> int:
    """Say what up would run, what it would reuse, and why. Changes nothing."""
    work = Work(args, create=False)
    if args.json:
        from dataclasses import asdict

        rows = []
        for step in work.steps.values():
            row = {k: v for k, v in asdict(step).items() if k not in ("result", "replace")}
            row["outputs"] = {k: o.uri for k, o in step.result.outputs.items()} if step.result else {}
            rows.append({**row, "uses": work.pipeline.stages[step.stage].interface.name})
        _print_json({"pipeline": work.pipeline.name, "stages": rows})
        return EXIT_OK
    width = max(map(len, work.steps))
    for step in work.steps.values():
        action = {"wait": "run"}.get(step.action, step.action)
        print(f"{step.stage:<{width}}  {action:<5}  {step.reason}")
    return EXIT_OK


def graph(args: argparse.Namespace) -> int:
    """Draw the pipeline."""
    from runner.graph import draw
    from runner.pipeline import read

    print(draw(read(args.pipeline, args.set, commands=False), args.format))
    return EXIT_OK


def ps(args: argparse.Namespace) -> int:
    """List the runs: when, how they ended, what ran and for how long."""
    from runner import records

    history = records.open_history(args.pipeline, args.set)
    if args.json:
        _print_json(records.runs_as_data(history, args.last))
    else:
        print(records.runs_as_text(history, args.last))
    return EXIT_OK


def logs(args: argparse.Namespace) -> int:
    """Print what stages said. A reused stage: what it said when it was made."""
    from runner import records

    history = records.open_history(args.pipeline, args.set)
    records.print_logs(history, args.words, args.follow)
    return EXIT_OK


def doctor(args: argparse.Namespace) -> int:
    """Say what this machine can do, and what to do about what is missing. Changes nothing."""
    from dataclasses import asdict

    from runner.doctor import as_text, findings
    from runner.spec import STORE

    store, kinds = str(args.pipeline.absolute().parent / STORE), {args.target or ""}
    if args.pipeline.exists():
        from runner.pipeline import read

        pipeline = read(args.pipeline, args.set, args.target, commands=False)
        store, kinds = pipeline.store, {s.where.kind for s in pipeline.stages.values()}
    elif args.pipeline != Path(DEFAULT):
        raise UserError("there is no such file", where=args.pipeline, fix="check the path")
    found = findings(store, kinds)
    if args.json:
        _print_json([asdict(f) for f in found])
    else:
        print(as_text(found))
    return EXIT_USER if any(f.state == "missing" for f in found) else EXIT_OK


class Work:
    """A pipeline read, its world looked at, its plan made; then, with `create`, a place for its results."""

    def __init__(self, args: argparse.Namespace, create: bool) -> None:
        from runner.facts import gather
        from runner.history import History
        from runner.pipeline import read
        from runner.plan import choose
        from runner.plan import plan as make_plan
        from runner.store import Store

        only, first = args.only, args.first
        if only and first:
            raise UserError("--only and --from exclude each other", fix="give one of them")
        pipeline = read(args.pipeline, args.set, args.target)
        for text in pipeline.warnings:
            print(text, file=sys.stderr)
        for name in (only, first):
            if name and name not in pipeline.stages:
                what = f"there is no stage {name!r}{nearest(name, pipeline.stages)}"
                raise UserError(what, where=args.pipeline, fix=f"stages: {', '.join(pipeline.stages)}")
        self.choice: Choice = choose(pipeline, only, first, args.force)
        self.pipeline: Pipeline = pipeline.needed_for(self.choice.stages)
        self.store: Store = Store(pipeline.store)
        self.history: History = History(self.store.state_folder(pipeline.folder), create=False)
        self.facts: Facts = gather(self.pipeline, self.store, self.history)
        self.steps: dict[str, Step] = make_plan(self.pipeline, self.facts, self.choice)
        undone = [s.stage for s in self.steps.values() if s.action == "skip" and s.stage not in self.choice.stages]
        if undone:
            are, them = ("is", "it") if len(undone) == 1 else ("are", "them")
            fix = f"run the whole pipeline, or {undone[0]} first"
            raise UserError(f"{', '.join(undone)} {are} not done, and {only or first} needs {them}", fix=fix)
        if create:  # only now: a mistake leaves nothing behind
            self.store.prepare()
            if self.history.fresh:
                self.history.close()
                self.history = History(self.history.folder)


def _as_data(pipeline: Pipeline, outcome: Outcome, run_id: int, seconds: float) -> dict[str, Any]:
    stages = []
    for name, stage in pipeline.stages.items():
        result = outcome.results.get(name)
        stages.append(
            {
                "stage": name,
                "uses": stage.interface.name,
                "status": outcome.states.get(name, "not run"),
                "fingerprint": result.fingerprint if result else None,
                "outputs": {k: {"uri": o.uri, "digest": o.digest} for k, o in result.outputs.items()} if result else {},
                "metrics": result.metrics if result else {},
            }
        )
    head = {"run": run_id, "pipeline": pipeline.name, "status": outcome.status, "code": outcome.code}
    return {**head, "seconds": round(seconds, 3), "stages": stages}


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))


# --- the command line ---


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as every other error is said, with the nearest right word."""

    def error(self, message: str) -> NoReturn:
        known = [*_COMMANDS, *(word for words, _ in _OPTIONS.values() for word in words), "--set", "--format", *_FORMS]
        wrong = re.search(r"unrecognized arguments: (-\S+)|invalid choice: '(\S+)'", message)
        guess = nearest(next(w for w in wrong.groups() if w), known) if wrong else ""
        raise UserError(f"{message}{guess}", fix=f"see {self.prog} --help")


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"a whole number, 0 or more, is wanted, not {text!r}")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser(
        prog="runner", allow_abbrev=False, epilog=EPILOG,
        description="Run a pipeline of microstages: what changed is run, the rest is reused.",
    )  # fmt: skip
    commands = top.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    def command(function: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        text = (function.__doc__ or "").replace("%", "%%")
        made = commands.add_parser(
            function.__name__, help=text.split(". ")[0].rstrip("."), description=text, allow_abbrev=False, epilog=EPILOG
        )
        made.set_defaults(function=function)
        return made

    def options(p: argparse.ArgumentParser, names: str, pipeline: bool = True) -> None:
        if pipeline:
            p.add_argument("pipeline", nargs="?", type=Path, default=Path(DEFAULT), metavar="PIPELINE",
                           help=f"pipeline file (default: {DEFAULT})")  # fmt: skip
        p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                       help="put a value in place of the file's, such as params.method=train-qlora")  # fmt: skip
        for name in names.split():
            words, rest = _OPTIONS[name]
            p.add_argument(*words, **rest)

    options(command(up), "target only from force jobs json quiet")
    one = command(run)
    one.add_argument("stage", metavar="STAGE", help="a stage of the pipeline")
    options(one, "target force json quiet")
    options(command(plan), "target only from force json")
    drawn = command(graph)
    options(drawn, "")
    drawn.add_argument("--format", choices=_FORMS, default="text", help="default: text")
    options(command(ps), "last json")
    said = command(logs)
    said.add_argument("words", nargs="*", metavar="[RUN] [STAGE]", help="the last run, all stages, where left out")
    said.add_argument("--pipeline", "-p", type=Path, default=Path(DEFAULT), metavar="FILE",
                      help=f"pipeline file (default: {DEFAULT})")  # fmt: skip
    options(said, "follow", pipeline=False)
    options(command(doctor), "target json")
    return top


_OPTIONS: dict[str, tuple[Sequence[str], dict[str, Any]]] = {
    "target": (("--target",), {"metavar": "NAME", "help": "where all stages run"}),
    "only": (("--only",), {"metavar": "STAGE", "help": "just this stage"}),
    "from": (("--from",), {"metavar": "STAGE", "dest": "first", "help": "this stage and what follows it"}),
    "force": (("--force",), {"action": "store_true", "help": "run even what is there already"}),
    "jobs": (("--jobs", "-j"), {"type": _count, "default": 0, "metavar": "N",
                                "help": "stages side by side (default: one for each core)"}),
    "json": (("--json",), {"action": "store_true", "help": "print JSON"}),
    "quiet": (("--quiet", "-q"), {"action": "store_true", "help": "say only what went wrong"}),
    "last": (("--last", "-n"), {"type": _count, "default": 10, "metavar": "N", "help": "how many runs (0: all)"}),
    "follow": (("--follow", "-f"), {"action": "store_true", "help": "go on until the run ends"}),
}  # fmt: skip


_FORMS = ("text", "mermaid", "dot")
_COMMANDS = ("up", "run", "plan", "graph", "ps", "logs", "doctor")


def call(argv: Sequence[str]) -> int:
    """Run a command line; its exit code. What a user can mend is told in a line or two, without a traceback."""
    try:
        top = parser()
        args = top.parse_args(argv)
        if not hasattr(args, "function"):
            top.print_help()
            return EXIT_OK
        return int(args.function(args))
    except UserError as error:
        head = "" if hasattr(error, "problems") else "runner: error: "
        print(f"{head}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_STOPPED
    except BrokenPipeError:  # `runner plan | head`
        sys.stdout = None  # type: ignore[assignment] # or its flush at exit complains
        return EXIT_OK
    except OSError as error:
        known = from_os_error(error)
        if known is None:
            raise
        print(f"runner: error: {known}", file=sys.stderr)
        return known.exit_code


def main() -> None:
    """The console script."""
    try:
        code = call(sys.argv[1:])
    except Exception:
        import traceback

        traceback.print_exc()
        print("runner: this is a bug of ours: please report it with the lines above", file=sys.stderr)
        code = EXIT_BUG
    sys.exit(code)


if __name__ == "__main__":
    main()
