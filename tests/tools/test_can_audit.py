"""Whether `make check` knows a database of vulnerabilities from what only looks like one."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "can_audit.py"


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            """Nothing for people."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/pip/json"
    finally:
        server.shutdown()
        server.server_close()


def ask(url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), "--url", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("status", "body", "code", "why"),
    [
        (200, b'{"info": {}, "vulnerabilities": []}', 0, ""),
        (200, b'{"info": {}}', 1, "nothing of vulnerabilities"),
        (200, b"<html>", 1, "no JSON"),
        (404, b"", 1, "404"),
    ],
)
def test_only_a_database_is_one(status: int, body: bytes, code: int, why: str) -> None:
    with answering(status, body) as url:
        asked = ask(url)
    assert asked.returncode == code
    assert why in asked.stderr
    assert "Traceback" not in asked.stderr


def test_nobody_is_none() -> None:
    with answering(200, b"") as url:
        pass
    asked = ask(url)
    assert asked.returncode == 1
    assert "refused" in asked.stderr
