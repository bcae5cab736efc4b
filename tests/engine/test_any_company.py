"""Whatever is asked, in whatever company: the same numbers as alone, and nothing left behind.

Few pages, so that samples are preempted; steps and shares of samples of several sizes; readers that
stop taking for a while; calls that are left in the middle.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pytest

from scoring_service.engine.events import (
    CallEvent,
    CallFailed,
    CallFinished,
    ItemFailed,
    SampleSlice,
    ScoreSlice,
)
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.packed.engine import PackedEngine
from scoring_service.engine.runner import INITIAL_CREDIT
from scoring_service.models import tiny_model_path
from scoring_service.types import Call, RowBlock, SampleCall
from tests.engine.driving import engine_of
from tests.engine.loading import load_model
from tests.engine.random_calls import RandomCalls
from tests.engine.sampling import task
from tests.engine.soundness import assert_sound
from tests.intensity import short_or_long

LONGEST_SAMPLE = 90
"""Call id of one that draws all the time, so that others join its steps."""


@pytest.fixture(
    scope="module", params=[("float32", 64), ("bfloat16", 16)], ids=["float32", "bfloat16"]
)
def tiny(request: pytest.FixtureRequest) -> LoadedModel:
    dtype, chunk_size = request.param
    return load_model(tiny_model_path(), dtype=dtype, chunk_size=chunk_size)


@dataclass
class Answers:
    """What came, by call and item: every number by its name."""

    items: dict[tuple[int, ...], dict[str, Any]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    unread: dict[int, int] = field(default_factory=dict)
    """Bytes that the reader of a call did not take yet."""

    def take(self, events: Iterable[CallEvent]) -> None:
        for event in events:
            assert not isinstance(event, CallFailed | ItemFailed), event
            if isinstance(event, CallFinished):
                self.ended.add(event.call_id)
            elif isinstance(event, ScoreSlice | SampleSlice):
                self._add(event)
                self.unread[event.call_id] = self.unread.get(event.call_id, 0) + event.size

    def _add(self, event: ScoreSlice | SampleSlice) -> None:
        scored = isinstance(event, ScoreSlice)
        if scored:
            item = self.items.setdefault(
                (event.call_id, event.group_index, event.completion_index), {}
            )
            numbers: Any = event.block
            names = [f.name for f in fields(RowBlock) if f.name != "rows"]
            item.setdefault("rows", []).extend(range(event.start, event.start + numbers.rows))
        else:
            item = self.items.setdefault(
                (event.call_id, event.prompt_index, event.sample_index), {}
            )
            numbers = event
            names = ["token_ids", "logprobs", "processed_logprobs", "top_token_ids", "top_logprobs"]
            item["text"] = item.get("text", "") + event.text
            item["end"] = event.finish_reason, event.matched_stop
        assert not item.get("last"), "something comes after the last slice"
        item["last"] = event.last
        for name in names:
            found = getattr(numbers, name)
            if found is not None:
                item[name] = item.get(name, b"") + found.tobytes()

    def of(self, call_id: int) -> dict[tuple[int, ...], dict[str, Any]]:
        return {key: item for key, item in self.items.items() if key[0] == call_id}

    def read(self, engine: PackedEngine) -> None:
        """Readers take everything."""
        for call_id, size in self.unread.items():
            engine.add_credit(call_id, size)
        self.unread.clear()


def alone(loaded: LoadedModel, call: Call) -> Answers:
    engine, answers = engine_of(loaded), Answers()
    engine.submit(call)
    while engine.can_step:
        answers.take(engine.step())
        answers.read(engine)
    assert answers.ended == {call.call_id}
    return answers


def together(
    loaded: LoadedModel, calls: list[Call], left: set[int], rng: np.random.Generator
) -> tuple[Answers, PackedEngine, int]:
    """All of them at random times; some are left after a while."""
    pages = int(rng.choice([30, 33, 36, 45]))
    engine = engine_of(
        loaded,
        pages=pages,
        max_batch_tokens=int(rng.choice([32, 100, 512])),
        max_samples=int(rng.choice([2, 5, 256])),
    )
    answers, waiting = Answers(), list(calls)
    long = task([4, 5], n=1, max_tokens=int(rng.integers(60, 300)), ignore_eos=True)
    engine.submit(SampleCall(LONGEST_SAMPLE, (long,)))
    for _ in range(20_000):
        if waiting and (rng.random() < 0.5 or not engine.can_step):
            call = waiting.pop(0)
            engine.submit(call)
            if rng.random() < 0.3:
                # Its reader takes little at first.
                few = int(rng.integers(1, 3000))
                engine.add_credit(call.call_id, few - INITIAL_CREDIT)
                answers.unread[call.call_id] = INITIAL_CREDIT - few
        for call_id in [call_id for call_id in left if rng.random() < 0.02]:
            engine.cancel(call_id)
        if engine.can_step:
            answers.take(engine.step())
            assert_sound(engine)
        if rng.random() < 0.3 or not engine.can_step:
            answers.read(engine)
        if not (waiting or engine.can_step or answers.unread):
            return answers, engine, pages
    raise AssertionError("they never end")


@pytest.mark.parametrize("seed", range(int(short_or_long(8, 400))))
def test_the_same_numbers_as_alone(tiny: LoadedModel, seed: int) -> None:
    made = RandomCalls(seed, tiny.info.vocab_size)
    calls = [made.call(call_id) for call_id in range(1, int(made.rng.integers(5, 10)))]
    left = {call.call_id for call in calls if made.rng.random() < 0.15}
    answers, engine, pages = together(tiny, calls, left, made.rng)
    for call in calls:
        if call.call_id not in left:
            assert answers.of(call.call_id) == alone(tiny, call).of(call.call_id), call
            assert call.call_id in answers.ended
    for call in calls:
        engine.cancel(call.call_id)
    engine.flush_cache()
    assert engine.free_pages == pages
    assert engine._room.free == pages
    assert engine._room._held_by_samples == 0
    assert engine._room._longest == 0
