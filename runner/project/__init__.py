"""`runner init`: a project folder to start from.

It is made whole in a hidden folder within, and then put in place; a mistake leaves what was there. `.init.json` has the
sha256 of each file, so that a project that nobody changed can be made anew, with other columns.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from microstages.errors import UserError, from_os_error, nearest

from runner.document import plain_scalar
from runner.program import as_typed
from runner.project.columns import Columns, look

TEMPLATE = Path(__file__).parent / "template"
EXAMPLES = Path(__file__).parent.parent.parent / "examples"
HUB = "hf://microsoft/Phi-3-mini-4k-instruct"
VARIANTS = "fine-tuning/variants.yaml"
RECORD, PARTIAL = ".init.json", ".init.partial"
CHARACTERS = 3.0  # of a text for each token that a row becomes, as far as one knows before
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

    Raises UserError where the folder holds something but an unchanged project, for a model or data that cannot be read,
    and for a config with mistakes; then nothing is changed.
    """
    there, before = folder.exists(), _unchanged(folder)
    made = folder / PARTIAL
    try:
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        said = _create(made, folder, olive, model, data, prompt, answer)
        _record(made)
        _put(made, folder, before)
    except BaseException as error:
        shutil.rmtree(made if there else folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise from_os_error(error, folder) or error from None
        raise
    return [f"made {folder}{' anew: nothing in it was changed' if before else ''}", *said]


def _unchanged(folder: Path) -> list[str]:
    """The files of a project that lies there as it was made, none where nothing does. Raises UserError for anything
    else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return []
    what, fix = "this folder holds something already", "give the name of a new one"
    known: dict[str, str] = {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = dict(json.loads((folder / RECORD).read_bytes())["files"])
    if not known:
        raise UserError(what, where=folder, fix=fix)
    there = [f.relative_to(folder) for f in folder.rglob("*") if not f.is_dir() or f.is_symlink()]
    names = {f.as_posix() for f in there if f.parts[0] != PARTIAL} - {RECORD}
    wrong = sorted(n for n in names | set(known) if n not in names or known.get(n) != _digest(folder / n))
    if wrong:
        first = wrong[0].split("/")[0] if wrong[0].startswith(".") else wrong[0]
        what += f": a project that is not as it was made ({first}), so it is not made anew"
        raise UserError(what, where=folder, fix=f"{fix}, or change its pipeline.yaml")
    return [*known, RECORD]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() and not file.is_symlink() else ""


def _record(made: Path) -> None:
    files = {f.relative_to(made).as_posix(): _digest(f) for f in sorted(made.rglob("*")) if f.is_file()}
    (made / RECORD).write_text(
        json.dumps({"made_by": "runner init", "files": files}, indent=1) + "\n", encoding="utf-8"
    )


def _put(made: Path, folder: Path, before: list[str]) -> None:
    """Put a project in its place, and that of the one before it."""
    for name in before:
        (folder / name).unlink()
    for old in sorted((f for f in folder.rglob("*") if f.is_dir() and made not in (f, *f.parents)), reverse=True):
        old.rmdir()
    for one in made.iterdir():
        one.rename(folder / one.name)
    made.rmdir()


def _create(made: Path, folder: Path, olive: Path | None, model: str, data: str, prompt: str, answer: str) -> list[str]:
    """Write the files of `folder` into `made`; what is said of them."""
    if (prompt or answer) and not data:
        raise UserError("these are columns of your own data", where="--prompt, --answer", fix="give --data FILE too")
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_") or "project"
    shutil.copytree(TEMPLATE, made, dirs_exist_ok=True)
    (made / "gitignore").rename(made / ".gitignore")
    small = not model and EXAMPLES.is_dir()
    words = {
        "NAME": name, "BASE_MODEL": _model(made, folder, model), "DATA": _data(made, data),
        "RATE_LOW": "3e-4" if small else "5e-5", "RATE": "1e-3" if small else "2e-4",
        **_steps(0, small), **EXAMPLE,
    }  # fmt: skip
    said = []
    here = folder.resolve() == Path.cwd()
    go = "" if here else f"cd {shlex.quote(str(folder))} && "
    steps = [f"next: {go}runner plan && runner up"]
    if data:
        source = None if "://" in data else Path(data)
        columns = look(source, prompt, answer)
        chat = _chats(made, words["BASE_MODEL"], folder)
        words |= {
            "ROW": _template(columns, chat),
            "PROMPT": _prompt(columns, bool(chat)),
            **_steps(columns.characters, small),
        }
        if not olive:
            said = _told(columns, source, folder / words["DATA"])
            steps = [f"next: {go}runner run data && runner logs data"]
            steps.append("and where the rows are right: runner up")
    words |= {f"VARIANT_{k}": _from(VARIANTS, words[w]) for k, w in (("MODEL", "BASE_MODEL"), ("DATA", "DATA"))}
    for file in [f for f in made.rglob("*") if f.suffix in (".yaml", ".md", ".jsonl") and f.is_file()]:
        if "model-cache" not in file.relative_to(made).parts[:-1] or file.name == "README.md":
            _fill(file, words)
    if olive:
        said += _import(made, folder, olive)
    return [*said, *(as_typed(step, absolute=not here) for step in steps)]


def _fill(file: Path, words: Mapping[str, str]) -> None:
    pattern = re.compile(rf"\b({'|'.join(sorted(words, key=len, reverse=True))})\b")
    if file.parent.name == "datasets" and file.name != "README.md":
        return
    text = file.read_text(encoding="utf-8")
    file.write_text(pattern.sub(lambda m: words[m[1]], text), encoding="utf-8", newline="\n")


def _model(made: Path, folder: Path, model: str) -> str:
    """What the pipeline names as its base model: a folder or an address; the example's is copied. Raises UserError."""
    if "://" in model:
        return model
    if model:
        _check_model(Path(model))
        return os.path.normpath(model) if os.path.isabs(model) else os.path.relpath(model, folder.resolve())
    if not EXAMPLES.is_dir():
        return HUB
    shutil.copytree(EXAMPLES / "tiny-phi3", made / "model-cache/tiny-phi3")
    return "model-cache/tiny-phi3"


def _check_model(model: Path) -> None:
    """Raises UserError where there is no folder of a model."""
    if (model / "config.json").is_file():
        return
    fix = "give the folder that holds a model's config.json, or an address, such as hf://owner/name"
    if model.is_file():
        raise UserError("this is a file, not the folder of a model", where=f"--model {model}", fix=fix)
    if model.is_dir():
        inner = sorted(f.parent.name for f in model.glob("*/config.json"))
        what = "there is no config.json in this folder, so it holds no model"
        raise UserError(what, where=f"--model {model}", fix=f"{fix}; below it: {', '.join(inner)}" if inner else fix)
    near = nearest(model.name, [p.name for p in model.parent.glob("*") if p.is_dir()])
    if not near and re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)) and not model.parent.is_dir():
        fix = f"of the hub: --model hf://{model}"
    raise UserError(f"there is no such folder{near}", where=f"--model {model}", fix=fix)


