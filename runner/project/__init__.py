"""`runner init`: a project folder to start from."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from microstages.errors import UserError, from_os_error

TEMPLATE = Path(__file__).parent / "template"
EXAMPLES = Path(__file__).parent.parent.parent / "examples"
HUB = "hf://microsoft/Phi-3-mini-4k-instruct"
VARIANTS = "fine-tuning/variants.yaml"


def create(folder: Path, olive: Path | None = None, model: str = "", data: str = "") -> list[str]:
    """Make a project; what is said of it. `model` and `data` are addresses or paths from here; without them it has the
    examples, where they lie beside the runner. `olive`: a config that its pipeline is made of.

    Raises UserError where the folder holds something, and for a config with mistakes; then nothing is left.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("this folder holds something already", where=folder, fix="give the name of a new one")
    there = folder.exists()
    try:
        return _create(folder, olive, model, data)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if there:
            folder.mkdir()
        if isinstance(error, OSError):
            raise from_os_error(error, folder) or error from None
        raise


def _create(folder: Path, olive: Path | None, model: str, data: str) -> list[str]:
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_") or "project"
    shutil.copytree(TEMPLATE, folder, dirs_exist_ok=True)
    (folder / "gitignore").rename(folder / ".gitignore")
    small = not model and EXAMPLES.is_dir()
    words = {
        "NAME": name, "BASE_MODEL": _model(folder, model), "DATA": _data(folder, data),
        "TEMPLATE": r"### Text: {phrase}\n### The tone is:\n{tone}", "COMPLETION": "tone",
        "PROMPT": r"### Text: I did not expect this at all!\n### The tone is:\n",
        "RATE_LOW": "3e-4" if small else "5e-5", "RATE": "1e-3" if small else "2e-4",
        "TOKENS": "512" if small else "4096",
    }  # fmt: skip
    said = []
    if data:
        found = _columns(Path(data))
        words |= found
        if not found:
            said.append("the names of your data's fields were not found: write them into `template` in pipeline.yaml")
    words |= {f"VARIANT_{k}": _from(VARIANTS, words[w]) for k, w in (("MODEL", "BASE_MODEL"), ("DATA", "DATA"))}
    for file in [f for f in folder.rglob("*") if f.suffix in (".yaml", ".md", ".jsonl") and f.is_file()]:
        if "model-cache" not in file.relative_to(folder).parts[:-1] or file.name == "README.md":
            _fill(file, words)
    if olive:
        said += _import(folder, olive)
    return [f"made {folder}", *said, f"next: cd {folder} && runner plan && runner up"]


def _fill(file: Path, words: Mapping[str, str]) -> None:
    pattern = re.compile(rf"\b({'|'.join(sorted(words, key=len, reverse=True))})\b")
    if file.parent.name == "datasets" and file.name != "README.md":
        return
    file.write_text(pattern.sub(lambda m: words[m[1]], file.read_text()))


def _model(folder: Path, model: str) -> str:
    """What the pipeline names as its base model; the example's is copied."""
    if model:
        return model if "://" in model else os.path.relpath(Path(model).resolve(), folder.resolve())
    if not EXAMPLES.is_dir():
        return HUB
    shutil.copytree(EXAMPLES / "tiny-phi3", folder / "model-cache/tiny-phi3")
    return "model-cache/tiny-phi3"


def _data(folder: Path, data: str) -> str:
    """What the pipeline names as its data: a file is copied, an address stays."""
    if "://" in data:
        return data
    if not data and not EXAMPLES.is_dir():
        return "datasets/data.jsonl"
    source = Path(data) if data else EXAMPLES / "tones.jsonl"
    if not source.is_file():
        raise UserError("there is no such file", where=source, fix="give a file of rows, or an address")
    shutil.copy(source, folder / "datasets" / source.name)
    return f"datasets/{source.name}"


def _columns(file: Path) -> dict[str, str]:
    """A template for the fields of one's own data: its first field is the prompt, its last one the answer."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            first = lines.readline()
    except (OSError, ValueError):
        return {}
    try:
        row = json.loads(first)
        names = [str(k) for k in row] if isinstance(row, dict) else []
    except ValueError:
        names = _header(first) if file.suffix in (".csv", ".tsv") else []
    if len(names) < 2 or not all(re.fullmatch(r"[\w .-]+", n) for n in (names[0], names[-1])):
        return {}
    return {"TEMPLATE": rf"{{{names[0]}}}\n{{{names[-1]}}}", "COMPLETION": names[-1], "PROMPT": "…"}


def _header(line: str) -> list[str]:
    """The names in a CSV file's first line, whatever stands between them."""
    between = max(",;\t|", key=line.count)
    return [n.strip() for n in next(csv.reader([line.rstrip("\r\n")], delimiter=between), [])]


def _from(file: str, address: str) -> str:
    """An address or path as a file in a folder below has it."""
    return address if "://" in address else os.path.join("../" * file.count("/"), address)


def _import(folder: Path, olive: Path) -> list[str]:
    from runner.olive import import_config

    made = import_config(olive, folder / "pipeline.yaml", force=True)
    shutil.copy(olive, folder / "fine-tuning" / olive.name)
    (folder / VARIANTS).unlink()
    text = (folder / "fine-tuning/README.md").read_text().split("[variants.yaml]")[0]
    text += f"Other pipelines on the same data and model. {olive.name} is the config that pipeline.yaml was made of.\n"
    (folder / "fine-tuning/README.md").write_text(text.replace("Other pipelines on the same data and model. ", "", 1))
    shutil.rmtree(folder / "model-cache/tiny-phi3", ignore_errors=True)
    (folder / "datasets/tones.jsonl").unlink(missing_ok=True)
    return [f"pipeline.yaml does what {olive.name} says (generation {made.generation}): {len(made.report.fates)} keys"]
