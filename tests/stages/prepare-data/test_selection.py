"""Which rows are read: files, splits and slices as `datasets` understands them, rows with a value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

# Layouts: files, each with its number of rows. A row's text is "<file>#<number>".
FOLDERS: dict[str, dict[str, int]] = {
    "shards": {"data/train-00000-of-00002.jsonl": 5, "data/train-00001-of-00002.jsonl": 6,
               "data/held-00000-of-00001-ab12.jsonl": 4, "README.md": 0},
    "folders": {"train/a.jsonl": 3, "train/b.jsonl": 2, "my dev/c.jsonl": 4, "test.jsonl": 9},
    "files": {"train.jsonl": 7, "more-training.jsonl": 2, "dev_1.jsonl": 3, "eval.jsonl": 5, "contest.jsonl": 2},
    "no names": {"a.jsonl": 3, "b.jsonl": 4},
}  # fmt: skip
# Layout, split, and the rows that `datasets` 5.2.0 gave: file and numbers.
SPLITS: list[tuple[str, str, list[tuple[str, range]]]] = [
    ("shards", "train", [("data/train-00000-of-00002.jsonl", range(5)), ("data/train-00001-of-00002.jsonl", range(6))]),
    ("shards", "held[1:]", [("data/held-00000-of-00001-ab12.jsonl", range(1, 4))]),
    ("shards", "train[4:7]", [("data/train-00000-of-00002.jsonl", range(4, 5)),
                              ("data/train-00001-of-00002.jsonl", range(2))]),
    ("shards", "train[:50%]", [("data/train-00000-of-00002.jsonl", range(5)),
                               ("data/train-00001-of-00002.jsonl", range(1))]),
    ("folders", "train", [("train/a.jsonl", range(3)), ("train/b.jsonl", range(2))]),
    ("folders", "validation", [("my dev/c.jsonl", range(4))]),
    ("files", "train", [("train.jsonl", range(7)), ("more-training.jsonl", range(2))]),
    ("files", "validation[-2:]", [("dev_1.jsonl", range(1, 3))]),
    ("files", "test", [("eval.jsonl", range(5))]),
    ("files", "test[40%:]+train[:1]", [("eval.jsonl", range(2, 5)), ("train.jsonl", range(1))]),
    ("files", "train[:-20%]", [("train.jsonl", range(7))]),
    ("files", "train[5:1000]", [("train.jsonl", range(5, 7)), ("more-training.jsonl", range(2))]),
    ("no names", "train", [("a.jsonl", range(3)), ("b.jsonl", range(4))]),
    ("no names", "train[33%:66%]", [("a.jsonl", range(2, 3)), ("b.jsonl", range(2))]),
]  # fmt: skip


def layout(folder: Path, name: str) -> Path:
    for file, count in FOLDERS[name].items():
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": f"{file}#{n}"}) + "\n" for n in range(count)))
    return folder / name


def texts(rows: list[tuple[str, range]]) -> list[str]:
    return [f"{file}#{n}" for file, numbers in rows for n in numbers]


@pytest.fixture
def read(prepare, text) -> Any:
    """`read(source, split=…)`: the texts of the rows, in order."""

    def run(source: Path, *, of: str = "train", **params: Any) -> list[str]:
        made = prepare(source, strategy="line", end_token="none", test_fraction=0, empty_rows="keep", **params)
        assert made.code == 0, made.said
        return [text.tokenizer.decode(e.ids) for e in made.examples(of)]

    return run


@pytest.mark.parametrize(("name", "split", "expected"), SPLITS)
def test_splits_and_slices(name, split, expected, read, tmp_path):
    assert read(layout(tmp_path, name), split=split) == texts(expected)


@pytest.mark.parametrize(("name", "split", "expected"), SPLITS)
def test_splits_and_slices_are_those_of_datasets(name, split, expected, tmp_path, need_datasets):
    found = need_datasets.load_dataset(str(layout(tmp_path, name)), split=split, cache_dir=str(tmp_path / "cache"))
    assert list(found["text"]) == texts(expected)


def test_a_slice_of_parquet_and_of_a_file(read, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [f"p{n}" for n in range(3000)]}), tmp_path / "rows", row_group_size=700)
    assert read(tmp_path / "rows", split="train[2040:2060]") == [f"p{n}" for n in range(2040, 2060)]
    assert read(tmp_path / "rows", split="train[99%:]", max_rows=2) == ["p2970", "p2971"]


def test_a_slice_is_held_out_from_the_same_source(read, tmp_path):
    source = layout(tmp_path, "no names")
    both = {"split": "train[:4]", "test_split": "train[4:6]"}
    assert read(source, **both) == ["a.jsonl#0", "a.jsonl#1", "a.jsonl#2", "b.jsonl#0"]
    assert read(source, of="test", **both) == ["b.jsonl#1", "b.jsonl#2"]


def test_a_split_of_another_source_is_held_out(read, tmp_path):
    source = layout(tmp_path, "no names")
    held_out = read(source, of="test", test_source=layout(tmp_path, "files"), test_split="validation")
    assert held_out == texts([("dev_1.jsonl", range(3))])


def test_files_in_the_order_in_which_they_are_named(read, tmp_path):
    source = layout(tmp_path, "files")
    assert read(source, files=["eval.jsonl", "./dev*"]) == texts([("eval.jsonl", range(5)), ("dev_1.jsonl", range(3))])
    assert read(source, files=["*train*", "train.jsonl"], split="train[:3]") == texts(
        [("more-training.jsonl", range(2)), ("train.jsonl", range(1))]
    )
    deep = layout(tmp_path, "folders")
    assert read(deep, files=["**/*.jsonl"])[:4] == texts([("my dev/c.jsonl", range(4))])
    assert read(deep, files=["train/?.jsonl"]) == texts([("train/a.jsonl", range(3)), ("train/b.jsonl", range(2))])


ROWS = [
    {"text": "one", "kind": "a", "n": 1, "ok": True},
    {"text": "two", "kind": "b", "n": 1, "ok": False},
    {"text": "three", "kind": "a", "n": 2, "ok": None},
    {"text": "four", "kind": "true", "n": 1.5, "ok": True},
]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["kind=a"], ["one", "three"]), (["n=1"], ["one", "two"]), (["n=1.0"], ["one", "two"]), (["n=1.5"], ["four"]),
        (["ok=true"], ["one", "four"]), (["ok=null"], ["three"]), (["kind=true"], ["four"]),
        (["kind=a", "n=2"], ["three"]), (['kind="b"'], ["two"]),
    ],
)  # fmt: skip
def test_rows_with_a_value(where, expected, read, tmp_path):
    (tmp_path / "rows").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    assert read(tmp_path / "rows", where=where) == expected
    assert read(tmp_path / "rows", where=where, max_rows=1) == expected[:1]


def test_rows_with_a_value_in_parquet_and_csv(read, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS[:3]), tmp_path / "p")
    assert read(tmp_path / "p", where=["n=1"], template="{text}") == ["one", "two"]
    (tmp_path / "c").write_text("text,n\none,1\ntwo,2\n")
    assert read(tmp_path / "c", where=["n=2"]) == ["two"]


def test_a_slice_is_taken_before_rows_are_chosen(read, tmp_path):
    (tmp_path / "rows").write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    assert read(tmp_path / "rows", split="train[1:]", where=["kind=a"]) == ["three"]


WRONG = {
    "no such split": ({"split": "validation"}, ["--split: the source has no split 'validation'", "it has train"]),
    "a split that is near": ({"split": "trian"}, ["did you mean 'train'"]),
    "no split": ({"split": "train[10"}, ["--split: 'train[10' is no split", "train[:90%]"]),
    "more than all": ({"split": "train[:101%]"}, ["is no split"]),
    "another rounding": ({"split": "train[:1%](up)"}, ["is no split"]),
    "an empty slice": ({"split": "train[7:7]"}, ["--split: none of the rows is chosen"]),
    "no such file": ({"files": ["c.jsonl"]}, ["--files: the source has no file 'c.jsonl'", "a.jsonl, b.jsonl"]),
    "no condition": ({"where": ["text"]}, ["--where: 'text' is no field=value"]),
    "no such field": ({"where": ["txt=1"]}, ["--where: the data has no field 'txt' (did you mean 'text'?)"]),
    "no row that holds": ({"where": ["text=x"]}, ["--where: none of the rows is chosen"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_selected_is_told(name, prepare, tmp_path):
    params, said = WRONG[name]
    made = prepare(layout(tmp_path, "no names"), **params)
    assert made.code == 2
    assert all(s in made.said for s in said), made.said


def test_files_of_a_single_file(prepare, tmp_path):
    made = prepare(layout(tmp_path, "no names") / "a.jsonl", files=["a.jsonl"])
    assert made.code == 2
    assert "--files" in made.said
    assert "the source is a file" in made.said
