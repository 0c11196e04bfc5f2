"""Brings what lies on this machine to where a cluster can read it: into the pipeline's store, below `inputs/`.

A thing from outside is kept there under its content, once, whatever stages and runs use it, and is read as the thing
that it is here: the same files, the same digest. So a stage has the same fingerprint wherever it runs.
"""

from __future__ import annotations

import hashlib

from microstages import storage
from microstages.artifact import content_digest, open_artifact, outside, outside_files
from microstages.digest import FileEntry, tree_digest
from microstages.errors import UserError
from microstages.manifest import MANIFEST, Manifest

from runner.store import Store

INPUTS = "inputs"


def staged(store: Store, uri: str, kinds: tuple[str, ...], digest: str) -> str:
    """The address of an input for a stage that runs elsewhere; it is copied into the store where it must be.

    `digest` is what was planned with. Raises UserError where what lies there is something else by now, TemporaryError
    where the store does not answer.
    """
    path = storage.local_path(uri)
    if path is None or store.path is not None:
        return uri
    found = open_artifact(uri, kinds)
    if found.digest != digest:
        raise UserError("it changed since the run began", where=uri, fix="run again")
    root, files = (found.path, {n: found.path / n for n in found.files}) if found.manifest else outside_files(path)
    single = root.name if root.is_file() else ""
    folder = root.parent if single else root
    key = hashlib.sha256(f"{found.kind} {digest} {single}".encode()).hexdigest()[:32]
    place = storage.join(store.uri, INPUTS, key)
    if storage.read(storage.join(place, MANIFEST)) is not None:
        return place
    hashes = storage.upload(folder, place, sorted(files), resume=True)
    entries = tuple(FileEntry(n, files[n].stat().st_size, hashes[n]) for n in sorted(files))
    manifest = found.manifest
    if manifest is None:
        manifest = Manifest(found.kind, tree_digest(entries), entries, outside(single))
    if content_digest(manifest) != digest:
        raise UserError("it changed while it was copied", where=uri, fix="run again")
    storage.create(storage.join(place, MANIFEST), manifest.to_json())
    return place
