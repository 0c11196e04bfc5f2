"""Planning is pure: data in, decisions out. No disk, no store, no process."""

from pathlib import Path

import pytest
from microstages.digest import FileEntry, tree_digest
from microstages.interface import InputSpec, Interface, OutputSpec, ParamSpec
from microstages.manifest import Manifest

from runner.document import Place
from runner.history import Record
from runner.pipeline import External, Pipeline, Stage
from runner.plan import Facts, both, choose, plan, stage_fingerprint
from runner.spec import Ref, Resources
from runner.stages import Found
from runner.store import Damaged, Output, Result

NOWHERE = Place("pipeline.yaml", 1, 1)
INTERFACE = Interface(
    "work", "1", "", ("work",),
    {"x": InputSpec("--x", ("files",)), "y": InputSpec("--y", ("files",), required=False)},
    {"out": OutputSpec("--out", "dataset")},
    {"rank": ParamSpec("--rank", "integer", 8), "threads": ParamSpec("--threads", "integer", 1, affects_result=False)},
)  # fmt: skip


def stage(name: str, x: str, y: str | None = None, **params: int) -> Stage:
    """A stage whose inputs are named stages, or files where no stage has the name."""
    values = {"x": x, **({"y": y} if y else {})}
    inputs = {k: Ref(v, "out") if v.isalpha() else External(v, NOWHERE) for k, v in values.items()}
    found = Found(Path("work"), INTERFACE, ())
    return Stage(
        name,
        NOWHERE,
        "work",
        found,
        (),
        inputs,
        {"rank": 8, "threads": 1, **params},
        Resources(),
        "process",
        0,
        None,
        1.0,
    )


def pipeline(*stages: Stage) -> Pipeline:
    return Pipeline("demo", Path("pipeline.yaml"), "store", {s.name: s for s in stages})


DIAMOND = pipeline(stage("a", "/data"), stage("b", "a"), stage("c", "a", rank=4), stage("d", "b", "c"))


def result(content: str) -> Result:
    files = (FileEntry("f", 1, content.ljust(64, "0")),)
    return Result("", "attempt", {"out": Output("uri", Manifest("dataset", tree_digest(files), files))})


def facts(p: Pipeline, data: str = "sha256:1", code: str = "code", made: dict[str, Result | Damaged] | None = None,
          last: dict[str, Record] | None = None) -> Facts:  # fmt: skip
    outside = {(s.name, k): data for s in p.stages.values() for k, v in s.inputs.items() if isinstance(v, External)}
    return Facts(outside, dict.fromkeys(p.stages, code), lambda _, name: (made or {}).get(name), last or {})


def run_all(p: Pipeline, **world: str) -> tuple[dict[str, Result | Damaged], dict[str, Record]]:
    """What the store and the history have after a pipeline has run: each stage's content is its name."""
    made: dict[str, Result | Damaged] = {}
    last: dict[str, Record] = {}
    for name in p.stages:
        step = plan(p, facts(p, made=made, **world), choose(p))[name]
        assert step.action == "run"
        made[step.fingerprint] = result(format(ord(name), "x"))
        identity = INTERFACE.identity_params(p.stages[name].params)
        last[name] = Record(1, name, "work", "done", fingerprint=step.fingerprint, code=world.get("code", "code"),
                            params=identity, inputs=step.inputs)  # fmt: skip
    return made, last


def told(p: Pipeline, f: Facts, **choice: str | bool) -> dict[str, str]:
    steps = plan(p, f, choose(p, **choice))  # type: ignore[arg-type]
    return {name: f"{s.action}: {s.reason}" for name, s in steps.items()}


def test_nothing_made_yet():
    assert told(DIAMOND, facts(DIAMOND)) == {
        "a": "run: new", "b": "wait: after a; new", "c": "wait: after a; new", "d": "wait: after b and c; new"
    }  # fmt: skip


def test_everything_made():
    made, last = run_all(DIAMOND)
    assert set(told(DIAMOND, facts(DIAMOND, made=made, last=last)).values()) == {"reuse: unchanged"}


def test_results_count_not_the_history():
    made, _ = run_all(DIAMOND)
    assert set(told(DIAMOND, facts(DIAMOND, made=made)).values()) == {"reuse: unchanged"}


def test_a_changed_input_from_outside():
    made, last = run_all(DIAMOND)
    said = told(DIAMOND, facts(DIAMOND, data="sha256:2", made=made, last=last))
    assert said["a"] == "run: input x changed"
    assert said["b"] == "wait: after a, unless its result is the same"


