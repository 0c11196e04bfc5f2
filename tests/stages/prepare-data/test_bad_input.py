"""Everything a user can get wrong: told in a line or two with the place and the remedy, exit code 2, nothing left."""

from __future__ import annotations

import gzip
import io
import json

import pytest

GOOD = {"text": "A good row."}
TWO = {"phrase": "The lamp went out.", "tone": "fear"}
LINES = b'{"text": "one"}\n{"text": "two"}\n'


def parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table({"text": ["word"] * 5000}), out)
    return out.getvalue()


# name: (bytes of the source, parameters, what is said)
SOURCES = {
    "an empty file": (b"", {}, ["rows: the file is empty", "give a file with rows"]),
    "blank lines": (b"\n \n", {}, ["the file is empty"]),
    "an empty array": (b"[]", {}, ["there are no rows in it"]),
    "a CSV of only a header": (b"text,id\n", {}, ["there are no rows in it"]),
    "a line that is no JSON": (LINES + b'{"text": }\n', {}, ["rows:3: this is not JSON", "--bad-rows skip"]),
    "a line that goes on": (LINES + b'{"text": "a"} {"text": "b"}\n', {}, ["rows:3:", "more follows the row"]),
    "a line that is no object": (LINES + b"[1]\n", {}, ["rows:3: this is a list, not an object"]),
    "a line that is cut off": (LINES + b'{"text": "thr', {},
                               ["rows:3: this is not JSON: a text has no closing quote (column 10)"]),
    "a first line that is broken": (b"{'text': 'one'}\n" + LINES, {}, ["rows:1: this is not JSON"]),
    "only lines that are broken": (b"{'text': 1}\n{'text': 2}\n", {}, ["rows:1", "no row can be read"]),
    "nesting without end": (b'{"text": ' + b"[" * 200_000 + b"\n" + LINES, {}, ["rows:1", "nested too deeply"]),
    "a number of too many digits": (LINES + b'{"text": ' + b"9" * 5000 + b"}\n", {}, ["rows:3: this is not JSON"]),
    "bytes that are no UTF-8, in JSON Lines": (LINES + b'{"text": "caf\xe9"}\n', {},
                                               ["rows:3: this is not UTF-8"]),
    "bytes that are no UTF-8, in an array": (b'[{"text": "a"},\n{"text": "caf\xe9"}]', {},
                                             ["rows:2: this is not UTF-8", "iconv"]),
    "bytes that are no UTF-8, in CSV": (b"text,id\na,1\ncaf\xe9,2\n", {}, ["rows:3: this is not UTF-8"]),
    "bytes that are no UTF-8, in a header": (b"caf\xe9,id\na,1\n", {}, ["rows:1: this is not UTF-8", "iconv"]),
    "half a surrogate pair": (LINES + b'{"text": "a \\ud800 b"}\n', {}, ["rows:3:", "surrogate"]),
    "UTF-16": ('{"text": "one"}\n'.encode("utf-16"), {}, ["this is UTF-16", "iconv -f utf-16"]),
    "a binary file": (bytes(range(256)) * 10, {}, ["rows: this is binary"]),
    "an array that is cut off": (b'[{"text": "a"},\n{"text": "b', {}, ["rows:2: this is not JSON", "cut off"]),
    "an array without its end": (b'[{"text": "a"}', {}, ["rows:1: this is not JSON: the file ends too early"]),
    "an array without a comma": (b'[{"text": "a"}\n{"text": "b"}]', {}, ["rows:2: this is not JSON: a comma"]),
    "an array of texts": (b'["a", "b"]', {}, ["rows:1: no row can be read; the first: this is text"]),
    "an object that is cut off": (b'{"data": [{"text": "a"}],\n"b": ', {}, ["rows:2: this is not JSON"]),
    "two lists of rows": (b'{"train": [{"text": "a"}], "test": [{"text": "b"}]}', {},
                          ["two lists of rows: 'train' and 'test'"]),
    "a CSV row of too many cells": (b"text,id\na,1\nb,2,3\n", {}, ["rows:3: 3 cells, where the header has 2"]),
    "a quote that is never closed": (b'text,id\na,1\n"b,2\nc,3\n', {}, ["rows:3:", "a quote is never closed"]),
    "a CSV of an old Mac": (b"text,id\ra,1\rb,2\r", {}, ["its lines end in \\r alone", "tr "]),
    "a column twice": (b"text,text\na,b\n", {}, ["rows:1: the header names the column 'text' twice"]),
    "a Parquet file that is cut off": (parquet()[:-100], {}, ["rows: this Parquet file cannot be read", "cut off"]),
    "a Parquet file that is damaged": (parquet()[:40] + bytes(60) + parquet()[100:], {},
                                       ["rows: this Parquet file cannot be read"]),
    "no Parquet at all": (LINES, {"input_format": "parquet"}, ["rows: this is not a Parquet file"]),
    "gzip that is cut off": (gzip.compress(LINES * 1000)[:-20], {}, ["rows: this gzip file cannot be read"]),
    "gzip that is damaged": (b"\x1f\x8b" + b"no gzip at all", {}, ["rows: this gzip file cannot be read"]),
    "Parquet within gzip": (gzip.compress(parquet()), {}, ["this is Parquet within gzip", "gunzip"]),
    "a format that it is not": (b"text\na\n", {"input_format": "jsonl"}, ["rows:1: no row can be read", "not JSON"]),
}  # fmt: skip

