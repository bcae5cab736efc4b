"""Worker processes that do not end as they should."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from scoring_service.engine.events import Event
from scoring_service.models import tiny_model_path
from scoring_service.pool.workers.executor import WorkerExited
from scoring_service.pool.workers.process import ProcessExecutor
from scoring_service.types import EngineConfig
from tests.e2e.processes import alive

CONFIG = EngineConfig(model=str(tiny_model_path()))


@contextmanager
def started() -> Iterator[tuple[ProcessExecutor, queue.SimpleQueue[Event | WorkerExited]]]:
    """A worker that stands still before it has loaded anything, and what is told of it."""
    told: queue.SimpleQueue[Event | WorkerExited] = queue.SimpleQueue()
    executor = ProcessExecutor(CONFIG)
    executor.start(told.put)
    assert executor.pid is not None
    os.kill(executor.pid, signal.SIGSTOP)
    try:
        yield executor, told
    finally:
        if alive(executor.pid):
            os.kill(executor.pid, signal.SIGKILL)


def test_nobody_waits_for_ever_for_a_process_that_a_kill_does_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scoring_service.pool.workers.process._FORCE_SECONDS", 0.2)
    with started() as (executor, told):
        with monkeypatch.context() as unkillable:
            unkillable.setattr(subprocess.Popen, "kill", lambda _process: None)
            executor.stop(0.0)
        assert alive(executor.pid or 0)
        assert told.empty()
