"""The images as they run: what they say they are, what they hold, as whom they work, and that they work."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import STAGES, Result

ROOT = Path(__file__).parent.parent.parent
SBOM = "/usr/share/microstages/sbom.cdx.json"
each_stage = pytest.mark.parametrize("image", STAGES, indirect=True)

LEFT_OVER = """
import glob, json, os, stat
found = []
for path in ("/build", "/delta", "/deltas", "/parent", "/wheels", "/root/.cache", "/tmp/.cache", "/run/secrets"):
    found += [path] if os.path.exists(path) and (not os.path.isdir(path) or os.listdir(path)) else []
for pattern in ("/var/lib/apt/lists/*", "/var/cache/apt/*", "/tmp/*", "/usr/share/man/*", "/usr/share/python-wheels/*"):
    found += glob.glob(pattern)
tools = {"gcc", "g++", "cc", "c++", "cpp", "ld", "as", "make", "cmake", "pip", "pip3", "protoc", "nvcc", "git", "curl"}
for top, folders, files in os.walk("/"):
    folders[:] = [f for f in folders if os.path.join(top, f) not in ("/proc", "/sys", "/dev")]
    for name in [*files, *folders]:
        path = os.path.join(top, name)
        mode = os.lstat(path).st_mode
        if name in tools and stat.S_ISREG(mode) and mode & 0o111 or name.endswith(".whl") or name.startswith("pip-"):
            found.append(path)
        if stat.S_ISREG(mode) and mode & 0o6000:
            found.append("setuid: " + path)
        if not stat.S_ISLNK(mode) and mode & 0o002 and not mode & 0o1000:
            found.append("anyone can write: " + path)
        if path.startswith("/opt") and not mode & 0o004:
            found.append("not everyone can read: " + path)