def test_a_changed_parameter_in_the_middle():
    made, last = run_all(DIAMOND)
    p = pipeline(stage("a", "/data"), stage("b", "a", rank=64), stage("c", "a", rank=4), stage("d", "b", "c"))
    assert told(p, facts(p, made=made, last=last)) == {
        "a": "reuse: unchanged", "b": "run: param rank: 8 → 64", "c": "reuse: unchanged",
        "d": "wait: after b, unless its result is the same",
    }  # fmt: skip


def test_two_changes_are_both_told():
    made, last = run_all(DIAMOND)
    p = pipeline(stage("a", "/data", rank=1), *list(DIAMOND.stages.values())[1:])
    said = told(p, facts(p, code="new", made=made, last=last))
    assert said["a"] == "run: param rank: 8 → 1, code of work changed"
    assert said["d"] == "wait: after b and c; code of work changed"


def test_long_values_are_short_in_a_reason_and_their_difference_is_seen():
    long = "Which tone has this text, in one word?\n" * 3
    assert both(f"A{long}", f"B{long}") == ("AWhich tone has this tex…", "BWhich tone has this tex…")
    assert both(f"{long}one", f"{long}two") == ("… word?\\none", "… word?\\ntwo")
    assert both("short", long) == ("short", "Which tone has this text…")
    assert both(8.0, 1.0) == ("8", "1") and both(1e-4, 1234567.5) == ("0.0001", "1234567.5")
    made, last = run_all(DIAMOND)
    p = pipeline(stage("a", "/data", rank=long), *list(DIAMOND.stages.values())[1:])
    assert len(told(p, facts(p, made=made, last=last))["a"]) < 60


def test_an_input_added_and_taken_away():
    made, last = run_all(DIAMOND)
    p = pipeline(stage("a", "/data", "/more"), stage("b", "a"), stage("c", "a", rank=4), stage("d", "b"))
    said = told(p, facts(p, made=made, last=last))
    assert said["a"] == "run: input y is new"
    assert said["d"] == "wait: after b; input y is gone"


def test_what_only_changes_speed_is_not_covered():
    made, last = run_all(DIAMOND)
    p = pipeline(stage("a", "/data", threads=16), *list(DIAMOND.stages.values())[1:])
    assert set(told(p, facts(p, made=made, last=last)).values()) == {"reuse: unchanged"}


def test_a_damaged_result_is_made_again_and_replaced():
    made, last = run_all(DIAMOND)
    made[last["c"].fingerprint] = Damaged("attempt", "f: it is gone")
    step = plan(DIAMOND, facts(DIAMOND, made=made, last=last), choose(DIAMOND))["c"]
    assert (step.action, step.reason, step.replace) == ("run", "its result is damaged: f: it is gone", "attempt")


def test_a_result_that_was_removed():
    made, last = run_all(DIAMOND)
    del made[last["d"].fingerprint]
    assert told(DIAMOND, facts(DIAMOND, made=made, last=last))["d"] == "run: its result is not in the store any more"


def test_only_leaves_the_others_alone():
    made, last = run_all(DIAMOND)
    del made[last["b"].fingerprint], made[last["d"].fingerprint]
    said = told(DIAMOND, facts(DIAMOND, made=made, last=last), only="d")
    assert said["b"].startswith("skip")
    assert said["d"] == "skip: b is not done"
    said = told(DIAMOND, facts(DIAMOND, made=made, last=last), only="b")
    assert said["b"].startswith("run")
    assert said["d"].startswith("skip")


def test_from_takes_what_follows():
    assert choose(DIAMOND, first="b").stages == {"b", "d"}
    assert choose(DIAMOND, first="a").stages == set("abcd")
    assert choose(DIAMOND, only="c", force=True).forced == {"c"}


def test_force_runs_what_is_there():
    made, last = run_all(DIAMOND)
    said = told(DIAMOND, facts(DIAMOND, made=made, last=last), first="c", force=True)
    assert said == {
        "a": "reuse: unchanged", "b": "reuse: unchanged", "c": "run: forced",
        "d": "wait: after c, unless its result is the same",
    }  # fmt: skip


@pytest.mark.parametrize("change", ["data", "code", "rank"])
def test_the_fingerprint_covers(change):
    def name(p: Pipeline, f: Facts) -> str:
        return stage_fingerprint(p.stages["a"], f, {"x": f.outside["a", "x"]})

    base = name(DIAMOND, facts(DIAMOND))
    p = pipeline(stage("a", "/data", rank=9)) if change == "rank" else DIAMOND
    world = {"data": "sha256:2"} if change == "data" else {"code": "other"} if change == "code" else {}
    assert name(p, facts(p, **world)) != base


def test_the_fingerprint_does_not_cover_names_and_places():
    def name(p: Pipeline, stage_: str) -> str:
        return stage_fingerprint(p.stages[stage_], facts(p), {"x": "sha256:1"})

    assert name(DIAMOND, "a") == name(pipeline(stage("z", "/elsewhere", threads=4)), "z")
