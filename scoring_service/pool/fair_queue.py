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


Turn = tuple[int, float, int]
"""Of a call among those of its client: (minus priority, tokens begun for the call beyond what
newcomers are credited with, order of arrival); the least is next."""

_STALE_TURNS = 16
"""Turns of calls that left or had theirs, beyond as many as wait, before a heap is made anew."""


@dataclass(slots=True)
class _Client(Generic[Item]):
    served: float
    """Tokens begun for the client, likewise."""
    heap: list[Turn] = field(default_factory=list)
    """Those of the calls that wait, and stale ones among them."""
    waiting: dict[int, tuple[Turn, Item]] = field(default_factory=dict)
    """By order of arrival. What left is not held, however long its turn stays in the heap."""

    def first(self) -> tuple[Turn, Item]:
        """The client's next call; there is one."""
        while True:
            turn = self.heap[0]
            found = self.waiting.get(turn[-1])
            if found is not None and found[0] == turn:
                return found
            heapq.heappop(self.heap)

    def put(self, turn: Turn, item: Item) -> None:
        """Gives a call its turn, in place of the one that it had."""
        self.waiting[turn[-1]] = turn, item
        if len(self.heap) < 2 * len(self.waiting) + _STALE_TURNS:
            heapq.heappush(self.heap, turn)
        else:
            self.heap = [other for other, _ in self.waiting.values()]
            heapq.heapify(self.heap)


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
        if arrival not in client.waiting:
            served = client.first()[0][1] if client.waiting else 0.0
            client.put((priority, served, arrival), item)

    def remove(self, item: Item) -> None:
        """Takes a call out, if it is there."""
        client = self._clients.get(item.client)
        if client is not None:
            client.waiting.pop(item.place[1], None)
            if not client.waiting:
                del self._clients[item.client]

    def first(self) -> Item | None:
        """The call whose turn it is."""
        if not self._clients:
            return None

        def turn(client: _Client[Item]) -> Turn:
            (priority, _, arrival), _ = client.first()
            return priority, client.served, arrival

        return min(self._clients.values(), key=turn).first()[1]

    def charge(self, item: Item, tokens: int) -> None:
        """So many tokens were begun for a call, whose turn it was."""
        client = self._clients.get(item.client)
        found = None if client is None else client.waiting.get(item.place[1])
        if client is not None and found is not None:
            client.served += tokens
            priority, served, arrival = found[0]
            client.put((priority, served + tokens, arrival), item)
