"""The API of a cluster: how it is reached, what its refusals mean.

Objects are plain JSON as the API has it. A call raises UserError for what the caller can mend, TemporaryError where the
cluster does not answer or asks for patience; MissingError is the UserError of what is not there.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from microstages.errors import TemporaryError, UserError, nearest

if TYPE_CHECKING:
    from kubernetes.client import ApiClient, Configuration

CONNECT, SECONDS = 5.0, 30.0  # to reach the API, and for an answer
TRIES, PAUSE = 3, 0.5  # of a call whose connection was lost
SILENCE = 60.0  # seconds without a word after which a stream is opened again
CONNECTIONS = 64
OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
JOBS, CORE = "/apis/batch/v1/namespaces/{}/jobs", "/api/v1/namespaces/{}/"

Object = dict[str, Any]


class MissingError(UserError):
    """What was asked for is not there."""


class LoginError(UserError):
    """The credentials are not, or no more, good."""


class TakenError(UserError):
    """Something has this name already."""


class Cluster:
    """One namespace of one cluster. `context`: a context of the kubeconfig, empty within a cluster."""

    def __init__(self, context: str = "", namespace: str = "") -> None:
        try:
            from kubernetes.client import ApiClient
        except ImportError:
            fix = "pip install 'microstages-runner[kubernetes]'"
            raise UserError("the Python package kubernetes is not installed", fix=fix) from None
        configuration, self.context, own = _configuration(context)
        self.namespace = namespace or own or "default"
        self.host = str(configuration.host).rstrip("/")
        self._client: ApiClient = ApiClient(configuration)

    @property
    def address(self) -> Mapping[str, str]:
        """By what it is found again."""
        return {"context": self.context, "namespace": self.namespace}

    # --- calls ---

    def get(self, kind: str, name: str) -> Object:
        return self._call("GET", f"{self._path(kind)}/{name}", f"see {kind}")

    def listed(self, kind: str, selector: str = "", fields: str = "") -> Object:
        """The list as the API has it: `items`, and `metadata.resourceVersion` to watch from."""
        return self._call("GET", self._path(kind), f"list {kind}", _query(selector, fields))

    def nodes(self) -> list[Object]:
        """The cluster's nodes, for whom may see them."""
        return list(self._call("GET", "/api/v1/nodes", "list nodes")["items"])

    def create(self, kind: str, body: Object) -> Object:
        """Raises TakenError where the name is taken."""
        return self._call("POST", self._path(kind), f"create {kind}", body=body)

    def delete(self, kind: str, name: str, policy: str = "Background", grace: int | None = None) -> None:
        """Delete an object with what it owns; one that is gone is no error."""
        body: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        try:
            self._call("DELETE", f"{self._path(kind)}/{name}", f"delete {kind}", body=body)
        except MissingError:
            return

    def watch(self, kind: str, selector: str, version: str, seconds: float) -> Any:
        """The stream of what happens to objects, for so many seconds; `happenings` reads it."""
        query = [*_query(selector), ("watch", "true"), ("resourceVersion", version)]
        query.append(("timeoutSeconds", str(max(1, round(seconds)))))
        return self._open("GET", self._path(kind), f"watch {kind}", query)

    def words(self, pod: str, container: str, follow: bool, since: str = "") -> Any:
        """The stream of a container's log, each line with its time before it; a urllib3 response, to be closed."""
        query = [("timestamps", "true"), ("follow", str(follow).lower()), ("container", container)]
        if since:
            query.append(("sinceTime", since))
        return self._open("GET", f"{self._path('pods')}/{pod}/log", "read the logs of pods", query)

    # --- how ---

    def _path(self, kind: str) -> str:
        return (JOBS if kind == "jobs" else CORE + kind).format(self.namespace)

    def _call(
        self, method: str, path: str, what: str, query: list[tuple[str, str]] | None = None, body: Object | None = None
    ) -> Object:
        from urllib3.exceptions import HTTPError

        for rest in reversed(range(TRIES)):
            try:
                try:
                    found: Object = json.loads(self._open(method, path, what, query, body).data or b"{}")
                    return found
                except (HTTPError, OSError) as error:
                    raise away(error, self.host) from None
            except TemporaryError:
                if not rest:
                    raise
                time.sleep(PAUSE)
        raise AssertionError

    def _open(
        self, method: str, path: str, what: str, query: list[tuple[str, str]] | None = None, body: Object | None = None
    ) -> Any:
        import urllib3
        from kubernetes.config import ConfigException

        silence = SILENCE if path.endswith("/log") or ("watch", "true") in (query or []) else SECONDS
        headers = {"Accept": "*/*" if path.endswith("/log") else "application/json"}
        data = None
        if body is not None:
            headers["Content-Type"], data = "application/json", json.dumps(body).encode()
        uri = f"{self.host}{path}?{urlencode(query)}" if query else f"{self.host}{path}"
        try:
            self._client.update_params_for_auth(headers, [], ["BearerToken"])  # renews what has expired
            response = self._client.rest_client.pool_manager.request(
                method, uri, headers=headers, body=data, timeout=urllib3.Timeout(connect=CONNECT, read=silence),
                preload_content=False,
            )  # fmt: skip
            if response.status < 300:
                return response
            text = response.data
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise away(error, self.host) from None
        except ConfigException as error:
            raise _no_login(error) from None
        raise explained(response.status, text, what, self.namespace, self.host)


