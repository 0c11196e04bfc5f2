"""The commands for artifacts: tag, verify, push, pull, gc. What they do lives in the modules that they import."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from microstages.errors import EXIT_OK, EXIT_USER, UserError

if TYPE_CHECKING:
    from runner.carry import Source
    from runner.gc import Decision, Item
    from runner.named import Finder, Named
    from runner.store import Store
    from runner.tags import Tag
    from runner.verify import Finding


def print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))


def _show_transfers() -> None:
    """Transfers, and stores that do not answer, are told on stderr."""
    from microstages import watch
    from microstages.reporting import Reporter, Transfers

    watch.current = Transfers(Reporter("runner", None, sys.stderr))


def tag(args: argparse.Namespace) -> int:
    """Name the results of the pipeline as they are now; without a name, list the tags. gc keeps what a tag names."""
    from runner import tags
    from runner.inventory import look
    from runner.records import open_store

    if args.delete and (args.stages or args.move or not args.name):
        raise UserError("--delete takes the name of one tag", fix="runner tag --delete NAME")
    if args.move and not args.name:
        raise UserError("--move needs the name of a tag", fix="runner tag NAME --move")
    if args.delete:
        tags.delete(open_store(args.pipeline, args.set), args.name)
        print_json({"deleted": args.name}) if args.json else print(f"{args.name}: removed")
        return EXIT_OK
    if args.name:
        from runner import otherwise

        known = look(args.pipeline, args.set)
        found = [tags.make(known, args.name, args.stages, args.move)]
        otherwise.tell(known, args.stages or known.pipeline.stages)
    else:
        found = sorted(tags.read_all(open_store(args.pipeline, args.set)).values(), key=lambda t: t.when, reverse=True)
    if args.json:
        print_json([t.__dict__ for t in found])
    else:
        print(_tags_as_text(found))
    return EXIT_OK


def _tags_as_text(found: Sequence[Tag]) -> str:
    from runner.summary import table

    rows = [["tag", "when", "who", "pipeline", "stages"]]
    rows += [[t.name, t.when.replace("T", " ").rstrip("Z"), t.who, t.pipeline, ", ".join(t.stages)] for t in found]
    return table(rows, left=5) if found else "no tags yet"


def verify(args: argparse.Namespace) -> int:
    """Read every byte of results again and name what is missing or altered. Without words: all of the pipeline's."""
    from microstages.reporting import number_of, size

    from runner import verify as check
    from runner.inventory import scan
    from runner.named import Finder
    from runner.records import open_store

    if args.all and args.what:
        raise UserError("--all excludes words", fix="give one of them")
    _show_transfers()
    undone: dict[str, str] = {}
    found: list[Finding] = []
    store: Store | None
    if args.all:
        store = open_store(args.pipeline, args.set)
        artifacts, found = check.everything(store, scan(store))
    else:
        finder = Finder(args.pipeline, args.set)
        if args.what:
            meant = finder.find(args.what)
            artifacts = list(meant.artifacts)
        else:
            artifacts, undone = finder.all_stages()
        store = finder.store
    width = max((len(n) for n in [*(a.name for a in artifacts), *(f.name for f in found), *undone]), default=0)
    lines = [] if args.json else [_finding_as_text(f, width) for f in found]
    lines += [] if args.json else [f"{name:<{width}}  not done: {why}" for name, why in undone.items()]
    for text in lines:
        print(text)
    for artifact in artifacts:
        found.append(check.check(artifact, store))
        if not args.json:
            print(_finding_as_text(found[-1], width), flush=True)
    bad = [f for f in found if f.wrong]
    if args.json:
        rows = [{"state": f.state, **f.__dict__} for f in found]
        print_json({"ok": not bad, "artifacts": rows, "not_done": undone})
    else:
        total = size(sum(f.size for f in found))
        how = f"{len(bad)} damaged" if bad else "all as they were made"
        print(f"\n{number_of(len(found), 'artifact')}, {total}: {how}")
        if any(a.attempt for a in artifacts if a.name in {f.name for f in bad}):
            from runner.program import as_typed

            print(as_typed("`runner up` makes a damaged result again"))
    return EXIT_USER if bad else EXIT_OK


def _finding_as_text(f: Finding, width: int) -> str:
    from microstages.reporting import number_of, size

    lines = [f"{f.name:<{width}}  {f.state:<7}  {number_of(f.files, 'file')}, {size(f.size)}"]
    lines += [f"{'':<{width}}  {f.uri}/{name}: {what}" for name, what in f.wrong.items()]
    if f.extra:
        more = f" and {len(f.extra) - 3} more" if len(f.extra) > 3 else ""
        lines.append(f"{'':<{width}}  note: no part of it: {', '.join(f.extra[:3])}{more}")
    if f.note:
        lines.append(f"{'':<{width}}  note: {f.note}")
    return "\n".join(lines)


def push(args: argparse.Namespace) -> int:
    """Copy artifacts from here to another place, checked on the way. What is there already is not sent again."""
    return _carry(args)


