"""How large the parts of calls should be, as far as servers said."""

from __future__ import annotations

import time

from scoring_client.calls.division import PartSize, preferred_size
from scoring_client.errors import DeadlineError, ScoringError
from scoring_client.values.model_info import Limits

_FRESH_SECONDS = 60.0
"""What is older is asked for again: a server may have come back with other limits."""
_UNSAID = PartSize(tokens=65_536)
"""What servers prefer unless they are told otherwise."""


class PreferredSizes:
    """What servers prefer, by the name of the model."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, PartSize]] = {}

    def fresh(self, model: str) -> PartSize | None:
        """Return what a server said lately; None = it is to be asked."""
        asked_at, size = self._said.get(model, (0.0, None))
        return size if size and time.monotonic() - asked_at < _FRESH_SECONDS else None

    def said(self, model: str, limits: Limits) -> PartSize:
        """Return what a server says, and remember it."""
        size = preferred_size(limits)
        self._said[model] = (time.monotonic(), size)
        return size

    def unsaid(self, model: str, error: ScoringError) -> PartSize | None:
        """Return what holds where asking failed; None = the call is one part.

        Who loads or starts again will be there for the call's retries, and would refuse a call that
        is larger than its limits for good. Whatever else is wrong, the call itself will say so.
        """
        if model in self._said:
            return self._said[model][1]
        return _UNSAID if error.retryable or isinstance(error, DeadlineError) else None
