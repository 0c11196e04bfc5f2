"""The build scripts without an engine: errors, what is taken from this machine, what is left out of a layer."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

IMAGES = Path(__file__).parent.parent.parent / "images"


def build(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(IMAGES / "build.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_without_a_client_there_is_one_error(tmp_path: Path):
    done = build(PATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "build: error: there is no docker in PATH\n  install Docker 20.10 or newer\n"


def test_without_an_engine_there_is_one_error(tmp_path: Path):
    client = tmp_path / "docker"
    client.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")
    client.chmod(0o755)
    done = build(PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "build: error: no Docker engine answers: Cannot connect to the Docker daemon",
        "  start dockerd, or point DOCKER_HOST to an engine",
    ]


def test_an_unknown_stage_is_named():
    done = build("merj")
    assert done.returncode == 2
    assert "there is no stage merj" in done.stderr


def test_stages_are_built_after_what_they_stand_on():
    from build import needed

    assert needed(["merge"]) == ["builder", "base", "core", "merge"]
    assert needed(["infer", "merge"]) == ["builder", "base", "core", "torch", "onnx", "merge", "infer"]


def test_only_a_build_without_an_executed_step_counts_as_cached():
    from build import all_cached

    cached = "#5 [parent 1/1] FROM x\n#6 [code 1/2] COPY a b\n#6 CACHED\n#7 [code 2/2] RUN c\n#7 CACHED\n"
    assert all_cached(cached)
    assert not all_cached(cached.replace("#7 CACHED", "#7 DONE 1.0s"))


def test_pip_settings_reach_a_build_but_local_places_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import inputs

    known = {
        "index-url": "https://user:word@index.example/simple", "find-links": f"{tmp_path} file://{tmp_path}",
        "extra-index-url": "file:///somewhere/simple https://more.example/simple", "default-timeout": "60",
    }  # fmt: skip
    monkeypatch.setattr(inputs, "pip_config", lambda: known)
    text, folders = inputs.pip_settings(["https://third.example"], no_index=False)
    assert text.splitlines() == [
        "[global]",
        "index-url = https://user:word@index.example/simple",
        "extra-index-url = https://more.example/simple https://third.example",
        "timeout = 60",
    ]
    assert folders == [tmp_path, tmp_path]


def test_without_pip_settings_a_build_gets_none(monkeypatch: pytest.MonkeyPatch):
    import inputs

    monkeypatch.setattr(inputs, "pip_config", dict)
    assert inputs.pip_settings([], no_index=False) == ("", [])
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    assert inputs.certificates() is None


def test_only_wheels_that_a_lock_names_by_hash_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import inputs

    locks, wheels, client = tmp_path / "locks", tmp_path / "wheels", tmp_path / "docker"
    locks.mkdir()
    wheels.mkdir()
    digest = hashlib.sha256(b"right").hexdigest()
    (locks / "merge.cpu.txt").write_text(f"a-b==1.0 \\\n    --hash=sha256:{digest}\n")
    (wheels / "a_b-1.0+cpu-py3-none-any.whl").write_bytes(b"right")
    (wheels / "a_b-1.0-py3-none-any.whl").write_bytes(b"wrong")
    (wheels / "other-1.0-py3-none-any.whl").write_bytes(b"right")
    client.write_text(f"#!/bin/sh\n[ $1 = import ] && tar -tf - > {tmp_path}/taken\n")
    client.chmod(0o755)
    monkeypatch.setattr(inputs, "LOCKS", locks)
    assert inputs.wheel_image(str(client), inputs.wheels_at_hand([])) == "scratch"
    assert inputs.wheel_image(str(client), inputs.wheels_at_hand([wheels])).startswith("microstages/wheels:")
    assert (tmp_path / "taken").read_text().split() == ["a_b-1.0+cpu-py3-none-any.whl"]


def test_a_layer_adds_only_what_the_parent_lacks():
    from install import missing

    lock = "# title\na==1.0 \\\n    --hash=sha256:00\nb==2.0 \\\n    --hash=sha256:11\n"
    assert missing(lock, {"a": "1.0"}) == "b==2.0 \\\n    --hash=sha256:11\n"
    assert missing(lock, {"a": "1.0", "b": "2.0"}) == ""
    with pytest.raises(SystemExit, match=r"has a 0\.9, the lock 1\.0"):
        missing(lock, {"a": "0.9"})


@pytest.mark.parametrize("version, more", [("2.0+cpu", []), ("2.0", ["nvidia-x==1.0"])])
def test_a_torch_with_cuda_gets_its_libraries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, more: list[str]
):
    import install

    monkeypatch.setattr(install, "DELTA", tmp_path)
    monkeypatch.setattr(install, "PARENT", tmp_path / "parent")
    monkeypatch.setenv("FLAVOR", "cpu")
    asked: list[str] = []

    def locked(entries: str) -> None:
        """What pip does: the distribution is there afterwards."""
        asked.append(entries.split(maxsplit=1)[0])
        folder = tmp_path / install.SITE / "torch.dist-info"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")

    monkeypatch.setattr(install, "locked", locked)
    (tmp_path / "lock").write_text("torch==2.0 --hash=sha256:00\n")
    (tmp_path / "cuda").write_text("nvidia-x==1.0 --hash=sha256:11\ntorch==2.0 --hash=sha256:00\n")
    install.third_party(tmp_path / "lock", tmp_path / "cuda")
    assert asked == ["torch==2.0", *more]


def test_wheels_at_hand_are_linked_with_their_hashes(tmp_path: Path):
    from install import page

    wheel = tmp_path / "a_b-1.0+cpu-py3-none-any.whl"
    wheel.write_bytes(b"right")
    digest = hashlib.sha256(b"right").hexdigest()
    assert f"a_b-1.0%2Bcpu-py3-none-any.whl#sha256={digest}" in page([wheel]).read_text()


def test_what_no_stage_can_use_goes_from_the_record_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import install

    monkeypatch.setattr(install, "DELTA", tmp_path)
    site = tmp_path / install.SITE
    kept = ["numpy/__init__.py", "torch/bin/torch_shm_manager", "bitsandbytes/libbitsandbytes_cuda130.so"]
    gone = ["numpy/lib/tests/test_a.py", "torch/bin/protoc", "torch/bin/test_api", "torch/include/a.h"]
    gone += ["bitsandbytes/libbitsandbytes_cuda118.so", "bitsandbytes/libbitsandbytes_rocm72.so"]
    kept += ["botocore/data/endpoints.json", "botocore/data/s3/service.json", "botocore/data/sso-oidc/service.json"]
    gone += ["botocore/data/ec2/service.json", "botocore/data/s3control/service.json"]
    for name in [*kept, *gone]:
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text("")
    (site / "x.dist-info").mkdir()
    (site / "x.dist-info" / "RECORD").write_text("".join(f"{n},,\n" for n in [*kept, *gone]))
    install.prune("cuda")
    assert [n for n in [*kept, *gone] if (site / n).exists()] == kept
    assert (site / "x.dist-info" / "RECORD").read_text() == "".join(f"{n},,\n" for n in kept)
    install.prune("cpu")
    assert not (site / "bitsandbytes/libbitsandbytes_cuda130.so").exists()
