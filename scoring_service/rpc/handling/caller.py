"""Who calls, and until when they wait."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from typing import Any

import grpc

from scoring_service.telemetry.traces import Span

_PORT = re.compile(r":\d+$")


@dataclass(frozen=True, slots=True)
class Caller:
    """What is known of a call beside its request."""

    request_id: str
    identity: str
    """Name that authentication found; empty where nobody is asked for one."""
    peer: str
    """Host at the other end of the connection, as gRPC names it."""
    deadline: float
    """When the caller stops waiting, as `time.monotonic()` counts on this machine."""
    span: Span
    """The call in its trace."""

    @property
    def client(self) -> str:
        """Whose share of the queue the call takes: the identity's, else the host's."""
        return self.identity or self.peer

    def cache_salt(self, given: str) -> str:
        """What separates this caller's cached prefixes: what the request gave, else the identity.

        The two never meet: nobody reaches another's prefixes by giving the other's name.
        """
        if given:
            return f"salt {given}"
        return f"identity {self.identity}" if self.identity else ""


def peer_host(peer: str) -> str:
    """gRPC's name of a peer without its port: one client may open many connections."""
    return _PORT.sub("", peer)


def deadline_of(context: grpc.aio.ServicerContext[Any, Any]) -> float:
    """The call's deadline by the monotonic clock, which workers on this machine share.

    gRPC sends the time that is left, not a time of day: clocks of two machines never meet.
    """
    left = context.time_remaining()
    return math.inf if left is None else time.monotonic() + left
