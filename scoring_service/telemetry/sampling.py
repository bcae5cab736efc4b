"""Which calls are traced: a few every second, however many there are."""

from __future__ import annotations

import time
from collections.abc import Callable


class RateLimit:
    """Lets at most so many traces a second begin, after a pause up to a second's worth at once.

    A share of all calls would cost most when there is least time for it. Jaeger's clients know the
    same rule as `ratelimiting`.

    Args:
        per_second: of traces; 0 = none, below 1 = one in as many seconds.
        clock: seconds.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_second
        self._most = max(1.0, per_second)
        self._saved = self._most if per_second else 0.0
        self._clock = clock
        self._asked = clock()

    def takes_one(self) -> bool:
        """Whether another trace may begin, which then counts."""
        now = self._clock()
        self._saved = min(self._most, self._saved + self._rate * (now - self._asked))
        self._asked = now
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True