def _data(made: Path, data: str) -> str:
    """What the pipeline names as its data: a file is copied, an address stays. Raises UserError for a file that cannot
    be read."""
    if "://" in data:
        return data
    if not data and not EXAMPLES.is_dir():
        return "datasets/data.jsonl"
    source = Path(data) if data else EXAMPLES / "tones.jsonl"
    if not source.is_file():
        near = nearest(source.name, [f.name for f in source.parent.glob("*") if f.is_file()])
        fix = "give a file of rows, such as rows.jsonl or rows.csv, or an address, such as abfs://container/rows.jsonl"
        raise UserError(f"there is no such file{near}", where=f"--data {source}", fix=fix)
    if data:
        _check_data(source)
    shutil.copy(source, made / "datasets" / source.name)
    return f"datasets/{source.name}"


def _check_data(source: Path) -> None:
    """Raises UserError with what the stage `data` would say of a file. Text that is not UTF-8 can be read, and how to
    convert it is told."""
    from runner import rows, stages
    from runner.translated import translated

    if not rows.installed():
        return
    try:
        rows.fields(source)
    except ImportError:
        return  # Parquet, without its library
    except UserError as error:
        if "not UTF-8" not in error.what:
            raise translated(error, stages.find("prepare-data", source.parent).interface, "data") from None


def _steps(characters: int, small: bool) -> dict[str, str]:
    """How long to train, by the length of the data (0: it is long): few rows want small steps, and to be seen often."""
    most, batch, steps = (40, 256, 150) if small else (10, 1024, 60)
    each = characters / CHARACTERS / batch
    if not characters or each > steps / 3:
        return {"EPOCHS": "3", "TOKENS": "512" if small else "4096"}
    return {"EPOCHS": str(min(most, math.ceil(steps / each))), "TOKENS": str(batch)}


def _chats(made: Path, model: str, folder: Path) -> bool | None:
    """Whether the base model has a chat template; None where that is not known."""
    if model == HUB:
        return True
    if "://" in model:
        return None
    place = made / model if (made / model).is_dir() else folder / model
    if (place / "chat_template.jinja").is_file():
        return True
    with suppress(OSError, ValueError):
        return bool(json.loads((place / "tokenizer_config.json").read_bytes()).get("chat_template"))
    return False


def _template(columns: Columns, chat: bool | None) -> str:
    """The params of prepare-data that say what a row becomes; `chat`: see `_chats`."""
    if columns.chat:
        return f"messages_field: {columns.chat}"
    prompt, answer = columns.prompt or "prompt", columns.answer or "answer"
    plain = re.fullmatch(r"[A-Za-z_][\w-]*", answer, re.ASCII) and isinstance(plain_scalar(answer), str)
    completion = answer if plain else json.dumps(answer, ensure_ascii=False)
    as_chat = {
        True: "\n      as_chat: true # the prompt is what the user says, in the model's chat template",
        None: "\n      # as_chat: true # where the model has a chat template: the prompt is what the user says in it",
        False: "",
    }[chat]
    return f'template: "{{{prompt}}}\\n{{{answer}}}"\n      completion: {completion}{as_chat}'


def _prompt(columns: Columns, chat: bool) -> str:
    """A row for infer, in the form that the model is trained on."""
    text = columns.first or "Write a text of yours here."
    chat = chat or bool(columns.chat)
    said = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": f"{text}\n"}
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


def _import(made: Path, folder: Path, olive: Path) -> list[str]:
    from runner.olive.convert import convert
    from runner.olive.write import pipeline_text

    found = convert(olive, folder / "pipeline.yaml", None)
    (made / "pipeline.yaml").write_text(pipeline_text(found), encoding="utf-8")
    shutil.copy(olive, made / "fine-tuning" / olive.name)
    (made / VARIANTS).unlink()
    text = (made / "fine-tuning/README.md").read_text().split("[variants.yaml]")[0]
    text += f"Other pipelines on the same data and model. {olive.name} is the config that pipeline.yaml was made of.\n"
    (made / "fine-tuning/README.md").write_text(text.replace("Other pipelines on the same data and model. ", "", 1))
    shutil.rmtree(made / "model-cache/tiny-phi3", ignore_errors=True)
    (made / "datasets/tones.jsonl").unlink(missing_ok=True)
    return [
        f"pipeline.yaml does what {olive.name} says (generation {found.generation}): {len(found.report.fates)} keys"
    ]
