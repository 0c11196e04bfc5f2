"""Data that cannot be read or used: the file and the line are named."""

from __future__ import annotations

import gzip
import json

from bad_input.flags import PREPARE, TEXT, put
from bad_input.harness import Case

GOOD = b'{"phrase": "one", "tone": "joy"}\n{"phrase": "two", "tone": "joy"}\n'
ROW = {"phrase": "The lamp went out.", "tone": "fear"}


def rows(*values: object) -> bytes:
    return "".join(json.dumps(v) + "\n" for v in values).encode()


# name, the bytes of the file, more flags, what the first line says, the remedy
TABLE: list[tuple[str, bytes, tuple[str, ...], str, str]] = [
    ("an empty file", b"", TEXT, "data: the file is empty", "give a file with rows"),
    ("an empty array", b"[]", TEXT, "data: there are no rows in it", "."),
    ("a CSV of only a header", b"phrase,tone\n", TEXT, "data: there are no rows in it", "."),
    ("a line that is no JSON", GOOD + b'{"phrase": }\n', TEXT, "data:3: this is not JSON", "--bad-rows skip"),
    ("a line in Python's quotes", GOOD + b"{'phrase': 'x', 'tone': 'y'}\n", TEXT,
     "data:3: this is not JSON: names and texts take double quotes", "json.dumps.*--bad-rows"),
    ("two rows in a line", GOOD + b'{"phrase": "a", "tone": "b"} {}\n', TEXT, "data:3: .*more follows", "."),
    ("a line that is a list", GOOD + b"[1]\n", TEXT, "data:3: this is a list, not an object", "."),
    ("a line that is cut off", GOOD + b'{"phrase": "thr', TEXT, "data:3: this is not JSON", "."),
    ("Latin-1", GOOD + b'{"phrase": "caf\xe9", "tone": "joy"}\n', TEXT, "data:3: this is not UTF-8", "iconv"),
    ("UTF-16", GOOD.decode().encode("utf-16"), TEXT, "this is UTF-16", "iconv -f utf-16"),
    ("a binary file", bytes(range(256)) * 10, TEXT, "data: this is binary", "."),
    ("an array that is cut off", b'[{"phrase": "a", "tone": "b"},\n{"phr', TEXT, "data:2: this is not JSON", "."),
    ("an array without a comma", b'[{"phrase": "a"}\n{"phrase": "b"}]', TEXT, "data:2: this is not JSON: a comma", "."),
    ("an array of texts", b'["a", "b"]', TEXT, "data:1: no row can be read",
     "object with named fields"),
    ("a CSV row of too many cells", b"phrase,tone\na,1\nb,2,3\n", TEXT, "data:3: 3 cells, where the header has 2", "."),
    ("a quote that is never closed", b'phrase,tone\na,1\n"b,2\nc,3\n', TEXT, "data:3:.*never closed", "."),
    ("a column twice", b"phrase,phrase\na,b\n", TEXT, "data:1: .*'phrase' twice", "."),
    ("a Parquet file that is cut off", b"PAR1" + bytes(100), TEXT,
     "data: this Parquet file cannot be read: it is cut off",
     "copy it"),
    ("gzip that is cut off", gzip.compress(GOOD * 100)[:-20], TEXT, "data: this gzip file cannot be read", "."),
    ("half a surrogate pair", GOOD + b'{"phrase": "a \\ud800", "tone": "b"}\n', TEXT, "data:3:.*surrogate", "."),
    ("a row without the field", rows(ROW, {"phrase": "a"}), TEXT, "data:2: it has no field 'tone'", "--bad-rows skip"),
    ("a field of null", rows(ROW, {**ROW, "tone": None}), TEXT, "data:2:.*null", "."),
    ("a field that is a list", rows(ROW, {**ROW, "tone": ["joy"]}), TEXT, "data:2:.*a list, not text", "."),
    ("an empty answer", rows(ROW, {**ROW, "tone": " "}), (*TEXT, "--completion", "tone"), "data:2:.*'tone'.*empty",
     "."),
    ("a field that is not there", rows(ROW), ("--template", "{phrase} {tonne}"), "'tonne' .did you mean 'tone'", "."),
    ("a template that does not end", rows(ROW), ("--template", "{phrase"), "--template", "{{ and }}"),
    ("a template without a field", rows(ROW), ("--template", "Say it."), "--template: it names no field", "."),
    ("no word of what to train on", rows(ROW), (), "there are: 'phrase', 'tone'",
     "--prompt-field 'phrase' --completion-field 'tone'"),
    ("messages that are text", rows(ROW), ("--messages-field", "phrase"), "data:1: .*'phrase' holds text", "."),
    ("a role that is not there", rows({"messages": [{"role": "me", "content": "a"}]}), (), "data:1:.*me", "."),
    ("an end token of many tokens", rows(ROW), (*TEXT, "--end-token", "the very end"), "--end-token: 'the very end'",
     "."),
    ("sequences beyond the model", rows(ROW), (*TEXT, "--max-length", "100000"), "--max-length: 100.?000 tokens",
     "or less"),
    ("rows that are all too long", rows({**ROW, "phrase": "word " * 90}),
     (*TEXT, "--max-length", "5", "--overlong", "drop", "--test-fraction", "0"), "--max-length: no row fits", "."),
    ("all rows held out", rows(ROW), (*TEXT, "--test-fraction", "0.99999"), "--test-fraction: the only row was",
     "more rows"),
    ("a format that it is not", rows(ROW), (*TEXT, "--input-format", "parquet"), "this is not a Parquet file",
     "leave --input-format out"),
    ("a filter of no row", rows(ROW), (*TEXT, "--where", "tone=joy"), "--where", "."),
    ("a filter that is none", rows(ROW), (*TEXT, "--where", "joy"), "--where", "."),
    ("a slice that is none", rows(ROW), (*TEXT, "--split", "train[:half]"), "--split", "."),
]  # fmt: skip

PLACES: list[tuple[str, tuple[str, ...], str, str]] = [
    ("data that is not there", (*put(PREPARE, "--source", "rows.json"), *TEXT), "--source .*did you mean 'rows.jsonl'",
     "path"),
    ("a pattern without a match", (*put(PREPARE, "--source", "*.tsv"), *TEXT), "--source .*no file matches", "pattern"),
    ("an empty folder", (*put(PREPARE, "--source", "empty"), *TEXT), "--source .*empty", "path"),
    ("an output that is taken", (*put(PREPARE, "--output", "taken"), *TEXT), "taken: .*already", "."),
    ("an output below a file", (*put(PREPARE, "--output", "rows.jsonl/out"), *TEXT), "rows.jsonl", "."),
    ("a protocol that is not there", (*put(PREPARE, "--source", "nosuch://x/y"), *TEXT), "nosuch", "."),
]  # fmt: skip

SOURCE = put(PREPARE, "--source", "data")
CASES = [
    *(Case(f"data: {n}", (*SOURCE, *flags), p, r, {"data": data}) for n, data, flags, p, r in TABLE),
    *(Case(f"data: {n}", command, p, r) for n, command, p, r in PLACES),
]
