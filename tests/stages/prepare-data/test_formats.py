"""What the bytes of the source say decides how it is read, whatever its name is."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

ROWS = [
    {"text": "One, two.", "id": 1},
    {"text": 'She said "no"\nand left.', "id": 2},
    {"text": "Grüße; tab\there", "id": 3},
]
TEXTS = sorted(r["text"] for r in ROWS)


def csv_of(delimiter: str) -> bytes:
    import csv
    import io

    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["id", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


def parquet_of() -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), out, row_group_size=2)
    return out.getvalue()


LINES = "\n".join(map(json.dumps, ROWS)).encode() + b"\n"
BOM = b"\xef\xbb\xbf"
FORMS = {
    "JSON Lines": LINES,
    "JSON Lines without a last line break": LINES.rstrip(),
    "JSON Lines of Windows, with blank lines": LINES.replace(b"\n", b"\r\n\r\n"),
    "JSON Lines with a byte order mark": BOM + LINES,
    "JSON Lines within gzip": gzip.compress(LINES),
    "an array": json.dumps(ROWS).encode(),
    "an array, indented": b" \n" + json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "an array with a byte order mark": BOM + json.dumps(ROWS).encode(),
    "an array within gzip": gzip.compress(json.dumps(ROWS).encode()),
    "a list within an object": json.dumps({"version": [1, 2], "data": ROWS, "by": {"name": "us"}}).encode(),
    "a list within an object, indented": json.dumps({"data": ROWS}, indent=1).encode(),
    "objects one after another, indented": "\n".join(json.dumps(r, indent=2) for r in ROWS).encode(),
    "CSV": csv_of(","),
    "CSV with a byte order mark": BOM + csv_of(","),
    "CSV with semicolons": csv_of(";"),
    "CSV with tabs": csv_of("\t"),
    "CSV with bars": csv_of("|"),
    "CSV within gzip": gzip.compress(csv_of(",")),
    "Parquet": parquet_of(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_rows(form, prepare, text, tmp_path):
    source = tmp_path / "rows.parquet.csv"  # a suffix that lies
    source.write_bytes(FORMS[form])
    made = prepare(source, test_fraction=0, end_token="none")
    assert made.code == 0, made.said
    assert sorted(text.tokenizer.decode(e.ids) for e in made.examples()) == TEXTS


def test_a_suffix_does_not_decide(prepare, shared):
    """The file is called .json and holds JSON Lines."""
    made = prepare(shared / "data/dataset-classification.json", template="{phrase} {tone}")
    assert made.code == 0, made.said
    assert made.report["rows"]["read"] == 1464


def test_real_csv_with_a_byte_order_mark(prepare, shared):
    made = prepare(shared / "data/TruthfulQA.v1.csv", template="{Type}: {Question}\n{Best Answer}")
    assert made.code == 0, made.said
    assert made.report["rows"]["read"] == 817


def test_real_prompts_and_responses(prepare, shared):
    made = prepare(shared / "data/travel.jsonl")
    assert made.report["how"]["kind"] == "fields"
    assert made.report["how"]["completion_field"] == "response"


def test_a_folder_is_read_in_the_order_of_its_names(prepare, text, tmp_path):
    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    (folder / "b.jsonl").write_bytes(LINES)
    (folder / "a.csv").write_bytes(b"text\nfirst\n")
    (folder / "more" / "c").write_bytes(b'[{"text": "last"}]')
    (folder / "README.md").write_text("# about this data")
    (folder / "part-3").write_bytes(b"")
    made = prepare(folder, test_fraction=0, end_token="none", strategy="line")
    said = [text.tokenizer.decode(e.ids) for e in made.examples()]
    assert said == ["first", *(r["text"] for r in ROWS), "last"]


def test_a_pattern(prepare, tmp_path):
    for name in ("a1.jsonl", "a2.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}))
    made = prepare(f"{tmp_path}/a*.jsonl", test_fraction=0)
    assert made.report["rows"]["read"] == 2


def test_a_format_can_be_said(prepare, tmp_path):
    source = tmp_path / "odd.csv"
    source.write_text("[text]~n\nhello~1\n")
    made = prepare(source, input_format="csv", delimiter="~", template="{[text]}", test_fraction=0)
    assert made.code == 0, made.said
    assert made.report["rows"]["train"] == 1


def test_only_so_many_rows(prepare, examples):
    made = prepare(examples / "tones.jsonl", template="{phrase}", max_rows=7, test_fraction=0)
    assert made.report["rows"]["read"] == 7


def test_a_row_larger_than_the_buffers(prepare, tmp_path):
    long = "word " * 80_000
    array, lines = json.dumps([{"text": long}, {"text": "b"}]), f'{{"text": "{long}"}}\n{{"text": "b"}}'
    for n, content in enumerate((array, lines)):
        source = tmp_path / f"long{n}"
        source.write_text(content)
        made = prepare(source, test_fraction=0)
        assert made.code == 0, made.said
        assert made.report["rows"] | {"read": 2, "truncated": 1} == made.report["rows"]


@pytest.mark.parametrize("value", [12, 1.5, True, "text"])
def test_numbers_become_text_as_they_are_written(value, prepare, text):
    made = prepare([{"v": value}], template="<{v}>", test_fraction=0, end_token="none")
    assert text.tokenizer.decode(made.examples()[0].ids) == f"<{json.dumps(value).strip(chr(34))}>"


def test_conversations_in_parquet(prepare, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    pq.write_table(pa.Table.from_pylist([{"id": 1, "messages": talk}]), tmp_path / "talks")
    assert prepare(tmp_path / "talks", test_fraction=0).report["how"]["kind"] == "chat"


def test_files_of_other_fields_in_one_folder(prepare, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist([{"text": "a"}]), folder / "1")
    pq.write_table(pa.Table.from_pylist([{"words": "b"}, {"words": "c"}]), folder / "2")
    made = prepare(folder)
    assert made.code == 2
    assert "data/2:1: it has no field 'text'; its fields: 'words'" in made.said
    assert prepare(folder, bad_rows="skip", test_fraction=0).report["rows"]["bad"] == 2


def test_renaming_the_file_changes_no_byte(prepare, tmp_path):
    rows = [{"text": f"row {n}"} for n in range(20)] + [{"text": ""}]
    for name in ("a", "b"):
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    a, b = (prepare(tmp_path / n, bad_rows="skip") for n in ("a", "b"))
    assert a.report["first_bad"] == [{"place": "21", "reason": "its text is empty"}]
    assert a.bytes() == b.bytes()


def test_parquet_reads_only_the_columns_it_needs(tmp_path: Path):
    from microstages_prepare_data.formats import sniff
    from microstages_prepare_data.sources import chunks

    source = tmp_path / "p"
    source.write_bytes(parquet_of())
    form = sniff(source)
    assert form is not None
    rows = [row for chunk in chunks(0, source, form, ("text",)) for row in chunk.rows]  # type: ignore[union-attr]
    assert rows == [{"text": r["text"]} for r in ROWS]
