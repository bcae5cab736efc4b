"""How long an update of the weights may stay in a phase after its last byte came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from scoring_service.errors import Fault, Reason, ServiceError

STAGING_SECONDS = 600.0
"""Longest time for workers to prepare weights, one that died and started again included; and once
more to write them over the running ones."""

HASHED_BYTES_PER_SECOND = 100e6
"""Of a thread that has a third of a core without instructions for SHA-256, about. Weights that are
hashed only after the last byte, as partial ones are, have as much more time."""

DRAINING_SECONDS = 600.0
"""Longest time for calls that are under way to end: all others wait meanwhile."""


@asynccontextmanager
async def staging(size: int) -> AsyncIterator[None]:
    """Workers read so many bytes.

    Raises:
        ServiceError: WORKER_DIED; it took too long.
    """
    seconds = STAGING_SECONDS + size / HASHED_BYTES_PER_SECOND
    async with _within(seconds, Reason.WORKER_DIED, "the workers did not stage the weights"):
        yield


@asynccontextmanager
async def draining() -> AsyncIterator[None]:
    """Calls end that are under way.

    Raises:
        ServiceError: CALLS_STILL_RUNNING; it took too long.
    """
    what = "calls that are under way did not end, as they have to before an update in place,"
    async with _within(DRAINING_SECONDS, Reason.CALLS_STILL_RUNNING, what):
        yield


@asynccontextmanager
async def applying() -> AsyncIterator[None]:
    """Workers write the weights over theirs.

    Raises:
        ServiceError: WORKER_DIED; it took too long.
    """
    what = "the workers did not write the weights over theirs"
    async with _within(STAGING_SECONDS, Reason.WORKER_DIED, what):
        yield


@asynccontextmanager
async def _within(seconds: float, reason: Reason, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ServiceError(Fault(reason, f"{what} within {seconds:.0f} s")) from None
