"""What a pool may not lose when workers die: rows, weights, readers, and which model it was."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest

from scoring_service.engine.events import (
    CallFailed,
    CallFinished,
    LoadFailed,
    ScoreSlice,
    WeightsChanged,
)
from scoring_service.errors import Reason
from scoring_service.pool.weights.sets import WeightSet
from scoring_service.pool.weights.status import Phase, UpdateOptions
from scoring_service.pool.workers.executor import OnEvent, WorkerExited
from scoring_service.pool.workers.owner import WorkerState
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.types import EngineInfo
from tests.pool.scripted import INFO, Scripted, ScriptedExecutor, drain, score_call, settled, until
from tests.pool.staged import MODEL, pool_of
from tests.pool.staged import fault as why_it_fails

OTHER = replace(INFO, weights_digest="other", numerics_id="other")


async def test_a_part_that_was_answered_in_full_does_not_end_a_call_for_the_others() -> None:
    """The last part's end is lost with the worker, and an earlier part is still owed."""
    made = await Scripted(2).start()
    made.pool.workers[1].state = WorkerState.LOADING
    async with made.pool.run(score_call(1, [1], 30, 30, 30, 30)) as stream:
        worker = made.workers[0]
        first, last = worker.calls
        made.pool.workers[1].state = WorkerState.READY
        worker.finish = lambda _call_id: None  # type: ignore[method-assign]
        worker.score(last)
        await settled()
        worker.die("SIGKILL", from_outside=True)
        await settled()
        events = drain(stream)
        assert not stream.ended
        (again,) = made.workers[1].calls
        made.workers[1].score(again)
        await settled()
        events += drain(stream)
    assert isinstance(events[-1], CallFinished)
    answered = [
        (e.completion_index, int(e.block.logprobs[0])) for e in events if isinstance(e, ScoreSlice)
    ]
    assert sorted(answered) == [(index, row) for index in range(4) for row in range(30)]
    assert first != last


async def test_a_worker_that_dies_over_two_parts_of_a_call_leaves_no_weights_in_use() -> None:
    made = await Scripted(1).start()
    worker = made.workers[0]
    async with made.pool.run(score_call(1, [1], *([30] * 4))) as stream:
        assert len(worker.calls) == 2
        worker.die("SIGKILL", from_outside=True)
        await settled()
        assert isinstance(drain(stream)[-1], CallFailed)
    assert made.pool.weights.current.uses == 0
    made.pool.weights.owner.commit(WeightSet(1, INFO))
    assert made.pool.weights.weight_sets.older == []
    await made.pool.drain(0.0)


