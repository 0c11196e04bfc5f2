"""Pin what everything runs with: `requirements.lock` for a machine, `lock.txt` in each stage's package for the stage.

Reads the versions that are installed here and follows each stage's declared dependencies through them. A stage's
`lock.txt` is a part of its code identity: other versions, other code. `--check` writes nothing and fails where a
file is stale.

    python images/lock.py [--check]
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OWN = "microstages"
BY_CHOICE = {"liger"}  # extras for GPUs that no image has unless it is asked for


def name_of(requirement: str) -> str:
    """The normalized project name at the start of a requirement."""
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", requirement).group()).lower()  # type: ignore[union-attr]


def extras_of(requirement: str) -> set[str]:
    found = re.match(r"[A-Za-z0-9._-]+\s*\[([^]]*)\]", requirement)
    return {e.strip() for e in found.group(1).split(",")} if found else set()


def applies(requirement: str, extras: set[str]) -> bool:
    """Whether a requirement's marker holds on the supported platform: CPython 3.11 on x86-64 Linux."""
    from packaging.requirements import Requirement

    parsed = Requirement(requirement)
    # accelerator packages that a torch wheel declares are of its flavour, not of the stage
    if parsed.name.startswith(("nvidia-", "cuda-", "triton")):
        return False
    return parsed.marker is None or any(parsed.marker.evaluate({"extra": e}) for e in extras | {""})


def closure(requirements: list[str]) -> dict[str, str]:
    """Name -> version of everything that these requirements bring, as installed here."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(r, extras_of(r)) for r in requirements]
    while todo:
        requirement, extras = todo.pop()
        name = name_of(requirement)
        key = (name, ",".join(sorted(extras)))
        if key in seen:
            continue
        seen.add(key)
        try:
            d = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"lock: {name} is not installed here: run make install first")
        if not name.startswith(OWN):
            found[name] = d.version.partition("+")[0]
        todo += [(r, extras_of(r)) for r in d.requires or [] if applies(r, extras)]
    return dict(sorted(found.items()))


def lines(pins: dict[str, str]) -> str:
    return "".join(f"{name}=={version}\n" for name, version in pins.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail where a file is stale, write nothing")
    args = parser.parse_args()
    wanted: dict[Path, str] = {}
    everything: dict[str, str] = {}
    projects = [*sorted(ROOT.glob("stages/*/pyproject.toml")), ROOT / "pyproject.toml"]
    for file in projects:
        project = tomllib.loads(file.read_text())["project"]
        extra = project.get("optional-dependencies", {})
        pins = closure(
            [*project["dependencies"], *(r for name, group in extra.items() if name not in BY_CHOICE for r in group)]
        )
        everything |= pins
        package = file.parent / project["name"].replace("-", "_")
        if package.is_dir() and package.name != OWN:
            wanted[package / "lock.txt"] = lines(pins)
    wanted[ROOT / "requirements.lock"] = lines(dict(sorted(everything.items())))
    stale = [f for f, text in wanted.items() if not f.is_file() or f.read_text() != text]
    if args.check and stale:
        sys.exit("lock: stale: " + ", ".join(str(f.relative_to(ROOT)) for f in stale) + "\n  run make lock")
    for f in stale:
        f.write_text(wanted[f])
        print(f"lock: wrote {f.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
