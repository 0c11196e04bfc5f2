"""Where the boxes and lines of a graph go: a layered layout, after Sugiyama, Tagawa and Toda (1981). Pure; no drawing.

1. Each box gets a layer: behind everything that leads to it, and no further ahead of what it leads to than must be.
2. A line over several layers gets a point in each of them, so that no line runs through a box.
3. The boxes and points of a layer are put in an order with few crossings: by the mean place of their neighbours, to and
   fro, then by swapping two that stand side by side.
4. Each layer is moved to where its neighbours are, as near as the gaps allow (least squares, by pooling).

Equal graphs have equal layouts. Units are those of the sizes given, such as pixels; y grows downwards.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

SWEEPS = 12  # to and fro over the layers, for the order and for the places
SWAPS_UP_TO = 400  # boxes and points: swapping is quadratic, and beyond that nobody sees the difference

Edge = tuple[str, str]
Point = tuple[float, float]


@dataclass(frozen=True)
class Box:
    """A box's place: its upper left corner and its size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Layout:
    """The boxes by name; of each edge the points that its line goes through, from the border of the one to that of the
    other; the size of the whole. `rightwards`: the layers follow each other to the right, otherwise downwards."""

    width: float
    height: float
    boxes: Mapping[str, Box]
    lines: Mapping[Edge, Sequence[Point]]
    rightwards: bool = True

    def path(self, edge: Edge) -> str:
        """An edge as the `d` of an SVG path: a curve that leaves, passes and arrives along the layers' direction."""
        (x, y), *rest = self.lines[edge]
        text = [f"M{x:.1f},{y:.1f}"]
        for u, v in rest:
            if y == v if self.rightwards else x == u:
                text.append(f"L{u:.1f},{v:.1f}")
            elif self.rightwards:
                text.append(f"C{(x + u) / 2:.1f},{y:.1f} {(x + u) / 2:.1f},{v:.1f} {u:.1f},{v:.1f}")
            else:
                text.append(f"C{x:.1f},{(y + v) / 2:.1f} {u:.1f},{(y + v) / 2:.1f} {u:.1f},{v:.1f}")
            x, y = u, v
        return " ".join(text)

    def end(self, edge: Edge) -> Point:
        """The middle of the last piece of an edge: where words about it may stand."""
        (x, y), (u, v) = self.lines[edge][-2:]
        return (x + u) / 2, (y + v) / 2


@dataclass
class _Node:
    """A box, or a point of a long line. `long`: its size along the layers' direction, `wide`: across it."""

    layer: int
    long: float = 0.0
    wide: float = 0.0
    real: bool = False
    before: list[int] = field(default_factory=list)  # neighbours in the layer before
    after: list[int] = field(default_factory=list)
    at: float = 0.0  # its middle, across


def layout(
    sizes: Mapping[str, tuple[float, float]], edges: Sequence[Edge], *, rightwards: bool = True, gap: float = 16.0,
    layer_gap: float = 48.0, even: bool = False,
) -> Layout:  # fmt: skip
    """Lay out boxes (name -> width, height) and the edges between them; in what order they are given decides ties.

    `gap`: between two boxes of a layer; `layer_gap`: between two layers. `even`: the boxes of a layer are made as long,
    along the layers' direction, as the longest of them. An edge that stands twice, leads from a box to
    itself, or names no box, has no line; one that closes a ring is drawn against the direction.
    """
    known = [(a, b) for a, b in dict.fromkeys(edges) if a in sizes and b in sizes and a != b]
    forward = _without_rings(list(sizes), known)
    layers_of = _layers(list(sizes), forward)
    nodes = []
    for name, (width, height) in sizes.items():
        long, wide = (width, height) if rightwards else (height, width)
        nodes.append(_Node(layers_of[name], long, wide, True))
    index = {name: i for i, name in enumerate(sizes)}
    chains = {edge: _chain(nodes, index[way[0]], index[way[1]]) for edge, way in zip(known, forward, strict=True)}
    layers: list[list[int]] = [[] for _ in range(max(layers_of.values(), default=-1) + 1)]
    for i, node in enumerate(nodes):
        layers[node.layer].append(i)
    longs = [max(nodes[i].long for i in layer) for layer in layers]
    for node in nodes:
        node.long = longs[node.layer] if even and node.real else node.long
    _order(nodes, layers)
    _place(nodes, layers, gap)

    begins, total = [], 0.0
    for long in longs:
        begins.append(total)
        total += long + layer_gap
    low = min((n.at - n.wide / 2 for n in nodes), default=0.0)
    high = max((n.at + n.wide / 2 for n in nodes), default=0.0)

    def point(along: float, across: float) -> Point:
        return (along, across - low) if rightwards else (across - low, along)

    boxes = {}
    for name, i in index.items():
        n = nodes[i]
        x, y = point(begins[n.layer] + (longs[n.layer] - n.long) / 2, n.at - n.wide / 2)
        boxes[name] = Box(x, y, n.long, n.wide) if rightwards else Box(x, y, n.wide, n.long)
    ports = _ports(nodes, chains)
    lines = {}
    for (edge, chain), way in zip(chains.items(), forward, strict=True):
        first, last = nodes[chain[0]], nodes[chain[-1]]
        out = begins[first.layer] + (longs[first.layer] + first.long) / 2
        into = begins[last.layer] + (longs[last.layer] - last.long) / 2
        points = [point(out, ports[edge][0])]
        for i in chain[1:-1]:
            n = nodes[i]
            points += [point(begins[n.layer], n.at), point(begins[n.layer] + longs[n.layer], n.at)]
        points.append(point(into, ports[edge][1]))
        lines[edge] = points if way == edge else points[::-1]
    size = (max(0.0, total - layer_gap), high - low)
    return Layout(*(size if rightwards else size[::-1]), boxes, lines, rightwards)


