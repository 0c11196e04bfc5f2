"""`runner explain`: what a stage takes and gives, what a parameter or a key of pipeline.yaml means, with an example.

A word is looked for everywhere, and all that it means is told: `gpus` is a key of `resources` and a parameter of the
stages that train.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from microstages.errors import UserError, nearest
from microstages.interface import Interface, ParamSpec

from runner.keys import KEYS, Key
from runner.parameters import example, sample, talks


def explain(word: str, pipeline: Path) -> str:
    """What a word means. Raises UserError that names the nearest where it means nothing."""
    from runner.schema import built_in

    stages = built_in()
    if not word:
        return _list(stages)
    parts = []
    if word not in stages and (uses := _used(word, pipeline)):
        parts = [f"{word}: a stage of {pipeline}, which uses {uses}", _stage_word(uses, stages, pipeline)]
    parts += [_stage_word(word, stages, pipeline), *_key_words(word, pipeline)]
    parts = [text for text in parts if text]
    parts += _param_words(word, stages)
    if parts:
        return "\n\n".join(parts)
    params = {name for interface in stages.values() for name in interface.params}
    dotted = [f"{s}.{n}" for s, i in stages.items() for n in (*i.params, *i.inputs, *i.outputs)]
    known = [*stages, *sorted(params), *KEYS, *(k.name for k in KEYS.values()), *dotted]
    fix = "`runner explain` lists stages and keys; it takes a stage, a parameter, STAGE.PARAMETER or a key"
    raise UserError(f"nothing here is called {word!r}{nearest(word, known)}", where="explain", fix=fix)


def _list(stages: Mapping[str, Interface]) -> str:
    rows = [(name, interface.summary) for name, interface in stages.items()]
    top = [(k.path, k.help) for k in KEYS.values() if "." not in k.path]
    stage = [(k.path, k.help) for k in KEYS.values() if k.path.count(".") == 1 and k.path.startswith("stages.")]
    targets = [(f"targets.{t}", ", ".join(_names(f"targets.{t}"))) for t in ("docker", "kubernetes", "azureml")]
    return "\n\n".join(
        [
            "stages\n" + _table(rows),
            "keys of pipeline.yaml\n" + _table([*top, *stage, *targets]),
            "runner explain WORD says more: merge, merge.dtype, learning_rate, stages.retry, targets.kubernetes.queue",
        ]
    )


def _names(parent: str) -> list[str]:
    return [k.name for k in KEYS.values() if k.path.rpartition(".")[0] == parent]


def _table(rows: Sequence[tuple[str, str]], indent: int = 2) -> str:
    """Two columns, the second one wrapped."""
    width = max((len(a) for a, _ in rows), default=0)
    return "\n".join(_wrapped(f"{'':{indent}}{a:<{width}}  ", b) for a, b in rows)


def _wrapped(head: str, text: str) -> str:
    columns = max(60, min(120, shutil.get_terminal_size((110, 24)).columns))
    return (
        textwrap.fill(text, columns, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False)
        or head.rstrip()
    )


# --- stages


def _stage_word(word: str, stages: Mapping[str, Interface], pipeline: Path) -> str:
    """A stage by its name, a folder with an interface.json, or what a stage of the pipeline uses."""
    if word in stages:
        return stage_text(word, stages[word])
    if word.startswith((".", "/", "~")):
        from runner import stages as found

        return stage_text(word, found.find(word, pipeline.resolve().parent).interface)
    return ""


def _as_written(name: str, pipeline: Path) -> str:
    """What a stage of a pipeline that has mistakes uses, as far as it can be read."""
    from runner.document import load

    try:
        top = load(pipeline).plain()
    except UserError:
        return ""
    parts = {k: top.get(k) if isinstance(top.get(k), dict) else {} for k in ("stages", "params")}
    stage = parts["stages"].get(name)
    uses = stage.get("uses") if isinstance(stage, dict) else ""
    if m := re.fullmatch(r"\$\{\{\s*params\.([\w-]+)\s*\}\}", str(uses)):
        uses = parts["params"].get(m[1])
    return uses if isinstance(uses, str) else ""


def _used(word: str, pipeline: Path) -> str:
    """What a stage of the pipeline uses; the empty string where the pipeline has none of this name."""
    if not pipeline.is_file():
        return ""
    from runner.pipeline import read
    from runner.schema import built_in

    try:
        found = read(pipeline, commands=False)
    except UserError:  # `runner check` tells what is wrong with it
        uses = _as_written(word.removeprefix("stages."), pipeline)
        return uses if uses in built_in() else ""
    names = sorted(found.named(word.removeprefix("stages.")))
    return found.stages[names[0]].uses if names and not found.stages[names[0]].select else ""


def stage_text(uses: str, interface: Interface) -> str:
    """All that a stage takes and gives, and a piece of a pipeline that uses it."""
    parts = [f"{uses}: {interface.summary}"]
    inputs = [
        (name, f"{' or '.join(i.kinds)}{'' if i.required else ', may be left out'}. {_sentence(i.help)}")
        for name, i in interface.inputs.items()
    ]
    if inputs:
        parts.append("inputs\n" + _table(inputs))
    outputs = [(name, f"{o.kind}. {_sentence(o.help)}") for name, o in interface.outputs.items()]
    parts.append("outputs\n" + _table(outputs))
    if interface.params:
        rows = [(name, f"{_values(p)}. {_sentence(p.help)}") for name, p in interface.params.items()]
        parts.append("parameters\n" + _table(rows))
    parts.append("example\n" + _example(uses, interface))
    return "\n\n".join(parts)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else ""


def _values(p: ParamSpec) -> str:
    """What a parameter takes, and its default."""
    unit = f" {p.unit}" if p.unit else ""
    noun = {"boolean": "true or false", "list": "a list of words"}.get(p.type, p.wanted())
    if p.type == "list" and p.choices:
        noun = f"a list of {', '.join(p.choices)}"
    default = (
        "needed" if p.required else "by default none" if p.default in (None, "", []) else f"by default {sample(p)}"
    )
    return f"{noun}{f' ({p.unit})' if unit else ''}; {default}" + ("" if p.affects_result else "; changes no result")


def _example(uses: str, interface: Interface) -> str:
    name = {"train-lora": "adapter", "train-qlora": "adapter", "prepare-data": "data", "merge": "merged",
            "build-onnx": "onnx", "infer": "answers"}.get(uses, "mine")  # fmt: skip
    made = {
        "dataset": "data.dataset",
        "adapter": "adapter.adapter",
        "model": "merged.model",
        "onnx-model": "onnx.model",
    }
    given = []
    for key, i in interface.inputs.items():
        if not i.required and (uses, key) != ("infer", "dataset"):
            continue
        kind = i.kinds[0]
        outside = (
            kind in ("files", "predictions") or key in ("base_model",) or (kind == "model" and uses == "prepare-data")
        )
        value = f'"${{{{ stages.{made[kind]} }}}}"' if kind in made and not outside else f"path/to/{key}"
        given.append(f"{key}: {value}")
    lines = [f"  {name}:", f"    uses: {uses}"]
    lines += [f"    inputs: {{{', '.join(given)}}}"] if given else []
    bare = ("as_chat", "add_bos", "system")  # of prompts that are no data set
    free = {k: p for k, p in interface.params.items() if k not in bare and not talks(interface, k)}
    needed = {k: p for k, p in interface.params.items() if p.required} or dict(list(free.items())[:2])
    if needed:
        lines.append(f"    params: {{{', '.join(f'{k}: {_quoted(example(k, p))}' for k, p in needed.items())}}}")
    return "stages:\n".rjust(0) + "\n".join(lines)


def _quoted(text: str) -> str:
    return f'"{text}"' if any(c in text for c in "{}:#") and text[:1] not in '["' else text


# --- parameters, inputs and outputs


def _param_words(word: str, stages: Mapping[str, Interface]) -> list[str]:
    """`merge.dtype`, or `dtype` of all stages that have it; those that say the same are told once."""
    uses, dot, name = word.partition(".")
    if re.match(r"stages\.[^.]+\.(params|inputs|outputs)\.|(params|inputs|outputs)\.", word):
        dot, name, word = "", "", word.rpartition(".")[2]
    among = {uses: stages[uses]} if dot and uses in stages else {} if dot else stages
    name = name if dot else word
    for prefix in ("params.", "inputs.", "outputs."):
        name = name.removeprefix(prefix) if dot else name
    alike: dict[str, list[str]] = {}
    flag = ""
    for stage, interface in among.items():
        if text := _one(name, interface):
            alike.setdefault(text, []).append(stage)
            if name in interface.params:
                flag = interface.params[name].flag
    out = []
    for text, names in alike.items():
        example = f"{names[0]} {flag} …" if flag else ""
        out.append(f"{', '.join(names)}: {text}" + (f"\n  on the command line  {example}" if example else ""))
    return out


def _one(name: str, interface: Interface) -> str:
    if name in interface.params:
        p = interface.params[name]
        rows = [("takes", p.wanted() if p.type not in ("boolean", "list") else _values(p).partition(";")[0])]
        rows += [("unit", p.unit)] if p.unit else []
        default = "must be given" if p.required else "none" if p.default in (None, "", []) else sample(p)
        rows += [("default", default)]
        rows += [] if p.affects_result else [("fingerprint", "not a part of it: it changes no result")]
        rows += [] if talks(interface, name) else [("example", f"params: {{{name}: {_quoted(example(name, p))}}}")]
        return f"the parameter {name}\n" + _wrapped("  ", _sentence(p.help)) + "\n" + _table(rows)
    if name in interface.inputs:
        i = interface.inputs[name]
        rows = [("takes", " or ".join(i.kinds)), ("needed", "yes" if i.required else "no")]
        return f"the input {name}\n" + _wrapped("  ", _sentence(i.help)) + "\n" + _table(rows)
    if name in interface.outputs:
        return f"the output {name}\n" + _table([("kind", interface.outputs[name].kind)])
    return ""


# --- keys


def _key_words(word: str, pipeline: Path) -> list[str]:
    """A key by its path, by the end of its path, or with the names of a pipeline in it."""
    found = KEYS.get(word) or KEYS.get(_without_names(word, pipeline))
    if found:
        return [key_text(found)]
    if word in ("targets.docker", "targets.kubernetes", "targets.azureml"):
        rows = [(k.name, k.help) for k in KEYS.values() if k.path.rpartition(".")[0] == word]
        return [f"{word}: the options of a target of this type\n" + _table(rows)]
    ends = [k for k in KEYS.values() if k.path.endswith(f".{word}")]
    alike: dict[str, list[Key]] = {}
    for key in ends:
        alike.setdefault(f"{key.help}{key.values}", []).append(key)
    return [key_text(keys[0], [k.path for k in keys]) for keys in alike.values()]


def _without_names(word: str, pipeline: Path) -> str:
    """`stages.adapter.retry` as `stages.retry`; `targets.cluster.queue` by the type that the pipeline gives it."""
    words = word.split(".")
    if len(words) > 2 and words[0] == "stages":
        return ".".join([words[0], *words[2:]])
    if len(words) > 2 and words[0] == "targets" and pipeline.exists():
        from runner.document import load

        targets = load(pipeline).value.get("targets")
        plain = targets.plain() if targets is not None else {}
        one = plain.get(words[1]) if isinstance(plain, dict) else None
        if isinstance(one, dict):
            return ".".join([words[0], str(one.get("type")), *words[2:]])
    return word


def key_text(key: Key, paths: Iterable[str] = ()) -> str:
    """A key: what it means and takes, what holds without it, an example, and the keys below it."""
    default = "nothing" if key.default is None else key.default
    rows = [("takes", key.values), ("default", str(default).lower() if isinstance(default, bool) else str(default))]
    text = f"{', '.join(paths) or key.path}\n" + _wrapped("  ", key.help) + "\n" + _table(rows)
    text += "\n  example\n" + textwrap.indent(key.example, "    ")
    below = _names(key.path)
    return text + (f"\n  below it\n    {', '.join(below)}" if below else "")
