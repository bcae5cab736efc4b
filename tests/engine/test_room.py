"""Pages that do not suffice for all calls: who waits, who gives way, what is given back."""

from __future__ import annotations

import numpy as np
import pytest

from scoring_service.engine.events import CallFailed, CallFinished, ScoreSlice
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.runner import INITIAL_CREDIT
from scoring_service.types import RowWants, ScoreCall
from tests.engine.driving import engine_of, finish
from tests.engine.scoring import Group, groups
from tests.engine.seven_ways import (
    assert_equal,
    collect,
    sample,
    sample_call,
    samples_of,
    score,
    score_call,
)


@pytest.mark.parametrize("pages", [19, 23, 40])
def test_samples_give_way_and_come_back(tiny_packed: LoadedModel, pages: int) -> None:
    """With too few pages, the youngest samples stop and are resumed: same tokens, same bits."""
    prompts = [list(range(30)), list(range(50, 75))]
    expected = sample(engine_of(tiny_packed), sample_call(prompts, n=5, max_tokens=60))
    engine = engine_of(tiny_packed, pages=pages)
    call = sample_call(prompts, n=5, max_tokens=60)
    engine.submit(call)
    found = samples_of(finish(engine), 2)
    assert set(found) == set(expected)
    for key in expected:
        assert found[key].bits == expected[key].bits
    assert engine.free_pages == pages


def test_groups_wait_for_room_and_all_are_answered(tiny_packed: LoadedModel) -> None:
    """More prompts, and longer completions, than pages hold at once."""
    rng = np.random.default_rng(0)
    pairs: list[Group] = [
        (rng.integers(0, 2048, 90).tolist(), [rng.integers(0, 2048, 150).tolist()] * 2)
        for _ in range(6)
    ]
    engine = engine_of(tiny_packed, pages=20)
    found = score(engine, pairs)
    assert_equal(found, score(engine_of(tiny_packed), pairs))
    assert engine.free_pages == 20


def test_cancelling_frees_everything_within_a_step(tiny_packed: LoadedModel) -> None:
    engine = engine_of(tiny_packed, pages=60)
    engine.submit(score_call([(list(range(300)), [list(range(200))] * 3)]))
    engine.submit(sample_call([list(range(40))], n=8, max_tokens=500))
    for _ in range(4):
        engine.step()
    assert engine.free_pages < 60
    engine.cancel(1)
    engine.cancel(2)
    assert engine.free_pages == 60
    assert not engine.can_step


def test_a_call_without_credit_waits_and_others_go_on(tiny_packed: LoadedModel) -> None:
    engine = engine_of(tiny_packed)
    wants = RowWants(top_k=2048)
    hungry = ScoreCall(1, tuple(groups([([1], [list(range(1500))])])), wants)
    engine.submit(hungry)
    taken = 0
    while engine.can_step:
        taken += sum(e.size for e in engine.step() if isinstance(e, ScoreSlice))
    assert 6 << 20 < taken < 10 << 20, "a credit of 8 MiB, and a step's worth at most"
    engine.submit(score_call([([5], [[6, 7]])], call_id=2))
    others = [e for e in engine.step() if isinstance(e, CallFinished)]
    assert [e.call_id for e in others] == [2]
    engine.add_credit(1, taken)
    assert engine.can_step


def test_a_call_that_waits_for_pages_gets_them_as_samples_end(tiny_packed: LoadedModel) -> None:
    """Though many more are to be drawn, for which pages are never enough."""
    engine = engine_of(tiny_packed, pages=40)
    engine.submit(sample_call([[5] * 16], n=100, max_tokens=30))
    for _ in range(40):
        engine.step()
    assert engine.free_pages < 12
    engine.submit(score_call([([7] * 160, [[8] * 20])], call_id=3))
    steps = 0
    while not any(isinstance(e, CallFinished) for e in engine.step()):
        steps += 1
        assert steps < 60
    events = list(finish(engine))
    assert [e.call_id for e in events if isinstance(e, CallFinished)] == [2]
    assert engine.free_pages == 40


def test_room_that_a_call_leaves_is_offered_to_those_that_asked_before(
    tiny_packed: LoadedModel,
) -> None:
    """Beside a call whose reader took nothing: without another command nobody would look again."""
    engine = engine_of(tiny_packed, pages=24, chunk_size=16, max_batch_tokens=97)
    engine.submit(sample_call([[5] * 112], n=1, max_tokens=50))
    for _ in range(4):
        engine.step()
    engine.add_credit(2, -INITIAL_CREDIT)
    engine.submit(score_call([([6] * 96, [[6]]), ([7] * 224, [[6]])], call_id=3))
    engine.submit(score_call([([8] * 128, [[6]])], call_id=4))
    events = []
    while engine.can_step:
        events += engine.step()
    assert [e.call_id for e in events if isinstance(e, CallFinished)] == [4]
    assert {e.call_id for e in events if isinstance(e, ScoreSlice)} == {3, 4}
    engine.add_credit(2, INITIAL_CREDIT)
    events = list(finish(engine))
    assert {e.call_id for e in events if isinstance(e, CallFinished)} == {2, 3}


def test_a_deadline_that_passed_costs_nothing(tiny_packed: LoadedModel) -> None:
    engine = engine_of(tiny_packed)
    engine.submit(score_call([([5], [[6, 7]])], deadline=0.0))
    (failed,) = engine.step()
    assert isinstance(failed, CallFailed)
    assert failed.fault.reason == "DEADLINE_EXCEEDED"
    assert not engine.can_step


def test_a_short_completion_leaves_the_rest_of_the_promise_to_a_longer_one(
    tiny_packed: LoadedModel,
) -> None:
    """What a group was promised for its longest completion is nobody else's meanwhile."""
    engine = engine_of(tiny_packed, pages=12, max_batch_tokens=16, chunk_size=16)
    first: list[Group] = [([5] * 16, [[6, 7] * 15, [7, 8, 9] * 37])]
    second: list[Group] = [([8] * 16, [[9, 6] * 63])]
    engine.submit(score_call(first))
    events = list(engine.step())
    engine.submit(score_call(second, call_id=2))
    events += finish(engine)
    assert {e.call_id for e in events if isinstance(e, CallFinished)} == {1, 2}
    found = collect(e for e in events if isinstance(e, ScoreSlice) and e.call_id == 1)
    assert_equal(found, score(engine_of(tiny_packed, chunk_size=16), first))
    engine.flush_cache()
    assert engine.free_pages == 12


def test_a_high_priority_call_gets_the_pages_first(tiny_packed: LoadedModel) -> None:
    """Submitted later, it begins before the others, which fill the pages."""
    engine = engine_of(tiny_packed, pages=10)
    rng = np.random.default_rng(0)
    for call_id in (1, 2, 3):
        pairs: list[Group] = [(rng.integers(0, 2048, 100).tolist(), [[6]])]
        engine.submit(score_call(pairs, call_id=call_id, priority=call_id))
    finished = [e.call_id for e in finish(engine) if isinstance(e, CallFinished)]
    assert finished == [3, 2, 1]
