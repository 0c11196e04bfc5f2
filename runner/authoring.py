"""The commands for who writes pipelines: check, explain, schema, completion. What they do lives in other modules."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from microstages.errors import EXIT_OK, EXIT_USER

from runner.arguments import DEFAULT


def check(args: argparse.Namespace) -> int:
    """Check a pipeline and all that it names on this machine. Runs nothing, and tells all mistakes at once."""
    from runner import check as checker
    from runner.artifacts import print_json
    from runner.document import PipelineError
    from runner.view import say

    report = checker.check(args.pipeline, args.set, args.target)
    if args.json:
        print_json(checker.as_data(report))
        return EXIT_USER if report.problems else EXIT_OK
    for warning in report.warnings if not report.problems else ():
        say(f"{warning.place}: warning: {str(warning).removeprefix(f'{warning.place}: ')}", sys.stderr)
    if report.problems:
        raise PipelineError(report.problems)
    print(report.summary())
    return EXIT_OK


def explain(args: argparse.Namespace) -> int:
    """Explain a stage, a parameter or a key of pipeline.yaml, with an example. Without a word it lists them."""
    from runner.explain import explain

    print(explain(args.word or "", Path(DEFAULT)))
    return EXIT_OK


def schema(args: argparse.Namespace) -> int:
    """Print the JSON Schema of pipeline files, for editors. It knows the stages of a pipeline's own folders too."""
    from runner.schema import as_text, built_in, of_project

    file = args.project or Path(DEFAULT)
    known = of_project(file) if args.project or file.exists() else built_in()
    print(as_text(known), end="")
    return EXIT_OK


def completion(args: argparse.Namespace) -> int:
    """Print a script with which a shell completes what is typed: commands, options, stages, parameters, runs, tags."""
    from runner.completion import SCRIPTS

    print(SCRIPTS[args.shell], end="")
    return EXIT_OK
