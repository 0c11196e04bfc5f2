"""The layered layout of graphs, and their pictures."""

from __future__ import annotations

import random
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest

from runner.layout import Box, layout
from runner.picture import Card, cut, svg, width

SVG = "{http://www.w3.org/2000/svg}"
SIZE = (100.0, 40.0)


def laid(edges: str, names: str = "", **options):
    """A layout of edges such as `ab bc`; a name is a letter."""
    pairs = [(e[0], e[1]) for e in edges.split()]
    found = dict.fromkeys([*names, *(n for e in pairs for n in e)], SIZE)
    return layout(found, pairs, **options)


def apart(a: Box, b: Box) -> bool:
    return a.x + a.width <= b.x or b.x + b.width <= a.x or a.y + a.height <= b.y or b.y + b.height <= a.y


def crossings(found) -> int:
    """Crossing pieces of lines, as a person would count them: by geometry."""
    pieces = [(a, b) for line in found.lines.values() for a, b in pairwise(line)]

    def side(a, b, c) -> float:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    return sum(
        side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
        for (a, b), (c, d) in combinations(pieces, 2)
    )


def test_a_chain_is_a_straight_line():
    found = laid("ab bc cd")
    assert [b.x for b in found.boxes.values()] == [0, 148, 296, 444]
    assert {b.y for b in found.boxes.values()} == {0}
    assert (found.width, found.height) == (544, 40)
    assert found.lines["a", "b"] == [(100, 20), (148, 20)]
    assert found.path(("a", "b")) == "M100.0,20.0 L148.0,20.0"


def test_downwards_is_the_same_turned():
    found = laid("ab bc", rightwards=False)
    assert [(b.x, b.y) for b in found.boxes.values()] == [(0, 0), (0, 88), (0, 176)]


def test_what_nothing_leads_to_stands_before_what_it_leads_to():
    found = laid("ab bc cd xd")
    assert found.boxes["x"].x == found.boxes["c"].x


def test_crossings_that_need_not_be_are_not():
    assert crossings(laid("ad bc", "abcd")) == 0
    assert crossings(laid("ae bd cf ad", "abcdef")) == 0
    tree = laid("ab ac bd be cf cg")
    assert crossings(tree) == 0
    assert tree.boxes["a"].y == pytest.approx((tree.boxes["d"].y + tree.boxes["g"].y) / 2), "a stands over its branches"


def test_long_lines_pass_beside_the_boxes():
    found = laid("ab bc cd ad ac")
    for line in found.lines.values():
        for (x, y), (u, v) in pairwise(line):
            for box in found.boxes.values():
                inside = box.x + 1 < (x + u) / 2 < box.x + box.width - 1 and box.y < (y + v) / 2 < box.y + box.height
                assert not inside


def test_rings_doubles_loops_and_strangers_do_no_harm():
    found = laid("ab bc ca ab aa")
    assert set(found.lines) == {("a", "b"), ("b", "c"), ("c", "a")}
    (x, _), (u, _) = found.lines["c", "a"][0], found.lines["c", "a"][-1]
    assert x > u, "it is drawn against the direction"
    assert layout({"a": SIZE}, [("a", "z"), ("y", "a")]).lines == {}
    assert layout({}, []).boxes == {}


@pytest.mark.parametrize("seed", range(20))
def test_no_two_boxes_touch_and_all_lines_go_forward(seed):
    chance = random.Random(seed)
    count = chance.choice((3, 8, 20, 60))
    sizes = {str(i): (chance.uniform(20, 200), chance.uniform(20, 90)) for i in range(count)}
    pairs = [(str(i), str(j)) for i in range(count) for j in range(i + 1, count) if chance.random() < 2.5 / count]
    for rightwards, even in ((True, False), (False, True)):
        found = layout(sizes, pairs, rightwards=rightwards, even=even)
        assert all(apart(a, b) for a, b in combinations(found.boxes.values(), 2))
        for box in found.boxes.values():
            assert box.x >= -0.01 and box.x + box.width <= found.width + 0.01
            assert box.y >= -0.01 and box.y + box.height <= found.height + 0.01
        for (a, b), line in found.lines.items():
            along = [p[0 if rightwards else 1] for p in line]
            assert along == sorted(along)
            ends = [found.boxes[a].x + found.boxes[a].width, found.boxes[b].x]
            if rightwards:
                assert [along[0], along[-1]] == pytest.approx(ends)
        assert found == layout(sizes, pairs, rightwards=rightwards, even=even), "equal graphs, equal layouts"


