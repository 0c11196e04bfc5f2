"""A web server, and a Hugging Face hub as far as its client needs one, on 127.0.0.1, with the files of a test."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Web:
    """`files` by path. `tags`: answers carry an ETag; `ranges`: parts can be asked for; `sizes`: answers say how long
    they are. `asked`: the requests, as `GET /path`."""

    def __init__(self, tags: bool = True, ranges: bool = True, sizes: bool = True) -> None:
        self.files: dict[str, bytes] = {}
        self.tags, self.ranges, self.sizes = tags, ranges, sizes
        self.asked: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Web:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str, authorization: str) -> tuple[int, dict[str, str], bytes]:  # noqa: ARG002
        """Status, headers and body."""
        if path not in self.files:
            return 404, {}, b"not here"
        return 200, {}, self.files[path]

    def tag(self, body: bytes) -> str:
        """The ETag of a file."""
        return hashlib.sha256(body).hexdigest()

    def _handler(web: Web) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = unquote(urlsplit(self.path).path)
                web.asked.append(f"{self.command} {path}")
                status, headers, body = web.answer(path, self.headers.get("Authorization", ""))
                if web.tags and status == 200:
                    headers = {"ETag": f'"{web.tag(body)}"', **headers}
                if web.ranges and status == 200:
                    headers["Accept-Ranges"] = "bytes"
                    if wanted := self.headers.get("Range"):
                        start, _, end = wanted.removeprefix("bytes=").partition("-")
                        headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
                        status, body = 206, body[int(start) : int(end or len(body)) + 1]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if web.sizes:
                    self.send_header("Content-Length", str(len(body)))
                else:
                    self.send_header("Connection", "close")
                    self.close_connection = True
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *args: Any) -> None: ...

        return Handler


class Hub(Web):
    """Repositories: `hub.commit("models", "owner/name", {file: bytes})` makes a commit on `main` and returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.token = ""  # where there is one it must be sent

    def commit(self, kind: str, name: str, files: dict[str, bytes]) -> str:
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repositories.setdefault((kind, name), {})[commit] = files
        self.branches[kind, name] = commit
        return commit

    def answer(self, path: str, authorization: str) -> tuple[int, dict[str, str], bytes]:
        if self.token and authorization != f"Bearer {self.token}":
            return 401, {"X-Error-Code": "GatedRepo"}, b"{}"
        for (kind, name), commits in self.repositories.items():
            for head in (f"/api/{kind}/{name}", f"/{name}/resolve" if kind == "models" else f"/{kind}/{name}/resolve"):
                if path == head or path.startswith(head + "/"):
                    rest = path.removeprefix(head).strip("/").removeprefix("revision/").split("/")
                    if rest[0] == "tree":
                        rest = rest[1:]
                        listing = True
                    else:
                        listing = False
                    revision, file = rest[0] or "main", "/".join(rest[1:])
                    commit = self.branches[kind, name] if revision == "main" else revision
                    if commit not in commits:
                        return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
                    return self._of(name, commit, commits[commit], None if head.startswith("/api") else file, listing)
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    @staticmethod
    def _of(
        name: str, commit: str, files: dict[str, bytes], file: str | None, listing: bool
    ) -> tuple[int, dict[str, str], bytes]:
        said = {"X-Repo-Commit": commit}
        if file is not None:
            if file not in files:
                return 404, {**said, "X-Error-Code": "EntryNotFound"}, b""
            return 200, {**said, "ETag": f'"{hashlib.sha1(files[file]).hexdigest()}"'}, files[file]
        entries = [
            {"rfilename": f, "path": f, "type": "file", "size": len(b), "oid": "0" * 40} for f, b in files.items()
        ]
        about: Any = entries if listing else {"id": name, "sha": commit, "siblings": entries, "private": False}
        return 200, {**said, "Content-Type": "application/json"}, json.dumps(about).encode()
