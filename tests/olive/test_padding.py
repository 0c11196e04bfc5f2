"""Generation A and its attention mask: what is hidden and what is trained, by numbers, on the example model.

Its mask is `id != pad`, everywhere in a sequence, and the labels follow it: also within a block of joined rows, where
the pad token is the one that ends a row, as it is with Phi-3. What is imported trains with the same mask: the rows go
through `prepare-data` with the imported parameters and through the backward of the training stages, and Olive's
sequences (`olive_data.oracle`) through transformers.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from olive.samples import ROOT, own_configs
from olive_data import oracle
from olive_data.cases import Case

from runner.olive.convert import Made
from runner.olive.section import USED

KEYS = {"text_template": "### Text: {phrase}\n### The tone is:\n{tone}", "max_len": 64}
JOINED = {**KEYS, "strategy": "join"}
ROWS = 12
OF_THE_SOURCE = ("files", "split", "where", "test_split", "test_fraction", "test_sequences", "split_seed")


def imported(make: Callable[..., Made], keys: dict[str, Any]) -> dict[str, Any]:
    """The parameters of prepare-data that an import gives for these keys of generation A."""
    config = own_configs()["pages"]
    config["data_configs"][0]["pre_process_data_config"]["params"] = Case("A", "", keys).olive()
    return next(d for d in make(config).stages if d.uses == "prepare-data").params.values


@pytest.fixture
def both(examples: Path, tmp_path: Path, make: Callable[..., Made]) -> Callable[..., tuple[Any, Any, Any]]:
    """`both(keys)`: of Olive's way and of ours: the mean loss over some sequences, and the gradient of an adapter; and
    the token that is hidden. `hide=False` leaves away what hides."""
    import torch
    from microstages.artifact import open_artifact
    from microstages.dataset import load_split
    from microstages_prepare_data.cli import main
    from microstages_training import attention
    from microstages_training.base import add_adapter, load_base
    from microstages_training.batches import Examples
    from microstages_training.model import Model
    from microstages_training.settings import Settings
    from transformers import AutoTokenizer

    def prepared(keys: dict[str, Any], hide: bool) -> Any:
        values = {k: v for k, v in imported(make, keys).items() if k not in OF_THE_SOURCE}
        assert values["hide_pad"]
        flags = []
        for name, value in {**values, "hide_pad": hide, "max_rows": ROWS, "test_fraction": 0}.items():
            flag = name.replace("_", "-")
            flags += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
        out, source = tmp_path / f"data-{hide}", examples / "tones.jsonl"
        before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
        code = main.main(
            ["--source", str(source), "--model", str(examples / "tiny-phi3"), "--output", str(out), *flags]
        )
        for number, handler in before.items():
            signal.signal(number, handler)
        assert code == 0
        return open_artifact(str(out), ["dataset"])

    def run(keys: dict[str, Any], hide: bool = True) -> tuple[Any, Any, Any]:
        attention.register()
        dataset = prepared(keys, hide)
        data, hidden = Examples(load_split(dataset, "train")), dataset.metadata.get("hidden_token_id")
        causal = load_base(examples / "tiny-phi3", Settings(), torch.device("cpu"), "fp32")
        peft = add_adapter(causal, Settings(rank=4, alpha=8.0))
        model = Model(causal.eval(), peft, torch.device("cpu"), "fp32", hidden=hidden)
        torch.manual_seed(1)
        with torch.no_grad():
            for name, p in model.trained:
                if "lora_B" in name:
                    p.normal_(std=0.1)

        tokenizer = AutoTokenizer.from_pretrained(examples / "tiny-phi3")
        assert tokenizer.pad_token == tokenizer.eos_token
        lines = (examples / "tones.jsonl").read_text().splitlines()[:ROWS]
        found = oracle.sequences([json.loads(line) for line in lines], tokenizer, "A", Case("A", "", keys).all_keys)
        ids, labels = (torch.tensor([s[n] for s in found]) for n in (0, 1))
        seen = (ids != tokenizer.pad_token_id).long()
        loss = causal(input_ids=ids, labels=labels, attention_mask=seen).loss
        loss.backward()
        olive = float(loss.detach()), torch.cat([p.grad.flatten() for _, p in model.trained])

        causal.zero_grad()
        model.choose(longest=64)
        batch = data.micro_batch(range(len(data)))
        assert len(batch.targets) == int((labels[:, 1:] != oracle.IGNORED).sum())
        total = model.backward(batch, len(batch.targets))
        ours = float(total) / len(batch.targets), torch.cat([p.grad.flatten() for _, p in model.trained])
        return olive, ours, hidden

    return run


def apart(one: Any, other: Any) -> float:
    """How far a gradient is from another, as a share of it."""
    return float((one - other).norm() / other.norm())


def test_within_a_block_what_ends_a_row_is_hidden(both: Callable[..., Any]):
    olive, ours, hidden = both(JOINED)
    assert hidden == 0
    assert ours[0] == pytest.approx(olive[0], abs=1e-5)
    assert apart(ours[1], olive[1]) < 1e-4


def test_seen_it_would_train_something_else(both: Callable[..., Any]):
    olive, ours, hidden = both(JOINED, hide=False)
    assert hidden is None
    assert abs(ours[0] - olive[0]) > 0.01
    assert apart(ours[1], olive[1]) > 0.1


def test_behind_a_row_nothing_has_to_be_hidden(both: Callable[..., Any]):
    olive, ours, hidden = both(KEYS)
    assert hidden is None  # so examples go flat, faster
    assert ours[0] == pytest.approx(olive[0], abs=1e-5)
    assert apart(ours[1], olive[1]) < 1e-4


@pytest.mark.parametrize("strategy", [{}, {"corpus_strategy": "line-by-line"}])
@pytest.mark.parametrize("given", [None, True, False])
def test_the_mask_becomes_parameters(strategy: dict[str, Any], given: bool | None, make: Callable[..., Made]):
    config = own_configs()["pages"]
    inside = config["data_configs"][0]["pre_process_data_config"]["params"]
    del inside["use_attention_mask"]
    asked = {} if given is None else {"use_attention_mask": given}
    inside.update(strategy, pad_to_max_len=given is not False, **asked)
    made = make(config)
    values = next(d for d in made.stages if d.uses == "prepare-data").params.values
    masked = given is not False
    assert values["loss_on_pad"] is not masked
    assert values.get("hide_pad", False) is masked
    found = [f.how for f in made.report.fates if f.path.endswith("use_attention_mask")]
    assert found == ([] if given is None else [USED])
    assert not any("use_attention_mask" in n for n in made.report.notes)


def test_the_page_says_so():
    text = " ".join((ROOT / "docs" / "olive.md").read_text().split())
    assert "**Hidden pad tokens.**" in text and "So does `hide_pad`" in text
