"""The pool: a model's worker, its life, and the calls it holds. Lives in the event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum

import structlog

from scoring_service.engine.events import (
    CallEvent,
    CallFailed,
    CallFinished,
    Cancel,
    Credit,
    Event,
    LoadFailed,
    LoadProgress,
    Ready,
    Submit,
)
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.pool.admission import Admission
from scoring_service.pool.executor import Executor, WorkerExited
from scoring_service.types import Call, EngineInfo

log = structlog.get_logger(__name__)

_FIRST_BACKOFF = 0.5
_LONGEST_BACKOFF = 30.0
_STOP_SECONDS = 5.0


class PoolState(StrEnum):
    """Whether calls are taken."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"


@dataclass(slots=True)
class CallStream:
    """Events of one call, in order; ends after CallFinished or CallFailed."""

    call: Call
    pool: WorkerPool
    _events: asyncio.Queue[CallEvent] = field(default_factory=asyncio.Queue)

    async def next(self, patience: float) -> CallEvent | None:
        """The next event; None when none came within `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                return await self._events.get()
        except TimeoutError:
            return None

    def next_nowait(self) -> CallEvent | None:
        """The next event if it is there."""
        return None if self._events.empty() else self._events.get_nowait()

    def push(self, event: CallEvent) -> None:
        """Called by the pool."""
        self._events.put_nowait(event)

    def taken(self, size: int) -> None:
        """The reader took this many bytes: as many more may be computed."""
        self.pool.credit(self.call.call_id, size)

    @property
    def tokens_ahead(self) -> int:
        """Tokens to be computed before this call's own."""
        return self.pool.tokens_ahead(self.call.call_id)


