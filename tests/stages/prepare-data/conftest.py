"""What the tests of prepare-data share: a model folder with a real tokenizer, and the stage run within this process."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from microstages.artifact import open_artifact
from microstages.dataset import HeldOut, held_out, load_split
from microstages.tokens import ModelText
from microstages_prepare_data.cli import main

TEMPLATE = "### Text: {phrase}\n### The tone is:\n{tone}"
NO_WEIGHTS = (2).to_bytes(8, "little") + b"{}"  # safetensors without tensors: this stage reads none


@dataclass(frozen=True)
class Example:
    """A row of a split: its token ids, and for each whether it is trained."""

    ids: list[int]
    trained: list[int]


@dataclass(frozen=True)
class Prepared:
    """How a run ended: exit code, what it said, and the data set it made (None where it made none)."""

    code: int
    said: str
    path: Path

    @property
    def report(self) -> dict[str, Any]:
        assert self.code == 0, self.said
        return json.loads((self.path / "report.json").read_bytes())

    @property
    def metadata(self) -> dict[str, Any]:
        return dict(open_artifact(str(self.path), ["dataset"]).metadata)

    def bins(self, split: str = "train") -> list[list[Example]]:
        """The sequences of a split, each with its examples, as a trainer reads them."""
        assert self.code == 0, self.said
        arrays = load_split(open_artifact(str(self.path), ["dataset"]), split)
        if arrays is None:
            return []
        assert arrays.example_lengths.sum() == len(arrays.input_ids) == len(arrays.trained)
        assert arrays.bin_lengths.sum() == len(arrays.example_lengths)
        cuts = np.cumsum(arrays.example_lengths)[:-1]
        pairs = zip(np.split(arrays.input_ids, cuts), np.split(arrays.trained, cuts), strict=True)
        examples = iter([Example(i.tolist(), t.tolist()) for i, t in pairs])
        return [[next(examples) for _ in range(n)] for n in arrays.bin_lengths]

    def examples(self, split: str = "train") -> list[Example]:
        return [e for b in self.bins(split) for e in b]

    @property
    def held_out(self) -> list[HeldOut]:
        file = self.path / "test.jsonl"
        return list(held_out(file)) if file.exists() else []

    def bytes(self) -> dict[str, bytes]:
        """Every file of the artifact but the manifest."""
        return {p.name: p.read_bytes() for p in self.path.iterdir() if not p.name.endswith("artifact.json")
                and not p.name.startswith(".")}  # fmt: skip


@pytest.fixture(scope="session")
def model(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example model's tokenizer, template and config, without its weights. 256 positions, eos `<|endoftext|>`."""
    folder = tmp_path_factory.mktemp("model") / "phi3"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json",
                 "generation_config.json"):  # fmt: skip
        shutil.copy(examples / "tiny-phi3" / name, folder / name)
    (folder / "model.safetensors").write_bytes(NO_WEIGHTS)
    return folder


@pytest.fixture
def another_model(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """`another_model(chat_template=…, generation_config={…})`: the model with some files other; None takes one away."""
    count = 0

    def make(chat_template: str | None = "", **configs: dict[str, Any] | None) -> Path:
        nonlocal count
        count += 1
        folder = tmp_path / f"model{count}"
        shutil.copytree(model, folder)
        if chat_template is None:
            (folder / "chat_template.jinja").unlink()
        elif chat_template:
            (folder / "chat_template.jinja").write_text(chat_template)
        for name, changes in configs.items():
            file = folder / f"{name}.json"
            if changes is None:
                file.unlink()
            else:
                file.write_text(json.dumps({**json.loads(file.read_bytes()), **changes}))
        return folder

    return make


@pytest.fixture
def spaced(another_model: Callable[..., Path]) -> Path:
    """A model whose tokenizer puts a space before every text, as Llama 2's and Phi-3's do."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

    folder = another_model(tokenizer_config={"eos_token": "</s>", "bos_token": "<s>"}, generation_config=None)
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    alphabet = sorted(set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .,:#?'\n▁"))
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["The tone is fear. The lamp went out. joy fear sadness"] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken("<|user|>", rstrip=True), AddedToken("<|end|>", rstrip=True),
                                  AddedToken("<|assistant|>", rstrip=True)])  # fmt: skip
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": tokenizer.token_to_id("</s>")}))
    return folder


@pytest.fixture(scope="session")
def text(model: Path) -> ModelText:
    """The model's tokenizer and template."""
    return ModelText(model)


@pytest.fixture(scope="session")
def ids(text: ModelText) -> Callable[[str], list[int]]:
    """`ids("a text")`: its tokens, none added."""
    return lambda words: text.tokenizer.encode(words, add_special_tokens=False).ids


@pytest.fixture
def prepare(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Prepared]]:
    """`prepare(source, test_fraction=0, …)` runs the stage. Rows given as a list are written as JSON Lines first."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    count = 0

    def run(source: Path | str | list[dict[str, Any]], *, model: Path = model, **params: object) -> Prepared:
        nonlocal count
        count += 1
        if isinstance(source, list):
            rows, source = source, tmp_path / f"rows{count}.jsonl"
            source.write_text("".join(json.dumps(r) + "\n" for r in rows))
        output = tmp_path / f"out{count}" / "dataset"
        argv = ["--source", str(source), "--model", str(model), "--output", str(output)]
        for name, value in params.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                argv.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                argv += [w for v in (value if isinstance(value, list) else [value]) for w in (f"--{flag}", str(v))]
        capfd.readouterr()
        code = main.main(argv)
        said = capfd.readouterr().err
        if code:
            left = [p.name for p in output.parent.iterdir()] if output.parent.exists() else []
            assert left == [], "something half-written is left behind"
        return Prepared(code, said, output)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def need_datasets() -> Any:
    """The package `datasets`, to compare with. $MICROSTAGES_REQUIRE_DATASETS=1: without it the tests fail."""
    try:
        import datasets
    except ImportError:
        if os.environ.get("MICROSTAGES_REQUIRE_DATASETS") == "1":
            pytest.fail("splits are not compared: the package datasets is missing")
        pytest.skip("COMPARISON WITH datasets NOT TESTED: pip install datasets==5.2.0")
    return datasets
