"""How fast the pool works its queue off, from what it finished lately."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

_FIRST_GUESS = 1000.0
"""Tokens per second assumed until some were measured."""

_MEMORY_SECONDS = 10.0
"""Measured time after which a measurement counts for 1/e."""

_MIN_SECONDS = 0.2
"""Measured time before a rate is believed."""

Mark = tuple[float, float]
"""A moment, in the seconds measured until then: those with work, and those under pressure."""


@dataclass(slots=True)
class _Recent:
    """Tokens and the seconds that they took; the older, the less both count."""

    tokens: float = 0.0
    seconds: float = 0.0
    """Until the last part was finished: parts take long, and some of them end together."""
    since: float = 0.0
    """Seconds since then."""
    total: float = 0.0
    """Seconds, all of which count."""

    def passed(self, seconds: float) -> None:
        self.since += seconds
        self.total += seconds

    def finished(self, tokens: int, sent: float) -> None:
        """A part is done that was sent out when `total` was `sent`."""
        if self.total > sent:
            kept = math.exp(-self.since / _MEMORY_SECONDS)
            self.tokens = self.tokens * kept + tokens
            self.seconds = self.seconds * kept + self.since
            self.since = 0.0

    def dropped(self) -> None:
        """What ran will not be finished: how much of the time since was its, nobody knows."""
        self.since = 0.0

    def rate(self, running: int) -> float:
        """Tokens per second; 0 until there is enough to tell."""
        if self.seconds < _MIN_SECONDS:
            return 0.0
        return min(self.tokens / self.seconds, self.most(running))

    def most(self, running: int) -> float:
        """Tokens per second if all that runs is all but done; inf = unknown."""
        seconds = self.seconds + self.since
        return (self.tokens + running) / seconds if seconds else math.inf


class Throughput:
    """Tokens per second that workers compute when they have as much to do as they can take.

    A step costs something by itself, whatever is in it. So what is finished while workers have
    little to do tells nothing of what they can do: calls of one token, one after another, finish
    some hundred tokens a second where large ones finish thousands. Only time under pressure is
    measured, in which parts wait because no worker has room for them; that is the only time, too,
    for which anybody has to know. BBR tells samples of a link's bandwidth apart in the same way:
    those that the sender had too little to send for say no more than that it is not lower.
    (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016.)

    Tokens count as the queue counts them (a sample's `max_tokens` however early it ended, a prompt
    though it was cached), so that the rate tells when the queue will be shorter. A part that ran
    under pressure, if only for a while, counts in full once it is finished. Of one that was
    cancelled, or died with its worker, neither tokens count nor the time since the last other one.

    Args:
        running: gives the tokens of the parts that workers have.
        clock: in seconds.
    """

    def __init__(
        self, running: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._running = running
        self._clock = clock
        self._now = clock()
        self._is_busy = False
        self._is_pressed = False
        self._busy = _Recent()
        self._pressed = _Recent()

    def busy(self, is_busy: bool) -> None:
        """Notes whether there is work now."""
        self._advance()
        self._is_busy = is_busy

    def press(self, is_pressed: bool) -> None:
        """Notes whether something waits because no worker has room for it."""
        self._advance()
        self._is_pressed = is_pressed

    @property
    def pressed(self) -> bool:
        """Whether there is more work now than workers take."""
        return self._is_busy and self._is_pressed

    def mark(self) -> Mark:
        """Now."""
        self._advance()
        return self._busy.total, self._pressed.total

    def finished(self, tokens: int, sent: Mark) -> None:
        """A part of so many tokens is done, which was sent to a worker at that moment."""
        self._advance()
        self._busy.finished(tokens, sent[0])
        self._pressed.finished(tokens, sent[1])

    def dropped(self) -> None:
        """A part that a worker has will not be finished there."""
        self._advance()
        self._busy.dropped()
        self._pressed.dropped()

    @property
    def rate(self) -> float:
        """Tokens per second, as a rule.

        Until there was pressure it is what was seen without. Under the first pressure that is told
        by a guess, if that is more: with more to do at once workers are not slower. Never is it
        more than what they can have computed.
        """
        self._advance()
        running = self._running()
        pressed, busy = self._pressed.rate(running), self._busy.rate(running)
        if self.pressed and not pressed:
            return min(max(busy, _FIRST_GUESS), self._pressed.most(running))
        return pressed or busy or _FIRST_GUESS

    @property
    def most(self) -> float:
        """Tokens per second that workers did not exceed, by the same weights; inf = unknown.

        What they computed under pressure belongs to parts that are finished, which count in full
        since then, or to such as they still have.
        """
        self._advance()
        return self._pressed.most(self._running())

    def _advance(self) -> None:
        now = self._clock()
        passed, self._now = now - self._now, now
        if self._is_busy:
            self._busy.passed(passed)
        if self.pressed:
            self._pressed.passed(passed)
