"""A real MLflow server, its runs in SQLite."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stores.servers import HOST, Server

MLFLOW = Path(__file__).parent / ".venv" / "bin" / "mlflow"


@dataclass
class Tracker:
    """The server, asked as anybody can."""

    uri: str

    def ask(self, name: str, values: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.uri}/api/2.0/mlflow/{name}", json.dumps(values).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def runs(self, experiment: str) -> list[dict[str, Any]]:
        """The runs of an experiment, oldest first."""
        found = self.ask("experiments/search", {"max_results": 1000})["experiments"]
        ids = [e["experiment_id"] for e in found if e["name"] == experiment]
        runs = self.ask("runs/search", {"experiment_ids": ids, "max_results": 1000}).get("runs", []) if ids else []
        return sorted(runs, key=lambda r: r["info"]["start_time"])

    def history(self, run: dict[str, Any], metric: str) -> list[tuple[int, float]]:
        """(step, value) of a metric."""
        url = f"{self.uri}/api/2.0/mlflow/metrics/get-history?run_id={run['info']['run_id']}&metric_key={metric}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return [(m["step"], m["value"]) for m in json.load(answer).get("metrics", [])]


def told(run: dict[str, Any], kind: str) -> dict[str, Any]:
    """The metrics, params or tags of a run."""
    return {e["key"]: e["value"] for e in run["data"].get(kind, [])}


@pytest.fixture(scope="session")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    """MLflow's own server. Where it is not installed its tests are left out loudly, or fail where it is required."""
    if not MLFLOW.is_file():
        if os.environ.get("MICROSTAGES_REQUIRE_STORES") == "1":
            pytest.fail("MLflow is not tested: make stores")
        pytest.skip("MLFLOW NOT TESTED: make stores")
    folder = tmp_path_factory.mktemp("mlflow")

    def command(port: int) -> list[str]:
        place = ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "files")]
        return [str(MLFLOW), "server", "--host", HOST, "--port", str(port), "--workers", "1", *place]

    server = Server(command, folder / "log")
    server.start()
    yield Tracker(f"http://{HOST}:{server.port}")
    server.stop()
