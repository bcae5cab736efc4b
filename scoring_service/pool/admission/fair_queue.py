"""Whose turn it is: priority first, then the client that was served least, then its call."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection
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

    @property
    def may_be_passed(self) -> bool:
        """Whether what it waits for may be something that others do not need."""
        ...


Item = TypeVar("Item", bound=Queued)


Wait = tuple[bool, int | None]
"""What calls wait for: (whether that may be something that others do not need, where alone they can
be computed; None = anywhere)."""

Turn = tuple[int, float, int]
"""Of a call among those of its client: (minus priority, tokens begun for the call beyond what
newcomers are credited with, order of arrival); the least is next."""

_STALE_TURNS = 16
"""Turns of calls that left or had theirs, beyond as many as wait, before a heap is made anew."""


@dataclass(slots=True)
class _Line(Generic[Item]):
    """Calls of a client that wait for the same."""

    heap: list[Turn] = field(default_factory=list)
    """Turns of those that wait, and stale ones among them."""
    waiting: dict[int, tuple[Turn, Item]] = field(default_factory=dict)
    """By order of arrival. What left is not held, however long its turn stays in the heap."""

    def first(self) -> tuple[Turn, Item]:
        """The next call; there is one."""
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


@dataclass(slots=True)
class _Client(Generic[Item]):
    served: float
    """Tokens begun for the client, beyond what newcomers are credited with."""
    lines: dict[Wait, _Line[Item]] = field(default_factory=dict)
    """None of them is empty."""
    waits: dict[int, Wait] = field(default_factory=dict)
    """Which line a call is in, by order of arrival."""

    def first(self, passed: Collection[Wait]) -> tuple[Turn, Item] | None:
        """The client's next call, of those that wait for nothing that is passed over."""
        lines = (line for wait, line in self.lines.items() if wait not in passed)
        return min((line.first() for line in lines), key=_turn, default=None)

    def find(self, arrival: int) -> tuple[Turn, Item] | None:
        """A call and its turn, if it waits."""
        wait = self.waits.get(arrival)
        return None if wait is None else self.lines[wait].waiting[arrival]

    def put(self, turn: Turn, item: Item, bound: int | None = None) -> None:
        """Gives a call its turn, in place of the one that it had."""
        wait = item.may_be_passed, bound
        if self.waits.get(turn[-1], wait) != wait:
            self.remove(turn[-1])
        self.waits[turn[-1]] = wait
        self.lines.setdefault(wait, _Line()).put(turn, item)

    def remove(self, arrival: int) -> None:
        """Takes a call out, if it is there."""
        wait = self.waits.pop(arrival, None)
        if wait is not None:
            line = self.lines[wait]
            del line.waiting[arrival]
            if not line.waiting:
                del self.lines[wait]


def _turn(found: tuple[Turn, object]) -> Turn:
    return found[0]


class FairQueue(Generic[Item]):
    """Calls that wait, by client.

    A call that may be passed over keeps its place: nothing that went before it is forgotten.
    """

    def __init__(self) -> None:
        self._clients: dict[str, _Client[Item]] = {}
        self._left: dict[str, float] = {}
        """Clients without a call that were served more than a newcomer is credited with."""
        self._begun = 0.0
        """What the client whose turn it was last had been served before it."""

    def add(self, item: Item) -> None:
        """Adds a call, or notes whether it may be passed over now."""
        client = self._clients.get(item.client)
        if client is None:
            # A newcomer has not been waiting while others were served: it starts level with them.
            # Who sends one call after the other goes on from what it was served.
            served = max(self._level, self._left.pop(item.client, 0.0))
            client = self._clients[item.client] = _Client(served)
        priority, arrival = item.place
        found, first = client.find(arrival), client.first(())
        if found is not None:
            client.put(found[0], item)
        else:
            served = 0.0 if first is None else first[0][1]
            client.put((priority, served, arrival), item)

    def remove(self, item: Item) -> None:
        """Takes a call out, if it is there."""
        client = self._clients.get(item.client)
        if client is not None:
            client.remove(item.place[1])
            if not client.lines:
                del self._clients[item.client]
                self._left[item.client] = client.served
                level = self._level if self._clients else math.inf
                self._left = {name: served for name, served in self._left.items() if served > level}

    @property
    def _level(self) -> float:
        """What a newcomer is credited with: what who waits or had the last turn had before it."""
        least = min((client.served for client in self._clients.values()), default=0.0)
        return min(self._begun, least)

    def first(self, passed: Collection[Wait] = ()) -> Item | None:
        """The call whose turn it is.

        Args:
            passed: over all calls that wait for one of these, which keep their turns.
        """
        next_turn, next_item = None, None
        for client in self._clients.values():
            if (found := client.first(passed)) is not None:
                (priority, _, arrival), item = found
                turn = priority, client.served, arrival
                if next_turn is None or turn < next_turn:
                    next_turn, next_item = turn, item
        return next_item

    def bind(self, item: Item, to: int | None) -> Wait:
        """Notes where alone a call that waits can be computed, until it is added or charged again.

        Args:
            item: the call.
            to: a number for that; None = anywhere.

        Returns:
            What it waits for.
        """
        client, arrival = self._clients[item.client], item.place[1]
        turn, _ = client.lines[client.waits[arrival]].waiting[arrival]
        client.put(turn, item, to)
        return client.waits[arrival]

    def charge(self, item: Item, tokens: int) -> None:
        """So many tokens were begun for a call, whose turn it was."""
        client = self._clients.get(item.client)
        found = None if client is None else client.find(item.place[1])
        if client is not None and found is not None:
            self._begun = client.served
            client.served += tokens
            priority, served, arrival = found[0]
            client.put((priority, served + tokens, arrival), item)