@pytest.mark.parametrize("calls", [600])
async def test_however_many_calls_end_at_once_every_reader_is_told(
    calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls whose deadline has passed end while others are sent out."""
    made = await Scripted(1, max_queue_tokens=1_000_000).start()
    async with AsyncExitStack() as running:
        deadline = time.monotonic() + 60.0
        streams = [
            await running.enter_async_context(
                made.pool.run(replace(score_call(number, [1], 5), deadline=deadline))
            )
            for number in range(1, calls + 1)
        ]
        begun = set(made.workers[0].calls)
        later = SimpleNamespace(monotonic=lambda: deadline + 1.0)
        monkeypatch.setattr("scoring_service.pool.calls.dispatch.time", later)
        made.workers[0].finish(next(iter(begun)))
        await settled()
        last = [drain(stream)[-1:] for stream in streams]
    told = [e for e in last if e and isinstance(e[0], CallFailed)]
    assert len(told) == calls - len(begun)
    assert {e[0].fault.reason for e in told if isinstance(e[0], CallFailed)} == {
        Reason.DEADLINE_EXCEEDED
    }


async def test_however_many_calls_insist_on_replaced_weights_every_reader_is_told() -> None:
    made = await Scripted(1, max_queue_tokens=1_000_000).start()
    async with AsyncExitStack() as running:
        made.pool.weights.owner.hold_back(replace(INFO, weight_version=2))
        streams = [
            await running.enter_async_context(
                made.pool.run(
                    score_call(number, [1], 5), accepts=lambda info: info.weight_version == 1
                )
            )
            for number in range(1, 401)
        ]
        made.pool.workers[0].weights = {1}
        made.pool.weights.owner.commit(WeightSet(1, replace(INFO, weight_version=2)))
        made.pool.weights.owner.hold_back(None)
        await settled()
        last = [drain(stream)[-1] for stream in streams]
    assert {e.fault.reason for e in last if isinstance(e, CallFailed)} == {
        Reason.WEIGHT_VERSION_MISMATCH
    }
    assert all(isinstance(e, CallFailed) for e in last)


async def test_another_model_under_the_same_path_is_said_so() -> None:
    """The only worker died, and what it loads then has another digest."""
    made = await Scripted(1).start()

    def is_first(info: EngineInfo) -> bool:
        return info.weights_digest == INFO.weights_digest

    async with AsyncExitStack() as running:
        begun = await running.enter_async_context(made.pool.run(score_call(1, [1], 60)))
        waiting = await running.enter_async_context(made.pool.run(score_call(2, [1], 100)))
        insisting = await running.enter_async_context(
            made.pool.run(score_call(3, [1], 60), accepts=is_first)
        )
        assert not waiting.running
        assert not insisting.running

        def prepare(executor: ScriptedExecutor) -> None:
            executor.info = OTHER

        made.prepare = prepare
        made.workers[0].die("SIGKILL", from_outside=True)
        await until(lambda: bool(made.workers[0].calls))
        (call_id,) = made.workers[0].calls
        made.workers[0].score(call_id)
        await settled()
        (failed,) = [e for e in drain(begun) if isinstance(e, CallFailed)]
        assert failed.fault.reason is Reason.WORKER_DIED
        events = drain(waiting)
        (failed,) = drain(insisting)
    assert isinstance(failed, CallFailed)
    assert failed.fault.reason is Reason.WEIGHT_VERSION_MISMATCH
    kinds = [type(e) for e in events]
    assert kinds.index(WeightsChanged) < kinds.index(ScoreSlice)
    (changed,) = [e for e in events if isinstance(e, WeightsChanged)]
    assert changed.info is OTHER
    assert kinds[-1] is CallFinished


async def test_an_update_does_not_follow_another_model_than_it_was_begun_for() -> None:
    """What it leaves out would be that of a model which nobody meant."""
    scripted = await pool_of(1)
    pool = scripted.pool
    update = pool.weights.begin(UpdateOptions(2, base_version=1, partial=True), "")

    def prepare(executor: ScriptedExecutor) -> None:
        executor.info = replace(MODEL, weight_version=5, weights_digest="other")

    scripted.prepare = prepare
    scripted.workers[0].die("SIGKILL", from_outside=True)
    await until(lambda: pool.takes_calls and pool.info.weight_version == 5)
    assert await why_it_fails(update) is Reason.WORKER_DIED
    assert update.status.phase is Phase.FAILED
    assert (pool.info.weight_version, pool.info.weights_digest) == (5, "other")
    await pool.weights.begin(UpdateOptions(6, base_version=5, partial=True), "").commit()
    assert pool.info.weight_version == 6


async def test_a_worker_that_cannot_load_is_not_started_again() -> None:
    made = await Scripted(2, longest_backoff=0.02).start()

    def prepare(executor: ScriptedExecutor) -> None:
        executor.ready_at_once = False
        begin = executor.start

        def start(on_event: OnEvent) -> None:
            begin(on_event)
            on_event(LoadFailed("no such folder"))
            on_event(WorkerExited("exit code 0", from_outside=False))

        executor.start = start  # type: ignore[method-assign]

    made.prepare = prepare
    for index, worker in enumerate(list(made.workers)):
        worker.die("SIGKILL", from_outside=True)
        of_pool = made.pool.workers[index]
        await until(lambda of_pool=of_pool: of_pool.state is WorkerState.GIVEN_UP)
        await asyncio.sleep(0.1)
        assert len(made.starts[index]) == 2
    assert made.pool.state is PoolState.FAILED
    assert made.pool.failure == "no such folder"
