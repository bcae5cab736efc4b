"""A port for servers that cannot be asked which one they took."""

from __future__ import annotations

import socket


def free_port() -> int:
    """One of loopback's that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
