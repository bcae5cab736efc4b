"""Room for what must end: pages that never give way leave enough for the longest sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scoring_service.engine.packed.reservation import Need, Room


@dataclass
class Pages:
    """As much of a store as `Room` looks at."""

    available: int


@dataclass(eq=False)
class Sample:
    """As much of a sample."""

    pages: list[int] = field(default_factory=list)


def room_beside_a_sample(available: int, held: int, longest: int) -> Room:
    store: Any = Pages(available)
    sample: Any = Sample(list(range(held)))
    room = Room(store)
    room.add_sample(sample, longest)
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