def _without_rings(names: Sequence[str], edges: Sequence[Edge]) -> list[Edge]:
    """The edges, those turned around that lead back to where a walk came from."""
    after: dict[str, list[str]] = {name: [] for name in names}
    for a, b in edges:
        after[a].append(b)
    state: dict[str, int] = {}
    back: set[Edge] = set()
    for root in names:
        path = [(root, iter(after[root]))] if root not in state else []
        state.setdefault(root, 1)
        while path:
            name, rest = path[-1]
            for other in rest:
                if state.get(other) == 1:
                    back.add((name, other))
                elif other not in state:
                    state[other] = 1
                    path.append((other, iter(after[other])))
                    break
            else:
                state[name] = 2
                path.pop()
    return [(b, a) if (a, b) in back else (a, b) for a, b in edges]


def _layers(names: Sequence[str], edges: Sequence[Edge]) -> dict[str, int]:
    """The layer of each box: one behind the last that leads to it; what nothing leads to stands just before the first
    that it leads to."""
    after: dict[str, list[str]] = {name: [] for name in names}
    waits = dict.fromkeys(names, 0)
    for a, b in edges:
        after[a].append(b)
        waits[b] += 1
    layer = dict.fromkeys(names, 0)
    ready = [n for n in names if not waits[n]]
    sources = set(ready)
    for name in ready:
        for b in after[name]:
            layer[b] = max(layer[b], layer[name] + 1)
            waits[b] -= 1
            if not waits[b]:
                ready.append(b)
    return {n: min(layer[b] for b in after[n]) - 1 if n in sources and after[n] else layer[n] for n in names}


def _chain(nodes: list[_Node], a: int, b: int) -> list[int]:
    """The nodes that an edge goes through, its two ends among them; points are made for the layers between."""
    chain = [a]
    for layer in range(nodes[a].layer + 1, nodes[b].layer):
        nodes.append(_Node(layer))
        chain.append(len(nodes) - 1)
    chain.append(b)
    for i, j in pairwise(chain):
        nodes[i].after.append(j)
        nodes[j].before.append(i)
    return chain


def _order(nodes: Sequence[_Node], layers: list[list[int]]) -> None:
    """Put the nodes of each layer in the order with the fewest crossings that was found."""
    best, fewest = [list(layer) for layer in layers], _crossings(nodes, layers)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        down = sweep % 2 == 0
        place = {i: float(p) for layer in layers for p, i in enumerate(layer)}
        for layer in layers[1:] if down else layers[-2::-1]:
            mean = {}
            for p, i in enumerate(layer):
                near = nodes[i].before if down else nodes[i].after
                mean[i] = sum(place[j] for j in near) / len(near) if near else float(p)
            layer.sort(key=lambda i: mean[i])
            place.update((i, float(p)) for p, i in enumerate(layer))
        if len(nodes) <= SWAPS_UP_TO:
            _swap(nodes, layers)
        if (now := _crossings(nodes, layers)) < fewest:
            best, fewest = [list(layer) for layer in layers], now
    layers[:] = best


