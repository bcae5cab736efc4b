"""Calls from their admission to their end: their parts, and what they hold. In the event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import structlog

from scoring_service.engine.events import (
    CallFailed,
    CallFinished,
    Cancel,
    Credit,
    WeightsChanged,
)
from scoring_service.errors import Fault, Reason, ServiceError, deadline_passed
from scoring_service.peak_memory import part_credit
from scoring_service.pool.admission.admission import Admission, Ticket
from scoring_service.pool.calls.cutting import CallPiece, Cut, CutSettings, cut, piece_of
from scoring_service.pool.calls.dispatch import Dispatcher
from scoring_service.pool.observer import PoolObserver
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.streams.auditor import Auditor
from scoring_service.pool.streams.self_audit import PRIORITY
from scoring_service.pool.streams.stream import CallStream, Part
from scoring_service.pool.weights.sets import WeightSet
from scoring_service.pool.weights.weights import PoolWeights
from scoring_service.pool.workers.readiness import PoolState, Readiness
from scoring_service.pool.workers.worker import Worker
from scoring_service.types import Call, EngineInfo, SampleCall

log = structlog.get_logger(__name__)

TURN_BATCHES = 4
"""Steps' worth of tokens in a part of a call."""


class AdmittedCalls:
    """Calls are cut into parts. Parts wait here and go out a few at a time.

    Args:
        workers: of the pool.
        weights: that they have.
        readiness: of the pool.
        settings: of the pool.
        observer: is told of refusals and retries.
        auditor: chooses what is computed a second time.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        weights: PoolWeights,
        readiness: Readiness,
        settings: PoolSettings,
        observer: PoolObserver,
        auditor: Auditor,
    ) -> None:
        self.readers: set[CallStream] = set()
        """Calls that their readers have not left yet."""
        self.streams: dict[int, CallStream] = {}
        """Calls that are not over."""
        self.admission = Admission(
            settings.max_queue_tokens, settings.max_queue_reply_bytes, self._running_tokens
        )
        self.dispatcher = Dispatcher(
            workers, weights, self.admission.throughput, self.expire, self.fail
        )
        self.workers = workers
        self.weights = weights
        self._readiness = readiness
        self._observer = observer
        self._auditor = auditor
        self._call_ids = itertools.count(1)
        self._part_ids = itertools.count(1)
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting(self) -> int:
        """Calls of which nothing was begun."""
        return sum(stream.queue_seconds is None for stream in self.streams.values())

    def new_id(self) -> int:
        """An id for the next call."""
        return next(self._call_ids)

    def check_room(self, client: str, tokens: int) -> None:
        """Refuses a call that has at least so many tokens, if there is no room for it.

        Raises:
            ServiceError: QUEUE_FULL.
        """
        with self._counting_refusals():
            self.admission.check_room(client, tokens)

    def model_ready(self, info: EngineInfo) -> None:
        """How large its steps are decides how calls are cut, and how much goes out at a time."""
        self.admission.turn_tokens = TURN_BATCHES * info.max_batch_tokens
        self.dispatcher.batch_tokens = info.max_batch_tokens
        self.dispatcher.chunk_size = info.chunk_size

    # From admission to the reader's leave.

    async def cut(self, call: Call, info: EngineInfo) -> Cut:
        """What is to be admitted of a call.

        Raises:
            ServiceError: OUT_OF_MEMORY.
        """
        # Where there is one worker, nobody asks which has a prompt.
        chunk_size = info.chunk_size if len(self.workers) > 1 else 0
        most = TURN_BATCHES * info.max_batch_tokens
        with self._counting_refusals():
            return await cut(call, CutSettings(most, chunk_size, info.limits))

    def admit(
        self, call: Call, parts: Cut, client: str, avoid: int | None, alone: bool
    ) -> CallStream:
        """Lets a call in; see `WorkerPool.run` for what it is given.

        Raises:
            ServiceError: QUEUE_FULL.
        """
        size = parts.size
        ticket = Ticket(call.call_id, client, call.priority, size.tokens, size.reply_bytes)
        with self._counting_refusals():
            self.admission.admit(ticket, call.deadline)
        stream = CallStream(call, client, self, size.tokens, avoid=avoid)
        stream.watch = self._auditor.choose(call, client)
        stream.waiting.extend(self._part(piece, stream, alone=alone) for piece in parts.pieces)
        self.streams[call.call_id] = stream
        self.readers.add(stream)
        self._idle.clear()
        self.dispatcher.add(stream)
        return stream

    def pin(self, stream: CallStream, accepts: Callable[[EngineInfo], bool] | None) -> None:
        """Keeps the running weights for a call that insists on what they are."""
        current = self.weights.current
        stream.told = current.number
        if accepts is not None:
            stream.accepts, stream.pinned = accepts, current.number
            self.weights.weight_sets.hold(current.number)

    def leave(self, stream: CallStream) -> None:
        """Its reader takes nothing more of it."""
        self.end(stream)
        self.forget_unread(stream)
        self.readers.discard(stream)
        if not self.readers:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Waits until readers have left all calls."""
        await self._idle.wait()

    @contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        try:
            yield
        except ServiceError as error:
            self._observer.refused(error.fault.reason)
            raise

    # What readers tell.

    def tokens_ahead(self, call_id: int) -> int:
        """Tokens of calls that go before this one and are not answered yet."""
        return self.admission.tokens_ahead(call_id)

    def part_taken(self, part: Part, size: int) -> None:
        """The reader took results: the worker may compute as many more."""
        if part.worker is not None:
            worker = self.workers[part.worker]
            worker.work.weigh(part)
            worker.send(Credit(part.part_id, size))

    def stream_read(self, stream: CallStream, size: int) -> None:
        """A call that its reader had held back may go on."""
        if stream.waiting and not stream.ended:
            self.dispatcher.add(stream)
        self.dispatcher.read(stream.client, size)

    def forget_unread(self, stream: CallStream) -> None:
        """Its reader will take none of what waits for it."""
        self.dispatcher.read(stream.client, stream.discard())

    def stalled(self, stream: CallStream, fault: Fault) -> None:
        """Its reader has taken nothing for too long: that is how the call ends, computed or not."""
        self.forget_unread(stream)
        self.end(stream)
        stream.push(CallFailed(stream.call.call_id, fault))

    # Parts.

    def parts_running(self) -> int:
        """Parts that workers compute, and those that wait and must end on the running weights."""
        ends_first = self.dispatcher.ends_first
        waiting = sum(ends_first(part) for s in self.streams.values() for part in s.waiting)
        return waiting + sum(len(worker.parts) for worker in self.workers)

    def retry(self, part: Part, *, alone: bool = False, anew: bool = False) -> None:
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
            self.finish_if_done(stream)
            return
        chunk_size = self.dispatcher.chunk_size if len(self.workers) > 1 else 0
        again = self._part(
            piece_of(left, chunk_size),
            stream,
            retried=part.retried or not (alone or anew),
            alone=alone or part.alone,
        )
        if not anew:
            log.info("retried", request_id=stream.call.request_id, tokens=again.tokens)
            self._observer.retried()
            again.weights = part.weights
            if part.weights is not None:
                self.weights.weight_sets.hold(part.weights)
        stream.waiting.appendleft(again)
        self.dispatcher.add(stream)

    def free(self, part: Part) -> None:
        """A part that is over needs no weights, and its call has its turn with what else runs."""
        if part.weights is not None:
            self.weights.weight_sets.release(part.weights)
            part.weights = None
        if part.stream.waiting and not part.stream.ended:
            self.dispatcher.add(part.stream)
        if self.weights.update is not None:
            self.weights.update.parts_changed()

    def digest_of(self, part: Part) -> str | None:
        """Of the weights that compute a part."""
        weight_set = self._weight_set_of(part)
        return None if weight_set is None else weight_set.info.weights_digest

    def _weight_set_of(self, part: Part) -> WeightSet | None:
        return None if part.weights is None else self.weights.weight_sets.find(part.weights)

    def tell_weights(self, part: Part) -> None:
        """Says so before results come from other weights than those before them."""
        weight_set = self._weight_set_of(part)
        if weight_set is not None and part.stream.told != weight_set.number:
            part.stream.told = weight_set.number
            part.stream.push(WeightsChanged(weight_set.info))

    def _part(
        self, piece: CallPiece, stream: CallStream, retried: bool = False, alone: bool = False
    ) -> Part:
        part_id = next(self._part_ids)
        own = replace(piece.call, call_id=part_id)
        if isinstance(own, SampleCall):
            own = replace(own, part_of=stream.call.call_id)
        return Part(
            part_id,
            own,
            stream,
            piece.size,
            piece.keys,
            part_credit(self.dispatcher.batch_tokens),
            retried=retried,
            alone=alone,
        )

    def _running_tokens(self) -> int:
        """Of the parts that workers have, computed or not."""
        return sum(part.tokens for worker in self.workers for part in worker.parts.values())

    # Ends.

    def finish_if_done(self, stream: CallStream) -> None:
        """Ends a call of which no part is left."""
        if stream.waiting or stream.running:
            return
        usage = stream.final_usage()
        self.end(stream)
        if stream.watch is not None and self._readiness.state is PoolState.READY:
            self._auditor.compare(stream.watch)
        stream.push(CallFinished(stream.call.call_id, usage))

    def fail(self, stream: CallStream, fault: Fault) -> None:
        """Ends a call with a fault."""
        if not stream.ended:
            self.end(stream)
            stream.push(CallFailed(stream.call.call_id, fault))

    def expire(self, stream: CallStream) -> None:
        """Ends a call whose deadline has passed."""
        self.fail(stream, deadline_passed())

    def end_audits(self, info: EngineInfo) -> None:
        """Ends audits of other weights than these: while others go first they would keep theirs."""
        for stream in list(self.streams.values()):
            if stream.call.priority == PRIORITY and stream.insists_against(info):
                message = "the weights that the audit is about were replaced"
                self.fail(stream, Fault(Reason.WEIGHT_VERSION_MISMATCH, message))

    def end(self, stream: CallStream) -> None:
        """Frees everything that a call holds but the events that its reader has yet to take."""
        if stream.ended:
            return
        stream.ended = True
        self.dispatcher.remove(stream)
        for part in stream.waiting:
            self.free(part)
        stream.waiting.clear()
        if stream.pinned is not None:
            self.weights.weight_sets.release(stream.pinned)
            stream.pinned = None
        if stream.running:
            self.admission.throughput.dropped()
        for part_id in list(stream.running):
            part = stream.running.pop(part_id)
            stream.usage += part.delivered.usage
            self.free(part)
            if part.worker is not None:
                worker = self.workers[part.worker]
                worker.drop(part)
                worker.send(Cancel(part_id))
        self.streams.pop(stream.call.call_id, None)
        self.admission.release(stream.call.call_id)
        self.dispatcher.dispatch()
