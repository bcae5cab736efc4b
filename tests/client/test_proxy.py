"""Proxies of tests leave no thread and no connection behind, whatever they are in the middle of."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from tests.chaos.stalling_network import StallingProxy
from tests.client.cutting_proxy import CuttingProxy
from tests.proxy import Proxy


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [StallingProxy, lambda: CuttingProxy([])], ids=["stall", "cut"])
def test_a_proxy_that_is_left_ends_its_threads_and_its_connections(
    make: Callable[[], Proxy],
) -> None:
    before = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(30)
        with make() as proxy:
            target = proxy.target(f"127.0.0.1:{listener.getsockname()[1]}")
            address = "127.0.0.1", int(target.rpartition(":")[2])
            near = socket.create_connection(address, timeout=30)
            far, _ = listener.accept()
            far.settimeout(30)
            near.sendall(b"ping")
            assert far.recv(4) == b"ping", "both threads of the connection run"
            if isinstance(proxy, StallingProxy):
                proxy.stall()
        assert set(threading.enumerate()) <= before
        with near, far:
            assert near.recv(1) == b""
            assert far.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=30)
