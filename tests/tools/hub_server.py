"""A small model hub on loopback: what huggingface_hub and datasets ask of the real one, and its failures.

Repositories lie in memory, each with its commits. `faults` maps the beginning of a request (`GET /org/model/`) to what
happens instead of an answer: a status, or one of `FAULTS`.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

# The answer ends in the middle; has another length than it should, or other bytes; comes slowly; does not come for a
# long time; does not come, and the connection is closed; says that there is no such file.
FAULTS = ("truncated", "longer", "other bytes", "slow", "no answer", "hangs up", "missing")
SILENCE = 30.0
LFS_ENDINGS = (".safetensors", ".parquet")
Files = Mapping[str, bytes]


@dataclass
class Repository:
    """Commits of one model or data set; `refs` has branches and tags."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    is_private: bool = False
    is_gated: bool = False
    moved_to: str | None = None  # its new name

    def commit(self, files: Files, ref: str = "main") -> str:
        """Add a commit with these files, and no others, to a branch; return its hash."""
        content = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in sorted(files.items())})
        sha = hashlib.sha1(f"{len(self.commits)} {content}".encode()).hexdigest()
        self.commits[sha], self.refs[ref] = dict(files), sha
        return sha

    def resolve(self, revision: str) -> str | None:
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None


class Hub:
    """The content of a hub, its failures, and what it was asked.

    Attributes:
        token: what opens private repositories.
        requests: method and path of each request, in order.
        uploads: files that were uploaded and not committed yet, by SHA-256.
    """

    def __init__(self, token: str) -> None:
        self.token, self.faults, self.requests = token, dict[str, int | str](), list[str]()
        self.repositories, self.uploads, self.url = dict[tuple[str, str], Repository](), dict[str, bytes](), ""
        self.commit_messages: list[str] = []

    def add(self, kind: str, name: str, files: Files, **settings: Any) -> Repository:
        """Add a repository of `models` or `datasets` with one commit."""
        repository = self.repositories[kind, name] = Repository(**settings)
        repository.commit(files)
        return repository


