"""The loss of a micro-batch is the loss that transformers gives each example alone, for every kind of model."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from microstages.dataset import load_split
from microstages.errors import UserError
from microstages_training import attention
from microstages_training.base import add_adapter, check_saved, load_base, resolve_targets
from microstages_training.batches import Examples
from microstages_training.model import Model
from microstages_training.settings import Settings
from training_data import tones, write

CPU = torch.device("cpu")
SMALL = {"vocab_size": 4096, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "max_position_embeddings": 256}
ATTENTION = {
    "llama, grouped queries": lambda t: t.LlamaConfig(**SMALL, **HEADS),
    "phi3, window wider than the examples": lambda t: t.Phi3Config(**SMALL, **HEADS, sliding_window=200),
    "gpt2, Conv1D": lambda t: t.GPT2Config(vocab_size=4096, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "granite, scaled logits": lambda t: t.GraniteConfig(**SMALL, **HEADS, logits_scaling=3.0),
}
OTHERS = {
    "phi3, window shorter than the examples": lambda t: t.Phi3Config(**SMALL, **HEADS, sliding_window=5),
    "gemma2, soft caps": lambda t: t.Gemma2Config(**SMALL, **HEADS, head_dim=8),
    "mamba, state space": lambda t: t.MambaConfig(vocab_size=4096, hidden_size=32, num_hidden_layers=2),
}


@pytest.fixture(scope="module", autouse=True)
def _registered():
    attention.register()


@pytest.fixture(scope="module")
def examples_(tmp_path_factory, examples, tiny_model):
    rows = tones(examples / "tones.jsonl", tiny_model, 12, completion_only=False)
    dataset = write(tmp_path_factory.mktemp("data") / "rows", tiny_model, rows)
    return rows, Examples(load_split(dataset, "train"))


def fitted(causal, **settings) -> Model:
    """A model with an adapter that is not zero any more."""
    model = Model(causal, add_adapter(causal, Settings(rank=4, alpha=8.0, **settings)), CPU, "fp32")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.trained:
            if "lora_B" in name:
                p.normal_(std=0.1)
    return model


def random_model(config) -> Model:
    torch.manual_seed(0)
    causal = transformers.AutoModelForCausalLM.from_config(config).float()
    if config.model_type == "gemma2":
        causal.set_attn_implementation("eager")  # sdpa knows no soft caps
    with torch.no_grad():
        for p in causal.parameters():
            if p.ndim > 1:
                p.normal_(std=0.2)
    causal.config.use_cache = False
    causal.requires_grad_(False)
    mamba = config.model_type == "mamba"  # PEFT refuses its out_proj
    return fitted(causal.eval(), target_modules=["in_proj", "x_proj"] if mamba else None)


def reference(model, rows):
    """Sum of the losses and gradients by transformers: each example alone, unpacked, with its own labels."""
    model.causal.zero_grad()
    losses = []
    for ids, trained in rows:
        x = torch.tensor([ids])
        labels = x.masked_fill(torch.tensor([trained]) == 0, -100)
        logits = model.causal(input_ids=x, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), labels[0, 1:], reduction="none")
        loss.sum().backward()
        losses.append(loss.detach())
    return losses, {n: p.grad.clone() for n, p in model.trained}


def check_same(model, rows, examples):
    """First transformers, each example alone; then the model as chosen, all examples in one micro-batch."""
    losses, gradients = reference(model, rows)
    model.choose(longest=max(len(ids) for ids, _ in rows))
    model.causal.zero_grad()
    batch = examples.micro_batch(range(len(examples)))
    total = model.backward(batch, 1.0)
    assert float(total) == pytest.approx(float(sum(x.sum() for x in losses)), rel=1e-5)
    for name, p in model.trained:
        scale = gradients[name].abs().max()
        assert (p.grad - gradients[name]).abs().max() <= 1e-4 * scale + 1e-6, name
    found, targets = model.losses(batch)
    if model.flat:  # in the batch's order: example by example
        assert torch.equal(targets, torch.tensor([t for ids, _ in rows for t in ids[1:]]))
        for is_, should in zip(found.split([len(x) for x in losses]), losses, strict=True):
            torch.testing.assert_close(is_, should, rtol=1e-4, atol=1e-4)
    else:
        torch.testing.assert_close(found.sort().values, torch.cat(losses).sort().values, rtol=1e-4, atol=1e-4)


def test_packed_training_is_unpacked_training(examples_, tiny_model):
    """Packed into one sequence or alone: each token's loss, and the gradients, are the same within rounding."""
    model = fitted(load_base(tiny_model, Settings(), CPU, "fp32"))
    check_same(model, *examples_)
    assert model.flat and model.head_alone


