"""What became of every row: `report.json` for programs, `report.md` for people, a few lines for the terminal.

The same data and parameters give the same bytes: no times, no paths, no versions.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from microstages.reporting import number_of

from microstages_prepare_data.encode import (
    CUT,
    END_INSIDE,
    ENDS,
    MOVED_BORDER,
    NOTHING_TRAINED,
    SPLITS,
    TOO_LONG,
    TOO_SHORT,
)
from microstages_prepare_data.plan import Plan
from microstages_prepare_data.settings import LINES
from microstages_prepare_data.spool import Spool
from microstages_prepare_data.write import Written

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHOWN = 3  # examples
SHOWN_TOKENS = 160  # of an example at most
LONGEST = 1 << 18  # lengths are counted one by one up to here


@dataclass
class Tally:
    """Rows as they are read: how many, how many bad, and the places of the first few."""

    rows: int = 0
    bad: int = 0
    empty: int = 0
    first_bad: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class SplitTally:
    """What the records of a split say, summed over its windows. Lengths are those before a row was cut."""

    duplicates: int = 0
    dropped_long: int = 0
    dropped_untrained: int = 0
    dropped_short: int = 0
    longest_short: int = 0
    cut: int = 0
    ends: int = 0
    end_inside: int = 0
    moved_border: int = 0
    labels: dict[str, int] | None = None
    lengths: NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.int64))
    length_sum: int = 0
    shortest: int = 0
    longest: int = 0

    @staticmethod
    def of(spool: Spool) -> SplitTally:
        t = SplitTally(duplicates=spool.duplicates)
        for rows in spool.first_of_equal():
            flags = rows["flags"]
            t.dropped_long += int(np.count_nonzero(flags & TOO_LONG))
            t.dropped_untrained += int(np.count_nonzero(flags & NOTHING_TRAINED))
            if len(short := rows["full"][flags & TOO_SHORT != 0]):
                t.dropped_short += len(short)
                t.longest_short = max(t.longest_short, int(short.max()))
        codes: Counter[int] = Counter()
        shortest = []
        for window in spool.windows():
            rows = window.rows[window.kept]
            if not len(rows):
                continue
            for name, bit in (("cut", CUT), ("ends", ENDS), ("end_inside", END_INSIDE), ("moved_border", MOVED_BORDER)):
                setattr(t, name, getattr(t, name) + int(np.count_nonzero(rows["flags"] & bit)))
            full = rows["full"]
            counted = np.bincount(np.minimum(full, LONGEST))
            if len(counted) > len(t.lengths):
                counted[: len(t.lengths)] += t.lengths
                t.lengths = counted
            else:
                t.lengths[: len(counted)] += counted
            t.length_sum += int(full.sum(dtype=np.int64))
            t.longest = max(t.longest, int(full.max()))
            shortest.append(int(full.min()))
            if spool.labels is not None:
                codes.update(dict(enumerate(np.bincount(rows["label"]).tolist())))
        t.shortest = min(shortest, default=0)
        if spool.labels:
            counts = {name: codes[code] for name, code in spool.labels.items() if codes[code]}
            t.labels = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
        return t

    def length_facts(self) -> dict[str, Any]:
        """Tokens of a row, end token included, before it was cut."""
        total = int(self.lengths.sum())
        if not total:
            return {}
        sums = np.cumsum(self.lengths)
        p50, p95 = (int(np.searchsorted(sums, -(-total * q // 100))) for q in (50, 95))
        mean = round(self.length_sum / total, 2)
        return {"min": self.shortest, "mean": mean, "p50": p50, "p95": p95, "max": self.longest}


def summary(
    plan: Plan, read: Tally, tallies: dict[str, SplitTally], written: dict[str, Written], files: dict[str, Path]
) -> dict[str, Any]:
    """The content of `report.json`."""
    value: dict[str, Any] = {
        "rows": {
            "read": read.rows,
            "bad": read.bad,
            "duplicate": sum(t.duplicates for t in tallies.values()),
            "dropped_too_long": sum(t.dropped_long for t in tallies.values()),
            "dropped_nothing_to_train": sum(t.dropped_untrained for t in tallies.values()),
            **({"dropped_too_short": short} if (short := sum(t.dropped_short for t in tallies.values())) else {}),
            **({"dropped_empty": read.empty} if read.empty else {}),
            "train": written["train"].rows,
            "held_out": written["test"].rows,
            "truncated": sum(t.cut for t in tallies.values()),
        },
        "first_bad": read.first_bad,
        "how": {
            **plan.recipe.describe(),
            "loss": plan.loss,
            "strategy": plan.settings.strategy,
            "max_length": plan.max_length,
        },
        "end_token": {"text": plan.end_token, "id": plan.end_id, "stop_token_ids": list(plan.stop_ids)},
    }
    for split in SPLITS:
        w, t = written[split], tallies.get(split)
        if t is None:
            continue
        value[split] = {
            **w.counts(),
            "lengths": t.length_facts(),
            "truncated": t.cut,
            "packing_efficiency": round(w.tokens / (w.bins * plan.max_length), 4) if w.bins else None,
            "trained_share": round(w.trained_tokens / w.tokens, 4) if w.tokens else None,
        }
        if plan.settings.joins:
            value[split]["tokens_left_over"] = w.cut_off
        elif plan.end_id is not None and not plan.settings.chosen:
            value[split]["examples_with_trained_end_token"] = t.ends
        if t.labels is not None:
            value[split]["answers"] = t.labels
    value["notes"] = list(plan.notes)
    value["warnings"] = warnings(plan, read, tallies, written)
    value["examples"] = shown(plan, files["train"], written["train"])
    return value


def warnings(plan: Plan, read: Tally, tallies: dict[str, SplitTally], written: dict[str, Written]) -> list[str]:
    """What the user may want to change, one sentence each, with what to do."""
    out = list(plan.warnings)
    ts = tallies.values()
    kept = written["train"].rows + written["test"].rows
    if read.bad:
        out.append(f"{_rows(read.bad, 'is', 'are')} left out as bad; the first: {read.first_bad[0]['reason']}")
    if cut := sum(t.cut for t in ts):
        out.append(
            f"{_rows(cut, 'is', 'are')} longer than {plan.max_length} tokens and cut, without an end token"
            f" ({cut / kept:.1%}): see --max-length and --overlong"
        )
    if long := sum(t.dropped_long for t in ts):
        out.append(f"{_rows(long, 'is', 'are')} longer than {plan.max_length} tokens and dropped: see --max-length")
    if untrained := sum(t.dropped_untrained for t in ts):
        out.append(f"{_rows(untrained, 'is', 'are')} dropped, for nothing of the answer fits: see --max-length")
    if inside := sum(t.end_inside for t in ts):
        out.append(
            f"{_rows(inside, 'holds', 'hold')} {plan.end_token} within the text: the model is taught to stop there"
        )
    if moved := sum(t.moved_border for t in ts):
        out.append(
            f"{_rows(moved, 'has', 'have')} tokens that run over from prompt into answer: there the answer is"
            " tokenized by itself"
        )
    if plan.settings.test_fraction and not written["test"].rows:
        out.append("no row was held out: there are too few for --test-fraction; without any, nothing can be evaluated")
    elif plan.settings.test_fraction and not written["test"].examples:
        out.append("the held-out rows fill no block: they are kept as text, and there is no loss of them to measure")
    return out


def _rows(n: int, one: str, many: str) -> str:
    return f"1 row {one}" if n == 1 else f"{n:,} rows {many}"


def shown(plan: Plan, file: Path, written: Written) -> list[dict[str, Any]]:
    """The first examples of a written split, what is trained in ⟦…⟧: read back from the file."""
    out: list[dict[str, Any]] = []
    if not written.examples:
        return out
    with file.open("rb") as f:
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))

        def read(name: str, first: int, count: int) -> NDArray[Any]:
            dtype = {"U8": np.uint8, "U16": np.uint16, "I32": np.int32}[header[name]["dtype"]]
            f.seek(8 + size + header[name]["data_offsets"][0] + first * np.dtype(dtype).itemsize)
            return np.fromfile(f, dtype, count)

        first = 0
        for length in read("example_lengths", 0, min(SHOWN, written.examples)).tolist():
            count = min(length, SHOWN_TOKENS)
            ids, trained = read("input_ids", first, count), read("trained", first, count)
            text = masked(plan, ids, trained) + ("…" if count < length else "")
            out.append({"tokens": length, "text": text})
            first += length
    return out


def masked(plan: Plan, ids: NDArray[Any], trained: NDArray[Any]) -> str:
    """Tokens as text, with ⟦ and ⟧ around those that are trained."""
    cuts = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(ids)]
    out = []
    for a, b in pairwise(cuts):
        text = plan.text.tokenizer.decode(ids[a:b].tolist(), skip_special_tokens=False)
        out.append(f"⟦{text}⟧" if trained[a] else text)
    return "".join(out)


def markdown(report: dict[str, Any]) -> str:
    """`report.md`."""
    rows, how, end = report["rows"], report["how"], report["end_token"]
    lines = ["# Prepared data", "", *(f"> {w}" for w in report["warnings"])]
    lines += [""] * bool(report["warnings"])
    lines += ["| rows | |", "|---|---:|"]
    names = {
        "read": "read", "bad": "bad", "duplicate": "duplicate", "dropped_too_long": "dropped: too long",
        "dropped_nothing_to_train": "dropped: nothing to train", "dropped_too_short": "dropped: too short",
        "dropped_empty": "dropped: empty", "train": "train", "held_out": "held out",
        "truncated": "truncated (of train and held out)",
    }  # fmt: skip
    lines += [
        f"| {text} | {rows[name]:,} |" for name, text in names.items() if rows.get(name) or name in ("read", "train")
    ]
    lines += ["", "| | train | test |", "|---|---:|---:|"]
    splits = [report.get(s, {}) for s in SPLITS]

    def line(text: str, *values: Any) -> None:
        if any(v is not None for v in values):
            lines.append(f"| {text} | " + " | ".join("" if v is None else v for v in values) + " |")

    for name in ("examples", "bins", "tokens", "trained_tokens"):
        line(name.replace("_", " "), *(f"{s[name]:,}" if s else None for s in splits))
    for name in ("trained_share", "packing_efficiency"):
        line(name.replace("_", " "), *(None if s.get(name) is None else f"{s[name]:.1%}" for s in splits))
    for name in ("min", "mean", "p50", "p95", "max"):
        line(f"tokens of a row, {name}", *(f"{s['lengths'][name]:,}" if s.get("lengths") else None for s in splits))
    lines += ["", f"Rows became text by: `{json.dumps(how, ensure_ascii=False)}`", ""]
    if end["text"] is None:
        lines += ["No token ends an answer.", ""]
    else:
        lines += [f"Answers end with `{end['text']}` (id {end['id']}).", ""]
    lines += [f"- {note}" for note in report["notes"]] + [""] * bool(report["notes"])
    if report["first_bad"]:
        lines += ["First bad rows:", "", *(f"- {b['place']}: {b['reason']}" for b in report["first_bad"]), ""]
    answers: dict[str, list[int]] = {}
    for n, s in enumerate(splits):
        for name, count in (s.get("answers") or {}).items():
            answers.setdefault(name, [0, 0])[n] = count
    if answers:
        lines += ["| answer | train | test |", "|---|---:|---:|"]
        lines += [f"| {_cell(a)} | {train:,} | {test:,} |" for a, (train, test) in answers.items()] + [""]
    lines += ["Examples, what is trained in ⟦…⟧:", ""]
    for example in report["examples"]:
        fence = "````" if "```" in example["text"] else "```"
        lines += [fence, example["text"], fence, ""]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    return text[:60].replace("|", "\\|").replace("\n", " ")


def spoken(report: dict[str, Any]) -> list[str]:
    """The report in a few lines for a terminal."""
    rows, how, train = report["rows"], report["how"], report["train"]
    gone = [("bad", "bad"), ("duplicate", "duplicate"), ("dropped_too_long", "too long"),
            ("dropped_nothing_to_train", "without anything to train"), ("dropped_too_short", "too short"),
            ("dropped_empty", "empty")]  # fmt: skip
    parts = [f"{rows[name]:,} {text}" for name, text in gone if rows.get(name)]
    out = [
        f"{rows['read']:,} rows: " + ", ".join([f"{rows['train']:,} train", f"{rows['held_out']:,} held out", *parts])
    ]
    lengths, efficiency = train["lengths"], train["packing_efficiency"]
    out.append(
        f"{train['tokens']:,} tokens to train on, loss on {train['trained_share']:.0%} ({how['loss']}); a row has"
        f" {lengths['min']}–{lengths['max']} tokens, {lengths['p50']} at the median"
    )
    if how["strategy"] not in LINES:
        sequences = number_of(train["bins"], "sequence")
        out.append(f"{sequences} of at most {how['max_length']} tokens, {efficiency:.1%} full")
    if report["examples"]:
        text = report["examples"][0]["text"]
        out.append("first example: " + json.dumps(text[:300] + ("…" if len(text) > 300 else ""), ensure_ascii=False))
    out += [f"note: {n}" for n in report["notes"]]
    return out
