"""docs/reference is what the interfaces, the pipeline's schema and the runner's parser say."""

import importlib.util
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs/reference"


@pytest.fixture
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_reference", ROOT / "docs/reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_current(generator: ModuleType, capsys: pytest.CaptureFixture[str]):
    code = generator.main(["--check"])
    assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize("file", sorted((ROOT / "stages").glob("*/interface.json")), ids=lambda f: f.parent.name)
def test_a_stage_page_holds_all_that_its_interface_says(file: Path):
    interface = json.loads(file.read_text())
    page = (PAGES / f"{interface['name']}.md").read_text()
    for part in ("inputs", "outputs", "params"):
        for name, value in interface[part].items():
            row = re.search(rf"^\| `{name}` \|.*$", page, re.M)
            assert row, f"{part} {name}"
            for word in value.get("help", "").replace("|", " ").replace("<", " ").split():
                assert word in row[0]
            for choice in value.get("choices", ()):
                assert f"`{choice}`" in row[0]


def keys(node: Any) -> set[str]:
    """The names of all properties that a schema lets a person write, of stages and targets too."""
    if isinstance(node, list):
        return {k for part in node for k in keys(part)}
    if not isinstance(node, dict):
        return set()
    own = set(node.get("properties", ())) if isinstance(node.get("properties"), dict) else set()
    return own | {k for name, part in node.items() if name not in ("if", "then", "else") for k in keys(part)}


def test_the_page_of_the_pipeline_has_every_key(generator: ModuleType):
    schema = json.loads((ROOT / "runner/pipeline.schema.json").read_text())
    page = (PAGES / "pipeline.md").read_text()
    top = {k: v for k, v in schema["$defs"].items() if k in generator.SECTIONS}
    wanted = keys(schema["properties"]) | keys(list(top.values()))
    assert {"uses", "timeout", "namespace", "maximize", "max_backoff"} <= wanted
    missing = {k for k in wanted if not re.search(rf"`([a-z_]+\.)*{k}`", page)}
    assert not missing


def test_the_page_of_the_runner_has_every_command_and_option():
    from runner import cli

    page = (PAGES / "runner.md").read_text()
    for function in cli.COMMANDS:
        assert f"\n## {function.__name__.rstrip('_')}\n" in page
    for option in ("--set KEY=VALUE", "--keep-runs N", "--from-olive CONFIG", "--older-than TIME"):
        assert f"`{option}`" in page


def test_a_changed_interface_makes_a_page_stale(
    generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    # given the tree in another place, with pages that are current
    ignore = shutil.ignore_patterns(".venv", "__pycache__", "*.egg-info", "build")
    for part in ("stages", "runner", "docs/reference"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=ignore)
    monkeypatch.setattr(generator, "ROOT", tmp_path)
    monkeypatch.setattr(generator, "HERE", tmp_path / "docs/reference")
    generator.main([])
    assert generator.main(["--check"]) == 0
    capsys.readouterr()
    # when a parameter gets another default, and a page of nothing lies there
    file = tmp_path / "stages/merge/interface.json"
    interface = json.loads(file.read_text())
    interface["params"]["dtype"]["default"] = "fp32"
    file.write_text(json.dumps(interface))
    (tmp_path / "docs/reference/gone.md").write_text("# gone\n")
    # then both are named, and writing makes both right
    assert generator.main(["--check"]) == 1
    said = capsys.readouterr().err
    assert "docs/reference/merge.md" in said
    assert "docs/reference/gone.md" in said
    assert "make interfaces" in said
    assert generator.main([]) == 0
    assert "\n| `dtype` | string | `fp32` |" in (tmp_path / "docs/reference/merge.md").read_text()
    assert not (tmp_path / "docs/reference/gone.md").exists()


def test_every_variable_of_our_own_is_explained():
    page = (ROOT / "docs/environment.md").read_text()
    sources = [f for folder in ("runner", "stages") for f in (ROOT / folder).rglob("*.py") if ".venv" not in f.parts]
    used = {v for f in sources for v in re.findall(r"\bMICROSTAGES_[A-Z_]+\b", f.read_text())}
    assert {"MICROSTAGES_CACHE", "MICROSTAGES_NODES"} <= used
    assert not {v for v in used if f"`{v}`" not in page}
