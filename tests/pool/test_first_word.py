"""A worker process that stands still before it ever said a word."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from scoring_service.engine.events import Heartbeat, WorkerStats
from scoring_service.models import tiny_model_path
from scoring_service.pool.executor import Executor, OnEvent
from scoring_service.pool.pool import WorkerPool
from scoring_service.pool.process import ProcessExecutor
from scoring_service.pool.settings import PoolSettings
from scoring_service.types import EngineConfig
from tests.e2e.processes import alive
from tests.pool.scripted import ScriptedExecutor

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
