"""Takes an address, or says why it cannot be had."""

from __future__ import annotations

import socket
from collections.abc import Callable


class AddressError(Exception):
    """An address cannot be listened on; the message names it."""


def listen(add: Callable[[str], int], host: str, port: int) -> int:
    """Adds an address to a server.

    Args:
        add: the server's own function, such as `add_insecure_port`.
        host: name or number, one of IPv6 with brackets or without.
        port: 0 = a free one.

    Returns:
        The port.

    Raises:
        AddressError: it is taken, or not this machine's.
    """
    address = f"{bracketed(host)}:{port}"
    try:
        return add(address)
    except RuntimeError as error:
        reason = _why_not_bound(host, port) or str(error)
        raise AddressError(f"cannot listen on {address}: {reason}") from error


def bracketed(host: str) -> str:
    """A host as it stands before a port: numbers of IPv6 in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _why_not_bound(host: str, port: int) -> str | None:
    """What the operating system says to this address; gRPC's own error does not repeat it."""
    bare = host.removeprefix("[").removesuffix("]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            bare, port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError as error:
        return error.strerror
    return None
