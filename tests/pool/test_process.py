"""Worker processes that do not end as they should."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from scoring_service.engine.events import Event
from scoring_service.engine.worker.channel import Channel
from scoring_service.models import tiny_model_path
from scoring_service.pool.workers.executor import WorkerExited
from scoring_service.pool.workers.process import ProcessExecutor
from scoring_service.types import EngineConfig
from tests.e2e.processes import alive

CONFIG = EngineConfig(model=str(tiny_model_path()))


@contextmanager
def started(
    **options: float,
) -> Iterator[tuple[ProcessExecutor, queue.SimpleQueue[Event | WorkerExited]]]:
    """A worker that stands still before it has loaded anything, and what is told of it."""
    told: queue.SimpleQueue[Event | WorkerExited] = queue.SimpleQueue()
    executor = ProcessExecutor(CONFIG, **options)
    executor.start(told.put)
    assert executor.pid is not None
    with suppress(ProcessLookupError):  # it may be gone already
        os.kill(executor.pid, signal.SIGSTOP)
    try:
        yield executor, told
    finally:
        if alive(executor.pid):
            os.kill(executor.pid, signal.SIGKILL)


def test_nobody_waits_for_ever_for_a_process_that_a_kill_does_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with started(force_seconds=0.2) as (executor, told):
        with monkeypatch.context() as unkillable:
            unkillable.setattr(subprocess.Popen, "kill", lambda _process: None)
            executor.stop(0.0)
        assert alive(executor.pid or 0)
        assert told.empty()


@pytest.mark.parametrize(("broken", "how"), [("receive", "read"), ("send", "sent")])
def test_a_worker_whose_messages_cannot_be_passed_on_is_reported_as_gone(
    broken: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For want of memory, say. With a thread that ended it would be ready, and silent, for ever."""

    def fails(*_arguments: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Channel, broken, fails)
        with started() as (executor, told):
            exited = told.get(timeout=30)
            assert exited == WorkerExited(f"a message could not be {how}: MemoryError")
            assert not exited.from_outside, "the next one may well end like this too"
            assert not alive(executor.pid or 0)
