"""The predictions to compare, read from where they lie, and put into one plain value that is shown in every way.

pipeline      its name
rows          rows that were answered; null where the forms answered different ones
forms         one for each predictions artifact: name, uri, digest, form (model, adapter, onnx), reference (the name
              of the form that it was compared with, or the digest), metrics, labels, confusion, hardware
disagreement  rows, where not all forms that are any good say the same: count, considered (their names), and the
              first SHOWN of them with prompt, completion and each form's prediction and correct
notes         what must be known to read the figures rightly
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from microstages import storage
from microstages.errors import DamagedError, UserError
from microstages.manifest import MANIFEST, Manifest

from runner.named import Finder, Named

SHOWN = 50  # rows on which forms disagree
FILE = "predictions.jsonl"


@dataclass(frozen=True)
class Form:
    """One form of a model: its name, where its predictions lie, their manifest, and their rows."""

    name: str
    uri: str
    manifest: Manifest
    rows: Sequence[Mapping[str, Any]]

    @property
    def rows_digest(self) -> str:
        """By what the answered rows are told: of old predictions their prompts and right answers."""
        if known := self.manifest.metadata.get("rows_digest"):
            return str(known)
        text = json.dumps([[r.get("prompt"), r.get("completion")] for r in self.rows], ensure_ascii=False)
        return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def find(finder: Finder, words: Sequence[str]) -> tuple[list[Form], dict[str, str]]:
    """The forms that some words mean; without words all of the pipeline, and of those that are not done, why.

    Raises UserError where a word means something else than predictions, or there is nothing to compare.
    """
    if not words:
        return _all(finder)
    found: dict[str, Form] = {}
    for word in words:
        for name in _variants(finder, word):
            known = [(a, _manifest(a)) for a in finder.find([name]).artifacts]
            chosen = [(a, m) for a, m in known if m.kind == "predictions"]  # a tag names other things too
            if not chosen:
                kinds = ", ".join(dict.fromkeys(m.kind for _, m in known))
                what = f"{word} is of kind {kinds}; predictions are wanted"
                raise UserError(what, fix="name stages that use infer")
            for a, m in chosen:
                found.setdefault(a.uri, read_form(a, m))
    return list(found.values()), {}


def _all(finder: Finder) -> tuple[list[Form], dict[str, str]]:
    kinds = {
        (name, output): spec.kind
        for name, stage in finder.known.pipeline.stages.items()
        for output, spec in stage.interface.outputs.items()
    }
    answering = {s for (s, _), kind in kinds.items() if kind == "predictions"}
    if not answering:
        what = "no stage of this pipeline makes predictions"
        raise UserError(what, where=finder.file, fix="add a stage that uses infer for each form")
    done, undone = finder.all_stages()
    undone = {s: why for s, why in undone.items() if s in answering}
    named = [a for a in done if kinds.get((a.name.partition(".")[0], a.output)) == "predictions"]
    if not named:
        stage, why = next(iter(undone.items()))
        raise UserError(f"nothing is there to compare yet: {stage} is not done: {why}", fix="run it: runner up")
    forms: dict[str, Form] = {}
    for a in named:
        if a.uri not in forms:  # a `select` names what another stage made
            forms[a.uri] = read_form(a, _manifest(a))
    return list(forms.values()), undone


def _variants(finder: Finder, word: str) -> list[str]:
    """A stage with a matrix stands for all its variants."""
    if storage.local_path(word) is None or "/" in word or word.startswith(".") or not finder.file.exists():
        return [word]
    named = finder.known.pipeline.named(word)
    return [s for s in finder.known.pipeline.stages if s in named] or [word]


def _manifest(artifact: Named) -> Manifest:
    where = storage.public(artifact.uri)
    data = storage.read(storage.join(artifact.uri, MANIFEST))
    if data is None:
        raise UserError(f"there is no {MANIFEST}: no artifact lies there", where=where, fix="check the address")
    return Manifest.from_json(data, where)


def read_form(artifact: Named, manifest: Manifest) -> Form:
    """The predictions of an artifact. Raises UserError where they cannot be read, DamagedError where they differ."""
    where = storage.public(artifact.uri)
    entry = next((f for f in manifest.files if f.path == FILE), None)
    if entry is None:
        raise UserError(f"these predictions have no {FILE}", where=where, fix="make them with the stage infer")
    content = storage.read(storage.join(artifact.uri, FILE))
    if content is None or hashlib.sha256(content).hexdigest() != entry.sha256:
        what = "this file of the artifact is missing" if content is None else "this file of the artifact was altered"
        raise DamagedError(what, where=f"{where}/{FILE}", fix="run the pipeline again and it is made anew")
    rows = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            rows.append(_row(line, f"{where}/{FILE}:{number}"))
    return Form(artifact.name, where, manifest, rows)


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise UserError("this is not a JSON object", where=where, fix="make the predictions with the stage infer")
    return row


def as_data(pipeline: str, forms: Sequence[Form], undone: Mapping[str, str]) -> dict[str, Any]:
    """The value that is shown: see the module."""
    names = {f.manifest.digest: f.name for f in reversed(forms)}
    same = len({f.rows_digest for f in forms}) == 1
    notes = [f"{name} is not done: {why}" for name, why in undone.items()]
    if not same:
        notes.append("The forms did not answer the same rows: only figures of the same rows compare.")
    values = []
    for f in forms:
        m = f.manifest
        reference = m.metadata.get("reference")
        values.append(
            {
                "name": f.name,
                "uri": f.uri,
                "digest": m.digest,
                "form": m.metadata.get("form", ""),
                "reference": names.get(str(reference), reference),
                "metrics": {k: v for k, v in m.metrics.items() if k != "labels"},
                "labels": m.metadata.get("labels", {}),
                "confusion": m.metadata.get("confusion"),
                "hardware": m.provenance.get("hardware", {}),
            }
        )
    if len({machine(v) for v in values}) > 1:
        notes.append("The forms ran on different machines: times, speed and memory do not compare.")
    sizes = {v["metrics"].get("batch_size") for v in values}
    if len(sizes) > 1:
        notes.append("The forms ran with different batch sizes: times and speed do not compare.")
    return {
        "pipeline": pipeline,
        "rows": len(forms[0].rows) if same else None,
        "forms": values,
        "disagreement": _disagreement(forms) if same else {"count": 0, "considered": [], "rows": []},
        "notes": notes,
    }


def machine(form: Mapping[str, Any]) -> str:
    """By what machines are told apart. Of its GPUs a form knows only where it ran on torch."""
    return json.dumps({k: v for k, v in form["hardware"].items() if k != "gpus"}, sort_keys=True)


def _disagreement(forms: Sequence[Form]) -> dict[str, Any]:
    """A form that is no better than always saying the most frequent answer differs everywhere: it is shown, but does
    not decide, as long as two others are left."""
    good = [f for f in forms if _any_good(f)]
    considered = good if len(good) > 1 else list(forms)
    rows, count = [], 0
    for i, row in enumerate(forms[0].rows):
        if len({str(f.rows[i].get("prediction")).strip() for f in considered}) > 1:
            count += 1
            if count <= SHOWN:
                said = {
                    f.name: {"prediction": f.rows[i].get("prediction"), "correct": f.rows[i].get("correct")}
                    for f in forms
                }
                asked = {k: row.get(k) for k in ("prompt", "completion")}
                rows.append({"row": i + 1, **asked, "said": said})
    return {"count": count, "considered": [f.name for f in considered], "rows": rows}


def _any_good(form: Form) -> bool:
    m = form.manifest.metrics
    accuracy, majority = m.get("accuracy"), m.get("majority_share")
    return accuracy is None or majority is None or accuracy >= majority
