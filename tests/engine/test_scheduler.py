"""What joins a step: shares, priorities, deadlines, and nobody starving."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring_service.engine.model.context_cost import ContextCost
from scoring_service.engine.packed.planning import scheduler
from scoring_service.engine.packed.planning.scheduler import MIN_PIECE, Offer, prefill_budget
from scoring_service.engine.packed.planning.scheduler import share as share_by_turns

TURN = 100


def offer(
    call_id: int,
    sizes: list[int],
    served: float = 0.0,
    priority: int = 0,
    deadline: float = math.inf,
    left: int | None = None,
    positions: list[int] | None = None,
) -> Offer:
    return Offer(
        call_id=call_id,
        priority=priority,
        served=served,
        left=sum(sizes) if left is None else left,
        deadline=deadline,
        sizes=sizes,
        positions=positions or [0] * len(sizes),
    )


def share(offers: list[Offer], budget: int, turn: int = TURN) -> dict[int, int]:
    """How many whole segments of each call."""
    shares = share_by_turns(offers, budget, turn)
    sizes = {o.call_id: o.sizes for o in offers}
    for call_id, found in shares.items():
        assert list(found.tokens) == list(sizes[call_id][: len(found.tokens)])
    return {call_id: len(found.tokens) for call_id, found in shares.items()}


def cut_share(
    offers: list[Offer], budget: int, doubling: float = math.inf
) -> dict[int, tuple[int, ...]]:
    shares = share_by_turns(offers, budget, TURN, ContextCost(doubling))
    return {call_id: found.tokens for call_id, found in shares.items()}


def test_a_small_call_goes_before_a_large_one() -> None:
    assert share([offer(1, [64] * 100), offer(2, [20])], 256) == {1: 3, 2: 1}
    assert share([offer(1, [64] * 100), offer(2, [20])], 64) == {2: 1}


def test_who_had_fewer_turns_goes_first() -> None:
    large_and_new = offer(2, [64] * 9, served=TURN)
    assert share([offer(1, [64], served=2 * TURN), large_and_new], 64) == {2: 1}


def test_large_calls_go_by_turns() -> None:
    assert share([offer(1, [50] * 20), offer(2, [50] * 20)], 400) == {1: 4, 2: 4}


def test_within_a_turn_a_call_that_was_begun_goes_on() -> None:
    """Side by side, both would end as late as the second does so."""
    assert share([offer(1, [30] * 3), offer(2, [30] * 2, served=30)], 60) == {2: 2}
    assert share([offer(1, [30] * 3), offer(2, [30] * 3)], 90) == {1: 3}


def test_what_is_left_counts_beyond_what_can_join() -> None:
    assert share([offer(1, [10], left=5000), offer(2, [30, 30])], 30) == {2: 1}


def test_the_higher_priority_takes_everything_it_can() -> None:
    offers = [offer(1, [64] * 10), offer(2, [64, 64], served=1e9, priority=1)]
    assert share(offers, 256) == {2: 2, 1: 2}


def test_the_earlier_deadline_breaks_a_tie() -> None:
    assert share([offer(1, [64], deadline=9.0), offer(2, [64], deadline=5.0)], 64) == {2: 1}


def test_a_segment_beyond_the_budget_goes_alone() -> None:
    assert share([offer(1, [64, 64]), offer(2, [10], served=TURN)], 32) == {1: 1}
    assert share([offer(2, [10]), offer(1, [64, 64], served=TURN)], 32) == {2: 1}


def test_one_that_does_not_fit_does_not_hold_up_others() -> None:
    assert share([offer(1, [60, 60]), offer(2, [30, 30, 30, 30])], 100) == {1: 1, 2: 1}


def test_nothing_to_do() -> None:
    assert share([], 100) == {}
    assert share([offer(1, [])], 100) == {}


def test_a_segment_is_cut_where_that_is_allowed() -> None:
    assert cut_share([offer(1, [64, 64])], 24) == {1: (24,)}
    assert cut_share([offer(1, [16, 64])], 24) == {1: (16, 8)}
    assert cut_share([offer(1, [64]), offer(2, [10])], 24) == {2: (10,), 1: (12,)}


def test_nothing_is_cut_for_a_few_tokens_or_all_but_one() -> None:
    assert cut_share([offer(1, [20, 64])], 24) == {1: (20,)}
    assert cut_share([offer(1, [25])], 24) == {1: (23,)}
    assert cut_share([offer(1, [9])], 8) == {1: (9,)}


def test_fewer_tokens_join_where_each_attends_to_many() -> None:
    early, late = offer(1, [64], positions=[0]), offer(1, [64], positions=[3000])
    assert cut_share([early], 28, doubling=3000) == {1: (28,)}
    assert cut_share([late], 28, doubling=3000) == {1: (12,)}
    assert share_by_turns([late], 28, TURN, ContextCost(3000))[1].cost == 24
    # What is left of a budget after a token at the end is worth more at a beginning.
    assert cut_share([offer(1, [10, 64], positions=[3000, 0])], 40, doubling=3000) == {1: (10, 20)}


def test_pieces_have_few_sizes() -> None:
    """On a CPU the products of each are compiled, and kept."""
    positions = range(0, 9000, 7)
    sizes = {
        cut_share([offer(1, [64], positions=[position])], 28, doubling=3000)[1]
        for position in positions
    }
    assert sizes == {(size,) for size in (8, 12, 16, 20, 24, 28)}


def test_however_long_the_context_something_joins() -> None:
    assert cut_share([offer(1, [64], positions=[300_000])], 28, doubling=3000) == {1: (MIN_PIECE,)}
    assert cut_share([offer(1, [64])], 3) == {1: (MIN_PIECE,)}


def test_places_are_found_once_for_each_call_and_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be a thousand calls, and a device waits for each step's plan."""
    found: list[int] = []

    def counted(offer: Offer, *more: int) -> scheduler.Place:
        found.append(offer.call_id)
        return place_after(offer, *more)

    place_after = scheduler._place_after
    monkeypatch.setattr(scheduler, "_place_after", counted)
    assert sum(share([offer(call, [16] * 3) for call in range(1000)], 8192).values()) == 512
    assert len(found) <= 1000 + 512


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
    """Everybody who waits gets a turn in every two steps a call.

    Who has fewest turns leads a step, with all of its segments that fit; so two of those are more
    than a turn, where steps and turns are as long. What others leave room for may put somebody
    further ahead: that takes nothing from anybody.
    """
    left = dict(enumerate(calls))
    served = dict.fromkeys(left, 0)
    for step in range(sum(map(len, calls)) + 1):
        offers = [offer(call, sizes, served[call]) for call, sizes in left.items() if sizes]
        if not offers:
            break
        assert min(served[o.call_id] for o in offers) // 64 >= step // (2 * len(calls))
        for call, count in share(offers, 64, turn=64).items():
            served[call] += sum(left[call][:count])
            left[call] = left[call][count:]
    assert not any(left.values())


def test_scoring_beside_decoding() -> None:
    assert prefill_budget(1024, 0, 64) == 1024
    assert prefill_budget(1024, 3, 64) == 64
    assert prefill_budget(1024, 200, 64) == 200
    assert prefill_budget(100, 90, 64) == 10
    assert prefill_budget(32, 40, 64) == 0
