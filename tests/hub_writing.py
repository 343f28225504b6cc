"""What the loopback Hub of `hub_server` does when a client writes: accounts, new repositories, uploads, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.hub_server import Handler, Hub, Refusal, Repository

PREUPLOAD = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)/preupload/main")
COMMIT = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)/commit/main")
BATCH = re.compile(r"/(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
UPLOAD = re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})")


@dataclass
class Account:
    """Whose token it is and what it may do.

    Attributes:
        role: `read`, `write` or `fineGrained`.
        organisations: name → role in it.
        scopes: owners or repositories that a fine-grained token may write to.
    """

    name: str
    role: str = "write"
    organisations: Mapping[str, str] = field(default_factory=dict)
    scopes: tuple[str, ...] = ()

    def may_write(self, repo_id: str) -> bool:
        owner = repo_id.split("/")[0]
        own = owner == self.name or self.organisations.get(owner) in ("write", "admin")
        return own and (self.role == "write" or bool({owner, repo_id} & set(self.scopes)))

    def whoami(self) -> dict[str, Any]:
        token: dict[str, Any] = {"displayName": "t", "role": self.role}
        if self.role == "fineGrained":
            scoped = [{"entity": {"type": "user", "name": n}, "permissions": ["repo.write"]} for n in self.scopes]
            token["fineGrained"] = {"canReadGatedRepos": True, "global": [], "scoped": scoped}
        organisations = [{"name": name, "roleInOrg": role} for name, role in self.organisations.items()]
        return {"type": "user", "name": self.name, "orgs": organisations, "auth": {"accessToken": token}}


@dataclass(frozen=True)
class Written(Repository):
    """A repository that keeps each of its commits whole; `history` is oldest first."""

    history: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    @property
    def commit(self) -> str:
        return self.history[-1][0]

    def commit_files(self, files: Mapping[str, bytes]) -> str:
        seed = json.dumps([self.name, len(self.history), sorted(files)]).encode() + b"".join(files.values())
        self.history.append((hashlib.sha1(seed).hexdigest(), dict(files)))
        return self.commit

    def files(self) -> list[str]:
        return sorted(self.history[-1][1])

    def knows(self, revision: str) -> bool:
        return revision == "main" or revision in dict(self.history)

    def read(self, file: str, revision: str = "main") -> bytes:
        return dict(self.history)[self.commit if revision == "main" else revision][file]

    def stored_oid(self, file: str) -> str | None:
        """What the Hub knows a file by: its blob, or its content where it is stored apart."""
        if file not in self.files():
            return None
        return hashlib.sha256(self.read(file)).hexdigest() if is_large(file) else self.oid(file)

    def info(self) -> dict[str, Any]:
        card = self.read("README.md").decode() if "README.md" in self.files() else ""
        front = yaml.safe_load(card.split("---\n")[1]) if card.startswith("---\n") else None
        return {**super().info(), "cardData": front}


@dataclass
class WritableHub(Hub):
    """A Hub that can be written to.

    Attributes:
        accounts: token → whose it is.
        uploads: content of large files, by SHA-256, before and after a commit names them.
        cut: path of the requests whose connection is cut while their body is read, and how often.
        before_commit: called once before the next commit is looked at, as another client would come between.
        sent: bodies of all requests that wrote.
        licenses: that a model card may name.
    """

    accounts: Mapping[str, Account] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    cut: tuple[str, int] = ("", 0)
    before_commit: Any = None
    sent: list[bytes] = field(default_factory=list)
    licenses: Sequence[str] = ("apache-2.0", "mit", "cc-by-4.0", "llama3.1", "llama3.2", "new-1.0", "other")

    def of(self, name: str) -> Written:
        found = self.find("models", name)
        assert isinstance(found, Written), f"no repository {name} was written"
        return found

    def make(self, name: str, files: Mapping[str, bytes], private: bool = True) -> Written:
        repository = Written(name, Path(), private=private)
        repository.commit_files({".gitattributes": b"*.safetensors filter=lfs\n", **files})
        self.repositories = [*self.repositories, repository]
        return repository


def is_large(name: str) -> bool:
    """Whether the Hub stores a file apart."""
    return name.endswith(".safetensors")


class WritingHandler(Handler):
    """Reads as `Handler` does, and writes."""

    @property
    def hub(self) -> WritableHub:
        assert isinstance(self.server.hub, WritableHub)
        return self.server.hub

    def _read_body(self, path: str) -> bytes:
        prefix, times = self.hub.cut
        if times and prefix and re.match(prefix, path) and self.command in ("POST", "PUT"):
            self.hub.cut = (prefix, times - 1)
            self.rfile.read(100)
            self.close_connection = True
            self.hub.requests.append((self.command, self.path, 0))
            self.connection.shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return super()._read_body(path)

    def _whoami(self) -> dict[str, Any]:
        account = self._account()
        if account is None:
            raise Refusal(401, "", "Invalid username or password.")
        return account.whoami()

    def _account(self) -> Account | None:
        return self.hub.accounts.get(self._token() or "")

    def _may_see(self, repository: Repository, token: str | None) -> bool:
        account = self._account()
        return account is not None and repository.name.split("/")[0] in (account.name, *account.organisations)

    def _write(self, path: str, body: bytes) -> Any | None:
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if match := UPLOAD.fullmatch(path):
            assert hashlib.sha256(body).hexdigest() == match["oid"]
            self.hub.uploads[match["oid"]] = body
            return {}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        for pattern, answer in ((PREUPLOAD, self._preupload), (BATCH, self._batch), (COMMIT, self._commit)):
            if match := pattern.fullmatch(path):
                self.hub.sent.append(body)
                return answer(self._writable(match["name"]), body)
        return None

    def _validate(self, card: str) -> dict[str, Any]:
        """What the Hub says of a card's metadata; it answers 400 to a licence that is not on its list."""
        stated = yaml.safe_load(card.split("---\n")[1]).get("license")
        if stated in (None, *self.hub.licenses):
            return {"errors": [], "warnings": []}
        told = f'"license" must be one of [{", ".join(self.hub.licenses)}]'
        raise Refusal(400, "", told, json.dumps({"errors": [{"message": told}], "warnings": []}))

    def _writable(self, name: str) -> Written:
        account = self._account()
        if account is None:
            raise Refusal(401, "", "Unauthorized")
        if not account.may_write(name):
            raise Refusal(403, "", "You do not have the right to write")
        if self.hub.find("models", name) is None:
            raise Refusal(404, "RepoNotFound", "Repository not found")
        return self.hub.of(name)

    def _create(self, asked: dict[str, Any]) -> dict[str, Any]:
        account = self._account()
        name = f"{asked.get('organization') or (account.name if account else '')}/{asked['name']}"
        if account is None or not account.may_write(name):
            raise Refusal(403, "", "You do not have the right to create a model")
        if self.hub.find("models", name):
            raise Refusal(409, "", "You already created this model repo")
        self.hub.make(name, {}, private=asked.get("visibility") == "private")
        return {"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name}

    def _preupload(self, repository: Written, body: bytes) -> dict[str, Any]:
        files = [
            {"path": f["path"], "uploadMode": "lfs" if is_large(f["path"]) else "regular", "shouldIgnore": False}
            | {"oid": repository.stored_oid(f["path"])}
            for f in json.loads(body)["files"]
        ]
        return {"files": files}

    def _batch(self, repository: Written, body: bytes) -> dict[str, Any]:
        objects = []
        for wanted in json.loads(body)["objects"]:
            there = wanted["oid"] in self.hub.uploads
            upload = {"actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"}}}
            objects.append({**wanted, **({} if there else upload)})
        return {"transfer": "basic", "objects": objects}

    def _commit(self, repository: Written, body: bytes) -> dict[str, Any]:
        """One commit of all the lines, or none."""
        if self.hub.before_commit:
            come_between, self.hub.before_commit = self.hub.before_commit, None
            come_between(repository)
        files = dict(repository.history[-1][1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, repository.commit):
                raise Refusal(412, "", "A commit has happened since. Please refresh and try again.")
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = repository.commit_files(files)
        return {"commitUrl": f"{self.hub.endpoint}/{repository.name}/commit/{oid}", "commitOid": oid}
