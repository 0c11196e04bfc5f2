"""`runner`: the commands, their options and their exit codes. What they do lives in the other modules.

argparse, and imports inside the commands: `runner` starts in a blink, and `up` with nothing to do ends in one.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from microstages import watch
from microstages.errors import EXIT_BUG, EXIT_OK, EXIT_STOPPED, EXIT_USER, UserError, from_os_error

from runner.arguments import DEFAULT, parser
from runner.artifacts import gc, print_json, pull, push, tag, verify
from runner.authoring import check, completion, explain, schema
from runner.program import as_typed

if TYPE_CHECKING:
    from runner.execute import Outcome
    from runner.history import History
    from runner.pipeline import Pipeline
    from runner.tracking import TrackedView
    from runner.view import View


def up(args: argparse.Namespace) -> int:
    """Run the pipeline: what changed, and what follows from it."""
    import time

    began = time.monotonic()
    from runner.work import Work

    work = Work(args, create=True)
    from runner.execute import Execution
    from runner.runs import RunLog
    from runner.view import EventsView, Told, make_view, say

    log = RunLog(work.store, work.pipeline, work.steps, work.choice.forced)
    shown = make_view(list(work.pipeline.stages), args.quiet, sys.stderr if args.json or args.events else sys.stdout)
    events = EventsView(shown, sys.stdout) if args.events else None
    view: View = events or shown
    watch.current = Told(view.note)
    tracking, code = None, EXIT_BUG
    try:
        tracking = _tracked(view, work.pipeline)
        execution = Execution(
            work.pipeline, work.store, work.history, facts=log.begin(work.facts), choice=work.choice,
            view=tracking or view, jobs=args.jobs,
        )  # fmt: skip
        if tracking:
            tracking.number = execution.run_id
        outcome = execution.run()
        code = outcome.code
        log.end(outcome)
        before = _before(work.history, execution.run_id)
    finally:
        if tracking:
            tracking.finish(code)
        log.close()
        view.close()
        work.history.close()
    seconds = time.monotonic() - began
    if events:
        events.tell("summary", **_as_data(work.pipeline, outcome, execution.run_id, seconds))
    elif args.json:
        print_json(_as_data(work.pipeline, outcome, execution.run_id, seconds))
    elif not args.quiet:
        from runner.summary import Ended, summary

        file = () if args.pipeline == Path(DEFAULT) else ("-p", str(args.pipeline))
        ended = Ended(
            outcome.status, outcome.states, seconds, execution.run_id, before, shown.took, file, tuple(args.set)
        )  # fmt: skip
        say("\n" + as_typed(summary(work.pipeline, outcome.results, ended)), sys.stdout)
    return outcome.code


def _before(history: History, run: int) -> int:
    """The number of the run to compare a run with; 0 where there is none, or nobody can tell."""
    from sqlite3 import Error

    with suppress(Error):
        return history.like(run) or 0
    return 0


def _tracked(view: View, pipeline: Pipeline) -> TrackedView | None:
    """The view that tells MLflow too, where a server is named. Raises UserError for an address that is none."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return None
    from runner.tracking import tracked

    return tracked(view, pipeline, uri)


def run(args: argparse.Namespace) -> int:
    """Run one stage of the pipeline; the stages before it must be done. The same as up --only STAGE."""
    args.only, args.first, args.jobs = args.stage, None, 0
    return up(args)


def plan(args: argparse.Namespace) -> int:
    """Say what up would run, what it would reuse, and why. Changes nothing."""
    from runner.work import Work

    work = Work(args, create=False)
    if args.json:
        from dataclasses import asdict

        rows = []
        for step in work.steps.values():
            row = {k: v for k, v in asdict(step).items() if k not in ("result", "replace")}
            row["outputs"] = {k: o.uri for k, o in step.result.outputs.items()} if step.result else {}
            rows.append({**row, "uses": work.pipeline.stages[step.stage].interface.name})
        print_json({"pipeline": work.pipeline.name, "stages": rows})
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

    if args.everybody:
        store = records.open_store(args.pipeline, args.set)
        if args.json:
            print_json(records.everybodys(store, args.last))
        else:
            print(records.everybodys_as_text(store, args.last))
        return EXIT_OK
    history = records.open_history(args.pipeline, args.set)
    if args.json:
        print_json(records.runs_as_data(history, args.last))
    else:
        print(records.runs_as_text(history, args.last))
    return EXIT_OK


def logs(args: argparse.Namespace) -> int:
    """Print what stages said. A reused stage: what it said when it was made."""
    from runner import records

    history = records.open_history(args.pipeline, args.set)
    records.print_logs(history, args.words, args.follow)
    return EXIT_OK


