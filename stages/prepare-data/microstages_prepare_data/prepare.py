"""The work of the stage, top down: look at the data, plan, encode, find duplicates, write, report."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
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
from microstages_prepare_data.formats import sniff
from microstages_prepare_data.hidden import hidden_token
from microstages_prepare_data.plan import Plan, plan
from microstages_prepare_data.recipe import remedy
from microstages_prepare_data.selection import Files, Part, named, parts, selected, splits
from microstages_prepare_data.sequences import Stream, choose, shortage
from microstages_prepare_data.sequences import split as split_sequences
from microstages_prepare_data.sequences import texts as texts_of
from microstages_prepare_data.settings import LINES, Settings
from microstages_prepare_data.sources import Chunk, SourceFile, chunks, parse, way_out
from microstages_prepare_data.spool import Spool
from microstages_prepare_data.workers import ordered
from microstages_prepare_data.write import Written, write_spans, write_split

SMALL = 4 << 20  # bytes of source below which other processes do not pay
LOOKED_AT = 100  # rows whose fields are looked at
FIRST_BAD = 5  # bad rows whose place is reported


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
    files: Files = []
    wanted = _parts(run, source, settings.files, settings.split, "--split", files, settings)
    test_from, held_out = None, test_source is not None or settings.test_split is not None
    if held_out and settings.test_sequences is not None:
        raise UserError("a part is held out already", where="--test-sequences", fix="leave it out")
    if held_out or settings.test_sequences is not None:
        settings = replace(settings, test_fraction=0.0)
    test_parts: list[Part] = []
    if held_out:
        test_from = len(files)
        patterns = () if test_source is not None else settings.files
        from_ = test_source if test_source is not None else source
        test_parts = _parts(run, from_, patterns, settings.test_split, "--test-split", files, settings)
    plan_ = plan(settings, text, _columns(files))
    for warning in plan_.warnings:
        run.warn(warning)
    scratch = output.path / "spool"
    scratch.mkdir()
    dtype = np.uint16 if plan_.vocab_size <= 1 << 16 else np.int32
    spools = {
        split: Spool(scratch / split, dtype)
        for split in SPLITS
        if split == "train" or held_out or settings.test_fraction
    }
    tally = reporting.Tally()
    size = sum(f.path.stat().st_size for f, _ in files)
    count = (workers or cores()) if size > SMALL else 1
    with run.report.progress("reading", size / 1e6, "MB") as progress:
        before = [0, *itertools.accumulate(f.path.stat().st_size for f, _ in files)]
        for encoded in ordered(Encoder(plan_, test_from), _chunks(files, (wanted, test_parts), plan_), count):
            _count(tally, encoded, files, settings)
            for split, part in encoded.splits.items():
                spools[split].append(part)
            progress.update((before[encoded.file] + encoded.read) / 1e6, rows=f"{tally.rows:,}")
    tallies, written = {}, {split: Written(0, 0, 0, 0, 0) for split in SPLITS}
    paths = {split: output.path / f"{split}.safetensors" for split in SPLITS}
    for spool in spools.values():
        spool.finish(settings.deduplicate)
    if held_out and settings.deduplicate:
        spools["train"].leave_out(spools["test"])
    for split, spool in spools.items():
        tallies[split] = reporting.SplitTally.of(spool)
        if not settings.chosen:
            written[split] = write_split(spool, paths[split], settings.strategy, plan_.max_length)
    lines: Iterable[bytes] = spools["test"].texts() if "test" in spools else ()
    if settings.chosen:
        lines = _choose(plan_, spools, paths, tallies, written) or lines
    _check(plan_, tally, tallies, written)
    if written["test"].rows:
        with (output.path / "test.jsonl").open("wb") as f:
            f.writelines(lines)
    for spool in spools.values():
        spool.remove()
    scratch.rmdir()
    value = reporting.summary(plan_, tally, tallies, written, paths)
    hidden = {}
    if (token := hidden_token(plan_, output.path, SPLITS, value["notes"])) is not None:
        hidden = {"hidden_token_id": token}
        value |= hidden  # in a file too: the digest of the data set, and so what is trained with it, is another
    (output.path / "report.json").write_text(
        json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n"
    )
    (output.path / "report.md").write_text(reporting.markdown(value), encoding="utf-8", newline="\n")
    for line in reporting.spoken(value):
        run.log(line)
    for warning in value["warnings"][len(plan_.warnings) :]:
        run.warn(warning)
    output.metadata.update({**_metadata(plan_, written), **hidden})
    seconds = time.monotonic() - began
    tokens = sum(w.tokens for w in written.values())
    output.metrics.update(
        seconds=round(seconds, 3),
        rows_per_second=round(tally.rows / seconds, 1),
        tokens_per_second=round(tokens / seconds, 1),
        workers=count,
    )


def _choose(
    plan_: Plan,
    spools: dict[str, Spool],
    paths: dict[str, Path],
    tallies: dict[str, reporting.SplitTally],
    written: dict[str, Written],
) -> list[bytes]:
    """Write the sequences that are chosen one by one; returns the text of those that a split of sequences holds out.

    Raises UserError where there is none to train on.
    """
    settings, length, lines = plan_.settings, plan_.max_length, plan_.settings.strategy in LINES
    found: list[bytes] = []
    for split, spool in spools.items():
        stream = Stream.of(spool)
        spans = choose(stream, settings, length)
        if split == "train" and not len(spans) and len(stream.ends):
            raise shortage(stream, settings, length)
        of_splits = {split: spans}
        if settings.test_sequences is not None and len(spans):
            train, test = split_sequences(len(spans), settings.test_sequences, settings.split_seed)
            of_splits = {"train": spans.take(train), "test": replace(spans.take(test), cut_off=0)}
            tallies["test"] = reporting.SplitTally()
            found = texts_of(spool, of_splits["test"])
        for name, part in of_splits.items():
            rows = len(part) if lines else len(stream.ends) if name == split else 0
            written[name] = write_spans(stream, part, paths[name], plan_.pad_id, length, rows)
    return found


def _parts(
    run: Run,
    source: Artifact,
    patterns: tuple[str, ...],
    split: str | None,
    flag: str,
    files: Files,
    settings: Settings,
) -> list[Part]:
    """What is read of the source; the files it needs are put behind `files`. Raises UserError."""
    every = named(source, patterns)
    if split is None:
        files += (found := _formats(run, source, every, settings))
        return [Part(tuple(range(len(files) - len(found), len(files))))]
    by_split = splits(source, every, patterns)
    return parts(split, lambda name: _formats(run, source, by_split[name], settings), by_split, files, flag)


def _formats(run: Run, source: Artifact, of: Sequence[SourceFile], settings: Settings) -> Files:
    files: Files = []
    empty = []
    for file in of:
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
                        fix=way_out(bad[2]))  # fmt: skip
    if not seen:
        raise UserError("there are no rows in it", where=files[0][0].path, fix="give a file with rows in it")
    return list(names)


def _chunks(files: Files, of: tuple[list[Part], list[Part]], plan_: Plan) -> Iterator[Chunk]:
    for wanted in of:
        yield from selected(wanted, files, plan_.recipe.fields, plan_.conditions, plan_.settings.max_rows)


def _count(tally: reporting.Tally, encoded: Encoded, files: Files, settings: Settings) -> None:
    tally.rows += encoded.count
    tally.empty += encoded.empty
    for file, number, reason in encoded.bad:
        if settings.bad_rows == "error":
            raise UserError(reason, where=f"{files[file][0].path}:{number}", fix=remedy(reason))
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
        taught = plan_.end_id is not None and plan_.appended and plan_.end_id != plan_.untrained_id
        if taught and not plan_.settings.joins and not t.ends:
            raise UserError(
                f"every row is longer than {plan_.max_length} tokens, so none keeps its end token",
                where="--max-length",
                fix=f"the median row has {t.length_facts()['p50']} tokens: give more, or --end-token none",
            )
        return
    if not tally.rows:
        raise UserError("none of the rows is chosen", where="--where" if plan_.conditions else "--split",
                        fix="choose others")  # fmt: skip
    if tally.bad == tally.rows:
        first = tally.first_bad[0]
        raise UserError(f"all {tally.rows} rows are bad; row {first['place']}: {first['reason']}",
                        where="--bad-rows skip", fix="mend the data, or name other fields")  # fmt: skip
    if train.cut_off:
        raise UserError(f"all rows together have {train.cut_off} tokens, fewer than a block of {plan_.max_length}",
                        where="--strategy join", fix="give a smaller --max-length, or --strategy pack")  # fmt: skip
    if t.dropped_short:
        raise UserError(f"no row has {plan_.max_length} tokens; the longest has {t.longest_short}",
                        where="--short-rows drop", fix="give a smaller --max-length, or keep them")  # fmt: skip
    if t.dropped_long or t.dropped_untrained:
        raise UserError(f"no row fits into {plan_.max_length} tokens", where="--max-length",
                        fix="give more, or shorten the rows")  # fmt: skip
    if tally.empty:
        raise UserError(f"all {tally.empty} rows are empty", where="--empty-rows drop", fix="name other fields")
    n = written["test"].rows
    raise UserError(f"{f'all {n} rows were' if n > 1 else 'the only row was'} held out, and none is left to train on",
                    where="--test-fraction", fix="give more rows, a smaller share, or another --seed")  # fmt: skip


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
        "template": {
            **plan_.recipe.describe(),
            "add_bos": plan_.bos is not None,
            **({"special_tokens_as_text": True} if plan_.around is not None else {}),
        },
        "train": written["train"].counts(),
        "test": written["test"].counts(),
    }
