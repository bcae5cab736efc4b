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


_Key = tuple[str, str, str]
"""Peer, identity and reason; of all that are not named the first two are `_OTHERS`."""


@dataclass(slots=True)
class _Seen:
    told: float
    """When it was last in the log."""
    last: float
    """When it came last."""
    rpc: str
    """The method of its last call."""
    calls: int = 0
    """Since it was told."""


class RefusalLog:
    """Says in the log who is refused: at once, then once a minute with how many calls it was.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[_Key, _Seen] = {}

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
                key = _OTHERS, _OTHERS, str(fault.reason)
        seen = self._seen.setdefault(key, _Seen(now - _SECONDS, now, rpc))
        seen.calls += 1
        seen.last, seen.rpc = now, rpc
        if now - seen.told >= _SECONDS:
            self._tell(key, seen, now)

    def _tell(self, key: _Key, seen: _Seen, now: float) -> None:
        peer, identity, reason = key
        log.warning(
            "turned_away",
            peer=peer,
            identity=identity,
            reason=reason,
            rpc=seen.rpc,
            calls=seen.calls,
        )
        seen.told, seen.calls = now, 0

    def _forget(self, now: float) -> None:
        """Callers that were not seen of late, once the log has all of their calls."""
        for key, seen in list(self._seen.items()):
            if now - seen.last >= _SECONDS:
                if seen.calls:
                    self._tell(key, seen, now)
                del self._seen[key]
