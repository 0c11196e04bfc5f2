"""Where an artifact comes from: told from manifests alone, also when things have moved, gone, or lie."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from microstages import storage
from microstages.errors import UserError
from microstages.manifest import MANIFEST, Manifest

from runner.lineage import Node, Root, ancestors, as_data, trace
from runner.lineage_forms import as_mermaid, as_svg, as_text, tops
from runner.store import Store

EVIL = '"]<script>alert(1)</script>|;`\u2028\x00&'


@pytest.fixture(scope="module")
def chain_of_three(module_project: Any) -> Any:
    """`first` reads a file, `second` takes from it, `third` from both and another file. Run once, tagged v1."""
    p = module_project
    p.stage(
        "join", 'cat "$one"/text "$two" "$more" 2>/dev/null > "$out/text" || true; echo "$word" >> "$out/text"',
        inputs={"one": ["files", "dataset"], "two": ["files"], "more": ["files"]},
        params={"word": {"type": "string", "default": "end"}, "n": {"type": "integer", "default": 3}},
    )  # fmt: skip
    interface = p.folder / "join/interface.json"
    value = json.loads(interface.read_text())
    for name in ("two", "more"):
        value["inputs"][name]["required"] = False
    interface.write_text(json.dumps(value))
    (p.folder / "data.txt").write_text("one\n")
    (p.folder / "more.txt").write_text("more\n")
    p.pipeline("""\
        name: demo
        stages:
          first: {uses: ./join, inputs: {one: data.txt}, params: {word: hello}}
          second: {uses: ./join, inputs: {one: "${{ stages.first.out }}"}}
          third: {uses: ./join, inputs: {one: "${{ stages.second.out }}", two: data.txt, more: more.txt}}
        """)
    p.up("--target", "process")
    assert p.run("tag", "v1").code == 0
    return p


def lineage(project: Any, *args: str) -> Any:
    done = project.run("lineage", *args, "--format", "json")
    assert done.code == 0, done.err
    return done.json


def test_an_artifact_is_traced_back_to_its_sources(chain_of_three):
    found = lineage(chain_of_three, "third")
    assert [r["name"] for r in found["roots"]] == ["third"]
    *others, third = found["artifacts"]
    by_address = {a["address"]: a for a in found["artifacts"]}
    assert [a["state"] for a in found["artifacts"]].count("outside") == 2
    assert third["stage"] == "join" and third["kind"] == "dataset" and third["version"] == "1"
    assert third["params"] == {"word": "end", "n": 3}
    assert third["code"].startswith("sha256:") and re.fullmatch("[0-9a-f]{32}", third["fingerprint"])
    assert third["started"] <= third["finished"] and third["hardware"]["cores"]
    second = by_address[third["inputs"]["one"]["address"]]
    first = by_address[second["inputs"]["one"]["address"]]
    assert first["params"]["word"] == "hello"
    data = by_address[first["inputs"]["one"]["address"]]
    assert data["address"].endswith("/data.txt") and data["state"] == "outside" and data["kind"] == "files"
    assert third["inputs"]["two"] == {"address": data["address"], "digest": data["digest"]}, "it stands once"
    assert [a for a in others if a["address"] == data["address"]] == [data]


def test_all_words_for_an_artifact_mean_the_same(chain_of_three):
    p = chain_of_three
    found = lineage(p, "second")
    digest = found["roots"][0]["digest"]
    for word in ("second.out", "v1/second", found["roots"][0]["address"], digest, digest[:17], digest[7:15]):
        assert lineage(p, word)["artifacts"] == found["artifacts"], word
    assert [r["name"] for r in lineage(p, "v1")["roots"]] == ["v1/third"], "what others were made of is in it"


def test_the_tree(chain_of_three):
    text = chain_of_three.run("lineage", "third").out
    lines = re.findall(r"^([│├└─ ]*\w+)  .*sha256:", text, re.M)
    assert lines == ["third", "├─ one", "│  └─ one", "│     └─ one", "├─ two", "└─ more"]
    assert "from outside: data.txt" in text and "as one above" in text
    assert "word hello" in text and "word end" not in text, "what is as by default is not said"
    assert "\x1b" not in text


@pytest.mark.parametrize("form", ["mermaid", "svg"])
def test_pictures(chain_of_three, form):
    done = chain_of_three.run("lineage", "third", "--format", form)
    assert done.code == 0
    if form == "mermaid":
        assert done.out.startswith("flowchart LR\n")
        assert len(re.findall("-->", done.out)) == 5
    else:
        texts = [t.text for t in ElementTree.fromstring(done.out).iter("{http://www.w3.org/2000/svg}text")]
        assert {"third", "data.txt", "more.txt", "two", "from outside"} <= set(texts)


@pytest.mark.parametrize(
    ("word", "what"),
    [
        ("thrid", "did you mean 'third'"),
        ("sha256:ffffff", "no artifact of this store has the digest"),
        ("ffffff", "is neither a stage"),
        ("./nowhere", "no such file or folder"),
        ("v1/nothing", "names no stage 'nothing'"),
    ],
)
def test_a_word_that_means_nothing(chain_of_three, word, what):
    done = chain_of_three.run("lineage", word)
    assert done.code == 2 and what in done.err and done.out == ""


def test_a_stage_that_is_not_done_any_more_means_what_it_made_last(chain_of_three):
    p = chain_of_three
    done = p.run("lineage", "first", "--set", "stages.first.params.n=4")
    assert done.code == 0
    assert "this is its result in run 1" in done.err
    assert "word hello" in done.out


def test_a_thing_from_outside_has_no_lineage(chain_of_three):
    found = lineage(chain_of_three, "./data.txt")
    assert [(a["state"], a["inputs"]) for a in found["artifacts"]] == [("outside", {})]


def test_a_copy_is_traced_in_the_store_that_it_came_from(chain_of_three, tmp_path):
    p = chain_of_three
    assert p.run("pull", "third", str(tmp_path / "copy")).code == 0
    found = lineage(p, str(tmp_path / "copy"))
    assert {a["state"] for a in found["artifacts"]} == {"made", "outside"}
    assert len(found["artifacts"]) == 5
    assert [r["name"] for r in found["roots"]] == ["join"], "an address is no name"


# --- made by hand ---


def write(place: Path, inputs: dict[str, Any], text: str = "x", **more: Any) -> tuple[str, str]:
    """An artifact with a manifest; its address and its digest."""
    from microstages.digest import hash_tree, tree_digest

    place.mkdir(parents=True)
    (place / "x").write_text(text)
    entries = tuple(hash_tree(place, {"x": place / "x"}))
    made = {"stage": "work", "version": "1", "fingerprint": "f" * 32, "inputs": inputs, **more}
    manifest = Manifest("dataset", tree_digest(entries), entries, provenance=made)
    (place / MANIFEST).write_bytes(manifest.to_json())
    return str(place), manifest.digest


def of(uri: str, digest: str) -> dict[str, str]:
    return {"uri": uri, "digest": digest}


RUN = "artifacts/work/" + "a" * 32 + "/20260101T000000-00000000/out"


def test_a_store_that_was_moved_is_its_own_lineage(tmp_path):
    first = write(tmp_path / "old" / RUN, {}, "first")
    second = write(tmp_path / "old" / RUN.replace("a" * 32, "b" * 32), {"x": of(*first)}, "second")
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved = second[0].replace("/old/", "/new/")
    node = trace([(moved, "")], Store(str(tmp_path / "new")))[0]
    assert node.inputs["x"].state == "made" and "/new/" in node.inputs["x"].address
    without = trace([(moved, "")])[0].inputs["x"]
    assert (without.state, without.digest) == ("missing", first[1])


def test_an_input_is_found_by_its_digest_where_another_attempt_made_it_again(tmp_path):
    store = tmp_path / "store"
    first = write(store / RUN, {}, "first")
    folder = (store / RUN).parent.parent
    outputs = {"out": {"kind": "dataset", "digest": first[1], "size": 5}}
    (folder / "commit.json").write_text(json.dumps({"attempt": "20260101T000000-00000000", "outputs": outputs}))
    gone = str(store / RUN).replace("20260101T", "20250101T")
    second = write(store / RUN.replace("a" * 32, "b" * 32), {"x": of(gone, first[1])})
    assert trace([(second[0], "")], Store(str(store)))[0].inputs["x"].address == first[0]


def test_what_is_damaged_altered_or_elsewhere_is_told_and_the_rest_is_there(tmp_path):
    bad, altered = write(tmp_path / "bad", {}), write(tmp_path / "altered", {}, "new")
    (tmp_path / "bad" / MANIFEST).write_text("{")
    far = f"abfs://others/{RUN}"
    root = write(tmp_path / "root", {
        "bad": of(*bad), "altered": of(altered[0], bad[1]), "far": of(far, bad[1]), "hub": of("hf://a/b@c", "sha256:1"),
        "odd": 5, "none": {},
    })  # fmt: skip
    inputs = trace([(root[0], "")], Store(str(tmp_path / "store")))[0].inputs
    assert {k: n.state for k, n in inputs.items()} == {
        "bad": "damaged", "altered": "missing", "far": "elsewhere", "hub": "outside",
    }  # fmt: skip
    assert "another digest" in inputs["altered"].note
    with pytest.raises(UserError, match="not JSON"):
        trace([bad])


def test_another_store_is_never_asked(tmp_path, monkeypatch):
    """A manifest must not make anybody send credentials to a place of its choosing."""
    far = [f"s3://trap/{RUN}", "abfs://trap/x", "https://trap/x", "hf://trap/x"]
    root = write(tmp_path / "root", {str(i): of(uri, "sha256:1") for i, uri in enumerate(far)})
    read = storage.read

    def local_only(uri: str) -> bytes | None:
        assert storage.local_path(uri) is not None, uri
        return read(uri)

    monkeypatch.setattr(storage, "read", local_only)
    states = [n.state for n in trace([(root[0], "")], Store(str(tmp_path)))[0].inputs.values()]
    assert states == ["elsewhere", "outside", "outside", "outside"]


def test_what_names_itself_as_its_origin_is_not_believed(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    write(a, {"b": {"uri": str(b)}})
    write(b, {"a": {"uri": str(a)}})
    node = trace([(str(a), "")])[0]
    assert node.inputs["b"].inputs == {} and "made of itself" in node.inputs["b"].note
    assert "made of itself" in as_text([Root("a", node)], tmp_path)
    write(tmp_path / "c", {"c": {"uri": str(tmp_path / "c")}})
    assert "made of itself" in trace([(str(tmp_path / "c"), "")])[0].note


def test_a_long_line_of_ancestors(tmp_path):
    before = write(tmp_path / "0", {})
    for n in range(1, 1500):
        before = write(tmp_path / str(n), {"x": of(*before)})
    node = trace([before])[0]
    assert sum(1 for _ in ancestors([node])) == 1500
    roots = tops([Root("last", node)])
    assert len(as_data(roots)["artifacts"]) == 1500
    assert as_text(roots, tmp_path) and as_mermaid(roots, tmp_path)


def test_hostile_words_stay_words(tmp_path):
    source = Node("/tmp/" + EVIL, "sha256:0", "outside")
    node = Node("/x", "sha256:1", "made", stage=EVIL, params={EVIL: EVIL}, inputs={EVIL: source})
    picture = as_svg([Root(EVIL, node)], tmp_path)
    names = {e.tag.rpartition("}")[2] for e in ElementTree.fromstring(picture).iter()}
    assert "script" not in names
    chart = as_mermaid([Root(EVIL, node)], tmp_path)
    assert "<script" not in chart and all(line.count('"') in (0, 2) for line in chart.split("\n"))


def test_in_an_object_store(tmp_path, azurite, monkeypatch):
    azurite.start()
    azurite.use(monkeypatch)
    root = azurite.uri("lineage")
    first = write(tmp_path / "1", {}, "first")
    uri = storage.join(root, RUN)
    storage.upload(tmp_path / "1", uri, ["x", MANIFEST])
    second = write(tmp_path / "2", {"x": of(uri, first[1])}, "second")
    there = storage.join(root, RUN.replace("a" * 32, "b" * 32))
    storage.upload(tmp_path / "2", there, ["x", MANIFEST])
    node = trace([(there, second[1])], Store(root))[0]
    assert node.state == "made" and node.inputs["x"].address == storage.public(uri)
    assert node.inputs["x"].state == "made"
