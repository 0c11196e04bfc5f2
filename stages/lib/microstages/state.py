"""What a stage keeps of an unfinished run, so that the next start goes on from there: checkpoints below one URI.

    <uri>/<step, 8 digits>-<random>/…files…, artifact.json

Each is an artifact of kind `checkpoint`, whole or not there, and names its run (metadata `fingerprint`): a run never
takes up, counts or removes the checkpoints of another. What is damaged or incomplete is named and passed over.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress

from microstages import storage
from microstages.artifact import Artifact, Draft, open_artifact
from microstages.errors import DamagedError, UserError
from microstages.manifest import MANIFEST, Manifest

KIND = "checkpoint"
_NAME = re.compile(r"\d{8,}-[0-9a-f]{8}")
_LEFTOVER = re.compile(r"\.\d{8,}-[0-9a-f]{8}\..+")  # a draft whose writer was killed


class Place:
    """The checkpoints of one run (`fingerprint`) below a URI."""

    def __init__(self, uri: str, fingerprint: str) -> None:
        self.uri, self.fingerprint = uri, fingerprint
        self.damaged: set[str] = set()  # names of checkpoints that could not be read

    def newest(self, warn: Callable[[str], None]) -> Artifact | None:
        """The newest good checkpoint of this run, opened and verified; the rest is told to `warn`.

        Raises UserError where the place cannot be listed, TemporaryError where its store does not answer.
        """
        path = storage.local_path(self.uri)
        if path is not None and path.exists() and not path.is_dir():
            raise UserError("it is a file; checkpoints need a folder", where=self.uri, fix="name a folder of their own")
        others = []
        for name in reversed(self.names()):
            uri = storage.join(self.uri, name)
            try:
                owner = self.owner(name)
                if owner not in (None, self.fingerprint):
                    others.append(name)
                    continue
                if owner is None and storage.read(storage.join(uri, MANIFEST)) is None:
                    raise DamagedError(f"there is no {MANIFEST}", where=uri)
                return open_artifact(uri, [KIND])
            except DamagedError as error:
                self.damaged.add(name)
                warn(f"the checkpoint {storage.public(uri)} is not used: {error.what} ({error.where})")
        if others:
            warn(
                f"{storage.public(storage.join(self.uri, others[0]))} is the checkpoint of another run, with other "
                f"data, parameters or code: it is not used ({len(others)} such, left alone)"
            )
        return None

    def names(self) -> list[str]:
        """The names of all checkpoints below the URI, by step."""
        found = [n for n in storage.folders(self.uri) if _NAME.fullmatch(n)]
        return sorted(found, key=lambda n: (int(n.partition("-")[0]), n))

    def owner(self, name: str) -> str | None:
        """The fingerprint of the run that made a checkpoint; None where that cannot be told."""
        data = storage.read(storage.join(self.uri, name, MANIFEST))
        try:
            return str(Manifest.from_json(data, name).metadata.get("fingerprint")) if data is not None else None
        except DamagedError:
            return None

    def draft(self, step: int) -> Draft:
        """A new checkpoint to be written and committed. Raises UserError where the place cannot be written."""
        draft = Draft(storage.join(self.uri, f"{step:08d}-{secrets.token_hex(4)}"), KIND)
        draft.metadata |= {"fingerprint": self.fingerprint, "step": step}
        return draft

    def prune(self, kept: int) -> None:
        """Remove all but the newest `kept` good checkpoints of this run, and what is damaged or incomplete."""
        owners = {name: self.owner(name) for name in self.names()}
        good = [n for n, owner in owners.items() if owner == self.fingerprint and n not in self.damaged]
        useless = [n for n, owner in owners.items() if owner is None or n in self.damaged]
        for name in useless + good[: max(0, len(good) - kept)]:
            self._remove(name)
            self.damaged.discard(name)

    def sweep(self) -> None:
        """Remove what killed writers left half-written."""
        for name in storage.folders(self.uri):
            if _LEFTOVER.fullmatch(name):
                storage.remove(storage.join(self.uri, name))

    def clear(self) -> None:
        """Remove all checkpoints of this run, what is left half-written, and the folder if nothing else lies in it."""
        self.sweep()
        self.prune(0)
        if (path := storage.local_path(self.uri)) is not None:
            with suppress(OSError):
                os.rmdir(path)

    def _remove(self, name: str) -> None:
        uri = storage.join(self.uri, name)
        storage.remove(storage.join(uri, MANIFEST))  # first: what is half removed is no checkpoint any more
        storage.remove(uri)
