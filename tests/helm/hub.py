"""A Hub of one model, as far as a download asks: what there is, and the files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Where it is, and what was asked of it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.asked: list[tuple[str, str | None]] = []
        """(path, authorization)"""


@contextmanager
def serving_hub(name: str, folder: Path) -> Iterator[Hub]:
    """Serves the files of a folder as the model of that name."""
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    files["original.pth"] = b"nobody wants this"

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append((path, self.headers.get("authorization")))
            file = path.rpartition("/")[2]
            if path.startswith(f"/api/models/{name}/tree/"):
                kind = {"type": "file", "oid": COMMIT}
                tree = [{**kind, "path": n, "size": len(b)} for n, b in files.items()]
                body = json.dumps(tree).encode()
            elif path.startswith(f"/api/models/{name}"):
                siblings = [{"rfilename": name} for name in files]
                body = json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode()
            elif path.startswith(f"/{name}/resolve/") and file in files:
                body = files[file]
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
