"""The pool: a model's workers and the calls they share. Lives in the event loop."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from enum import StrEnum

import structlog

from scoring_service.engine.events import (
    CallEvent,
    CallFailed,
    CallFinished,
    CallStarted,
    Cancel,
    Credit,
)
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.pool.admission import Admission, Ticket
from scoring_service.pool.auditor import Auditor
from scoring_service.pool.dispatch import Dispatcher
from scoring_service.pool.executor import Executor
from scoring_service.pool.observer import PoolObserver
from scoring_service.pool.parts import size_of, split
from scoring_service.pool.routing import prompt_keys
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.stages import describe_loading, describe_loop
from scoring_service.pool.stream import CallStream, Part
from scoring_service.pool.worker import Worker, WorkerState
from scoring_service.types import Call, EngineInfo

log = structlog.get_logger(__name__)

TURN_BATCHES = 4
"""Steps' worth of tokens in a part of a call."""

_STOP_SECONDS = 5.0
_HOUSEKEEPING_SECONDS = 1.0


class PoolState(StrEnum):
    """Whether calls are taken."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"
    CRASH_LOOP = "crash_loop"


class WorkerPool:
    """One model and the workers that run it.

    Calls are cut into parts. Parts wait here and go out a few at a time, so that clients share the
    workers by turns, and a part that waits costs nothing when its caller gives up. A worker that
    dies is started again, and what it had not answered goes to another one, once; with no other
    one that answers, its calls end with UNAVAILABLE. A worker that dies before any ever answered is
    not tried again: what killed it would most likely kill the next.

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
        self.state = PoolState.LOADING
        self.stage = "starting the worker"
        self.failure: str | None = None
        self.waiting_calls = 0
        """Calls of which nothing was begun."""
        self.workers = [
            Worker(index, make_executor, settings, self) for index in range(settings.workers)
        ]
        self.observer = observer or PoolObserver()
        self._settings = settings
        self._info: EngineInfo | None = None
        self._admission = Admission(settings.max_queue_tokens, settings.max_queue_reply_bytes)
        self._dispatcher = Dispatcher(self.workers, self._expire)
        self._streams: dict[int, CallStream] = {}
        self._call_ids = itertools.count(1)
        self._part_ids = itertools.count(1)
        self._changed = asyncio.Event()
        self._housekeeping: asyncio.Task[None] | None = None
        self._auditor = Auditor(self, settings.audit)
        self._readers = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def start(self) -> None:
        """Starts the workers; their models load in the background, side by side."""
        for worker in self.workers:
            worker.start()
        self._housekeeping = asyncio.create_task(self._keep_house())

    @property
    def info(self) -> EngineInfo:
        """The model that answers.

        Raises:
            ServiceError: LOADING, CRASH_LOOP or DRAINING.
        """
        if self.state is PoolState.DRAINING:
            raise ServiceError(Fault(Reason.DRAINING, "the server is shutting down"))
        if self.state is PoolState.CRASH_LOOP:
            retry_after = self._seconds_to_ready()
            raise ServiceError(Fault(Reason.CRASH_LOOP, self.stage, retry_after=retry_after))
        if self._info is None or self.state is not PoolState.READY:
            retry_after = 1.0 if self._info is None else self._seconds_to_ready()
            message = f"the model is not ready: {self.stage}"
            raise ServiceError(Fault(Reason.LOADING, message, retry_after=retry_after))
        return self._info

    @property
    def queued_tokens(self) -> int:
        """Tokens of admitted calls that are not answered yet."""
        return self._admission.tokens

    @property
    def taken_tokens(self) -> int:
        """Of the queue's room, which calls take until they are over."""
        return self._admission.taken

    @property
    def unread_bytes(self) -> int:
        """Results that wait for readers."""
        return self._dispatcher.unread

    @property
    def running_calls(self) -> int:
        """Calls of which something was begun."""
        return len(self._streams) - self.waiting_calls

    def new_call_id(self) -> int:
        """An id for the next call."""
        return next(self._call_ids)

    def check_room(self, client: str) -> None:
        """Refuses a client that would have no room for any call, before anything is spent on it.

        Raises:
            ServiceError: QUEUE_FULL.
        """
        with self._counting_refusals():
            self._admission.check_room(client)

    @asynccontextmanager
    async def run(
        self, call: Call, client: str = "", avoid: int | None = None
    ) -> AsyncIterator[CallStream]:
        """Admits a call and gives its events; leaving the context early cancels it.

        Args:
            call: with an id from `new_call_id`.
            client: whose share of the queue it takes.
            avoid: index of a worker that computes it only if no other one may.

        Raises:
            ServiceError: QUEUE_FULL, LOADING, CRASH_LOOP, DRAINING.
        """
        info = self.info
        stream = self._admit(call, client, info, avoid)
        try:
            yield stream
        finally:
            self._end(stream)
            self._forget_unread(stream)
            self._readers -= 1
            if not self._readers:
                self._idle.set()

    def tokens_ahead(self, call_id: int) -> int:
        """Tokens of calls that go before this one and are not answered yet."""
        return self._admission.tokens_ahead(call_id)

    async def wait_changed(self) -> None:
        """Waits for the next change of `state` or `stage`."""
        await self._changed.wait()

    async def drain(self, patience: float) -> None:
        """Refuses new calls, waits for those admitted, ends the workers."""
        self._set(PoolState.DRAINING, "draining")
        try:
            async with asyncio.timeout(patience):
                await self._idle.wait()
        except TimeoutError:
            log.warning("drain_timeout", model=self.name, calls=len(self._streams))
            fault = Fault(Reason.DRAINING, "the server shut down before this call ended")
            for stream in list(self._streams.values()):
                self._fail(stream, fault)
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        await asyncio.gather(*(worker.stop(_STOP_SECONDS) for worker in self.workers))

    # What workers tell.

    def worker_ready(self, worker: Worker, info: EngineInfo) -> None:
        """It takes parts, if it computes what the others compute."""
        others = [w for w in self._ready_workers() if w is not worker]
        if self._info is None or not _same_model(self._info, info):
            if others:
                log.error("other_model", worker=worker.index, weights_digest=info.weights_digest)
                worker.state = WorkerState.LOADING
                worker.kill()
                return
            self._info = info
            self._admission.turn_tokens = TURN_BATCHES * info.max_batch_tokens
            self._dispatcher.batch_tokens = info.max_batch_tokens
            self._dispatcher.chunk_size = info.chunk_size
        self.observer.worker_ready(worker.index, worker.restart_seconds)
        log.info("worker_ready", worker=worker.index, seconds=round(worker.restart_seconds, 2))
        self._update_state()
        self._dispatcher.dispatch()

    def worker_lost(self, worker: Worker, description: str) -> None:
        """What it had goes to others, where there are any."""
        self.observer.worker_died(worker.index, description)
        parts = list(worker.parts.values())
        for part in parts:
            worker.drop(part)
            part.stream.running.pop(part.part_id, None)
        if self._info is None:
            worker.state = WorkerState.GONE
            self._give_up(f"the worker died while it loaded the model ({description})")
            return
        can_move = bool(self._ready_workers())
        fault = Fault(
            Reason.WORKER_DIED,
            f"the worker died ({description})",
            retry_after=worker.settings.first_backoff + worker.restart_seconds,
        )
        # Backwards, because each goes to the front of its call's parts.
        for part in reversed(parts):
            if part.stream.ended:
                continue
            if part.retried or not can_move:
                self._fail(part.stream, fault)
            else:
                self._retry(part)
        self._update_state()
        self._dispatcher.dispatch()

    def worker_refused(self, worker: Worker, message: str) -> None:
        """Trying again would not help: it is given up, and the pool with the last of them."""
        worker.state = WorkerState.GONE
        log.error("load_failed", worker=worker.index, message=message)
        if self._info is None or all(w.state is WorkerState.GONE for w in self.workers):
            self._give_up(message)
        else:
            self._update_state()

    def worker_changed(self, worker: Worker) -> None:
        """Passes a change of a worker on as one of the pool."""
        if self.state is not PoolState.FAILED:
            self._update_state()

    def part_event(self, worker: Worker, event: CallEvent) -> None:
        """Something of a part to its call."""
        part = worker.parts.get(event.call_id)
        if part is None:
            return
        stream = part.stream
        match event:
            case CallStarted():
                if stream.queue_seconds is None:
                    stream.queue_seconds = time.monotonic() - stream.began
                    self.waiting_calls -= 1
                    stream.push(event)
            case CallFinished(_, usage):
                worker.drop(part)
                stream.running.pop(part.part_id, None)
                stream.usage += usage
                self._admission.finished(stream.call.call_id, part.call.tokens)
                if not stream.waiting and not stream.running:
                    self._finish(stream)
                self._dispatcher.dispatch()
            case CallFailed(_, fault, in_company):
                if in_company and not part.alone:
                    worker.drop(part)
                    stream.running.pop(part.part_id, None)
                    self._retry(part, alone=True)
                else:
                    self._fail(stream, fault)
                self._dispatcher.dispatch()
            case _:
                part.delivered.note(event)
                if stream.watch is not None:
                    stream.watch.note(event, worker.index)
                before = stream.unread
                stream.push(event, part)
                self._dispatcher.answered(stream.client, stream.unread - before)
                if part.is_held_back:
                    worker.weigh(part)
                    self._dispatcher.dispatch()

    # What readers tell.

    def part_taken(self, part: Part, size: int) -> None:
        """The reader took results: the worker may compute as many more."""
        for worker in self.workers:
            if part.part_id in worker.parts:
                worker.weigh(part)
                worker.send(Credit(part.part_id, size))

    def stream_read(self, stream: CallStream, size: int) -> None:
        """A call that its reader had held back may go on."""
        self._dispatcher.read(stream.client, size)

    # Calls.

    def _admit(self, call: Call, client: str, info: EngineInfo, avoid: int | None) -> CallStream:
        size = size_of(call)
        ticket = Ticket(call.call_id, client, call.priority, call.tokens, size.reply_bytes)
        with self._counting_refusals():
            self._admission.admit(ticket, call.deadline)
        stream = CallStream(call, client, self, avoid=avoid)
        stream.watch = self._auditor.choose(call, client)
        most = TURN_BATCHES * info.max_batch_tokens
        stream.waiting.extend(self._part(piece, stream) for piece in split(call, most))
        self._streams[call.call_id] = stream
        self.waiting_calls += 1
        self._readers += 1
        self._idle.clear()
        self._dispatcher.add(stream)
        self._dispatcher.dispatch()
        return stream

    @contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        try:
            yield
        except ServiceError as error:
            self.observer.refused(error.fault.reason)
            raise

    def _part(
        self, call: Call, stream: CallStream, retried: bool = False, alone: bool = False
    ) -> Part:
        part_id = next(self._part_ids)
        own = replace(call, call_id=part_id)
        chunk_size = 0 if self._info is None else self._info.chunk_size
        keys = prompt_keys(own, chunk_size) if len(self.workers) > 1 else []
        return Part(part_id, own, stream, size_of(own), keys, retried=retried, alone=alone)

    def _retry(self, part: Part, alone: bool = False) -> None:
        """What is left of a part is computed again: where others are, or with nobody beside it."""
        stream = part.stream
        stream.usage += part.delivered.usage
        left = part.delivered.remainder(part.call)
        if left is None:
            if not stream.waiting and not stream.running:
                self._finish(stream)
            return
        log.info("retried", call=stream.call.call_id, tokens=left.tokens)
        self.observer.retried()
        again = self._part(left, stream, retried=part.retried or not alone, alone=alone)
        stream.waiting.appendleft(again)
        self._dispatcher.add(stream)

    def _forget_unread(self, stream: CallStream) -> None:
        self._dispatcher.read(stream.client, stream.discard())

    def _finish(self, stream: CallStream) -> None:
        usage = stream.final_usage()
        self._end(stream)
        if stream.watch is not None and self.state is PoolState.READY:
            self._auditor.compare(stream.watch)
        stream.push(CallFinished(stream.call.call_id, usage))

    def _fail(self, stream: CallStream, fault: Fault) -> None:
        if not stream.ended:
            self._end(stream)
            stream.push(CallFailed(stream.call.call_id, fault))

    def _end(self, stream: CallStream) -> None:
        """Frees everything that a call holds but the events that its reader has yet to take."""
        if stream.ended:
            return
        stream.ended = True
        self._dispatcher.remove(stream)
        stream.waiting.clear()
        for part_id in list(stream.running):
            part = stream.running.pop(part_id)
            for worker in self.workers:
                if part_id in worker.parts:
                    worker.drop(part)
                    worker.send(Cancel(part_id))
        self._streams.pop(stream.call.call_id, None)
        if stream.queue_seconds is None:
            self.waiting_calls -= 1
        self._admission.release(stream.call.call_id)
        self._dispatcher.dispatch()

    def _expire(self, stream: CallStream) -> None:
        message = "the deadline passed before the call was finished"
        self._fail(stream, Fault(Reason.DEADLINE_EXCEEDED, message))

    async def _keep_house(self) -> None:
        """Ends calls that nobody waits for any more, and those whose readers stall."""
        while True:
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
            now = time.monotonic()
            for stream in list(self._streams.values()):
                if stream.call.deadline < now:
                    self._expire(stream)
                elif stream.unread and now - stream.last_read > self._settings.reader_timeout:
                    self._stalled(stream)

    def _stalled(self, stream: CallStream) -> None:
        seconds = self._settings.reader_timeout
        message = f"the reader took nothing for {seconds:g} s while {stream.unread} bytes waited"
        log.warning("reader_stalled", call=stream.call.call_id, unread=stream.unread)
        self._forget_unread(stream)
        self._fail(stream, Fault(Reason.READER_STALLED, message))

    # The pool as a whole.

    def _ready_workers(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.state is WorkerState.READY]

    def _seconds_to_ready(self) -> float:
        alive = [w.seconds_to_ready for w in self.workers if w.state is not WorkerState.GONE]
        return min(alive, default=1.0)

    def _give_up(self, message: str) -> None:
        self.failure = message
        self._set(PoolState.FAILED, message)

    def _update_state(self) -> None:
        """Derives the pool's state from its workers'."""
        if self.state in (PoolState.DRAINING, PoolState.FAILED):
            return
        if self._ready_workers():
            self._set(PoolState.READY, "ready")
            return
        alive = [w for w in self.workers if w.state is not WorkerState.GONE]
        looping = [w for w in alive if w.policy.looping]
        if alive and len(looping) == len(alive):
            self._set(PoolState.CRASH_LOOP, describe_loop(looping))
        else:
            self._set(PoolState.LOADING, describe_loading(alive))

    def _set(self, state: PoolState, stage: str) -> None:
        self.state, self.stage = state, stage
        self._changed.set()
        self._changed.clear()


def _same_model(left: EngineInfo, right: EngineInfo) -> bool:
    """Whether two workers give the same numbers."""
    return (left.weights_digest, left.weight_version, left.numerics_id) == (
        right.weights_digest,
        right.weight_version,
        right.numerics_id,
    )
