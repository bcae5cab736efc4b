"""Whose turn it is: priority first, then the client that was served least."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Queued(Protocol):
    """A call that has something to be computed."""

    @property
    def client(self) -> str:
        """Whose turn it takes."""
        ...

    @property
    def place(self) -> tuple[int, int]:
        """(minus priority, order of arrival)."""
        ...


Item = TypeVar("Item", bound=Queued)


@dataclass(slots=True)
class _Client(Generic[Item]):
    served: float
    """Tokens begun for the client, beyond what newcomers are credited with."""
    items: list[Item] = field(default_factory=list)
    """Ascending by place."""


class FairQueue(Generic[Item]):
    """Calls that wait, by client."""

    def __init__(self) -> None:
        self._clients: dict[str, _Client[Item]] = {}

    def add(self, item: Item) -> None:
        """Adds a call, unless it is there already."""
        client = self._clients.get(item.client)
        if client is None:
            # A newcomer has not been waiting while others were served: it starts level with them.
            least = min((c.served for c in self._clients.values()), default=0.0)
            client = self._clients[item.client] = _Client(least)
        if item not in client.items:
            insort(client.items, item, key=lambda i: i.place)

    def remove(self, item: Item) -> None:
        """Takes a call out, if it is there."""
        client = self._clients.get(item.client)
        if client is not None and item in client.items:
            client.items.remove(item)
            if not client.items:
                del self._clients[item.client]

    def first(self) -> Item | None:
        """The call whose turn it is."""
        if not self._clients:
            return None

        def turn(client: _Client[Item]) -> tuple[int, float, int]:
            priority, arrival = client.items[0].place
            return priority, client.served, arrival

        return min(self._clients.values(), key=turn).items[0]

    def charge(self, client: str, tokens: int) -> None:
        """So many tokens were begun for a client."""
        if (found := self._clients.get(client)) is not None:
            found.served += tokens
