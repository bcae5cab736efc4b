"""Whether a pool takes calls, as the states of its workers have it, and what is said if not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from enum import StrEnum

import structlog

from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.pool.workers.owner import WorkerState
from scoring_service.pool.workers.stages import describe_loading, describe_loop
from scoring_service.pool.workers.worker import Worker
from scoring_service.types import EngineInfo

log = structlog.get_logger(__name__)

_AWAITING = (
    "the server waits for weights (--await-weights): those that it loaded are not to be answered "
    "from, and nobody has pushed any since it was started"
)
_DRAINED = "an admin had the server drained; Resume lets it take calls again"


class PoolState(StrEnum):
    """Whether calls are taken."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"
    CRASH_LOOP = "crash_loop"
    PAUSED = "paused"
    """Workers answer, but an admin had new calls refused."""
    AWAITING_WEIGHTS = "awaiting_weights"
    """Workers answer, but nobody gave them the weights that calls are to be answered from."""


class Readiness:
    """The pool's state, derived again whenever a worker's changes."""

    def __init__(
        self, name: str, workers: Sequence[Worker], awaits_weights: Callable[[], bool]
    ) -> None:
        """Begins with a pool that loads.

        Args:
            name: of the model.
            workers: of the pool.
            awaits_weights: whether workers that answer are not to be asked yet.
        """
        self.state = PoolState.LOADING
        self.stage = "starting the worker"
        self.failure: str | None = None
        self.info: EngineInfo | None = None
        """Of the model, once one worker has loaded it, with the weights that calls begin with."""
        self._name = name
        self._workers = workers
        self._awaits_weights = awaits_weights
        self._paused = False
        self._changed = asyncio.Event()

    def check(self) -> EngineInfo:
        """The model that answers.

        Raises:
            ServiceError: LOADING, AWAITING_WEIGHTS, CRASH_LOOP or DRAINING.
        """
        if self.state is PoolState.DRAINING:
            raise ServiceError(Fault(Reason.DRAINING, "the server is shutting down"))
        if self.state is PoolState.PAUSED:
            raise ServiceError(Fault(Reason.DRAINING, self.stage))
        if self.state is PoolState.AWAITING_WEIGHTS:
            raise ServiceError(Fault(Reason.AWAITING_WEIGHTS, self.stage))
        if self.state is PoolState.CRASH_LOOP:
            raise ServiceError(self._crash_loop())
        if self.info is None or self.state is not PoolState.READY:
            retry_after = 1.0 if self.info is None else self._seconds_to_ready()
            message = f"the model is not ready: {self.stage}"
            raise ServiceError(Fault(Reason.LOADING, message, retry_after=retry_after))
        return self.info

    @property
    def hopeless(self) -> Fault | None:
        """Why calls that were admitted end unanswered; None while a worker may answer them."""
        if self.ready_workers():
            return None
        alive, looping = self._alive(), self._looping()
        if alive and len(looping) < len(alive):
            return None
        if self.state is PoolState.CRASH_LOOP:
            return self._crash_loop()
        message = "the server shuts down, and no worker answers any more"
        return Fault(Reason.DRAINING, message)

    def ready_workers(self) -> list[Worker]:
        """Workers that answer."""
        return [worker for worker in self._workers if worker.state is WorkerState.READY]

    def pause(self, *, on: bool) -> None:
        """While on, workers answer what was admitted, and new calls are refused."""
        self._paused = on
        self.update()

    def give_up(self, message: str) -> None:
        """No worker will ever answer."""
        self.failure = message
        self.set(PoolState.FAILED, message)

    def update(self) -> None:
        """Derives the state from the workers'."""
        if self.state in (PoolState.DRAINING, PoolState.FAILED):
            return
        if self.ready_workers():
            if self._paused:
                self.set(PoolState.PAUSED, _DRAINED)
            elif self._awaits_weights():
                if self.state is not PoolState.AWAITING_WEIGHTS:
                    log.info("awaiting_weights", model=self._name)
                self.set(PoolState.AWAITING_WEIGHTS, _AWAITING)
            else:
                self.set(PoolState.READY, "ready")
            return
        alive, looping = self._alive(), self._looping()
        if alive and len(looping) == len(alive):
            stage = describe_loop(looping)
            if self.state is not PoolState.CRASH_LOOP:
                log.error("crash_loop", model=self._name, reason=stage)
            self.set(PoolState.CRASH_LOOP, stage)
        else:
            self.set(PoolState.LOADING, describe_loading(alive))

    def set(self, state: PoolState, stage: str) -> None:
        """Changes it, and tells who waits for that."""
        self.state, self.stage = state, stage
        self.tell()

    def tell(self) -> None:
        """Wakes who waits for a change."""
        self._changed.set()
        self._changed.clear()

    async def wait_changed(self) -> None:
        """Waits for the next change."""
        await self._changed.wait()

    def _alive(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.state is not WorkerState.GIVEN_UP]

    def _looping(self) -> list[Worker]:
        return [worker for worker in self._alive() if worker.policy.looping]

    def _crash_loop(self) -> Fault:
        return Fault(Reason.CRASH_LOOP, self.stage, retry_after=self._seconds_to_ready())

    def _seconds_to_ready(self) -> float:
        return min((worker.seconds_to_ready for worker in self._alive()), default=1.0)
