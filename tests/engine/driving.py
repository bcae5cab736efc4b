"""Runs calls through the engine that a loaded model's path calls for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from scoring_service.engine.attention.pages import LayerShape, PagePool
from scoring_service.engine.events import CallEvent, CallStarted, SampleSlice, ScoreSlice
from scoring_service.engine.loading.loader import LoadedModel
from scoring_service.engine.packed.engine import LogBug, PackedEngine
from scoring_service.engine.worker.service_loop import CallRunner, make_runner
from scoring_service.types import Call


def drive(loaded: LoadedModel, *calls: Call) -> Iterator[CallEvent]:
    """Events of calls submitted together, whose readers take everything at once."""
    runner = make_runner(loaded, _raise)
    for call in calls:
        runner.submit(call)
    yield from finish(runner)
    if isinstance(runner, PackedEngine):
        runner.flush_cache()
        assert loaded.packed is not None
        assert loaded.packed.pool.free == loaded.packed.pool.pages, "pages were lost"


def finish(runner: CallRunner) -> Iterator[CallEvent]:
    """Steps until there is nothing to do; readers take everything at once."""
    while runner.can_step:
        for event in runner.step():
            if isinstance(event, ScoreSlice | SampleSlice):
                runner.add_credit(event.call_id, event.size)
            if not isinstance(event, CallStarted):
                yield event


def engine_of(
    loaded: LoadedModel, pages: int | None = None, log_bug: LogBug | None = None, **settings: Any
) -> PackedEngine:
    """A packed engine with pages of its own, and settings of the test's choice."""
    assert loaded.packed is not None
    pool = loaded.packed.pool
    shapes = [
        LayerShape(keys.shape[0], keys.shape[2], values.shape[2])
        for keys, values in zip(pool.keys, pool.values, strict=True)
    ]
    own = PagePool(shapes, pages or 400, loaded.model.dtype, loaded.model.device)
    return PackedEngine(
        loaded.model,
        own,
        replace(loaded.packed.settings, **settings),
        loaded.info.eos_token_ids,
        loaded.codec,
        b"test",
        log_bug or _raise,
    )


def _raise(_call: Call, error: BaseException) -> None:
    raise error
