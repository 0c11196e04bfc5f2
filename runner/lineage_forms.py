"""The command `lineage`, and lineage as text, Mermaid and SVG. See `lineage` for what it is."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from microstages.errors import EXIT_OK, UserError
from microstages.reporting import duration, number_of, size
from microstages.storage import local_path

from runner.lineage import Node, Root, ancestors, as_data, find, trace
from runner.plan import shown

DEEPEST = 200  # generations in a tree; JSON has them all
SHORT = 12  # characters of a digest that people are shown

Defaults = Callable[[str], Mapping[str, Any]]


def lineage(args: argparse.Namespace) -> int:
    """What made an artifact, of what, back to its sources."""
    from runner.artifacts import _show_transfers, print_json
    from runner.named import Finder
    from runner.records import open_store
    from runner.view import say

    _show_transfers()
    finder = Finder(args.pipeline, args.set)
    # an address needs no pipeline; where there is one, its store helps to find what has moved
    store = open_store(args.pipeline, args.set) if args.pipeline.exists() else None
    found = find([args.what], finder, store, lambda text: say(f"note: {text}", sys.stderr))
    nodes = trace([(uri, digest) for _, uri, digest in found], store)
    names = [n.stage or Path(n.address).name if name in (uri, n.address) else name
             for (name, uri, _), n in zip(found, nodes, strict=True)]  # fmt: skip
    roots = tops([Root(name, node) for name, node in zip(names, nodes, strict=True)])
    if args.format == "json":
        print_json(as_data(roots))
    else:
        form = {"text": as_text, "mermaid": as_mermaid, "svg": as_svg}[args.format]
        print(form(roots, args.pipeline.absolute().parent).rstrip("\n"))
    return EXIT_OK


def tops(roots: Sequence[Root]) -> list[Root]:
    """Those that no other was made of: what a tag names is often one lineage."""
    below = {id(n) for r in roots for top in [r.node] for n in ancestors([top]) if n is not top}
    return [r for r in roots if id(r.node) not in below]


def defaults(folder: Path) -> Defaults:
    """What a stage's parameters are where nobody gives them, as far as the stage is here: only for what is shown."""
    from runner.stages import find as find_stage

    known: dict[str, Mapping[str, Any]] = {}

    def of(stage: str) -> Mapping[str, Any]:
        if stage not in known:
            known[stage] = {}
            for uses in (stage, f"./{stage}"):
                with suppress(UserError, OSError):
                    params = find_stage(uses, folder).interface.params
                    known[stage] = {k: p.default for k, p in params.items()}
                    break
        return known[stage]

    return of


def chosen(node: Node, usual: Defaults) -> dict[str, Any]:
    """The parameters that are not what they are by default."""
    known = usual(node.stage)
    return {k: v for k, v in node.params.items() if v not in (None, [], "") and (k not in known or known[k] != v)}


def short(digest: str) -> str:
    """`sha256:` and the first characters."""
    name, colon, rest = digest.rpartition(":")
    return f"{name}{colon}{rest[:SHORT]}"


def place(address: str) -> str:
    """An address as short as it can be written from here."""
    from runner.view import short as short_path

    path = local_path(address)
    return address if path is None else short_path(path)


def when(node: Node) -> str:
    """`2026-11-22 00:08:44 in 17 s`."""
    from runner.runs import seconds

    begun, ended = seconds(node.started), seconds(node.finished)
    took = f" in {duration(ended - begun)}" if begun is not None and ended is not None and ended > begun else ""
    return f"{node.started.replace('T', ' ').rstrip('Z')}{took}"


def where(node: Node) -> str:
    """The machine, as far as it was noted."""
    gpus = node.hardware.get("gpus")
    words = [", ".join(map(str, gpus))] if isinstance(gpus, list) and gpus else []
    words.append(str(node.hardware.get("processor") or node.hardware.get("machine") or ""))
    cores = node.hardware.get("cores")
    words.append(number_of(cores, "core") if isinstance(cores, int) and cores else "")
    words.append("in a container" if node.image else "")
    return ", ".join(w for w in words if w)


def about(node: Node) -> str:
    """What a node is, on a line."""
    if node.state == "made":
        made = f"{node.stage} {node.version}".rstrip() + (f", {when(node)}" if node.started else "")
        return f"{made}; {node.note}" if node.note else made
    words = {"outside": "from outside", "missing": "not found", "damaged": "damaged", "elsewhere": "not looked at"}
    return f"{words[node.state]}{f' ({node.note})' if node.note else ''}: {place(node.address)}"


