"""The pool: a model's workers and the calls they share. Lives in the event loop."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import structlog

from scoring_service.engine.events import (
    CallEvent,
    CallFailed,
    CallFinished,
    CallStarted,
    Cancel,
    Credit,
    WeightEvent,
    WeightsChanged,
)
from scoring_service.errors import Fault, Reason, ServiceError
from scoring_service.pool.admission import Admission, Ticket
from scoring_service.pool.auditor import Auditor
from scoring_service.pool.cache_flush import CacheFlush
from scoring_service.pool.call_memory import check_memory
from scoring_service.pool.dispatch import Dispatcher
from scoring_service.pool.executor import Executor, WorkerExited
from scoring_service.pool.generations import Generation
from scoring_service.pool.observer import PoolObserver
from scoring_service.pool.parts import size_of, split
from scoring_service.pool.readiness import PoolState, Readiness
from scoring_service.pool.routing import prompt_keys
from scoring_service.pool.running_samples import unfinished
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.stream import CallStream, Part
from scoring_service.pool.weight_status import RunningSamples
from scoring_service.pool.weights import PoolWeights
from scoring_service.pool.worker import Worker, WorkerState
from scoring_service.types import Call, EngineInfo, SampleCall

log = structlog.get_logger(__name__)

TURN_BATCHES = 4
"""Steps' worth of tokens in a part of a call."""

