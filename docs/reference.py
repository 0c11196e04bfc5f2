"""Writes docs/reference from what it describes: the stages' interfaces, the pipeline's schema, the runner's own parser.

    python docs/reference.py            # write the pages
    python docs/reference.py --check    # say which are stale; exit code 1

Nothing in the pages is written by hand, so nothing in them can be wrong for long: `make interfaces` writes them, and a
test compares.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "docs/reference"
NOTE = "<!-- written by docs/reference.py: `make interfaces` -->"
STAGES = ("prepare-data", "train-lora", "train-qlora", "merge", "build-onnx", "infer")
EVENTS = ("progress", "log", "artifact", "error")  # every stage's, from the library

# What a value is, where the schema's own words for it are a pattern.
WORDS = {
    "word": "text", "text": "text", "texts": "mapping of text to text", "count": "whole number",
    "bytes": "size, such as `8GiB`", "seconds": "time, such as `90s` or `2h`", "plain": "text, number or boolean",
    "reference": "`${{ … }}`",
}  # fmt: skip
# Parts of the file that have a section of their own: its title, and where in the schema they stand.
SECTIONS = {
    "stage": "stages.NAME", "matrix": "stages.NAME.matrix", "select": "stages.NAME.select",
    "retry": "stages.NAME.retry", "docker": "targets.NAME, type: docker",
    "kubernetes": "targets.NAME, type: kubernetes", "azureml": "targets.NAME, type: azureml",
}  # fmt: skip


def cell(text: object) -> str:
    """Text that stays in its cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def code(text: object) -> str:
    """Text as code, in a cell."""
    return f"`{' '.join(str(text).split())}`".replace("|", "\\|")


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table, or nothing where it would have no rows. Columns in which nothing stands are left out."""
    lines = [list(r) for r in rows]
    names = list(head)
    used = [n for n in range(len(names)) if any(row[n] for row in lines)]
    if not lines:
        return ""
    made = [[names[n] for n in used], ["---"] * len(used), *([row[n] for n in used] for row in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in made) + "\n"


def page(title: str, *parts: str) -> str:
    """A page of parts with an empty line between them."""
    return "\n\n".join([f"# {title}", NOTE, *(p.strip("\n") for p in parts if p.strip())]) + "\n"


# --- stages


def number(value: float) -> str:
    """A limit, in the words that a person would choose."""
    for bits in (31, 32, 63, 64):
        if value == 2**bits - 1:
            return f"2^{bits} − 1"
    return f"{value:g}"


def limits(param: dict[str, Any]) -> str:
    """What a parameter's value may be."""
    if param.get("choices"):
        return ", ".join(code(c) for c in param["choices"])
    words = []
    if "min" in param:
        words.append(f"{'above' if param.get('exclusive_min') else 'from'} {number(param['min'])}")
    if "max" in param:
        words.append(f"{'below' if param.get('exclusive_max') else 'to'} {number(param['max'])}")
    return " ".join(words)


def written(value: Any) -> str:
    """A value as it is written in a pipeline file."""
    plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value)
    return "" if value is None else code(value if plain else json.dumps(value, ensure_ascii=False))


def flag_notes(params: dict[str, Any]) -> Iterator[str]:
    """How parameters are written as flags, and which of them change no result."""
    name = next((k for k in params if "_" in k), "") or next(iter(params))
    yield f"As a flag a parameter is written with hyphens: {code(name)} is {code(params[name]['flag'])}."
    kinds = {kind: [code(v["flag"]) for v in params.values() if v["type"] == kind] for kind in ("boolean", "list")}
    if kinds["boolean"]:
        yield f"Booleans can be turned off, {code('--no-…')}: {', '.join(kinds['boolean'])}."
    if kinds["list"]:
        yield f"Lists repeat their flag: {', '.join(kinds['list'])}."
    if free := [code(k) for k, v in params.items() if not v["affects_result"]]:
        yield f"Not in the fingerprint, as they change no result: {', '.join(free)}."


def exit_codes() -> str:
    """The exit codes, from the module that holds them."""
    text = (ROOT / "stages/lib/microstages/errors.py").read_text()
    line = next(line for line in text.splitlines() if line.startswith("0 done"))
    rows = (re.fullmatch(r"(\d+) (.*?)\.?", part) for part in line.split(" · "))
    return table(("exit code", "meaning"), ((r[1], r[2]) for r in rows if r))


