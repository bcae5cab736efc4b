"""Channels with what long calls need: keepalive, quick reconnection, retries of short calls."""

import json
import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import grpc

ChannelOptions = Sequence[tuple[str, Any]]

Metadata = tuple[tuple[str, str], ...]

Pem = bytes | str | os.PathLike[str]
"""PEM data as bytes, or the path of a file that holds it."""

_RESOLVERS = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")
_LOOPBACK = re.compile(r"^(localhost|127\.\d+\.\d+\.\d+|\[::1\]|::1)(:\d+)?$")
_UNARY_METHODS = ("ListModels", "GetModelInfo", "Tokenize")


def full_target(target: str) -> str:
    """Return ``target`` with a resolver: ``dns:///`` unless it names one.

    A name that resolves to several addresses (a headless service) is then balanced over all of
    them, call by call.
    """
    scheme = target.partition(":")[0]
    return target if scheme in _RESOLVERS else f"dns:///{target}"


def channel_options(target: str, extra: ChannelOptions = ()) -> list[tuple[str, Any]]:
    """Return the options of this package's channels; those in ``extra`` win.

    Messages keep gRPC's own limits: answers come in slices of about 1 MiB, under the 4 MiB that a
    channel receives by default, and the server limits requests.
    """
    options: dict[str, Any] = {
        "grpc.service_config": service_config(),
        # A quiet connection is probed once a minute while a call runs: often enough for load
        # balancers that drop idle ones, seldom enough for servers that count pings.
        "grpc.keepalive_time_ms": 60_000,
        "grpc.keepalive_timeout_ms": 20_000,
        "grpc.keepalive_permit_without_calls": 0,
        "grpc.http2.max_pings_without_data": 0,
        # gRPC waits up to two minutes before it tries a lost server again.
        "grpc.initial_reconnect_backoff_ms": 200,
        "grpc.max_reconnect_backoff_ms": 5_000,
        # A name is resolved again when a connection ends, but not sooner than this after the last
        # time. gRPC's 30 s are long where a pod that died has been replaced within five.
        "grpc.dns_min_time_between_resolutions_ms": 5_000,
        "grpc.primary_user_agent": "scoring-client",
    }
    if _is_loopback(target):
        options["grpc.enable_http_proxy"] = 0
    return list((options | dict(extra)).items())


def _is_loopback(target: str) -> bool:
    # ipv4:127.0.0.1:5,127.0.0.1:6 lists several; each has to be of this machine.
    addresses = re.sub(r"^(dns:///|ipv[46]:)", "", target).split(",")
    return all(map(_LOOPBACK.match, addresses))


def service_config() -> str:
    """Return the service config: spread calls over all addresses, retry short calls.

    gRPC's retry ends with the first message of an answer, so it is left to the calls that have one
    message; streams are resumed by this package, and gRPC's retries would multiply its attempts.
    """
    methods = [{"service": "scoring.v1.ScoringService", "method": name} for name in _UNARY_METHODS]
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [
                {
                    "name": methods,
                    "retryPolicy": {
                        "maxAttempts": 4,
                        "initialBackoff": "0.2s",
                        "maxBackoff": "2s",
                        "backoffMultiplier": 2,
                        "retryableStatusCodes": ["UNAVAILABLE"],
                    },
                }
            ],
        }
    )


def channel_credentials(
    credentials: grpc.ChannelCredentials | None,
    root_certificates: Pem | None,
    client_certificate: Pem | None = None,
    client_key: Pem | None = None,
    *,
    tls: bool = False,
) -> grpc.ChannelCredentials | None:
    """Return credentials for TLS, or None for a plain channel.

    ``tls`` alone judges the server by gRPC's own roots, those of public authorities; the
    environment's ``GRPC_DEFAULT_SSL_ROOTS_FILE_PATH`` names a file of others.

    Raises:
        ValueError: they contradict one another.
        OSError: a file cannot be read.
    """
    pems = (root_certificates, client_certificate, client_key)
    if all(pem is None for pem in pems):
        return grpc.ssl_channel_credentials() if tls and credentials is None else credentials
    if credentials is not None:
        raise ValueError("give credentials or certificates, not both")
    if (client_certificate is None) != (client_key is None):
        raise ValueError("client_certificate and client_key go together")
    roots, certificate, key = map(_read_pem, pems)
    return grpc.ssl_channel_credentials(
        root_certificates=roots, private_key=key, certificate_chain=certificate
    )


def _read_pem(pem: Pem | None) -> bytes | None:
    return pem if pem is None or isinstance(pem, bytes) else Path(pem).read_bytes()


def with_trace(metadata: Metadata) -> Metadata:
    """Return the metadata with the caller's trace (W3C), where OpenTelemetry knows of one."""
    inject = _injector()
    if inject is None:
        return metadata
    carrier: dict[str, str] = {}
    inject(carrier)
    return (*metadata, *carrier.items())


@cache
def _injector() -> Callable[[dict[str, str]], None] | None:
    try:
        from opentelemetry.propagate import inject
    except ImportError:
        return None
    return inject


def refuse_plaintext_token(token: str | None, target: str, *, secure: bool, allowed: bool) -> None:
    """Let no token leave the machine on a plain channel, unless that is allowed.

    Args:
        token: What calls carry, if anything.
        target: Where they go.
        secure: Whether the channel has credentials of its own.
        allowed: Whether something else, such as a service mesh, encrypts what leaves the machine.

    Raises:
        ValueError: the token could be read on the way.
    """
    local = _is_loopback(target) or target.startswith(("unix:", "unix-abstract:", "vsock:"))
    if token is not None and not (secure or local or allowed):
        raise ValueError(
            f"the token would travel in plain text to {target}: use TLS (tls=True, or "
            "root_certificates= for a private authority; on the command line --tls or "
            "--root-certificates). Where a service mesh encrypts the connection, say so by "
            "allow_plaintext_token=True (--allow-plaintext-token)"
        )


def call_metadata(token: str | None) -> Metadata:
    """Return the metadata of every call: the token, if there is one.

    It travels as it is: on a plain channel whoever sees the connection sees the token.
    """
    return () if token is None else (("authorization", f"Bearer {token}"),)
