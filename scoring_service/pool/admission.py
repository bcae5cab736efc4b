"""How much may wait: a queue bounded in tokens, and when to come back if it is full."""

from __future__ import annotations

from scoring_service.errors import Fault, Reason, ServiceError

_FIRST_GUESS = 1000.0
"""Tokens per second assumed until some were measured."""

_SMOOTHING = 0.2
"""Weight of a new measurement of the rate."""


class Admission:
    """Counts the tokens of admitted calls that are not answered yet."""

    def __init__(self, max_queue_tokens: int) -> None:
        self._max = max_queue_tokens
        self._waiting: dict[int, int] = {}
        self._rate = _FIRST_GUESS

    def admit(self, call_id: int, tokens: int) -> None:
        """Lets a call in.

        A call larger than the whole queue is let in when nothing else waits: refusing it would
        not make it smaller.

        Raises:
            ServiceError: QUEUE_FULL, with the time after which there should be room.
        """
        queued = sum(self._waiting.values())
        if queued and queued + tokens > self._max:
            excess = min(queued, queued + tokens - self._max)
            retry_after = max(0.1, excess / self._rate)
            message = (
                f"{queued} tokens wait already and this call has {tokens}; "
                f"at most {self._max} may wait"
            )
            raise ServiceError(Fault(Reason.QUEUE_FULL, message, retry_after=retry_after))
        self._waiting[call_id] = tokens

    def release(self, call_id: int) -> None:
        """The call is over."""
        self._waiting.pop(call_id, None)

    def tokens_ahead(self, call_id: int) -> int:
        """Tokens of the calls admitted before this one that are not over."""
        return sum(tokens for other, tokens in self._waiting.items() if other < call_id)

    def measured(self, tokens: int, seconds: float) -> None:
        """A call of so many tokens took so many seconds of computation."""
        if seconds > 0:
            self._rate += _SMOOTHING * (tokens / seconds - self._rate)
