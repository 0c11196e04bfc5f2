"""The command line: words, options, their help, and what is said of a wrong one.

Only argparse: it is read at every start.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from microstages.errors import UserError, nearest

from runner import __version__

DEFAULT = "pipeline.yaml"
EPILOG = "Exit codes: 0 done, 2 something to mend, 70 a fault in a stage, 75 try again later, 143 stopped."
FORMS = ("text", "mermaid", "dot", "svg")
SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}

Command = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Says what is wrong as every other error is said, with the nearest right word."""

    commands: Sequence[str] = ()

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """`-p FILE` means the pipeline file where it is a word, too; a folder means its pipeline.yaml."""
        found = super().parse_args(args, namespace)
        if given := vars(found).pop("given", None):
            if found.pipeline not in (Path(DEFAULT), given):
                raise UserError(f"two pipelines are given: {found.pipeline} and {given}", fix="leave one of them out")
            found.pipeline = given
        for name in ("pipeline", "project"):
            file = getattr(found, name, None)
            if file is not None and (file / DEFAULT).is_file():
                setattr(found, name, file / DEFAULT)
        return found

    def error(self, message: str) -> NoReturn:
        known = [*self.commands, *(w for words, _ in OPTIONS.values() for w in words), "--set", "--format", *FORMS]
        wrong = re.search(r"unrecognized arguments: (-\S+)|invalid choice: '(\S+)'", message)
        word = next(w for w in wrong.groups() if w).partition("=")[0] if wrong else ""
        guess = ": this command has none" if word in known else nearest(word, known) if word else ""
        text = re.sub(r" \(choose from .*\)$", "", message) if guess else message  # one is nearer than all
        missing = message.rpartition("required: ")[2].split(", ")
        for action in self._actions:  # a word of which only some are known: they are told
            if isinstance(action.choices, tuple) and {action.dest, action.metavar} & set(missing):
                words = [str(c) for c in action.choices]
                fix = f"{action.dest} is one of {', '.join(words)}: {self.prog} {words[0]}; see {self.prog} --help"
                raise UserError(f"{text}{guess}", fix=fix)
        raise UserError(f"{text}{guess}", fix=f"see {self.prog} --help")


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"a whole number, 0 or more, is wanted, not {text!r}")
    return int(text)


def _age(text: str) -> float:
    """Seconds; `12h`, `90 min`."""
    found = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(SECONDS)})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"a time such as 12h, 30min or 7d is wanted, not {text!r}")
    return float(found[1]) * SECONDS[found[2]]


