"""How far one form of a model agrees with another: what one keeps, and the other is compared with.

`scores.safetensors` beside `predictions.jsonl`, of all rows one after another:

    lengths         (rows,)           int32    scored tokens of each row: completion and end token; 0: none
    tokens          (positions,)      int32    these tokens
    ids             (positions, top)  int32    the likeliest tokens there, the likeliest first; top is 64 or less
    logprobs        (positions, top)  float16  their log-probabilities, in nats
    rest            (positions,)      float16  the log-probability of all others together
    answer_lengths  (rows,)           int32    tokens of each greedy answer, without the stop token
    answers         (answer tokens,)  int32    these tokens
    ended           (rows,)           uint8    1 where a stop token or text ended the answer

The divergence is KL(reference ‖ this) = Σ p log(p/q) over these `top` tokens and one bin for all others, p and q the
probabilities of the reference and of this model. Putting outcomes together never raises it: it is a lower bound of the
divergence over the whole vocabulary (Cover and Thomas, Elements of Information Theory, section 2.7).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microstages.artifact import Artifact
from microstages.errors import UserError
from microstages.tensors import header, read_shard

from microstages_infer.decoding import Answer
from microstages_infer.prompts import Row
from microstages_infer.scoring import percentile
from microstages_infer.teacher import Forced

FILE = "scores.safetensors"
TOP = 64
LEAST = 1e-12  # a probability that this model gives is taken as at least this: the divergence stays finite
TYPES = {"I32": "<i4", "F16": "<f2", "U8": "u1"}
NAMES = ("lengths", "tokens", "ids", "logprobs", "rest", "answer_lengths", "answers", "ended")
AGAIN = "answer the same rows with that form again, with --keep-scores"


def rows_digest(rows: Sequence[Row]) -> str:
    """By what two predictions are told to answer the same rows: sha256 over prompts and right answers."""
    text = json.dumps([[r.prompt, r.reference] for r in rows], ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def bins(logits: Any, ids: Any) -> tuple[Any, Any]:
    """Probabilities of chosen tokens, and of all others together. float64.

    `logits`: shape (positions, vocabulary). `ids`: (positions, top). Returns shapes (positions, top), (positions,).
    """
    import numpy as np

    x = logits.astype(np.float64)
    np.exp(x - x.max(axis=1, keepdims=True), out=x)
    total = x.sum(axis=1)
    chosen = np.take_along_axis(x, ids, axis=1) / total[:, None]
    np.put_along_axis(x, ids, 0.0, axis=1)
    return chosen, x.sum(axis=1) / total


class Keeper:
    """Collects the scores of this model, sequence by sequence in any order."""

    def __init__(self, found: Sequence[Forced | None]) -> None:
        self._found = found
        self._kept: dict[int, tuple[Any, Any, Any]] = {}

    def add(self, number: int, logits: Any) -> None:
        import numpy as np

        top = min(TOP, logits.shape[1])
        ids = np.argpartition(-logits, top - 1, axis=1)[:, :top]
        order = np.argsort(-np.take_along_axis(logits, ids, axis=1), axis=1, kind="stable")
        ids = np.take_along_axis(ids, order, axis=1)
        chosen, rest = bins(logits, ids)
        with np.errstate(divide="ignore"):
            self._kept[number] = ids.astype("<i4"), np.log(chosen).astype("<f2"), np.log(rest).astype("<f2")

    def write(self, file: Path, answers: Sequence[Answer]) -> None:
        """Write the file: see the module."""
        import numpy as np

        numbers = sorted(self._kept)
        targets = [np.array(f.targets, "<i4") for f in (self._found[i] for i in numbers) if f is not None]
        lengths = np.zeros(len(self._found), "<i4")
        lengths[numbers] = [len(t) for t in targets]

        def together(parts: list[Any], empty: Any) -> Any:
            return np.concatenate(parts) if parts else empty

        kept = [self._kept[i] for i in numbers]
        tensors = {
            "lengths": lengths,
            "tokens": together(targets, np.zeros(0, "<i4")),
            "ids": together([k[0] for k in kept], np.zeros((0, TOP), "<i4")),
            "logprobs": together([k[1] for k in kept], np.zeros((0, TOP), "<f2")),
            "rest": together([k[2] for k in kept], np.zeros(0, "<f2")),
            "answer_lengths": np.array([len(a.ids) for a in answers], "<i4"),
            "answers": together([np.array(a.ids, "<i4") for a in answers], np.zeros(0, "<i4")),
            "ended": np.array([a.ended for a in answers], "u1"),
        }
        types = {np.dtype(v): k for k, v in TYPES.items()}
        with file.open("wb") as f:
            f.write(header(((n, types[t.dtype], t.shape) for n, t in tensors.items()), {"format": "1"}))
            for t in tensors.values():
                f.write(np.ascontiguousarray(t).tobytes())


@dataclass(frozen=True)
class Kept:
    """The scores of a reference. `positions[i]`: where those of row i begin; `answers[i]`: its answer's tokens."""

    artifact: Artifact
    tensors: dict[str, Any]
    positions: Any
    answers: list[list[int]]

    @staticmethod
    def open(reference: Artifact) -> Kept:
        """Read a reference. Raises UserError where it holds no scores, or they cannot be read."""
        import numpy as np

        file = reference.path / FILE
        if not file.is_file():
            raise UserError("these predictions hold no scores to compare with", where=reference.uri, fix=AGAIN)
        known = {t.name: t for t in read_shard(file).tensors}
        if missing := [n for n in NAMES if n not in known or known[n].dtype not in TYPES]:
            raise UserError(f"there is no {missing[0]} in it", where=file, fix=AGAIN)
        data = file.read_bytes()
        tensors = {}
        for name in NAMES:
            t = known[name]
            tensors[name] = np.frombuffer(data, TYPES[t.dtype], t.count, t.start).reshape(t.shape)
        ends = np.cumsum(tensors["answer_lengths"])
        answers = [[int(i) for i in part] for part in np.split(tensors["answers"], ends[:-1])] if len(ends) else []
        positions = np.concatenate(([0], np.cumsum(tensors["lengths"])))
        if positions[-1] != len(tensors["tokens"]) or len(answers) != len(tensors["ended"]):
            raise UserError("its parts do not belong together", where=file, fix=AGAIN)
        return Kept(reference, tensors, positions, answers)

    def check(self, digest: str, found: Sequence[Forced | None]) -> None:
        """Raises UserError where the rows, or their tokens, are not those of the reference."""
        theirs = self.artifact.metadata.get("rows_digest")
        if theirs != digest or len(self.answers) != len(found):
            raise UserError(
                f"these predictions answer other rows ({len(self.answers):,}; here {len(found):,})"
                if len(self.answers) != len(found)
                else "these predictions answer other rows, or the same in another form",
                where=self.artifact.uri,
                fix="give both stages the same data set, or the same prompts, and the same --limit",
            )
        for i, f in enumerate(found):
            at, end = self.positions[i], self.positions[i + 1]
            if f is not None and end > at and self.tensors["tokens"][at:end].tolist() != f.targets:
                what = "these predictions are of a model with another tokenizer or end token: its tokens are others"
                raise UserError(what, where=self.artifact.uri, fix="compare forms of one model")

    @property
    def width(self) -> int:
        """One more than the largest token id that it names."""
        return int(self.tensors["ids"].max(initial=-1)) + 1


