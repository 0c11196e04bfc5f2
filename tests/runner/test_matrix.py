"""Variants of stages, side by side, and the best of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from runner.document import PipelineError
from runner.pipeline import read

MAKE = """
import json, sys
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
open(flags["out"] + "/x", "w").write(flags["size"] + flags.get("kind", ""))
"""
MEASURE = """
import json, sys
from microstages.artifact import Draft, open_artifact
flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
text = open_artifact(flags["x"], ["dataset"]).file("x").read_text()
with Draft(flags["out"], "dataset") as draft:
    (draft.path / "y").write_text(text)
    draft.metrics |= {"score": len(text) * float(flags["weight"]), "deep": {"size": int(text[0])},
                      "time_to_first_token_p95_s": int(text[0]) / 10}
    draft.commit({})
"""
PIPELINE = """\
name: demo
stages:
  make:
    uses: ./make
    matrix:
      size: [1, 2, 3]
      kind: [a, bb]
      exclude: [{size: 3, kind: a}]
  seen:
    uses: ./seen
    inputs: {x: "${{ stages.make.out }}"}
    params: {weight: "${{ matrix.size }}"}
  best:
    select: {from: seen, take: make, maximize: score, where: {deep.size: {max: 2}}}
  last:
    uses: ./seen
    inputs: {x: "${{ stages.best.out }}"}
"""


@pytest.fixture
def variants(project: Any) -> Any:
    """Six files less one, each measured, the best taken and measured once more."""
    project.stage(
        "make", "", command=[sys.executable, "./tool.py"],
        params={"size": {"type": "integer", "default": 1}, "kind": {"type": "string", "default": ""}},
    )  # fmt: skip
    (project.folder / "make/tool.py").write_text(MAKE)
    project.stage(
        "seen", "", inputs={"x": ["dataset"]}, command=[sys.executable, "./tool.py"], manifest="stage",
        params={"weight": {"type": "number", "default": 1.0}},
    )  # fmt: skip
    (project.folder / "seen/tool.py").write_text(MEASURE)
    project.pipeline(PIPELINE)
    return project


NAMES = ["1-a", "1-bb", "2-a", "2-bb", "3-bb"]


def test_each_combination_is_made_and_what_follows_for_each(variants: Any):
    states = variants.up()
    assert list(states) == [*(f"make-{n}" for n in NAMES), *(f"seen-{n}" for n in NAMES), "best", "last"]
    assert set(states.values()) == {"done", "reused"} and states["best"] == "reused"
    assert (variants.output("make-2-bb") / "x").read_text() == "2bb"
    found = json.loads((variants.output("seen-2-bb") / "artifact.json").read_text())
    assert found["metrics"]["score"] == 6.0  # three letters, weight 2
    assert (variants.output("last") / "y").read_text() == "2bb"
    assert set(variants.up().values()) == {"reused"}


def test_the_choice_is_told_and_follows_what_is_asked(variants: Any):
    done = variants.run("up")
    assert "takes make-2-bb: score 6, deep.size 2" in done.out
    assert variants.plan()["best"] == ("reuse", "make-2-bb: score 6, deep.size 2")
    for settings, chosen in (
        (["stages.best.select={from: seen, minimize: score}"], "seen-1-a"),
        (["stages.best.select={from: seen, maximize: score}"], "seen-3-bb"),
        (
            ["stages.best.select={from: seen, take: make, maximize: score, where: {ttft_ms_p95: {max: 150}}}"],
            "make-1-bb",
        ),
    ):
        words = [w for s in settings for w in ("--set", s)]
        assert variants.plan(*words)["best"][1].startswith(f"{chosen}: ")


def test_where_none_is_good_enough_it_says_how_near_they_come(variants: Any):
    variants.up()
    words = ("--set", "stages.best.select={from: seen, maximize: score, where: {deep.size: {min: 4}}}")
    done = variants.run("up", *words)
    assert done.code == 2
    assert "no variant keeps the limits: seen-1-a: deep.size 1 < 4; " in done.out + done.err
    done = variants.run("up", "--set", "stages.best.select={from: seen, maximize: scroe}")
    assert done.code == 2
    assert "'scroe' was not measured (did you mean 'score'?)" in done.out + done.err
    assert "measured: deep.size, model_bytes, score, " in done.out + done.err


def test_one_stage_is_all_its_variants(variants: Any):
    states = variants.up("--only", "make")
    assert list(states) == [f"make-{n}" for n in NAMES]
    assert set(variants.up("--only", "seen-1-a").values()) == {"reused", "done"}
    again = variants.up("--from", "seen", "--force")
    assert {k for k, v in again.items() if v == "done"} == {*(f"seen-{n}" for n in NAMES), "last"}


def test_what_is_selected_can_be_tagged_and_is_kept(variants: Any):
    variants.up()
    assert variants.run("tag", "v1", "best").code == 0
    text = PIPELINE.replace("size: [1, 2, 3]", "size: [9]").partition("      exclude")[0]
    variants.pipeline(text)
    assert variants.run("gc", "--older-than", "0s", "--keep-runs", "0", "--yes").code == 0
    pulled = variants.folder / "pulled"
    assert variants.run("pull", "v1/best", pulled).code == 0
    assert (pulled / "x").read_text() == "2bb"


def names(tmp_path: Path, stages: str) -> list[str]:
    return list(problems(tmp_path, stages, fail=False).stages)


def problems(tmp_path: Path, stages: str, fail: bool = True) -> Any:
    for name, outs in (("a", "out"), ("b", "out")):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        params = {"p": {"type": "integer", "default": 0}, "q": {"type": "string", "default": ""}}
        interface = {"schema": 1, "name": name, "version": "1", "summary": "s", "command": ["sh"], "code": ["."],
                     "manifest": "runner", "inputs": {"x": {"flag": "--x", "kinds": ["dataset"], "required": False},
                     "y": {"flag": "--y", "kinds": ["dataset"], "required": False}}, "params": {
                     k: {**v, "flag": f"--{k}"} for k, v in params.items()},
                     "outputs": {outs: {"flag": "--out", "kind": "dataset"}}}  # fmt: skip
        (folder / "interface.json").write_text(json.dumps(interface))
    file = tmp_path / "pipeline.yaml"
    file.write_text(f"stages:\n{stages}")
    if not fail:
        return read(file, commands=False)
    with pytest.raises(PipelineError) as told:
        read(file, commands=False)
    return str(told.value)


def test_two_matrices_meet(tmp_path: Path):
    stages = """\
  one: {uses: ./a, matrix: {p: [1, 2]}}
  two: {uses: ./a, matrix: {p: [3, 4]}}
  both: {uses: ./b, inputs: {x: "${{ stages.one.out }}", y: "${{ stages.two.out }}"}, matrix: {q: [u, v]}}
  side: {uses: ./b, inputs: {x: "${{ stages.one.out }}"}, params: {q: "p is ${{ matrix.p }}"}}
  down: {uses: ./b, inputs: {x: "${{ stages.both.out }}", y: "${{ stages.side.out }}"}}
