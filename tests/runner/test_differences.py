"""What differs between two runs, tags or artifacts, and what is the same."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
from terminal import Terminal

from runner.differences import Made, Side, as_data, compare
from runner.differences_text import as_text
from runner.history import History

DATA = """
import sys
from microstages.artifact import Draft, open_artifact
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
with Draft(flags["out"], "dataset") as draft:
    text = open(flags["source"]).read()
    (draft.path / "rows").write_text(text)
    draft.metadata |= {"train": {"rows": len(text.split()), "tokens": 3 * len(text.split())}, "max_length": 8}
    made = {"source": {"uri": flags["source"], "digest": open_artifact(flags["source"], ["files"]).digest}}
    draft.commit({"stage": "data", "software": {"python": "3"}, "params": {}, "inputs": made})
"""
TRAIN = """
import os, sys
from microstages.artifact import Draft, open_artifact
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
with Draft(flags["out"], "adapter") as draft:
    data = open_artifact(flags["x"], ["dataset"])
    rows = len(data.file("rows").read_text().split())
    (draft.path / "w").write_text(str(int(flags["rank"]) * rows))
    draft.metrics |= {"eval_loss": 1 / int(flags["rank"]), "accuracy": 0.5, "deep": {"kl": rows / 10}, "seconds": 1.0}
    made = {"x": {"uri": data.uri, "digest": data.digest}}
    draft.commit({"stage": "train", "software": {"torch": os.environ["TORCH"]}, "hardware": {"cores": 2},
                  "version": "1", "params": {"rank": int(flags["rank"])}, "inputs": made})
