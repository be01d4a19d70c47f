"""A Hub on this machine: a real HTTP server with the part of the Hub's API that the real client uses.

It has branches, pull requests, private and gated repositories, renames, access tokens, and large files through LFS.
`hub.fail(...)` and `hub.drop(...)` plan faults; `hub.log` records the requests.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

DATE = "2030-01-01T00:00:00.000Z"
REPO = r"(?P<repo>[^/]+/[^/]+)"
OWNER, OTHER = "hf_ownertoken0001", "hf_othertoken0002"


@dataclass
class Repo:
    """A repository: the files of every commit, and the commit of every branch."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], message: str = "initial commit", branch: str = "main") -> str:
        sha = hashlib.sha1(f"{self.name} {len(self.commits)} {message}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        self.messages.append(message)
        return sha

    def at(self, revision: str = "main") -> tuple[str, dict[str, bytes]]:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, "RevisionNotFound")
        return sha, self.commits[sha]


@dataclass
class Fault:
    """A planned fault for the next `times` requests with this method and a path that matches `pattern`.

    Attributes:
        method: HTTP method.
        pattern: regular expression, searched for in the path.
        times: how many requests are affected.
        status: HTTP status of the answer; `None` drops the connection instead.
        code: the Hub's error code.
        after: bytes of the body that pass before the connection is dropped.
    """

    method: str
    pattern: str
    times: int
    status: int | None = None
    code: str = "Fault"
    after: int = 0


