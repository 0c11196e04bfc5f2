"""What a command works on: a pipeline read, its world looked at, its plan made."""

from __future__ import annotations

import argparse
import sys

from microstages import watch
from microstages.errors import UserError, nearest

from runner import columns
from runner.document import Problems
from runner.facts import gather
from runner.history import History
from runner.pipeline import look
from runner.plan import choose
from runner.plan import plan as make_plan
from runner.store import Store
from runner.view import Told, say


class Work:
    """A pipeline read, its world looked at, its plan made; then, with `create`, a place for its results."""

    def __init__(self, args: argparse.Namespace, create: bool) -> None:
        only, first = args.only, args.first
        watch.current = Told(lambda text: say(text, sys.stderr))
        if only and first:
            raise UserError("--only and --from exclude each other", fix="give one of them")
        problems = Problems()
        pipeline, spec = look(args.pipeline, args.set, args.target, True, problems)
        problems.check()
        for text in pipeline.warnings:
            say(text, sys.stderr)
        for name in (only, first):
            if name and not pipeline.named(name):
                what = f"there is no stage {name!r}{nearest(name, pipeline.stages)}"
                raise UserError(what, where=args.pipeline, fix=f"stages: {', '.join(pipeline.stages)}")
        self.choice = choose(pipeline, only, first, args.force)
        self.pipeline = pipeline.needed_for(self.choice.stages)
        self.store = Store(pipeline.store)
        self.history = History(self.store.state_folder(pipeline.folder), create=False)
        self.facts = gather(self.pipeline, self.store, self.history)
        self.steps = make_plan(self.pipeline, self.facts, self.choice)
        undone = [s.stage for s in self.steps.values() if s.action == "skip" and s.stage not in self.choice.stages]
        if undone:
            are, them = ("is", "it") if len(undone) == 1 else ("are", "them")
            fix = f"run the whole pipeline, or {undone[0]} first"
            raise UserError(f"{', '.join(undone)} {are} not done, and {only or first} needs {them}", fix=fix)
        columns.check(
            self.pipeline, spec, problems, {s.stage for s in self.steps.values() if s.action in ("run", "wait")}
        )
        problems.check()
        if create:  # only now: a mistake leaves nothing behind
            self.store.prepare()
            if self.history.fresh:
                self.history.close()
                self.history = History(self.history.folder)
