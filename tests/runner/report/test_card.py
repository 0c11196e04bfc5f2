"""Given a model that is taken out of the store, a card lies beside it that the Hugging Face hub's own library reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

hub = pytest.importorskip("huggingface_hub")


def load(file: Path) -> Any:
    """The card as the hub's library reads it; metadata that it does not know is an error."""
    card = hub.ModelCard.load(file, ignore_metadata_errors=False)
    assert "model-index" not in card.data.to_dict() or card.data.eval_results
    return card


def results(card: Any) -> dict[str, float]:
    return {r.metric_type: r.metric_value for r in card.data.eval_results or ()}


@pytest.fixture(scope="module")
def pulled(made: Any) -> Path:
    done = made.run("pull", "onnx", "merged", "adapter", "data", "out")
    assert done.code == 0, done.err
    assert "onnx: its card is out/onnx/README.md" in done.out
    return Path(made.folder / "out")


def test_the_metadata(pulled: Path) -> None:
    card = load(pulled / "onnx" / "README.md")
    data = card.data
    assert (data.license, data.library_name) == ("mit", "onnxruntime-genai")
    assert data.language is None, "the base's languages are not those of the data"
    assert data.tags == ["microstages", "onnx", "onnxruntime", "int4", "phi3", "qlora"]
    assert data.model_name == "tones-onnx" and results(card) == {"accuracy": 0.5, "loss": 1.5}
    (first, *_) = data.eval_results
    assert (first.dataset_name, first.dataset_type, first.dataset_split) == (
        "rows.jsonl, held-out rows",
        "rows",
        "test",
    )
    assert first.dataset_args["rows"] == 2 and first.dataset_args["digest"].startswith("sha256:")
    assert data.base_model is None  # it was a folder, no model of the hub
    assert "# base_model: owner/name" in (pulled / "onnx" / "README.md").read_text()
    again = hub.ModelCard(f"---\n{data.to_yaml()}\n---\n{card.text}")
    assert results(again) == results(card)


def test_each_form_has_the_figures_of_its_own_answers(pulled: Path) -> None:
    assert results(load(pulled / "merged" / "README.md")) == {"accuracy": 1.0, "loss": 1.5}
    adapter = load(pulled / "adapter" / "README.md")
    assert adapter.data.library_name == "peft" and results(adapter) == {}
    assert not (pulled / "data" / "README.md").exists()  # no model


def test_the_words(pulled: Path, made: Any) -> None:
    text = load(pulled / "onnx" / "README.md").text
    for said in ("base, fine-tuned by QLoRA on rows.jsonl, built for ONNX Runtime GenAI in int4 for CPU",
                 "| accuracy | 0.000 | 0.500 |", "10.0 MB → 3.0 MB",
                 "2 rows that were held out of the training data.\n", "| rank | `8` |", "6.0000 → 0.7500",
                 'tokenizer.encode("Say … plain:")', "4 rows, 19 tokens",
                 "| left out | 3 rows: 1 bad, 2 duplicate |"):  # fmt: skip
        assert said in text, text
    manifest = json.loads((pulled / "onnx" / "artifact.json").read_text())
    assert manifest["digest"] in text and str(made.folder) not in text
    for program in re.findall(r"```python\n(.*?)```", text, re.S):
        compile(program, "README.md", "exec")


def test_the_prompt_that_a_card_shows() -> None:
    from runner.lineage import Node
    from runner.report.card_words import prompt_of, usage

    def node(template: Any) -> Node:
        return Node("somewhere", "sha256:0", "made", "onnx-model", metadata={"template": template})

    own = {"kind": "template", "template": "{b}: {{{a:>8}}} {b}", "completion": "b"}
    pair = {"kind": "templates", "prompt_template": "Q: {a}\nA: ", "completion_template": "{b}"}
    assert prompt_of(node(own), None) == prompt_of(node(own), node(pair)) == "…: {…}"
    assert prompt_of(node(None), node(pair)) == "Q: …\nA: "
    for unknown in (None, "?", {"kind": "chat"}, {"kind": "template", "template": "{", "completion": None}):
        assert prompt_of(node(unknown), None) == "…"
    assert 'tokenizer.encode("…: {…}")' in usage(node(own), None)


def test_the_artifact_is_as_it_was(pulled: Path, made: Any) -> None:
    manifest = json.loads((pulled / "onnx" / "artifact.json").read_text())
    assert "README.md" not in {f["path"] for f in manifest["files"]}
    done = made.run("verify", "--json", "./out/onnx")
    assert done.code == 0 and done.json["ok"]
    store = made.folder / ".runner/store/artifacts"
    assert not list(store.rglob("README.md"))


def test_a_card_that_is_there_stays(pulled: Path, made: Any) -> None:
    card = pulled / "merged" / "README.md"
    before = card.read_text()
    card.write_text("mine\n")
    done = made.run("pull", "merged", "out/merged", "--json")
    assert done.code == 0 and "card" not in done.json[0] and card.read_text() == "mine\n"
    card.unlink()
    assert made.run("pull", "merged", "out/merged", "--json").json[0]["card"] == "out/merged/README.md"
    assert card.read_text() == before