def away(error: Exception, host: str) -> UserError:
    """The cluster cannot be reached."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        fix = "check `certificate-authority-data` of the kubeconfig's cluster"
        return UserError("the cluster's certificate is not one that the kubeconfig trusts", where=host, fix=fix)
    fix = "check the network (a VPN?) and `kubectl cluster-info`, and run again"
    return TemporaryError("the cluster does not answer", where=host, fix=fix)


def explained(status: int, body: object, what: str, namespace: str, host: str = "") -> UserError:
    """What the API refused, in words that say what to do. `what`: the verb and the resource."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body or "")
    try:
        text = str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        text = text.strip()[:500]
    if status == 401:
        fix = "log in to the cluster again, or check the `context` of the target"
        return LoginError("the cluster does not accept your credentials", where=host, fix=fix)
    if status == 404 and "namespaces " in text:
        fix = f"kubectl create namespace {namespace}, or give the target another `namespace`"
        return UserError(f"there is no namespace {namespace!r} in the cluster", where=host, fix=fix)
    if status == 404:
        return MissingError(f"the cluster says: {text}", where=host)
    if status == 409:
        return TakenError(f"the cluster says: {text}", where=host)
    if status == 403 and "exceeded quota" in text:
        fix = "ask for less below `resources:`, or wait until others are done"
        return UserError(f"the namespace {namespace} has no room: {text}", fix=fix)
    if status == 403 and " cannot " in text:
        fix = f"ask who runs the cluster for the Role of docs/kubernetes.md; it said: {text}"
        return UserError(f"you may not {what} in the namespace {namespace}", fix=fix)
    if status in (429, 500, 502, 503, 504):
        return TemporaryError(f"the cluster is busy: {text or status}", where=host, fix="try again")
    fix = "check the options of the target and the stage's `resources:`"
    return UserError(f"the cluster refused to {what}: {text or status}", where=f"namespace {namespace}", fix=fix)


def batches(response: Any) -> Iterator[list[bytes]]:
    """The lines of a stream, as they come; the very last one may have no end. Raises TemporaryError where it breaks."""
    from urllib3.exceptions import HTTPError

    rest = b""
    try:
        for chunk in response.stream(1 << 16):
            *whole, rest = (rest + chunk).split(b"\n")
            if whole:
                yield [line + b"\n" for line in whole]
    except (HTTPError, OSError, ValueError, AttributeError):  # the last two: closed by another thread
        raise TemporaryError("the stream broke") from None
    if rest:
        yield [rest]


def happenings(response: Any) -> Iterator[Object]:
    """What happens, as it happens: {type, object}. One of type ERROR is the last."""
    try:
        for batch in batches(response):
            for line in batch:
                yield json.loads(line)
    finally:
        response.close()


def interrupt(response: Any) -> None:
    """End a stream that another thread reads."""
    try:
        response.shutdown()
    except (OSError, ValueError, AttributeError):
        return


def _query(selector: str, fields: str = "") -> list[tuple[str, str]]:
    found = [("labelSelector", selector), ("fieldSelector", fields)]
    return [(name, value) for name, value in found if value]


def _configuration(context: str) -> tuple[Configuration, str, str]:
    """How to reach the cluster, the context's name, its namespace. Raises UserError."""
    import urllib3
    import yaml
    from kubernetes import config
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException

    made = Configuration()
    made.retries = False  # type: ignore[assignment] # tried again here, without a word on stderr
    made.connection_pool_maxsize = CONNECTIONS
    made.socket_options = [
        *urllib3.connection.HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    ]  # fmt: skip
    file = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    if not any(Path(name).expanduser().is_file() for name in file.split(os.pathsep) if name):
        try:
            config.load_incluster_config(client_configuration=made)
        except ConfigException:
            fix = "set KUBECONFIG, or write ~/.kube/config, as `kubectl` needs it too"
            raise UserError("there is no kubeconfig, and this is no pod of a cluster", where=file, fix=fix) from None
        if context:
            fix = "leave `context` out: in a pod of a cluster there is only this one"
            raise UserError(f"there is no context {context!r}", where=file, fix=fix) from None
        own = OWN_NAMESPACE.read_text().strip() if OWN_NAMESPACE.is_file() else ""
        return made, "", own
    try:
        known, current = config.list_kube_config_contexts(config_file=file)
    except (ConfigException, yaml.YAMLError, ValueError, OSError, TypeError, KeyError, AttributeError) as error:
        what = f"this is not a kubeconfig: {' '.join(str(error).split())}"
        raise UserError(what, where=file, fix="see `kubectl config view`") from None
    names = {str(entry["name"]): entry for entry in known}
    if context and context not in names:
        fix = f"contexts: {', '.join(names)}"
        raise UserError(f"there is no context {context!r}{nearest(context, names)}", where=file, fix=fix)
    name = context or str(current["name"])
    try:
        config.load_kube_config(config_file=file, context=name, client_configuration=made, persist_config=False)
    except (ConfigException, OSError) as error:
        raise _no_login(error) from None
    if not made.verify_ssl:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return made, name, str(names[name]["context"].get("namespace") or "")


def _no_login(error: Exception) -> UserError:
    return LoginError(f"the kubeconfig cannot be used: {error}", fix="check it with `kubectl cluster-info`")
