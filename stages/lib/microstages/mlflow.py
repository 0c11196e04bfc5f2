"""Metrics and parameters to an MLflow server, by its REST API (2.0).

$MLFLOW_TRACKING_URI says where it is: http(s)://…, or azureml://… as Azure Machine Learning sets it in its jobs. The
variables that MLflow's own client reads count: MLFLOW_TRACKING_TOKEN, MLFLOW_TRACKING_USERNAME and _PASSWORD,
MLFLOW_TRACKING_SERVER_CERT_PATH, MLFLOW_TRACKING_INSECURE_TLS, MLFLOW_EXPERIMENT_NAME, MLFLOW_RUN_ID. MLflow's package
is not needed: four requests are all that is used of it.

What is logged is sent by a thread, at least every few seconds. A server that fails costs a warning and no run.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from microstages.errors import UserError

EVERY = 2.0  # seconds between two requests
SECONDS = 10.0  # that a request may take
MOST_METRICS, MOST_PARAMS = 1000, 100  # in one request: MLflow's limits
LONGEST = 500  # characters of a parameter, which every server takes
TRIES = 3  # requests that fail one after the other until nothing is sent any more
TOLD = "MICROSTAGES_MLFLOW"  # `runner`, where the runner tells MLflow what a stage says
AZURE = "https://management.azure.com/.default"  # the scope of a token for Azure Machine Learning


class Server:
    """An MLflow tracking server."""

    def __init__(self, uri: str) -> None:
        if not uri.startswith(("http://", "https://", "azureml://")):
            fix = "start `mlflow server` and name its address, http://…"
            raise UserError("MLFLOW_TRACKING_URI must be the address of a server", where=uri, fix=fix)
        self.azure = uri.startswith("azureml://")
        base = uri.replace("azureml://", "https://", 1).partition("?")[0].rstrip("/")
        self.base = f"{base}/api/2.0/mlflow"
        self._token = ""
        self._until = 0.0
        self._tls: ssl.SSLContext | None = None
        if self.base.startswith("https:"):
            self._tls = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or None)
            if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
                self._tls.check_hostname, self._tls.verify_mode = False, ssl.CERT_NONE

    def ask(self, method: str, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """One request. Raises OSError where there is no answer, or one that refuses."""
        url, body = f"{self.base}/{name}", None
        if method == "GET":
            url += "?" + urllib.parse.urlencode(values)
        else:
            body = json.dumps(values).encode()
        request = urllib.request.Request(url, body, self._headers(), method=method)
        with urllib.request.urlopen(request, timeout=SECONDS, context=self._tls) as answer:
            found = json.load(answer)
        return found if isinstance(found, dict) else {}

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        if token := os.environ.get("MLFLOW_TRACKING_TOKEN") or self._azure():
            headers["Authorization"] = f"Bearer {token}"
        elif user:
            pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        return headers

    def _azure(self) -> str:
        if not self.azure:
            return ""
        if time.time() > self._until - 300:
            from azure.identity import DefaultAzureCredential

            with DefaultAzureCredential() as credential:
                token = credential.get_token(AZURE)
            self._token, self._until = token.token, float(token.expires_on)
        return self._token

    def experiment(self, name: str) -> str:
        """The id of an experiment, made where it is not there."""
        wanted = {"experiment_name": name}
        try:
            return str(self.ask("GET", "experiments/get-by-name", wanted)["experiment"]["experiment_id"])
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
        try:
            return str(self.ask("POST", "experiments/create", {"name": name})["experiment_id"])
        except urllib.error.HTTPError as error:  # somebody else made it meanwhile
            if error.code != 400:
                raise
            return str(self.ask("GET", "experiments/get-by-name", wanted)["experiment"]["experiment_id"])

    def run(self, experiment: str, name: str, tags: Mapping[str, str]) -> str:
        """The id of a new run."""
        values = {
            "experiment_id": experiment, "run_name": name, "start_time": _now(),
            "tags": [{"key": k, "value": v} for k, v in {"mlflow.runName": name, **tags}.items()],
        }  # fmt: skip
        return str(self.ask("POST", "runs/create", values)["run"]["info"]["run_id"])


class Run:
    """One run: `begin` says how it is made (in the thread), or it is there already. Nothing here raises or waits."""

    def __init__(
        self, server: Server, begin: Callable[[], str], warn: Callable[[str], None], ends: bool = True
    ) -> None:
        self.server, self.ends = server, ends
        self._begin, self._warn = begin, warn
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._status = ""
        self.id = ""
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlflow")
        self._thread.start()

    def metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Log the numbers among some values."""
        for key, value in _numbers(values):
            self._queue.put({"metrics": {"key": key, "value": value, "timestamp": _now(), "step": step or 0}})

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; they cannot be changed afterwards."""
        for key, value in values.items():
            if value is not None:
                self._queue.put({"params": {"key": key, "value": str(value)[:LONGEST]}})

    def wait_begun(self) -> str:
        """The run's id; empty where it could not be made. Waits for it: only for a thread that can."""
        self._begun.wait(2 * SECONDS)
        return self.id

    def close(self, status: str = "FINISHED", seconds: float = SECONDS) -> None:
        """The end: FINISHED, FAILED or KILLED. Waits so many seconds for what is still to be sent."""
        if not self._status:
            self._status = status
            self._queue.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        failed = 0
        try:
            self.id = self._begin()
        except Exception as error:
            self._warn(f"MLflow is not told of this run: {_why(error)}")
            return
        finally:
            self._begun.set()
        ended = False
        while not ended and failed < TRIES:
            batch, ended = self._batch()
            try:
                for body in _bodies(self.id, batch):
                    self.server.ask("POST", "runs/log-batch", body)
                failed = 0
            except Exception as error:
                failed += 1
                self._warn(f"MLflow did not take some metrics: {_why(error)}")
        if ended and self.ends:
            values = {"run_id": self.id, "status": self._status, "end_time": _now()}
            try:
                self.server.ask("POST", "runs/update", values)
            except Exception as error:
                self._warn(f"MLflow was not told of the run's end: {_why(error)}")

    def _batch(self) -> tuple[list[dict[str, Any]], bool]:
        """What is to be sent, after some seconds or at the end."""
        batch: list[dict[str, Any]] = []
        until = time.monotonic() + EVERY
        while (left := until - time.monotonic()) > 0:
            try:
                item = self._queue.get(timeout=left)
            except queue.Empty:
                break
            if item is None:
                return batch, True
            batch.append(item)
        return batch, False


