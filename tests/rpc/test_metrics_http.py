"""Connections to the port of metrics that say nothing."""

from __future__ import annotations

import socket
import threading
import urllib.request
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry, Counter

from scoring_service.telemetry import metrics_http
from scoring_service.telemetry.metrics_http import serve_metrics


def registry() -> CollectorRegistry:
    found = CollectorRegistry()
    Counter("seen", "Anything.", registry=found)
    return found


def read(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        found: bytes = answer.read()
    return found


def test_a_silent_connection_is_closed() -> None:
    port = serve_metrics("127.0.0.1", 0, registry(), silence_seconds=0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as silent:
        assert silent.recv(1) == b""
    assert b"seen_total 0.0" in read(port)


def test_nobody_is_asked_for_the_name_of_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer would hold up the whole server."""

    def asked(*address: object) -> str:
        raise AssertionError(f"of {address}")

    for name in ("getfqdn", "gethostbyaddr", "getnameinfo"):
        monkeypatch.setattr(socket, name, asked)
    assert b"seen_total 0.0" in read(serve_metrics("127.0.0.1", 0, registry()))


def test_silent_connections_take_a_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_http, "_MAX_CONNECTIONS", 3)
    port = serve_metrics("127.0.0.1", 0, registry(), silence_seconds=60)
    before = set(threading.enumerate())  # some of which may end meanwhile
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            for _ in range(20)
        ]
        assert all(connection.recv(1) == b"" for connection in silent[3:])
        serving = set(threading.enumerate()) - before
        assert len(serving) == 3
    for thread in serving:
        thread.join(30)
        assert not thread.is_alive()
    assert b"seen_total 0.0" in read(port)
