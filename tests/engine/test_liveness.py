"""What has begun can always be finished, whoever waits for whom."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring_service.engine.head.head import RowHead
from scoring_service.engine.model.context_cost import ContextCost
from scoring_service.engine.weights.model_weights import ModelWeights
from scoring_service.types import PAGE_TOKENS, Call
from tests.engine.without_model import EngineWithoutModel, sample, score

PAGES = 60


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """A call that fits into the pages, if it has them for itself."""
    priority = draw(st.integers(-1, 1))
    prompt = draw(st.integers(1, 30 * PAGE_TOKENS))
    # A prompt's pages are counted by chunk, so one more may be begun.
    left = PAGES - -(-prompt // PAGE_TOKENS) - 1
    longest = draw(st.integers(1, (left - 1) * PAGE_TOKENS))
    if draw(st.booleans()):
        return sample(0, prompt, longest, draw(st.integers(1, 6)), priority)
    lengths = draw(st.lists(st.integers(1, longest), min_size=1, max_size=4))
    rows = draw(st.none() | st.integers(1, longest))
    groups = draw(st.integers(1, 3))
    return score(0, prompt, *lengths, groups=groups, priority=priority, rows=rows)


@given(
    made=st.lists(calls(), min_size=1, max_size=8),
    waits=st.lists(st.integers(0, 30), min_size=8, max_size=8),
    cancelled=st.sets(st.integers(1, 8)),
    budget=st.sampled_from([32, 64, 256]),
    beside=st.sampled_from([8, 20, None]),
    doubling=st.sampled_from([10.0, inf]),
)
@settings(max_examples=150)
def test_every_call_ends_and_all_pages_come_back(
    made: list[Call],
    waits: list[int],
    cancelled: set[int],
    budget: int,
    beside: int | None,
    doubling: float,
) -> None:
    engine = EngineWithoutModel(
        PAGES,
        max_batch_tokens=budget,
        cuts=None if beside is None else ContextCost(doubling),
        beside_samples=beside,
    )
    ended = []
    for call_id, (call, wait) in enumerate(zip(made, waits, strict=False), start=1):
        engine.submit(replace(call, call_id=call_id))
        ended += engine.run(wait)
        if call_id in cancelled:
            engine.cancel(call_id)
    ended += engine.run(100_000)
    missing = set(range(1, len(made) + 1)) - cancelled - set(ended)
    assert not missing
    engine.flush_cache()
    assert engine.free_pages == PAGES


def test_samples_to_come_have_their_pages_from_when_their_prompt_is_read() -> None:
    """It is read piece by piece beside another sample, and a second call comes meanwhile."""
    engine = EngineWithoutModel(1000, max_batch_tokens=1024, cuts=ContextCost(), beside_samples=20)
    engine.submit(sample(9, 16, 300, n=2))
    engine.run(3)
    engine.submit(sample(1, 1000, 700 * PAGE_TOKENS))
    engine.run(10)
    engine.submit(sample(2, 400 * PAGE_TOKENS, 500 * PAGE_TOKENS))
    assert set(engine.run(40_000)) == {1, 2, 9}
    assert engine.free_pages + 400 + 63 + 1 >= 1000


@pytest.mark.parametrize("completion", [128, 120])
def test_a_call_that_was_answered_ends_behind_urgent_ones(completion: int) -> None:
    """Its last units may be exactly what a step holds: nobody asks it for more then."""
    engine = EngineWithoutModel(4000, max_batch_tokens=256)
    engine.submit(score(1, 128, completion, priority=-1))
    ended = engine.run(1)
    for step in range(10):
        for call_id in range(2, 10):
            engine.submit(score(10 * step + call_id, 60, 70))
        ended += engine.run(1)
    assert 1 in ended


def test_a_small_call_goes_on_beside_any_number_that_has_no_room() -> None:
    """A reader that takes nothing keeps half of the pages while a sample is drawn: what waits for
    more than the rest waits for long, and nothing is kept for it."""
    engine = EngineWithoutModel(400, max_batch_tokens=256)
    engine.submit(score(1, 190 * PAGE_TOKENS, 600, 600))
    while not engine._calls.by_id[1].completions:
        engine.run(1)
    engine.add_credit(1, -(1 << 40))
    engine.submit(sample(4, 16, 1500))
    engine.run(3)
    for call_id in range(10, 90):
        engine.submit(score(call_id, 300 * PAGE_TOKENS, 8, priority=1))
    engine.run(3)
    engine.submit(score(5000, 30, 8))
    assert engine.run(5) == [5000]


@pytest.mark.parametrize("budget", [128, 256, 1024])
@pytest.mark.parametrize("own", [40, 60, 80])
@pytest.mark.parametrize(("prompt", "completions"), [(240, [300]), (60, [60] * 8)])
def test_a_long_sample_begins_however_much_scoring_comes_after_it(
    budget: int, own: int, prompt: int, completions: list[int]
) -> None:
    """Each small group leaves it a page less than it may come to need, if nobody keeps them."""
    engine = EngineWithoutModel(100, max_batch_tokens=budget)
    numbers = iter(range(10, 10_000))
    ended = []
    for step in range(200):
        while len(engine._calls.by_id) < 12:
            engine.submit(score(next(numbers), prompt, *completions))
        if step == 5:
            engine.submit(sample(3, 10 * PAGE_TOKENS, own * PAGE_TOKENS))
        ended += engine.run(1)
        if step > 5 and (engine._calls.by_id[3].units or engine._calls.by_id[3].samples):
            break
    assert len(ended) < 30


def test_samples_take_the_pages_of_one_whose_reader_takes_nothing() -> None:
    engine = EngineWithoutModel(100, max_batch_tokens=256)
    engine.submit(sample(1, 16, 90 * PAGE_TOKENS))
    engine.run(85 * PAGE_TOKENS)
    engine.add_credit(1, -(1 << 40))
    engine.submit(sample(2, 16, 30 * PAGE_TOKENS))
    engine.submit(score(3, 5 * PAGE_TOKENS, 30))
    assert set(engine.run(5000)) == {2, 3}
    engine.add_credit(1, 1 << 41)
    assert engine.run(5000) == [1]


def test_small_calls_go_on_where_a_sample_whose_reader_takes_nothing_is_waited_for() -> None:
    engine = EngineWithoutModel(100, max_batch_tokens=256)
    engine.submit(sample(1, 16, 50 * PAGE_TOKENS))
    engine.run(45 * PAGE_TOKENS)
    engine.add_credit(1, -(1 << 40))
    engine.submit(sample(4, 16, 20 * PAGE_TOKENS))
    engine.run(3)
    engine.submit(score(2, 60 * PAGE_TOKENS, 8))
    engine.run(2)
    ended = []
    for call_id in range(100, 130):
        engine.submit(score(call_id, 30, 8))
        ended += engine.run(1)
    assert set(ended) | set(engine.run(10)) >= set(range(100, 130))


def test_who_waits_alone_lends_no_urgency_to_others_on_its_weights() -> None:
    """As an audit does, which goes on when nothing else does: others come before it."""
    engine = EngineWithoutModel(4000, max_batch_tokens=256)
    old, new = weights(1), weights(2)
    engine.submit(score(1, 60, 60, groups=20), old)
    engine.run(1)
    engine.submit(score(2, 60, 60, priority=-1000), new, alone=True)
    ended = []
    for step in range(60):
        for call_id in range(3, 7):
            engine.submit(score(10 * step + call_id, 60, 60), new)
        ended += engine.run(1)
    assert 1 in ended
    assert 2 not in ended
    assert 2 in engine.run(1000)


def weights(version: int) -> ModelWeights:
    """Of a version; nothing is computed with them."""
    return ModelWeights(version, "", "", b"%d" % version, cast(RowHead, None))
