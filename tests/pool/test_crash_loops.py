"""Workers that die again and again, and what is none of their making."""

from __future__ import annotations

import asyncio

import pytest

from scoring_service.engine.events import CallFailed, Heartbeat, LoadProgress, WorkerStats
from scoring_service.errors import Reason, ServiceError
from scoring_service.pool.workers.readiness import PoolState
from tests.pool.scripted import (
    Scripted,
    ScriptedExecutor,
    drain,
    fault,
    score_call,
    settled,
    until,
    until_state,
)


async def test_a_crash_loop_is_told_with_its_reason_and_ends_when_a_worker_answers_again() -> None:
    made = await Scripted(1, crash_limit=3, longest_backoff=0.3).start()
    for _ in range(3):
        await until_state(made.pool, PoolState.READY)
        made.workers[0].die("SIGSEGV")
        await settled()
    await until_state(made.pool, PoolState.CRASH_LOOP)
    assert "died 3 times in a row, last: SIGSEGV" in made.pool.stage
    with pytest.raises(ServiceError) as refused:
        _ = made.pool.info
    assert refused.value.fault.reason is Reason.CRASH_LOOP
    await until_state(made.pool, PoolState.READY)


async def test_calls_that_wait_end_with_a_crash_loop_and_its_reason() -> None:
    made = await Scripted(1, crash_limit=3, longest_backoff=30.0).start()
    async with (
        made.pool.run(score_call(1, [1] * 200, 60)) as running,
        made.pool.run(score_call(2, [1] * 200, 60)) as waiting,
    ):
        made.prepare = lambda executor: setattr(executor, "ready_at_once", False)
        for death in range(1, 4):
            assert made.pool.state is not PoolState.CRASH_LOOP
            made.workers[0].die("SIGSEGV")
            if death < 3:
                await until(lambda death=death: len(made.starts[0]) == death + 1)
                assert waiting.next_nowait() is None, "the next worker may answer it"
        await until_state(made.pool, PoolState.CRASH_LOOP)
        assert fault(drain(running)) is Reason.WORKER_DIED
        (failed,) = drain(waiting)
        assert isinstance(failed, CallFailed)
        assert failed.fault.reason is Reason.CRASH_LOOP
        assert "died 3 times in a row, last: SIGSEGV" in failed.fault.message
        assert failed.fault.retry_after == pytest.approx(30.0, abs=10.0)
        assert made.pool.queued_tokens == 0


async def test_a_drain_waits_for_no_workers_that_do_not_answer_any_more() -> None:
    made = await Scripted(1, crash_limit=1, longest_backoff=30.0).start()
    async with (
        made.pool.run(score_call(1, [1] * 200, 60)) as running,
        made.pool.run(score_call(2, [1] * 200, 60)) as waiting,
    ):
        draining = asyncio.create_task(made.pool.drain(3600.0))
        await settled()
        assert not waiting.ended
        made.workers[0].die("SIGSEGV")
        await settled()
        assert fault(drain(running)) is Reason.WORKER_DIED
        assert fault(drain(waiting)) is Reason.DRAINING
    async with asyncio.timeout(10):
        await draining


async def test_a_worker_that_hangs_again_and_again_while_it_loads_is_a_crash_loop() -> None:
    """The pool kills it by itself, by the signal that an operator would use."""
    made = await Scripted(1, crash_limit=3, heartbeat_timeout=0.2, longest_backoff=30.0).start()

    def hang(executor: ScriptedExecutor) -> None:
        executor.ready_at_once = False
        executor.begins = LoadProgress("loading weights")

    made.prepare = hang
    made.workers[0].die("SIGKILL", from_outside=True)
    await until_state(made.pool, PoolState.CRASH_LOOP)
    assert len(made.starts[0]) == 4
    assert all(executor.killed for executor in made.starts[0][1:])


async def test_a_worker_that_hangs_again_and_again_once_it_answers_is_a_crash_loop() -> None:
    made = await Scripted(1, crash_limit=3, step_timeout=100.0, longest_backoff=30.0).start()
    for death in range(1, 4):
        made.workers[0].on_event(Heartbeat(101.0, WorkerStats()))
        await settled()
        assert made.starts[0][-1].killed
        assert made.pool.workers[0].policy.crashes == death
        if death < 3:
            await until_state(made.pool, PoolState.READY)
    assert made.pool.state is PoolState.CRASH_LOOP
    assert "died 3 times in a row, last: killed: it hung" in made.pool.stage
    assert made.pool.workers[0].seconds_to_ready > 20.0, "it is tried rarely from now on"


async def test_kills_of_a_worker_that_answers_are_no_crash_loop() -> None:
    made = await Scripted(1, crash_limit=3).start()
    for _ in range(8):
        made.workers[0].die("SIGKILL", from_outside=True)
        await settled()
        await until_state(made.pool, PoolState.READY, PoolState.CRASH_LOOP)
        assert made.pool.state is PoolState.READY
    assert len(made.starts[0]) == 9


async def test_kills_of_a_worker_that_loads_are_no_crash_loop() -> None:
    made = await Scripted(1, crash_limit=3).start()
    made.prepare = lambda executor: setattr(executor, "ready_at_once", False)
    for death in range(1, 6):
        made.workers[0].die("SIGKILL", from_outside=True)
        await until(lambda death=death: len(made.starts[0]) == death + 1)
        assert made.pool.state is PoolState.LOADING
    made.prepare = lambda _executor: None
    made.workers[0].die("SIGKILL", from_outside=True)
    await until_state(made.pool, PoolState.READY)
