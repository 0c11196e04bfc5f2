"""What a store holds, read past microstages' own code: whether every committed artifact is whole, what is left over.

Only what the documents promise is used (docs/contract.md): `commit.json` names the attempt that counts, `artifact.json`
the files of an output with size and sha256, and the digest is the sha256 over `<sha256>  <size>  <path>` a line.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

StageRun = tuple[str, str]  # stage and fingerprint

HIDDEN = re.compile(r"(?:^|/)\.")
OWN = ".runner/"  # the history and the logs, where they lie in the store's folder


class Files(Protocol):
    """The files of a store, by their paths below it."""

    def sizes(self) -> dict[str, int]: ...

    def read(self, name: str) -> bytes: ...


@dataclass(frozen=True)
class Folder:
    """A store that is a folder."""

    path: Path

    def sizes(self) -> dict[str, int]:
        found = {}
        for top, _, names in os.walk(self.path):
            for name in names:
                file = Path(top, name)
                try:
                    found[file.relative_to(self.path).as_posix()] = file.stat().st_size
                except FileNotFoundError:  # somebody is at work
                    continue
        return found

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


@dataclass(frozen=True)
class Blobs:
    """A store in a container of Azure Blob storage, `abfs://container/folder`, read with Microsoft's own client."""

    connection: str
    uri: str

    def sizes(self) -> dict[str, int]:
        with self._container() as client:
            found = client.list_blobs(name_starts_with=f"{self._folder}/")
            return {b.name.removeprefix(f"{self._folder}/"): b.size for b in found}

    def read(self, name: str) -> bytes:
        with self._container() as client:
            return bytes(client.download_blob(f"{self._folder}/{name}").readall())

    @property
    def _folder(self) -> str:
        return self.uri.removeprefix("abfs://").partition("/")[2]

    def _container(self) -> Any:
        from azure.storage.blob import ContainerClient

        name = self.uri.removeprefix("abfs://").partition("/")[0]
        return ContainerClient.from_connection_string(self.connection, name)


@dataclass(frozen=True)
class Wrong:
    """What is wrong with a file of what a stage run committed."""

    run: StageRun
    file: str
    what: str
    missing: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass
class Audit:
    """What was found: the commits (stage run -> attempt), the digests (`stage.output` -> digest), what is wrong with
    committed artifacts, and files that are part of none."""

    commits: dict[StageRun, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    wrong: list[Wrong] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def audit(files: Files) -> Audit:
    """Read every file of every committed artifact. While stages run, `left` names what they work on."""
    sizes = files.sizes()
    found = Audit()
    counted: set[str] = set()
    for name in sorted(sizes):
        match = re.fullmatch(r"artifacts/([^/]+)/([^/]+)/commit\.json", name)
        if match is None:
            continue
        run = (match[1], match[2])
        try:
            commit = json.loads(files.read(name))
            attempt = commit["attempt"]
            found.commits[run] = attempt
            counted.add(name)
            for output, summary in commit["outputs"].items():
                place = f"{name.removesuffix('commit.json')}{attempt}/{output}/"
                found.digests[f"{match[1]}.{output}"] = summary["digest"]
                found.wrong += [Wrong(run, *rest) for rest in _wrong(files, sizes, place, summary["digest"])]
                counted |= {n for n in sizes if n.startswith(place)}
        except (ValueError, TypeError, KeyError) as error:
            found.wrong.append(Wrong(run, name, f"cannot be read: {error!r}"))
    rest = {n for n in sizes if not n.startswith(OWN)} - counted
    found.left = sorted(n for n in rest if n.startswith("artifacts/") or HIDDEN.search(n))
    return found


def _wrong(files: Files, sizes: dict[str, int], place: str, digest: str) -> list[tuple[str, str, bool]]:
    """What is wrong with one committed artifact: the file, what, and whether it is missing."""
    name = f"{place}artifact.json"
    if name not in sizes:
        return [(name, "missing", True)]
    manifest = json.loads(files.read(name))
    wrong: list[tuple[str, str, bool]] = []
    lines = []
    for file in sorted(manifest["files"], key=lambda f: f["path"]):
        name = place + file["path"]
        lines.append(f"{file['sha256']}  {file['size']}  {file['path']}\n")
        if name not in sizes:
            wrong.append((name, "missing", True))
            continue
        data = files.read(name)
        if len(data) != file["size"] or hashlib.sha256(data).hexdigest() != file["sha256"]:
            wrong.append((name, f"its bytes are not those that the manifest names ({len(data)} bytes)", False))
    computed = f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
    if not computed == manifest["digest"] == digest:
        what = f"digests differ: {computed} computed, {manifest['digest']} here, {digest} committed"
        wrong.append((place, what, False))
    known = {place + f["path"] for f in manifest["files"]} | {f"{place}artifact.json", f"{place}.verified.json"}
    wrong += [(n, "no part of the artifact", False) for n in sizes if n.startswith(place) and n not in known]
    return wrong
