"""Azure's REST interfaces: a token for whoever runs, requests tried again while trouble may pass, errors in a line.

- The token comes from azure-identity's `DefaultAzureCredential`: variables, workload or managed identity, `az login`.
- A time-out, a lost connection, 408, 429 and 5xx are tried again with growing pauses, or after what `Retry-After`
  says, until `patience` is over: then it is a TemporaryError. What cannot pass is told at once.
- A token goes to https addresses only, or to 127.0.0.1. No message holds one.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from microstages import remote
from microstages.errors import TemporaryError, UserError

PUBLIC = "https://management.azure.com"
ENDPOINT = "AZURE_RESOURCE_MANAGER_URL"  # the variable that names another cloud's resource manager
API = "2023-10-01"
PROVIDER = "providers/Microsoft.MachineLearningServices"
TIMES = (10.0, 30.0)  # seconds: to connect, and between two bytes
PAUSES = (0.5, 20.0)  # seconds: the first pause before a new try, and the longest
EARLY = 300.0  # seconds before its end that a token is not used any more
LONGEST = 60.0  # seconds that a Retry-After is believed
SIGN_IN = (
    "sign in with `az login`, or set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET, or run where there is a "
    "managed identity"
)
PASSING = (408, 429, 500, 502, 503, 504)
# What a workspace is called in config.json, and in the environment of every job of Azure ML.
KEYS = {
    "subscription_id": "AZUREML_ARM_SUBSCRIPTION",
    "resource_group": "AZUREML_ARM_RESOURCEGROUP",
    "workspace": "AZUREML_ARM_WORKSPACE_NAME",
}


class RefusedError(UserError):
    """Azure answered that it will not do this. `status`: of HTTP; `code`: Azure's word; `span`: its Content-Range."""

    status, code, span = 0, "", ""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data or b"null")


def endpoint() -> str:
    """Azure Resource Manager of this cloud."""
    return checked(os.environ.get(ENDPOINT, "").rstrip("/") or PUBLIC, f"${ENDPOINT}")


def checked(url: str, where: str) -> str:
    """A URL that a token may be sent to. Raises UserError for another one."""
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")):
        raise UserError("it is no https address, and a token would be sent to it", where=where, fix="use https")
    return url


def scope_of(url: str, public: str = PUBLIC) -> str:
    """What a token for a resource manager is asked for; a local stand-in takes those of the public cloud."""
    return f"{public if urlsplit(url).scheme == 'http' else url}/.default"