@pytest.mark.parametrize("name", ATTENTION)
def test_models_with_plain_attention_take_flat_batches(name, examples_):
    model = random_model(ATTENTION[name](transformers))
    check_same(model, *examples_)
    assert model.flat


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_take_padded_rows_and_lose_nothing(name, examples_):
    model = random_model(OTHERS[name](transformers))
    check_same(model, *examples_)
    assert not model.flat and "padded rows" in model.notes[0]


def test_the_output_layer_is_used_alone_only_where_that_gives_the_model_s_own_logits():
    model = random_model(ATTENTION["granite, scaled logits"](transformers))
    model.choose()
    assert not model.head_alone


def test_logits_are_computed_in_chunks_with_the_same_result(examples_, tiny_model, monkeypatch):
    _, examples = examples_
    model = fitted(load_base(tiny_model, Settings(), CPU, "fp32"))
    model.choose()
    batch = examples.micro_batch(range(len(examples)))
    whole = model.backward(batch, 7.0)
    gradients = [p.grad.clone() for _, p in model.trained]
    model.causal.zero_grad()
    monkeypatch.setattr("microstages_training.model.SMALLEST", 10)
    monkeypatch.setattr("microstages_training.model.CHUNK", {"cpu": 10 * 4096})
    torch.testing.assert_close(model.backward(batch, 7.0), whole)
    for (_, p), expected in zip(model.trained, gradients, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=1e-6)


def test_the_faster_forward_of_lora_is_peft_s(tiny_model, monkeypatch):
    x = torch.arange(1, 30)[None]
    model = fitted(load_base(tiny_model, Settings(), CPU, "fp32"), dropout=0.1, rslora=True)
    model.causal.eval()
    monkeypatch.setattr("microstages_training.lora.speed_up", id)
    theirs = fitted(load_base(tiny_model, Settings(), CPU, "fp32"), dropout=0.1, rslora=True)
    theirs.causal.eval()
    torch.testing.assert_close(model.causal(x).logits, theirs.causal(x).logits, rtol=1e-4, atol=1e-4)


def test_all_linear_layers_but_the_output_layer_get_an_adapter(tiny_model):
    causal = load_base(tiny_model, Settings(), CPU, "fp32")
    assert resolve_targets(causal, None) == ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
    adapted = {n.rpartition(".lora_A")[0] for n, _ in fitted(causal).trained if "lora_A" in n}
    assert len(adapted) == 2 * 4 and not any("lm_head" in n for n in adapted)


def test_the_adapter_is_fp32_on_a_bf16_base_and_the_base_is_frozen(tiny_model):
    causal = load_base(tiny_model, Settings(), CPU, "bf16")
    model = fitted(causal, modules_to_save=["lm_head"])
    assert {p.dtype for _, p in model.trained} == {torch.float32}
    assert all("lora_" in n or "lm_head.modules_to_save" in n for n, _ in model.trained)
    assert causal.model.embed_tokens.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (["qkv_prj"], "no linear layer is named 'qkv_prj' (did you mean 'qkv_proj'?)"),
        (["embed_tokens"], "no linear layer is named 'embed_tokens'"),
        (["qkv"], "no linear layer is named 'qkv'"),
    ],
)
def test_a_target_that_matches_nothing_names_the_layers_there_are(wanted, said, tiny_model):
    causal = load_base(tiny_model, Settings(), CPU, "fp32")
    with pytest.raises(UserError) as error:
        resolve_targets(causal, wanted)
    assert said in error.value.what
    assert error.value.fix == "the model has down_proj, gate_up_proj, o_proj, qkv_proj"


def test_a_layer_that_peft_refuses_is_an_error():
    causal = transformers.AutoModelForCausalLM.from_config(OTHERS["mamba, state space"](transformers))
    with pytest.raises(UserError, match="'out_proj' is incompatible with Mamba") as error:
        add_adapter(causal, Settings(target_modules=["out_proj"]))
    assert error.value.where == "--target-modules"


def test_a_layer_to_save_that_is_not_there_is_an_error(tiny_model):
    causal = load_base(tiny_model, Settings(), CPU, "fp32")
    with pytest.raises(UserError, match=r"no layer is named 'lm_haed' \(did you mean 'lm_head'"):
        check_saved(causal, ["lm_haed"])


def test_tied_layers_are_trained_together_or_not_at_all(examples):
    causal = load_base(examples / "tiny-phi3", Settings(), CPU, "fp32")
    for wanted in (["lm_head"], ["embed_tokens"]):
        with pytest.raises(UserError, match="shares its weights with") as error:
            check_saved(causal, wanted)
        assert "--modules-to-save lm_head" in error.value.fix and "--modules-to-save embed_tokens" in error.value.fix
    with pytest.raises(UserError, match="lm_head shares its weights"):
        resolve_targets(causal, ["lm_head", "qkv_proj"])
    assert check_saved(causal, ["lm_head", "embed_tokens"]) == ["embed_tokens", "lm_head"]