def test_a_card_alone(made: Any) -> None:
    done = made.run("report", "--card", "card")
    assert done.out == "card/README.md\n" and not (made.folder / "card/report.html").exists()
    card = load(made.folder / "card" / "README.md")
    assert results(card) == {"accuracy": 0.5, "loss": 1.5} and card.data.model_name == "tones-onnx"
    assert made.run("report", "--card", "card").code == 0  # its own is written anew
    (made.folder / "card/README.md").write_text("mine\n")
    done = made.run("report", "--card", "card")
    assert done.code == 2 and "was not written here" in done.err
    assert (made.folder / "card/README.md").read_text() == "mine\n"


def test_without_a_word_it_is_of_the_last_run_that_has_a_model(made: Any) -> None:
    made.up("--only", "data", "--force", "--target", "process")
    run = made.run("ps", "--json").json[0]["id"]
    done = made.run("report", "--card", "last")
    assert done.code == 0 and re.search(rf"note: run {run} made no model: this is run \d+$", done.err, re.M), done.err
    assert load(made.folder / "last" / "README.md").data.model_name == "tones-onnx"
    done = made.run("report", str(run), "--card", "none")
    assert done.code == 2 and f"run {run} made no model" in done.err


def test_an_artifact_at_an_address(made: Any, tmp_path: Path) -> None:
    """Without a pipeline: what its manifests tell, as far back as they lie where they were."""
    place = next((made.folder / ".runner/store/artifacts/build").glob("*/*/model"))
    done = made.run("pull", place, tmp_path / "shipped", "-p", "nowhere.yaml")
    assert done.code == 0, done.err
    card = load(tmp_path / "shipped" / "README.md")
    assert card.data.license == "mit" and "fine-tuned by QLoRA" in card.text and "# shipped" in card.text
    assert card.data.eval_results is None
    (tmp_path / "wrong.yaml").write_text("stages: [")  # nor does one that is wrong matter
    done = made.run("pull", place, tmp_path / "again", "-p", tmp_path / "wrong.yaml")
    assert done.code == 0 and (tmp_path / "again" / "README.md").exists() and "warning" not in done.err


def test_what_others_wrote_is_no_markup(hostile: Any) -> None:
    assert hostile.run("report", "--card", "card").code == 0
    text = (hostile.folder / "card" / "README.md").read_text()
    card = load(hostile.folder / "card" / "README.md")
    assert results(card) == {"accuracy": 0.5, "loss": 1.5} and card.data.model_name.startswith("</script>")
    assert card.data.license == "mit"
    shown = MarkdownIt().enable("table").render(card.text)
    assert not re.search(r"<(?!/?(h1|h2|p|table|thead|tbody|tr|th|td|code|pre)\b)", shown), shown
    assert "&lt;script&gt;alert(1)" in shown and shown.count("<table>") == text.count("| --- |\n")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.S)
    compile(program, "README.md", "exec")


def test_a_base_of_the_hub_is_named() -> None:
    from runner.lineage import Node
    from runner.report.card import card

    base = Node("hf://owner/small@0123abc", "sha256:b", "outside")
    data = Node("hf://datasets/owner/rows@1/train.jsonl", "sha256:d", "outside")
    dataset = Node("/x/dataset", "sha256:e", "made", "dataset", inputs={"source": data, "model": base})
    adapter = Node("/x/adapter", "sha256:a", "made", "adapter", metadata={"method": "lora"},
                   inputs={"dataset": dataset, "base_model": base})  # fmt: skip
    merged = Node("/x/model", "sha256:m", "made", "model", inputs={"base_model": base, "adapter": adapter})
    onnx = Node("/x/onnx", "sha256:o", "made", "onnx-model", metadata={"precision": "int4"}, inputs={"model": merged})
    wanted = {"adapter": (adapter, "adapter"), "model": (merged, "finetune"), "onnx-model": (onnx, "quantized")}
    for node, relation in wanted.values():
        read = hub.ModelCard(card("name", node, []))
        assert read.data.base_model == "owner/small" and read.data.to_dict()["base_model_relation"] == relation
        assert read.data.datasets == ["owner/rows"]
    assert '"owner/small"' in card("name", adapter, [])


@pytest.mark.parametrize(
    "front", ["date: 2024-02-30", "a: " + "[" * 5000, "license: [", "a: \x07", "license: mit\ndate: 2024-01-30"],
    ids=["no such day", "deep", "half", "control", "right"],
)  # fmt: skip
def test_a_base_whose_own_card_cannot_be_read_has_no_license(tmp_path: Path, front: str) -> None:
    from runner.lineage import Node
    from runner.report.card import card

    (tmp_path / "README.md").write_text(f"---\n{front}\n---\nA base.\n")
    base = Node(str(tmp_path), "sha256:b", "outside")
    read = hub.ModelCard(card("name", Node("/x", "sha256:m", "made", "model", inputs={"base_model": base}), []))
    assert read.data.license == ("mit" if "mit" in front else None)


def test_what_cannot_be_told_is_no_failure_of_the_copy(fresh: Any) -> None:
    fresh.up()
    done = fresh.run("pull", "onnx", "out", environment={"PYTHONWARNINGS": "ignore"})
    assert done.code == 0 and (fresh.folder / "out/README.md").exists()
    model = next((fresh.folder / ".runner/store/artifacts/train").glob("*/*/adapter/artifact.json"))
    model.write_text("{")  # behind it, damaged
    place = next((fresh.folder / ".runner/store/artifacts/build").glob("*/*/model"))
    done = fresh.run("pull", place, "again")
    assert done.code == 0, done.err
    assert load(fresh.folder / "again" / "README.md").data.library_name == "onnxruntime-genai"
