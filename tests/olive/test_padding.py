"""Generation A and its attention mask: what is hidden and what is trained, by numbers, on the example model.

Its mask is `id != pad`, everywhere in a sequence, and the labels follow it. Here pad tokens are not trained, and
nothing is hidden. Behind a row's end that is the same; within a block of joined rows it is not, where the pad token is
also the one that ends a row, as it is with Phi-3. `docs/olive.md` says so, and the import tells who is concerned.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from olive.samples import ROOT, own_configs
from olive_data import oracle
from olive_data.cases import Case

from runner.olive.convert import Made
from runner.olive.section import CHANGED, USED

KEYS = {"text_template": "### Text: {phrase}\n### The tone is:\n{tone}", "max_len": 64}


@pytest.fixture(scope="module")
def gradients(examples: Path) -> Callable[..., tuple[float, Any]]:
    """`gradients(keys, hidden)`: the mean loss over some sequences of generation A, and the gradient of all layers;
    with pad tokens `hidden`, as Olive had them, or seen and not trained, as here."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        examples / "tiny-phi3", dtype=torch.float32, attn_implementation="eager"
    )
    model.config.use_cache = False
    tokenizer = AutoTokenizer.from_pretrained(examples / "tiny-phi3")
    assert tokenizer.pad_token == tokenizer.eos_token
    rows = [json.loads(line) for line in (examples / "tones.jsonl").read_text().splitlines()[:12]]

    def run(keys: dict[str, Any], hidden: bool) -> tuple[float, Any]:
        case = Case("A", "", {**KEYS, **keys})
        found = oracle.sequences(rows, tokenizer, "A", case.all_keys)
        ids, labels = (torch.tensor([s[n] for s in found]) for n in (0, 1))
        assert bool((labels[ids == tokenizer.pad_token_id] == oracle.IGNORED).all())
        more = {"attention_mask": (ids != tokenizer.pad_token_id).long()} if hidden else {}
        model.zero_grad()
        loss = model(input_ids=ids, labels=labels, **more).loss
        loss.backward()
        return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.model.layers.parameters()])

    return run


def apart(one: Any, other: Any) -> float:
    """How far a gradient is from another, as a share of it."""
    return float((one - other).norm() / other.norm())


def test_behind_a_row_it_is_the_same(gradients: Callable[..., tuple[float, Any]]):
    olive, ours = (gradients({}, hidden) for hidden in (True, False))
    assert ours[0] == pytest.approx(olive[0], abs=1e-5)
    assert apart(ours[1], olive[1]) < 1e-4


def test_within_a_block_it_is_not(gradients: Callable[..., tuple[float, Any]]):
    olive, ours = (gradients({"strategy": "join"}, hidden) for hidden in (True, False))
    assert abs(ours[0] - olive[0]) > 0.01
    assert 0.1 < apart(ours[1], olive[1]) < 1


@pytest.mark.parametrize("given, how", [
    ({}, None), ({"use_attention_mask": True}, CHANGED), ({"use_attention_mask": False}, USED),
    ({"corpus_strategy": "line-by-line", "use_attention_mask": True}, USED),
    ({"corpus_strategy": "line-by-line"}, None),
])  # fmt: skip
def test_who_is_concerned_is_told(given: dict[str, Any], how: str | None, make: Callable[..., Made]):
    config = own_configs()["pages"]
    inside = config["data_configs"][0]["pre_process_data_config"]["params"]
    del inside["use_attention_mask"]
    inside.update(given, pad_to_max_len=True)
    made = make(config)
    found = [f.how for f in made.report.fates if f.path.endswith("use_attention_mask")]
    assert found == ([how] if how else [])
    joined = given.get("corpus_strategy", "join") == "join"
    assert any("has no use_attention_mask" in n for n in made.report.notes) == (joined and how is None)


def test_the_page_says_so():
    text = " ".join((ROOT / "docs" / "olive.md").read_text().split())
    assert "**Hidden pad tokens.**" in text