OPTIONS: dict[str, tuple[Sequence[str], dict[str, Any]]] = {
    "target": (("--target",), {"metavar": "NAME", "help": "where all stages run"}),
    "output": (("--output", "-o"), {"type": Path, "default": Path("export"), "metavar": "FOLDER",
                                    "help": "where to write it (default: export)"}),
    "into": (("--output", "-o"), {"type": Path, "metavar": "FILE",
                                  "help": "the pipeline file (default: pipeline.yaml beside the config)"}),
    "page": (("--output", "-o"), {"dest": "page", "type": Path, "metavar": "PAGE",
                                  "help": "write a page, such as compare.html"}),
    "report": (("--output", "-o"), {"dest": "page", "type": Path, "metavar": "PAGE",
                                    "help": "the page (default: report.html; - for stdout)"}),
    "card": (("--card",), {"type": Path, "metavar": "FOLDER", "help": "write the model's card, README.md, there"}),
    "generation": (("--generation",), {"choices": ("A", "B"), "help": "A: v0.5 and v0.6, B: since v0.7 (default: as "
                                                                       "the config tells)"}),
    "overwrite": (("--force",), {"action": "store_true", "help": "write over a file that is there"}),
    "only": (("--only",), {"metavar": "STAGE", "help": "just this stage"}),
    "from": (("--from",), {"metavar": "STAGE", "dest": "first", "help": "this stage and what follows it"}),
    "force": (("--force",), {"action": "store_true", "help": "run even what is there already"}),
    "jobs": (("--jobs", "-j"), {"type": _count, "default": 0, "metavar": "N",
                                "help": "stages side by side (default: one for each core)"}),
    "json": (("--json",), {"action": "store_true", "help": "print JSON"}),
    "events": (("--events",), {"action": "store_true",
                               "help": "print what happens as it happens, a JSON object a line, a summary at last"}),
    "quiet": (("--quiet", "-q"), {"action": "store_true", "help": "say only what went wrong"}),
    "last": (("--last", "-n"), {"type": _count, "default": 10, "metavar": "N", "help": "how many runs (0: all)"}),
    "everybody": (("--all",), {"action": "store_true", "dest": "everybody",
                               "help": "everybody's runs on this store, as its records tell"}),
    "follow": (("--follow", "-f"), {"action": "store_true", "help": "go on until the run ends"}),
    "port": (("--port",), {"type": _count, "default": 0, "metavar": "N", "help": "a port (default: any free one)"}),
    "open": (("--open",), {"action": "store_true", "help": "open it in the browser"}),
    "keep-runs": (("--keep-runs",), {"type": _count, "default": 10, "metavar": "N",
                                     "help": "keep what the last N runs need (default: 10)"}),
    "older-than": (("--older-than",), {"type": _age, "default": 86400.0, "metavar": "TIME",
                                       "help": "keep what is younger (default: 1d)"}),
    "cache": (("--cache",), {"action": "store_true", "help": "this machine's cache as well"}),
    "yes": (("--yes",), {"action": "store_true", "help": "do it; without this it is only shown"}),
    "delete": (("--delete",), {"action": "store_true", "help": "remove the tag; gc may then take what it names"}),
    "move": (("--move",), {"action": "store_true", "help": "let a tag that is there name these results instead"}),
    "olive": (("--from-olive",), {"type": Path, "metavar": "CONFIG", "dest": "olive",
                                  "help": "a config of Olive that its pipeline is made of"}),
    "model": (("--model",), {"default": "", "metavar": "URI", "help": "the base model (default: the small example)"}),
    "data": (("--data",), {"default": "", "metavar": "FILE", "help": "the data, copied (default: the small example)"}),
    "prompt": (("--prompt",), {"default": "", "metavar": "COLUMN", "help": "the data's column that is the prompt"}),
    "answer": (("--answer",), {"default": "", "metavar": "COLUMN", "help": "the data's column that is the answer"}),
    "replace": (("--replace",), {"action": "store_true", "help": "put it in place of the artifact that lies there"}),
    "all": (("--all",), {"action": "store_true", "help": "every result in the store"}),
}  # fmt: skip

WHAT = "a stage, stage.output, a tag, tag/stage, or the address of an artifact"


def _name(command: Command) -> str:
    """The word for a command; Python's own words have a line behind them in code."""
    return command.__name__.rstrip("_")


def reads_pipeline(words: Iterable[str]) -> bool:
    """Whether a command with these words works on a pipeline."""
    return not {"config", "folder", "word", "project", "shell"} & set(words)


def parser(commands: Sequence[Command]) -> argparse.ArgumentParser:
    """The whole command line of these commands, each a function of its arguments, in this order."""
    top = Parser(
        prog="runner", allow_abbrev=False, epilog=EPILOG,
        description="Run a pipeline of microstages: what changed is run, the rest is reused.",
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"runner {__version__}", help="say which version this is")
    Parser.commands = [_name(c) for c in commands]
    made = top.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for function in commands:
        text = (function.__doc__ or "").replace("%", "%%")
        help_ = text.split(". ")[0].rstrip(".")
        one = made.add_parser(
            _name(function), help=help_, description=text, allow_abbrev=False, epilog=EPILOG
        )  # fmt: skip
        one.set_defaults(function=function)
        words, names = COMMANDS[_name(function)]
        for word, rest in words.items():
            one.add_argument(word, **rest)
        own = not reads_pipeline(words)
        if not own:
            about: dict[str, Any] = {"default": Path(DEFAULT), "help": _PIPELINE["pipeline"]["help"]}
            if "pipeline" in words:
                about = {"dest": "given", "help": "the same as PIPELINE"}
            one.add_argument("--pipeline", "-p", type=Path, metavar="FILE", **about)
        if not own:
            one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                             help="put a value in place of the file's, such as params.method=train-qlora")  # fmt: skip
        for name in names.split():
            flags, rest = OPTIONS[name]
            one.add_argument(*flags, **rest)
    return top