"""
    pipeline = problems(tmp_path, stages, fail=False)
    assert len([n for n in pipeline.stages if n.startswith("both-")]) == 8
    assert len([n for n in pipeline.stages if n.startswith("down-")]) == 8
    assert pipeline.stages["side-2"].params["q"] == "p is 2"
    down = pipeline.stages["down-2-3-v"]
    assert [r.stage for r in down.inputs.values()] == ["both-2-3-v", "side-2"]
    assert down.variant is not None and down.variant.base == "down"


def test_names_are_the_values_as_people_write_them(tmp_path: Path):
    values = "[3e-4, 0.1, 2.0, -1.5e-5, A b, true, null]"
    stages = f'  s: {{uses: ./a, params: {{q: "is ${{{{ matrix.v }}}}"}}, matrix: {{v: {values}}}}}\n'
    found = list(problems(tmp_path, stages, fail=False).stages)
    assert found == ["s-3e-4", "s-0_1", "s-2", "s-1_5e-5", "s-a-b", "s-true", "s-none"]


def test_the_stage_itself_can_vary(tmp_path: Path):
    stages = '  s: {uses: "./${{ matrix.kind }}", matrix: {kind: [a, b]}}\n'
    assert [s.uses for s in problems(tmp_path, stages, fail=False).stages.values()] == ["./a", "./b"]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("  s: {uses: ./a, matrix: {r: [1, 2]}}\n", "a has no parameter 'r'"),
        ("  s: {uses: ./a, matrix: {p: [x]}}\n", "p must be a whole number"),
        ("  s: {uses: ./a, matrix: {p: [1]}, params: {p: 2}}\n", "p of stage s stands in its matrix and in its params"),
        ("  s: {uses: ./a, matrix: {p: 1}}\n", "p in the matrix of stage s must be a list of values, not a number"),
        ("  s: {uses: ./a, matrix: [p]}\n", "matrix of stage s must be a mapping of lists, not a list"),
        ("  s: {uses: ./a, matrix: {p: [1], exclude: [{p: 1}]}}\n", "the matrix of stage s excludes everything"),
        ("  s: {uses: ./a, matrix: {p: [1, 2], exclude: [{pp: 1}]}}\n", "exclude in the matrix of stage s names 'pp'"),
        ('  s: {uses: ./a, matrix: {p: [1]}, params: {q: "${{ matrix.k }}"}}\n', "stage s has no matrix key 'k'"),
        ('  s: {uses: ./a, matrix: {p: [1, 2]}}\n  t: {uses: ./b, inputs: {x: "${{ stages.s.ot }}"}}\n',
         "has no output 'ot'"),
        (f"  s: {{uses: ./a, matrix: {{p: {list(range(300))}}}}}\n", "stage s has 300 variants, more than 200"),
        ("  s: {uses: ./a, matrix: {p: [1, 2]}}\n  t: {select: {from: x, maximize: m}}\n", "there is no stage 'x'"),
        ("  s: {uses: ./a, matrix: {p: [1, 2]}}\n  t: {select: {from: s}}\n", "needs either maximize or minimize"),
        ("  s: {uses: ./a, matrix: {p: [1, 2]}}\n  t: {select: {from: s, maximise: m}}\n",
         "unknown key 'maximise' in select of stage t (did you mean 'maximize'?)"),
        ("  s: {uses: ./a, matrix: {p: [1, 2]}}\n  u: {uses: ./b, matrix: {p: [1]}}\n"
         "  t: {select: {from: s, take: u, maximize: m}}\n", "u has no variant that belongs to s-2"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_places(tmp_path: Path, stages: str, said: str):
    text = problems(tmp_path, stages)
    assert said in text and "pipeline.yaml:" in text
