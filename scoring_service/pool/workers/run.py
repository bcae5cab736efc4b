"""One start of a worker: when it was heard last, whether it hangs, and how it came to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from scoring_service.pool.background import supervised
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.workers.executor import Executor

log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class Run:
    """What is true of one start alone, so that the next begins with nothing of it.

    Args:
        index: of the worker.
        settings: of the pool.
        hangs: called when it does.
    """

    index: int
    settings: PoolSettings
    hangs: Callable[[], None]
    executor: Executor | None = None
    """None before the first start, and once it is gone."""
    started: float = field(default_factory=time.monotonic)
    ready_since: float | None = None
    last_heard: float | None = None
    killed: bool = False
    """By this process, though it may not be gone yet."""
    useless: bool = False
    """Whether it was killed for something that it may well do again."""
    said_nothing: bool = False
    """Whether it was killed because it never said a first word."""
    answered_seconds: float | None = None
    """How long it was ready before it was lost; None = it never was."""
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def beside(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Does something in the background until the worker is stopped."""
        self._tasks.append(supervised(work, name, self.settings.look_seconds))

    def stop(self) -> Executor | None:
        """Nothing more comes of it; what is to be stopped, if anything."""
        for task in self._tasks:
            task.cancel()
        executor, self.executor = self.executor, None
        return executor

    def lost(self) -> None:
        """It answers no more."""
        if self.ready_since is not None:
            self.answered_seconds = time.monotonic() - self.ready_since

    def in_step(self, seconds: float) -> None:
        """It has been in one step for so long."""
        if seconds > self.settings.step_timeout:
            log.error("worker_hangs", worker=self.index, step_seconds=seconds)
            self.hangs()

    async def watch(self) -> None:
        """Finds out when it has gone silent, or never says a first word."""
        pause = self.settings.look_seconds
        while True:
            before = time.monotonic()
            await asyncio.sleep(pause)
            late = time.monotonic() - before - pause
            if self.executor is None or self.killed:
                return
            # If this process itself stood still, what the worker said meanwhile is still to come.
            if late > pause:
                continue
            heard, patience = self.last_heard, self.settings.heartbeat_timeout
            if heard is None:  # its heart beats once its program is read, which takes its time
                heard, patience = self.started, max(patience, self.settings.start_timeout)
            silent = time.monotonic() - heard
            if silent > patience:
                log.error("worker_hangs", worker=self.index, silent_seconds=round(silent, 1))
                self.said_nothing = self.last_heard is None
                self.hangs()
                return

    async def tell_if_it_stays(self) -> None:
        """Says that it is not gone long after it was killed."""
        patience = self.settings.heartbeat_timeout
        await asyncio.sleep(patience)
        if self.executor is not None:
            log.error("worker_not_gone", worker=self.index, seconds=patience)
