"""Where servers are: targets as callers write them, and as gRPC takes them."""

from __future__ import annotations

import re

_RESOLVERS = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")
_LOOPBACK = re.compile(r"^(localhost|127\.\d+\.\d+\.\d+|\[::1\]|::1)(:\d+)?$")


def full_target(target: str) -> str:
    """Return ``target`` with a resolver: ``dns:///`` unless it names one.

    A name that resolves to several addresses (a headless service) is then balanced over all of
    them, call by call.
    """
    scheme = target.partition(":")[0]
    return target if scheme in _RESOLVERS else f"dns:///{target}"


def is_loopback(target: str) -> bool:
    """Return whether every address of a target is this machine's own."""
    # ipv4:127.0.0.1:5,127.0.0.1:6 lists several; each has to be of this machine.
    addresses = re.sub(r"^(dns:///|ipv[46]:)", "", target).split(",")
    return all(map(_LOOPBACK.match, addresses))


def stays_on_machine(target: str) -> bool:
    """Return whether nothing that is sent to a target leaves the machine."""
    return is_loopback(target) or target.startswith(("unix:", "unix-abstract:", "vsock:"))
