"""Every stage has both flavours' hash locks, with the versions of its `lock.txt` and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import STAGES

ROOT = Path(__file__).parent.parent.parent
IMAGES = ROOT / "images"
PAIRS = [(s, f) for s in STAGES for f in ("cpu", "cuda")]
GPU = {"onnxruntime": "onnxruntime-gpu", "onnxruntime-genai": "onnxruntime-genai-cuda"}


def locked(stage: str, flavor: str) -> dict[str, str]:
    """Name -> version, read with nothing but a regular expression."""
    text = (IMAGES / "locks" / f"{stage}.{flavor}.txt").read_text()
    return dict(re.findall(r"(?m)^([\w.-]+)==(\S+)", text))


def wanted(stage: str) -> dict[str, str]:
    text = (ROOT / "stages" / stage / f"microstages_{stage.replace('-', '_')}" / "lock.txt").read_text()
    return dict(line.split("==") for line in text.split())


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The locks in a folder of the test's own, which pin.py then checks instead."""
    import pin

    folder = tmp_path / "locks"
    folder.mkdir()
    for file in (IMAGES / "locks").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(pin, "LOCKS", folder)
    assert pin.faults() == []
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_the_cpu_lock_is_lock_txt(stage: str):
    assert locked(stage, "cpu") == wanted(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_the_cuda_lock_is_lock_txt_with_the_gpu_packages_and_their_libraries(stage: str):
    have, want = locked(stage, "cuda"), {GPU.get(n, n): v for n, v in wanted(stage).items()}
    assert {n: v for n, v in have.items() if n in want} == want
    libraries = set(have) - set(want)
    assert all(n.startswith(("nvidia-", "cuda-", "triton")) for n in libraries)
    assert bool(libraries) == ("torch" in want)
    assert not {"onnxruntime", "onnxruntime-genai"} & set(have), "never the CPU and the GPU package in one image"


@pytest.mark.parametrize("stage, flavor", PAIRS)
def test_everything_has_a_hash(stage: str, flavor: str):
    text = (IMAGES / "locks" / f"{stage}.{flavor}.txt").read_text()
    entries = re.split(r"(?m)^(?=[a-z0-9])", text)[1:]
    assert len(entries) == len(locked(stage, flavor))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}$", e.strip()) for e in entries)


def test_only_qlora_has_bitsandbytes_and_only_four_have_torch():
    for flavor in ("cpu", "cuda"):
        assert {s for s in STAGES if "bitsandbytes" in locked(s, flavor)} == {"train-qlora"}
        with_torch = {s for s in STAGES if "torch" in locked(s, flavor)}
        assert with_torch == {"train-lora", "train-qlora", "build-onnx", "infer"}


def test_every_stage_has_the_drivers_of_all_stores_and_the_runner_alone_has_none():
    from layers import FLAVORS, LOCKS, read_lock
    from lock import closure

    drivers = {"adlfs", "s3fs", "gcsfs", "huggingface-hub"}
    for flavor in FLAVORS:
        assert drivers <= set(read_lock(LOCKS / f"core.{flavor}.txt"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    alone = closure(project["dependencies"])
    assert not {*drivers, "aiohttp", "botocore", "azure-core", "grpcio"} & set(alone)
    extras = project["optional-dependencies"]
    assert {name: drivers & set(closure(extras[name])) for name in extras} == {
        "azure": {"adlfs"}, "s3": {"s3fs"}, "gcs": {"gcsfs"}, "hf": {"huggingface-hub"}, "stores": drivers,
        "kubernetes": set(),
    }  # fmt: skip


def test_the_cpu_lock_takes_torch_without_cuda_or_the_general_wheel():
    from layers import LOCKS, read_lock

    general, cpu = (read_lock(LOCKS / f"torch.{f}.txt")["torch"][1] for f in ("cuda", "cpu"))
    assert len(general) == 1 and len(cpu) == 2
    assert set(general) < set(cpu)


def test_check_passes_on_what_is_committed():
    done = subprocess.run([sys.executable, IMAGES / "pin.py", "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_check_finds_another_version(copy: Path):
    import pin

    file = copy / "merge.cpu.txt"
    file.write_text(re.sub(r"numpy==\S+", "numpy==1.0.0", file.read_text()))
    assert any("merge.cpu.txt: numpy 1.0.0, lock.txt:" in fault for fault in pin.faults())


def test_check_finds_what_is_missing_and_what_is_too_much(copy: Path):
    import pin

    (copy / "infer.cuda.txt").unlink()
    (copy / "other.cpu.txt").write_text("")
    file = copy / "merge.cpu.txt"
    file.write_text(file.read_text() + "left-pad==1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n")
    found = " ".join(pin.faults())
    assert "infer.cuda.txt is missing" in found
    assert "left-pad is not in lock.txt" in found


def test_check_finds_a_stale_layer(copy: Path):
    import pin

    file = copy / "core.cpu.txt"
    file.write_text(file.read_text().replace("numpy==", "numpie=="))
    assert "core.cpu.txt is stale" in pin.faults()


def test_a_layer_is_in_the_locks_of_all_stages_above_it():
    from layers import FLAVORS, LAYERS, LOCKS, PARENTS, read_lock

    for flavor in FLAVORS:
        for layer, members in LAYERS.items():
            own = read_lock(LOCKS / f"{layer}.{flavor}.txt")
            assert own
            for stage in members:
                assert own.items() <= read_lock(LOCKS / f"{stage}.{flavor}.txt").items()
                below, chain = stage, set()
                while below in PARENTS:
                    below = PARENTS[below]
                    chain.add(below)
                assert layer in chain
