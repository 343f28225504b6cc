"""A small Hub on the loopback: what the clients of `huggingface_hub` and `datasets` ask for when they read.

What they ask for when they write is in `hub_writing`.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(?:/(?P<verb>revision|tree|paths-info)/(?P<rest>.+))?"
)
RESOLVE = re.compile(r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<rest>.+)")


@dataclass(frozen=True)
class Repository:
    """A directory served as a repository with one commit, which `main` stands for.

    Attributes:
        status: if not 0, what every request is answered with.
    """

    name: str
    folder: Path
    kind: str = "models"
    gated: bool = False
    private: bool = False
    status: int = 0

    @property
    def commit(self) -> str:
        return hashlib.sha1(f"{self.kind}/{self.name}".encode()).hexdigest()

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())

    def knows(self, revision: str) -> bool:
        return revision in ("main", self.commit)

    def read(self, file: str, revision: str = "main") -> bytes:
        return (self.folder / file).read_bytes()

    def oid(self, file: str) -> str:
        content = self.read(file)
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def info(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "sha": self.commit,
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": file} for file in self.files()],
        }

    def tree(self, under: str = "") -> list[dict[str, Any]]:
        files = [file for file in self.files() if not under or file.startswith(f"{under}/")]
        if not files:
            raise Refusal(404, "EntryNotFound", f"{under} does not exist")
        return [self.entry(file) for file in files]

    def entry(self, file: str) -> dict[str, Any]:
        return {"type": "file", "path": file, "size": len(self.read(file)), "oid": self.oid(file)}


@dataclass
class Hub:
    """What is served, to whom, and what was asked.

    Attributes:
        tokens: whether each token's account may read gated repositories; others are unknown.
        breaks: for a repository and file, after how many bytes in all its connections are cut.
        requests: method, path and status of each request, in order.
    """

    repositories: Sequence[Repository]
    tokens: Mapping[str, bool] = field(default_factory=dict)
    breaks: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    endpoint: str = ""

    def find(self, kind: str, name: str) -> Repository | None:
        return next((r for r in self.repositories if (r.kind, r.name) == (kind, name)), None)

    def downloads(self, name: str) -> list[str]:
        """Files of a repository whose content was sent."""
        sent = [path for method, path, status in self.requests if method == "GET" and status < 300]
        return [path.split("/")[-1] for path in sent if f"{name}/resolve/" in path]


class Refusal(Exception):
    """An answer other than success, with the headers by which the clients tell the causes apart."""

    def __init__(self, status: int, code: str, message: str, body: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.body = status, code, message, body


class Handler(BaseHTTPRequestHandler):
    """One request; `server.hub` is what there is to serve."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        try:
            body = self._read_body(path)
            if path == "/api/whoami-v2":
                self._send_json(self._whoami())
            elif self.command in ("POST", "PUT") and (answer := self._write(path, body)) is not None:
                self._send_json(answer)
            elif match := API.fullmatch(path):
                self._send_api(match, body)
            elif match := RESOLVE.fullmatch(path):
                self._send_file(match)
            else:
                raise Refusal(404, "", "Not Found")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send(refusal.status, headers, refusal.body.encode())

    do_HEAD = do_POST = do_PUT = do_GET

    def _write(self, path: str, body: bytes) -> Any | None:
        """The answer to a request that writes, or None if it is none of those."""
        return None

    def _read_body(self, path: str) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _token(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if token and token not in self.server.hub.tokens:
            raise Refusal(401, "", "Invalid credentials in Authorization header")
        return token or None

    def _whoami(self) -> dict[str, Any]:
        token = self._token()
        if token is None:
            raise Refusal(401, "", "Invalid username or password.")
        return {"type": "user", "name": "tester", "auth": {"accessToken": {"role": "read"}}}

    def _repository(self, match: re.Match[str]) -> Repository:
        """What is asked for, if this token may know of it."""
        token = self._token()
        repository = self.server.hub.find(match["kind"] or "models", match["name"])
        if repository is None or (repository.private and not self._may_see(repository, token)):
            raise Refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        if repository.status:
            raise Refusal(repository.status, "", "Not for this token")
        return repository

    def _may_see(self, repository: Repository, token: str | None) -> bool:
        return token is not None

    def _check_access(self, repository: Repository) -> None:
        """Files are behind the gate; the repository's page and its list of files are not."""
        token = self._token()
        page = f"{self.server.hub.endpoint}/{repository.name}"
        if repository.gated and token is None:
            raise Refusal(401, "GatedRepo", f"Access to model {repository.name} is restricted. Please log in.")
        if repository.gated and not self.server.hub.tokens[token or ""]:
            raise Refusal(403, "GatedRepo", f"You are not in the authorized list. Visit {page} to ask for access.")

    def _check_revision(self, repository: Repository, revision: str) -> None:
        if not repository.knows(revision):
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _send_api(self, match: re.Match[str], body: bytes) -> None:
        repository = self._repository(match)
        revision, _, under = (match["rest"] or "main").partition("/")
        self._check_revision(repository, revision)
        if match["verb"] == "tree":
            self._send_json(repository.tree(under))
        elif match["verb"] == "paths-info":
            asked = json.loads(body)["paths"]
            self._send_json([repository.entry(file) for file in repository.files() if file in asked])
        else:
            self._send_json(repository.info())

    def _send_file(self, match: re.Match[str]) -> None:
        repository = self._repository(match)
        self._check_access(repository)
        revision, _, file = match["rest"].partition("/")
        self._check_revision(repository, revision)
        commit = {"X-Repo-Commit": repository.commit}
        if file not in repository.files():
            self._send(404, {**commit, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b"")
            return
        content = repository.read(file, revision)
        headers = {**commit, "ETag": f'"{repository.oid(file)}"', "Accept-Ranges": "bytes"}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), int(asked[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            self._send(206, headers, content[start : end + 1], f"{repository.name}/{file}")
        else:
            self._send(200, headers, content, f"{repository.name}/{file}")

    def _send_json(self, value: Any) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: Mapping[str, str], body: bytes, file: str = "") -> None:
        self.server.hub.requests.append((self.command, self.path, status))
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        left = self.server.hub.breaks.get(file, len(body))
        self.wfile.write(body[:left])
        if file in self.server.hub.breaks:
            self.server.hub.breaks[file] = max(0, left - len(body))
            self.close_connection = left < len(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing; `Hub.requests` has it."""


class HubServer(ThreadingHTTPServer):
    """The server behind `serve`; closing it ends the connections that clients keep open."""

    daemon_threads = False

    def __init__(self, hub: Hub, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub
        self.open: set[socket.socket] = set()
        hub.endpoint = f"http://127.0.0.1:{self.server_port}"

    def finish_request(self, request: Any, address: Any) -> None:
        self.open.add(request)
        try:
            super().finish_request(request, address)
        except ConnectionError:  # the client left
            pass
        finally:
            self.open.discard(request)

    def hang_up(self) -> None:
        for connection in list(self.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serve(hub: Hub, handler: type[Handler] = Handler) -> Iterator[Hub]:
    """Serve a Hub until the block ends; no thread and no socket is left behind."""
    server = HubServer(hub, handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.hang_up()
        server.server_close()
        thread.join()
