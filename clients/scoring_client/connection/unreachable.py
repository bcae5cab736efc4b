"""What gRPC's words about a connection that does not come about mean, and what helps."""

from __future__ import annotations

import re
from urllib.parse import unquote

_ADDRESS = re.compile(r"ipv[46]:(\S+:\d+)")
_MEANINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(words), meaning)
    for words, meaning in (
        (
            "certificate has expired|certificate is not yet valid",
            "the certificate of the server{at} has expired or is not valid yet",
        ),
        (
            "CERTIFICATE_VERIFY_FAILED",
            "the certificate of the server{at} could not be verified: it has expired, or is signed "
            "by nobody whom this client trusts (root_certificates=, --root-certificates, names the "
            "authority)",
        ),
        (
            "Hostname Verification Check failed",
            "the certificate of the server{at} is for another name than the one that was called",
        ),
        (
            # A server listens on 127.0.0.1 unless it is told otherwise, and may have failed there
            # for another reason, such as TLS.
            r"ipv6:(%5B|\[)::1(%5D|\]):\d+: .*Connection refused",
            "nobody listens{at}: is the server running, and is it this port? If so, ask 127.0.0.1: "
            "of localhost's addresses gRPC names only the last that failed",
        ),
        ("Connection refused", "nobody listens{at}: is the server running, and is it this port?"),
        ("Domain name not found|not known", "there is no host of that name"),
        ("Failed parsing HTTP/2", "what answers{at} is no gRPC server: is it this port?"),
        # Not of a call that was under way, which says nothing of backends.
        (
            "all (backends|addresses).*(Socket closed|Connection reset)",
            "the server{at} hangs up: it may want TLS (tls=True or root_certificates=; --tls, "
            "--root-certificates) or a client's certificate",
        ),
    )
)


def where(message: str) -> str:
    """Return `` at ADDRESS`` for the address that gRPC names, else nothing."""
    found = _ADDRESS.search(message)
    return f" at {unquote(found[1])}" if found else ""


def explained(message: str) -> str:
    """Return what gRPC says of a connection, with what it means before it where that is known."""
    for words, meaning in _MEANINGS:
        if words.search(message):
            return f"{meaning.format(at=where(message))} [{message}]"
    return message