@pytest.mark.parametrize("damage", ["cut", "tensor", "config", "architecture"])
def test_a_model_that_cannot_be_loaded_whole_is_an_error_that_names_the_folder(damage, tiny_model: Path, tmp_path):
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "tensor":
        tensors = load_file(weights)
        del tensors["model.layers.1.mlp.down_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    else:
        config = json.loads((folder / "config.json").read_text())
        config |= {"hidden_size": 128} if damage == "config" else {"model_type": "phi9", "architectures": ["Phi9"]}
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as error:
        load_base(folder, Settings(), CPU, "fp32")
    assert str(folder) in error.value.where and error.value.fix
    assert "\n" not in error.value.what


def test_no_example_no_loss(tiny_model):
    model = fitted(load_base(tiny_model, Settings(), CPU, "fp32"))
    nothing = np.zeros(0, np.int64)
    batch = SimpleNamespace(input_ids=nothing, positions=nothing, lengths=nothing, rows=nothing, targets=nothing)
    assert float(model.backward(batch, 1.0)) == 0.0


@pytest.fixture(scope="module")
def with_hidden(tmp_path_factory, examples, tiny_model):
    """Examples with the token 0 inside, at the end, and one that begins with it; the token is not trained."""
    ids = [i for row, _ in tones(examples / "tones.jsonl", tiny_model, 6) for i in row]
    assert 0 in ids[:60]
    rows = [ids[:60], ids[60:120], [0, 0, *ids[120:150]], [*ids[20:40], 0, 0]]
    rows = [(r, [0, *(int(i != 0) for i in r[1:])]) for r in rows]
    dataset = write(tmp_path_factory.mktemp("data") / "hidden", tiny_model, rows)
    return rows, Examples(load_split(dataset, "train"))


def hiding(model, hidden=0):
    model.hidden = hidden
    model.choose(longest=60)
    assert not model.flat and not model.notes
    return model


@pytest.mark.parametrize("name", ["llama, grouped queries", "gpt2, Conv1D", "granite, scaled logits"])
def test_a_hidden_token_is_hidden_as_transformers_hides_it(name, with_hidden):
    """Each example alone, through transformers with its mask; then all of them in one micro-batch."""
    rows, examples = with_hidden
    model = random_model(ATTENTION[name](transformers))
    total = 0.0
    for ids, trained in rows:
        x = torch.tensor([ids])
        labels = x.masked_fill(torch.tensor([trained]) == 0, -100)
        found = model.causal(input_ids=x, labels=labels, attention_mask=(x != 0).long(), use_cache=False).loss
        loss = found * sum(trained)
        loss.backward()
        total += float(loss.detach())
    gradients = {n: p.grad.clone() for n, p in model.trained}
    model.causal.zero_grad()
    batch = examples.micro_batch(range(len(examples)))
    assert float(hiding(model).backward(batch, 1.0)) == pytest.approx(total, rel=1e-5)
    for n, p in model.trained:
        torch.testing.assert_close(p.grad, gradients[n], rtol=1e-3, atol=1e-4 * float(gradients[n].abs().max()), msg=n)
    losses = model.losses(batch)[0]
    assert float(losses.sum()) == pytest.approx(total, rel=1e-5)
    model.hidden = None  # seen, they are others
    assert float((model.losses(batch)[0] - losses).abs().max()) > 1e-2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("attention_", ["sdpa", "eager"])
def test_a_position_that_sees_nothing_has_a_finite_loss_and_gradient(precision, attention_, with_hidden, tiny_model):
    rows, examples = with_hidden
    causal = load_base(tiny_model, Settings(), CPU, precision)
    causal.set_attn_implementation(attention_)
    model = Model(causal, add_adapter(causal, Settings(rank=4, alpha=8.0)), CPU, precision)
    hiding(model)
    assert rows[2][0][:2] == [0, 0] and rows[2][1][2] == 1  # what sees nothing predicts a trained token
    found = model.backward(examples.micro_batch(range(len(examples))), 1.0)
    model.idle(backward=True)  # its one token is the hidden one
    assert torch.isfinite(found)
    assert all(bool(torch.isfinite(p.grad).all()) for _, p in model.trained)
    assert any(bool(p.grad.any()) for _, p in model.trained)


def test_idle_passes_are_as_many_with_a_hidden_token(with_hidden, tiny_model):
    _, examples = with_hidden
    model = hiding(fitted(load_base(tiny_model, Settings(), CPU, "fp32")))
    batch = examples.micro_batch(range(len(examples)))
    assert model.passes(batch) == len(list(model._passes(batch)))
