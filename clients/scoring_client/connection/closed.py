"""Clients that were closed: one error, whatever gRPC says at that point."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc.aio

from scoring_client.errors import ClosedClientError, ScoringError

CLOSED_MEANWHILE = "the call was cancelled: its client was closed while it ran"


@contextmanager
def telling_closed_before() -> Iterator[None]:
    """Tell of a client that was closed before a call, or before its next attempt, began.

    gRPC raises what it does at any misuse, and another class in each of its two halves.

    Raises:
        ClosedClientError: the channel is closed.
    """
    try:
        yield
    except (ValueError, grpc.aio.UsageError) as error:
        if isinstance(error, ScoringError) or "closed" not in str(error).lower():
            raise
        raise ClosedClientError("this client was closed") from error
