"""Who goes on where calls wait for pages, and where several weights answer by turns."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from scoring_service.engine.events import CallFinished, SampleSlice, ScoreSlice
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.model.context_cost import ContextCost
from scoring_service.engine.packed.calls.call_run import CallRun
from scoring_service.engine.packed.engine import PackedEngine
from scoring_service.engine.packed.planning import planner, scheduler
from scoring_service.engine.weights.model_weights import ModelWeights
from scoring_service.models import tiny_model_path
from scoring_service.types import Processing, RowWants, SampleCall, ScoreCall
from tests.engine.driving import engine_of
from tests.engine.loading import load_model
from tests.engine.sampling import task
from tests.engine.scoring import Group, groups

_numbers = itertools.count(1)


def scores(call_id: int, pairs: list[Group], priority: int = 0) -> ScoreCall:
    return ScoreCall(call_id, tuple(groups(pairs)), RowWants(), priority=priority)


def samples(call_id: int, n: int, max_tokens: int, priority: int = 0) -> SampleCall:
    hot = Processing(temperature=1.5)
    of_one = task([5] * 16, n=n, max_tokens=max_tokens, processing=hot, ignore_eos=True)
    return SampleCall(call_id, (of_one,), priority=priority)


def prompts(count: int, length: int) -> list[Group]:
    """Groups that share nothing."""
    rng = np.random.default_rng(next(_numbers))
    return [(rng.integers(0, 2048, length).tolist(), [[6, 7, 8]]) for _ in range(count)]


def finished(engine: PackedEngine, steps: int) -> list[int]:
    """Calls that end within so many steps."""
    ended = []
    for _ in range(steps):
        if not engine.can_step:
            break
        for event in engine.step():
            if isinstance(event, ScoreSlice | SampleSlice):
                engine.add_credit(event.call_id, event.size)
            elif isinstance(event, CallFinished):
                ended.append(event.call_id)
    return ended


@pytest.fixture
def own(tiny_packed: LoadedModel) -> Iterator[ModelWeights]:
    """The model's weights, which answer again afterwards."""
    weights = tiny_packed.model.weights
    assert weights is not None
    yield weights
    tiny_packed.model.use(weights)


def other(own: ModelWeights, version: int) -> ModelWeights:
    return replace(own, version=version, cache_key=b"%d" % version)


def test_three_weights_answer_by_turns(tiny_packed: LoadedModel, own: ModelWeights) -> None:
    engine = engine_of(tiny_packed, max_batch_tokens=64)
    for call_id in (1, 2, 3):
        engine.submit(scores(call_id, prompts(20, 60)), other(own, call_id))
    versions = [
        event.weight_version
        for _ in range(9)
        for event in engine.step()
        if isinstance(event, ScoreSlice)
    ]
    assert {versions.count(version) for version in (1, 2, 3)} == {3}


def test_calls_that_come_and_go_do_not_keep_other_weights_out(
    tiny_packed: LoadedModel, own: ModelWeights
) -> None:
    engine = engine_of(tiny_packed, max_batch_tokens=64)
    first, second = other(own, 1), other(own, 2)
    engine.submit(scores(1, prompts(4, 60)), first)
    ended: list[int] = []
    for call_id in range(2, 22):
        engine.submit(scores(call_id, prompts(1, 60)), second)
        ended += finished(engine, 1)
    assert 1 in ended


def test_weights_that_nobody_uses_any_more_are_let_go(
    tiny_packed: LoadedModel, own: ModelWeights
) -> None:
    engine = engine_of(tiny_packed)
    head = replace(own.head, prepared=own.head.prepared.clone())
    memory = weakref.ref(head.prepared)
    weights = replace(own, head=head)
    engine.submit(scores(1, prompts(1, 20)), weights)
    assert finished(engine, 5) == [1]
    tiny_packed.model.use(own)
    del weights, head
    gc.collect()
    assert memory() is None


def test_a_call_gets_what_samples_leave_though_other_weights_have_turns_between(
    tiny_packed: LoadedModel, own: ModelWeights
) -> None:
    engine = engine_of(tiny_packed, pages=40)
    engine.submit(samples(1, n=100, max_tokens=30), own)
    finished(engine, 40)
    engine.submit(scores(2, prompts(80, 30)), other(own, 2))
    engine.submit(scores(3, prompts(1, 300)), own)
    assert finished(engine, 60) == [3]
    engine.cancel(1)
    assert finished(engine, 100) == [2]
    assert engine.free_pages == 40


def test_urgent_samples_leave_nothing_to_a_call_that_is_not(tiny_packed: LoadedModel) -> None:
    """Both need a fourth page each, and the call waits for more than there is."""

    def steps(company: bool) -> int:
        engine = engine_of(tiny_packed, pages=24)
        engine.submit(samples(1, n=2, max_tokens=62, priority=1))
        finished(engine, 40)
        assert engine.free_pages == 17
        if company:
            engine.submit(scores(2, prompts(1, 280)))
        for count in itertools.count():
            if 1 in finished(engine, 1):
                return count
        raise AssertionError

    assert steps(company=True) == steps(company=False)


