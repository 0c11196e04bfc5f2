"""Removes from a store what nobody needs any more.

Kept is what the pipeline as it stands needs, what a tag names, what the last runs need (runs that need the same count
once), what a run under way or a lease holds, and what is younger than a day. The rest goes: results, attempts that are
no result (half-made, or replaced), checkpoints of what is done or given up, old records of runs.

Beside runners at work nothing is lost:

1. Whoever makes a stage run holds its lease; `gc` takes the lease of what it removes, and passes over what is held.
2. Whoever reuses a result first names it in his run's record and then looks for it. `gc` first removes `commit.json`,
   so that nobody finds the result, then reads the records and tags again; what is named by now gets its commit back.
3. Only then the files go. A local folder is first moved to `.trash`, so that it is not half there for a moment.

So it can be interrupted anywhere: what has lost its commit is an attempt that is no result, and goes the next time.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field

from microstages import storage
from microstages.errors import UserError, from_os_error

from runner import runs, tags
from runner.inventory import COMMIT, STATE, Commit, Folder, Known, Part, files_below, stage_run_uri
from runner.lease import Holder, Leases
from runner.runs import Run, StageRun
from runner.staging import INPUTS
from runner.store import Store

STALE = 3600.0  # seconds after its last beat for which a lease whose holder cannot be asked still counts
BATCH = 32  # stage runs between two looks at records and tags
TRASH, INPUT = ".trash", "input"


@dataclass(frozen=True)
class Item:
    """Something that goes: its name for people, bytes, seconds since it was written (None: not known), why, its place
    below the store. `run` is the stage run that it belongs to. `content`: what must still be read in a result's commit,
    or in a lease, for it to go."""

    kind: str
    name: str
    size: int
    age: float | None
    why: str
    place: str
    run: StageRun = ("", "")
    content: bytes | None = None
    damaged: bool = False


@dataclass(frozen=True)
class Needs:
    """What is needed, and by what. `busy`: by runs under way. `attempts`: those that tags name."""

    busy: Set[StageRun]
    why: Mapping[StageRun, str]
    attempts: Set[tuple[str, str, str]]
    records: Set[str]

    def __contains__(self, run: StageRun) -> bool:
        return run in self.busy or run in self.why


@dataclass
class Decision:
    """What goes, and of what is kept how much for which reason: reason -> results, bytes."""

    items: list[Item] = field(default_factory=list)
    kept: dict[str, tuple[int, int]] = field(default_factory=dict)

    def keep(self, why: str, size: int) -> None:
        count, before = self.kept.get(why, (0, 0))
        self.kept[why] = count + 1, before + size


class Needed:
    """What is needed now, asked again and again; records of runs that have ended are read once."""

    def __init__(self, known: Known, keep_runs: int) -> None:
        self.known, self.keep_runs = known, keep_runs
        self.runs: dict[str, Run] = {}

    def now(self) -> Needs:
        """Read tags and records. Raises UserError for a tag that cannot be read."""
        self._read_runs()
        newest = sorted(self.runs.values(), key=lambda r: r.name, reverse=True)
        why: dict[StageRun, str] = {}
        records: set[str] = set()
        distinct: set[Set[StageRun]] = set()
        for run in newest:
            new = frozenset(run.needs) not in distinct
            if run.under_way or (new and len(distinct) < self.keep_runs):
                distinct.add(frozenset(run.needs))
                records.add(run.name)
        last = f"needed by the last {self.keep_runs} runs" if self.keep_runs != 1 else "needed by the last run"
        for run in newest:
            if run.name in records:
                why |= dict.fromkeys(run.needs, last)
        attempts = set()
        for tag in tags.read_all(self.known.store).values():
            for s in tag.stages.values():
                why[s["uses"], s["fingerprint"]] = f"named by tag {tag.name}"
                attempts.add((s["uses"], s["fingerprint"], s["attempt"]))
        for key in self._pipeline(newest):
            why[key] = f"needed by {self.known.pipeline.file}"
        busy = {key for run in newest if run.under_way for key in run.needs} | self.known.claims
        return Needs(busy, why, attempts, records)

    def _read_runs(self) -> None:
        root = runs.folder(self.known.store)
        names = [n for n in runs.names(root) if runs.NAME.fullmatch(n)]
        again = [n for n in names if n not in self.runs or self.runs[n].status == "running"]
        found = {r.name: r for r in runs.parse(runs.read_many(root, again))}
        self.runs = {n: found.get(n) or self.runs[n] for n in names if n in found or n in self.runs}

    def _pipeline(self, newest: Sequence[Run]) -> Iterator[StageRun]:
        """The stage runs of the pipeline as it stands; where one is not known yet, that of its last run."""
        for stage in self.known.steps:
            key = self.known.run_of(stage)
            if key[1]:
                yield key
                continue
            for run in newest:
                said = run.stages.get(stage, {})
                if run.pipeline == self.known.pipeline.name and said.get("attempt"):
                    yield said["uses"], said["fingerprint"]
                    break


def decide(
    store: Store, folders: Mapping[StageRun, Folder], needs: Needs, records: Iterable[Run], older_than: float
) -> Decision:
    """What goes and what is kept. Removes nothing."""
    decision, now = Decision(), time.time()

    def age(written: float | None) -> float | None:
        return None if written is None else max(0.0, now - written)

    def old(written: float | None) -> bool:
        return written is not None and now - written >= older_than

    for key, folder in sorted(folders.items()):
        _decide_one(store, key, folder, needs, old, age, decision)
    for run in records:
        written = run.finished or run.started
        if run.name not in needs.records and not run.under_way and old(written):
            why = f"{run.pipeline}, {run.status}; a newer run needs the same, or newer ones are enough"
            decision.items.append(Item("run record", run.name, 0, age(written), why, f"runs/{run.name}"))
    decision.items += [i for i in _leftovers(store) if i.age is None or i.age >= older_than]
    for item in _inputs(store, now):
        if needs.busy:
            decision.keep("in use by a run under way", item.size)
        elif item.age is None or item.age >= older_than:
            decision.items.append(item)
        else:
            decision.keep("young", item.size)
    return decision


def _inputs(store: Store, now: float) -> Iterator[Item]:
    """The copies of things from outside that stages elsewhere read; a run that needs one brings it again."""
    found: dict[str, Part] = {}
    for path, size, written in files_below(storage.join(store.uri, INPUTS)):
        found.setdefault(path.partition("/")[0], Part()).add(size, written)
    for name, part in sorted(found.items()):
        age = None if part.written is None else max(0.0, now - part.written)
        yield Item(INPUT, f"{INPUTS}/{name[:8]}", part.size, age, "it can be copied again", f"{INPUTS}/{name}")


def _leftovers(store: Store) -> Iterator[Item]:
    """Of a local store: what a `gc` that was cut off had moved away, and what killed writers left half-written."""
    if store.path is None:
        return
    for folder in (TRASH, "runs", "tags"):
        place = store.path / folder
        for name in sorted(os.listdir(place)) if place.is_dir() else []:
            with suppress(FileNotFoundError):
                if folder == TRASH:
                    why = "of a gc that was cut off"
                    yield Item("leftover", name, _size(place / name), None, why, f"{TRASH}/{name}")
                elif name.startswith("."):
                    s = (place / name).stat()
                    age, why = time.time() - s.st_mtime, "of a process that was killed"
                    yield Item("leftover", f"{folder}/{name}", s.st_size, age, why, f"{folder}/{name}")


def _decide_one(
    store: Store, key: StageRun, folder: Folder, needs: Needs, old: Callable[[float | None], bool],
    age: Callable[[float | None], float | None], decision: Decision,
) -> None:  # fmt: skip
    commit = Commit.parse(folder.commit) if folder.commit is not None else None
    size = sum(p.size for p in (*folder.attempts.values(), folder.state or Part()))
    if key in needs.busy or _leased(store, key, folder):
        decision.keep("in use by a run under way", size)
        return
    short, place = f"{key[0]}/{key[1][:8]}", f"artifacts/{key[0]}/{key[1]}"

    def goes(kind: str, at: str, part: Part, why: str, content: bytes | None = None, damaged: bool = False) -> None:
        name = short if kind == "result" else f"{short}/{at}"
        item = Item(kind, name, part.size, age(part.written), why, f"{place}/{at}", key, content, damaged)
        decision.items.append(item)

    whole = commit is not None and commit.attempt in folder.attempts and not commit.damaged
    whole = whole and commit is not None and set(commit.outputs) <= folder.attempts[commit.attempt].artifacts
    if commit is not None and folder.commit is not None:
        part = folder.attempts.get(commit.attempt, Part())
        made = Part(part.size, folder.written or commit.finished or part.written)
        if key in needs.why and (whole or (*key, commit.attempt) in needs.attempts):
            decision.keep(needs.why[key], part.size)
        elif not old(made.written):
            decision.keep("young", part.size)
        else:
            why = "nobody needs it" if whole else f"damaged: {commit.damaged or 'a part of it is missing'}"
            goes("result", commit.attempt or COMMIT, made, why, folder.commit, not whole)
    for name, part in folder.attempts.items():
        part.written = max(part.written or 0.0, _begun(name))
        if commit is not None and name == commit.attempt:
            continue
        if (*key, name) in needs.attempts:
            decision.keep(needs.why[key], part.size)
        elif old(part.written):
            why = "half-made: it was never committed" if commit is None else "another attempt is the result"
            goes("attempt", name, part, why)
        else:
            decision.keep("young", part.size)
    if folder.state is not None:
        if key in needs and commit is None:
            decision.keep("checkpoints to go on from", folder.state.size)
        elif old(_written_state(folder)):
            goes(STATE, STATE, folder.state, "the stage is done" if commit else "nobody goes on from there")
        else:
            decision.keep("young", folder.state.size)
    for name, part in [*folder.others.items(), *folder.leases.items()]:
        if old(part.written or _written_state(folder)):
            content = storage.read(stage_run_uri(store, *key, name)) if name in folder.leases else None
            goes("leftover", name, part, "of a process that was killed", content)


def _written_state(folder: Folder) -> float | None:
    """When checkpoints were written last; where the store does not say, when anything beside them was."""
    known = [_begun(name) for name in folder.attempts] + ([folder.written] if folder.written else [])
    return (folder.state.written if folder.state else None) or max(known, default=None)


def _begun(attempt: str) -> float:
    """When an attempt began, by its name."""
    import calendar

    return float(calendar.timegm(time.strptime(attempt[:15], "%Y%m%dT%H%M%S")))


def _leased(store: Store, key: StageRun, folder: Folder) -> bool:
    """Whether somebody makes it now, as far as one look can tell."""
    for name, part in folder.leases.items():
        data = storage.read(stage_run_uri(store, *key, name))
        if data is None or Holder.read(data).ended():
            continue
        beat = part.written or Holder.read(data).since or time.time()
        if time.time() - beat < (STALE if part.written else runs.LONGEST):
            return True
    return False


def _size(path: os.PathLike[str]) -> int:
    return sum(os.lstat(os.path.join(top, f)).st_size for top, _, files in os.walk(path) for f in files)


# --- doing it ---


def remove(store: Store, items: Sequence[Item], needed: Needed, said: Callable[[str], None]) -> list[Item]:
    """Remove what was decided; what went. Passes over what is in use by now. Raises UserError, TemporaryError."""
    gone: list[Item] = []
    groups: dict[StageRun, list[Item]] = {}
    for item in items:
        groups.setdefault(item.run, []).append(item)
    loose = groups.pop(("", ""), [])
    keys = list(groups)
    leases = Leases(store.uri, "gc")
    try:
        for at in range(0, len(keys), BATCH):
            gone += _batch(store, {k: groups[k] for k in keys[at : at + BATCH]}, leases, needed, said)
        needs = needed.now() if any(i.kind in ("run record", INPUT) for i in loose) else None
        for item in loose:
            if not needs or (item.name not in needs.records and not (item.kind == INPUT and needs.busy)):
                with suppress(FileNotFoundError):  # another gc is at it as well
                    storage.remove(storage.join(store.uri, item.place))
                gone.append(item)
        if store.path is not None:
            with suppress(OSError):
                (store.path / TRASH).rmdir()
    except OSError as error:
        raise from_os_error(error, store.uri) or UserError(str(error), where=store.uri) from None
    finally:
        leases.close()
    return gone


def _batch(
    store: Store, groups: Mapping[StageRun, list[Item]], leases: Leases, needed: Needed, said: Callable[[str], None]
) -> list[Item]:
    gone: list[Item] = []
    taken: dict[StageRun, Item | None] = {}
    for key, items in groups.items():
        for item in items:
            if item.kind == "leftover":  # also a dead lease, before it is waited for
                _remove_one(store, item, item.content)
        holder = leases.take(*key, owner="gc", attempt="")
        if holder is not None:
            said(f"{items[0].name}: left alone: {holder}")
            continue
        result = next((i for i in items if i.kind == "result"), None)
        commit = storage.read(_commit(store, key))
        names = {i.place.rpartition("/")[2] for i in items}
        if (result and commit != result.content) or (not result and commit and Commit.parse(commit).attempt in names):
            said(f"{items[0].name}: left alone: it was made again meanwhile")
            leases.release(*key)
            continue
        if result:
            storage.remove(_commit(store, key))
        taken[key] = result
    needs = needed.now()
    for key, result in taken.items():
        if key in needs.busy or (result and key in needs.why and not result.damaged):
            if result and result.content:
                storage.create(_commit(store, key), result.content)
            said(f"{groups[key][0].name}: left alone: it is needed by now")
        else:
            for item in groups[key]:
                if item.kind != "leftover":
                    _remove_one(store, item)
            gone += groups[key]
        leases.release(*key)
        _remove_empty(store, key)
    return gone


def _commit(store: Store, key: StageRun) -> str:
    return stage_run_uri(store, *key, COMMIT)


def _remove_one(store: Store, item: Item, content: bytes | None = None) -> None:
    uri = storage.join(store.uri, item.place)
    if content is not None and storage.read(uri) != content:
        return
    if store.path is None:
        storage.remove(uri)
        return
    path, trash = store.path / item.place, store.path / TRASH
    trash.mkdir(exist_ok=True)
    aside = trash / f"{path.name}-{secrets.token_hex(4)}"
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    with suppress(OSError):
        trash.rmdir()


def _remove_empty(store: Store, key: StageRun) -> None:
    if store.path is not None:
        folder = store.path / "artifacts" / key[0]
        with suppress(OSError):
            (folder / key[1]).rmdir()
            folder.rmdir()


# --- this machine's cache ---


def cached(older_than: float) -> list[Item]:
    """What may go of this machine's cache: copies that were not used for long, leftovers of transfers."""
    from microstages import cache

    items = []
    for c in cache.contents():
        age = max(0.0, time.time() - c.used)
        if age >= older_than and not c.in_use:
            why = "of a transfer that was cut off" if c.left else "not used for long; it can be fetched again"
            items.append(Item("cache", f"{c.path.parent.name}/{c.path.name}", c.size, age, why, str(c.path)))
    return items


def remove_cached(items: Sequence[Item]) -> list[Item]:
    """Remove things of the cache, unless a process uses them by now; what went."""
    from microstages import cache

    found = {str(c.path): c for c in cache.contents()}
    return [i for i in items if i.place in found and cache.discard(found[i.place])]
