"""The copies of inputs that a cluster reads: they go when no run is under way, and a run brings them again."""

from __future__ import annotations

import time

from microstages import storage

NOW = ("--older-than", "0s", "--yes")
COPY = "inputs/0123456789abcdef0123456789abcdef/artifact.json"


def test_they_go_where_no_run_is_under_way(far, eventually):
    far.project.up()
    storage.create(storage.join(far.uri, COPY), b"{}")
    assert far.ok("gc", "--yes")["kept"]["young"]["count"] >= 1 and COPY in far.files()
    far.project.stage("slow", "sleep 600")
    text = f"name: other\nstore: {far.uri}\nstages: {{slow: {{uses: ./slow}}}}\n"
    (far.project.folder / "other.yaml").write_text(text)
    up = far.project.start("up", "other.yaml")
    eventually(lambda: any(r["status"] == "running" for r in far.runs()))
    kept = far.ok("gc", *NOW)
    assert COPY in far.files() and kept["kept"]["in use by a run under way"]["count"] >= 1
    up.terminate()
    up.communicate(timeout=60)
    time.sleep(1.1)  # stores tell times in seconds
    gone = far.ok("gc", *NOW)
    assert {i["kind"] for i in gone["would_go"]} >= {"input"} and COPY not in far.files()
