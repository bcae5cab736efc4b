"""How fast the pool works its queue off, from what it finished lately."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

_FIRST_GUESS = 1000.0
"""Tokens per second assumed until some were measured."""

_MEMORY_SECONDS = 10.0
"""Busy time after which a measurement counts for 1/e."""

_LEAST_SECONDS = 0.2
"""Busy time that has to be seen before its rate is believed."""


class Throughput:
    """Tokens per second of busy time, recent ones first.

    Tokens count as the queue counts them (a sample's `max_tokens` however early it ended), so that
    the rate tells when the queue will be shorter. Idle time does not count.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens = 0.0
        self._seconds = 0.0
        self._since: float | None = None

    def busy(self, is_busy: bool) -> None:
        """Notes whether there is work now."""
        self._advance()
        self._since = self._clock() if is_busy else None

    def finished(self, tokens: int) -> None:
        """So many tokens of the queue are done."""
        self._advance()
        self._tokens += tokens

    @property
    def measured(self) -> bool:
        """Whether the rate is more than a guess."""
        self._advance()
        return self._seconds >= _LEAST_SECONDS and self._tokens > 0

    @property
    def rate(self) -> float:
        """Tokens per second."""
        if not self.measured:
            return _FIRST_GUESS
        return self._tokens / self._seconds

    def _advance(self) -> None:
        if self._since is None:
            return
        now = self._clock()
        passed, self._since = now - self._since, now
        kept = math.exp(-passed / _MEMORY_SECONDS)
        self._tokens *= kept
        self._seconds = self._seconds * kept + passed