"""


@pytest.fixture(scope="module")
def runs(module_project: Any) -> Any:
    """Run 1, tagged v1; run 2 with another rank, library and one more row; run 3 just like run 2; run 4 fails."""
    p = module_project
    p.stage("data", "", command=[sys.executable, "./tool.py"], inputs={"source": ["files"]}, manifest="stage")
    p.stage("train", "", command=[sys.executable, "./tool.py"], inputs={"x": ["dataset"]}, manifest="stage",
            outputs={"out": "adapter"}, params={"rank": {"type": "integer", "default": 4}})  # fmt: skip
    p.stage("side", 'echo same > "$out/x"', params={"n": {"type": "integer", "default": 1}})
    (p.folder / "data/tool.py").write_text(DATA)
    (p.folder / "train/tool.py").write_text(TRAIN)
    (p.folder / "rows.txt").write_text("a b c")
    p.pipeline("""\
        name: demo
        target: process
        stages:
          data: {uses: ./data, inputs: {source: rows.txt}}
          adapter: {uses: ./train, inputs: {x: "${{ stages.data.out }}"}}
          again: {uses: ./train, inputs: {x: "${{ stages.data.out }}"}, params: {rank: 9}}
          other: {uses: ./side}
        """)
    p.environment["TORCH"] = "2.12"
    p.up()
    assert p.run("tag", "v1").code == 0
    (p.folder / "rows.txt").write_text("a b c d")
    p.environment["TORCH"] = "2.13"
    changed = ("--set", "stages.adapter.params.rank=8", "--set", "stages.other.params.n=2")
    p.up(*changed)
    p.up(*changed)
    p.stage("side", "exit 2", params={"n": {"type": "integer", "default": 1}})
    assert p.run("up").code == 2
    return p


def diff(project: Any, *words: str) -> Any:
    done = project.run("diff", *words, "--json")
    assert done.code == 0, done.err
    return done.json


def by_stage(found: Any) -> dict[str, Any]:
    return {s["stage"]: s for s in found["stages"]}


def named(changes: list[dict[str, Any]]) -> dict[str, tuple[Any, Any]]:
    return {c["name"]: (c["before"], c["after"]) for c in changes}


@pytest.mark.parametrize("before", ["1", "v1"])
def test_what_changed_and_what_came_of_it(runs, before):
    found = diff(runs, before, "2")
    stages = by_stage(found)
    data, adapter, other = stages["data"], stages["adapter"], stages["other"]
    assert list(named(data["inputs"])) == ["source"]
    assert named(data["data"]) == {"train.rows": (3, 4), "train.tokens": (9, 12)}
    assert named(adapter["params"]) == {"rank": (4, 8)}
    assert (adapter["inputs"], adapter["follows"]) == ([], ["x"]), "its input changed because of data, and no other way"
    assert named(adapter["software"]) == {"torch": ("2.12", "2.13")}
    loss = next(c for c in adapter["results"] if c["name"] == "eval_loss")
    assert loss == {"name": "eval_loss", "before": 0.25, "after": 0.125, "difference": -0.125}
    assert named(adapter["results"])["deep.kl"] == (0.3, 0.4)
    assert (other["state"], named(other["params"])) == ("same bytes", {"n": (1, 2)})
    assert stages["again"]["params"] == []


def test_two_runs_that_are_the_same(runs):
    found = diff(runs, "2", "3")
    assert {s["state"] for s in found["stages"]} == {"same"}
    assert all(s["params"] == s["inputs"] == s["software"] == [] and s["seconds"] is None for s in found["stages"])
    assert runs.run("diff", "2", "3").out.endswith("\n\nthe same: data, adapter, again, other\n")


def test_a_run_that_failed(runs):
    other = by_stage(diff(runs, "3", "4"))["other"]
    assert other["status"] == {"name": "status", "before": "done", "after": "failed"}
    assert other["code"]["name"] == "code of side"


def test_without_words_the_last_two_runs_that_made_something(runs):
    for words, before in (((), "run 2"), (("3",), "run 3")):  # in run 3 all was reused
        found = diff(runs, *words)
        assert (found["before"]["name"], found["after"]["name"]) == (before, "run 4")


def test_a_run_that_made_nothing_is_not_the_last_one(project):
    project.stage("a", 'echo "$n" > "$out/x"', params={"n": {"type": "integer", "default": 1}})
    project.pipeline("stages:\n  a: {uses: ./a}\n")
    for n in (1, 2, 2):
        project.up("--target", "process", "--set", f"stages.a.params.n={n}")
    project.stage("a", "exit 2", params={"n": {"type": "integer", "default": 1}})
    assert project.run("up", "--target", "process").code == 2
    for words, both in (((), ("run 1", "run 2")), (("1",), ("run 1", "run 2")), (("3",), ("run 3", "run 4"))):
        found = diff(project, *words)
        assert (found["before"]["name"], found["after"]["name"]) == both
    done = project.run("report", "--json")
    assert done.json["run"]["name"] == "2" and "run 4 made nothing (failed): this is run 2" in done.err


def test_artifacts_are_compared_by_what_made_them(runs):
    found = diff(runs, "v1/adapter", "v1/again")
    stages = by_stage(found)
    assert list(stages) == ["data", "train"] and stages["data"]["state"] == "same"
    assert named(stages["train"]["params"]) == {"rank": (4, 9)}


def test_a_record_of_somebody_s_run_is_a_side(runs):
    name = runs.run("ps", "--all", "--json").json[-1]["run"]
    stages = by_stage(diff(runs, name, "2"))
    assert named(stages["adapter"]["params"]) == {"rank": (4, 8)}


def test_the_words(runs):
    out = runs.run("diff", "1", "2").out
    assert out.startswith("run 1 → run 2\n")
    assert re.search(r"^  adapter\.rank +4 +→ 8$", out, re.M)
    assert re.search(r"^  data ← source +[0-9a-f]{12} → [0-9a-f]{12}$", out, re.M)
    assert re.search(r"^  data: train.rows +3 +→ 4$", out, re.M)
    assert "tokens" not in out and "seconds" not in out and " more figures differ" in out
    assert out.index("what came of it") < out.index("what changed")
    assert re.search(r"^  torch \(adapter, again\) +2\.12 +→ 2\.13$", out, re.M)
    assert re.search(r"^  adapter  eval_loss +0\.25 +0\.125 +−0\.125 +−50\.0%$", out, re.M)
    assert "accuracy" not in out, "what is equal is not in the table"
    assert "made otherwise, and the same bytes: other" in out
    assert "\x1b" not in out
    out = runs.run("diff", "1", "2", "--all").out
    assert re.search(r"^  data: train.tokens +9 +→ 12$", out, re.M)
    assert re.search(r"^ +seconds .* (ms|s)\b", out, re.M) and "more figures" not in out


def test_colours_on_a_terminal_alone(runs):
    with Terminal(runs.command("diff", "1", "2"), runs.folder, runs.environment) as terminal:
        assert terminal.end() == 0
    assert b"\x1b[32m" in terminal.drawn
    with Terminal(["env", "NO_COLOR=1", *runs.command("diff", "1", "2")], runs.folder, runs.environment) as terminal:
        assert terminal.end() == 0
    assert b"\x1b" not in terminal.drawn


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("9", "1"), "there is no run 9"),
        (("1", "2", "3"), "two things are compared"),
        (("1", "v1/adapter"), "is an artifact"),
        (("v1/adapt", "1"), "did you mean 'adapter'"),
        (("20200101T000000000-00000000", "1"), "on this store"),
    ],
)
def test_what_cannot_be_compared(runs, words, what):
    done = runs.run("diff", *words)
    assert done.code == 2 and what in done.err and done.out == ""


def test_one_run_is_not_two(project):
    project.stage("a", 'echo x > "$out/x"')
    project.pipeline("stages:\n  a: {uses: ./a}\n")
    assert "there are not two runs" in project.run("diff").err
    project.up("--target", "process")
    assert "there are not two runs" in project.run("diff").err


# --- pure ---


def side(name: str = "x", **stages: Made) -> Side:
    return Side(name, "run", {}, stages)


def test_a_stage_that_is_on_one_side_only():
    found = compare(side(a=Made("x"), b=Made("x")), side("run 2", b=Made("x"), c=Made("x")))
    assert {s.stage: s.state for s in found.stages} == {"a": "only before", "b": "changed", "c": "only after"}
    assert "only in x: a" in as_text(found) and "only in run 2: c" in as_text(found)


def test_quality_comes_first_and_figures_have_units():
    before = {"peak_memory_bytes": 10**8, "loss": 2.5, "accuracy": 0.5, "accuracy_low": 0.3, "size_bytes": 3 * 10**6,
              "latency_p50_s": 0.25, "decode_tokens_per_s": 100.0, "steps": 8, "kl_mean": 0.001}  # fmt: skip
    after = {"peak_memory_bytes": 2 * 10**8, "loss": 2.0, "accuracy": 0.75, "accuracy_low": 0.4, "size_bytes": 10**6,
             "latency_p50_s": 0.5, "decode_tokens_per_s": 250.0, "steps": 9, "kl_mean": 0.03}  # fmt: skip
    train = [Made("y", metrics={"epochs": n}) for n in (1, 2)]
    found = compare(side(train=train[0], tuned=Made("x", metrics=before)),
                    side("z", train=train[1], tuned=Made("x", metrics=after)))  # fmt: skip
    rows = [line.split() for line in as_text(found).split("what came of it\n")[1].split("\n\n")[0].splitlines()[1:]]
    assert rows[0] == ["tuned", "accuracy", "0.500", "0.750", "+0.250"], "of a share no percentage"
    assert [r[0] for r in rows[1:4]] == ["loss", "kl_mean", "size_bytes"] and rows[4][:2] == ["train", "epochs"]
    assert rows[2][-1] == "×30" and rows[3][1:] == ["3.0", "MB", "1.0", "MB", "−2.0", "MB", "−66.7%"]
    text = as_text(found, everything=True)
    assert re.search(r"latency_p50_s +250 ms +500 ms +\+250 ms", text) and "100/s" in text and "200 MB" in text


def test_what_one_side_did_not_note_is_no_change():
    """A manifest has all parameters, the history of a result that is gone only those that change it."""
    tagged = Made("x", params={"rank": 8, "workers": None, "port": 8080, "checkpointing": False})
    noted = Made("x", params={"rank": 4, "limit": None, "new": 1}, whole=False, counting={"rank", "limit", "new"})
    (stage,) = compare(side(a=tagged), side(a=noted)).stages
    assert [(c.name, c.before, c.after) for c in stage.params] == [("rank", 8, 4), ("new", None, 1)]
    (stage,) = compare(side(a=noted), side(a=tagged)).stages
    assert [c.name for c in stage.params] == ["rank", "new"]
    later = Made("x", params={**tagged.params, "depth": 2})
    (stage,) = compare(side(a=tagged), side(a=later)).stages
    assert [(c.name, c.before, c.after) for c in stage.params] == [("depth", None, 2)]


def test_a_tag_and_its_run_have_the_same_parameters(project):
    free = {"type": "integer", "affects_result": False}
    params = {"n": {"type": "integer", "default": 1}, "port": {**free, "default": 80}, "few": free}
    project.stage("a", 'echo "$n" > "$out/x"', params=params)
    project.pipeline("target: process\nstages:\n  a: {uses: ./a}\n")
    project.up()
    assert project.run("tag", "v1").code == 0
    assert by_stage(diff(project, "v1", "1"))["a"]["params"] == []
    project.up("--set", "stages.a.params.n=2", "--set", "stages.a.params.port=81")
    assert named(by_stage(diff(project, "v1", "2"))["a"]["params"]) == {"n": (1, 2), "port": (80, 81)}
    project.stage("a", "exit 2", params=params)  # of a failed stage only the history tells
    assert project.run("up").code == 2
    assert by_stage(diff(project, "v1", "3"))["a"]["params"] == []
    assert "– → –" not in project.run("diff", "v1", "3", "--all").out


def test_the_run_to_compare_with_is_one_that_is_done_and_has_the_same_stages(project):
    """Not one of a single stage, not one that was stopped, not one of another pipeline file."""
    params = {"n": {"type": "integer", "default": 1}}
    for name in ("a", "b"):
        project.stage(name, 'echo "$n" > "$out/x"', params=params)
    project.pipeline("target: process\nstages:\n  a: {uses: ./a}\n  b: {uses: ./b}\n")
    other = project.folder / "other.yaml"
    other.write_text(project.file.read_text())

    def set_to(n: int) -> list[str]:
        return ["--set", f"stages.a.params.n={n}", "--set", f"stages.b.params.n={n}"]

    project.up(*set_to(1))
    assert project.run("run", "a", *set_to(2)).code == 0
    project.up("-p", "other.yaml", *set_to(3))
    project.stage("b", "exit 2", params=params)
    assert project.run("up", *set_to(4)).code == 2  # a is done
    project.stage("b", 'echo "$n" > "$out/x"', params=params)
    done = project.run("up", *set_to(5))
    assert "runner diff 1 5 " in done.out and "what is different from run 1" in done.out
    found = diff(project)
    assert (found["before"]["name"], found["after"]["name"]) == ("run 1", "run 5")
    history = History(project.folder / ".runner", create=False)
    assert [history.like(n) for n in (1, 2, 3, 4, 5, 9)] == [None, 1, None, 1, 1, None]
    history.close()


def test_a_long_parameter_is_shown_whole_on_lines_of_its_own():
    before, after = "word " * 20 + "one", "word " * 20 + "two"
    found = compare(side(a=Made("x", params={"t": before, "n": 1.0})), side(a=Made("x", params={"t": after, "n": 2.5})))
    assert f"  a.t\n      {before}\n    → {after}\n  a.n  1 → 2.5" in as_text(found)


def test_a_line_break_is_shown_as_one():
    found = compare(side(a=Made("x", params={"t": "a\nb"})), side(a=Made("x", params={"t": "a b"})))
    assert re.search(r"a\.t +a\\nb +→ a b$", as_text(found), re.M)


def test_an_input_follows_only_what_was_made_on_both_sides():
    a, b = Made("x", outputs={"o": "d1"}), Made("x", outputs={"o": "d2"})
    taken = [Made("y", inputs={"i": d, "j": j}) for d, j in (("d1", "e1"), ("d2", "e2"))]
    found = compare(side(up=a, down=taken[0]), side(up=b, down=taken[1]))
    down = next(s for s in found.stages if s.stage == "down")
    assert (list(down.follows), [c.name for c in down.inputs]) == (["i"], ["j"])


def test_values_of_any_kind_can_be_compared():
    odd = [None, True, float("nan"), [1], {"a": 1}, "x" * 500, 10**20, "\x1b[31m"]
    made = [Made("x", params={"p": v}, metrics={"m": v}, where={"w": v}, software={"s": v}) for v in odd]
    for a in made:
        for b in made:
            found = compare(side(s=a), side(s=b))
            assert json.dumps(as_data(found)) and as_text(found)


def test_nothing_is_nothing():
    assert as_text(compare(side(), side())) == "x → x\n\nnothing to compare"
