"""What a merge writes beside the sums: files, layout, types, settings, and always the same bytes in little memory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

MIXED = {"use_dora": True, "modules_to_save": ["norm"], "target_modules": ["qkv_proj", "down_proj", "embed_tokens"]}


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "artifact.json").read_text())


def test_what_does_not_change_is_copied_byte_for_byte(train: Callable[..., Any], merge: Callable[..., Path]) -> None:
    trained = train()
    # a config that a library would write in another way, a template, a licence, and what must not go along
    config = json.loads((trained.base / "config.json").read_text())
    config["rope_scaling"] = {"long_factor": [1.0, 1.10], "short_factor": [1.0, 1.00], "type": "longrope"}
    (trained.base / "config.json").write_text(json.dumps(config, indent=3).replace("1.1,", "1.10,"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE", "modeling_phi3.py"):
        (trained.base / name).write_text(f'{{"file": "{name}"}}')
    (trained.base / "additional_chat_templates").mkdir()
    (trained.base / "additional_chat_templates" / "tools.jinja").write_text("tools")
    for name in ("README.md", "pytorch_model.bin", "model.gguf", "onnx/model.onnx", "original/params.json"):
        (trained.base / name).parent.mkdir(exist_ok=True)
        (trained.base / name).write_text("not this")
    folder = merge(trained, "--allow-other-base")
    written = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {".verified.json"}
    assert written == {
        "artifact.json", "model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja", "LICENSE", "modeling_phi3.py",
        "additional_chat_templates/tools.jinja",
    }  # fmt: skip
    for name in written - {"artifact.json", "model.safetensors"}:
        assert (folder / name).read_bytes() == (trained.base / name).read_bytes(), name
    assert os.stat(folder / "model.safetensors").st_mode & 0o777 == 0o644


def test_tokenizer_of_the_adapter_wins(train: Callable[..., Any], merge: Callable[..., Path]) -> None:
    trained = train()
    (trained.base / "tokenizer.json").write_text('{"of": "base"}')
    (trained.base / "tokenizer_config.json").write_text('{"of": "base"}')
    (trained.base / "chat_template.jinja").write_text("base")
    (trained.adapter / "tokenizer.json").write_text('{"of": "adapter", "added_tokens": [{"id": 95}]}')
    (trained.adapter / "tokenizer_config.json").write_text('{"chat_template": "adapter"}')
    folder = merge(trained)
    assert json.loads((folder / "tokenizer.json").read_text())["of"] == "adapter"
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {"chat_template": "adapter"}
    assert not (folder / "chat_template.jinja").exists(), "the base's template would hide the adapter's"


def test_shards_stay_as_they_are(train: Callable[..., Any], merge: Callable[..., Path]) -> None:
    trained = train(tied=True, shards="60KB")
    before = sorted(p.name for p in trained.base.glob("*.safetensors"))
    assert len(before) > 1
    folder = merge(trained)
    assert sorted(p.name for p in folder.glob("*.safetensors")) == before
    index = "model.safetensors.index.json"
    assert (folder / index).read_bytes() == (trained.base / index).read_bytes()


def test_new_tensor_and_new_shapes_are_in_the_index(
    train: Callable[..., Any], merge: Callable[..., Path], tensors: Callable[..., Any]
) -> None:
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    trained = train(tied=True, rows=104, shards="60KB", modules_to_save=["embed_tokens"])
    folder = merge(trained)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, "pt") as f:
            assert name in f.keys() and f.metadata() == {"format": "pt"}  # noqa: SIM118
    everything = tensors(folder)
    assert everything.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in everything.values())
    assert everything["lm_head.weight"].shape == everything["model.embed_tokens.weight"].shape == (104, 64)
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())


@pytest.mark.parametrize(("dtype", "kind"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_type_of_the_weights(
    dtype: str, kind: str, train: Callable[..., Any], merge: Callable[..., Path], tensors: Callable[..., Any]
) -> None:
    trained = train(dtype="bfloat16")
    folder = merge(trained, "--dtype", dtype)
    exact = tensors(merge(trained, "--dtype", "fp32", name="exact"))
    for name, t in tensors(folder).items():
        assert t.dtype == getattr(torch, kind)
        assert torch.equal(t, exact[name].to(t.dtype)), "one rounding of the fp32 sum"
    config = json.loads((folder / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == kind


@pytest.mark.parametrize(
    ("ends", "stops", "expected"),
    [(2, [2], 2), (2, [2, 7], [2, 7]), ([2, 5], [7], [2, 5, 7]), (None, [7], 7)],
)
def test_generation_stops_at_the_tokens_that_were_trained(
    ends: Any,
    stops: list[int],
    expected: Any,
    train: Callable[..., Any],
    merge: Callable[..., Path],
    as_artifact: Callable[..., None],
) -> None:
    trained = train()
    given = {"temperature": 0.5, "eos_token_id": ends} if ends is not None else {"temperature": 0.5}
    before = json.dumps(given)
    (trained.base / "generation_config.json").write_text(before)
    config = json.loads((trained.base / "config.json").read_text()) | {"eos_token_id": ends}
    (trained.base / "config.json").write_text(json.dumps(config))
    as_artifact(trained.adapter, stop_token_ids=stops, end_token="<|end|>")
    folder = merge(trained)
    after = (folder / "generation_config.json").read_text()
    assert json.loads(after)["eos_token_id"] == expected
    assert json.loads(after)["temperature"] == 0.5
    assert after == before or expected != ends
    assert manifest(folder)["metadata"]["stop_token_ids"] == stops


def test_metadata_says_what_made_the_model(
    train: Callable[..., Any], merge: Callable[..., Path], as_artifact: Callable[..., None]
) -> None:
    from microstages.artifact import open_artifact

    trained = train()
    template = {"kind": "template", "text": "{a}"}
    as_artifact(trained.adapter, base_model=open_artifact(str(trained.base), ["model"]).digest, template=template)
    metadata = manifest(merge(trained))["metadata"]
    assert metadata["base_model"] == {"digest": open_artifact(str(trained.base), ["model"]).digest}
    assert metadata["adapter"] == {"digest": open_artifact(str(trained.adapter), ["adapter"]).digest}
    assert metadata["template"] == template
    assert metadata["base"] == "original"
    assert metadata["tensors"]["adapted"] == 4


def test_result_does_not_depend_on_threads_or_blocks(
    train: Callable[..., Any], merge: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train(**MIXED)
    digests = {manifest(merge(trained, "--threads", str(n), name=f"t{n}"))["digest"] for n in (1, 2, 5)}
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    digests.add(manifest(merge(trained, name="again"))["digest"])
    assert len(digests) == 1


PRODUCTS = """
from microstages_merge.cli import set_blas
set_blas()
import numpy as np
from microstages_merge.compute import product
def times(left, right):
    return product(left, right, np.empty((len(left), right.shape[1]), np.float32))
