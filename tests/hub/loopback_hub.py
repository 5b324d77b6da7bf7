# Copyright 2026 The FusionMatch team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
A Hub on this machine, for what `huggingface_hub` asks of one when repositories are made, pushed to, listed and read.

Everything is kept in memory, answers are the Hub's, and nothing inside `huggingface_hub` is replaced:
tests start processes whose `HF_ENDPOINT` is this one. [`Fault`] makes it fail as the Hub and networks do.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


# Kept apart from the commit, as on the Hub; other files come along in it.
LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".pt")
CHUNK = 2**14


@dataclass
class Commit:
    """Files of a repository at one point: path -> content."""

    sha: str
    title: str
    author: str
    files: dict[str, bytes]


@dataclass
class Repository:
    name: str
    private: bool
    gated: bool
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    # Large files that arrived, by SHA-256; in no commit yet where a push was cut.
    objects: dict[str, bytes] = field(default_factory=dict)

    def at(self, revision: str) -> Commit:
        sha = self.branches.get(revision, revision)
        for commit in self.commits:
            if commit.sha == sha:
                return commit
        raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def commit(self, branch: str, title: str, author: str, files: dict[str, bytes]) -> Commit:
        digest = hashlib.sha1(f"{self.name} {branch} {title} {len(self.commits)}".encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + hashlib.sha256(content).digest())
        commit = Commit(digest.hexdigest(), title, author, files)
        self.commits.append(commit)
        self.branches[branch] = commit.sha
        return commit


@dataclass
class Fault:
    """
    What goes wrong with the next requests whose method and path fit.

    Args:
        request (`str`): Pattern that "METHOD path" has to contain.
        status (`int`, *optional*): Answered in place of what was asked for.
        headers (`dict`, *optional*): Sent along with the status.
        cut_after (`int`, *optional*): Bytes of the body after which the connection is cut.
        hold (`threading.Event`, *optional*): Waited for before anything is answered.
        times (`int`): How many requests.
    """

    request: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    hold: threading.Event | None = None
    times: int = 1


