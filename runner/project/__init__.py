"""`runner init`: a project folder to start from."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from microstages.errors import UserError, from_os_error, nearest

from runner.document import plain_scalar
from runner.project.columns import Columns, look

TEMPLATE = Path(__file__).parent / "template"
EXAMPLES = Path(__file__).parent.parent.parent / "examples"
HUB = "hf://microsoft/Phi-3-mini-4k-instruct"
VARIANTS = "fine-tuning/variants.yaml"
EXAMPLE = {
    "ROW": r'template: "### Text: {phrase}\n### The tone is:\n{tone}"' + "\n      completion: tone",
    "PROMPT": json.dumps({"prompt": "### Text: I did not expect this at all!\n### The tone is:\n"}),
}


def create(
    folder: Path, olive: Path | None = None, model: str = "", data: str = "", prompt: str = "", answer: str = ""
) -> list[str]:
    """Make a project; what is said of it. `model` and `data` are addresses or paths from here; without them it has the
    examples, where they lie beside the runner. `prompt` and `answer`: columns of `data`, by default those that look so.
    `olive`: a config that its pipeline is made of.

    Raises UserError where the folder holds something, and for a config with mistakes; then nothing is left.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("this folder holds something already", where=folder, fix="give the name of a new one")
    there = folder.exists()
    try:
        return _create(folder, olive, model, data, prompt, answer)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if there:
            folder.mkdir()
        if isinstance(error, OSError):
            raise from_os_error(error, folder) or error from None
        raise


def _create(folder: Path, olive: Path | None, model: str, data: str, prompt: str, answer: str) -> list[str]:
    if (prompt or answer) and not data:
        raise UserError("these are columns of your own data", where="--prompt, --answer", fix="give --data FILE too")
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_") or "project"
    shutil.copytree(TEMPLATE, folder, dirs_exist_ok=True)
    (folder / "gitignore").rename(folder / ".gitignore")
    small = not model and EXAMPLES.is_dir()
    words = {
        "NAME": name, "BASE_MODEL": _model(folder, model), "DATA": _data(folder, data),
        "RATE_LOW": "3e-4" if small else "5e-5", "RATE": "1e-3" if small else "2e-4",
        "TOKENS": "512" if small else "4096", **EXAMPLE,
    }  # fmt: skip
    said = []
    steps = [f"next: cd {folder} && runner plan && runner up"]
    if data:
        source = None if "://" in data else Path(data)
        columns = look(source, prompt, answer)
        words |= {"ROW": _template(columns), "PROMPT": _prompt(columns)}
        if not olive:
            said = _told(columns, source, folder / words["DATA"])
            steps = [f"next: cd {folder} && runner run data && runner logs data"]
            steps.append("and where the rows are right: runner up")
    words |= {f"VARIANT_{k}": _from(VARIANTS, words[w]) for k, w in (("MODEL", "BASE_MODEL"), ("DATA", "DATA"))}
    for file in [f for f in folder.rglob("*") if f.suffix in (".yaml", ".md", ".jsonl") and f.is_file()]:
        if "model-cache" not in file.relative_to(folder).parts[:-1] or file.name == "README.md":
            _fill(file, words)
    if olive:
        said += _import(folder, olive)
    return [f"made {folder}", *said, *steps]


def _fill(file: Path, words: Mapping[str, str]) -> None:
    pattern = re.compile(rf"\b({'|'.join(sorted(words, key=len, reverse=True))})\b")
    if file.parent.name == "datasets" and file.name != "README.md":
        return
    text = file.read_text(encoding="utf-8")
    file.write_text(pattern.sub(lambda m: words[m[1]], text), encoding="utf-8", newline="\n")


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
        near = nearest(source.name, os.listdir(source.parent) if source.parent.is_dir() else ())
        fix = "give a file of rows, such as rows.jsonl or rows.csv, or an address, such as abfs://container/rows.jsonl"
        raise UserError(f"there is no such file{near}", where=f"--data {source}", fix=fix)
    shutil.copy(source, folder / "datasets" / source.name)
    return f"datasets/{source.name}"


def _template(columns: Columns) -> str:
    """The params of prepare-data that say what a row becomes."""
    if columns.chat:
        return f"messages_field: {columns.chat}"
    prompt, answer = columns.prompt or "prompt", columns.answer or "answer"
    plain = re.fullmatch(r"[A-Za-z_][\w-]*", answer, re.ASCII) and isinstance(plain_scalar(answer), str)
    completion = answer if plain else json.dumps(answer, ensure_ascii=False)
    return f'template: "{{{prompt}}}\\n{{{answer}}}"\n      completion: {completion}'


def _prompt(columns: Columns) -> str:
    """A row for infer, in the form that the model is trained on."""
    text = columns.first or "Write a text of yours here."
    said = {"messages": [{"role": "user", "content": text}]} if columns.chat else {"prompt": f"{text}\n"}
    return json.dumps(said, ensure_ascii=False)


def _told(columns: Columns, source: Path | None, copy: Path) -> list[str]:
    """What was found in one's own data, and what to do about it."""
    said = []
    if columns.chat:
        said.append(f"rows are chats: their messages are in {columns.chat}")
    elif columns.answer:
        of = f" (of {', '.join(columns.names)})" if columns.names else ""
        change = "change template in pipeline.yaml, or give --prompt COL --answer COL"
        said.append(f"prompt: {columns.prompt}, answer: {columns.answer}{of}; {change}")
    else:
        had = f": it has {', '.join(columns.names)}" if columns.names else ""
        said.append(
            f"which field of your data is the prompt and which the answer was not found{had}; "
            "write them into `template` and `completion` in pipeline.yaml, or give --prompt COL --answer COL"
        )
    if columns.bad_line and source:
        here, there = shlex.quote(str(source)), shlex.quote(str(copy))
        iconv = "iconv -f cp1252 -t utf-8"
        packed = source.suffix == ".gz"
        convert = f"gunzip -c {here} | {iconv} | gzip > {there}" if packed else f"{iconv} {here} > {there}"
        said.append(f"{source}:{columns.bad_line} is not UTF-8, as Excel's plain CSV is not; convert it:\n  {convert}")
    return said


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