random = np.random.default_rng(0)
for rank in (1, 4, 16, 64, 200):
    b = random.standard_normal((300, rank), dtype=np.float32)
    a = random.standard_normal((rank, 1000), dtype=np.float32)
    whole = times(b, a)
    for step in (1, 2, 7, 64, 299):
        parts = np.concatenate([times(b[i : i + step], a) for i in range(0, 300, step)])
        assert np.array_equal(parts, whole), (rank, step)
        turned = np.concatenate([times(a[:, i : i + step].T, b.T) for i in range(0, 1000, step)])
        assert np.array_equal(turned, whole.T), (rank, step, "transposed")
    np.savez(f"{rank}.npz", a=a, b=b, whole=whole)
"""


def test_blocks_of_rows_have_the_bits_of_torchs_whole_product(tmp_path: Path) -> None:
    """In a process of its own: how numpy multiplies is settled when it is imported."""
    import subprocess

    import numpy as np

    if "avx512f" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("OpenBLAS multiplies in torch's order only with AVX-512")
    subprocess.run([sys.executable, "-c", PRODUCTS], cwd=tmp_path, check=True)
    for rank in (1, 4, 16, 64):  # MKL cuts longer sums in two
        saved = np.load(tmp_path / f"{rank}.npz")
        expected = torch.from_numpy(saved["b"]) @ torch.from_numpy(saved["a"])
        assert np.array_equal(saved["whole"], expected.numpy()), rank


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A weight of 400 MB in one tensor, beside many small ones: the process stays below 150 MB."""
    import numpy as np
    from microstages.tensors import header

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    rows, cols, rank = 100_000, 2000, 8
    layout = [("model.embed_tokens.weight", "BF16", (rows, cols)), ("model.norm.weight", "BF16", (cols,))]
    with (base / "model.safetensors").open("wb") as f:
        f.write(header(layout, {"format": "pt"}))
        block = np.full(cols * 1000, 0x3F80, np.uint16)  # ones
        for _ in range(rows // 1000):
            f.write(block)
        f.write(block[:cols])
    (base / "config.json").write_text(
        json.dumps({"model_type": "phi3", "vocab_size": rows, "tie_word_embeddings": True})
    )
    from safetensors.torch import save_file

    name = "base_model.model.model.embed_tokens.lora_embedding"
    factors = {f"{name}_A": torch.ones(rank, rows), f"{name}_B": torch.full((cols, rank), 0.25)}
    save_file(factors, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "ensure_weight_tying": True}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    probe = (
        "import resource, sys; from microstages_merge.cli import main; code = main.main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr);"
        "print('torch' in sys.modules or 'transformers' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    import subprocess

    command = [sys.executable, "-c", probe, "--base-model", base, "--adapter", adapter, "--output", tmp_path / "out"]
    # a program started from here would inherit the peak of this process: a shell in between does not
    done = subprocess.run(["sh", "-c", '"$@"', "sh", *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak, heavy = done.stderr.split()[-2:]
    assert heavy == "False"
    assert int(peak) * 1024 < 150e6
    with (tmp_path / "out" / "model.safetensors").open("rb") as f:
        f.seek(len(header(layout, {"format": "pt"})))
        assert np.array_equal(np.frombuffer(f.read(2000), np.uint16), np.full(1000, 0x4040, np.uint16))  # 1 + 8/4 = 3
