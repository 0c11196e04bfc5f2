"""The bill of materials: CycloneDX, complete, and the same for the same contents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

STATUS = """\
Package: zlib1g
Status: install ok installed
Version: 1:1.2.13.dfsg-1
Architecture: amd64

Package: gone
Status: deinstall ok config-files
Version: 1.0
Architecture: amd64
"""


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Any]:
    """The document of two distributions and one Debian package."""
    import sbom

    site = tmp_path / "site"
    for name, more in (
        ("microstages_merge", "License-Expression: MIT\nRequires-Dist: A.B==1.0\nRequires-Dist: absent\n"),
        ("a_b", "Summary: Something\nClassifier: License :: OSI Approved :: BSD License\n"),
    ):
        folder = site / f"{name}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{more}")
    (tmp_path / "status").write_text(STATUS)
    python = sbom.python_components([site], "a-b==1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n")
    system = sbom.debian_components(tmp_path / "status", {"ID": "debian", "VERSION_ID": "12"})
    return sbom.document("merge", python, system)


def test_the_stage_is_the_subject_and_its_dependencies_are_edges(made: dict[str, Any]):
    from bom_rules import faults

    assert faults(made) == []
    assert made["metadata"]["component"]["purl"] == "pkg:pypi/microstages-merge@1.0"
    edges = {e["ref"]: e["dependsOn"] for e in made["dependencies"]}
    assert edges["pkg:pypi/microstages-merge@1.0"] == ["pkg:pypi/a-b@1.0"]


def test_components_carry_licence_hash_and_debian_packages(made: dict[str, Any]):
    by_name = {c["name"]: c for c in made["components"]}
    assert set(by_name) == {"a-b", "cpython", "zlib1g"}
    assert by_name["a-b"]["licenses"] == [{"license": {"name": "BSD License"}}]
    assert by_name["a-b"]["hashes"] == [{"alg": "SHA-256", "content": "0" * 64}]
    assert by_name["zlib1g"]["purl"] == "pkg:deb/debian/zlib1g@1%3A1.2.13.dfsg-1?arch=amd64&distro=debian-12"


def test_the_published_schema_agrees(made: dict[str, Any]):
    cyclonedx = pytest.importorskip("cyclonedx", reason="SCHEMA NOT TESTED: pip install cyclonedx-python-lib")
    from bom_rules import check_schema

    check_schema(Path(cyclonedx.__file__).parent, made)