class Token:
    """A token for one scope, asked for when it is needed, kept while it is good. Safe to use from several threads."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self._text, self._until = "", 0.0
        self._lock = threading.Lock()
        self._credential: Any = None

    def get(self, refused: str = "") -> str:
        """A token that is good for some minutes, another one than that which was `refused`. Raises UserError where
        nothing says who runs, ConnectionError where who would know does not answer."""
        with self._lock:
            if refused and self._text == refused:
                self._text, self._credential = "", None  # it keeps tokens too
            if not self._text or time.time() > self._until - EARLY:
                found = self._asked_for()
                self._text, self._until = found.token, float(found.expires_on)
            return self._text

    def _asked_for(self) -> Any:
        for name in ("azure", "msal"):  # what matters is told by us, in one line
            if logging.getLogger(name).level == logging.NOTSET:
                logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            from azure.core.exceptions import AzureError, ClientAuthenticationError
            from azure.identity import DefaultAzureCredential
        except ImportError:
            fix = "pip install 'microstages[azure]'"
            raise UserError("azure-identity is not installed", fix=fix) from None
        try:
            if self._credential is None:
                self._credential = DefaultAzureCredential(process_timeout=30)
            return self._credential.get_token(self.scope)
        except (ClientAuthenticationError, ValueError):
            self._credential = None
            raise UserError(f"Azure does not know who you are: no token for {self.scope}", fix=SIGN_IN) from None
        except AzureError as error:
            raise ConnectionError(type(error).__name__) from None


class Rest:
    """Requests with one token. `patience`: seconds for which one is tried again; `wait`: how to wait in between, which
    may raise."""

    def __init__(
        self, token: Token, patience: float | None = None, wait: Callable[[float], None] | None = None
    ) -> None:
        self._token, self._patience, self._wait = token, patience, wait or _wait
        self._session: Any = None

    def ask(
        self, method: str, url: str, body: Any = None, *, signed: bool = False, span: str = "", where: str = ""
    ) -> Answer:
        """One request. `signed`: the address itself gives access, and no token goes there; `span`: a range of bytes;
        `where`: what errors call it.

        Raises RefusedError, UserError where nothing says who runs, TemporaryError where no answer comes in time.
        """
        import requests

        shown = where or url.partition("?")[0]
        checked(url, shown)
        end = time.monotonic() + (remote.patience() if self._patience is None else self._patience)
        pause, longest = PAUSES
        token = refused = ""
        while True:
            asked = 0.0
            try:
                token = "" if signed else self._token.get(refused)
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                headers |= {"Range": span} if span else {}
                answer = self._http().request(
                    method, url, json=body, headers=headers, timeout=TIMES, allow_redirects=False
                )
                found = Answer(answer.status_code, answer.headers, answer.content)
                if found.status < 300:
                    return found
                if found.status == 401 and token and not refused:
                    refused = token
                    continue
                if found.status not in PASSING:
                    raise refusal(found, shown)
                trouble = f"it answers {found.status}{_words(found)}"
                with suppress(KeyError, ValueError):
                    asked = min(LONGEST, float(found.headers["Retry-After"]))
            except (requests.RequestException, ConnectionError) as error:
                trouble = f"it does not answer ({type(error).__name__})"
            left = end - time.monotonic()
            if left <= 0 or asked > left:
                fix = "check the network and the address; then run again"
                raise TemporaryError(trouble, where=shown, fix=fix)
            self._wait(min(left, asked or pause * random.uniform(0.5, 1.0)))
            pause = min(longest, pause * 2)

    def close(self) -> None:
        """Let go of the connections."""
        if self._session is not None:
            self._session.close()

    def _http(self) -> Any:
        if self._session is None:
            import requests

            self._session = requests.Session()
        return self._session


def refusal(answer: Answer, where: str) -> RefusedError:
    """What an answer of 300 and more says."""
    code, text = _error(answer)
    what = text or f"it answers {answer.status}"
    fix = "check the names and the address"
    if answer.status in (401, 403):
        what = f"access denied: {what}"
        fix = "sign in with `az login` as somebody who may do this: the role AzureML Data Scientist on the workspace"
    error = RefusedError(what, where=where, fix=fix)
    error.status, error.code, error.span = answer.status, code, str(answer.headers.get("Content-Range") or "")
    return error


def _error(answer: Answer) -> tuple[str, str]:
    try:
        found = answer.json
        inner = found.get("error") or found
        return str(inner.get("code") or ""), remote.scrub(str(inner.get("message") or "").strip())[:600]
    except (ValueError, AttributeError):
        return "", ""


def _words(answer: Answer) -> str:
    text = _error(answer)[1].split("\n")[0]
    return f" ({text[:200]})" if text else ""


def _wait(seconds: float) -> None:
    """Sleep; ends early with a TemporaryError where nobody waits for an answer any more."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if remote.given_up():
            raise TemporaryError("it does not answer, and it is not waited for any longer", fix="run again")
        time.sleep(min(0.5, left))


# --- workspaces ---


@dataclass(frozen=True)
class Workspace:
    """An Azure Machine Learning workspace, and the resource manager that knows it."""

    subscription_id: str
    resource_group: str
    name: str
    endpoint: str = PUBLIC

    @property
    def id(self) -> str:
        group = f"/subscriptions/{self.subscription_id}/resourceGroups/{self.resource_group}"
        return f"{group}/{PROVIDER}/workspaces/{self.name}"

    def url(self, path: str = "", api: str = API) -> str:
        """The address of something in it: `jobs/x`."""
        return f"{self.endpoint}{self.id}{'/' + path if path else ''}?api-version={api}"

    @staticmethod
    def find(folder: Path, given: Mapping[str, Any]) -> Workspace:
        """The workspace that options name; what they leave out comes from config.json in the folder or above it, then
        from the environment of a job. Raises UserError that names what is missing."""
        parts = {key: str(given.get(key) or "") for key in KEYS}
        if not all(parts.values()):
            known = next(_configs(folder), {})
            for key, variable in KEYS.items():
                parts[key] = parts[key] or known.get(key, "") or os.environ.get(variable, "")
        if missing := [key for key, value in parts.items() if not value]:
            fix = "write it below the target, or put the workspace's config.json beside the pipeline"
            raise UserError(
                f"it is not known which Azure ML workspace is meant: no {' and no '.join(missing)}", fix=fix
            )
        return Workspace(parts["subscription_id"], parts["resource_group"], parts["workspace"], endpoint())


def _configs(folder: Path) -> Iterator[dict[str, str]]:
    """Workspace files as Azure ML writes them, from a folder upwards; another config.json is passed over."""
    for place in (folder.absolute(), *folder.absolute().parents):
        for file in (place / ".azureml" / "config.json", place / "config.json"):
            with suppress(OSError, ValueError):
                found = json.loads(file.read_text())
                if isinstance(found, dict) and "workspace_name" in found and "subscription_id" in found:
                    out = {**found, "workspace": found["workspace_name"]}
                    yield {k: str(v) for k, v in out.items() if k in KEYS and v}