def as_text(roots: Sequence[Root], folder: Path) -> str:
    """A tree for each root: an artifact a line, below it what it was made with and of. What stood before is named."""
    usual = defaults(folder)
    rows: list[tuple[str, str, str, str, str] | tuple[str, str]] = []
    stood: dict[int, str] = {}

    def head(lead: str, name: str, node: Node) -> None:
        told = f"as {stood[id(node)]} above" if id(node) in stood else about(node)
        rows.append((lead + name, node.kind or "–", short(node.digest), size(node.size) if node.size else "", told))

    def show(node: Node, name: str, lead: str, branch: str, below: str) -> None:
        head(lead + branch, name, node)
        if id(node) in stood or len(lead) > 3 * DEEPEST:
            return
        stood[id(node)] = name
        inside = list(node.inputs.items())
        rail = lead + below + ("│  " if inside else "   ")
        if node.state == "made":
            words = [f"{k} {shown(v)}" for k, v in chosen(node, usual).items()]
            lines = _wrapped(words)
            identity = [f"code {short(node.code).removeprefix('sha256:')}" if node.code else ""]
            identity += [f"fingerprint {node.fingerprint[:SHORT]}" if node.fingerprint else "", where(node)]
            lines += ["; ".join(w for w in identity if w)]
            lines += [place(node.address)] if not lead and not branch else []
            rows.extend((rail, line) for line in lines if line)
        for i, (input_, other) in enumerate(inside):
            last = i == len(inside) - 1
            show(other, input_, lead + below, "└─ " if last else "├─ ", "   " if last else "│  ")

    for root in roots:
        if rows:
            rows.append(("", ""))
        show(root.node, root.name, "", "", "")
    full = [r for r in rows if len(r) == 5]
    widths = [max((len(r[i]) for r in full), default=0) for i in range(4)]
    out = []
    for row in rows:
        if len(row) == 2:
            out.append(f"{row[0]:<{widths[0]}}  {row[1]}".rstrip())
        else:
            a, b, c, d, e = row
            out.append(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}  {e}".rstrip())
    return "\n".join(out)


def _wrapped(words: Sequence[str], most: int = 100) -> list[str]:
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 2 <= most:
            lines[-1] += f", {word}"
        else:
            lines.append(word)
    return lines


def _named(roots: Sequence[Root]) -> dict[int, tuple[str, Node]]:
    """Every node once, with an identifier."""
    return {id(n): (f"n{i}", n) for i, n in enumerate(ancestors([r.node for r in roots]))}


def _title(node: Node, roots: Sequence[Root]) -> str:
    asked = next((r.name for r in roots if r.node is node), "")
    path = local_path(node.address)
    outside = path.name if path is not None else node.address.split("://")[-1]
    return asked or (node.stage if node.state == "made" or not outside else outside)


def as_mermaid(roots: Sequence[Root], _folder: Path) -> str:
    """A flow chart, from the sources to what was asked for."""
    nodes = _named(roots)
    lines = ["flowchart LR"]
    for name, node in nodes.values():
        title = _title(node, roots)
        small = [node.stage if node.stage != title else "", node.kind or node.state, short(node.digest)]
        text = f"{_mermaid(title)}<br/><small>{'<br/>'.join(_mermaid(w) for w in small if w)}</small>"
        left, right = ("[", "]") if node.state == "made" else ("([", "])")
        lines.append(f'  {name}{left}"{text}"{right}')
    for name, node in nodes.values():
        lines += [f'  {nodes[id(n)][0]} -->|"{_mermaid(k)}"| {name}' for k, n in node.inputs.items()]
    return "\n".join(lines)


def _mermaid(text: str) -> str:
    """Text that Mermaid shows as it stands, by its own entity codes."""
    return re.sub(r"""["<>&#;`|\n\r]""", lambda m: f"#{ord(m[0])};", text)


def as_svg(roots: Sequence[Root], folder: Path, page: bool = True) -> str:
    """A picture, from the sources to what was asked for."""
    from runner.picture import Card, svg

    usual = defaults(folder)
    nodes = _named(roots)
    cards: dict[str, Card] = {}
    edges: dict[tuple[str, str], str] = {}
    for name, node in nodes.values():
        by = node.stage if node.stage != _title(node, roots) else ""
        kind = " · ".join(w for w in (by, node.kind, size(node.size) if node.size else "") if w) or node.state
        lines = (kind, short(node.digest), *([] if node.state == "made" else [_word_for(node)]))
        params = "\n".join(f"{k}: {shown(v)}" for k, v in chosen(node, usual).items())
        hint = "\n".join(w for w in (node.address, node.digest, about(node), params) if w)
        cards[name] = Card(_title(node, roots), lines, "" if node.state == "made" else "source", hint)
        for input_, other in node.inputs.items():
            edge = nodes[id(other)][0], name
            edges[edge] = f"{edges[edge]}, {input_}" if edge in edges else input_
    names = ", ".join(r.name for r in roots)
    return svg(cards, edges, f"What {names} was made of", page=page)


def _word_for(node: Node) -> str:
    return {"outside": "from outside", "elsewhere": "in another store"}.get(node.state, node.note or node.state)
