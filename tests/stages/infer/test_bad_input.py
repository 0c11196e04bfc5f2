"""Given something that cannot be, then the stage says what and where in a line or two, and ends with 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from microstages.artifact import Draft
from microstages_infer.agreement import rows_digest
from microstages_infer.prompts import Row
from safetensors.numpy import load_file, save_file

Place = Callable[[str], Path]


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    """Makes the named broken thing, or a good one."""

    def copied(form: str) -> Path:
        folder = tmp_path / f"{form}-copy"
        shutil.copytree(request.getfixturevalue(form), folder)
        (folder / "artifact.json").unlink(missing_ok=True)
        return folder

    def wrote(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    def without(form: str, name: str) -> Path:
        folder = copied(form)
        (folder / name).unlink()
        return folder

    def altered(form: str, name: str, change: Callable[[dict[str, Any]], Any]) -> Path:
        folder = copied(form)
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))
        return folder

    def narrow() -> Path:
        from transformers import AutoConfig, AutoModelForCausalLM

        folder = tmp_path / "narrow"
        config = AutoConfig.from_pretrained(request.getfixturevalue("base"))
        config.hidden_size, config.intermediate_size, config.num_hidden_layers = 64, 96, 5
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(request.getfixturevalue("base") / name, folder / name)
        return folder

    def shallow() -> Path:
        """The base with a layer less in its configuration: the adapter has weights for no layer of it."""
        return altered("base", "config.json", lambda c: c.update(num_hidden_layers=4))

    def data(rows: list[dict[str, Any]] | None) -> Path:
        with Draft(str(tmp_path / "data"), "dataset") as draft:
            (draft.path / "report.json").write_text("{}")
            if rows is not None:
                (draft.path / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
            draft.commit({})
        return tmp_path / "data"

    def predicted(name: str, *flags: str) -> Path:
        """Predictions of one row; with --keep-scores they can be a reference."""
        file = wrote("asked.jsonl", b'{"prompt": "She said", "completion": " no"}')
        ask = ("--model", request.getfixturevalue("onnx"), "--max-new-tokens", 2, "--prompts", file)
        assert request.getfixturevalue("infer")(*ask, *flags, "--output", tmp_path / name).code == 0
        return tmp_path / name

    def retold(token: int) -> Path:
        """A reference in which one token is another."""
        folder = predicted("retold", "--keep-scores")
        (folder / "artifact.json").unlink()
        values = load_file(folder / "scores.safetensors")
        values["tokens"][0] = token
        with Draft(str(tmp_path / "other"), "predictions") as draft:
            save_file(values, draft.path / "scores.safetensors")
            draft.metadata["rows_digest"] = rows_digest([Row("She said", " no")])
            draft.commit({})
        return tmp_path / "other"

    def for_cuda(config: dict[str, Any]) -> None:
        config["model"]["decoder"]["session_options"]["provider_options"] = [{"cuda": {}}]

    makers: dict[str, Callable[[], Path]] = {
        "BASE": lambda: request.getfixturevalue("base"),
        "ONNX": lambda: request.getfixturevalue("onnx"),
        "ADAPTER": lambda: request.getfixturevalue("adapter"),
        "OUT": lambda: tmp_path / "out",
        "PROMPTS": lambda: wrote("good.txt", b"She said"),
        "no-tokenizer": lambda: without("base", "tokenizer.json"),
        "no-weights": lambda: without("base", "model.safetensors"),
        "unknown-model": lambda: altered("base", "config.json", lambda c: c.update(model_type="martian")),
        "deeper": lambda: altered("base", "config.json", lambda c: c.update(num_hidden_layers=7)),
        "no-template": lambda: without("base", "chat_template.jinja"),
        "no-onnx": lambda: without("onnx", "model.onnx"),
        "no-onnx-data": lambda: without("onnx", "model.onnx.data"),
        "cuda-onnx": lambda: altered("onnx", "genai_config.json", for_cuda),
        "small": lambda: altered("onnx", "genai_config.json", lambda c: c["model"].update(vocab_size=50)),
        "bare-adapter": lambda: copied("adapter"),
        "narrow": narrow,
        "shallow": shallow,
        "no-rows": lambda: wrote("empty.txt", b"\n \n"),
        "latin": lambda: wrote("latin.txt", "She said\nthé".encode("latin-1")),
        "not-json": lambda: wrote("bad.jsonl", b'{"prompt": "a"}\n{"prompt": \n'),
        "no-prompt": lambda: wrote("odd.jsonl", b'{"prompt": "a"}\n{"text": "a"}\n'),
        "both": lambda: wrote("both.jsonl", b'{"prompt": "a", "messages": []}\n'),
        "number": lambda: wrote("number.jsonl", b'{"prompt": 3}\n'),
        "list": lambda: wrote("list.jsonl", b"3\n"),
        "roles": lambda: wrote("roles.jsonl", b'{"messages": [{"role": "boss", "content": "a"}]}\n'),
        "only-answer": lambda: wrote("answer.jsonl", b'{"messages": [{"role": "assistant", "content": "a"}]}\n'),
        "no-test": lambda: data(None),
        "plain-data": lambda: data([{"prompt": None, "completion": None, "text": "a"}]),
        "bad-data": lambda: data([{"prompt": "a"}]),
        "KNOWN": lambda: wrote("known.jsonl", b'{"prompt": "She said", "completion": " no"}'),
        "other-row": lambda: wrote("other.jsonl", b'{"prompt": "He said", "completion": " no"}'),
        "two-rows": lambda: wrote("two.jsonl", b'{"prompt": "She said", "completion": " no"}\n{"prompt": "b"}'),
        "scored": lambda: predicted("scored", "--keep-scores"),
        "no-scores": lambda: predicted("plain"),
        "other-token": lambda: retold(7),
        "blank": lambda: wrote("blank.txt", b" \n"),
        "short": lambda: wrote("short.txt", b"a"),
    }  # fmt: skip
    return lambda name: makers[name]()


ASK = ("--prompt", "She said")
TO = ("--output", "@OUT")
CASES: list[tuple[str, tuple[str, ...], str]] = [
    ("nothing to answer", ("--model", "@ONNX"), "there is nothing to answer"),
    ("two things to answer", ("--model", "@ONNX", *ASK, "--chat"), "--prompt and --chat are given"),
    ("batch without output", ("--model", "@ONNX", "--prompts", "@PROMPTS"), "give --output"),
    ("chat with output", ("--model", "@ONNX", "--chat", *TO), "a chat writes no predictions"),
    ("empty prompt", ("--model", "@ONNX", "--prompt", " "), "the prompt is empty"),
    ("limit of one prompt", ("--model", "@ONNX", *ASK, "--limit", "3"), "no rows to limit"),
    ("metric of one prompt", ("--model", "@ONNX", *ASK, "--metric", "exact_match"), "no rows to compare"),
    ("metric without references", ("--model", "@ONNX", "--prompts", "@PROMPTS", *TO, "--metric", "exact_match"),
     "no row has a reference"),
    ("system without chat", ("--model", "@ONNX", *ASK, "--system", "x"), "add --as-chat"),
    ("bos before a chat", ("--model", "@ONNX", *ASK, "--as-chat", "--add-bos"), "is not bare"),
    ("tokenizer of another model", ("--model", "@small", *ASK), "the tokenizer is not this model's"),
    ("chat wrapped twice", ("--model", "@ONNX", "--chat", "--as-chat"), "in its form already"),
    ("top-k without temperature", ("--model", "@ONNX", *ASK, "--top-k", "5"), "nothing is drawn at temperature 0"),
    ("empty stop text", ("--model", "@ONNX", *ASK, "--stop", ""), "a stop text must not be empty"),
    ("negative temperature", ("--model", "@ONNX", *ASK, "--temperature", "-1"), "must be a number at least 0"),
    ("batch of zero", ("--model", "@ONNX", "--prompts", "@PROMPTS", *TO, "--batch-size", "0"), "at least 1"),
    ("unknown metric", ("--model", "@ONNX", *ASK, "--metric", "exact"), "must be one of auto, exact_match"),
    ("unknown flag", ("--model", "@ONNX", "--promt", "x"), "there is no flag --promt\n  did you mean --prompt?"),
    ("adapter on ONNX", ("--model", "@ONNX", "--adapter", "@ADAPTER", *ASK), "build-onnx"),
    ("precision of ONNX", ("--model", "@ONNX", *ASK, "--precision", "bf16"), "precision that it was built with"),
    ("GPU for a CPU's ONNX", ("--model", "@ONNX", *ASK, "--device", "cuda"), "built for cpu"),
    ("ONNX for a GPU that is not there", ("--model", "@cuda-onnx", *ASK), "built for cuda"),
    ("ONNX without its graph", ("--model", "@no-onnx", *ASK), "there is no model.onnx"),
    ("ONNX without its weights", ("--model", "@no-onnx-data", *ASK), "cannot load this model"),
    ("no model", ("--model", "nowhere", *ASK), "no such file or folder"),
    ("an adapter as model", ("--model", "@ADAPTER", *ASK), "it is of kind adapter"),
    ("model without tokenizer", ("--model", "@no-tokenizer", *ASK), "no tokenizer.json"),
    ("model without weights", ("--model", "@no-weights", *ASK), "no weights"),
    ("model of an unknown architecture", ("--model", "@unknown-model", *ASK), "cannot load this model"),
    ("model with a part of its weights", ("--model", "@deeper", *ASK), "its weights lack"),
    ("chat without a template", ("--model", "@no-template", "--chat"), "no chat template"),
    ("no GPU", ("--model", "@BASE", *ASK, "--device", "cuda"), "no CUDA device"),
    ("adapter of another base", ("--model", "@narrow", "--adapter", "@ADAPTER", *ASK), "trained on another base model"),
    ("adapter of other shapes", ("--model", "@narrow", "--adapter", "@bare-adapter", *ASK), "size mismatch"),
    ("adapter for more layers", ("--model", "@shallow", "--adapter", "@bare-adapter", *ASK), "for no layer of"),
    ("prompts file without prompts", ("--model", "@ONNX", "--prompts", "@no-rows", *TO), "no prompt in it"),
    ("prompts not in UTF-8", ("--model", "@ONNX", "--prompts", "@latin", *TO), "latin.txt:2: this is not UTF-8"),
    ("prompts not JSON", ("--model", "@ONNX", "--prompts", "@not-json", *TO), "bad.jsonl:2:12: this is not JSON"),
    ("row without prompt", ("--model", "@ONNX", "--prompts", "@no-prompt", *TO), "odd.jsonl:2: this row has neither"),
    ("row with both", ("--model", "@ONNX", "--prompts", "@both", *TO), "both prompt and messages"),
    ("prompt that is a number", ("--model", "@ONNX", "--prompts", "@number", *TO), "its prompt is not text"),
    ("row that is a number", ("--model", "@ONNX", "--prompts", "@list", *TO), "not a JSON object"),
    ("unknown role", ("--model", "@ONNX", "--prompts", "@roles", *TO), "the roles are"),
    ("nothing but an answer", ("--model", "@ONNX", "--prompts", "@only-answer", *TO), "nothing to answer"),
    ("data set without held-out rows", ("--model", "@ONNX", "--dataset", "@no-test", *TO), "holds out no rows"),
    ("data set of plain text", ("--model", "@ONNX", "--dataset", "@plain-data", *TO), "no prompt is known"),
    ("data set with a bad row", ("--model", "@ONNX", "--dataset", "@bad-data", *TO), "test.jsonl:1: not a held-out"),
    ("loss of nothing", ("--model", "@ONNX", "--prompts", "@PROMPTS", *TO, "--loss", "yes"), "there is no loss"),
    ("loss of one prompt", ("--model", "@ONNX", *ASK, "--loss", "yes"), "no rows to measure on"),
    ("scores without reading", ("--model", "@ONNX", "--prompts", "@KNOWN", *TO, "--loss", "no", "--keep-scores"),
     "leave --loss no out"),
    ("reference without scores", ("--model", "@ONNX", "--prompts", "@KNOWN", *TO, "--reference", "@no-scores"),
     "hold no scores"),
    ("reference of another kind", ("--model", "@ONNX", "--prompts", "@KNOWN", *TO, "--reference", "@BASE"),
     "predictions"),
    ("reference of other rows", ("--model", "@ONNX", "--prompts", "@other-row", *TO, "--reference", "@scored"),
     "answer other rows"),
    ("reference of fewer rows", ("--model", "@ONNX", "--prompts", "@two-rows", *TO, "--reference", "@scored"),
     "answer other rows (1; here 2)"),
    ("reference of another tokenizer", ("--model", "@ONNX", "--prompts", "@KNOWN", *TO, "--reference", "@other-token"),
     "another tokenizer"),
    ("neutral text without text", ("--model", "@ONNX", "--prompts", "@KNOWN", *TO, "--neutral", "@blank"), "no text"),
    ("neutral text of one token", ("--model", "@ONNX", "--prompts", "@KNOWN", *TO, "--neutral", "@short"), "longer"),
    ("neutral text not in UTF-8", ("--model", "@ONNX", "--prompts", "@KNOWN", *TO, "--neutral", "@latin"), "not UTF-8"),
    ("window of one token", ("--model", "@ONNX", "--prompts", "@KNOWN", *TO, "--neutral-window", "1"), "at least 2"),
    ("prompt longer than the context", ("--model", "@ONNX", "--prompt", "the " * 400), "leaves no room"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "phrase"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_it_says_what_and_where(
    arguments: tuple[str, ...], phrase: str, place: Place, infer: Any, tmp_path: Path
) -> None:
    result = infer(*(str(place(a[1:])) if a.startswith("@") else a for a in arguments))
    assert result.code == 2, result.stderr
    assert phrase in result.stderr
    message = result.stderr[result.stderr.index("infer: error: ") :]
    assert len(message.strip().splitlines()) <= 2 and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*.partial"))