_STOP_SECONDS = 5.0
_HOUSEKEEPING_SECONDS = 1.0


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
        self.waiting_calls = 0
        """Calls of which nothing was begun."""
        self.workers = [
            Worker(index, make_executor, settings, self) for index in range(settings.workers)
        ]
        self.observer = observer or PoolObserver()
        self.weights = PoolWeights(self, self.workers)
        self.cache = CacheFlush()
        self._readiness = Readiness(name, self.workers, self._awaits_weights)
        self._settings = settings
        self._info: EngineInfo | None = None
        self._admission = Admission(
            settings.max_queue_tokens, settings.max_queue_reply_bytes, self._running_tokens
        )
        self._dispatcher = Dispatcher(
            self.workers, self.weights, self._admission.throughput, self._expire, self._fail
        )
        self._streams: dict[int, CallStream] = {}
        self._call_ids = itertools.count(1)
        self._part_ids = itertools.count(1)
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
            ServiceError: LOADING, AWAITING_WEIGHTS, CRASH_LOOP or DRAINING.
        """
        return self._readiness.check(self._info)

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
    def takes_updates(self) -> bool:
        """Whether an update of the weights could begin, as far as workers are concerned."""
        return self.state in (PoolState.READY, PoolState.PAUSED, PoolState.AWAITING_WEIGHTS)

    @property
    def weight_version(self) -> int | None:
        """Of the weights that calls begin with; None until the model is loaded."""
        return None if self._info is None else self._info.weight_version

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
        self,
        call: Call,
        client: str = "",
        avoid: int | None = None,
        accepts: Callable[[EngineInfo], bool] | None = None,
    ) -> AsyncIterator[CallStream]:
        """Admits a call and gives its events; leaving the context early cancels it.

        Args:
            call: with an id from `new_call_id`.
            client: whose share of the queue it takes.
            avoid: index of a worker that computes it only if no other one may.
            accepts: whether weights are those that the call insists on; the running ones are.

        Raises:
            ServiceError: QUEUE_FULL, OUT_OF_MEMORY, LOADING, AWAITING_WEIGHTS, CRASH_LOOP,
                DRAINING, WEIGHT_VERSION_MISMATCH.
        """
        info = self.info
        if accepts is not None and not accepts(info):
            message = (
                f"version {info.weight_version} of the weights is not what the call insists on"
            )
            raise ServiceError(Fault(Reason.WEIGHT_VERSION_MISMATCH, message))
        stream = self._admit(call, client, info, avoid)
        try:
            self._pin(stream, accepts)
            self._dispatcher.dispatch()
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
        await self._readiness.wait_changed()

    async def drain(self, patience: float) -> None:
        """Refuses new calls, waits for those admitted, ends the workers."""
        self._readiness.set(PoolState.DRAINING, "draining")
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
        self.weights.close()

    def pause(self) -> None:
        """Refuses new calls; those that were admitted go on."""
        self._readiness.pause(on=True)

    def resume(self) -> None:
        """Takes calls again."""
        self._readiness.pause(on=False)

    @property
    def calls_left(self) -> int:
        """Calls that their readers have not left yet."""
        return self._readers

    # What workers tell.

    def worker_ready(self, worker: Worker, info: EngineInfo) -> None:
        """It takes parts, if it computes what the others compute."""
        if self.weights.admit(worker, info):
            self.worker_admitted(worker)
        else:
            self._readiness.update()

    def worker_admitted(self, worker: Worker) -> None:
        """It computes what the others compute."""
        info = self.weights.current.info
        if self._info is None or info is not self._info:
            self._info = info
            self._admission.turn_tokens = TURN_BATCHES * info.max_batch_tokens
            self._dispatcher.batch_tokens = info.max_batch_tokens
            self._dispatcher.chunk_size = info.chunk_size
        self.observer.worker_ready(worker.index, worker.restart_seconds)
        log.info("worker_ready", worker=worker.index, seconds=round(worker.restart_seconds, 2))
        self._readiness.update()
        self._dispatcher.dispatch()

    def model_replaced(self, info: EngineInfo) -> None:
        """No worker was left, and the first that came back has loaded another model.

        It has the number of the first one, so nothing may go on by that number alone.
        """
        log.warning("model_replaced", weights_digest=info.weights_digest)
        for stream in list(self._streams.values()):
            stream.told = None
            if any(part.weights is not None for part in stream.waiting):
                message = "the workers died that had the weights which this call began with"
                self._fail(stream, Fault(Reason.WORKER_DIED, message, retry_after=0.1))
            elif stream.accepts is not None and not stream.accepts(info):
                message = "the weights that the call insists on were replaced"
                self._fail(stream, Fault(Reason.WEIGHT_VERSION_MISMATCH, message))

    def weight_event(self, worker: Worker, event: WeightEvent) -> None:
        """Something about weights."""
        self.weights.event(worker, event)

    def cache_flushed(self, worker: Worker, pages: int) -> None:
        """It forgot cached prompts."""
        worker.prefixes.clear()
        self.cache.flushed(worker.index, pages)

    def worker_lost(self, worker: Worker, exited: WorkerExited) -> None:
        """What it had goes to others, where there are any."""
        self.weights.worker_lost(worker)
        self.cache.flushed(worker.index, 0)
        self.observer.worker_died(worker.index, exited.description)
        parts = list(worker.parts.values())
        for part in parts:
            worker.drop(part)
        if self._info is None:
            worker.state = WorkerState.GONE
            self._readiness.give_up(exited.in_words(" while it loaded the model"))
            return
        can_move = bool(self._readiness.ready_workers())
        fault = Fault(
            Reason.WORKER_DIED,
            exited.in_words(),
            retry_after=worker.settings.first_backoff + worker.restart_seconds,
        )
        # Backwards, because each goes to the front of its call's parts.
        for part in reversed(parts):
            stream = part.stream
            if stream.ended:
                continue  # and all that was running of it is free
            # One by one: a call is over only when none of its parts is left.
            stream.running.pop(part.part_id, None)
            if part.retried or not can_move:
                self._fail(stream, fault)
            else:
                self._retry(part)
            self._free(part)
        self._readiness.update()
        self._dispatcher.dispatch()

    def worker_refused(self, worker: Worker, message: str) -> None:
        """Trying again would not help: it is given up, and the pool with the last of them."""
        worker.state = WorkerState.GONE
        log.error("load_failed", worker=worker.index, message=message)
        if self._info is None or all(w.state is WorkerState.GONE for w in self.workers):
            self._readiness.give_up(message)
        else:
            self._readiness.update()

    def worker_changed(self, worker: Worker) -> None:
        """Passes a change of a worker on as one of the pool."""
        if self.state is not PoolState.FAILED:
            self._readiness.update()

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
                self._free(part)
                stream.running.pop(part.part_id, None)
                stream.usage += usage
                self._admission.finished(stream.call.call_id, part.tokens, part.sent)
                if not stream.waiting and not stream.running:
                    self._finish(stream)
                self._dispatcher.dispatch()
            case CallFailed(_, fault, in_company):
                if in_company and not part.alone:
                    worker.drop(part)
                    stream.running.pop(part.part_id, None)
                    self._retry(part, alone=True)
                    self._free(part)
                else:
                    self._fail(stream, fault)
                self._dispatcher.dispatch()
            case _:
                part.delivered.note(event)
                if stream.watch is not None:
                    stream.watch.note(event, worker.index)
                self._tell_weights(part)
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
            check_memory(call, info.limits)
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
        return stream

    def _pin(self, stream: CallStream, accepts: Callable[[EngineInfo], bool] | None) -> None:
        """Keeps the running weights for a call that insists on what they are."""
        current = self.weights.current
        stream.told = current.number
        if accepts is not None:
            stream.accepts, stream.pinned = accepts, current.number
            self.weights.generations.hold(current.number)

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

    def _tell_weights(self, part: Part) -> None:
        """Says so before results come from other weights than those before them."""
        generation = None if part.weights is None else self.weights.generations.find(part.weights)
        if generation is not None and part.stream.told != generation.number:
            part.stream.told = generation.number
            part.stream.push(WeightsChanged(generation.info))

    def _free(self, part: Part) -> None:
        """A part that is over needs no weights."""
        if part.weights is not None:
            self.weights.generations.release(part.weights)
            part.weights = None
        if self.weights.update is not None:
            self.weights.update.parts_changed()

    def _retry(self, part: Part, *, alone: bool = False, anew: bool = False) -> None:
        """What is left of a part is computed again, with the weights that it had.

        Args:
            part: that ended too early.
            alone: with nobody beside it, wherever that is; else where others are.
            anew: with whatever weights are running.
        """
        stream = part.stream
        stream.usage += part.delivered.usage
        left = part.delivered.remainder(part.call)
        if left is None:
            if not stream.waiting and not stream.running:
                self._finish(stream)
            return
        again = self._part(
            left, stream, retried=part.retried or not (alone or anew), alone=alone or part.alone
        )
        if not anew:
            log.info("retried", call=stream.call.call_id, tokens=left.tokens)
            self.observer.retried()
            again.weights = part.weights
            if part.weights is not None:
                self.weights.generations.hold(part.weights)
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
        for part in stream.waiting:
            self._free(part)
        stream.waiting.clear()
        if stream.pinned is not None:
            self.weights.generations.release(stream.pinned)
            stream.pinned = None
        for part_id in list(stream.running):
            part = stream.running.pop(part_id)
            self._free(part)
            for worker in self.workers:
                if part_id in worker.parts:
                    worker.drop(part)
                    worker.send(Cancel(part_id))
        self._streams.pop(stream.call.call_id, None)
        if stream.queue_seconds is None:
            self.waiting_calls -= 1
        self._admission.release(stream.call.call_id)
        self._dispatcher.dispatch()

    def _running_tokens(self) -> int:
        """Of the parts that workers have, computed or not."""
        return sum(part.tokens for worker in self.workers for part in worker.parts.values())

    # What an update of the weights does.

    def hold_back(self, *, on: bool) -> None:
        """While on, nothing is begun but what must end on the running weights."""
        self._dispatcher.hold_back(on=on)

    def parts_running(self) -> int:
        """Parts that workers compute, and those that a dead one left to others."""
        waiting = sum(p.weights is not None for s in self._streams.values() for p in s.waiting)
        return waiting + sum(len(worker.parts) for worker in self.workers)

    def change_samples(self, policy: RunningSamples, reason: str) -> None:
        """Does with the samples that are being drawn what an update says."""
        if policy is RunningSamples.FINISH:
            return
        count = 0
        for worker in self.workers:
            for part in [p for p in worker.parts.values() if isinstance(p.call, SampleCall)]:
                current, accepts = self.weights.current, part.stream.accepts
                if accepts is not None and not accepts(current.info):
                    continue  # it insists on what it has
                count += 1
                worker.drop(part)
                worker.send(Cancel(part.part_id))
                part.stream.running.pop(part.part_id, None)
                if policy is RunningSamples.CONTINUE:
                    self._retry(part, anew=True)
                else:
                    self._abort_samples(part)
                self._free(part)
        log.info("samples_changed", policy=str(policy), when=reason, parts=count)
        self._dispatcher.dispatch()

    def _abort_samples(self, part: Part) -> None:
        stream = part.stream
        for event in unfinished(part):
            stream.push(event)
        stream.usage += part.delivered.usage
        if not stream.waiting and not stream.running:
            self._finish(stream)

    def commit(self, generation: Generation) -> None:
        """Calls begin with these weights from now on."""
        self._info = generation.info
        self.weights.commit(generation)
        for worker in self.workers:
            worker.prefixes.clear()  # what they hold was computed with other weights
        if self.state is PoolState.AWAITING_WEIGHTS:
            self._readiness.update()
        self._readiness.tell()

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

    def _awaits_weights(self) -> bool:
        """Whether nothing may be answered yet, because nobody gave weights."""
        return self._settings.await_weights and not self.weights.committed
