"""What joins a step: shares, priorities, deadlines, and nobody starving."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from scoring_service.engine.packed.scheduler import Offer, prefill_budget, share


def offer(
    call_id: int,
    sizes: list[int],
    served: float = 0.0,
    priority: int = 0,
    deadline: float = math.inf,
) -> Offer:
    return Offer(call_id, priority, served, deadline, sizes)


def test_a_small_call_goes_beside_a_large_one() -> None:
    assert share([offer(1, [64] * 100), offer(2, [20])], 256) == {1: 3, 2: 1}


def test_who_was_served_least_goes_first() -> None:
    assert share([offer(1, [64], served=500), offer(2, [64], served=100)], 64) == {2: 1}


def test_equal_calls_get_equal_shares() -> None:
    assert share([offer(1, [32] * 20), offer(2, [32] * 20)], 320) == {1: 5, 2: 5}


def test_the_higher_priority_takes_everything_it_can() -> None:
    offers = [offer(1, [64] * 10), offer(2, [64, 64], served=1e9, priority=1)]
    assert share(offers, 256) == {2: 2, 1: 2}


def test_the_earlier_deadline_breaks_a_tie() -> None:
    assert share([offer(1, [64], deadline=9.0), offer(2, [64], deadline=5.0)], 64) == {2: 1}


def test_a_segment_beyond_the_budget_goes_alone() -> None:
    assert share([offer(1, [64, 64]), offer(2, [10])], 32) == {1: 1}
    assert share([offer(2, [10]), offer(1, [64, 64], served=1.0)], 32) == {2: 1}


def test_one_that_does_not_fit_does_not_hold_up_others() -> None:
    assert share([offer(1, [60, 60]), offer(2, [30, 30])], 100) == {1: 1, 2: 1}


def test_nothing_to_do() -> None:
    assert share([], 100) == {}
    assert share([offer(1, [])], 100) == {}


OFFERS = st.lists(
    st.tuples(st.lists(st.integers(1, 300), max_size=12), st.floats(0, 1e6), st.integers(-2, 2)),
    max_size=6,
).map(
    lambda drawn: [
        offer(i, sizes, served, priority) for i, (sizes, served, priority) in enumerate(drawn)
    ]
)


@given(OFFERS, st.integers(1, 1000))
def test_budgets_hold_and_steps_get_somewhere(offers: list[Offer], budget: int) -> None:
    taken = share(offers, budget)
    sizes = {o.call_id: o.sizes for o in offers}
    used = sum(sum(sizes[call][:count]) for call, count in taken.items())
    segments = sum(taken.values())
    assert used <= budget or segments == 1
    assert bool(taken) == any(o.sizes for o in offers)
    assert all(0 < count <= len(sizes[call]) for call, count in taken.items())


@given(st.lists(st.lists(st.integers(1, 64), min_size=1, max_size=30), min_size=2, max_size=5))
def test_everybody_finishes_and_nobody_waits_for_all_others(calls: list[list[int]]) -> None:
    """Served by turns, no call waits longer than its fair share of the work before its end."""
    left = dict(enumerate(calls))
    served = dict.fromkeys(left, 0.0)
    for _ in range(sum(map(len, calls)) + 1):
        offers = [offer(call, sizes, served[call]) for call, sizes in left.items() if sizes]
        if not offers:
            break
        for call, count in share(offers, 64).items():
            served[call] += sum(left[call][:count])
            left[call] = left[call][count:]
        waiting = [served[call] for call, sizes in left.items() if sizes]
        if len(waiting) > 1:
            # Nobody is ahead of anybody who still waits by more than a step.
            assert max(waiting) - min(waiting) <= 2 * 64
    assert not any(left.values())


def test_scoring_beside_decoding() -> None:
    assert prefill_budget(1024, 0, 64) == 1024
    assert prefill_budget(1024, 3, 64) == 64
    assert prefill_budget(1024, 200, 64) == 200
    assert prefill_budget(100, 90, 64) == 10
    assert prefill_budget(32, 40, 64) == 0
