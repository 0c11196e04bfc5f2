"""Completes what is typed in a shell. `runner completion SHELL` prints a script that asks `runner __complete`.

Nothing is asked over a network and nothing heavy is loaded: commands and options are a table, stages come from the
pipeline file, parameters from the stages' interfaces, runs and tags from a local store.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from runner.arguments import COMMANDS, DEFAULT, OPTIONS

Found = list[tuple[str, str]]  # a word, and what it means
SHELLS = ("bash", "zsh", "fish")

SCRIPTS = {
    "bash": """\
# for this shell: source <(runner completion bash); for all: add that line to ~/.bashrc
_runner_complete() {
    local word program="${COMP_WORDS[0]/#\\~/$HOME}"
    COMPREPLY=()
    while IFS= read -r word; do COMPREPLY+=("$word"); done < <(
        "$program" __complete bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null)
    if [[ ${COMPREPLY[0]-} == *[=.] ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -o default -F _runner_complete runner
""",
    "zsh": """\
#compdef runner
# for this shell: source <(runner completion zsh); for all: add that line to ~/.zshrc
_runner_complete() {
    local -a plain open
    local word text entry
    while IFS=$'\\t' read -r word text; do
        entry="${word//:/\\\\:}${text:+:$text}"
        if [[ $word == *[=.] ]]; then open+=("$entry"); else plain+=("$entry"); fi
    done < <("${(Q)words[1]}" __complete zsh "${(@Q)words[2,CURRENT]}" 2>/dev/null)
    (( ${#open} )) && _describe runner open -S ''
    (( ${#plain} )) && _describe runner plain
    (( ${#open} + ${#plain} )) || _files
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _runner_complete runner
""",
    "fish": """\
# for this shell: runner completion fish | source; for all: write it to ~/.config/fish/completions/runner.fish
function __runner_complete
    set -l words (commandline -opc)
    set -l typed (commandline -ct)
    set -l found ($words[1] __complete fish $words[2..-1] "$typed" 2>/dev/null)
    if test (count $found) -eq 0
        __fish_complete_path (commandline -ct)
    else
        printf '%s\\n' $found
    end
end
complete -c runner -f -a '(__runner_complete)'
""",
}


def answer(argv: Sequence[str]) -> str:
    """What a script asked for: a word a line, for zsh and fish with a tab and what it means. `bash LINE BREAKS` gives
    the whole line, the others their words; the last one is being typed."""
    shell, *rest = argv or [""]
    if shell == "bash":
        words, current = _split(rest[0] if rest else "")
        found = complete(words[1:], current)
        cut = max((current.rfind(c) for c in "=:" if c in (rest[1] if len(rest) > 1 else "=:")), default=-1) + 1
        return "".join(f"{word[cut:]}\n" for word, _ in found)
    *words, current = rest or [""]
    return "".join(f"{word}\t{text}\n" if text else f"{word}\n" for word, text in complete(words, current))


def _split(line: str) -> tuple[list[str], str]:
    """The words of a line, and the one that is being typed."""
    for end in ("", '"', "'"):
        with suppress(ValueError):
            words = shlex.split(line + end)
            typing = bool(end) or (line != "" and not line[-1].isspace())
            return (words[:-1], words[-1]) if typing and words else (words, "")
    return line.split(), ""


def complete(words: Sequence[str], current: str) -> Found:
    """What may stand in the place of the last word, after the words before it. Empty: a file, or nothing known."""
    with suppress(Exception):  # what is typed is half-done by nature: nothing is better than a noise
        return [(w, " ".join(t.split())) for w, t in _candidates(list(words), current) if w.startswith(current)]
    return []


def _candidates(words: list[str], current: str) -> Found:
    from runner import cli

    commands = {c.__name__.rstrip("_"): c for c in cli.COMMANDS}
    if not words:
        if current.startswith("-"):
            return [("--help", ""), ("--version", "say which version this is")]
        return [(name, (c.__doc__ or "").split(". ")[0].rstrip(".")) for name, c in commands.items()]
    command, *rest = words
    if command not in commands:
        return []
    places, options = _table(command)
    position, waits, file, settings = 0, "", DEFAULT, []
    for word in rest:
        if waits:
            file = word if waits in ("--pipeline", "-p") else file
            settings += [word] if waits == "--set" else []
            waits = ""
        elif word.startswith("-") and len(word) > 1:
            waits = word if word in options and "action" not in _without_append(options[word]) else ""
        else:
            if list(places)[position:] and list(places)[position] == "pipeline":
                file = word
            many = list(places)[position:] and places[list(places)[position]].get("nargs") in ("*", "+")
            position += 0 if many else 1
    about = _About(Path(file), settings)
    option, equals, value = current.partition("=")
    if waits:
        return _values(waits, options[waits], about, current)
    if current.startswith("--") and equals and option in options:
        return [(f"{option}={w}", t) for w, t in _values(option, options[option], about, value)]
    if current.startswith("-"):
        return [(o, str(a.get("help", "")).split(" (")[0]) for o, a in options.items() if o.startswith("--")]
    name = list(places)[position] if position < len(places) else ""
    return _places(name, places.get(name, {}), about, command)


def _without_append(option: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in option.items() if not (k == "action" and v == "append")}


def _table(command: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The places of a command's words, and its options."""
    words, names = COMMANDS[command]
    places = {k: v for k, v in words.items() if not k.startswith("-")}
    options: dict[str, dict[str, Any]] = {k: v for k, v in words.items() if k.startswith("-")}
    for name in names.split():
        flags, about = OPTIONS[name]
        options |= dict.fromkeys(flags, about)
    from runner.arguments import reads_pipeline

    if reads_pipeline(words):
        options["--set"] = {"action": "append", "help": "put a value in place of the file's"}
        options |= {key: {"type": Path, "help": "pipeline file"} for key in ("--pipeline", "-p")}
    options["--help"] = {"action": "help", "help": "all words and options of this command"}
    return places, options


def _values(option: str, about: dict[str, Any], known: _About, current: str) -> Found:
    if "choices" in about:
        return [(str(c), "") for c in about["choices"]]
    if option == "--set":
        from runner.completion_keys import settings

        return settings(known.file, current)
    if option in ("--only", "--from"):
        return known.stages()
    return known.targets() if option == "--target" else []


def _places(name: str, about: dict[str, Any], known: _About, command: str) -> Found:
    if "choices" in about:
        return [(str(c), "") for c in about["choices"]]
    if name == "word":
        from runner.completion_keys import explainable

        return explainable()
    if name == "stage" or (name == "stages" and command == "tag"):
        return known.stages()
    if name == "words" and command in ("logs", "cancel"):
        return [*known.runs(), *known.stages()]
    if name in ("what", "stages", "words"):
        return [*known.stages(), *known.tags(), *(known.runs() if command == "diff" else [])]
    return known.tags() if name == "name" else []


class _About:
    """What is known of the pipeline that is worked on; each is looked up when it is asked for."""

    def __init__(self, file: Path, settings: list[str]) -> None:
        self.file, self.settings = file, settings

    def _root(self) -> Any:
        from runner.document import load
        from runner.settings import override

        return override(load(self.file), self.settings)

    def stages(self) -> Found:
        from runner.document import Problems
        from runner.matrix import expand

        root = self._root()
        made = dict.fromkeys([*root.value["stages"].value, *expand(root, Problems())[0].value["stages"].value])
        return [(name, _uses(root.value["stages"].value.get(name))) for name in made]

    def targets(self) -> Found:
        from runner.targets import BUILT_IN

        own = self._root().value.get("targets") if self.file.exists() else None
        return [*((n, "") for n in (own.value if own else {})), *((n, "") for n in BUILT_IN)]

    def _store(self) -> Path | None:
        from microstages.storage import local_path

        from runner.spec import STORE

        node = self._root().value.get("store")
        path = local_path(str(node.value) if node else STORE)
        return None if path is None else self.file.resolve().parent / path

    def runs(self) -> Found:
        import sqlite3
        import time

        store = self._store()
        file = store.parent / "history.db" if store else None
        if file is None or not file.is_file():
            return []
        db = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)
        try:
            rows = db.execute("SELECT id, started, status FROM runs ORDER BY id DESC LIMIT 20").fetchall()
        finally:
            db.close()
        return [(str(n), f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(t))}, {s}") for n, t, s in rows]

    def tags(self) -> Found:
        store = self._store()
        return [(f.stem, "tag") for f in sorted((store / "tags").glob("*.json"))] if store else []


def _uses(node: Any) -> str:
    uses = node.value.get("uses") if node is not None and isinstance(node.value, dict) else None
    return f"uses {uses.value}" if uses is not None and isinstance(uses.value, str) and "$" not in uses.value else ""
