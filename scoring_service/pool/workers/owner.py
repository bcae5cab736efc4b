"""A worker's states, and what it tells of them and of its work."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from scoring_service.engine.events import CallEvent, WeightEvent
from scoring_service.pool.workers.executor import WorkerExited
from scoring_service.types import EngineInfo

if TYPE_CHECKING:
    from scoring_service.pool.workers.worker import Worker


class WorkerState(StrEnum):
    """Where a worker is in its life."""

    LOADING = "loading"
    READY = "ready"
    DOWN = "down"
    """Dead, and to be started again after a pause."""
    GIVEN_UP = "given_up"
    """Never to be started again, though what runs of it may not have ended yet."""


class Owner(Protocol):
    """What a worker tells its pool."""

    def worker_ready(self, worker: Worker, info: EngineInfo) -> None:
        """It loaded its model."""
        ...

    def worker_lost(self, worker: Worker, exited: WorkerExited) -> None:
        """It died, or could not be started; its parts are still in `parts`."""
        ...

    def worker_refused(self, worker: Worker, message: str) -> None:
        """It says that its model cannot be loaded."""
        ...

    def worker_changed(self) -> None:
        """The state or stage of one is another."""
        ...

    def part_event(self, worker: Worker, event: CallEvent) -> None:
        """Something of a part."""
        ...

    def weight_event(self, worker: Worker, event: WeightEvent) -> None:
        """Something about weights."""
        ...

    def cache_flushed(self, worker: Worker, pages: int) -> None:
        """It forgot cached prompts."""
        ...