def pull(args: argparse.Namespace) -> int:
    """Copy artifacts to a folder of this machine, checked on the way."""
    from microstages.storage import local_path, public

    if local_path(args.dest) is None:
        fix = f"runner push copies to other places; DEST comes last: runner pull {public(args.dest)} FOLDER"
        what = "pull writes to a folder of this machine, and this is an address elsewhere"
        raise UserError(what, where=f"DEST {public(args.dest)}", fix=fix)
    return _carry(args, here=True)


def _carry(args: argparse.Namespace, here: bool = False) -> int:
    from microstages import storage
    from microstages.reporting import number_of, size

    from runner import carry
    from runner.named import Finder

    _show_transfers()
    finder = Finder(args.pipeline, args.set)
    meant = finder.find(args.what)
    base = args.dest.rstrip("/") or args.dest
    pairs = [(a, base if meant.one else storage.join(base, a.place)) for a in meant.artifacts]
    sources = [carry.source(a.uri, a.digest) for a, _ in pairs]  # what is wrong is told before anything is copied
    rows = []
    for (artifact, given), source in zip(pairs, sources, strict=True):
        began, dest = time.monotonic(), given
        if here and (place := placed(source.manifest.metadata)):
            dest = storage.join(given, place)
        made = carry.copy(source, dest, ("README.md",) if getattr(args, "replace", False) else None)
        took = time.monotonic() - began
        m, place = source.manifest, storage.public(dest)
        rows.append({"name": artifact.name, "from": storage.public(artifact.uri), "to": place, "kind": m.kind,
                     "digest": m.digest, "size": m.size, "copied": made})  # fmt: skip
        if not args.json:
            files = number_of(len(m.files), "file")
            how = f"{files}, {size(m.size)} in {took:.1f} s" if made else "there already, nothing to do"
            print(f"{artifact.name} → {place}  {how}", flush=True)
        if here and (card := _card(finder, artifact, source, dest)):
            rows[-1]["card"] = card
            if not args.json:
                print(f"{artifact.name}: its card is {card}")
    if args.json:
        print_json(rows)
    return EXIT_OK


def placed(metadata: Mapping[str, Any]) -> str:
    """Below which folders those who use an artifact look for it (`--layout ai-toolkit`); the empty string: anywhere."""
    place = metadata.get("folder")
    return place if isinstance(place, str) and re.fullmatch(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)*", place) else ""


def _card(finder: Finder, artifact: Named, source: Source, dest: str) -> str:
    """The card of a model beside its copy; that it cannot be written is a warning: the copy is whole."""
    from runner.report.cards import write_beside

    try:
        file = write_beside(finder, artifact, source, dest)
        return str(file) if file else ""
    except (UserError, OSError) as error:
        print(f"warning: no card is written: {error}".split("\n", maxsplit=1)[0], file=sys.stderr)
        return ""


def gc(args: argparse.Namespace) -> int:
    """Show what nobody needs any more in the store; with --yes, remove it."""
    from runner import gc as collector
    from runner.inventory import look, scan

    _show_transfers()
    known = look(args.pipeline, args.set)
    needed = collector.Needed(known, args.keep_runs)
    folders = scan(known.store)
    needs = needed.now()
    decision = collector.decide(known.store, folders, needs, list(needed.runs.values()), args.older_than)
    cached = collector.cached(args.older_than) if args.cache else []
    gone: list[Item] = []
    if args.yes:
        gone = collector.remove(known.store, decision.items, needed, lambda text: print(text, file=sys.stderr))
        gone += collector.remove_cached(cached) if cached else []
    if args.json:
        items = [{k: v for k, v in i.__dict__.items() if k not in ("content", "run")} for i in decision.items + cached]
        kept = {why: {"count": n, "size": s} for why, (n, s) in decision.kept.items()}
        print_json({"would_go": items, "removed": [i.name for i in gone], "kept": kept})
    else:
        print(_gc_as_text(decision, decision.items + cached, gone, args.yes))
    return EXIT_OK


def _gc_as_text(decision: Decision, items: Sequence[Item], gone: Sequence[Item], done: bool) -> str:
    from microstages.reporting import duration, size

    from runner.summary import table

    lines = []
    shown = gone if done else items
    if shown:
        rows = [["what", "name", "why", "age", "size"]]
        rows += [[i.kind, i.name, i.why, "–" if i.age is None else duration(i.age), size(i.size)] for i in shown]
        lines += [table(rows, left=3), ""]
    total = size(sum(i.size for i in shown))
    if not shown:
        lines.append("nothing to remove")
    elif done:
        lines.append(f"removed: {total}")
    else:
        lines.append(f"could go: {total}; nothing is removed yet: --yes does it")
    for why, (count, bytes_) in sorted(decision.kept.items(), key=lambda k: -k[1][1]):
        lines.append(f"kept: {count} {why}, {size(bytes_)}")
    return "\n".join(lines)
