"""Calls from their admission to their reader's leave. Lives in the event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from scoring_service.engine.events import Credit
from scoring_service.errors import ServiceError
from scoring_service.pool.admission.admission import Admission, Ticket
from scoring_service.pool.calls.call_ends import CallEnds
from scoring_service.pool.calls.cutting import Cut, CutSettings, cut
from scoring_service.pool.calls.dispatch import Dispatcher
from scoring_service.pool.calls.part_making import PartMaking
from scoring_service.pool.observer import PoolObserver
from scoring_service.pool.settings import PoolSettings
from scoring_service.pool.streams.auditor import Auditor
from scoring_service.pool.streams.self_audit import Watch
from scoring_service.pool.streams.stream import CallStream, Part
from scoring_service.pool.weights.weights import PoolWeights
from scoring_service.pool.workers.readiness import PoolState, Readiness
from scoring_service.pool.workers.worker import Worker
from scoring_service.types import Call, EngineInfo

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
            workers,
            weights,
            self.admission.throughput,
            lambda stream: self.ends.expire(stream),
            lambda stream, fault: self.ends.fail(stream, fault),
        )
        self.parts = PartMaking(workers, weights, self.dispatcher, observer)
        self.ends = CallEnds(
            self.streams,
            parts=self.parts,
            admission=self.admission,
            dispatcher=self.dispatcher,
            workers=workers,
            weights=weights,
            audit=self._audit,
        )
        self.workers = workers
        self.weights = weights
        self._readiness = readiness
        self._observer = observer
        self._auditor = auditor
        self._call_ids = itertools.count(1)
        self._idle = asyncio.Event()
        self._idle.set()

    # Metrics ask from a thread of their own, while calls come and go: a list is made at once.

    @property
    def waiting(self) -> int:
        """Calls of which nothing was begun."""
        return sum(stream.queue_seconds is None for stream in list(self.streams.values()))

    @property
    def running(self) -> int:
        """Calls of which something was begun."""
        return sum(stream.queue_seconds is not None for stream in list(self.streams.values()))

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
        stream.waiting.extend(self.parts.make(piece, stream, alone=alone) for piece in parts.pieces)
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
        self.ends.end(stream)
        self.ends.forget_unread(stream)
        self.readers.discard(stream)
        if not self.readers:
            self._idle.set()
            if self._readiness.state is not PoolState.READY:
                self._readiness.tell()  # whoever has it drained waits for that

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

    # Parts.

    def parts_running(self) -> int:
        """Parts that workers compute, and those that wait and must end on the running weights."""
        ends_first = self.dispatcher.ends_first
        waiting = sum(ends_first(part) for s in self.streams.values() for part in s.waiting)
        return waiting + sum(len(worker.parts) for worker in self.workers)

    def retry(self, part: Part, *, alone: bool = False, anew: bool = False) -> None:
        """What is left of a part is computed again; see `PartMaking.retry`."""
        if not self.parts.retry(part, alone=alone, anew=anew):
            self.ends.finish_if_done(part.stream)

    def _audit(self, watch: Watch) -> None:
        """Only while new calls are taken, of which an audit is one."""
        if self._readiness.state is PoolState.READY:
            self._auditor.compare(watch)

    def _running_tokens(self) -> int:
        """Of the parts that workers have, computed or not."""
        return sum(part.tokens for worker in self.workers for part in worker.parts.values())
