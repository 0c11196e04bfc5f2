"""An end token that the base model never learned is noticed; one that it knows is not."""

import io
import shutil

import pytest
import torch
from microstages.dataset import load_split
from microstages.reporting import Reporter
from microstages_training import attention
from microstages_training.base import add_adapter, load_base
from microstages_training.batches import Examples
from microstages_training.endtoken import check_end_token, look_at
from microstages_training.model import Model
from microstages_training.settings import Settings
from safetensors.torch import load_file, save_file
from training_data import tones, write

END, NEVER_SEEN = 0, "ÿ"  # the example model's end token; a byte that its pretraining text never had


def said_of(model, folder, rows, end_token_id, tmp_path, **settings):
    attention.register()
    chosen = Settings(rank=2, **settings)
    rows = [([*ids[:-1], end_token_id], trained) for ids, trained in rows]
    dataset = write(tmp_path / "data", folder, rows, end_token=NEVER_SEEN, end_token_id=end_token_id)
    causal = load_base(model, Settings(), torch.device("cpu"), "fp32")
    fitted = Model(causal, add_adapter(causal, chosen), torch.device("cpu"), "fp32")
    fitted.choose()
    words = io.StringIO()
    examples = Examples(load_split(dataset, "train"))
    check_end_token(fitted, examples, dataset.metadata, chosen, Reporter("train", None, words))
    return words.getvalue()


@pytest.fixture
def rows(examples):
    return tones(examples / "tones.jsonl", examples / "tiny-phi3", 24)


def test_the_example_model_s_end_token_is_fine(examples, rows, tmp_path):
    assert said_of(examples / "tiny-phi3", examples / "tiny-phi3", rows, END, tmp_path) == ""


def test_a_cleared_output_row_is_noticed_with_what_to_do(examples, rows, tmp_path):
    base = tmp_path / "cleared"
    shutil.copytree(examples / "tiny-phi3", base)
    tensors = load_file(base / "model.safetensors")
    embeddings = tensors["model.embed_tokens.weight"]
    torch.manual_seed(0)
    embeddings[END] = (torch.randn(embeddings.shape[1]) * 0.02).to(embeddings.dtype)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    said = said_of(base, examples / "tiny-phi3", rows, END, tmp_path)
    assert "looks untrained" in said and "of the usual size" in said
    assert "--modules-to-save lm_head --modules-to-save embed_tokens" in said and "another end token" not in said
    assert "an end token that the model knows" in said


def test_a_token_that_pretraining_never_met_is_noticed(examples, rows, tmp_path):
    from tokenizers import Tokenizer

    token = Tokenizer.from_file(str(examples / "tiny-phi3" / "tokenizer.json")).token_to_id(NEVER_SEEN)
    said = said_of(examples / "tiny-phi3", examples / "tiny-phi3", rows, token, tmp_path)
    assert "looks untrained" in said and "unused tokens have the same output row" in said


def test_nothing_is_said_where_the_output_layer_is_trained_too(examples, rows, tmp_path):
    both = ["lm_head", "embed_tokens"]
    model = examples / "tiny-phi3"
    assert said_of(model, model, rows, 255, tmp_path, modules_to_save=both) == ""


def test_a_row_is_measured_beside_the_others():
    weight = torch.eye(12)
    weight[3] = torch.zeros(12)
    weight[5:11] = torch.ones(12)
    assert look_at(weight, 3).norm == 0.0
    assert look_at(weight, 0).parallel == 0
    assert look_at(weight, 7).parallel == 5