class WorkerPool:
    """One model and the worker that runs it.

    A worker that dies takes its calls with it (UNAVAILABLE) and is started again, each time after
    a longer pause until one comes up. The first one is not: what killed it before it ever answered
    would most likely kill the next.
    """

    def __init__(
        self, make_executor: Callable[[], Executor], max_queue_tokens: int, name: str
    ) -> None:
        self.name = name
        self.state = PoolState.LOADING
        self.stage = "starting the worker"
        self.failure: str | None = None
        self._make_executor = make_executor
        self._executor: Executor | None = None
        self._info: EngineInfo | None = None
        self._admission = Admission(max_queue_tokens)
        self._streams: dict[int, CallStream] = {}
        self._call_ids = itertools.count(1)
        self._backoff = _FIRST_BACKOFF
        self._changed = asyncio.Event()
        self._restart: asyncio.Task[None] | None = None
        self._readers = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def start(self) -> None:
        """Starts the worker; the model loads in the background."""
        loop = asyncio.get_running_loop()
        executor = self._make_executor()
        self._executor = executor

        def on_event(event: Event | WorkerExited) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._handle, executor, event)

        executor.start(on_event)

    @property
    def info(self) -> EngineInfo:
        """The model that answers.

        Raises:
            ServiceError: LOADING or DRAINING.
        """
        if self.state is PoolState.DRAINING:
            raise ServiceError(Fault(Reason.DRAINING, "the server is shutting down"))
        if self._info is None or self.state is not PoolState.READY:
            raise ServiceError(
                Fault(Reason.LOADING, f"the model is not ready: {self.stage}", retry_after=1.0)
            )
        return self._info

    def new_call_id(self) -> int:
        """An id for the next call."""
        return next(self._call_ids)

    @asynccontextmanager
    async def run(self, call: Call) -> AsyncIterator[CallStream]:
        """Admits a call and gives its events; leaving the context early cancels it.

        Raises:
            ServiceError: QUEUE_FULL, LOADING, DRAINING.
        """
        _ = self.info
        self._admission.admit(call.call_id, call.tokens)
        stream = CallStream(call, self)
        self._streams[call.call_id] = stream
        self._readers += 1
        self._idle.clear()
        self._send(Submit(call))
        try:
            yield stream
        finally:
            if self._forget(call.call_id):
                self._send(Cancel(call.call_id))
            self._readers -= 1
            if not self._readers:
                self._idle.set()

    def credit(self, call_id: int, size: int) -> None:
        """The call's reader took this many bytes."""
        if size:
            self._send(Credit(call_id, size))

    def tokens_ahead(self, call_id: int) -> int:
        """Tokens of calls admitted earlier that are not answered yet."""
        return self._admission.tokens_ahead(call_id)

    async def wait_changed(self) -> None:
        """Waits for the next change of `state` or `stage`."""
        await self._changed.wait()

    async def drain(self, patience: float) -> None:
        """Refuses new calls, waits for those admitted, ends the worker."""
        # A worker that loads does not listen, and has nothing to finish.
        stop_seconds = _STOP_SECONDS if self.state is PoolState.READY else 0.0
        self._set(PoolState.DRAINING, "draining")
        if self._restart is not None:
            self._restart.cancel()
        try:
            async with asyncio.timeout(patience):
                await self._idle.wait()
        except TimeoutError:
            log.warning("drain_timeout", model=self.name, calls=len(self._streams))
            self._fail_calls(Fault(Reason.DRAINING, "the server shut down before this call ended"))
        if self._executor is not None:
            await asyncio.to_thread(self._executor.stop, stop_seconds)

    def _send(self, command: Submit | Cancel | Credit) -> None:
        if self._executor is not None:
            self._executor.send(command)

    def _set(self, state: PoolState, stage: str) -> None:
        self.state, self.stage = state, stage
        self._changed.set()
        self._changed.clear()

    def _handle(self, executor: Executor, event: Event | WorkerExited) -> None:
        if executor is not self._executor:
            return
        match event:
            case LoadProgress(stage):
                log.info("loading", model=self.name, stage=stage)
                if self.state is PoolState.LOADING:
                    self._set(PoolState.LOADING, stage)
            case Ready(info):
                self._info = info
                self._backoff = _FIRST_BACKOFF
                if self.state is PoolState.LOADING:
                    self._set(PoolState.READY, "ready")
            case LoadFailed(message):
                self._fail(message)
            case WorkerExited(description):
                self._worker_exited(description)
            case _:
                self._deliver(event)

    def _fail(self, message: str) -> None:
        self.failure = message
        self._set(PoolState.FAILED, message)

    def _deliver(self, event: CallEvent) -> None:
        stream = self._streams.get(event.call_id)
        if stream is None:
            return
        if isinstance(event, CallFinished):
            usage = event.usage
            self._admission.measured(usage.computed_tokens, usage.compute_seconds)
        if isinstance(event, CallFinished | CallFailed):
            self._forget(event.call_id)
        stream.push(event)

    def _forget(self, call_id: int) -> bool:
        """Whether the call was still held."""
        self._admission.release(call_id)
        return self._streams.pop(call_id, None) is not None

    def _fail_calls(self, fault: Fault) -> None:
        for call_id in list(self._streams):
            self._deliver(CallFailed(call_id, fault))

    def _worker_exited(self, description: str) -> None:
        self._fail_calls(
            Fault(Reason.WORKER_DIED, f"the worker died ({description})", retry_after=1.0)
        )
        if self.state in (PoolState.DRAINING, PoolState.FAILED):
            return
        if self._info is None:
            self._fail(f"the worker died while it loaded the model ({description})")
            return
        log.error("worker_died", model=self.name, how=description, restart_in=self._backoff)
        self._set(PoolState.LOADING, f"the worker died ({description}) and starts again")
        self._restart = asyncio.create_task(self._start_later(self._backoff))
        self._backoff = min(2 * self._backoff, _LONGEST_BACKOFF)

    async def _start_later(self, delay: float) -> None:
        await asyncio.sleep(delay)
        self.start()
