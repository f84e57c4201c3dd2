"""A Hub on 127.0.0.1: as much of its HTTP protocol as huggingface_hub needs to download a snapshot.

    with HubServer({"org/model": directory}) as hub:
        ... HF_ENDPOINT=hub.url ...

`hub.requests` holds what was asked for; `hub.missing`, `hub.cut_after` and `hub.gated` are faults.
"""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1.0", COMMIT)


class HubServer:
    """Serves the files of each directory as one commit, under the revisions `main` and `v1.0`."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.requests: list[str] = []
        self.missing: set[str] = set()
        """Files that the listing names and that are not there."""
        self.gated = False
        self.cut_after: dict[str, int] = {}
        """File name to the number of body bytes after which the connection is closed, once or ..."""
        self.cut_again = False
        """... each time, with no byte of what is left."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Closes the port: whoever connects now is refused."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if is_api else parts[:2])
        rest = parts[4:] if is_api else parts[2:]
        directory = self.hub.repositories.get(name)
        if directory is None:
            self._fail(404, "RepoNotFound", "Repository not found")
        elif self.hub.gated:
            self._fail(403, "GatedRepo", "Access to this model is restricted")
        elif len(rest) < 2 or rest[1] not in REVISIONS:
            self._fail(404, "RevisionNotFound", f"Invalid rev id: {rest[1] if len(rest) > 1 else ''}")
        elif is_api:
            self._listing(name, directory, rest[0])
        else:
            self._file(directory, "/".join(rest[2:]))

    def _listing(self, name: str, directory: Path, kind: str) -> None:
        files = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
        if kind == "tree":
            entries = [
                {
                    "type": "file",
                    "path": file,
                    "oid": _git_id(directory / file),
                    "size": (directory / file).stat().st_size,
                }
                for file in files
            ]
            self._send_json(entries)
        else:
            siblings = [{"rfilename": file} for file in files]
            self._send_json({"id": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})

    def _file(self, directory: Path, file: str) -> None:
        if file in self.hub.missing or not (directory / file).is_file():
            self._fail(404, "EntryNotFound", "Entry not found")
            return
        body = (directory / file).read_bytes()
        total, start = len(body), 0
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            start = int(wanted[len("bytes=") :].split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{_git_id(directory / file)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(total - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.hub.cut_after.get(file)
        if cut is None:
            self.wfile.write(body[start:])
        else:
            self.wfile.write(body[start:cut])
            self.close_connection = True
            if not self.hub.cut_again:
                del self.hub.cut_after[file]

    def _send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test's output quiet."""


def _git_id(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