def _swap(nodes: Sequence[_Node], layers: Sequence[list[int]]) -> None:
    """Swap two that stand side by side wherever that takes crossings away."""
    place = {i: p for layer in layers for p, i in enumerate(layer)}

    def crossed(a: int, b: int) -> int:
        """Crossings of the lines of two nodes, the first of which stands before the second."""
        pairs = ((nodes[a].before, nodes[b].before), (nodes[a].after, nodes[b].after))
        return sum(place[i] > place[j] for one, other in pairs for i in one for j in other)

    for layer in layers:
        for p in range(len(layer) - 1):
            a, b = layer[p], layer[p + 1]
            if crossed(a, b) > crossed(b, a):
                layer[p], layer[p + 1] = b, a
                place[a], place[b] = p + 1, p


def _crossings(nodes: Sequence[_Node], layers: Sequence[Sequence[int]]) -> int:
    """How many pairs of lines cross."""
    count = 0
    for layer, following in pairwise(layers):
        place = {i: p for p, i in enumerate(following)}
        ends = [p for i in layer for p in sorted(place[j] for j in nodes[i].after)]
        seen: list[int] = []
        for p in ends:
            count += len(seen) - bisect_right(seen, p)
            insort(seen, p)
    return count


def _place(nodes: Sequence[_Node], layers: Sequence[Sequence[int]], gap: float) -> None:
    """Give each node its place across: near the middle of its neighbours, in order, without touching."""
    apart = [
        [(nodes[a].wide + nodes[b].wide) / 2 + (gap if nodes[a].real or nodes[b].real else gap / 2)
         for a, b in pairwise(layer)]
        for layer in layers
    ]  # fmt: skip
    for layer, spaces in zip(layers, apart, strict=True):
        at = -sum(spaces) / 2
        for i, space in zip(layer, [*spaces, 0.0], strict=True):
            nodes[i].at = at
            at += space
    for sweep in range(2 * SWEEPS):
        ways: tuple[str, ...] = ("before",) if sweep % 2 == 0 else ("after",)
        if sweep >= 2 * SWEEPS - 2:
            ways = ("before", "after")  # at last between both
        numbers = range(len(layers)) if sweep % 2 == 0 else range(len(layers) - 1, -1, -1)
        for k in numbers:
            wanted, weights = [], []
            for i in layers[k]:
                near = [j for way in ways for j in getattr(nodes[i], way)]
                wanted.append(sum(nodes[j].at for j in near) / len(near) if near else nodes[i].at)
                straight = not nodes[i].real and any(not nodes[j].real for j in near)
                weights.append(8.0 if straight else 1.0 if near else 0.1)
            for i, at in zip(layers[k], _pooled(wanted, weights, apart[k]), strict=True):
                nodes[i].at = at


def _pooled(wanted: Sequence[float], weights: Sequence[float], spaces: Sequence[float]) -> list[float]:
    """The places nearest to those wanted, in the sense of weighted least squares, in order and at least so far apart:
    neighbours that would come too near are pooled and moved as one (isotonic regression)."""
    shift, shifts = 0.0, []
    for space in [*spaces, 0.0][: len(wanted)]:
        shifts.append(shift)
        shift += space
    pools: list[tuple[float, float, int]] = []  # place, weight, how many
    for want, weight, moved in zip(wanted, weights, shifts, strict=True):
        at, heavy, many = want - moved, weight, 1
        while pools and pools[-1][0] > at:
            before, w, m = pools.pop()
            at, heavy, many = (before * w + at * heavy) / (w + heavy), w + heavy, m + many
        pools.append((at, heavy, many))
    flat = [at for at, _, many in pools for _ in range(many)]
    return [at + moved for at, moved in zip(flat, shifts, strict=True)]


def _ports(nodes: Sequence[_Node], chains: Mapping[Edge, Sequence[int]]) -> dict[Edge, tuple[float, float]]:
    """Where each line leaves and arrives, across: spread over the middle half of a box's side, in the order of where
    they come from or go to."""
    leaving: dict[int, list[tuple[float, Edge]]] = {}
    arriving: dict[int, list[tuple[float, Edge]]] = {}
    for edge, chain in chains.items():
        leaving.setdefault(chain[0], []).append((nodes[chain[1]].at, edge))
        arriving.setdefault(chain[-1], []).append((nodes[chain[-2]].at, edge))

    def spread(sides: Mapping[int, list[tuple[float, Edge]]]) -> dict[Edge, float]:
        found = {}
        for i, ends in sides.items():
            step = nodes[i].wide / 2 / len(ends)
            for place, (_, edge) in enumerate(sorted(ends, key=lambda e: e[0])):
                found[edge] = nodes[i].at + (place - (len(ends) - 1) / 2) * step
        return found

    out, into = spread(leaving), spread(arriving)
    return {edge: (out[edge], into[edge]) for edge in chains}