def of_environment(stage: str, params: Mapping[str, Any], warn: Callable[[str], None]) -> Run | None:
    """The run of a stage that is alone, or a job of Azure Machine Learning: $MLFLOW_RUN_ID, or a new one. None where
    no server is named, or a runner tells it."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri or os.environ.get(TOLD) == "runner":
        return None
    try:
        server = Server(uri)
    except (UserError, OSError) as error:
        warn(f"MLflow is not told of this run: {_why(error)}")
        return None
    known = os.environ.get("MLFLOW_RUN_ID", "")
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or stage

    def begin() -> str:
        return known or server.run(server.experiment(experiment), stage, {})

    run = Run(server, begin, warn, ends=not known)
    run.params(params)
    return run


def _bodies(run: str, batch: list[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    metrics = [i["metrics"] for i in batch if "metrics" in i]
    params = [i["params"] for i in batch if "params" in i]
    for at in range(0, len(params), MOST_PARAMS):
        yield {"run_id": run, "params": params[at : at + MOST_PARAMS]}
    for at in range(0, len(metrics), MOST_METRICS):
        yield {"run_id": run, "metrics": metrics[at : at + MOST_METRICS]}


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    """The numbers, those of nested mappings as `outer.inner`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)


def _why(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        try:
            return f"HTTP {error.code}: {json.load(error)['message']}"[:300]
        except (ValueError, KeyError, TypeError, OSError):
            return f"HTTP {error.code}"
    reason = getattr(error, "reason", None)
    return str(reason or error)[:300]


def _now() -> int:
    return int(time.time() * 1000)
