"""Turns: priority first, then the client that was served least."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass

import pytest

from scoring_service.pool.admission.fair_queue import FairQueue


@dataclass(frozen=True)
class Waiting:
    client: str
    arrival: int
    priority: int = 0
    may_be_passed: bool = False

    @property
    def place(self) -> tuple[int, int]:
        return -self.priority, self.arrival


def served(queue: FairQueue[Waiting], turns: int, tokens: int = 10) -> list[str]:
    order = []
    for _ in range(turns):
        item = queue.first()
        assert item is not None
        order.append(item.client)
        queue.charge(item, tokens)
        queue.remove(item)
    return order


def test_one_call_of_a_light_client_does_not_wait_for_a_hundred_of_a_heavy_one() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    for arrival in range(100):
        queue.add(Waiting("heavy", arrival))
    assert served(queue, 5) == ["heavy"] * 5
    queue.add(Waiting("light", 100))
    assert "light" in served(queue, 2)


def test_clients_get_the_same_number_of_tokens_however_they_cut_them() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    for arrival in range(1000):
        queue.add(Waiting("small", 2 * arrival))
        queue.add(Waiting("large", 2 * arrival + 1))
    tokens: Counter[str] = Counter()
    for _ in range(300):
        item = queue.first()
        assert item is not None
        cost = 10 if item.client == "small" else 90
        tokens[item.client] += cost
        queue.charge(item, cost)
        queue.remove(item)
    assert abs(tokens["small"] - tokens["large"]) <= 90


def test_priority_goes_before_turns_and_arrival_decides_among_equals() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    for item in (Waiting("a", 1), Waiting("b", 2), Waiting("a", 3, 5), Waiting("a", 4, 5)):
        queue.add(item)
    order = []
    while (item := queue.first()) is not None:
        order.append(item.arrival)
        queue.charge(item, 100)
        queue.remove(item)
    assert order == [3, 4, 2, 1]


@pytest.mark.parametrize(("cost", "others"), [(90, 10), (10, 90)])
def test_who_leaves_after_every_call_gains_nothing_and_loses_nothing(
    cost: int, others: int
) -> None:
    """One call at a time is worth as many tokens as many that wait."""
    queue: FairQueue[Waiting] = FairQueue()
    for arrival in range(1000):
        queue.add(Waiting("steady", arrival))
    tokens: Counter[str] = Counter()
    back: Waiting | None = None
    for arrival in range(1000, 1300):
        if back is None:
            back = Waiting("back", arrival)
            queue.add(back)
        item = queue.first()
        assert item is not None
        spent = cost if item is back else others
        tokens[item.client] += spent
        queue.charge(item, spent)
        queue.remove(item)
        if item is back:
            back = None
    assert abs(tokens["back"] - tokens["steady"]) <= 90


def test_who_was_away_for_long_is_level_with_those_who_stayed() -> None:
    """It owes nothing for the tokens that it had, and is owed nothing for those that it had not."""
    queue: FairQueue[Waiting] = FairQueue()
    for arrival in range(100):
        queue.add(Waiting("steady", arrival))
    served(queue, 1)
    queue.add(Waiting("back", 100))
    assert served(queue, 1, tokens=90) == ["back"]
    assert served(queue, 20) == ["steady"] * 20
    for arrival in range(101, 120):
        queue.add(Waiting("back", arrival))
    assert Counter(served(queue, 8)) == {"back": 4, "steady": 4}


def test_a_clients_own_calls_take_turns_too() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    long, short = Waiting("a", 1), Waiting("a", 2)
    queue.add(long)
    for _ in range(5):
        assert queue.first() is long
        queue.charge(long, 100)
    queue.add(short)
    order = []
    for _ in range(4):
        item = queue.first()
        assert item is not None
        order.append(item.arrival)
        queue.charge(item, 100)
    assert sorted(order) == [1, 1, 2, 2]


def test_what_left_is_forgotten_however_long_something_more_urgent_waits() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    queue.add(Waiting("client", 0, priority=1))
    left = []
    for arrival in range(1, 1000):
        waiting = Waiting("client", arrival)
        queue.add(waiting)
        queue.remove(waiting)
        left.append(weakref.ref(waiting))
        del waiting
    assert not any(item() for item in left)
    (line,) = queue._clients["client"].lines.values()
    assert len(line.heap) < 100
    first = queue.first()
    assert first is not None
    assert first.arrival == 0


def test_who_is_passed_over_keeps_its_place() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    first, second = Waiting("a", 1, may_be_passed=True), Waiting("b", 2)
    for item in (first, second, Waiting("a", 3, priority=-1)):
        queue.add(item)
    assert queue.first() is first
    passed = {(True, None)}
    assert queue.first(passed) is second
    queue.charge(second, 10)
    assert queue.first() is first
    queue.remove(second)
    found = queue.first(passed)
    assert found is not None
    assert found.arrival == 3
    # Noted as one that is not passed over any more, it is first as before.
    queue.add(Waiting("a", 1))
    assert queue.first(passed) == Waiting("a", 1)
    queue.remove(first)
    assert queue.first() is found


def test_what_only_some_can_compute_keeps_its_place_while_others_go_on() -> None:
    queue: FairQueue[Waiting] = FairQueue()
    bound, other, passable = Waiting("a", 1), Waiting("a", 2), Waiting("b", 3, may_be_passed=True)
    for item in (bound, other, passable):
        queue.add(item)
    queue.charge(other, 10)
    wait = queue.bind(bound, 7)
    assert queue.bind(passable, 7) != wait
    assert queue.first() is passable, "its client was served nothing"
    queue.charge(passable, 20)
    assert queue.first() is bound
    assert queue.first({wait}) is other
    queue.charge(other, 5)
    assert queue.first({wait}) is other
    assert queue.first() is bound
    queue.charge(bound, 4)
    assert queue.first({wait}) is bound, "what is left of it may be computed anywhere"