PARAMETERS = {
    "no field that says what to train on": ([TWO], {}, ["there are: 'phrase', 'tone'", "--template '{phrase} {tone}'"]),
    "a template of a field that is not there": ([TWO], {"template": "{phrase} {tonne}"},
                                                ["no field 'tonne' (did you mean 'tone'?)", "'phrase', 'tone'"]),
    "a prompt field that is not there": ([TWO], {"prompt_field": "prase", "completion_field": "tone"},
                                         ["--prompt-field", "did you mean 'phrase'?"]),
    "a completion field that is not there": ([TWO], {"prompt_field": "phrase", "completion_field": "mood"},
                                             ["--completion-field", "no field 'mood'"]),
    "a messages field that is not there": ([TWO], {"messages_field": "messages"}, ["--messages-field", "no field"]),
    "messages that are text": ([TWO], {"messages_field": "phrase"}, [":1: the field 'phrase' holds text"]),
    "a template without a field": ([TWO], {"template": "Say it."}, ["--template: it names no field"]),
    "a template with an open brace": ([TWO], {"template": "{phrase"}, ["--template", "write {{ and }}"]),
    "a template with a closing brace": ([TWO], {"template": "{phrase} }"}, ["--template", "write {{ and }}"]),
    "a template with empty braces": ([TWO], {"template": "{phrase} {}"}, ["{} names no field"]),
    "a completion that is not in the template": ([TWO], {"template": "{phrase}", "completion": "tone"},
                                                 ["--completion: the template has no {tone}"]),
    "a completion without a prompt": ([TWO], {"template": "{tone} {phrase}", "completion": "tone"},
                                      ["--completion", "there is no prompt"]),
    "a completion without a template": ([TWO], {"completion": "tone"}, ["--completion", "there is no template"]),
    "a prompt field alone": ([TWO], {"prompt_field": "phrase"}, ["--completion-field: prompt and completion go"]),
    "two ways at once": ([TWO], {"template": "{phrase}", "messages_field": "tone"}, ["exclude each other"]),
    "loss on a completion that is not known": ([TWO], {"template": "{phrase}", "loss": "completion"},
                                               ["--loss completion: it is not known", "--completion"]),
    "a loss that does not exist": ([GOOD], {"loss": "al"}, ["--loss", "did you mean 'all'?"]),
    "a strategy that does not exist": ([GOOD], {"strategy": "packed"}, ["--strategy", "did you mean 'pack'?"]),
    "a joiner for nothing": ([GOOD], {"joiner": " "}, ["--joiner: rows are joined only by --strategy join"]),
    "a delimiter of two letters": ([GOOD], {"delimiter": "::"}, ["--delimiter: must be auto, tab or one"]),
    "a share above one": ([GOOD], {"test_fraction": 1.5}, ["--test-fraction", "below 1"]),
    "a negative share": ([GOOD], {"test_fraction": -0.1}, ["--test-fraction", "at least 0"]),
    "a length of one": ([GOOD], {"max_length": 1}, ["--max-length", "at least 2"]),
    "a length beyond the model": ([GOOD], {"max_length": 257}, ["--max-length: 257 tokens", "256 or less"]),
    "a length that is text": ([GOOD], {"max_length": "long"}, ["--max-length", "whole number"]),
    "no workers": ([GOOD], {"workers": 0}, ["--workers", "at least 1"]),
    "an end token of many tokens": ([GOOD], {"end_token": "<|endd|>"},
                                    ["--end-token: '<|endd|>' is", "tokens, not one (did you mean '<|end|>'?)"]),
    "an end token that the template does not write": (
        [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
        {"end_token": "<|endoftext|>"}, ["--end-token: the chat template ends an answer with <|end|>"]),
    "a row without the field": ([TWO, {"phrase": "a"}], {"template": "{phrase} {tone}"},
                                [":2: it has no field 'tone'; its fields: 'phrase'", "--bad-rows skip"]),
    "a field that is null": ([TWO, {**TWO, "tone": None}], {"template": "{phrase} {tone}"}, [":2:", "holds null"]),
    "a field that is a list": ([TWO, {**TWO, "tone": ["joy"]}], {"template": "{phrase} {tone}"},
                               [":2:", "holds a list, not text"]),
    "an empty answer": ([TWO, {**TWO, "tone": " "}], {"template": "{phrase} {tone}", "completion": "tone"},
                        [":2: the field 'tone', the answer, is empty"]),
    "an empty text": ([GOOD, {"text": ""}], {}, [":2: its text is empty"]),
    "an empty prompt": ([{"prompt": "", "completion": "b"}], {}, [":1: the field 'prompt' is empty"]),
    "only bad rows": ([{"text": ""}] * 3, {"bad_rows": "skip"}, ["all 3 rows are bad", "its text is empty"]),
    "rows that are all too long": ([{"text": "word " * 90}], {"max_length": 5, "overlong": "drop", "test_fraction": 0},
                                   ["--max-length: no row fits into 5 tokens"]),
    "rows that all lose their end": ([{"text": "word " * 90}], {"max_length": 5, "test_fraction": 0},
                                     ["--max-length: every row is longer than 5 tokens", "--end-token none"]),
    "fewer tokens than a block": ([GOOD], {"strategy": "join", "test_fraction": 0}, ["fewer than a block of 256"]),
    "all rows held out": ([GOOD], {"test_fraction": 0.999999}, ["--test-fraction: the only row was held out"]),
}  # fmt: skip


def check(made, wanted):
    assert made.code == 2, made.said
    assert "Traceback" not in made.said
    told = made.said[made.said.index("prepare-data: error:") :]
    assert len(told.strip().split("\n")) <= 2
    for phrase in wanted:
        assert phrase in told


@pytest.mark.parametrize("case", SOURCES)
def test_sources(case, prepare, tmp_path):
    content, params, wanted = SOURCES[case]
    source = tmp_path / "rows"
    source.write_bytes(content)
    check(prepare(source, **params), wanted)


@pytest.mark.parametrize("case", PARAMETERS)
def test_parameters_and_rows(case, prepare):
    rows, params, wanted = PARAMETERS[case]
    check(prepare(rows, **params), wanted)


MODELS = {
    "no tokenizer": ({"tokenizer": None}, ["the model has no tokenizer.json", "save_pretrained"]),
    "a tokenizer that cannot be read": ({"tokenizer": {"model": 3}}, ["tokenizer.json: this tokenizer cannot be read"]),
    "no eos token": ({"tokenizer_config": {"eos_token": None}}, ["names no eos_token", "--end-token"]),
    "an eos token that is not in the vocabulary": ({"tokenizer_config": {"eos_token": "</s>"}}, ["'</s>' is"]),
    "a tokenizer of another model": ({"config": {"vocab_size": 100}}, ["the model's embedding only 100 rows"]),
}


@pytest.mark.parametrize("case", MODELS)
def test_models(case, prepare, another_model):
    configs, wanted = MODELS[case]
    check(prepare([GOOD], model=another_model(**configs)), wanted)


TALK = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
TEMPLATES = {
    "none": (None, ["the model has no chat template", "use a text template"]),
    "one that cannot be read": ("{% for m in messages %}", ["the chat template cannot be read"]),
    "one that leaves the answer out": ("{{ messages[0].content }}", ["leaves the assistant's answer out"]),
    "one that reaches out": ("{{ messages.__class__.__mro__ }}{{ messages[-1].content }}", ["chat template"]),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_chat_templates(case, prepare, another_model):
    template, wanted = TEMPLATES[case]
    check(prepare(TALK, model=another_model(chat_template=template)), wanted)


def test_no_bos_token(prepare, another_model):
    made = prepare([GOOD], add_bos=True, model=another_model(tokenizer_config={"bos_token": None}))
    check(made, ["--add-bos: the tokenizer names no bos_token"])


def test_no_such_source(prepare, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    check(prepare(tmp_path / "row.jsonl"), ["--source", "did you mean 'rows.jsonl'?"])


def test_a_pattern_that_matches_nothing(prepare, tmp_path):
    check(prepare(f"{tmp_path}/*.nothing"), ["no file matches this pattern"])


def test_something_lies_at_the_output(model, tmp_path, run_stage):
    source, output = tmp_path / "rows.jsonl", tmp_path / "out"
    source.write_bytes(LINES)
    output.mkdir()
    (output / "mine").write_text("mine")
    done = run_stage("prepare-data", "--source", source, "--model", model, "--output", output)
    assert done.code == 2
    assert "something lies there already" in done.stderr
    assert done.event("error")["exit_code"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "rows.jsonl"]


def test_a_bad_row_in_another_process_is_told_alike(prepare, tmp_path, monkeypatch):
    from microstages_prepare_data import prepare as flow
    from microstages_prepare_data import sources

    monkeypatch.setattr(flow, "SMALL", 0)
    monkeypatch.setattr(sources, "CHUNK", 2000)
    source = tmp_path / "rows"
    lines = [json.dumps({"text": f"row {n}"}) for n in range(900)]
    lines[678] = '{"text": 1'
    source.write_text("\n".join(lines))
    check(prepare(source, workers=3), ["rows:679: this is not JSON"])


def test_skipped_rows_are_counted_and_the_first_are_named(prepare, tmp_path):
    source = tmp_path / "rows"
    source.write_bytes(LINES + b"no\n" * 7 + b'{"text": null}\n')
    made = prepare(source, bad_rows="skip", test_fraction=0)
    assert made.report["rows"] | {"read": 10, "bad": 8, "train": 2} == made.report["rows"]
    assert [b["place"] for b in made.report["first_bad"]] == ["3", "4", "5", "6", "7"]
    assert "8 rows are left out as bad" in made.said
