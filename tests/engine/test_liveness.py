"""What has begun can always be finished, whoever waits for whom."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring_service.engine.head.head import RowHead
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
    return score(0, prompt, *lengths, groups=draw(st.integers(1, 3)), priority=priority)


@given(
    made=st.lists(calls(), min_size=1, max_size=8),
    waits=st.lists(st.integers(0, 30), min_size=8, max_size=8),
    cancelled=st.sets(st.integers(1, 8)),
    budget=st.sampled_from([32, 64, 256]),
    beside=st.sampled_from([8, 20, None]),
)
@settings(max_examples=150)
def test_every_call_ends_and_all_pages_come_back(
    made: list[Call], waits: list[int], cancelled: set[int], budget: int, beside: int | None
) -> None:
    engine = EngineWithoutModel(
        PAGES, max_batch_tokens=budget, cuts=beside is not None, beside_samples=beside
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
    engine = EngineWithoutModel(1000, max_batch_tokens=1024, cuts=True, beside_samples=20)
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
