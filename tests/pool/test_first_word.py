"""A worker process that stands still before it ever said a word."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from scoring_service.engine.events import Heartbeat, LoadProgress, WorkerStats
from scoring_service.models import tiny_model_path
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.workers.executor import Executor, OnEvent
from scoring_service.pool.workers.process import ProcessExecutor
from scoring_service.types import EngineConfig
from tests.e2e.processes import alive
from tests.pool.scripted import Scripted, ScriptedExecutor

CONFIG = EngineConfig(model=str(tiny_model_path()))


class StoppedExecutor(ProcessExecutor):
    """Stopped as soon as it is there."""

    def start(self, on_event: OnEvent) -> None:
        super().start(on_event)
        assert self.pid is not None
        os.kill(self.pid, signal.SIGSTOP)


async def test_a_worker_that_was_stopped_before_its_first_word_is_replaced() -> None:
    starts: list[tuple[int, Executor]] = []

    def make(index: int) -> Executor:
        first = index == 1 and all(started != 1 for started, _ in starts)
        executor = StoppedExecutor(CONFIG) if first else ScriptedExecutor()
        starts.append((index, executor))
        return executor

    settings = PoolSettings(
        max_queue_tokens=1000,
        workers=2,
        first_backoff=0.01,
        heartbeat_timeout=1.0,
        start_timeout=2.0,
        look_seconds=0.1,
    )
    pool = WorkerPool(make, settings, "stopped")
    began = time.monotonic()
    pool.start()
    try:
        assert not pool.workers[1].is_ready
        stopped = starts[1][1].pid  # type: ignore[attr-defined]
        while not pool.workers[1].is_ready:
            assert time.monotonic() < began + 30, "nobody noticed"
            beat = Heartbeat(0.0, WorkerStats())
            starts[0][1].on_event(beat)  # type: ignore[attr-defined]
            await asyncio.sleep(0.1)
    finally:
        await pool.drain(1.0)
    assert time.monotonic() - began > 2.0
    assert [index for index, _ in starts] == [0, 1, 1]
    assert not alive(stopped)


SLOW = {"heartbeat_timeout": 0.5, "start_timeout": 0.5, "first_backoff": 0.01}


async def test_one_that_is_late_is_started_again_while_another_loads() -> None:
    made = Scripted(2, **SLOW)

    def prepare(executor: ScriptedExecutor) -> None:
        executor.begins = LoadProgress("reading weights")

    def first_of_all(executor: ScriptedExecutor) -> None:
        loads = not made.starts[0]
        executor.ready_at_once = False
        executor.begins = LoadProgress("reading weights") if loads else None
        if not loads:
            made.prepare = prepare

    made.prepare = first_of_all
    await made.start()
    try:
        async with asyncio.timeout(30):
            while not made.pool.takes_calls:
                assert made.pool.failure is None
                made.workers[0].on_event(Heartbeat(0.0, WorkerStats()))
                await asyncio.sleep(0.1)
        assert [len(starts) for starts in made.starts] == [1, 2]
        assert made.pool.workers[1].is_ready
    finally:
        await made.pool.drain(0)


async def test_where_none_says_a_word_the_pool_is_given_up() -> None:
    made = Scripted(2, **SLOW)

    def silent(executor: ScriptedExecutor) -> None:
        executor.ready_at_once = False

    made.prepare = silent
    await made.start()
    try:
        async with asyncio.timeout(30):
            while made.pool.failure is None:
                await made.pool.wait_changed()
        assert sum(len(starts) for starts in made.starts) <= 3
    finally:
        await made.pool.drain(0)
