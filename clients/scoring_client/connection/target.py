"""Where servers are: targets as callers write them, and as gRPC takes them."""

from __future__ import annotations

import re

DEFAULT_PORT = 50051
"""Of servers that are not told another one."""

_WITHOUT_PORTS = ("unix", "unix-abstract", "vsock", "xds", "google-c2p")
"""They name a socket of this machine, or what a control plane knows the addresses of."""
_RESOLVERS = ("dns", "ipv4", "ipv6", *_WITHOUT_PORTS)
_LOOPBACK = re.compile(r"^(localhost|127\.\d+\.\d+\.\d+|\[::1\]|::1)(:\d+)?$")
_URL = re.compile(r"^(?P<scheme>\w[\w+.-]*)://(?P<rest>.*)$")
_RESOLVER = re.compile(r"^(dns:(//[^/]*/)?|ipv[46]:(///)?)")
_ADDRESS = re.compile(r"^(?P<host>\[[^]\s]+\]|[^][:,\s]+)(:(?P<port>\d*))?$")


def checked_target(target: str) -> str:
    """Return ``target``, unless it is none that gRPC could mean anything by.

    gRPC would resolve ``http://host`` as a name, for as long as the retries last, take a port
    beyond 65535 for another one, and 443 where there is none.

    Raises:
        ValueError: it is a URL, has no port or an impossible one, or is no text at all.
    """
    if not isinstance(target, str) or not target:
        raise ValueError(f"target: expected host:port, such as 'localhost:50051', got {target!r}")
    url = _URL.match(target)
    if url is not None and url["scheme"] not in _RESOLVERS:
        host = url["rest"].rstrip("/") or "host"
        if ":" not in host:
            host = f"{host}:{DEFAULT_PORT}"
        raise ValueError(
            f"target: {target!r} is a URL; gRPC takes host:port, such as {host!r}. TLS is asked "
            "for by tls=True or root_certificates= (on the command line --tls, --root-certificates)"
        )
    scheme = target.partition(":")[0]
    if scheme not in _WITHOUT_PORTS:
        addresses = _RESOLVER.sub("", target)
        for address in addresses.split(",") if scheme in ("ipv4", "ipv6") else (addresses,):
            _check_address(target, address)
    return target


def _check_address(target: str, address: str) -> None:
    """Refuse an address that is not host:port.

    Raises:
        ValueError: it has no port, or an impossible one.
    """
    found = _ADDRESS.match(address)
    if found is None:
        raise ValueError(
            f"target: {target!r} is not host:port, such as 'localhost:50051' (an IPv6 address "
            "stands in brackets, as in '[::1]:50051'; several are listed as "
            "'ipv4:10.0.0.1:50051,10.0.0.2:50051')"
        )
    if not found["port"]:
        raise ValueError(
            f"target: {target!r} has no port: write '{found['host']}:{DEFAULT_PORT}' for a server "
            "that was not told another one (gRPC would take 443)"
        )
    if not 0 < int(found["port"]) < 2**16:
        raise ValueError(f"target: {target!r} has no port between 1 and 65535")


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
    return is_loopback(target) or _is_path(target)


def _is_path(target: str) -> bool:
    """Whether a target names a socket of this machine, which has no port."""
    return target.partition(":")[0] in ("unix", "unix-abstract", "vsock")
