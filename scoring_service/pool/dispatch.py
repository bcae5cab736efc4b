"""Which part of which call goes to which worker next. Lives in the event loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from scoring_service.engine.events import Submit
from scoring_service.pool.fair_queue import FairQueue
from scoring_service.pool.reply_memory import ReplyMemory
from scoring_service.pool.stream import CallStream
from scoring_service.pool.window import cost, fits
from scoring_service.pool.worker import Worker


class Dispatcher:
    """Calls with parts that wait, by turns, and what holds them back.

    Args:
        workers: of the pool; those that answer are given parts.
        expire: ends a call whose deadline has passed.
    """

    def __init__(self, workers: Sequence[Worker], expire: Callable[[CallStream], None]) -> None:
        self.batch_tokens = 1
        """Tokens of a step."""
        self.chunk_size = 0
        """Tokens between seams."""
        self._workers = workers
        self._expire = expire
        self._queue: FairQueue[CallStream] = FairQueue()
        self._replies = ReplyMemory()
        self._held_back: dict[str, set[CallStream]] = {}
        """Calls with parts that wait for their client to read, by client."""

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

    def answered(self, client: str, size: int) -> None:
        """So many bytes of results wait for a client's reader."""
        self._replies.add(client, size)

    def read(self, client: str, size: int) -> None:
        """So many wait no longer: what was held back for want of reading may go on."""
        self._replies.add(client, -size)
        for stream in self._held_back.pop(client, ()):
            if stream.waiting and not stream.ended:
                self._queue.add(stream)
        self.dispatch()

    def dispatch(self) -> None:
        """Sends out parts, by turns of clients, while workers have room for them."""
        while (stream := self._queue.first()) is not None:
            if stream.call.deadline <= time.monotonic():
                self._expire(stream)
                continue
            if not stream.can_begin or not self._replies.may_begin(stream.client):
                self._queue.remove(stream)
                self._held_back.setdefault(stream.client, set()).add(stream)
                continue
            part = stream.waiting[0]
            urgency = stream.call.priority
            batch, chunk = self.batch_tokens, self.chunk_size
            ready = (worker for worker in self._workers if worker.is_ready)
            open_workers = [worker for worker in ready if fits(part, worker, urgency, batch)]
            if not open_workers:
                return
            worker = min(open_workers, key=lambda w: cost(part, w, chunk))
            stream.waiting.popleft()
            stream.running[part.part_id] = part
            worker.take(part)
            worker.prefixes.note(part.keys)
            self._queue.charge(stream, part.size.load)
            if not stream.waiting:
                self._queue.remove(stream)
            worker.send(Submit(part.call, part.credit, part.alone))
