"""Which part of which call goes to which worker next. Lives in the event loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from scoring_service.engine.events import LOADED, Submit
from scoring_service.errors import Fault, Reason, required_weights_replaced
from scoring_service.pool.admission.fair_queue import FairQueue, Wait
from scoring_service.pool.admission.reply_memory import ReplyMemory
from scoring_service.pool.admission.throughput import Throughput
from scoring_service.pool.streams.stream import CallStream, Part
from scoring_service.pool.weights.weights import PoolWeights
from scoring_service.pool.workers.window import cost, has_room, has_slots
from scoring_service.pool.workers.worker import Worker
from scoring_service.types import EngineInfo


@dataclass(slots=True)
class _Passed:
    """Who is passed over while parts are sent out, and what others leave them meanwhile."""

    waits: set[Wait] = field(default_factory=set)
    """What they wait for."""
    workers: set[int] = field(default_factory=set)
    """Indices of workers that get nothing else until they have room for them."""
    slots: set[int] = field(default_factory=set)
    """And of those that get no samples of calls of which some are drawn already."""

    def add(self, wait: Wait, able: Sequence[Worker], *, for_slots: bool) -> None:
        """Passes over all calls that wait for the same.

        Args:
            wait: what a call waits for.
            able: workers that may compute it, none of which has room for it.
            for_slots: whether it is its samples alone that there is no room for.
        """
        indices = {worker.index for worker in able}
        if for_slots:
            self.waits.add(wait)
            self.slots |= indices
        else:
            self.waits |= {(passable, wait[1]) for passable in (False, True)}
            self.workers |= indices


class Dispatcher:
    """Calls with parts that wait, by turns, and what holds them back.

    Args:
        workers: of the pool; those that answer are given parts.
        weights: that the pool's workers have.
        throughput: is told when workers have no room for what waits.
        expire: ends a call whose deadline has passed.
        fail: ends a call that no worker can compute.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        weights: PoolWeights,
        throughput: Throughput,
        expire: Callable[[CallStream], None],
        fail: Callable[[CallStream, Fault], None],
    ) -> None:
        self.batch_tokens = 1
        """Tokens of a step."""
        self.chunk_size = 0
        """Tokens between seams."""
        self._workers = workers
        self._weights = weights
        self._throughput = throughput
        self._expire = expire
        self._fail = fail
        self._queue: FairQueue[CallStream] = FairQueue()
        self._replies = ReplyMemory()
        self._held_back: dict[str, set[CallStream]] = {}
        """Calls for whose results there is no room, whoever has to read for that, by client."""
        self._next: EngineInfo | None = None
        """The model as the next weights make it, while they wait for what is under way to end."""
        self._dispatching = False
        self._set_aside: set[CallStream] = set()
        """Calls that wait for the next weights."""

    @property
    def unread(self) -> int:
        """Bytes of results that wait for readers."""
        return self._replies.unread

    def add(self, stream: CallStream) -> None:
        """The call has parts that wait."""
        self._queue.add(stream)

    def remove(self, stream: CallStream) -> None:
        """The call has ended."""
        self._queue.remove(stream)
        held_back = self._held_back.get(stream.client, set())
        held_back.discard(stream)
        if not held_back:
            self._held_back.pop(stream.client, None)
        self._set_aside.discard(stream)

    def hold_back(self, info: EngineInfo | None) -> None:
        """Begins nothing but what must end on the running weights.

        Args:
            info: the model as the next weights will make it; None lets everything go on.
        """
        self._next = info
        if info is None:
            waiting, self._set_aside = self._set_aside, set()
            for stream in waiting:
                if stream.waiting and not stream.ended:
                    self._queue.add(stream)
            self.dispatch()

    def ends_first(self, part: Part) -> bool:
        """Whether a part that waits has to end before the running weights can go.

        It was begun with them, or its call was and insists on them.
        """
        if part.weights is not None:
            return True
        stream = part.stream
        return self._next is not None and stream.has_begun and stream.insists_against(self._next)

    def answered(self, client: str, size: int) -> None:
        """So many bytes of results wait for a client's reader."""
        self._replies.add(client, size)

    def read(self, client: str, size: int) -> None:
        """So many wait no longer: what all results together held back may go on.

        That of other clients too, since they share the room.
        """
        self._replies.add(client, -size)
        for held in [held for held in self._held_back if self._replies.may_begin(held)]:
            for stream in self._held_back.pop(held):
                if stream.waiting and not stream.ended:
                    self._queue.add(stream)
        self.dispatch()

    def dispatch(self) -> None:
        """Sends out parts, by turns of clients, while workers have room for them."""
        if self._dispatching:
            return  # a call ended while parts were sent out, which goes on by itself
        self._dispatching = True
        try:
            self._throughput.press(self._send_out())
        finally:
            self._dispatching = False

    def _send_out(self) -> bool:
        """Sends out what it can; whether the rest waits because all workers have enough to do."""
        pressed, passed = False, _Passed()
        while (stream := self._queue.first(passed.waits)) is not None:
            if stream.call.deadline <= time.monotonic():
                self._expire(stream)
                continue
            if not stream.can_begin:
                self._queue.remove(stream)  # until its own reader has taken something
                continue
            if not self._replies.may_begin(stream.client):
                self._queue.remove(stream)
                self._held_back.setdefault(stream.client, set()).add(stream)
                continue
            part = stream.waiting[0]
            if self._next is not None and not self.ends_first(part):
                self._queue.remove(stream)
                self._set_aside.add(stream)
                continue
            weights = part.weights if part.weights is not None else self._weights_for(stream)
            ready = [worker for worker in self._workers if worker.is_ready]
            able = [worker for worker in ready if weights in worker.weights]
            if ready and not able:
                self._fail(stream, _without_weights(part))
                continue
            left = [worker for worker in able if worker.index not in passed.workers]
            roomy = [worker for worker in left if has_room(part, worker, self.batch_tokens)]
            kept = passed.slots if stream.may_be_passed else ()
            open_workers = [w for w in roomy if has_slots(part, w) and w.index not in kept]
            if not open_workers:
                anywhere = len(able) == len(ready)
                pressed = pressed or (bool(ready) and anywhere)
                if anywhere and not roomy:
                    return pressed  # smaller ones would keep what is large waiting for ever
                # Whoever draws nothing yet, or scores, waits for no samples; nor does who may go to
                # other workers wait for those that have what this call needs.
                wait = self._queue.bind(stream, None if anywhere else weights)
                passed.add(wait, able, for_slots=bool(roomy))
                continue
            chunk = self.chunk_size
            self._send(stream, min(open_workers, key=lambda w: cost(part, w, chunk)), weights)
        return pressed

    def _send(self, stream: CallStream, worker: Worker, weights: int | None) -> None:
        """Hands the first part that waits to a worker."""
        part = stream.waiting.popleft()
        stream.running[part.part_id] = part
        part.sent = self._throughput.mark()
        worker.take(part)
        worker.prefixes.note(part.keys)
        self._queue.charge(stream, part.size.load)
        if not stream.waiting:
            self._queue.remove(stream)
        if part.weights is None and weights is not None:
            part.weights = weights
            self._weights.weight_sets.hold(weights)
        worker.send(Submit(part.call, part.credit, part.weights or LOADED, part.alone))

    def _weights_for(self, stream: CallStream) -> int | None:
        """Number of the weights that a part which is begun now is computed with."""
        current = self._weights.current
        if stream.accepts is None or stream.accepts(current.info):
            return current.number
        return stream.pinned


def _without_weights(part: Part) -> Fault:
    """No worker has what a part is to be computed with."""
    if part.weights is None:
        return required_weights_replaced()
    message = "the worker died that had the weights which this call began with"
    return Fault(Reason.WORKER_DIED, message, retry_after=0.1)