class Agreement:
    """Sums up how far this model agrees with a reference."""

    def __init__(self, reference: Kept) -> None:
        self._kept = reference
        self._kl: list[float] = []
        self._same = 0

    def add(self, number: int, logits: Any) -> None:
        """Logits in front of the targets of a row, shape (targets, vocabulary). Raises UserError where the vocabulary
        is smaller than the reference's."""
        import numpy as np

        at, end = self._kept.positions[number], self._kept.positions[number + 1]
        if end == at:
            return
        t = self._kept.tensors
        ids = t["ids"][at:end].astype(np.int64)
        if self._kept.width > logits.shape[1]:
            what = f"the reference names token {self._kept.width - 1}, but this model has {logits.shape[1]} rows"
            raise UserError(what, where=self._kept.artifact.uri, fix="compare forms of one model")
        p = np.concatenate((t["logprobs"][at:end], t["rest"][at:end, None]), axis=1).astype(np.float64)
        p = np.exp(p)
        p /= p.sum(axis=1, keepdims=True)  # what the rounding to float16 took
        chosen, rest = bins(logits, ids)
        q = np.maximum(np.concatenate((chosen, rest[:, None]), axis=1), LEAST)
        terms = np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - np.log(q)), 0.0)
        self._kl += np.maximum(terms.sum(axis=1), 0.0).tolist()
        self._same += int((logits.argmax(axis=1) == ids[:, 0]).sum())

    def figures(self, answers: Sequence[Answer]) -> dict[str, float]:
        """KL in nats a token, agreement of the likeliest token, and how far the greedy answers are the same."""
        values: dict[str, float] = {}
        if n := len(self._kl):
            values |= {
                "kl_mean": float(f"{sum(self._kl) / n:.6g}"),
                "kl_p95": float(f"{percentile(self._kl, 95):.6g}"),
                "kl_max": float(f"{max(self._kl):.6g}"),
                "top1_agreement": round(self._same / n, 6),
                "agreement_tokens": n,
            }
        pairs = list(zip(self._kept.answers, self._kept.tensors["ended"].tolist(), answers, strict=True))
        if pairs:
            values["common_prefix_tokens"] = round(sum(common_prefix(t, a.ids) for t, _, a in pairs) / len(pairs), 6)
            same = sum(t == a.ids and bool(e) == a.ended for t, e, a in pairs)
            values["identical_answers_share"] = round(same / len(pairs), 6)
        return values


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two answers begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