print(json.dumps(found))
"""
BROKEN = """
import json
from importlib.metadata import distributions
print(json.dumps([str(f) for d in distributions() for f in d.files or [] if not f.locate().exists()]))
"""
PACKAGES = """
import json
from importlib.metadata import distributions
print(json.dumps({d.metadata["Name"]: d.version for d in distributions()}))
"""


@each_stage
def test_labels_say_interface_and_code(image: Any):
    from build import code_of
    from layers import interface

    assert json.loads(image.labels["microstages.interface"]) == interface(image.stage)
    assert image.labels["microstages.code"] == code_of(image.stage)
    assert image.labels["microstages.stage"] == image.stage
    assert image.labels["microstages.flavor"] == "cpu"
    assert image.labels["org.opencontainers.image.version"] == interface(image.stage)["version"]


@each_stage
def test_the_code_inside_is_the_code_of_the_checkout(image: Any):
    package = f"microstages_{image.stage.replace('-', '_')}"
    inside = image.python(f"from {package}.cli import main; print(main.code_identity())").strip()
    assert inside == image.labels["microstages.code"]


@each_stage
@pytest.mark.parametrize("user", ["", "4242:4242"])
def test_it_describes_itself_as_anyone_read_only_without_capabilities_and_network(image: Any, user: str):
    done = image.run("describe", user=user)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / "stages" / image.stage / "interface.json").read_text()


@each_stage
def test_it_is_nobody_by_default(image: Any):
    assert image.facts["Config"]["User"] == "10001:10001"
    assert image.facts["Config"]["Entrypoint"] == [image.stage]


@each_stage
def test_no_compiler_no_pip_no_cache_no_secret_is_left(image: Any):
    assert json.loads(image.python(LEFT_OVER)) == []


@each_stage
def test_no_certificate_of_the_build_and_no_local_place_is_left(image: Any):
    history = image.docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image.name).stdout
    assert not re.search(r"https?://|--find-links /(?!wheels)|pip\.conf", history)


@each_stage
def test_every_file_that_a_distribution_lists_is_there(image: Any):
    assert json.loads(image.python(BROKEN)) == []


@each_stage
def test_the_sbom_lists_what_is_locked_and_what_is_installed(image: Any):
    from bom_rules import check_schema, faults
    from layers import pins

    document = json.loads(image.python(f"print(open({SBOM!r}).read())"))
    assert faults(document) == []
    components = [document["metadata"]["component"], *document["components"]]
    listed = {c["name"]: c["version"].partition("+")[0] for c in components if c["purl"].startswith("pkg:pypi/")}
    installed = {re.sub(r"[-_.]+", "-", n).lower(): v for n, v in json.loads(image.python(PACKAGES)).items()}
    assert listed == {n: v.partition("+")[0] for n, v in installed.items()}
    assert pins(image.stage).items() <= listed.items()
    ours = (
        ("microstages",) if "+cpu" in installed.get("torch", "+cpu") else ("microstages", "nvidia-", "cuda-", "triton")
    )
    assert [n for n in set(listed) - set(pins(image.stage)) if not n.startswith(ours)] == []
    count = image.python("import re; print(open('/var/lib/dpkg/status').read().count('Status: install ok installed'))")
    assert sum(c["purl"].startswith("pkg:deb/") for c in components) == int(count) > 50
    try:
        import cyclonedx
    except ImportError:
        return
    check_schema(Path(cyclonedx.__file__).parent, document)


@pytest.mark.parametrize("image", ["train-lora"], indirect=True)
def test_torch_is_without_cuda_where_such_a_wheel_is_at_hand(image: Any):
    from inputs import pip_settings, wheels_at_hand

    at_hand = wheels_at_hand(pip_settings([], no_index=False)[1]).values()
    if any(w.name.startswith("torch-") for w in at_hand):
        assert "+cpu" in image.python("from importlib.metadata import version; print(version('torch'))")
        assert image.facts["Size"] < 1_200_000_000


def test_images_share_their_large_layers(images: Callable[[str], Any]):
    layers = {s: images(s).facts["RootFS"]["Layers"] for s in STAGES}
    with_torch = ("train-lora", "train-qlora", "build-onnx", "infer")

    def shared(*stages: str) -> int:
        """How many layers from the bottom are the same."""
        rows = list(zip(*(layers[s] for s in stages), strict=False))
        return next((i for i, row in enumerate(rows) if len(set(row)) > 1), len(rows))

    core = shared(*STAGES)
    assert core >= 2, "system and core"
    assert shared(*with_torch) > core
    assert shared("build-onnx", "infer") > shared(*with_torch)
    for stage in STAGES:
        sizes = images(stage).docker("history", "--format", "{{.Size}}", "--human=false", images(stage).name).stdout
        of_code = next(int(size) for size in sizes.split() if int(size))
        assert of_code < 1_500_000, "a change of a stage's code adds a thin layer"


def test_merge_in_a_container_makes_what_the_process_makes(
    images: Callable[[str], Any], tiny_model: Path, tmp_path: Path, run_stage: Callable[..., Result]
):
    adapter = tmp_path / "adapter"
    save_adapter(tiny_model, adapter)
    beside = run_stage("merge", "--base-model", tiny_model, "--adapter", adapter, "--output", tmp_path / "process")
    assert beside.code == 0, beside.stderr
    for folder in (tmp_path, tiny_model, tiny_model.parent):
        folder.chmod(0o755)
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    outputs.chmod(0o777)
    mounts = (
        "--mount", f"type=bind,source={tiny_model},target=/in/model,readonly",
        "--mount", f"type=bind,source={adapter},target=/in/adapter,readonly",
        "--mount", f"type=bind,source={outputs},target=/out",
    )  # fmt: skip
    arguments = ("--base-model", "/in/model", "--adapter", "/in/adapter", "--output", "/out/model")
    done = images("merge").run(*arguments, options=mounts)
    assert done.returncode == 0, done.stderr
    event = next(e for line in done.stdout.splitlines() if (e := json.loads(line))["event"] == "artifact")
    assert event["digest"] == beside.event("artifact")["digest"]
    written = outputs / "model" / "artifact.json"
    assert written.stat().st_uid == 10001
    process = json.loads((tmp_path / "process" / "artifact.json").read_text())["provenance"]
    inside = json.loads(written.read_text())["provenance"]
    assert inside["fingerprint"] == process["fingerprint"]
    assert inside["code"] == process["code"] == images("merge").labels["microstages.code"]


def save_adapter(base: Path, adapter: Path) -> None:
    """A LoRA adapter that PEFT makes, all weights away from their start, readable by everyone."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["qkv_proj", "down_proj"], task_type="CAUSAL_LM")
    peft = get_peft_model(model, config)
    for p in peft.parameters():
        if p.requires_grad:
            p.data += (torch.randn_like(p, dtype=torch.float32) * 0.05).to(p.dtype)
    peft.save_pretrained(adapter)
    for folder in (adapter, base):
        for file in folder.iterdir():
            os.chmod(file, 0o644)


