"""What CycloneDX 1.6 asks of a document: the rules that matter here, and the published schema where it is at hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def faults(document: dict[str, Any]) -> list[str]:
    """What CycloneDX 1.6 asks for and this document lacks, in words."""
    found = []
    if (document["bomFormat"], document["specVersion"], document["version"]) != ("CycloneDX", "1.6", 1):
        found.append("head")
    if not re.fullmatch(
        r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", document["serialNumber"]
    ):
        found.append("serialNumber")
    components = [document["metadata"]["component"], *document["components"]]
    refs = [c["bom-ref"] for c in components]
    if len(refs) != len(set(refs)):
        found.append("bom-ref twice")
    known = {"type", "bom-ref", "name", "version", "purl", "description", "licenses", "hashes"}
    for c in components:
        if (
            set(c) - known
            or c["type"] not in ("application", "framework", "library")
            or not (c["name"] and c["version"])
        ):
            found.append(f"component {c['bom-ref']}")
        for choice in c.get("licenses", []):
            if set(choice) != {"expression"} and not ("license" in choice and choice["license"].get("name")):
                found.append(f"licence of {c['name']}")
        if not re.fullmatch(r"pkg:(pypi|deb|generic)/[\w./+%-]+@[\w.+%~-]+(\?.*)?", c["purl"]):
            found.append(f"purl {c['purl']}")
    for edge in document["dependencies"]:
        found += [f"edge {r}" for r in [edge["ref"], *edge["dependsOn"]] if r not in refs]
    return found


def check_schema(package: Path, document: dict[str, Any]) -> None:
    """Validate against the schema files that cyclonedx-python-lib carries."""
    import jsonschema
    from referencing import Registry, Resource

    folder = package / "schema" / "_res"
    parts = [Resource.from_contents(json.loads(f.read_text())) for f in folder.glob("*.schema.json")]
    registry = Registry().with_resources((p.id().rstrip("#"), p) for p in parts if p.id())
    schema = json.loads((folder / "bom-1.6.SNAPSHOT.schema.json").read_text())
    jsonschema.Draft7Validator(schema, registry=registry).validate(document)
