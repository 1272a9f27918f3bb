"""A server on this machine with what huggingface_hub needs of the hub to send and fetch models, and fetch data sets."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of-the-owner"  # this server knows no other


@dataclass
class Repository:
    """Files of a model, and the commits that made them."""

    private: bool = True
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        """The newest commit."""
        return hashlib.sha1(repr((sorted(self.files), self.messages)).encode()).hexdigest()


class HubServer(ThreadingHTTPServer):
    """Repositories by name, and every request that came, as method and path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def _route(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{method} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._say({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/([\w-]+)/([^/]+)/?(.*))?", path):
            return self._of_api(*found.groups(), body)
        if found := re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(found[1], found[2], found[3])
        return self._fail(404, "EntryNotFound")

    def _create(self, wanted: dict[str, object]) -> None:
        if not self._owner():
            return self._fail(401, "")
        name = f"{wanted.get('organization') or 'ada'}/{wanted['name']}"
        if not name.startswith("ada/"):
            return self._fail(403, "")
        private = bool(wanted.get("private")) or wanted.get("visibility") == "private"
        status = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, Repository(private=private))
        return self._say({"url": f"{self.server.address}/{name}", "name": name}, status)

    def _of_api(self, name: str, what: str | None, revision: str | None, below: str | None, body: bytes) -> None:
        repository = self._known(name, revision or "main")
        if repository is None:
            return None
        if what == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            return self._say({"files": modes})
        if what == "commit":
            return self._commit(name, repository, body)
        if what == "paths-info":
            paths = parse_qs(body.decode()).get("paths", [])
            return self._say([_entry(path, repository.files[path]) for path in paths if path in repository.files])
        if what == "tree":
            return self._say(_listed(repository.files, f"{below}/" if below else ""))
        siblings = [{"rfilename": path, "size": len(data)} for path, data in repository.files.items()]
        about = {"id": name, "sha": repository.commit, "siblings": siblings, "private": repository.private, "tags": []}
        found = re.search(r"^license: (.+)$", repository.files.get("README.md", b"").decode(), re.M)
        return self._say(about | ({"cardData": {"license": found[1]}} if found else {}))

    def _commit(self, name: str, repository: Repository, body: bytes) -> None:
        if not self._owner():
            return self._fail(403, "")
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "header":
                repository.messages.append(line["value"]["summary"])
            elif line["key"] == "file":
                repository.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.server.address}/{name}/commit/{repository.commit}"
        return self._say({"success": True, "commitUrl": url, "commitOid": repository.commit})

    def _file(self, name: str, revision: str, path: str) -> None:
        repository = self._known(name, revision)
        if repository is None:
            return
        if path not in repository.files:
            self._fail(404, "EntryNotFound")
            return
        data = repository.files[path]
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _known(self, name: str, revision: str) -> Repository | None:
        repository = self.server.repositories.get(name)
        if name in self.server.gated:
            self._fail(403, "GatedRepo")
        elif repository is None or (repository.private and not self._owner()):
            self._fail(401 if not self._owner() else 404, "RepoNotFound")
        elif revision not in {"main", repository.commit}:
            self._fail(404, "RevisionNotFound")
        else:
            return repository
        return None

    def _owner(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _say(self, document: object, status: int = 200) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code or "refused")
        self.send_header("Content-Length", "0")
        self.end_headers()


def _listed(files: dict[str, bytes], below: str) -> list[dict[str, object]]:
    """What lies directly in a folder."""
    inside = {path: data for path, data in files.items() if path.startswith(below)}
    folders = {below + path.removeprefix(below).partition("/")[0] for path in inside} - set(inside)
    here = [_entry(path, data) for path, data in inside.items() if "/" not in path.removeprefix(below)]
    return here + [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]


def _entry(path: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
