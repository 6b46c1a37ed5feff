"""A small stand-in for a Hugging Face hub: the routes that a download uses, on this machine, over plain HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What is served, and how badly.

    Attributes:
        repositories: ("model" or "dataset", name) -> file name -> content.
        cut: files whose body ends early although the length is promised in full.
        altered: files that are served with other bytes of the same length.
        requested: every path that was asked for.
    """

    repositories: dict[tuple[str, str], dict[str, bytes]]
    cut: set[str] = field(default_factory=set)
    altered: set[str] = field(default_factory=set)
    requested: list[str] = field(default_factory=list)


def listed(name: str, content: bytes) -> dict[str, object]:
    """What the hub's API says of a file; big binary files are kept in LFS."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob}
    if name.endswith((".safetensors", ".parquet")):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
    return entry


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.requested.append(path)
            parts = path.split("/")
            if parts[0] == "api":
                kind, name, revision = parts[1].removesuffix("s"), "/".join(parts[2:4]), parts[5]
            else:
                kind = "dataset" if parts[0] == "datasets" else "model"
                parts = parts[1:] if kind == "dataset" else parts
                name, revision = "/".join(parts[:2]), parts[3]
            files = hub.repositories.get((kind, name))
            if files is None:
                return self.fail("RepoNotFound")
            if revision not in ("main", COMMIT):
                return self.fail("RevisionNotFound")
            if path.startswith("api/"):
                siblings = [listed(*item) for item in files.items()]
                return self.send(json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode(), body)
            file = "/".join(parts[4:])
            if file not in files:
                return self.fail("EntryNotFound")
            content = files[file]
            if file in hub.altered:
                content = bytes([content[0] ^ 1]) + content[1:]
            return self.send(content, body, etag=hashlib.sha256(content).hexdigest(), cut=file in hub.cut)

        def send(self, content: bytes, body: bool, etag: str | None = None, cut: bool = False) -> None:
            first = 0
            asked = self.headers.get("Range")
            if asked:
                first = int(asked.removeprefix("bytes=").split("-")[0])
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            if etag:
                self.send_header("ETag", f'"{etag}"')
                self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            if body:
                self.wfile.write(b"" if cut and first else content[first : len(content) // 2 if cut else None])
            self.close_connection = True

        def fail(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serve a hub in a thread; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
