"""What this machine can do for a pipeline, and what to do about what is missing. Looks, changes nothing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from microstages.errors import UserError
from microstages.reporting import number_of, size
from microstages.storage import local_path, public

from runner import stages
from runner.executors import engine
from runner.targets import ELSEWHERE, Where

State = Literal["ok", "note", "missing"]
MARKS = {"ok": "ok ", "note": "-- ", "missing": "!! "}
ANSWER = 20.0  # seconds that a workspace may take
ROOM = 10 << 30  # bytes; less free disk is worth a word
DRIVERS = {"adlfs": "abfs:// (Azure Blob)", "s3fs": "s3:// (S3)", "gcsfs": "gs:// (Google Cloud Storage)"}
CREDENTIALS = {
    "Azure": ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_CLIENT_ID", "MSI_ENDPOINT"),
    "S3": ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
    "Hugging Face": ("HF_TOKEN",),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `missing`: something that was asked for cannot work until it is mended."""

    what: str
    state: State
    text: str
    fix: str = ""


def findings(store: str, places: Sequence[Where], folder: Path) -> list[Finding]:
    """Everything that is found. `store` is where results go, `places` are those that are asked for, `folder` is the
    pipeline's."""
    wanted = any(p.kind == "docker" for p in places)
    here = [_machine(), _gpu(), *_processes(), *_docker(wanted), *_store(store), *_credentials()]
    return [*here, *(_elsewhere(p, folder) for p in places if p.kind in ELSEWHERE)]


def as_text(found: list[Finding]) -> str:
    """A line for each finding, and below it what to do."""
    width = max(len(f.what) for f in found)
    lines = []
    for f in found:
        lines.append(f"{MARKS[f.state]}{f.what:<{width}}  {f.text}")
        if f.fix:
            lines.append(f"{'':<{width + 5}}{f.fix}")
    return "\n".join(lines)


def _machine() -> Finding:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = f"{number_of(os.cpu_count() or 1, 'core')}, {size(memory)} memory, {platform.system()} on "
    return Finding("machine", "ok", f"{text}{platform.machine()}, Python {platform.python_version()}")


def _gpu() -> Finding:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding("GPU", "note", "none: everything runs on the CPU", "for an NVIDIA GPU: install its driver")
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return Finding("GPU", "missing", "nvidia-smi does not answer", "install the NVIDIA driver again")
    if done.returncode or not done.stdout.strip():
        return Finding("GPU", "missing", "the driver finds no GPU", "see the output of nvidia-smi")
    return Finding("GPU", "ok", "; ".join(done.stdout.strip().splitlines()))


def _built_in() -> list[stages.Found]:
    root = stages.stages_folder()
    return [stages.find(p.parent.name, root) for p in sorted(root.glob(f"*/{stages.INTERFACE}"))]


def _processes() -> Iterator[Finding]:
    missing = []
    found = _built_in()
    for stage in found:
        try:
            stages.command(stage)
        except UserError:
            missing.append(stage.interface.name)
    if not found:
        yield Finding("processes", "note", "no stages lie beside the runner", "set MICROSTAGES_STAGES to their folder")
    elif missing:
        yield Finding("processes", "missing", f"not installed: {', '.join(missing)}", "make install")
    else:
        yield Finding("processes", "ok", f"all {len(found)} stages are installed")


def _docker(wanted: bool) -> Iterator[Finding]:
    try:
        client = engine.connect()
        with engine.asked():
            version, about = client.version(), client.info()
    except UserError as error:
        yield Finding("Docker", "missing" if wanted else "note", f"{error.what} {error.where}".strip(), error.fix)
        return
    yield Finding("Docker", "ok", f"engine {version['Version']} at {engine.address()}, {about['Driver']}")
    nvidia = "nvidia" in (about.get("Runtimes") or {})
    if shutil.which("nvidia-smi") and not nvidia:
        yield Finding(
            "GPUs in Docker", "missing", "the engine has no NVIDIA runtime", "install the NVIDIA Container Toolkit"
        )
    good, bad = [], []
    for stage in _built_in():
        name = stage.interface.name
        try:
            good.append(engine.image_of(client, name, stage.code_identity(), "cuda" if nvidia else "cpu"))
        except UserError as error:
            bad.append(error.what)
    if good:
        flavors = ", ".join(sorted({i.flavor for i in good}))
        yield Finding("images", "ok", f"{len(good)} of {len(good) + len(bad)} stages ({flavors})")
    if bad:
        yield Finding("images", "missing" if wanted else "note", "; ".join(bad), "make images")


def _elsewhere(place: Where, folder: Path) -> Finding:
    """Whether a cluster or a workspace is known, and answers to whoever asks here."""
    what = place.name if place.name == place.kind else f"{place.name} ({place.kind})"
    try:
        if place.kind == "kubernetes":
            from runner.executors.kubernetes.api import Cluster

            cluster = Cluster(str(place.options.get("context") or ""), str(place.options.get("namespace") or ""))
            cluster.listed("jobs", "app.kubernetes.io/managed-by=microstages")
            return Finding(what, "ok", f"{cluster.host}, namespace {cluster.namespace}")
        from microstages.arm import Rest, Token, Workspace, scope_of

        workspace = Workspace.find(folder, place.options)
        rest = Rest(Token(scope_of(workspace.endpoint)), ANSWER)
        try:
            rest.ask("GET", workspace.url())
        finally:
            rest.close()
        return Finding(what, "ok", f"workspace {workspace.name} in {workspace.resource_group}")
    except UserError as error:
        return Finding(what, "missing", f"{error.what} {error.where}".strip(), error.fix)


def _store(store: str) -> Iterator[Finding]:
    path = local_path(store)
    if path is None:
        protocol = store.partition("://")[0]
        known = {"abfs": "adlfs", "abfss": "adlfs", "az": "adlfs", "s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
        driver = known.get(protocol, "")
        if driver and importlib.util.find_spec(driver) is None:
            yield Finding("store", "missing", f"{public(store)}: no driver is installed", f"pip install {driver}")
        else:
            yield Finding("store", "ok", public(store))
        return
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        yield Finding("store", "missing", f"{path} cannot be written", "check who owns it and its mode")
    elif free < ROOM:
        fix = "free some, or set `store:` to a place with more; a 4B model takes about 30 GB on its way"
        yield Finding("store", "note", f"{path}: {size(free)} free", fix)
    else:
        yield Finding("store", "ok", f"{path}: {size(free)} free")


def _credentials() -> Iterator[Finding]:
    """Names of what is set; never a value."""
    there = [
        f"{k} ({', '.join(s)})" for k, names in CREDENTIALS.items() if (s := [n for n in names if os.environ.get(n)])
    ]
    files = {"Azure": "~/.azure/azureProfile.json", "S3": "~/.aws/credentials"}
    there += [f"{name} ({file})" for name, file in files.items() if Path(file).expanduser().is_file()]
    text = "; ".join(there) or "none: fine for local stores"
    drivers = [text for name, text in DRIVERS.items() if importlib.util.find_spec(name)]
    yield Finding("credentials", "ok" if there else "note", text)
    yield Finding("remote stores", "ok" if drivers else "note", ", ".join(drivers) or "no drivers are installed")
