"""A small stand-in for a Hugging Face hub: the routes of downloads and uploads, on this machine, over plain HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
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
        token: what an upload must carry; None: nobody may upload.
        large: files on their way into LFS, by their SHA-256.
        cards: the licence that each model's card names.
    """

    repositories: dict[tuple[str, str], dict[str, bytes]]
    cut: set[str] = field(default_factory=set)
    altered: set[str] = field(default_factory=set)
    requested: list[str] = field(default_factory=list)
    token: str | None = None
    large: dict[str, bytes] = field(default_factory=dict)
    cards: dict[str, dict[str, object]] = field(default_factory=dict)


def listed(name: str, content: bytes) -> dict[str, object]:
    """What the hub's API says of a file; big binary files are kept in LFS."""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob}
    if name.endswith((".safetensors", ".parquet")):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
    return entry


def commit(hub: Hub, name: str, lines: list[dict[str, Any]]) -> dict[str, object]:
    """Put what a commit holds into a repository."""
    files = hub.repositories["model", name]
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = hub.large[value["oid"]]
    return {"success": True, "commitOid": COMMIT, "commitUrl": f"http://127.0.0.1/{name}/commit/{COMMIT}"}


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
                kind, name = parts[1].removesuffix("s"), "/".join(parts[2:4])
                revision = parts[5] if len(parts) > 5 else "main"
            else:
                kind = "dataset" if parts[0] == "datasets" else "model"
                parts = parts[1:] if kind == "dataset" else parts
                name, revision = "/".join(parts[:2]), parts[3]
            files = hub.repositories.get((kind, name))
            if files is None:
                return self.fail("RepoNotFound")
            if revision not in ("main", COMMIT):
                return self.fail("RevisionNotFound")
            if path.startswith("api/") and "tree" in parts[4:]:
                return self.fail("EntryNotFound")  # folders are not kept
            if path.startswith("api/"):
                siblings = [listed(*item) for item in files.items()]
                told = {"id": name, "sha": COMMIT, "siblings": siblings}
                told |= {"cardData": hub.cards[name]} if name in hub.cards else {}
                return self.send(json.dumps(told).encode(), body)
            file = "/".join(parts[4:])
            if file not in files:
                return self.fail("EntryNotFound")
            content = files[file]
            if file in hub.altered:
                content = bytes([content[0] ^ 1]) + content[1:]
            return self.send(content, body, etag=hashlib.sha256(content).hexdigest(), cut=file in hub.cut)

        def do_PUT(self) -> None:
            hub.large[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
            self.send(b"", body=True)

        def do_POST(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            hub.requested.append(path)
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            if hub.token is None or self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self.fail("", status=401)
            if path.startswith("api/models/") and "/commit/" in path:
                answer = commit(hub, "/".join(path.split("/")[2:4]), [json.loads(line) for line in sent.splitlines()])
                return self.send(json.dumps(answer).encode(), body=True)
            asked = json.loads(sent)
            if path == "api/repos/create":
                name = f"{asked['organization']}/{asked['name']}"
                answer = {"url": f"http://{self.headers['Host']}/{name}"}
                if ("model", name) in hub.repositories:
                    return self.send(json.dumps(answer | {"error": "exists"}).encode(), body=True, status=409)
                hub.repositories["model", name] = {}
            elif path.endswith("/preupload/main"):
                modes = {
                    each["path"]: "lfs" if each["path"].endswith(".safetensors") else "regular"
                    for each in asked["files"]
                }
                files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
                answer = {"files": files}
            elif path.endswith(".git/info/lfs/objects/batch"):
                href = f"http://{self.headers['Host']}/lfs/"
                objects = [each | {"actions": {"upload": {"href": href + each["oid"]}}} for each in asked["objects"]]
                answer = {"transfer": "basic", "objects": objects}
            else:  # api/validate-yaml
                answer = {}
            return self.send(json.dumps(answer).encode(), body=True)

        def send(
            self, content: bytes, body: bool, etag: str | None = None, cut: bool = False, status: int = 200
        ) -> None:
            first = 0
            asked = self.headers.get("Range")
            if asked:
                first = int(asked.removeprefix("bytes=").split("-")[0])
            self.send_response(206 if asked else status)
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

        def fail(self, code: str, status: int = 404) -> None:
            self.send_response(status)
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
