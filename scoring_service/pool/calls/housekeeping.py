"""Ends calls that nobody waits for any more, and those whose readers stall."""

from __future__ import annotations

import asyncio
import time

import structlog

from scoring_service.errors import Fault, Reason
from scoring_service.pool.calls.admitted import AdmittedCalls
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.streams.stream import CallStream

log = structlog.get_logger(__name__)


async def expire_calls_periodically(calls: AdmittedCalls, settings: PoolSettings) -> None:
    """Looks at all calls now and then, until it is cancelled.

    Args:
        calls: that were admitted.
        settings: `look_seconds` and `reader_timeout`.
    """
    while True:
        await asyncio.sleep(settings.look_seconds)
        now = time.monotonic()
        for stream in list(calls.readers):
            try:
                _look(calls, stream, now, settings.reader_timeout)
            except Exception as error:  # the other calls have deadlines too
                request_id = stream.call.request_id
                log.error("call_not_ended", request_id=request_id, exc_info=error)


def _look(calls: AdmittedCalls, stream: CallStream, now: float, reader_timeout: float) -> None:
    if stream.call.deadline < now and not stream.ended:
        calls.ends.expire(stream)
    elif stream.unread and now - stream.last_read > reader_timeout:
        _stalled(calls, stream, reader_timeout)


def _stalled(calls: AdmittedCalls, stream: CallStream, seconds: float) -> None:
    message = f"the reader took nothing for {seconds:g} s while {stream.unread} bytes waited"
    log.warning("reader_stalled", request_id=stream.call.request_id, unread=stream.unread)
    calls.ends.stalled(stream, Fault(Reason.READER_STALLED, message))
