"""Callers that are refused unread, in the log: named, and never more than a few lines."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from scoring_service.errors import Fault

log = structlog.get_logger(__name__)

_SECONDS = 60.0
"""Between two lines about the same caller."""

_MAX_CALLERS = 32
"""That are named within that time; all others share one line."""

_OTHERS = "others"


@dataclass(slots=True)
class _Seen:
    told: float
    """When it was last in the log."""
    calls: int = 0
    """Since then."""


class RefusalLog:
    """Says in the log who is refused: at once, then once a minute with how many calls it was.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[tuple[str, str, str], _Seen] = {}

    def note(self, peer: str, identity: str, rpc: str, fault: Fault) -> None:
        """A call was refused.

        Args:
            peer: host at the other end.
            identity: whose call it is; empty = unknown.
            rpc: full name of its method.
            fault: that it was told.
        """
        now = self._clock()
        key = peer, identity, str(fault.reason)
        if key not in self._seen:
            self._forget(now)
            if len(self._seen) >= _MAX_CALLERS:
                key = _OTHERS, "", ""
                peer = identity = _OTHERS
        seen = self._seen.setdefault(key, _Seen(now - _SECONDS))
        seen.calls += 1
        if now - seen.told < _SECONDS:
            return
        log.warning(
            "turned_away",
            peer=peer,
            identity=identity,
            reason=fault.reason,
            rpc=rpc,
            calls=seen.calls,
        )
        seen.told, seen.calls = now, 0

    def _forget(self, now: float) -> None:
        """Callers that were not seen of late."""
        self._seen = {k: s for k, s in self._seen.items() if now - s.told < _SECONDS}