def ui(args: argparse.Namespace) -> int:
    """Show the history in a browser: runs as they go, their logs, results and curves. For this machine, read-only."""
    from runner.ui.command import ui

    return ui(args)


def cancel(args: argparse.Namespace) -> int:
    """Stop a run, or one stage of it: the newest that runs, or the one named. It may save what is worth keeping."""
    from runner import records
    from runner.cancel import Canceller

    history, store = records.open_history(args.pipeline, args.set), records.open_store(args.pipeline, args.set)
    spec = records.open_spec(args.pipeline, args.set)
    graces = {name: stage.grace for name, stage in spec.stages.items()}
    Canceller(history, store, spec.name, graces, lambda text: print(text, flush=True)).cancel(args.words)
    return EXIT_OK


def export(args: argparse.Namespace) -> int:
    """Write the pipeline so that another system runs it, without the runner: a cluster, or Azure ML."""
    from importlib import import_module

    from runner.work import Work

    args.only, args.first, args.force = None, None, False
    work = Work(args, create=False)
    for file in import_module(f"runner.export.{args.format}").write(work, args.output):
        print(file)
    return EXIT_OK


def init(args: argparse.Namespace) -> int:
    """Make a project folder to start from. It holds a pipeline, and a place for data, models and prompts."""
    from runner.project import create

    print("\n".join(create(args.folder, args.olive, args.model, args.data, args.prompt, args.answer)))
    return EXIT_OK


def import_(args: argparse.Namespace) -> int:
    """Make a pipeline of a config of another system, and say what becomes of each of its keys."""
    from runner.olive import import_config, told

    output = args.output or args.config.parent / DEFAULT
    made = import_config(args.config, output, args.generation, args.force)
    if args.json:
        print_json(told.as_data(made, output))
    else:
        print(as_typed(told.as_text(made, output)))
    return EXIT_OK


def compare(args: argparse.Namespace) -> int:
    """Set forms of a model side by side: how good, how large, how fast. Reads what infer measured, and runs nothing."""
    from runner.compare.command import compare

    return compare(args)


def report(args: argparse.Namespace) -> int:
    """Write a run as one page for people: what ran, how good it is, what it cost, what made it. Runs nothing."""
    from runner.report.command import report

    return report(args)


def lineage(args: argparse.Namespace) -> int:
    """Say what made an artifact, of what, back to its sources. Reads manifests, and runs nothing."""
    from runner.lineage_forms import lineage

    return lineage(args)


def diff(args: argparse.Namespace) -> int:
    """Say what differs between two runs, tags or artifacts: parameters, data, code, versions, and what was measured."""
    from runner.differences_text import diff

    return diff(args)


def doctor(args: argparse.Namespace) -> int:
    """Say what this machine can do, and what to do about what is missing. Changes nothing."""
    from dataclasses import asdict

    from runner.doctor import as_text, findings
    from runner.spec import STORE
    from runner.targets import BUILT_IN, Where

    folder = args.pipeline.absolute().parent
    store, places = str(folder / STORE), [Where(args.target, args.target)] if args.target in BUILT_IN else []
    if args.pipeline.exists():
        from runner.pipeline import read

        pipeline = read(args.pipeline, args.set, args.target, commands=False)
        store, folder = pipeline.store, pipeline.folder
        places = list({s.where.name: s.where for s in pipeline.stages.values()}.values())
    elif args.pipeline != Path(DEFAULT):
        raise UserError("there is no such file", where=args.pipeline, fix="check the path")
    found = findings(store, places, folder)
    if args.json:
        print_json([asdict(f) for f in found])
    else:
        print(as_typed(as_text(found)))
    return EXIT_USER if any(f.state == "missing" for f in found) else EXIT_OK


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


COMMANDS = (
    up, run, plan, check, graph, ps, logs, ui, cancel, tag, verify, push, pull, export, init,
    import_, compare, report, lineage, diff, gc, doctor, explain, schema, completion,
)  # fmt: skip


def call(argv: Sequence[str]) -> int:
    """Run a command line; its exit code. What a user can mend is told in a line or two, without a traceback."""
    try:
        if argv[:1] == ["__complete"]:  # of a shell's script
            from runner.completion import answer

            print(answer(argv[1:]), end="")
            return EXIT_OK
        top = parser(COMMANDS)
        args = top.parse_args(argv)
        if not hasattr(args, "function"):
            top.print_help()
            return EXIT_OK
        return int(args.function(args))
    except UserError as error:
        _tell(f"{'' if hasattr(error, 'problems') else 'runner: error: '}{error}")
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
        _tell(f"runner: error: {known}")
        return known.exit_code


def _tell(text: str) -> None:
    from runner.view import say

    say(as_typed(text), sys.stderr)


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