def test_boxes_of_a_layer_are_made_even():
    found = layout({"a": (50, 20), "b": (90, 20), "c": (30, 20)}, [("a", "c"), ("b", "c")], even=True)
    assert [b.width for b in found.boxes.values()] == [90, 90, 30]


def test_a_large_matrix_is_laid_out_at_once():
    names = [f"{s}{i}" for s in "abcd" for i in range(200)]
    pairs = [("data", f"a{i}") for i in range(200)] + [
        (f"{x}{i}", f"{y}{i}") for x, y in ("ab", "bc", "cd") for i in range(200)
    ]
    found = layout(dict.fromkeys(["data", *names], SIZE), pairs)
    assert crossings_in_layers(found, pairs) == 0


def crossings_in_layers(found, pairs) -> int:
    """Of lines between the same two layers: by the order of their ends."""
    by: dict[float, list[tuple[float, float]]] = {}
    for a, b in pairs:
        by.setdefault(found.boxes[a].x, []).append((found.boxes[a].y, found.boxes[b].y))
    return sum((a - c) * (b - d) < 0 for ends in by.values() for (a, b), (c, d) in combinations(ends, 2))


# --- pictures ---


def texts(picture: str) -> list[str]:
    return [t.text or "" for t in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def test_a_picture_has_its_words_and_states():
    cards = {"a": Card("data", ("prepare-data",), "done", "a hint"), "b": Card("adapter", link="#adapter")}
    picture = svg(cards, {("a", "b"): "dataset"}, "tones")
    root = ElementTree.fromstring(picture)
    assert texts(picture) == ["data", "prepare-data", "adapter", "dataset"]
    assert root.get("role") == "img" and root.get("aria-label") == "tones"
    assert [g.get("class") for g in root.iter(f"{SVG}g")] == ["card done", "card "]
    assert [a.get("href") for a in root.iter(f"{SVG}a")] == ["#adapter"]
    assert "prefers-color-scheme:dark" in picture
    assert 'class="page"' not in svg(cards, {}, "", page=False)


def test_hostile_words_are_text():
    evil = "</title><script>alert(1)</script>\" onload='x' \x00\x1b\ud800\ufffe ]]> &amp; <!--"
    picture = svg({evil: Card(evil, (evil,), evil, evil, evil), "b": Card("b")}, {(evil, "b"): evil}, evil)
    root = ElementTree.fromstring(picture)
    assert {e.tag.removeprefix(SVG) for e in root.iter()} <= {
        "svg", "title", "style", "rect", "path", "polygon", "text", "g", "a",
    }  # fmt: skip
    assert not [k for e in root.iter() for k in e.attrib if k.startswith("on")]
    assert picture.encode()


def test_long_words_are_cut_to_what_fits():
    long = "a-very-long-name-of-a-stage-" * 10
    assert width(cut(long, 14), 14) <= 260 and "…" in cut(long, 14)
    assert cut(long, 14).endswith("stage-"), "names often differ at their end"
    assert cut("short", 14) == "short" and width("日本", 10) > width("ab", 10)


def test_the_graph_of_a_pipeline(chain):
    done = chain.run("graph", "--format", "svg")
    assert done.code == 0
    assert {"first", "second", "side", "append", "count"} == set(texts(done.out))
    assert len(list(ElementTree.fromstring(done.out).iter(f"{SVG}path"))) == 2


def test_the_graph_of_a_matrix_names_what_varies(project):
    project.stage("make", "true", params={"rank": {"type": "integer", "default": 1}})
    project.stage("see", "true", inputs={"x": ["dataset"]})
    project.pipeline("""\
        name: sweep
        stages:
          make: {uses: ./make, matrix: {rank: [8, 16]}}
          see: {uses: ./see, inputs: {x: "${{ stages.make.out }}"}}
          best: {select: {from: see, take: make, maximize: score}}
        """)
    found = texts(project.run("graph", "--format", "svg").out)
    assert {"make-8", "make-16", "see-8", "rank 8", "rank 16", "the best of 2"} <= set(found)