def folder_files(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by their names in it."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextmanager
def serve(token: str = "hf_" + "x" * 34) -> Iterator[Hub]:
    """Serve a hub within a block."""
    hub = Hub(token)

    class BoundHandler(_Handler):
        pass

    BoundHandler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), BoundHandler)
    server.daemon_threads, server.block_on_close = True, False
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def etag_of(name: str, data: bytes) -> str:
    """Return what the hub calls the content of a file: SHA-256 of large files, else the hash that git has for it."""
    if name.endswith(LFS_ENDINGS):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def _handle(self) -> None:
        request, body = f"{self.command} {unquote(urlsplit(self.path).path)}", self._body()
        self.hub.requests.append(request)
        fault = next((fault for start, fault in self.hub.faults.items() if request.startswith(start)), None)
        if isinstance(fault, int):
            self._error(fault)
            return
        if fault in ("no answer", "hangs up"):
            time.sleep(SILENCE if fault == "no answer" else 0)
            self.close_connection = True
            return
        if fault == "missing":
            self._error(404, "EntryNotFound")
            return
        for pattern, answer in _ANSWERS:
            if match := re.fullmatch(pattern, request):
                answer(self, body, fault, **match.groupdict())
                return
        self._error(404)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _error(self, status: int, code: str = "") -> None:
        self._send(
            json.dumps({"error": code or str(status)}).encode(), status, **{"X-Error-Code": code} if code else {}
        )

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), 200, **{"Content-Type": "application/json"})

    def _send(self, data: bytes, status: int, fault: int | str | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault == "other bytes" and self.command == "GET":
            data = bytes(255 - byte for byte in data)
        sent = data[: len(data) // 2] if fault == "truncated" and self.command == "GET" else data
        self.send_header("Content-Length", str(len(data) + (7 if fault == "longer" and self.command == "HEAD" else 0)))
        self.end_headers()
        if self.command != "HEAD":
            for start in range(0, len(sent), len(sent) // 4 + 1):
                self.wfile.write(sent[start : start + len(sent) // 4 + 1])
                time.sleep(0.2 if fault == "slow" else 0)
        self.close_connection = self.close_connection or sent != data

    def _repository(self, kind: str, name: str, revision: str) -> tuple[Repository, str] | None:
        """Return a repository and the commit of a revision of it, or None with an error that was sent."""
        repository = self.hub.repositories.get((kind, name))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != self.hub.token:
            self._send(b"{}", 401, **{"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repository is None or (repository.is_private and not token):
            self._error(
                404 if token else 401, "RepoNotFound"
            )  # it does not tell what is private from what is not there
        elif repository.is_gated:
            self._error(403 if token else 401, "GatedRepo")
        elif repository.moved_to:
            self._send(b"", 307, Location=self.path.replace(name, repository.moved_to))
        elif (sha := repository.resolve(revision)) is None:
            self._error(404, "RevisionNotFound")
        else:
            return repository, sha
        return None

    def _info(self, body: bytes, fault: Any, kind: str, name: str, revision: str | None = None) -> None:
        if found := self._repository(kind, name, revision or "main"):
            repository, sha = found
            siblings = [{"rfilename": file} for file in repository.commits[sha]]
            dates = {"lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z"}
            facts = {"private": repository.is_private, "disabled": False, "gated": repository.is_gated, "downloads": 0}
            self._json({"id": name, "sha": sha, "siblings": siblings, "likes": 0, "tags": [], **facts, **dates})

    def _tree(self, body: bytes, fault: Any, kind: str, name: str, revision: str, folder: str | None = None) -> None:
        if found := self._repository(kind, name, revision):
            start = f"{folder}/" if folder else ""
            is_recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
            entries = {
                entry["path"]: entry
                for file in found[0].commits[found[1]]
                if file.startswith(start)
                for entry in _entries(file, found[0].commits[found[1]][file])
                if is_recursive or "/" not in entry["path"].removeprefix(start)
            }
            entries.pop(folder or "", None)
            if folder and not entries:
                self._error(404, "EntryNotFound")
                return
            self._json(list(entries.values()))

    def _paths_info(self, body: bytes, fault: Any, kind: str, name: str, revision: str) -> None:
        if found := self._repository(kind, name, revision):
            paths = {path.strip("/") for path in parse_qs(body.decode()).get("paths", [])}
            files = found[0].commits[found[1]]
            entries = {e["path"]: e for file, data in files.items() for e in _entries(file, data)}
            self._json([entry for path, entry in entries.items() if path in paths])

    def _file(self, body: bytes, fault: Any, kind: str | None, name: str, revision: str, file: str) -> None:
        found = self._repository(kind or "models", name, revision)
        if found is None:
            return
        data = found[0].commits[found[1]].get(file)
        headers = {"X-Repo-Commit": found[1], "Accept-Ranges": "bytes"}
        if data is None:
            self._send(b"", 404, **headers, **{"X-Error-Code": "EntryNotFound"})
            return
        headers["ETag"] = f'"{etag_of(file, data)}"'
        if file.endswith(LFS_ENDINGS):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
            if first >= len(data):
                self._send(b"", 416, **{"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self._send(data[first : last + 1], 206, fault, **headers)
            return
        self._send(data, 200, fault, **headers)

    def _has_token(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.hub.token}":
            return True
        self._send(b"{}", 401, **{"X-Error-Message": "Invalid credentials in Authorization header"})
        return False

    def _whoami(self, body: bytes, fault: Any) -> None:
        if self._has_token():
            self._json({"type": "user", "name": "org", "orgs": []})

    def _create(self, body: bytes, fault: Any) -> None:
        if not self._has_token():
            return
        wanted = json.loads(body)
        owner = wanted.get("organization") or "org"
        key = f"{wanted.get('type', 'model')}s", f"{owner}/{wanted['name']}"
        if owner != "org":
            self._send(b'{"error": "You have no rights"}', 403)
            return
        url = json.dumps({"url": f"{self.hub.url}/{key[1]}", "name": key[1]}).encode()
        if key in self.hub.repositories:
            self._send(url, 409)
            return
        self.hub.add(*key, {".gitattributes": b""}, is_private=wanted.get("visibility") == "private")
        self._send(url, 200)

    def _preupload(self, body: bytes, fault: Any, kind: str, name: str, revision: str) -> None:
        if self._has_token() and (found := self._repository(kind, name, revision)):
            files = found[0].commits[found[1]]
            modes = [
                {
                    "path": path,
                    "uploadMode": "lfs" if path.endswith(LFS_ENDINGS) else "regular",
                    "shouldIgnore": False,
                    "oid": etag_of(path, files[path]) if path in files else None,
                }
                for path in (each["path"] for each in json.loads(body)["files"])
            ]
            self._json({"files": modes})

    def _batch(self, body: bytes, fault: Any, name: str) -> None:
        if self._has_token():
            objects = [
                {
                    "oid": each["oid"],
                    "size": each["size"],
                    "actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}},
                }
                for each in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})

    def _upload(self, body: bytes, fault: Any, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self._error(400)
            return
        self.hub.uploads[oid] = body
        self._send(b"", 200)

    def _commit(self, body: bytes, fault: Any, kind: str, name: str, revision: str) -> None:
        if not (self._has_token() and (found := self._repository(kind, name, revision))):
            return
        repository, files = found[0], dict(found[0].commits[found[1]])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    if value.get("parentCommit", found[1]) != found[1]:
                        self._error(412)
                        return
                    self.hub.commit_messages.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.uploads[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        sha = repository.commit(files, revision)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha, "pullRequestUrl": None})


def _entries(file: str, data: bytes) -> Iterator[dict[str, Any]]:
    """Yield what the hub lists of a file and of the folders that it is in."""
    for parent in [*Path(file).parents][:-1]:
        yield {"type": "directory", "oid": "0" * 40, "size": 0, "path": parent.as_posix()}
    entry: dict[str, Any] = {"type": "file", "oid": etag_of("", data), "size": len(data), "path": file}
    if file.endswith(LFS_ENDINGS):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{etag_of(file, data)}\nsize {len(data)}\n"
        entry["oid"] = etag_of("", pointer.encode())  # which git has in place of the content
        entry["lfs"] = {"oid": etag_of(file, data), "size": len(data), "pointerSize": len(pointer)}
    yield entry


_API = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
_ANSWERS: list[tuple[str, Any]] = [
    (r"GET /api/whoami-v2", _Handler._whoami),
    (r"POST /api/repos/create", _Handler._create),
    (r"POST /api/validate-yaml", lambda handler, body, fault: handler._json({"errors": [], "warnings": []})),
    (rf"GET {_API}(?:/revision/(?P<revision>[^/]+))?", _Handler._info),
    (rf"GET {_API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler._tree),
    (rf"POST {_API}/paths-info/(?P<revision>[^/]+)", _Handler._paths_info),
    (rf"POST {_API}/preupload/(?P<revision>[^/]+)", _Handler._preupload),
    (rf"POST {_API}/commit/(?P<revision>[^/]+)", _Handler._commit),
    (r"POST /(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler._batch),
    (r"PUT /lfs/(?P<oid>[0-9a-f]{64})", _Handler._upload),
    (
        r"(?:GET|HEAD) /(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)",
        _Handler._file,
    ),
]