def events(interface: dict[str, Any], folder: Path) -> list[str]:
    """The events that a stage's own code says, beside those of the library."""
    found = set(EVENTS)
    for name in interface["code"]:
        if Path(name).name == "microstages":
            continue
        for file in sorted((folder / name).rglob("*.py")):
            source = file.read_text()
            found |= set(re.findall(r'\breport\.event\(\s*"(\w+)"', source))
            found |= set(re.findall(r'_report\.event\(\s*"(\w+)"', source))
            found |= {"metric"} if re.search(r"report\.metric\(", source) else set()
    order = (*EVENTS[:1], "metric", "checkpoint", *EVENTS[1:])
    return [e for e in order if e in found] + sorted(found - set(order))


def stage_page(stage: str) -> str:
    """The page of a stage, from its interface.json."""
    folder = ROOT / "stages" / stage
    one = json.loads((folder / "interface.json").read_text())
    inputs = table(
        ("input", "flag", "kind", "", "what"),
        (
            (code(k), code(v["flag"]), ", ".join(v["kinds"]), "" if v["required"] else "optional", cell(v["help"]))
            for k, v in one["inputs"].items()
        ),
    )
    outputs = table(
        ("output", "flag", "kind", "what"),
        ((code(k), code(v["flag"]), v["kind"], cell(v["help"])) for k, v in one["outputs"].items()),
    )
    params = table(
        ("parameter", "type", "default", "limits", "what"),
        (
            (
                code(k),
                cell(v["type"] + (f", {v['unit']}" if v.get("unit") else "")),
                "required" if v.get("required") else written(v["default"]),
                limits(v),
                cell(v["help"]),
            )
            for k, v in one["params"].items()
        ),
    )
    notes = flag_notes(one["params"])
    state = one.get("state")
    return page(
        stage,
        f"{one['summary']} [What it does and why](../../stages/{stage}/README.md).",
        f"`uses: {stage}`, version {one['version']}.",
        "## Inputs",
        inputs,
        "## Outputs",
        outputs,
        f"## State\n\n`{state['flag']}`: {state['help']}. The runner gives one." if state else "",
        "## Parameters",
        params,
        " ".join(notes),
        "## Events and exit codes",
        f"One JSON object a line on stdout: {', '.join(code(e) for e in events(one, folder))}. "
        "Their fields are in [the contract](../contract.md#streams-and-exit-codes).",
        exit_codes(),
    )


# --- pipeline.yaml


def ways(node: Any, schema: dict[str, Any]) -> Iterator[str]:
    """What a value of the file may be, in words."""
    if not isinstance(node, dict):
        return
    if "type" in node.get("properties", ()) and "allOf" in node:
        yield "mapping with a `type` and the keys of that type, below"
    elif "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if name in WORDS:
            yield WORDS[name]
        elif name in SECTIONS:
            yield "mapping, [below](#" + anchor(SECTIONS[name]) + ")"
        else:
            yield from ways(schema["$defs"][name], schema)
    elif "enum" in node:
        yield ", ".join(code(v) for v in node["enum"])
    elif "const" in node:
        yield code(node["const"])
    elif any(k in node for k in ("anyOf", "oneOf", "allOf")) and "properties" not in node:
        for part in (p for k in ("anyOf", "oneOf", "allOf") for p in node.get(k, ())):
            yield from ways(part, schema)
    elif "type" in node:
        types = node["type"] if isinstance(node["type"], list) else [node["type"]]
        for one in types:
            if one == "array":
                inner = " or ".join(dict.fromkeys(ways(node.get("items"), schema)))
                yield f"list of {inner}" if inner else "list"
            elif one == "object":
                keys = ", ".join(code(k) for k in node.get("properties", ()))
                inner = " or ".join(dict.fromkeys(ways(node.get("additionalProperties"), schema)))
                yield f"mapping of {keys}" if keys else f"mapping of names to {inner}" if inner else "mapping"
            elif one != "null":
                low, high = node.get("minimum"), node.get("maximum")
                span = "".join(f" {w} {v}" for w, v in (("from", low), ("to", high)) if v is not None)
                yield f"{({'string': 'text', 'integer': 'whole number'}).get(one, one)}{span}"


