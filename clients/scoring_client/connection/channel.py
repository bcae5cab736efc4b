"""Channels with what long calls need: keepalive, quick reconnection, retries of short calls."""

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from scoring_client.connection.target import is_loopback

ChannelOptions = Sequence[tuple[str, Any]]

Metadata = tuple[tuple[str, str], ...]

_HEADER = re.compile(r"[a-z0-9_.-]+(?<!-bin)\n[ -~]*")
"""A name and a value of ASCII that gRPC sends; names that end in -bin have values of bytes."""

_UNARY_METHODS = ("ListModels", "GetModelInfo", "Tokenize")


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
    if is_loopback(target):
        options["grpc.enable_http_proxy"] = 0
    return list((options | dict(extra)).items())


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


def with_trace(metadata: Metadata) -> Metadata:
    """Return the metadata with the caller's trace, where OpenTelemetry knows of one.

    In the headers of whatever propagators are set up: gRPC takes lower-case names alone, and a call
    does not fail for a value that no header can carry.
    """
    inject = _injector()
    if inject is None:
        return metadata
    carrier: dict[str, str] = {}
    inject(carrier)
    headers = ((name.lower(), value) for name, value in carrier.items())
    return (*metadata, *(header for header in headers if _HEADER.fullmatch("\n".join(header))))


@cache
def _injector() -> Callable[[dict[str, str]], None] | None:
    try:
        from opentelemetry.propagate import inject
    except ImportError:
        return None
    return inject
