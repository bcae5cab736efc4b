"""Workers that fall silent, stay in a step, or do not end when they are killed."""

from __future__ import annotations

import asyncio
import time

from structlog.testing import capture_logs

from scoring_service.engine.events import Heartbeat, WorkerStats
from scoring_service.errors import Reason
from scoring_service.pool.workers.readiness import PoolState
from tests.pool.scripted import (
    Scripted,
    drain,
    fault,
    rows,
    score_call,
    settled,
    until_changed,
    until_state,
)


async def test_a_worker_that_goes_silent_is_killed_and_its_work_moves() -> None:
    made = await Scripted(2, heartbeat_timeout=0.5).start()
    async with made.pool.run(score_call(1, [1], 5)) as stream:
        (hung,) = made.busy
        other = 1 - hung
        silent = made.workers[hung]
        deadline = time.monotonic() + 20
        while not silent.killed and time.monotonic() < deadline:
            beat = Heartbeat(0.0, WorkerStats())
            for worker in made.workers:
                if worker is not silent:
                    worker.on_event(beat)
            await asyncio.sleep(0.1)
        assert silent.killed
        await settled()
        assert made.busy == [other]
        (part,) = made.workers[other].calls
        made.workers[other].score(part)
        await settled()
        assert rows(drain(stream)) == [(0, i) for i in range(5)]
        assert len(made.starts[other]) == 1


async def test_a_worker_that_a_kill_does_not_end_loses_its_work_all_the_same() -> None:
    """As one that waits in a driver: it dies once that answers, and only then is there a next."""
    made = Scripted(2, step_timeout=100.0, heartbeat_timeout=0.2)
    made.prepare = lambda executor: setattr(executor, "kill", lambda: None)
    await made.start()
    pool, hang = made.pool, Heartbeat(101.0, WorkerStats())
    async with pool.run(score_call(1, [1], 5)) as first:
        (hung,) = made.busy
        stuck, other = made.workers[hung], made.workers[1 - hung]
        stuck.score(next(iter(stuck.calls)), most_rows=2)
        stuck.on_event(hang)
        await settled()
        assert not pool.workers[hung].is_ready
        async with pool.run(score_call(2, [1], 3)) as second:
            assert len(other.calls) == 2, "what moved, and what is new"
            late = next(iter(stuck.calls))
            for part in list(other.calls):
                other.score(part)
            stuck.score(late)  # it was not quite dead
            await settled()
            assert rows(drain(first)) == [(0, i) for i in range(5)]
            assert rows(drain(second)) == [(0, i) for i in range(3)]
    with capture_logs() as lines:
        async with asyncio.timeout(60):
            while "worker_not_gone" not in {line["event"] for line in lines}:
                stuck.on_event(hang)
                other.on_event(Heartbeat(0.0, WorkerStats()))
                await asyncio.sleep(0.02)
        assert len(made.starts[hung]) == 1, "two of them do not fit on one device"
        stuck.die("SIGKILL", from_outside=True)
        await until_changed(pool, lambda: pool.workers[hung].is_ready)
    assert len(made.starts[hung]) == 2
    assert pool.workers[hung].starts == 2
    events = [line["event"] for line in lines if line.get("worker") == hung]
    assert events[:2] == ["worker_not_gone", "worker_died"]
    assert "worker_hangs" not in events


async def test_a_pool_whose_only_worker_a_kill_does_not_end_takes_no_calls() -> None:
    made = Scripted(1, step_timeout=100.0)
    made.prepare = lambda executor: setattr(executor, "kill", lambda: None)
    await made.start()
    async with made.pool.run(score_call(1, [1], 5)) as stream:
        made.workers[0].on_event(Heartbeat(101.0, WorkerStats()))
        await settled()
        assert fault(drain(stream)) is Reason.WORKER_DIED
    assert made.pool.state is PoolState.LOADING
    assert "killed: it hung" in made.pool.stage


async def test_a_step_that_does_not_end_is_a_hang_though_the_heart_beats() -> None:
    made = await Scripted(2, step_timeout=100.0).start()
    made.workers[0].on_event(Heartbeat(99.0, WorkerStats()))
    await settled()
    assert not made.workers[0].killed
    made.workers[0].on_event(Heartbeat(101.0, WorkerStats()))
    await settled()
    assert made.starts[0][0].killed


async def test_what_was_true_of_one_start_is_not_of_the_next() -> None:
    """A worker that hung is blamed for that alone, not for a kill of the one after it."""
    made = await Scripted(1, step_timeout=100.0).start()
    worker = made.pool.workers[0]
    made.workers[0].on_event(Heartbeat(101.0, WorkerStats()))
    await settled()
    assert worker.policy.crashes == 1
    await until_state(made.pool, PoolState.READY)
    made.workers[0].die("SIGKILL", from_outside=True)
    await until_changed(made.pool, lambda: worker.starts == 3)
    assert worker.policy.crashes == 1
    await until_state(made.pool, PoolState.READY)
    async with made.pool.run(score_call(1, [1], 5)):
        assert made.busy == [0], "it is sent commands again"
