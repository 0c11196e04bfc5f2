"""What all tests share: the examples, the shared real inputs, a small random model, stages run as programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

pytest_plugins = ("stores.fixtures", "tracking.server", "k8s.fixtures", "browser")

# Many programs share few cores here: their threads wait without spinning. It changes no result.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
Waiter = Callable[[Callable[[], Any]], Any]
STAGES = ("prepare-data", "train-lora", "train-qlora", "merge", "build-onnx", "infer")


# What takes longest begins first, so that files side by side end together.
FIRST = (
    "tests/system/test_docs.py",
    "tests/system/test_containers.py",
    "tests/system/",
    "tests/chaos/",
    "tests/azureml/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = {item: item.path.relative_to(ROOT).as_posix() for item in items if item.path.is_relative_to(ROOT)}
    items.sort(key=lambda item: next((n for n, f in enumerate(FIRST) if names.get(item, "").startswith(f)), len(FIRST)))


@dataclass(frozen=True)
class Result:
    """How a program ended: exit code, the events on its stdout, and its stderr."""

    code: int
    events: list[dict[str, Any]]
    stderr: str

    def event(self, kind: str) -> dict[str, Any]:
        """The last event of a kind."""
        return [e for e in self.events if e["event"] == kind][-1]


@pytest.fixture(scope="session")
def examples() -> Path:
    """The committed examples: `tones.jsonl`, `tiny-phi3`."""
    return EXAMPLES


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real inputs beside the checkout, or the one $MICROSTAGES_SHARED names."""
    folder = Path(os.environ.get("MICROSTAGES_SHARED") or ROOT.parent / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"REAL DATA NOT TESTED: {folder} is not there; set MICROSTAGES_SHARED")
    return folder


NO_ENGINE = "unix:///nonexistent/docker.sock"
ENGINE = os.environ.get("DOCKER_HOST", "")


@dataclass(frozen=True)
class Engine:
    """The Docker engine of this machine: its client and its address."""

    client: Any
    address: str

    @property
    def base(self) -> str:
        """What the stages' images stand on: the BASE that they were made with."""
        labels = self.client.inspect_image("microstages/merge:latest")["Config"]["Labels"]
        return str(labels["org.opencontainers.image.base.name"])


def without_engine(why: str) -> NoReturn:
    """Leave a test out; with $MICROSTAGES_REQUIRE_DOCKER=1 let it fail."""
    if os.environ.get("MICROSTAGES_REQUIRE_DOCKER") == "1":
        pytest.fail(f"containers are not tested: {why}")
    pytest.skip(f"CONTAINERS NOT TESTED: {why}")


@pytest.fixture(scope="session")
def engine() -> Engine:
    """A real Docker engine that has the stages' images. $MICROSTAGES_REQUIRE_DOCKER=1: without one the tests fail."""
    from microstages.errors import UserError

    from runner.executors import engine as module

    hidden, os.environ["DOCKER_HOST"] = os.environ["DOCKER_HOST"], ENGINE
    try:
        client = module.connect()
        for name in STAGES:
            module.image_of(client, name, code_of(name), "cpu")
        return Engine(client, module.address())
    except UserError as error:
        without_engine(f"{error.what} ({error.fix.partition(', or')[0]})")
    finally:
        os.environ["DOCKER_HOST"] = hidden


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Any:
    """What is left out for want of an engine is told in one line, wherever it was asked for."""
    report = (yield).get_result()
    if report.skipped and isinstance(report.longrepr, tuple) and "NOT TESTED" in report.longrepr[2]:
        report.longrepr = (str(ROOT / "tests"), None, report.longrepr[2])


def code_of(stage: str) -> str:
    """The code identity of a stage in this checkout."""
    from runner import stages

    return stages.find(stage, ROOT).code_identity()


@pytest.fixture(scope="session", autouse=True)
def _no_engine() -> None:
    """Only what asks for the engine sees it: `target: auto` runs processes everywhere else."""
    os.environ["DOCKER_HOST"] = NO_ENGINE


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["MICROSTAGES_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["HF_HUB_OFFLINE"] = "1"


def stage_command(name: str) -> list[str]:
    """How a stage is started: its own environment's Python where it has one, else this one."""
    own = ROOT / "stages" / name / ".venv" / "bin" / "python"
    python = str(own) if own.exists() else sys.executable
    return [python, "-m", f"microstages_{name.replace('-', '_')}.cli"]


def run_program(command: list[str], **options: Any) -> Result:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, **options)
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return Result(done.returncode, events, done.stderr)


@pytest.fixture(scope="session")
def run_stage() -> Callable[..., Result]:
    """`run_stage("merge", "--base-model", …)` runs a stage as a program of its own."""

    def run(name: str, *arguments: object, **options: Any) -> Result:
        return run_program([*stage_command(name), *map(str, arguments)], **options)

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Phi-3 of two layers, hidden size 64, untied, with the example model's tokenizer and template."""
    import torch
    from transformers import GenerationConfig, Phi3Config, Phi3ForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=4096, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, original_max_position_embeddings=256, sliding_window=None,
        bos_token_id=1, eos_token_id=0, pad_token_id=0, resid_pdrop=0.0,
    )  # fmt: skip
    model = Phi3ForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[0, 5], pad_token_id=0)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(EXAMPLES / "tiny-phi3" / name, folder / name)
    return folder


@pytest.fixture
def eventually() -> Waiter:
    """Wait until something is true, and return it."""

    def wait(condition: Callable[[], Any]) -> Any:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(0.02)
        raise AssertionError("it never came true")

    return wait