def anchor(title: str) -> str:
    """The address of a heading, as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def described(node: Any) -> tuple[str, str]:
    """A description without its default, and the default."""
    if not isinstance(node, dict):
        return "", ""
    text = str(node.get("description", ""))
    found = re.search(r"\s*Default: ((?:[^.]|\.(?=\w))*)\.?", text)
    if "default" in node:
        return cell(text[: found.start()] if found else text), written(node["default"])
    return (cell(text[: found.start()] + text[found.end() :]), cell(found[1])) if found else (cell(text), "")


def keys(node: dict[str, Any], schema: dict[str, Any], before: str = "") -> Iterator[tuple[str, str, str, str]]:
    """A row for each key of a mapping; of a mapping inside that has no section of its own, its keys as well."""
    for name, value in node.get("properties", {}).items():
        if value is True or name == "type":
            continue
        text, usual = described(value)
        must = "required" if name in node.get("required", ()) else usual
        kinds = " or ".join(dict.fromkeys(ways(value, schema)))
        if examples := value.get("examples"):
            kinds += f", such as {', '.join(map(written, examples))}"
        yield code(before + name), kinds, must, text
        if "properties" in value:
            yield from keys(value, schema, f"{before}{name}.")
    if node.get("properties") and isinstance(free := node.get("additionalProperties"), dict):
        yield "any other", " or ".join(dict.fromkeys(ways(free, schema))), "", described(free)[0]


def pipeline_page() -> str:
    """The page of pipeline.yaml, from its JSON schema."""
    schema = json.loads((ROOT / "runner/pipeline.schema.json").read_text())
    head = ("key", "value", "default", "meaning")
    parts = [
        "Every key. What they are for, with examples, is in [the runner](../../runner/README.md#the-pipeline-file); a "
        "stage's own `inputs` and `params` are on the stage's page.",
        "A value may refer to others: `${{ params.NAME }}`, `${{ matrix.KEY }}`, and as an input "
        "`${{ stages.NAME.OUTPUT }}`.",
        "## The file",
        table(head, keys(schema, schema)),
    ]
    for name, title in SECTIONS.items():
        node = schema["$defs"].get(name)
        if node:
            parts += [f"## {title}", str(node.get("description", "")), table(head, keys(node, schema))]
    return page("pipeline.yaml", *parts)


# --- the runner's commands


def argument(action: argparse.Action) -> tuple[str, str, str, str]:
    """A word or an option: how it is written, its values, its default, its help."""
    takes = action.nargs != 0
    word = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    values = ", ".join(code(c) for c in action.choices) if action.choices else ""
    help_ = action.help or ""
    usual = action.default if takes and "default" not in help_ and action.nargs not in ("*", "+") else None
    shown = "" if usual in (None, "", []) or not action.option_strings else code(usual)
    names = ", ".join(action.option_strings)
    how = f"{names} {word}" if names and takes and not values else names or word
    return code(how), values, shown, cell(help_ % vars(action) if "%(" in help_ else help_.replace("%%", "%"))


def usage(prog: str, actions: list[argparse.Action]) -> str:
    """The words of a command in order, those that can be left out in brackets."""
    words = []
    for action in (a for a in actions if not a.option_strings):
        word = str(action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest))
        many = f"{word} …" if action.nargs in ("*", "+") and "[" not in word else word
        words.append(f"[{many}]" if action.nargs in ("?", "*") and "[" not in word else many)
    return " ".join([prog, *words, "[OPTIONS]" if any(a.option_strings for a in actions) else ""]).strip()


def commands(parser: argparse.ArgumentParser, depth: int = 2) -> Iterator[str]:
    """A section for each command, and for the commands below it."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        for name, one in action.choices.items():
            own = [a for a in one._actions if not isinstance(a, argparse._HelpAction)]
            plain = [a for a in own if not isinstance(a, argparse._SubParsersAction)]
            yield "#" * depth + " " + name
            yield cell((one.description or "").replace("%%", "%"))
            yield "```text\n" + usage(one.prog, plain) + "\n```"
            yield table(("word or option", "values", "default", "meaning"), (argument(a) for a in plain))
            yield from commands(one, depth + 1)


def runner_page() -> str:
    """The page of the runner, from its own parser."""
    from runner import arguments, cli

    top = arguments.parser(cli.COMMANDS)
    return page(
        "runner",
        f"{top.description} [How it works](../../runner/README.md). `runner COMMAND --help` says the same.",
        *commands(top),
        "## Exit codes",
        arguments.EPILOG.removeprefix("Exit codes: ")[:1].upper() + arguments.EPILOG.removeprefix("Exit codes: ")[1:],
    )


def pages() -> dict[Path, str]:
    """Every page with its text."""
    made = {HERE / f"{stage}.md": stage_page(stage) for stage in STAGES}
    made[HERE / "pipeline.md"] = pipeline_page()
    made[HERE / "runner.md"] = runner_page()
    return made


def main(argv: list[str]) -> int:
    """Write the pages, or say which are stale."""
    sys.path.insert(0, str(ROOT))
    wanted = pages()
    have = {f: f.read_text() for f in sorted(HERE.glob("*.md"))}
    stale = sorted(f for f in {*wanted, *have} if wanted.get(f) != have.get(f))
    if argv == ["--check"]:
        for file in stale:
            print(f"stale: {file.relative_to(ROOT)}: run make interfaces", file=sys.stderr)
        return 1 if stale else 0
    HERE.mkdir(exist_ok=True)
    for file in stale:
        if file in wanted:
            file.write_text(wanted[file])
        else:
            file.unlink()
        print(file.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
