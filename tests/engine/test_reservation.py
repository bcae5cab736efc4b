"""Room for what must end: pages that are never preempted leave enough for the longest sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scoring_service.engine.packed.calls.reservation import Need, Room


@dataclass
class Pages:
    """As much of a store as `Room` looks at."""

    available: int

    def take(self, count: int) -> list[int]:
        self.available -= count
        return list(range(count))

    def give_back(self, pages: list[int]) -> None:
        self.available += len(pages)


@dataclass(eq=False)
class Sample:
    """As much of a sample."""

    pages: list[int] = field(default_factory=list)

    def add_pages(self, pages: list[int]) -> None:
        self.pages += pages

    def preempt(self) -> list[int]:
        pages, self.pages = self.pages, []
        return pages


def room_beside_a_sample(available: int, held: int, longest: int) -> Room:
    store: Any = Pages(available + held)
    sample: Any = Sample()
    room = Room(store)
    room.expect(sample, longest)
    room.grow(sample, held)
    return room


def test_pages_are_lent_beside_what_the_longest_sample_may_need() -> None:
    assert room_beside_a_sample(available=10, held=2, longest=6).lends(6)
    assert not room_beside_a_sample(available=10, held=2, longest=6).lends(7)


def test_and_beside_what_somebody_waits_for() -> None:
    room = room_beside_a_sample(available=10, held=2, longest=6)
    room.claim = Need(pages=3, sample_pages=0), 0
    assert room.lends(3)
    assert not room.lends(4)


def test_completions_beside_the_promised_one_leave_the_longest_sample_its_pages() -> None:
    room = room_beside_a_sample(available=10, held=0, longest=6)
    reservation = room.reserve(1)
    assert room.use(reservation, 1)
    store: Any = room._store
    store.available -= 1
    assert room.use(reservation, 3)
    store.available -= 3
    assert not room.use(reservation, 1)


def test_what_a_sample_held_is_counted_until_it_ends() -> None:
    room = room_beside_a_sample(available=10, held=2, longest=6)
    (sample,) = room._samples
    assert room.take_back(sample) == 2
    assert room.free == 12
    assert not room.admits(7)
    room.grow(sample, 3)
    room.remove_sample(sample)
    assert room.free == 12
    assert room.admits(12)
