"""Workers that die, or cannot be started: their calls move, or end with the reason."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest

from scoring_service.engine.events import (
    CallFailed,
    CallFinished,
    Heartbeat,
    LoadFailed,
    Ready,
    SampleSlice,
    WorkerStats,
)
from scoring_service.errors import Fault, Reason
from scoring_service.pool.workers.readiness import PoolState
from scoring_service.pool.workers.workload import Taken
from scoring_service.telemetry.metrics import Metrics
from tests.pool.scripted import (
    INFO,
    Scripted,
    drain,
    fault,
    rows,
    sample_call,
    score_call,
    settled,
    until,
    until_changed,
    until_state,
)


async def test_what_a_dead_worker_had_not_answered_goes_to_another_once() -> None:
    made = await Scripted(2).start()
    async with made.pool.run(score_call(1, [1], 5, 4)) as stream:
        (first,) = made.busy
        (part,) = made.workers[first].calls
        made.workers[first].score(part, most_rows=7)
        await settled()
        made.workers[first].die("SIGKILL", from_outside=True)
        await settled()
        (second,) = made.busy
        assert second != first
        (part,) = made.workers[second].calls
        assert made.workers[second].score(part) == 2, "rows that were sent are not computed again"
        await settled()
        events = drain(stream)
    assert rows(events) == [(0, i) for i in range(5)] + [(1, i) for i in range(4)]
    assert isinstance(events[-1], CallFinished)
    usage = events[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.head_rows) == (1, 9, 8)
    assert sum(isinstance(event, CallFinished) for event in events) == 1


async def test_the_second_death_ends_the_call() -> None:
    made = await Scripted(3).start()
    async with made.pool.run(score_call(1, [1], 5)) as stream:
        for _ in range(2):
            (index,) = made.busy
            made.workers[index].die("SIGKILL", from_outside=True)
            await settled()
        events = drain(stream)
    assert fault(events) is Reason.WORKER_DIED
    assert events[-1].fault.retry_after is not None  # type: ignore[union-attr]


async def test_without_another_worker_the_call_ends_and_one_that_waits_stays() -> None:
    made = await Scripted(1).start()
    large = score_call(1, [1], *[60] * 4)
    async with made.pool.run(large) as first, made.pool.run(score_call(2, [1], 60)) as second:
        assert len(made.workers[0].calls) == 2, "more than its window does not go out"
        made.prepare = lambda executor: setattr(executor, "ready_at_once", False)
        made.workers[0].die("SIGKILL", from_outside=True)
        await until(lambda: len(made.starts[0]) == 2)
        assert fault(drain(first)) is Reason.WORKER_DIED
        assert drain(second) == []
        assert made.pool.state is PoolState.LOADING
        made.workers[0].on_event(Ready(INFO))
        await until_state(made.pool, PoolState.READY)
        (part,) = made.workers[0].calls
        made.workers[0].score(part)
        await settled()
        assert isinstance(drain(second)[-1], CallFinished)


async def test_a_sample_goes_on_where_it_was() -> None:
    made = await Scripted(2).start()
    async with made.pool.run(sample_call(1, n=3, max_tokens=4)) as stream:
        (first,) = made.busy
        (part,) = made.workers[first].calls
        made.workers[first].draw(part, most_tokens=6)
        await settled()
        made.workers[first].die("SIGKILL", from_outside=True)
        await settled()
        (second,) = made.busy
        (part,) = made.workers[second].calls
        assert made.workers[second].draw(part) == 6
        await settled()
        events = drain(stream)
    drawn = [
        (e.sample_index, e.start, e.token_ids.tolist())
        for e in events
        if isinstance(e, SampleSlice)
    ]
    assert drawn == [(index, place, [place]) for index in range(3) for place in range(4)]
    assert isinstance(events[-1], CallFinished)
    assert events[-1].usage.sampled_tokens == 6, "those of the dead worker, which reported none"


async def test_a_bug_in_company_costs_only_the_call_that_meets_it_alone() -> None:
    made = await Scripted(1).start()
    worker = made.workers[0]
    bug = Fault(Reason.INTERNAL_ERROR, "a bug in the server")
    async with (
        made.pool.run(score_call(1, [1], 5)) as innocent,
        made.pool.run(score_call(2, [1], 5)) as guilty,
    ):
        first, second = worker.calls
        worker.score(first, most_rows=3)
        for part in (first, second):
            del worker.calls[part]
            worker.on_event(CallFailed(part, bug, shared_step=True))
        await settled()
        again, other = worker.calls
        assert worker.alone == {again, other}
        assert worker.score(again) == 2, "rows that were sent are not computed again"
        worker.on_event(CallFailed(other, bug))
        await settled()
        events = drain(innocent)
        assert rows(events) == [(0, i) for i in range(5)]
        assert isinstance(events[-1], CallFinished)
        assert fault(drain(guilty)) is Reason.INTERNAL_ERROR
    assert made.pool.queued_tokens == 0
    assert all(w.work.all == Taken() for w in made.pool.workers)


async def test_a_dead_worker_holds_no_pages_and_keeps_what_it_counted() -> None:
    metrics = Metrics()
    made = await Scripted(2, metrics, first_backoff=30.0).start()
    metrics.watch(made.pool)
    for worker in made.workers:
        worker.on_event(Heartbeat(0.0, WorkerStats(steps=10, pages=100, free_pages=3)))
    await settled()

    def shown(name: str, worker: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"worker": worker})

    pages = "scoring_kv_cache_usage_perc"
    assert shown(pages, "0") == shown(pages, "1") == pytest.approx(0.97)
    made.workers[0].die("SIGSEGV")
    await settled()
    assert shown("scoring_worker_ready", "0") == 0.0
    assert shown(pages, "0") == 0.0
    assert shown(pages, "1") == pytest.approx(0.97)
    assert shown("scoring_steps_total", "0") == 10.0


async def test_calls_that_wait_end_where_every_worker_turns_out_not_to_load() -> None:
    made = await Scripted(1).start()
    async with (
        made.pool.run(score_call(1, [1] * 200, 60)) as running,
        made.pool.run(score_call(2, [1] * 200, 60)) as waiting,
    ):
        made.prepare = lambda executor: setattr(executor, "ready_at_once", False)
        made.workers[0].die("SIGKILL", from_outside=True)
        await until(lambda: len(made.starts[0]) == 2)
        assert fault(drain(running)) is Reason.WORKER_DIED
        assert waiting.next_nowait() is None
        made.workers[0].on_event(LoadFailed("the files are gone"))
        await settled()
        assert made.pool.state is PoolState.FAILED
        assert fault(drain(waiting)) is Reason.DRAINING


async def test_a_worker_that_cannot_be_started_again_is_tried_again() -> None:
    made = await Scripted(1).start()
    refusals = iter([OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)), OSError("no more files")])
    made.prepare = lambda executor: setattr(executor, "refusal", next(refusals, None))
    async with made.pool.run(score_call(1, [1], 5)) as stream:
        made.workers[0].die("SIGKILL", from_outside=True)
        said = "could not be started (Resource temporarily unavailable)"
        await until_changed(made.pool, lambda: said in made.pool.stage)
        assert fault(drain(stream)) is Reason.WORKER_DIED
    await until_state(made.pool, PoolState.READY)
    assert len(made.starts[0]) == 4


async def test_workers_that_cannot_be_started_at_all_end_the_pool() -> None:
    made = Scripted(2)
    made.prepare = lambda executor: setattr(executor, "refusal", OSError("no more files"))
    await made.start()
    assert made.pool.state is PoolState.FAILED
    assert made.pool.failure == "the worker could not be started (no more files)"
    await made.pool.drain(patience=1)


async def test_a_worker_with_other_weights_takes_no_part() -> None:
    made = Scripted(2)
    others = iter([INFO, replace(INFO, weights_digest="other")])
    made.prepare = lambda executor: setattr(executor, "info", next(others, INFO))
    await made.start()
    assert made.starts[1][0].killed
    await until(lambda: len(made.starts[1]) == 2)
    assert made.pool.state is PoolState.READY
    assert made.pool.info.weights_digest == "d"
