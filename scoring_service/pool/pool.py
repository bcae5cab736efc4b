"""The pool: a model's workers and the calls they share. Lives in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.pool.background import supervised
from scoring_service.pool.calls.admitted import AdmittedCalls
from scoring_service.pool.calls.housekeeping import expire_calls_periodically
from scoring_service.pool.observer import PoolObserver
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.streams.auditor import Auditor
from scoring_service.pool.streams.stream import CallStream
from scoring_service.pool.supervision import Supervision
from scoring_service.pool.weights.weights import PoolWeights
from scoring_service.pool.workers.cache_flush import CacheFlush
from scoring_service.pool.workers.executor import Executor
from scoring_service.pool.workers.readiness import PoolState, Readiness
from scoring_service.pool.workers.worker import Worker
from scoring_service.types import Call, EngineInfo

log = structlog.get_logger(__name__)

_STOP_SECONDS = 5.0


class WorkerPool:
    """One model and the workers that run it.

    Clients share the workers by turns, and what waits costs nothing when its caller gives up (see
    `AdmittedCalls`). Workers that die are started again (see `Supervision`).

    Args:
        make_executor: an executor for the worker of that index; called again for each start.
        settings: see there.
        name: of the model.
        observer: is told what happens, for metrics.
    """

    def __init__(
        self,
        make_executor: Callable[[int], Executor],
        settings: PoolSettings,
        name: str,
        observer: PoolObserver | None = None,
    ) -> None:
        self.name = name
        self.workers: list[Worker] = []
        self.observer = observer or PoolObserver()
        self.weights = PoolWeights(self.workers, self.observer)
        self.cache = CacheFlush()
        self._settings = settings
        self._readiness = Readiness(name, self.workers, self._awaits_weights)
        self._calls = AdmittedCalls(
            self.workers,
            self.weights,
            self._readiness,
            settings,
            self.observer,
            Auditor(self, settings.audit),
        )
        self._supervision = Supervision(
            self.workers, self.weights, self.cache, self._calls, self._readiness, self.observer
        )
        self.weights.owner = self._supervision
        self.workers += [
            Worker(index, make_executor, settings, self._supervision)
            for index in range(settings.workers)
        ]
        self._housekeeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the workers; their models load in the background, side by side."""
        for worker in self.workers:
            worker.start()
        self._housekeeping = supervised(
            lambda: expire_calls_periodically(self._calls, self._settings),
            "housekeeping",
            self._settings.look_seconds,
        )

    @property
    def info(self) -> EngineInfo:
        """The model that answers.

        Raises:
            ServiceError: LOADING, AWAITING_WEIGHTS, CRASH_LOOP or DRAINING.
        """
        return self._readiness.check()

    @property
    def state(self) -> PoolState:
        """Whether calls are taken."""
        return self._readiness.state

    @property
    def stage(self) -> str:
        """What it is doing, in words."""
        return self._readiness.stage

    @property
    def failure(self) -> str | None:
        """Why it was given up; None while it was not."""
        return self._readiness.failure

    @property
    def takes_calls(self) -> bool:
        """Whether a worker answers, and calls are neither drained nor kept waiting for weights."""
        return self.state is PoolState.READY

    @property
    def takes_updates(self) -> bool:
        """Whether an update of the weights could begin, as far as workers are concerned."""
        return self.state in (PoolState.READY, PoolState.PAUSED, PoolState.AWAITING_WEIGHTS)

    @property
    def weight_version(self) -> int | None:
        """Of the weights that calls begin with; None until the model is loaded."""
        info = self._readiness.info
        return None if info is None else info.weight_version

    @property
    def queued_tokens(self) -> int:
        """Tokens of admitted calls that are not answered yet."""
        return self._calls.admission.tokens

    @property
    def taken_tokens(self) -> int:
        """Of the queue's room, which calls take until they are over."""
        return self._calls.admission.taken

    @property
    def unread_bytes(self) -> int:
        """Results that wait for readers."""
        return self._calls.dispatcher.unread

    @property
    def waiting_calls(self) -> int:
        """Calls of which nothing was begun."""
        return self._calls.waiting

    @property
    def running_calls(self) -> int:
        """Calls of which something was begun."""
        return self._calls.running

    @property
    def calls_left(self) -> int:
        """Calls that their readers have not left yet."""
        return len(self._calls.readers)

    def new_call_id(self) -> int:
        """An id for the next call."""
        return self._calls.new_id()

    def room(self, client: str) -> float:
        """Tokens of the largest call that a client would be let in with now."""
        return self._calls.admission.room(client)

    def check_room(self, client: str, tokens: int = 1) -> None:
        """Refuses a call that there is no room for, before anything is spent on it.

        Args:
            client: whose share of the queue it would take.
            tokens: that it has at least.

        Raises:
            ServiceError: QUEUE_FULL.
        """
        self._calls.check_room(client, tokens)

    @asynccontextmanager
    async def run(
        self,
        call: Call,
        client: str = "",
        avoid: int | None = None,
        accepts: Callable[[EngineInfo], bool] | None = None,
        alone: bool = False,
    ) -> AsyncIterator[CallStream]:
        """Admits a call and gives its events; leaving the context early cancels it.

        Args:
            call: with an id from `new_call_id`.
            client: whose share of the queue it takes.
            avoid: index of a worker that computes it only if no other one may.
            accepts: whether weights are those that the call insists on; the running ones are.
            alone: no other call joins its steps.

        Raises:
            ServiceError: QUEUE_FULL, OUT_OF_MEMORY, LOADING, AWAITING_WEIGHTS, CRASH_LOOP,
                DRAINING, WEIGHT_VERSION_MISMATCH.
        """
        parts = await self._calls.cut(call, self.info)
        info = self.info  # it may have changed meanwhile
        if accepts is not None and not accepts(info):
            message = (
                f"version {info.weight_version} of the weights is not what the call insists on"
            )
            raise ServiceError(Fault(Reason.WEIGHT_VERSION_MISMATCH, message))
        stream = self._calls.admit(call, parts, client, avoid, alone)
        try:
            self._calls.pin(stream, accepts)
            self._calls.dispatcher.dispatch()
            yield stream
        finally:
            self._calls.leave(stream)

    def tokens_ahead(self, call_id: int) -> int:
        """Tokens of calls that go before this one and are not answered yet."""
        return self._calls.tokens_ahead(call_id)

    async def wait_changed(self) -> None:
        """Waits for the next change of `state` or `stage`, or until no call is left of those that
        were admitted before new ones were refused.
        """
        await self._readiness.wait_changed()

    def pause(self) -> None:
        """Refuses new calls; those that were admitted go on."""
        self._readiness.pause(on=True)

    def resume(self) -> None:
        """Takes calls again."""
        self._readiness.pause(on=False)

    async def drain(self, patience: float) -> None:
        """Refuses new calls, waits for those admitted, ends the workers."""
        self._readiness.set(PoolState.DRAINING, "draining")
        try:
            async with asyncio.timeout(patience):
                await self._calls.wait_idle()
        except TimeoutError:
            streams = list(self._calls.streams.values())
            log.warning("drain_timeout", model=self.name, calls=len(streams))
            fault = Fault(Reason.DRAINING, "the server shut down before this call ended")
            for stream in streams:
                self._calls.ends.fail(stream, fault)
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        stops = (worker.stop(_STOP_SECONDS) for worker in self.workers)
        ends = await asyncio.gather(*stops, return_exceptions=True)
        self.weights.close()
        for end in ends:
            if end is not None:
                raise end

    def _awaits_weights(self) -> bool:
        """Whether nothing may be answered yet, because nobody gave weights."""
        return self._settings.await_weights and not self.weights.committed