def test_urgent_samples_take_pages_of_older_ones(tiny_packed: LoadedModel) -> None:
    engine = engine_of(tiny_packed, pages=12)
    engine.submit(samples(1, n=8, max_tokens=100))
    finished(engine, 30)
    assert engine.free_pages == 0
    engine.submit(samples(2, n=1, max_tokens=100, priority=1))
    assert finished(engine, 105) == [2]
    assert finished(engine, 2000) == [1]
    assert engine.free_pages == 12


def test_an_urgent_call_does_not_wait_for_all_that_is_not(tiny_packed: LoadedModel) -> None:
    """Its one prompt needs nearly all pages, and there are always some of the others' in use."""
    engine = engine_of(tiny_packed, pages=24, max_batch_tokens=64)
    engine.submit(scores(1, prompts(200, 90)))
    finished(engine, 5)
    engine.submit(scores(2, prompts(1, 300), priority=1))
    assert finished(engine, 20) == [2]


def test_a_large_call_is_not_starved_of_pages_by_small_ones(tiny_packed: LoadedModel) -> None:
    engine = engine_of(tiny_packed, pages=24, max_batch_tokens=64)
    engine.submit(scores(1, prompts(2, 90)))
    ended: list[int] = []
    for call_id in range(2, 60):
        if call_id == 5:
            engine.submit(scores(1000, prompts(1, 300)))
        engine.submit(scores(call_id, prompts(2, 90)))
        ended += finished(engine, 2)
    assert 1000 in ended


def test_a_step_of_one_token_leaves_room_for_scoring_too(tiny_packed: LoadedModel) -> None:
    engine = engine_of(tiny_packed, max_batch_tokens=1)
    engine.submit(samples(1, n=1, max_tokens=200))
    finished(engine, 5)
    engine.submit(scores(2, prompts(1, 20)))
    assert finished(engine, 20) == [2]


def test_small_calls_go_on_where_waiting_leads_nowhere(tiny_packed: LoadedModel) -> None:
    """A reader that takes nothing keeps pages that a large call waits for: small ones go on."""
    engine = engine_of(tiny_packed, pages=24, max_batch_tokens=64)
    engine.submit(scores(1, [(list(range(90)), [[6] * 60, [7] * 60])]))
    for _ in range(2):
        engine.step()
    engine.add_credit(1, -(1 << 40))
    engine.submit(scores(2, prompts(1, 300)))
    finished(engine, 2)
    engine.submit(scores(3, prompts(1, 30)))
    assert finished(engine, 20) == [3]
    engine.add_credit(1, 1 << 41)
    assert set(finished(engine, 50)) == {1, 2}
    assert engine.free_pages == 24


def test_nor_do_they_wait_while_a_sample_is_drawn(tiny_packed: LoadedModel) -> None:
    engine = engine_of(tiny_packed, pages=40, max_batch_tokens=64)
    engine.submit(scores(1, [(list(range(190)), [[6] * 60, [7] * 60])]))
    for _ in range(4):
        engine.step()
    engine.add_credit(1, -(1 << 40))
    engine.submit(samples(4, n=1, max_tokens=200))
    finished(engine, 2)
    engine.submit(scores(2, prompts(1, 450)))
    finished(engine, 2)
    engine.submit(scores(3, prompts(1, 30)))
    assert finished(engine, 20) == [3]


def test_completions_go_on_side_by_side_where_that_keeps_nobody_waiting(
    tiny_packed: LoadedModel,
) -> None:
    """The large call waits for the prompt of the group, not for what its completions take."""

    def steps(company: bool) -> int:
        engine = engine_of(tiny_packed, pages=60, max_batch_tokens=256)
        rng = np.random.default_rng(4)
        texts = [rng.integers(0, 2048, 100).tolist() for _ in range(12)]
        engine.submit(scores(1, [(list(range(400)), texts)]))
        engine.step()
        if company:
            engine.submit(scores(2, prompts(1, 800)))
        for count in itertools.count():
            if 1 in finished(engine, 1):
                return count
        raise AssertionError

    assert steps(company=True) <= steps(company=False) + 1


def test_newcomers_do_not_go_before_who_computes_since_long(tiny_packed: LoadedModel) -> None:
    """However little a sample beside them was served."""
    # Just what comes anew, a step each.
    fits = {"max_batch_tokens": 64, "beside_samples": 64, "cuts": ContextCost()}
    engine = engine_of(tiny_packed, **fits)
    engine.submit(samples(1, n=1, max_tokens=200))
    engine.submit(scores(2, prompts(12, 60)))
    ended: list[int] = []
    for call_id in range(3, 120):
        engine.submit(scores(call_id, prompts(1, 60)))
        ended += finished(engine, 1)
    assert 2 in ended


