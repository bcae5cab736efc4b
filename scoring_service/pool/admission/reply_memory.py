"""How much of this process readers may fill with results that they do not take."""

from __future__ import annotations

from scoring_service.pool.admission.admission import SHARE

MAX_BYTES = 512 << 20
"""Results of all calls that wait for their readers, beyond which nothing more is begun."""


class ReplyMemory:
    """Counts unread results by client, and shares what there is as the queue is shared.

    Clients that read are not held back by one that does not.
    """

    def __init__(self) -> None:
        self.unread = 0
        self._by_client: dict[str, int] = {}

    def add(self, client: str, size: int) -> None:
        """Results came; with a negative size, they were taken."""
        self.unread += size
        held = self._by_client.get(client, 0) + size
        if held:
            self._by_client[client] = held
        else:
            self._by_client.pop(client, None)

    def may_begin(self, client: str) -> bool:
        """Whether more results may be computed for a client."""
        return self._by_client.get(client, 0) <= SHARE * max(0, MAX_BYTES - self.unread)