class Refused(Exception):
    """A request that is answered with an error: HTTP status, the Hub's error code and message, further headers."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message or code, **headers}


class Hub:
    """The state of the server. `tokens` maps access tokens to user names."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.tokens = {OWNER: "user", OTHER: "other"}
        self.reset()

    def reset(self) -> None:
        """Forget everything except the address."""
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str]] = []

    def add(self, name: str, folder: Path | None = None, **options: Any) -> Repo:
        """Add a repository, with the files of a folder if one is given."""
        repo = self.repos[name] = Repo(name, **options)
        repo.commit({p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} if folder else {})
        return repo

    def fail(self, method: str, pattern: str, status: int, *, code: str = "Fault", times: int = 10**6) -> None:
        """Answer the next `times` matching requests with an error."""
        self.faults.append(Fault(method, pattern, times, status, code))

    def drop(self, method: str, pattern: str, *, after: int = 0, times: int = 10**6) -> None:
        """Close the connection once `after` bytes of the body have been sent or received."""
        self.faults.append(Fault(method, pattern, times, after=after))

    def asked(self, method: str, pattern: str) -> int:
        """The number of requests with this method whose path matches."""
        return sum(m == method and bool(re.search(pattern, path)) for m, path in self.log)

    @contextmanager
    def serve(self) -> Iterator["Hub"]:
        """Serve on a free local port until the context ends."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads, server.hub = True, self  # type: ignore[attr-defined]
        self.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers one request: `ROUTES` maps method and path to the name of a method of this class."""

    protocol_version = "HTTP/1.1"
    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", rf"/api/(models|datasets)/{REPO}(/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", rf"/api/(models|datasets)/{REPO}/tree/(?P<revision>[^/]+)(/(?P<under>.*))?", "tree"),
        ("POST", rf"/api/datasets/{REPO}/paths-info/(?P<revision>[^/]+)", "paths"),
        ("POST", rf"/api/models/{REPO}/branch/(?P<revision>[^/]+)", "branch"),
        ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]+)", "store"),
        ("POST", rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)", "commit"),
        ("GET", rf"/(datasets/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def log_message(self, *_: Any) -> None: ...

    def dispatch(self) -> None:
        self.hub: Hub = self.server.hub  # type: ignore[attr-defined]
        self.url = urlsplit(self.path)
        path = self.url.path  # routes see it quoted: a revision may hold slashes
        self.hub.log.append((self.command, unquote(path)))
        self.fault = self._fault(unquote(path))
        try:
            self.body = self._body()
            if self.fault and self.fault.status:
                raise Refused(self.fault.status, self.fault.code)
            for method, pattern, name in self.ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command.replace("HEAD", "GET") == method:
                    parts = {k: unquote(v) if v else v for k, v in match.groupdict().items()}
                    return getattr(self, name)(**parts)
            raise Refused(404, "", f"no route {self.command} {path}")
        except Refused as refused:
            self.send({"error": refused.headers["X-Error-Message"]}, refused.status, **refused.headers)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_POST = do_HEAD = do_PUT = dispatch

    def _fault(self, path: str) -> Fault | None:
        for fault in self.hub.faults:
            if fault.times and fault.method == self.command and re.search(fault.pattern, path):
                fault.times -= 1
                return fault
        return None

    def _body(self) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        dropped = self.fault is not None and self.fault.status is None and self.command in ("POST", "PUT")
        if dropped:
            self.rfile.read(min(self.fault.after, length))  # type: ignore[union-attr]
            self._hang_up()
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(length)
        out = b""
        while size := int(self.rfile.readline(), 16):
            out += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return out

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)
        raise ConnectionResetError

    def send(self, value: Any = None, status: int = 200, body: bytes = b"", **headers: str) -> None:
        body = json.dumps(value).encode() if value is not None else body
        self.send_response(status)
        for key, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), text)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.status is None:
            self.wfile.write(body[: self.fault.after])
            self.wfile.flush()
            self._hang_up()
        self.wfile.write(body)

    @property
    def user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token)

    def find(self, name: str, *, write: bool = False) -> Repo:
        """The repository, if the user may read it (with `write`: change it)."""
        user, mine = self.user, name.startswith(f"{self.user}/")
        if name in self.hub.renamed:
            raise Refused(307, Location=self.path.replace(name, self.hub.renamed[name]))
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not mine):
            raise Refused(404 if user else 401, "RepoNotFound")
        if write and not mine:
            raise Refused(403 if user else 401, "", "you have no write access")
        return repo

    def whoami(self) -> None:
        if self.user is None:
            raise Refused(401)
        self.send({"type": "user", "name": self.user, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or self.user}/{asked['name']}"
        if self.user is None:
            raise Refused(401)
        if not name.startswith(f"{self.user}/"):
            raise Refused(403, "", "you have no right to create a model here")
        answer = {"url": f"{self.hub.endpoint}/{name}", "name": name}
        if name in self.hub.repos:
            return self.send({**answer, "error": "You already created this model repo"}, 409)
        self.hub.add(name, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self.send(answer)

    def validate(self) -> None:
        self.send({"errors": [], "warnings": []})

    def info(self, repo: str, revision: str | None) -> None:
        found = self.find(repo)
        sha, files = found.at(revision or "main")
        siblings = [{"rfilename": path, "size": len(data)} for path, data in files.items()]
        about = {"_id": "0", "id": found.name, "sha": sha, "private": found.private, "siblings": siblings}
        about |= {
            "gated": "manual" if found.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }
        self.send({**about, "lastModified": DATE, "createdAt": DATE})

    def tree(self, repo: str, revision: str, under: str | None) -> None:
        files = self.find(repo).at(revision)[1]
        chosen = {path: data for path, data in files.items() if path.startswith(under or "")}
        self.send([{"type": "file", "path": p, "size": len(d), "oid": blob(d)} for p, d in chosen.items()])

    def paths(self, repo: str, revision: str) -> None:
        files = self.find(repo).at(revision)[1]
        asked = parse_qs(self.body.decode()).get("paths") or json.loads(self.body)["paths"]
        found = [path for path in asked if path in files]
        self.send([{"type": "file", "path": p, "size": len(files[p]), "oid": blob(files[p])} for p in found])

    def branch(self, repo: str, revision: str) -> None:
        found = self.find(repo, write=True)
        if revision in found.branches:
            raise Refused(409, "", "Reference already exists")
        found.branches[revision] = found.at()[0]
        self.send({})

    def preupload(self, repo: str, revision: str) -> None:
        found = self.find(repo, write="create_pr" not in self.url.query)
        files = found.at(revision)[1]
        answer = []
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            mode = "lfs" if path.endswith(".safetensors") else "regular"
            oid = blob(files[path]) if path in files and mode == "regular" else None
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send({"files": answer})

    def lfs(self, repo: str) -> None:
        objects = []
        for entry in json.loads(self.body)["objects"]:
            href = f"{self.hub.endpoint}/lfs/{entry['oid']}"
            known = entry["oid"] in self.hub.blobs  # then nothing is sent again
            objects.append({**entry, **({} if known else {"actions": {"upload": {"href": href}}})})
        self.send({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        self.hub.blobs[oid] = self.body
        self.send({})

    def commit(self, repo: str, revision: str) -> None:
        pull = "create_pr" in parse_qs(self.url.query)
        found = self.find(repo, write=not pull)
        files, title = dict(found.at(revision)[1]), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            value, key = operation["value"], operation["key"]
            if key == "header":
                title = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            else:
                files.pop(value["path"])
        number = sum(name.startswith("refs/pr/") for name in found.branches) + 1
        sha = found.commit(files, title, f"refs/pr/{number}" if pull else revision)
        answer = {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{sha}"}
        self.send(
            {**answer, **({"pullRequestUrl": f"{self.hub.endpoint}/{repo}/discussions/{number}"} if pull else {})}
        )

    def resolve(self, repo: str, revision: str, path: str) -> None:
        found = self.find(repo)
        sha, files = found.at(revision)
        if found.gated and not found.name.startswith(f"{self.user}/"):
            raise Refused(403 if self.user else 401, "GatedRepo", X_Repo_Commit=sha)
        if path not in files:
            raise Refused(404, "EntryNotFound", X_Repo_Commit=sha)
        data, start = files[path], 0
        asked = re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("Range") or "")
        headers = {"ETag": f'"{blob(data)}"', "X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        if asked:
            start = int(asked[1])
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send(body=data[start:], status=206 if asked else 200, **headers)


def blob(data: bytes) -> str:
    """The id that git gives to a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
