"""What a container sees of this machine: its inputs, its code, its secrets, and the folders that it may write; where
artifacts come from elsewhere, a cache for them.

Everything has the path inside that it has outside. What a link leads to is there too, where the link says, so a folder
of links (such as a snapshot of a model hub) is complete.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from microstages.digest import cache_folder
from microstages.errors import UserError, from_os_error
from microstages.storage import local_path

from runner.executors import Attempt, secrets
from runner.executors.secrets import Secret

CACHE = Path("/cache")  # where a container has it
MANY = 500  # files of a pattern that are mounted one by one; of more their folder is
OWN = ("/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/opt", "/opt/venv", "/proc", "/run", "/sbin", "/sys",
       "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/local", "/var")  # fmt: skip

SYSTEM = ("/bin", "/dev", "/etc", "/lib", "/lib64", "/opt/venv", "/proc", "/run", "/sbin", "/sys", "/usr")


def own_cache(user: int) -> Path:
    """The caller's cache folder; where the caller is root, a part of it for the container's user. What a stage fetched
    or is about to send lies there, not in memory, and later stages find it."""
    folder = cache_folder() if os.geteuid() else cache_folder() / f"for-{user}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(folder, user, user)
    except OSError as error:
        raise from_os_error(error, folder) or UserError(str(error), where=folder) from None
    return folder


def mounts(attempt: Attempt, given: Iterable[Secret], user: int, cache: Path | None = None) -> list[Any]:
    """The mounts of an attempt, as the Docker SDK takes them. Raises UserError for a path that hides the image's."""
    import docker

    out: dict[str, Any] = {}

    def add(target: Path, source: Path, read_only: bool) -> None:
        if str(target) in OWN:
            fix = "move or copy it to a folder of its own"
            raise UserError("in a container this path would hide the image's own files", where=target, fix=fix)
        out[str(target)] = docker.types.Mount(str(target), str(source), type="bind", read_only=read_only)

    reads = [path for uri in attempt.reads if (path := local_path(uri)) is not None]
    for path in (*(p for read in reads for p in matches(read)), *attempt.code_folders):
        place = Path(os.path.abspath(path))
        add(place, Path(os.path.realpath(path)), True)
        for link, source in leading_out(place):
            add(link, source, True)
    for folder in attempt.writes:
        add(folder.absolute(), Path(os.path.realpath(folder)), False)
    if cache is not None:
        add(CACHE, Path(os.path.realpath(cache)), False)
    copies: list[Path] = []
    try:
        for secret in given:
            if secret.file is not None:
                copies.append(secrets.source(secret, user))
                add(Path(secrets.PLACE, secret.name), copies[-1], True)
    except BaseException:
        for copy in copies:
            secrets.drop(copy)
        raise
    return list(out.values())


def matches(path: Path) -> list[Path]:
    """The path itself; for a pattern such as `data/*.jsonl` its files, or, of many, the folder that it looks in."""
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    found = [Path(p) for p in glob.glob(str(path), recursive=True)]
    if len(found) <= MANY:
        return found
    parts = path.parts
    return [Path(*parts[: next(n for n, part in enumerate(parts) if glob.has_magic(part))])]


def leading_out(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Where the links of a folder lead that leave it: the place that they name, and the file that lies there. Not what
    leads into the system (such as a virtual environment's Python): that is the image's own."""
    real = os.path.realpath(folder)
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(top, name)
            if os.path.islink(path):
                source = os.path.realpath(path)
                named = os.path.normpath(os.path.join(top, os.readlink(path)))
                inside = Path(source).is_relative_to(real) and Path(named).is_relative_to(folder)
                system = any(Path(named).is_relative_to(p) for p in SYSTEM)
                if not inside and not system and os.path.exists(source):
                    yield Path(named), Path(source)