_PIPELINE: dict[str, dict[str, Any]] = {
    "pipeline": {"nargs": "?", "type": Path, "default": Path(DEFAULT), "metavar": "PIPELINE",
                 "help": f"pipeline file, or its folder (default: {DEFAULT})"},
}  # fmt: skip
_FORMAT: dict[str, Any] = {"choices": FORMS, "default": "text", "help": "default: text"}
_WHAT: dict[str, Any] = {"nargs": "+", "metavar": "WHAT", "help": WHAT}

# Each command's words, and its options by name.
COMMANDS: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "up": (_PIPELINE, "target only from force jobs json events quiet"),
    "run": (
        {"stage": {"metavar": "STAGE", "help": "a stage of the pipeline"}, **_PIPELINE},
        "target force json events quiet",
    ),
    "plan": (_PIPELINE, "target only from force json"),
    "graph": ({**_PIPELINE, "--format": _FORMAT}, ""),
    "ps": (_PIPELINE, "last everybody json"),
    "logs": (
        {"words": {"nargs": "*", "metavar": "[RUN] [STAGE]", "help": "the last run, all stages, where left out"}},
        "follow",
    ),
    "ui": (_PIPELINE, "port open"),
    "cancel": (
        {"words": {"nargs": "*", "metavar": "[RUN] [STAGE]", "help": "the newest run, all stages, where left out"}},
        "",
    ),
    "tag": (
        {
            "name": {"nargs": "?", "metavar": "NAME", "help": "letters, digits, . - _; without it the tags are listed"},
            "stages": {"nargs": "*", "metavar": "STAGE", "help": "stages of the pipeline (default: all)"},
        },
        "delete move json",
    ),
    "verify": ({"what": {**_WHAT, "nargs": "*"}}, "all json"),
    "push": ({"what": _WHAT, "dest": {"metavar": "DEST", "help": "the new address; of several, a folder"}}, "json"),
    "pull": ({"what": _WHAT, "dest": {"metavar": "DEST", "help": "a folder of this machine"}}, "replace json"),
    "export": (
        {
            "format": {"choices": ("kubernetes", "azureml"), "help": "the system that is to run it"},
            **_PIPELINE,
        },
        "target output",
    ),
    "init": (
        {"folder": {"type": Path, "metavar": "FOLDER", "help": "the new project's folder"}},
        "olive model data prompt answer",
    ),
    "import": (
        {
            "system": {"choices": ("olive",), "help": "whose config it is"},
            "config": {"type": Path, "metavar": "CONFIG", "help": "such as olive-config.json"},
        },
        "into generation overwrite json",
    ),
    "compare": (
        {
            "stages": {
                "nargs": "*",
                "metavar": "STAGE",
                "help": "stages that use infer, tags, or addresses of predictions (default: all of the pipeline)",
            }
        },
        "page json",
    ),
    "report": (
        {
            "run": {
                "nargs": "?",
                "default": "",
                "metavar": "RUN",
                "help": "a number of runner ps, or a name of runner ps --all --json (default: the last run "
                "that made something)",
            }
        },
        "report card json",
    ),
    "lineage": (
        {
            "what": {"metavar": "ARTIFACT", "help": f"{WHAT}; or the first characters of a digest"},
            "--format": {**_FORMAT, "choices": ("text", "mermaid", "svg", "json")},
        },
        "",
    ),
    "diff": (
        {
            "words": {
                "nargs": "*",
                "metavar": "[A] [B]",
                "help": f"the number of a run, {WHAT} (default: the last run that made something, after the done run "
                "before it that is most like it; of one word, it and the last of them)",
            },
            "--all": {"action": "store_true", "help": "also times, memory, threads and counts"},
        },
        "json",
    ),
    "gc": (_PIPELINE, "keep-runs older-than cache yes json"),
    "doctor": (_PIPELINE, "target json"),
    "check": (_PIPELINE, "target json"),
    "explain": (
        {"word": {"nargs": "?", "metavar": "WORD", "help": "such as merge, merge.dtype, dtype, stages.retry"}},
        "",
    ),
    "schema": (
        {"project": {"nargs": "?", "type": Path, "metavar": "PIPELINE", "help": f"pipeline file (default: {DEFAULT})"}},
        "",
    ),
    "completion": ({"shell": {"choices": ("bash", "zsh", "fish"), "help": "the shell that is to complete"}}, ""),
}
