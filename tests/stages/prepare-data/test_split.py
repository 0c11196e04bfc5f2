"""Duplicates and the held-out part: decided by the row alone, never by where it stands or what stands beside it."""

from __future__ import annotations

import json
import random

import pytest

FIELDS = {"template": "Say: {q}\n{a}", "completion": "a"}


def rows_of(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Rows among which many are equal, and many have an equal prompt with another answer."""
    r = random.Random(seed)
    return [{"q": f"question {r.randrange(n // 2)}", "a": r.choice(["yes", "no", "perhaps"])} for _ in range(n)]


def texts(made, text, split="train"):
    if split == "test":
        return [h.text for h in made.held_out]
    return [text.tokenizer.decode(e.ids) for e in made.examples()]


def as_text(row):
    return f"Say: {row['q']}\n{row['a']}"


@pytest.mark.parametrize("seed", range(3))
def test_no_prompt_is_in_both_parts_and_no_row_twice(seed, prepare, text):
    rows = rows_of(300, seed)
    made = prepare(rows, **FIELDS, test_fraction=0.3, seed=seed, strategy="line")
    train, test = texts(made, text), texts(made, text, "test")
    # every distinct row once, the first of equal ones, in the order of the data
    distinct = list(dict.fromkeys(map(as_text, rows)))
    assert train == [t for t in distinct if t in set(train)]
    assert test == [t for t in distinct if t in set(test)]
    assert len(train) + len(test) == len(distinct)
    assert {t.split("\n")[0] for t in train}.isdisjoint(t.split("\n")[0] for t in test)
    assert made.report["rows"]["duplicate"] == len(rows) - len(distinct)


def test_duplicates_stay_where_they_are_wanted_and_never_straddle(prepare, text):
    rows = rows_of(300)
    made = prepare(rows, deduplicate=False, test_fraction=0.3, **FIELDS)
    train, test = texts(made, text), texts(made, text, "test")
    assert sorted(train + test) == sorted(map(as_text, rows))
    assert set(train).isdisjoint(test)
    assert made.report["rows"]["duplicate"] == 0


def test_a_row_stays_in_its_part_whatever_stands_beside_it(prepare, text):
    rows = rows_of(200)
    whole = set(texts(prepare(rows, **FIELDS, test_fraction=0.3), text, "test"))
    shuffled = random.Random(1).sample(rows, len(rows))
    assert set(texts(prepare(shuffled, **FIELDS, test_fraction=0.3), text, "test")) == whole
    some = set(texts(prepare(rows[::2], **FIELDS, test_fraction=0.3), text, "test"))
    assert some == {as_text(r) for r in rows[::2]} & whole


def test_a_larger_part_contains_the_smaller(prepare, text):
    small, large = (set(texts(prepare(rows_of(300), **FIELDS, test_fraction=f), text, "test")) for f in (0.1, 0.4))
    assert small < large


def test_the_seed_chooses_and_the_share_is_kept(prepare, text):
    rows = [{"q": f"q{n}", "a": "yes"} for n in range(2000)]
    a, b = (set(texts(prepare(rows, **FIELDS, test_fraction=0.25, seed=s), text, "test")) for s in (0, 1))
    assert a != b
    assert 430 < len(a) < 570  # 500 ± 3.6 standard deviations
    assert 85 < len(a & b) < 165  # independent: a quarter of a quarter


def test_without_a_known_prompt_the_text_decides(prepare, text):
    rows = [{"text": f"text {n % 50}"} for n in range(100)]
    made = prepare(rows, test_fraction=0.3)
    assert made.report["rows"]["duplicate"] == 50
    assert set(texts(made, text)).isdisjoint(h.text for h in made.held_out)
    assert all(h.prompt is None and h.completion is None for h in made.held_out)


def test_equal_text_with_another_border_is_no_duplicate(prepare):
    made = prepare([{"prompt": "a b", "completion": " c"}, {"prompt": "a", "completion": " b c"}], test_fraction=0)
    assert made.report["rows"]["duplicate"] == 0
    assert len(made.examples()) == 2


def test_duplicates_far_apart_are_found(monkeypatch, tmp_path):
    """With more rows than are sorted at once: equal keys meet in one partition, wherever they stand."""
    import numpy as np
    from microstages_prepare_data import spool as module
    from microstages_prepare_data.encode import ROW, EncodedSplit

    monkeypatch.setattr(module, "PARTITION", 50)
    monkeypatch.setattr(module, "WINDOW_ROWS", 32)
    r = np.random.default_rng(0)
    keys = r.integers(0, 2**63, (300, 2), np.uint64)[r.integers(0, 300, 1000)]
    spool = module.Spool(tmp_path / "spool", np.uint16)
    for part in np.split(keys, 10):
        rows = np.zeros(len(part), ROW)
        rows["key"], rows["tokens"] = part, 1
        ones = np.ones(len(part))
        spool.append(EncodedSplit(rows, ones.astype(np.uint16), ones.astype(np.uint8), None, []))
    spool.finish(deduplicate=True)
    kept = np.concatenate([w.kept for w in spool.windows()])
    seen: set[bytes] = set()
    expected = [not (k.tobytes() in seen or seen.add(k.tobytes())) for k in keys]
    assert kept.tolist() == expected
    assert spool.duplicates == 1000 - sum(expected)


@pytest.mark.parametrize("strategy", ["pack", "join", "line"])
def test_the_number_of_workers_changes_no_byte(strategy, prepare, monkeypatch, tmp_path):
    from microstages_prepare_data import prepare as flow
    from microstages_prepare_data import sources

    monkeypatch.setattr(flow, "SMALL", 0)
    monkeypatch.setattr(sources, "CHUNK", 5000)
    source = tmp_path / "rows"
    source.write_text("".join(json.dumps(r) + "\n" for r in rows_of(1500)))
    assert source.stat().st_size > 50_000  # more chunks than workers
    made = [prepare(source, **FIELDS, strategy=strategy, workers=w).bytes() for w in (1, 2, 5)]
    assert made[0].keys() == {"train.safetensors", "test.safetensors", "test.jsonl", "report.json", "report.md"}
    assert made[0] == made[1] == made[2]


def test_the_size_of_chunks_changes_no_byte(prepare, monkeypatch):
    from microstages_prepare_data import sources

    rows = rows_of(500)
    whole = prepare(rows, **FIELDS).bytes()
    monkeypatch.setattr(sources, "CHUNK", 701)
    assert prepare(rows, **FIELDS).bytes() == whole


def test_a_split_of_its_own_is_kept_and_no_row_straddles_it(prepare, text, tmp_path):
    rows = rows_of(120)
    train, test = rows[:90], rows[90:]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, test)))
    made = prepare(train, test_source=str(tmp_path / "dev.jsonl"), strategy="line", test_fraction=0.5, **FIELDS)
    held_out = list(dict.fromkeys(map(as_text, test)))
    assert texts(made, text, "test") == held_out
    assert texts(made, text) == [t for t in dict.fromkeys(map(as_text, train)) if t not in set(held_out)]
    assert made.report["rows"]["read"] == 120
    assert made.report["rows"]["train"] + made.report["rows"]["held_out"] + made.report["rows"]["duplicate"] == 120


def test_max_rows_reads_so_many_of_each(prepare, tmp_path):
    rows = [{"q": f"question {i}", "a": "yes"} for i in range(40)]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, rows[30:])))
    made = prepare(rows[:30], test_source=str(tmp_path / "dev.jsonl"), max_rows=5, **FIELDS)
    assert (made.report["rows"]["train"], made.report["rows"]["held_out"]) == (5, 5)
