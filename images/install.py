"""Fill /delta with what one image layer adds to its parent. Runs inside the builder, never in an image that is kept.

    install.py third-party LOCK     what the hash-locked file names and the parent does not have
    install.py own SOURCE…          distributions of this project, without their dependencies

pip comes from /build/tools, the parent image lies at /parent, wheels at hand in /wheels. What no stage can use goes
(tests, headers, other accelerators' libraries), from the distribution's RECORD too. Bytecode is compiled with unchecked
hashes, so that a read-only container starts fast; every time stamp is the same, so that the same input makes the same
layer.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import quote

DELTA, PARENT, WHEELS = Path("/delta"), Path("/parent"), Path("/wheels")
VENV = "opt/venv"
SITE = f"{VENV}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
PYTHON = f"/{VENV}/bin/python"
CERTIFICATES, PIP_CONFIG = Path("/run/secrets/ca"), Path("/run/secrets/pip")
TIME = 1_700_000_000
# Patterns in site-packages. Tests of packages; headers and tools to compile against torch, of no use without a
# compiler (torch_shm_manager in torch/bin is what torch looks for when it is imported: it stays).
UNUSED = [
    *(f"{package}/**/tests" for package in ("adlfs", "aioitertools", "fsspec", "mpmath", "networkx")),
    *(f"{package}/**/tests" for package in ("numpy", "pyarrow", "sympy")),
    "onnx/backend/test", "pyarrow/include", "torch/include", "torch/share/cmake", "torch/test",
    "torch/bin/[!t]*", "torch/bin/test_*",
    "bitsandbytes/libbitsandbytes_rocm*", "bitsandbytes/libbitsandbytes_xpu*",
]  # fmt: skip
# bitsandbytes takes the library of torch's own CUDA version.
UNUSED_BY_FLAVOR = {
    "cpu": ["bitsandbytes/libbitsandbytes_cuda*"],
    "cuda": ["bitsandbytes/libbitsandbytes_cuda11*", "bitsandbytes/libbitsandbytes_cuda12*"],
}
# The descriptions of the services that botocore speaks to: S3, and what its credentials may come from.
KEPT = {"botocore/data": ("s3", "signin", "sso", "sso-oidc", "sts")}
UNUSED_SCRIPTS = ("backend-test-tools",)


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(root: Path) -> dict[str, str]:
    """Name -> version (without the part after "+") of the distributions below a root."""
    found = distributions(path=[str(root / SITE)])
    return {normalized(d.metadata["Name"]): d.version.partition("+")[0] for d in found}


def needs_cuda(root: Path) -> bool:
    """Whether torch is there as the general wheel, which does not start without its CUDA libraries."""
    found = distributions(path=[str(root / SITE)])
    return any(normalized(d.metadata["Name"]) == "torch" and "+cpu" not in d.version for d in found)


def missing(lock: str, have: dict[str, str]) -> str:
    """The lock without what the parent has. A parent with another version is an error: the layers are of one set."""
    kept = []
    for entry in re.split(r"(?m)^(?=[A-Za-z0-9])", re.sub(r"(?m)^#.*\n", "", lock)):
        name, _, version = (entry.split() or [""])[0].partition("==")
        if name and name not in have:
            kept.append(entry)
        elif name and have[name] != version:
            sys.exit(f"install: error: the parent image has {name} {have[name]}, the lock {version}\n  build it again")
    return "".join(kept)


def pip(*arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": "/build/tools", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if PIP_CONFIG.is_file():
        environment["PIP_CONFIG_FILE"] = str(PIP_CONFIG)
    if CERTIFICATES.is_file():
        environment["PIP_CERT"] = str(CERTIFICATES)
    command = [
        PYTHON,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-cache-dir",
        "--no-compile",
        "--no-deps",
        "--no-warn-script-location",
    ]
    command += ["--root-user-action", "ignore", "--ignore-installed", "--prefix", str(DELTA / VENV), *arguments]
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode:
        sys.exit(
            "install: error: pip could not install; its own words are above\n  see docs/images.md, Without a network"
        )


def prune(flavor: str) -> None:
    """Remove what no stage can use, and its lines in RECORD."""
    site = DELTA / SITE
    for pattern in [*UNUSED, *UNUSED_BY_FLAVOR[flavor]]:
        for path in sorted(site.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists():
                path.unlink()
    for folder, kept in KEPT.items():
        for path in site.glob(f"{folder}/*/"):
            if path.is_dir() and path.name not in kept:
                shutil.rmtree(path)
    for name in UNUSED_SCRIPTS:
        (DELTA / VENV / "bin" / name).unlink(missing_ok=True)
    for record in site.glob("*.dist-info/RECORD"):
        with open(record, newline="") as f:
            rows = list(csv.reader(f))
        left = [row for row in rows if (site / row[0]).exists()]
        if len(left) < len(rows):
            with open(record, "w", newline="") as f:
                csv.writer(f, lineterminator="\n").writerows(left)


def finish() -> None:
    """Compile, and give every file the same times."""
    site = DELTA / SITE
    if site.is_dir():
        compile_ = [PYTHON, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
        # a package may carry a file for another Python: that it does not compile is no fault
        subprocess.run([*compile_, "-s", str(DELTA), "-p", "/", str(site)], check=False, stdout=subprocess.DEVNULL)
    for top, folders, files in os.walk(DELTA):
        for name in [*folders, *files]:
            os.utime(os.path.join(top, name), (TIME, TIME), follow_symlinks=False)


def third_party(lock: Path, libraries: Path) -> None:
    """Install what the lock names and the parent lacks; `libraries` is the lock that has torch's CUDA libraries."""
    have = installed(PARENT)
    entries = missing(lock.read_text(), have)
    if entries:
        locked(entries)
    if libraries.is_file() and needs_cuda(DELTA):
        locked(missing(libraries.read_text(), have | installed(DELTA)))
    prune(os.environ["FLAVOR"])


def page(wheels: list[Path]) -> Path:
    """A page of links to wheels with their hashes. Where pip does not know a wheel's hash before it opens it, it takes
    another one that has an allowed hash in the index, even if that has a lower version."""
    lines = []
    for wheel in wheels:
        with open(wheel, "rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        lines.append(f'<a href="file://{quote(str(wheel))}#sha256={digest}">{wheel.name}</a>\n')
    file = Path("/tmp/wheels.html")
    file.write_text("<!DOCTYPE html>\n" + "".join(lines))
    return file


def locked(entries: str) -> None:
    """Install entries of a lock: these hashes, wheels only."""
    file = Path("/tmp/lock.txt")
    file.write_text(entries)
    at_hand = ("--find-links", str(page(sorted(WHEELS.glob("*.whl"))))) if any(WHEELS.glob("*.whl")) else ()
    pip("--require-hashes", "--only-binary", ":all:", *at_hand, "-r", str(file))


def main() -> None:
    kind, *what = sys.argv[1:]
    (DELTA / VENV).mkdir(parents=True, exist_ok=True)
    if kind == "third-party":
        third_party(Path(what[0]), Path("/build/cuda.txt"))
    else:
        pip("--no-build-isolation", "--no-index", *what)
    finish()


if __name__ == "__main__":
    main()
