"""What a command line names: `WHAT` is a stage (of a matrix, all variants), `stage.output`, a tag, `tag/stage`, or the
address of an artifact.

A word with `://` in it, or that begins like a path (`/`, `./`, `../`, `~`), is an address. Any other word is looked for
among the stages, then the tags; a path that is there comes last. Stages are meant as they are now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microstages import storage
from microstages.errors import UserError, nearest

from runner.inventory import Known, look
from runner.runs import StageRun
from runner.store import Store
from runner.tags import Tag, read_all


@dataclass(frozen=True)
class Named:
    """One artifact. `place`: its path below a folder that takes several. `digest`: what it must have, where known.
    `run` and `attempt`: whose result it is; empty for a mere address."""

    name: str
    place: str
    uri: str
    digest: str = ""
    run: StageRun = ("", "")
    attempt: str = ""
    output: str = ""


@dataclass(frozen=True)
class Meant:
    """The artifacts that some words mean. `one`: they mean one artifact, not a folder of them."""

    artifacts: Sequence[Named]
    one: bool


class Finder:
    """Finds what words mean; the pipeline file is read only when a word may be one of its names."""

    def __init__(self, file: Path, settings: list[str]) -> None:
        self.file, self.settings = file, settings
        self._known: Known | None = None
        self._tags: dict[str, Tag] | None = None

    @property
    def known(self) -> Known:
        if self._known is None:
            self._known = look(self.file, self.settings)
        return self._known

    @property
    def tags(self) -> dict[str, Tag]:
        if self._tags is None:
            self._tags = read_all(self.known.store)
        return self._tags

    @property
    def store(self) -> Store | None:
        """The pipeline's store, where the pipeline was read."""
        return self._known.store if self._known else None

    def all_stages(self) -> tuple[list[Named], dict[str, str]]:
        """The results of the whole pipeline, and of each stage that has none, why."""
        undone = {s: step.reason for s, step in self.known.steps.items() if step.result is None}
        return [n for s in self.known.steps if s not in undone for n in self._stage(s)], undone

    def find(self, words: Sequence[str]) -> Meant:
        """What some words mean. Raises UserError for a word that means nothing, or a stage that is not done."""
        found: list[Named] = []
        one = len(words) == 1
        for word in words:
            artifacts, single = self._word(word)
            found += artifacts
            one = one and single
        places: dict[str, str] = {}
        for a in found:
            if places.setdefault(a.place, a.uri) != a.uri:
                fix = "copy them one by one, each to a place of its own"
                raise UserError(f"two of these artifacts would both be called {a.place!r}", fix=fix)
        unique: dict[str, Named] = {}
        for a in found:
            unique.setdefault(a.uri, a)
        return Meant(list(unique.values()), one)

    def _word(self, word: str) -> tuple[list[Named], bool]:
        if storage.local_path(word) is None or word.startswith(("/", "./", "../", "~", "file:")) or word in (".", ".."):
            return [_address(word)], True
        path = Path(word)
        if not self.file.exists() and path.exists():
            return [_address(word)], True
        stage, dot, output = word.partition(".")
        if stages := self.known.pipeline.named(stage):
            of = str(self.file)
            found = [
                n for s in sorted(stages) for n in (_output(self._stage(s), s, output, of) if dot else self._stage(s))
            ]
            from runner import otherwise

            otherwise.tell(self.known, sorted(stages))
            return found, len(found) == 1
        tag, slash, rest = word.partition("/")
        if tag in self.tags:
            return self._tag(self.tags[tag], rest) if slash else (self._tag_all(self.tags[tag]), False)
        if path.exists():
            return [_address(word)], True
        known = [*self.known.pipeline.stages, *self.tags]
        known += [f"{s.name}.{o}" for s in self.known.pipeline.stages.values() for o in s.interface.outputs]
        known += [f"{t.name}/{s}" for t in self.tags.values() for s in t.stages]
        what = f"{word!r} is neither a stage of {self.file} nor a tag, and no such path is there"
        fix = f"stages: {', '.join(self.known.pipeline.stages)}"
        raise UserError(what + nearest(word, known), fix=f"{fix}; tags: {', '.join(self.tags) or 'none'}")

    def _stage(self, stage: str) -> list[Named]:
        step = self.known.steps[stage]
        if step.result is None:
            from runner import otherwise

            other = otherwise.made(self.known, stage)
            fix = "run it first: runner up" + (f"; {other}" if other else "")
            raise UserError(f"the stage {stage} is not done: {step.reason}", fix=fix)
        digests = {k: o.digest for k, o in step.result.outputs.items()}
        return _outputs(self.known.store, stage, self.known.run_of(stage), step.result.attempt, digests)

    def _tag(self, tag: Tag, rest: str) -> tuple[list[Named], bool]:
        stage, dot, output = rest.partition(".")
        if stage not in tag.stages:
            what = f"the tag {tag.name!r} names no stage {stage!r}{nearest(stage, tag.stages)}"
            raise UserError(what, fix=f"it names: {', '.join(tag.stages)}")
        found = self._tagged(tag, stage, tag.stages[stage])
        if dot:
            return _output(found, stage, output, f"the tag {tag.name}", f"{tag.name}/"), True
        return found, len(found) == 1

    def _tag_all(self, tag: Tag) -> list[Named]:
        return [n for stage, s in tag.stages.items() for n in self._tagged(tag, stage, s)]

    def _tagged(self, tag: Tag, stage: str, s: Mapping[str, Any]) -> list[Named]:
        digests = {k: o["digest"] for k, o in s["outputs"].items()}
        run = s["uses"], s["fingerprint"]
        return _outputs(self.known.store, stage, run, s["attempt"], digests, f"{tag.name}/")


def _address(word: str) -> Named:
    uri = word.rstrip("/") or word
    path = storage.local_path(uri)
    name = storage.public(uri).rsplit("/", 1)[-1] if path is None else path.absolute().name
    return Named(storage.public(uri), name, uri)


def _outputs(
    store: Store, stage: str, run: StageRun, attempt: str, digests: Mapping[str, str], prefix: str = ""
) -> list[Named]:
    found = []
    for output, digest in digests.items():
        place = stage if len(digests) == 1 else f"{stage}/{output}"
        uri = store.output_uri(*run, attempt, output)
        name = stage if len(digests) == 1 else f"{stage}.{output}"
        found.append(Named(prefix + name, place, uri, digest, run, attempt, output))
    return found


def _output(found: list[Named], stage: str, output: str, of: str, prefix: str = "") -> list[Named]:
    """The output of a stage. `of`: what names the stage, in words; `prefix`: what stands before it in WHAT."""
    for artifact in found:
        if artifact.output == output:
            return [artifact]
    names = [a.output for a in found]
    what = f"stage {stage} of {of} has no output {output!r}{nearest(output, names)}"
    only = f"its only output is {names[0]}: write {prefix}{stage}.{names[0]}" if len(names) == 1 else ""
    raise UserError(what, fix=only or f"its outputs: {', '.join(names)}")
