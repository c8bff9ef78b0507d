"""A stand-in for the model hub: the part of its HTTP interface that a download uses, with faults on demand.

It answers like the real hub in what matters here. A revision is the newest commit, and old commits stay readable. Large
files (LFS) are redirected to another host, and only they have a sha256. Ranges are served. It does not speak the
protocol of hf_xet, the hub's own fast path: tests see transfers by HTTP alone.
"""

import hashlib
import json
import os
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

LFS = (".safetensors", ".bin", ".pth", ".pt")


@dataclass
class Fault:
    """A fault of the next `times` responses for a file."""

    times: int = 1
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    """Send this many bytes of the body, then close the connection."""
    reset: bool = False
    """Reset the connection instead of closing it."""
    short_at: int | None = None
    """Serve the file as if it ended at this byte."""
    flip_at: int | None = None
    """Change the byte at this offset."""
    stall_after: int | None = None
    """Send this many bytes of the body, then wait for `Hub.resume`."""
    ignore_range: bool = False
    bytes_alone: bool = False
    """The question where a file is goes well, and its bytes do not come."""


@dataclass(frozen=True)
class Seen:
    """One HTTP request that arrived."""

    path: str
    range: str | None
    """The Range header."""
    head: bool = False
    """Whether only the headers were asked for."""


class Hub:
    """The server, as a context manager. HF_ENDPOINT must be its `url`."""

    def __init__(self) -> None:
        self.revisions: dict[tuple[str, str], str] = {}
        self.commits: dict[tuple[str, str], Mapping[str, bytes]] = {}
        self.entries: dict[tuple[str, str], tuple[Mapping[str, bytes], list[dict[str, object]]]] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.seen: list[Seen] = []
        self.stalled = threading.Event()
        self.resume = threading.Event()
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, error_type: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.resume.set()
        self.server.shutdown()
        self.server.server_close()

    def publish(self, repo: str, files: Mapping[str, bytes], revision: str = "main", commit: str = "") -> str:
        """Make `revision` a commit with these files, and return the commit: the one that is given, or a new one."""
        if not commit:
            digest = hashlib.sha1(repo.encode())
            for name, content in sorted(files.items()):
                digest.update(name.encode() + content)
            commit = digest.hexdigest()
        self.commits[repo, commit] = files
        self.revisions[repo, revision] = commit
        return commit

    def fail(self, file: str, fault: Fault) -> None:
        """Make the next requests for files or listings whose path ends in `file` go wrong."""
        self.faults.setdefault(file, []).append(fault)

    def downloads(self, file: str = "") -> list[Seen]:
        """The requests for the content of files whose path ends in `file`."""
        asked = [seen for seen in self.seen if "/resolve/" in seen.path and seen.path.endswith(file)]
        return [seen for seen in asked if not seen.head]

    def listing(self, repo: str, commit: str) -> list[dict[str, object]]:
        """The files of a commit with their sizes and hashes, computed once for the same files."""
        files = self.commits[repo, commit]
        if self.entries.get((repo, commit), (None,))[0] is not files:
            self.entries[repo, commit] = (files, [_entry(name, content) for name, content in files.items()])
        return self.entries[repo, commit][1]

    def next_fault(self, path: str, head: bool = False) -> Fault:
        """The fault of this response. A response without a body has only those with a status."""
        with self.lock:
            for file, faults in self.faults.items():
                if path.endswith(file) and faults:
                    if head and (not faults[0].status or faults[0].bytes_alone):
                        continue
                    faults[0].times -= 1
                    return faults[0] if faults[0].times else faults.pop(0)
        return Fault()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append(Seen(path, None, head=True))
        commit, content = self._find(path)
        fault = self.hub.next_fault(path, head=True)
        if fault.status:
            return self._answer(fault.status, headers=fault.headers)
        if content is None:
            return self._answer(404, headers={"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if path.endswith(LFS):
            headers |= {"X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
            return self._answer(302, headers=headers | {"Location": self._elsewhere()})
        self._answer(200, headers=headers, length=len(content))

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix("/cdn")
        if path.startswith("/api/models/"):
            self.hub.seen.append(Seen(path, None))
            self._list(path)
        elif path.endswith(LFS) and not self.path.startswith("/cdn/"):
            self._answer(302, headers={"Location": self._elsewhere()})
        else:
            self.hub.seen.append(Seen(path, self.headers.get("Range")))
            self._content(path)

    def _elsewhere(self) -> str:
        """The address of a large file's bytes: this server by another name, so that it is another host."""
        return f"http://localhost:{self.hub.server.server_address[1]}/cdn{self.path}"

    def _list(self, path: str) -> None:
        repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        fault = self.hub.next_fault(path)
        if fault.status:
            return self._answer(fault.status, headers=fault.headers)
        commit = self.hub.revisions.get((repo, revision))
        if commit is None:
            known = any(name == repo for name, _ in self.hub.revisions)
            return self._answer(404, headers={"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
        listed = {"id": repo, "sha": commit, "siblings": self.hub.listing(repo, commit)}
        self._answer(200, json.dumps(listed).encode())

    def _find(self, path: str) -> tuple[str, bytes | None]:
        """The commit that a path names, by itself or as a revision, and the content of the file."""
        repo, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        commit = self.hub.revisions.get((repo, revision), revision)
        return commit, self.hub.commits.get((repo, commit), {}).get(name)

    def _content(self, path: str) -> None:
        commit, content = self._find(path)
        if content is None:
            return self._answer(404, headers={"X-Error-Code": "EntryNotFound"})
        fault = self.hub.next_fault(path)
        if fault.status:
            return self._answer(fault.status, headers=fault.headers)
        if fault.flip_at is not None:
            content = content[: fault.flip_at] + bytes([content[fault.flip_at] ^ 1]) + content[fault.flip_at + 1 :]
        content = content[: fault.short_at]
        asked = None if fault.ignore_range else self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if asked else {}
        headers["ETag"] = f'"{commit}"'
        if asked and start >= len(content):
            return self._answer(416, headers={"Content-Range": f"bytes */{len(content)}"})
        self._answer(206 if asked else 200, content[start:], headers, fault)

    def _answer(
        self,
        status: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        fault: Fault | None = None,
        length: int | None = None,
    ) -> None:
        """`length` is that of a body which is not sent."""
        fault = fault or Fault()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if fault.drop_after is not None:
            self.wfile.write(body[: fault.drop_after])
            self.close_connection = True
            if fault.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(self.connection.detach())
        elif fault.stall_after is not None:
            self.wfile.write(body[: fault.stall_after])
            self.wfile.flush()
            self.hub.stalled.set()
            self.hub.resume.wait()
            self.close_connection = True
        else:
            self.wfile.write(body)


def _entry(name: str, content: bytes) -> dict[str, object]:
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob}
    if name.endswith(LFS):
        sha256 = hashlib.sha256(content).hexdigest()
        entry |= {"lfs": {"sha256": sha256, "size": len(content), "pointerSize": 134}}
    return entry
