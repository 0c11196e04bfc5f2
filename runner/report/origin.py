"""The parts of the page that say what made what: lineage, the details of each stage, software and hardware."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microstages.reporting import duration, number_of, size

from runner.compare.html import short, text
from runner.report.pictures import badge, made_in, took, when
from runner.report.words import DASH, digest, flat, table, value

Data = Mapping[str, Any]


def lineage(data: Data) -> str:
    """Every artifact of the run: what it is, and what it was made of."""
    rows = []
    for s in data["stages"]:
        for o in s["outputs"]:
            inputs = "<br>".join(f"{text(i['name'])}: {_origin(i)} {digest(i['digest'])}" for i in s["inputs"]) or DASH
            rows.append([text(o["artifact"]), text(o["kind"]), digest(o["digest"]), inputs,
                         f"{text(s['uses'])} {text(s['version'])}".strip(), digest(s["fingerprint"]),
                         text(f"{number_of(o['files'], 'file')}, {size(o['size'])}")])  # fmt: skip
    head = ("artifact", "kind", "digest", "made of", "by", "fingerprint", "size")
    return table(head, rows, "lineage")


def _origin(i: Data) -> str:
    return f"<b>{text(i['artifact'])}</b>" if i["artifact"] else text(i["place"] or i["stage"] or "")


def details(data: Data) -> str:
    """A part for each stage that opens: parameters, identity, times, what was measured, versions."""
    now = data["run"]["now"]
    return "\n".join(_detail(i, s, now) for i, s in enumerate(data["stages"]))


def _detail(i: int, s: Data, now: float) -> str:
    seconds = took(s, now)
    spent = made_in(s) if seconds is None else duration(seconds)
    reason = s["progress"] or s["reason"]
    facts = [("uses", text(f"{s['uses']} {s['version']}".strip())), ("why", text(s["reason"])),
             ("began", text(when(s["started"]) if s["started"] else "")),
             ("ended", text(when(s["finished"]) if s["finished"] else "")),
             ("exit code", text("" if s["exit_code"] is None else s["exit_code"])),
             ("fingerprint", digest(s["fingerprint"], True) if s["fingerprint"] else ""),
             ("code", digest(s["code"], True) if s["code"] else ""), ("attempt", text(s["attempt"])),
             *((f"output {text(o['name'])}", f"{digest(o['digest'], True)}<br>{text(o['place'])}")
               for o in s["outputs"]),
             *((f"input {text(x['name'])}", f"{_origin(x)} {digest(x['digest'], True) if x['digest'] else ''}")
               for x in s["inputs"])]  # fmt: skip
    own = {k: v for k, v in s["params"].items() if k not in s["defaults"] or s["defaults"][k] != v}
    rest = {k: v for k, v in s["params"].items() if k not in own}
    metrics = [[text(k), text(v)] for k, v in flat(s["metrics"])]
    params = table(("", ""), [[text(k), f"<code>{text(value(v))}</code>"] for k, v in own.items()], "facts")
    if rest:
        default = table(("", ""), [[text(k), f"<code>{text(value(v))}</code>"] for k, v in rest.items()], "facts")
        params += f"<details><summary>{len(rest)} as they are by default</summary>{default}</details>"
    cards = [
        ("Made", table(("", ""), [[k, v] for k, v in facts if v], "facts")),
        ("Parameters", params),
        ("Measured", table(("", ""), metrics, "facts")),
        ("Ran on", table(("", ""), [[text(k), text(v)] for k, v in flat({**s["hardware"], **s["software"]})], "facts")),
    ]
    inside = "".join(f'<div class="card"><h4>{title}</h4>{content}</div>' for title, content in cards if content)
    about = " · ".join(x for x in (s["uses"], spent, short(reason, 120)) if x)
    return (
        f'<details class="stage" id="stage-{i}"><summary><b>{text(s["name"])}</b> {badge(s["status"])} '
        f'<span class="soft">{text(about)}</span></summary>'
        f'<div class="grid">{inside}</div></details>'
    )


def machines(data: Data) -> str:
    """Versions by package, and the machines, over all stages that say so."""
    told = [s for s in data["stages"] if s["software"] or s["hardware"]]
    found: dict[str, dict[str, list[str]]] = {}
    for s in told:
        for name, version in s["software"].items():
            found.setdefault(str(name), {}).setdefault(str(version), []).append(s["name"])
    rows = []
    for name in sorted(found):
        several = len(found[name]) > 1
        said = [f"{text(v)} <span class='soft'>({text(', '.join(who))})</span>" if several else text(v)
                for v, who in found[name].items()]  # fmt: skip
        rows.append([text(name), "<br>".join(said)])
    hardware: dict[str, list[str]] = {}
    for s in told:
        if s["hardware"]:
            words = "; ".join(f"{k.removesuffix('_bytes')} {v}" for k, v in flat(s["hardware"]))
            hardware.setdefault(words, []).append(s["name"])
    places = [
        [text(", ".join(who)) if len(hardware) > 1 else "all stages", text(words)] for words, who in hardware.items()
    ]
    cards = [c for c in (table(("package", "version"), rows, "facts"), table(("", "machine"), places, "facts")) if c]
    return f'<div class="grid">{"".join(f"""<div class="card">{c}</div>""" for c in cards)}</div>' if cards else ""