@dataclass
class Request:
    """One line of the log. `read` is how many bytes of its body were read."""

    method: str
    path: str
    user: str | None
    range: str | None
    read: int = 0
    status: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class RefusalError(Exception):
    """An error answer, with the header by which `huggingface_hub` tells its kind."""

    def __init__(self, status: int, code: str = "", message: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | (headers or {})


class LoopbackHub:
    """Users `alice` and `bob`, both in the organisation `acme`; `carol` is in none."""

    def __init__(self) -> None:
        self.tokens = {f"hf_secret_of_{name}": name for name in ("alice", "bob", "carol")}
        self.members = {"acme": {"alice", "bob"}}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.admitted: set[tuple[str, str]] = set()  # to gated repositories: (user, repository)
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "LoopbackHub":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def token(self, user: str) -> str:
        return next(token for token, name in self.tokens.items() if name == user)

    def create(self, name: str, private: bool = False, gated: bool = False, kind: str = "models") -> Repository:
        repository = self.repositories[kind, name] = Repository(name, private, gated)
        repository.commit("main", "initial commit", name.split("/")[0], {".gitattributes": b""})
        return repository

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds, but for what the Hub itself puts there."""
        files = self.repositories["models", name].at(revision).files
        return {path: content for path, content in files.items() if path != ".gitattributes"}

    def requests(self, pattern: str, since: int = 0) -> list[Request]:
        with self.lock:
            return [request for request in self.log[since:] if re.search(pattern, str(request))]

    def wait_until(self, condition: Callable[[], object], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"The last requests were {[str(request) for request in self.log[-20:]]}")
            time.sleep(0.01)

    def may_write(self, user: str | None, namespace: str) -> bool:
        return user is not None and (user == namespace or user in self.members.get(namespace, ()))

    def fault(self, request: Request) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.request, str(request)):
                    fault.times -= 1
                    return fault
        return None


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def etag(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_lfs(path) else git_hash(content)


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    # Pattern of the path -> name of the method that answers; what is in parentheses are its arguments.
    REPO = r"(models|datasets)/([^/]+/[^/]+)"
    ROUTES = [
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("DELETE", r"/api/repos/delete", "delete"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("GET", rf"/api/{REPO}", "info"),
        ("GET", rf"/api/{REPO}/revision/([^/]+)", "info"),
        ("GET", rf"/api/{REPO}/tree/([^/]+)/?(.*)", "tree"),
        ("POST", rf"/api/{REPO}/paths-info/([^/]+)", "paths_info"),
        ("GET", rf"/api/{REPO}/refs", "refs"),
        ("GET", rf"/api/{REPO}/commits/([^/]+)", "commits"),
        ("POST", rf"/api/{REPO}/branch/([^/]+)", "branch"),
        ("POST", rf"/api/{REPO}/preupload/([^/]+)", "preupload"),
        ("POST", rf"/api/{REPO}/commit/([^/]+)", "commit"),
        ("POST", r"/(?:(datasets)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(models|datasets)/([^/]+/[^/]+)/(\w+)", "lfs_put"),
        ("POST", r"/lfs/(models|datasets)/([^/]+/[^/]+)/verify", "lfs_verify"),
        ("HEAD|GET", r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    ]

    def log_message(self, *_: object) -> None:
        """Nothing on stderr: the log is `hub.log`."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.user = self.hub.tokens.get(token)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.request_log = Request(self.command, url.path, self.user, self.headers.get("Range"))
        with self.hub.lock:
            self.hub.log.append(self.request_log)
        self.fault = self.hub.fault(self.request_log)
        try:
            if self.fault is not None and self.fault.hold is not None:
                self.fault.hold.wait(60)
            if self.fault is not None and self.fault.status is not None:
                self.body()
                raise RefusalError(self.fault.status, headers=self.fault.headers)
            # Large files go to a store of its own, whose addresses need no token.
            if token and self.user is None and not url.path.startswith("/lfs/"):
                self.body()
                raise RefusalError(401, message="Invalid credentials in Authorization header")
            for methods, pattern, name in self.ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in methods.split("|"):
                    content = self.body()
                    with self.hub.lock:
                        answer = getattr(self, name)(*(unquote(part or "") for part in match.groups()), content)
                    break
            else:
                self.body()
                raise RefusalError(404, message=f"No such address: {self.command} {url.path}")
            status, headers, content = answer
        except RefusalError as refusal:
            status, headers = refusal.status, refusal.headers
            content = json.dumps({"error": refusal.message}).encode()
        except ConnectionAbortedError:
            self.close_connection = True
            return
        self.answer(status, headers, content)

    do_POST = do_PUT = do_DELETE = do_HEAD = do_GET  # noqa: N815

    def body(self) -> bytes:
        """The request's body; a cut leaves it half read."""
        length = int(self.headers.get("Content-Length") or 0)
        cut = self.fault.cut_after if self.fault and self.command in ("PUT", "POST") else None
        content = bytearray()
        while len(content) < length:
            piece = self.rfile.read(min(CHUNK, length - len(content), CHUNK if cut is None else cut - len(content)))
            content += piece
            self.request_log.read = len(content)
            if not piece or (cut is not None and len(content) >= cut):
                self.connection.close()
                raise ConnectionAbortedError
        return bytes(content)

    def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.request_log.status = status
        cut = self.fault.cut_after if self.fault and self.command == "GET" else None
        try:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content if cut is None else content[:cut])
            if cut is not None:
                self.close_connection = True
        except OSError:  # whoever asked is gone
            self.close_connection = True

    @staticmethod
    def json(content: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
        return status, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def repository(self, kind: str, name: str, write: bool = False) -> Repository:
        """Raises as the Hub does: what one may not see is not there."""
        repository = self.hub.repositories.get((kind or "models", name))
        member = self.hub.may_write(self.user, name.split("/")[0])
        if repository is None or (repository.private and not member):
            if self.user is None:
                raise RefusalError(401, "RepoNotFound", "Invalid username or password.")
            raise RefusalError(404, "RepoNotFound", "Repository not found")
        if write and not member:
            raise RefusalError(401 if self.user is None else 403, message="You don't have the required permissions")
        return repository

    def whoami(self, _: bytes) -> Any:
        if self.user is None:
            raise RefusalError(401, message="Invalid username or password.")
        orgs = [{"name": name} for name, members in self.hub.members.items() if self.user in members]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        return self.json({"type": "user", "name": self.user, "fullname": self.user, "orgs": orgs, "auth": auth})

    def create(self, content: bytes) -> Any:
        wanted = json.loads(content)
        if self.user is None:
            raise RefusalError(401, message="Invalid username or password.")
        namespace = wanted.get("organization") or self.user
        if not self.hub.may_write(self.user, namespace):
            raise RefusalError(
                403, message=f'You don\'t have the rights to create a model under the namespace "{namespace}"'
            )
        kind, name = f"{wanted.get('type') or 'model'}s", f"{namespace}/{wanted['name']}"
        place = {"url": f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{name}", "name": name}
        if (kind, name) in self.hub.repositories:
            return self.json(place | {"error": "You already created this model repo"}, 409)
        self.hub.create(name, private=wanted.get("visibility") == "private", kind=kind)
        return self.json(place)

    def delete(self, content: bytes) -> Any:
        wanted = json.loads(content)
        kind, name = f"{wanted.get('type') or 'model'}s", f"{wanted.get('organization') or self.user}/{wanted['name']}"
        self.repository(kind, name, write=True)
        del self.hub.repositories[kind, name]
        return self.json({})

    def validate_yaml(self, content: bytes) -> Any:
        card = json.loads(content)["content"]
        if card.startswith("---") and not re.match(r"---\n(?:[^-].*\n|-(?!--).*\n)*---\n", card):
            return self.json({"errors": [{"message": "The metadata does not end"}], "warnings": []}, 400)
        return self.json({"errors": [], "warnings": []})

    def info(self, kind: str, name: str, *rest: Any) -> Any:
        repository = self.repository(kind, name)
        commit = repository.at(rest[0] if len(rest) == 2 else "main")
        return self.json(
            {
                "id": name,
                "modelId": name,
                "sha": commit.sha,
                "private": repository.private,
                "gated": "manual" if repository.gated else False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": path} for path in commit.files],
            }
        )

    @staticmethod
    def entry(path: str, content: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
        if is_lfs(path):
            found["lfs"] = {"oid": etag(path, content), "size": len(content), "pointerSize": 134}
        return found

    def tree(self, kind: str, name: str, revision: str, under: str, _: bytes) -> Any:
        files = self.repository(kind, name).at(revision).files
        prefix = f"{under}/" if under else ""
        found = {path: content for path, content in files.items() if path.startswith(prefix)}
        if self.query.get("recursive", "").lower() in ("true", "1"):
            return self.json([self.entry(*item) for item in found.items()])
        folders = dict.fromkeys(
            prefix + p.removeprefix(prefix).split("/")[0] for p in found if "/" in p[len(prefix) :]
        )
        rows = [{"type": "directory", "path": path, "oid": git_hash(path.encode()), "size": 0} for path in folders]
        return self.json(rows + [self.entry(p, c) for p, c in found.items() if "/" not in p[len(prefix) :]])

    def paths_info(self, kind: str, name: str, revision: str, content: bytes) -> Any:
        files = self.repository(kind, name).at(revision).files
        return self.json([self.entry(p, files[p]) for p in parse_qs(content.decode()).get("paths", []) if p in files])

    def refs(self, kind: str, name: str, _: bytes) -> Any:
        branches = self.repository(kind, name).branches.items()
        rows = [{"name": each, "ref": f"refs/heads/{each}", "targetCommit": sha} for each, sha in branches]
        return self.json({"branches": rows, "converts": [], "tags": [], "pullRequests": []})

    def commits(self, kind: str, name: str, revision: str, _: bytes) -> Any:
        repository = self.repository(kind, name)
        repository.at(revision)
        date = "2026-01-01T00:00:00.000Z"
        rows = [
            {"id": c.sha, "title": c.title, "message": "", "authors": [{"user": c.author}], "date": date}
            for c in reversed(repository.commits)
        ]
        return self.json(rows)

    def branch(self, kind: str, name: str, branch: str, content: bytes) -> Any:
        repository = self.repository(kind, name, write=True)
        if branch in repository.branches:
            raise RefusalError(409, message=f"Reference already exists: refs/heads/{branch}")
        repository.branches[branch] = repository.at(json.loads(content or b"{}").get("startingPoint") or "main").sha
        return self.json({})

    def preupload(self, kind: str, name: str, revision: str, content: bytes) -> Any:
        pull_request = "create_pr" in self.query
        files = self.repository(kind, name, write=not pull_request).at(revision).files
        rows = []
        for file in json.loads(content)["files"]:
            path = file["path"]
            oid = etag(path, files[path]) if path in files else None
            mode = "lfs" if is_lfs(path) or file["size"] > 10 * 2**20 else "regular"
            rows.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self.json({"files": rows})

    def lfs_batch(self, kind: str, name: str, content: bytes) -> Any:
        repository = self.repository(kind, name, write=True)
        store = f"{self.hub.endpoint}/lfs/{kind or 'models'}/{name}"
        rows = []
        for wanted in json.loads(content)["objects"]:
            row = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in repository.objects:
                places = {"upload": {"href": f"{store}/{wanted['oid']}"}, "verify": {"href": f"{store}/verify"}}
                row["actions"] = places
            rows.append(row)
        return self.json({"transfer": "basic", "objects": rows})

    def lfs_put(self, kind: str, name: str, oid: str, content: bytes) -> Any:
        if hashlib.sha256(content).hexdigest() != oid:
            raise RefusalError(400, message="The content has another digest")
        self.hub.repositories[kind, name].objects[oid] = content
        return self.json({})

    def lfs_verify(self, kind: str, name: str, content: bytes) -> Any:
        wanted = json.loads(content)
        if len(self.repository(kind, name, write=True).objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise RefusalError(404, message="The object is not there")
        return self.json({})

    def commit(self, kind: str, name: str, branch: str, content: bytes) -> Any:
        pull_request = "create_pr" in self.query
        repository = self.repository(kind, name, write=not pull_request)
        lines = [json.loads(line) for line in content.splitlines() if line]
        head, files = repository.at(branch), dict(repository.at(branch).files)
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, head.sha):
            raise RefusalError(412, message="A commit has happened since. Please refresh and try again.")
        for key, value in ((line["key"], line["value"]) for line in lines):
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in repository.objects:
                    raise RefusalError(400, message=f"LFS object {value['oid']} is not there")
                files[value["path"]] = repository.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        branch = f"refs/pr/{len(repository.commits)}" if pull_request else branch
        made = repository.commit(branch, header["summary"], self.user or "", files)
        answer = {"success": True, "commitOid": made.sha, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{made.sha}"}
        if pull_request:
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{name}/discussions/{branch.split('/')[-1]}"
        return self.json(answer)

    def resolve(self, kind: str, name: str, revision: str, path: str, _: bytes) -> Any:
        repository = self.repository(kind, name)
        if repository.gated and not self.hub.may_write(self.user, name.split("/")[0]):
            if (self.user, name) not in self.hub.admitted:
                message = f"Access to model {name} is restricted. You must have access to it and be authenticated."
                raise RefusalError(401 if self.user is None else 403, "GatedRepo", message)
        commit = repository.at(revision)
        here = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            raise RefusalError(404, "EntryNotFound", "Entry not found", here)
        content = commit.files[path]
        here |= {"ETag": f'"{etag(path, content)}"', "Accept-Ranges": "bytes"}
        if is_lfs(path):
            here |= {"X-Linked-ETag": f'"{etag(path, content)}"', "X-Linked-Size": str(len(content))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return 200, here, content
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        if first >= len(content):
            raise RefusalError(416, message="Range not satisfiable")
        return 206, here | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}, content[first : last + 1]
