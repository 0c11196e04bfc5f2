"""Write what an image holds as CycloneDX 1.6: Python distributions, Debian packages, CPython. Runs inside the builder.

    sbom.py STAGE LOCK

Reads the parent image at /parent, what the layers add in /deltas/*, /delta; writes
/delta/usr/share/microstages/sbom.cdx.json. The same contents give the same bytes: no time, a serial number made of the
contents.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import uuid
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

from install import DELTA, PARENT, SITE, TIME, normalized

PLACE = "usr/share/microstages/sbom.cdx.json"


def hashes_of(lock: str) -> dict[str, list[str]]:
    """Name -> sha256 hashes of the wheels that the lock admits."""
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", re.sub(r"(?m)^#.*\n", "", lock))
    return {e.partition("==")[0]: re.findall(r"sha256:([0-9a-f]{64})", e) for e in entries if "==" in e}


def stated(d: Distribution, field: str) -> list[str]:
    """The values of a metadata field; none where it is empty."""
    return [v.strip() for v in d.metadata.get_all(field) or [] if v.strip()]


def licence(d: Distribution) -> list[dict[str, Any]]:
    """The licence as the distribution states it: an SPDX expression, else a name."""
    if expressions := stated(d, "License-Expression"):
        return [{"expression": expressions[0]}]
    names = [c.rpartition("::")[2].strip() for c in stated(d, "Classifier") if c.startswith("License ::")]
    short = [text for text in stated(d, "License") if len(text) < 80 and "\n" not in text and text != "UNKNOWN"]
    return [{"license": {"name": name}} for name in short or names]


def python_components(sites: list[Path], lock: str) -> list[dict[str, Any]]:
    wheels = hashes_of(lock)
    found = {}
    for d in distributions(path=[str(s) for s in sites]):
        name = normalized(d.metadata["Name"])
        purl = f"pkg:pypi/{name}@{quote(d.version)}"
        item: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": d.version, "purl": purl}
        if summary := stated(d, "Summary"):
            item["description"] = summary[0]
        if known := licence(d):
            item["licenses"] = known
        if len(wheels.get(name, [])) == 1:
            item["hashes"] = [{"alg": "SHA-256", "content": wheels[name][0]}]
        item["requires"] = sorted({normalized(re.match(r"[\w.-]+", r).group()) for r in d.requires or []})  # type: ignore[union-attr]
        found[name] = item
    return [found[name] for name in sorted(found)]


def debian_components(status: Path, release: dict[str, str]) -> list[dict[str, Any]]:
    found = []
    for block in status.read_text().split("\n\n") if status.is_file() else []:
        fields = dict(re.findall(r"(?m)^([A-Za-z-]+): (.*)$", block))
        if not fields.get("Status", "").endswith(" installed"):
            continue
        name, version = fields["Package"], fields["Version"]
        system, number = release.get("ID", "debian"), release.get("VERSION_ID", "")
        place = f"arch={fields['Architecture']}&distro={system}-{number}"
        purl = f"pkg:deb/{system}/{name}@{quote(version, safe='')}?{place}"
        found.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return sorted(found, key=lambda c: c["name"])


def os_release(root: Path) -> dict[str, str]:
    text = (root / "etc/os-release").read_text()
    return {key: value.strip('"') for key, value in re.findall(r"(?m)^([A-Z_]+)=(.*)$", text)}


def document(stage: str, python: list[dict[str, Any]], system: list[dict[str, Any]]) -> dict[str, Any]:
    """The bill of materials. Its subject is the stage's own distribution."""
    refs = {c["name"]: c["bom-ref"] for c in python}
    graph = [
        {"ref": c["bom-ref"], "dependsOn": [refs[n] for n in c.pop("requires") if n in refs and n != c["name"]]}
        for c in python
    ]
    subject = next(c for c in python if c["name"] == f"microstages-{stage}")
    interpreter = {
        "type": "framework", "bom-ref": "cpython", "name": "cpython", "version": platform.python_version(),
        "purl": f"pkg:generic/cpython@{platform.python_version()}",
    }  # fmt: skip
    components = [c for c in python if c is not subject] + [interpreter, *system]
    body: dict[str, Any] = {
        "metadata": {"component": {**subject, "type": "application"}},
        "components": components,
        "dependencies": graph,
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1}
    return head | body


def main() -> None:
    stage, lock = sys.argv[1:]
    sites = [root / SITE for root in (PARENT, *sorted(Path("/deltas").iterdir()), DELTA)]
    python = python_components(sites, Path(lock).read_text())
    system = debian_components(PARENT / "var/lib/dpkg/status", os_release(PARENT))
    file = DELTA / PLACE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document(stage, python, system), indent=1) + "\n")
    os.chmod(file, 0o644)
    for path in (file, *list(file.parents)[:3]):
        os.utime(path, (TIME, TIME))


if __name__ == "__main__":
    main()