@pytest.mark.parametrize("image", ["infer"], indirect=True)
def test_a_model_answers_in_a_read_only_container(image: Any, examples: Path):
    mounts = ("--mount", f"type=bind,source={examples},target=/examples,readonly", "--tmpfs", "/tmp")
    prompt = ("--model", "/examples/tiny-phi3", "--prompt", "The old man opened the door and", "--max-new-tokens", "8")
    done = image.run(*prompt, options=mounts, user="4242:4242")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("image", ["infer"], indirect=True)
def test_a_model_is_served_as_documented_to_who_has_the_key(
    image: Any, examples: Path, eventually: Any, monkeypatch: pytest.MonkeyPatch
):
    """The command of the stage's README, with a model of here and a free port of this machine."""
    text = (ROOT / "stages/infer/README.md").read_text().replace("\\\n", " ")
    (written,) = re.findall(r"^ +docker run (.*--serve .*)$", text, flags=re.M)
    here = {
        "8080:8080": "127.0.0.1::8080", "$PWD:/data:ro": f"{examples}:/data:ro", "$(id -u):$(id -g)": "4242:4242",
        "microstages/infer": image.name, "out/onnx": "tiny-phi3",
    }  # fmt: skip
    words = [here.get(word, word) for word in shlex.split(written)]
    assert set(here.values()) <= set(words)
    key, name = secrets.token_hex(24), f"microstages-test-{secrets.token_hex(4)}"
    monkeypatch.setenv("MICROSTAGES_API_KEY", key)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(image.docker, "run", "--name", name, *words)
        try:
            eventually(lambda: ended.done() or '"event": "ready"' in image.docker("logs", name).stdout)
            assert not ended.done(), ended.result().stderr
            address = image.docker("port", name, "8080/tcp").stdout.strip()
            assert address.startswith("127.0.0.1:")
            for path, given, status in (
                ("models", "", 401), ("models", f"{key}0", 401), ("models", key, 200), ("completions", key, 200)
            ):  # fmt: skip
                asked = json.dumps({"prompt": "The old man", "max_tokens": 8}) if path == "completions" else None
                connection = http.client.HTTPConnection(address, timeout=60)
                head = {"Authorization": f"Bearer {given}"} if given else {}
                connection.request("POST" if asked else "GET", f"/v1/{path}", asked, head)
                answer = connection.getresponse()
                value = json.loads(answer.read())
                connection.close()
                assert answer.status == status, value
            assert value["choices"][0]["text"] and value["usage"]["completion_tokens"] == 8
            assert image.docker("kill", "--signal", "TERM", name).returncode == 0
            done = ended.result(60)
        finally:
            image.docker("rm", "--force", name)
    assert done.returncode == 143 and "stopping: 0 requests may end" in done.stderr
    assert key not in done.stdout + done.stderr
