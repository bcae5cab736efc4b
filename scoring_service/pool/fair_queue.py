"""Whose turn it is: priority first, then the client that was served least, then its call."""

from __future__ import annotations

import heapq
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


@dataclass(order=True, slots=True)
class _Entry(Generic[Item]):
    priority: int
    """Negated."""
    served: float
    """Tokens begun for the call, beyond what newcomers are credited with."""
    arrival: int
    item: Item = field(compare=False)
    gone: bool = field(default=False, compare=False)


@dataclass(slots=True)
class _Client(Generic[Item]):
    served: float
    """Tokens begun for the client, likewise."""
    heap: list[_Entry[Item]] = field(default_factory=list)
    entries: dict[int, _Entry[Item]] = field(default_factory=dict)
    """Those that are not gone, by arrival."""

    def first(self) -> _Entry[Item]:
        """The client's next call; there is one."""
        while self.heap[0].gone:
            heapq.heappop(self.heap)
        return self.heap[0]


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
        priority, arrival = item.place
        if arrival not in client.entries:
            served = client.first().served if client.entries else 0.0
            entry = client.entries[arrival] = _Entry(priority, served, arrival, item)
            heapq.heappush(client.heap, entry)

    def remove(self, item: Item) -> None:
        """Takes a call out, if it is there."""
        client = self._clients.get(item.client)
        entry = None if client is None else client.entries.pop(item.place[1], None)
        if client is not None and entry is not None:
            entry.gone = True
            if not client.entries:
                del self._clients[item.client]

    def first(self) -> Item | None:
        """The call whose turn it is."""
        if not self._clients:
            return None

        def turn(client: _Client[Item]) -> tuple[int, float, int]:
            entry = client.first()
            return entry.priority, client.served, entry.arrival

        return min(self._clients.values(), key=turn).first().item

    def charge(self, item: Item, tokens: int) -> None:
        """So many tokens were begun for a call, whose turn it was."""
        client = self._clients.get(item.client)
        entry = None if client is None else client.entries.get(item.place[1])
        if client is not None and entry is not None:
            client.served += tokens
            entry.gone = True
            again = _Entry(entry.priority, entry.served + tokens, entry.arrival, item)
            client.entries[entry.arrival] = again
            heapq.heappush(client.heap, again)
