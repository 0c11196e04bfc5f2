"""The work of the stage, top down: look at the data, plan, encode, find duplicates, write, report."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from microstages.artifact import Artifact, Draft
from microstages.dataset import FORMAT
from microstages.errors import UserError
from microstages.machine import cores
from microstages.stage import Run
from microstages.tokens import ModelText

from microstages_prepare_data import report as reporting
from microstages_prepare_data.encode import SPLITS, Encoded, Encoder
from microstages_prepare_data.formats import Format, sniff
from microstages_prepare_data.plan import Plan, plan
from microstages_prepare_data.settings import Settings
from microstages_prepare_data.sources import Chunk, SourceFile, chunks, limited, parse, source_files
from microstages_prepare_data.spool import Spool
from microstages_prepare_data.workers import ordered
from microstages_prepare_data.write import Written, write_split

SMALL = 4 << 20  # bytes of source below which other processes do not pay
LOOKED_AT = 100  # rows whose fields are looked at
FIRST_BAD = 5  # bad rows whose place is reported

Files = list[tuple[SourceFile, Format]]


def prepare(
    run: Run,
    source: Artifact,
    model: Artifact,
    output: Draft,
    *,
    test_source: Artifact | None,
    settings: Settings,
    workers: int | None,
) -> None:
    """Make the data set in `output`. Raises UserError."""
    began = time.monotonic()
    text = ModelText(model.path)
    text.tokenizer  # noqa: B018  (a model without one is told before the data is read)
    files = _formats(run, source, settings)
    test_from = None
    if test_source is not None:
        settings = replace(settings, test_fraction=0.0)
        test_from = len(files)
        files += _formats(run, test_source, settings)
    plan_ = plan(settings, text, _columns(files))
    for warning in plan_.warnings:
        run.warn(warning)
    scratch = output.path / "spool"
    scratch.mkdir()
    dtype = np.uint16 if plan_.vocab_size <= 1 << 16 else np.int32
    spools = {
        split: Spool(scratch / split, dtype)
        for split in SPLITS
        if split == "train" or test_source or settings.test_fraction
    }
    tally = reporting.Tally()
    size = sum(f.path.stat().st_size for f, _ in files)
    count = (workers or cores()) if size > SMALL else 1
    with run.report.progress("reading", size / 1e6, "MB") as progress:
        before = [0, *itertools.accumulate(f.path.stat().st_size for f, _ in files)]
        for encoded in ordered(
            Encoder(plan_, test_from), _chunks(files, test_from, settings, plan_.recipe.fields), count
        ):
            _count(tally, encoded, files, settings)
            for split, part in encoded.splits.items():
                spools[split].append(part)
            progress.update((before[encoded.file] + encoded.read) / 1e6, rows=f"{tally.rows:,}")
    tallies, written = {}, {split: Written(0, 0, 0, 0, 0) for split in SPLITS}
    paths = {split: output.path / f"{split}.safetensors" for split in SPLITS}
    for spool in spools.values():
        spool.finish(settings.deduplicate)
    if test_source is not None and settings.deduplicate:
        spools["train"].leave_out(spools["test"])
    for split, spool in spools.items():
        tallies[split] = reporting.SplitTally.of(spool)
        written[split] = write_split(spool, paths[split], settings.strategy, plan_.max_length)
    _check(plan_, tally, tallies, written)
    if written["test"].rows:
        with (output.path / "test.jsonl").open("wb") as f:
            f.writelines(spools["test"].texts())
    for spool in spools.values():
        spool.remove()
    scratch.rmdir()
    value = reporting.summary(plan_, tally, tallies, written, paths)
    (output.path / "report.json").write_text(
        json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n"
    )
    (output.path / "report.md").write_text(reporting.markdown(value), encoding="utf-8", newline="\n")
    for line in reporting.spoken(value):
        run.log(line)
    for warning in value["warnings"][len(plan_.warnings) :]:
        run.warn(warning)
    output.metadata.update(_metadata(plan_, written))
    seconds = time.monotonic() - began
    tokens = sum(w.tokens for w in written.values())
    output.metrics.update(
        seconds=round(seconds, 3),
        rows_per_second=round(tally.rows / seconds, 1),
        tokens_per_second=round(tokens / seconds, 1),
        workers=count,
    )


def _formats(run: Run, source: Artifact, settings: Settings) -> Files:
    files: Files = []
    empty = []
    for file in source_files(source):
        form = sniff(file.path, settings.input_format, settings.delimiter)
        if form is None:
            empty.append(file)
        else:
            files.append((file, form))
    if not files:
        raise UserError("the file is empty" if len(empty) == 1 else "all files are empty", where=source.uri,
                        fix="give a file with rows in it")  # fmt: skip
    if empty:
        run.log(f"left out because empty: {', '.join(f.name for f in empty[:5])}{' …' if len(empty) > 5 else ''}")
    return files


def _columns(files: Files) -> list[str]:
    """The fields of the first rows, in the order in which they come up. Raises UserError where there is no row."""
    names: dict[str, None] = {}
    seen = 0
    bad: tuple[SourceFile, int, str] | None = None
    for n, (file, form) in enumerate(files):
        for chunk in chunks(n, file.path, form):
            for number, row in zip(*parse(chunk), strict=True):
                if isinstance(row, str):
                    bad = bad or (file, number, row)
                    continue
                names.update(dict.fromkeys(row))
                seen += 1
                if seen == LOOKED_AT:
                    return list(names)
    if not seen and bad is not None:
        raise UserError(f"no row can be read; the first: {bad[2]}", where=f"{bad[0].path}:{bad[1]}",
                        fix="give JSON, JSON Lines, CSV or Parquet; see --input-format")  # fmt: skip
    if not seen:
        raise UserError("there are no rows in it", where=files[0][0].path, fix="give a file with rows in it")
    return list(names)


def _chunks(files: Files, test_from: int | None, settings: Settings, fields: tuple[str, ...]) -> Iterator[Chunk]:
    numbered = list(enumerate(files))
    for part in (numbered[:test_from], numbered[test_from:] if test_from is not None else []):
        every = itertools.chain.from_iterable(chunks(n, f.path, form, fields) for n, (f, form) in part)
        yield from every if settings.max_rows is None else limited(every, settings.max_rows)


def _count(tally: reporting.Tally, encoded: Encoded, files: Files, settings: Settings) -> None:
    tally.rows += encoded.count
    for file, number, reason in encoded.bad:
        if settings.bad_rows == "error":
            raise UserError(
                reason,
                where=f"{files[file][0].path}:{number}",
                fix="mend this row, or leave such rows out: --bad-rows skip",
            )
        tally.bad += 1
        if len(tally.first_bad) < FIRST_BAD:
            place = f"{files[file][0].name}:{number}".removeprefix(":")
            tally.first_bad.append({"place": place, "reason": reason})


def _check(
    plan_: Plan, tally: reporting.Tally, tallies: dict[str, reporting.SplitTally], written: dict[str, Written]
) -> None:
    """Raises UserError where nothing is left to train on, or where no answer ends."""
    train, t = written["train"], tallies["train"]
    if train.examples:
        if plan_.end_id is not None and plan_.settings.strategy != "join" and not t.ends:
            raise UserError(
                f"every row is longer than {plan_.max_length} tokens, so none keeps its end token",
                where="--max-length",
                fix=f"the median row has {t.length_facts()['p50']} tokens: give more, or --end-token none",
            )
        return
    if tally.bad == tally.rows:
        first = tally.first_bad[0]
        raise UserError(f"all {tally.rows} rows are bad; row {first['place']}: {first['reason']}",
                        where="--bad-rows skip", fix="mend the data, or name other fields")  # fmt: skip
    if train.cut_off:
        raise UserError(f"all rows together have {train.cut_off} tokens, fewer than a block of {plan_.max_length}",
                        where="--strategy join", fix="give a smaller --max-length, or --strategy pack")  # fmt: skip
    if t.dropped_long or t.dropped_untrained:
        raise UserError(f"no row fits into {plan_.max_length} tokens", where="--max-length",
                        fix="give more, or shorten the rows")  # fmt: skip
    raise UserError(f"all {written['test'].rows} rows were held out, and none is left to train on",
                    where="--test-fraction", fix="give a smaller one, another --seed, or more rows")  # fmt: skip


def _metadata(plan_: Plan, written: dict[str, Written]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "strategy": plan_.settings.strategy,
        "max_length": plan_.max_length,
        "loss": plan_.loss,
        "vocab_size": plan_.text.tokenizer.get_vocab_size(),
        "tokenizer_sha256": plan_.text.sha256,
        "end_token": plan_.end_token,
        "end_token_id": plan_.end_id,
        "stop_token_ids": list(plan_.stop_ids),
        "template": {**plan_.recipe.describe(), "add_bos": plan_.bos is not None},
        "train": written["train"].counts(),
        "test": written["test"].counts(),
    }