@pytest.mark.parametrize("priority", [0, 1])
@pytest.mark.parametrize("limits", [{"max_samples": 8}, {"max_batch_tokens": 8}])
def test_a_sample_does_not_wait_for_all_of_another_call(
    tiny_packed: LoadedModel, limits: dict[str, int], priority: int
) -> None:
    """However many that one has: its last ones wait, and end as they would have."""
    engine = engine_of(tiny_packed, **limits)
    engine.submit(samples(1, n=20, max_tokens=60))
    finished(engine, 10)
    engine.submit(samples(2, n=1, max_tokens=3, priority=priority))
    assert finished(engine, 6) == [2]
    assert finished(engine, 1000) == [1]


def test_an_urgent_call_samples_as_if_it_were_alone(tiny_packed: LoadedModel) -> None:
    def steps(company: bool) -> int:
        engine = engine_of(tiny_packed, max_samples=8)
        if company:
            engine.submit(samples(1, n=20, max_tokens=60))
            finished(engine, 10)
        engine.submit(samples(2, n=16, max_tokens=10, priority=1))
        return next(count for count in itertools.count() if 2 in finished(engine, 1))

    assert steps(company=True) <= steps(company=False) + 1


def test_samples_that_were_kept_waiting_draw_what_they_would_have_drawn(
    tiny_packed: LoadedModel,
) -> None:
    def drawn(company: bool) -> dict[int, list[int]]:
        engine = engine_of(tiny_packed, max_samples=4, pages=40)
        engine.submit(samples(1, n=4, max_tokens=40))
        found: dict[int, list[int]] = {}
        for count in range(400):
            if company and count in (7, 21, 30):
                engine.submit(samples(100 + count, n=3, max_tokens=5))
            for event in engine.step() if engine.can_step else []:
                if isinstance(event, SampleSlice):
                    engine.add_credit(event.call_id, event.size)
                    if event.call_id == 1:
                        found.setdefault(event.sample_index, []).extend(event.token_ids)
        return found

    assert drawn(company=True) == drawn(company=False)


def test_samples_that_wait_for_their_turn_are_counted_beforehand() -> None:
    """There may be more of them than a step has tokens, and each remembers where its keys are."""
    loaded = load_model(tiny_model_path(), max_batch_tokens=8)
    assert loaded.info.limits is not None
    engine = engine_of(loaded)
    engine.submit(samples(1, n=20, max_tokens=50))
    finished(engine, 30)
    under_way = len(engine._room._samples)
    assert 8 < under_way <= loaded.info.limits.max_samples


@pytest.mark.parametrize(("priority", "order"), [(-1000, [1, 2]), (0, [2, 1])])
def test_a_call_that_is_alone_has_its_place_by_priority(
    tiny_packed: LoadedModel, priority: int, order: list[int]
) -> None:
    """An audit waits for all; what is computed alone after a failure has every other turn."""
    engine = engine_of(tiny_packed, max_batch_tokens=64)
    engine.submit(scores(1, prompts(20, 60)))
    engine.submit(scores(2, prompts(10, 60), priority), alone=True)
    assert finished(engine, 100) == order


def test_a_crowd_does_not_wait_for_all_that_are_alone(tiny_packed: LoadedModel) -> None:
    """What failed in company is computed again, each by itself: samples as long as they last."""
    engine = engine_of(tiny_packed, max_batch_tokens=64)
    for call_id in (1, 2):
        engine.submit(samples(call_id, n=1, max_tokens=60), alone=True)
    finished(engine, 4)
    engine.submit(scores(3, prompts(1, 60)))
    assert finished(engine, 6) == [3]


def test_a_step_with_a_thousand_waiting_calls_looks_at_each_a_few_times(
    tiny_packed: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that wait for room it is the turn of one after another, all in one step."""
    engine = engine_of(tiny_packed, pages=100, max_batch_tokens=1024)
    for call_id in range(1000):
        engine.submit(scores(call_id, prompts(1, 48)))
    finished(engine, 2)
    looks = asked = 0
    fill = CallRun.fill

    def counted(*arguments: float) -> scheduler.Place:
        nonlocal looks
        looks += 1
        return scheduler.place(*arguments)  # type: ignore[arg-type]

    def told(run: CallRun, tokens: int) -> None:
        nonlocal asked
        asked += 1
        fill(run, tokens)

    monkeypatch.setattr(planner, "place", counted)
    monkeypatch.setattr(CallRun, "fill", told)
    ended = finished(engine, 1)
    assert 10 < len(ended) < 40
    assert looks < 6 * 1000
    assert asked <= len(ended) + 2 * 64


def test_a_small_call_goes_on_behind_many_that_cannot(tiny_packed: LoadedModel) -> None:
    """Pages that a reader keeps are waited for by more calls than are asked in one step."""
    engine = engine_of(tiny_packed, pages=24, max_batch_tokens=64)
    engine.submit(scores(1, [(list(range(90)), [[6] * 60, [7] * 60])]))
    for _ in range(2):
        engine.step()
    engine.add_credit(1, -(1 << 40))
    for call_id in range(10, 90):
        engine.submit(scores(call_id, prompts(1, 300), priority=1))
    finished(engine, 2)
    engine.submit(scores(2, prompts(1, 30)))
    assert finished(engine, 20) == [2]
