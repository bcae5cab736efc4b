"""One admitted call: its parts, and the events that its reader takes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from scoring_service.engine.events import SampleSlice, ScoreSlice, StreamEvent
from scoring_service.pool.admission.throughput import Mark
from scoring_service.pool.streams.delivered import Delivered
from scoring_service.pool.streams.parts import Size
from scoring_service.pool.streams.self_audit import Watch
from scoring_service.types import Call, EngineInfo, SampleCall, ScoreCall, Usage

UNREAD_LIMIT = 8 << 20
"""Bytes of results that wait for a reader before no further part of its call is begun."""


@dataclass(eq=False, slots=True)
class Part:
    """A piece of a call, as one worker computes it."""

    part_id: int
    call: Call
    """What is to be computed, with `part_id` for its id."""
    stream: CallStream
    size: Size
    keys: list[bytes]
    """Keys of its prompts; see `workers.routing`."""
    credit: int
    """Bytes of results that it may have on their way before its reader must take some."""
    delivered: Delivered = field(default_factory=Delivered)
    retried: bool = False
    """Whether a worker died over it already."""
    alone: bool = False
    """Whether its steps are its own: an audit, or after a step that was shared failed."""
    unread: int = 0
    """Bytes of its results that wait for the reader."""
    worker: int | None = None
    """Index of the worker that has it."""
    weights: int | None = None
    """Number of the weights that compute it, once it was begun anywhere."""
    sent: Mark = (0.0, 0.0)
    """When it was handed to a worker."""

    @property
    def tokens(self) -> int:
        """As the queue counts them."""
        return self.size.tokens

    @property
    def reply_bytes(self) -> int:
        """Bytes of results that it may have on their way, at most."""
        return min(self.size.reply_bytes, self.credit)

    @property
    def is_held_back(self) -> bool:
        """Whether nothing of it is computed until its reader takes something."""
        return self.unread >= self.credit


class Flow(Protocol):
    """What a stream tells its pool."""

    def part_taken(self, part: Part, size: int) -> None:
        """The reader took results of a part."""
        ...

    def stream_read(self, stream: CallStream, size: int) -> None:
        """The reader took so many bytes."""
        ...

    def tokens_ahead(self, call_id: int) -> int:
        """Tokens to be computed before a call's own."""
        ...


@dataclass(eq=False, slots=True)
class CallStream:
    """Events of one call, in order; ends after CallFinished or CallFailed."""

    call: Call
    client: str
    pool: Flow
    tokens: int
    """As the queue counts them."""
    waiting: deque[Part] = field(default_factory=deque)
    running: dict[int, Part] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    """Usage of the parts that ended."""
    began: float = field(default_factory=time.monotonic)
    queue_seconds: float | None = None
    """Until its first computation."""
    unread: int = 0
    """Bytes of results that wait for the reader."""
    last_read: float = field(default_factory=time.monotonic)
    ended: bool = False
    watch: Watch | None = None
    """What the self-audit compares."""
    avoid: int | None = None
    """Worker that others are preferred to."""
    accepts: Callable[[EngineInfo], bool] | None = None
    """Whether the weights are those that the call insists on; None = it takes any."""
    pinned: int | None = None
    """Number of weights that it accepts, kept for it while it lasts."""
    told: int | None = None
    """Number of the weights that its reader was told of last."""
    _events: asyncio.Queue[StreamEvent] = field(default_factory=asyncio.Queue)
    _untaken: deque[tuple[Part, int]] = field(default_factory=deque)
    """Whose the unread bytes are, in order."""

    @property
    def place(self) -> tuple[int, int]:
        """(minus priority, order of arrival)."""
        return -self.call.priority, self.call.call_id

    @property
    def may_be_passed(self) -> bool:
        """Whether it may wait for no more than samples of others: some of its own are drawn."""
        return isinstance(self.call, SampleCall) and bool(self.running)

    @property
    def has_begun(self) -> bool:
        """Whether a worker was given something of it."""
        return self.queue_seconds is not None or bool(self.running)

    def insists_against(self, info: EngineInfo) -> bool:
        """Whether these weights are none that the call takes."""
        return self.accepts is not None and not self.accepts(info)

    @property
    def can_begin(self) -> bool:
        """Whether a part waits, and its results would not wait for the reader."""
        return bool(self.waiting) and self.unread < UNREAD_LIMIT

    async def next(self, patience: float) -> StreamEvent | None:
        """The next event; None when none came within `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                return await self._events.get()
        except TimeoutError:
            return None

    def next_nowait(self) -> StreamEvent | None:
        """The next event if it is there."""
        return None if self._events.empty() else self._events.get_nowait()

    def push(self, event: StreamEvent, part: Part | None = None) -> None:
        """Called by the pool."""
        if part is not None and isinstance(event, ScoreSlice | SampleSlice):
            if not self.unread:
                self.last_read = time.monotonic()
            self.unread += event.size
            part.unread += event.size
            self._untaken.append((part, event.size))
        self._events.put_nowait(event)

    def discard(self) -> int:
        """Forgets what the reader did not take; how many bytes."""
        self._events = asyncio.Queue()
        self._untaken.clear()
        forgotten, self.unread = self.unread, 0
        return forgotten

    def taken(self, size: int) -> None:
        """The reader took this many bytes: as many more may be computed."""
        self.last_read = time.monotonic()
        left = size = min(size, self.unread)
        self.unread -= size
        while left:
            part, held = self._untaken.popleft()
            part_size = min(left, held)
            if part_size < held:
                self._untaken.appendleft((part, held - part_size))
            part.unread -= part_size
            self.pool.part_taken(part, part_size)
            left -= part_size
        self.pool.stream_read(self, size)

    @property
    def tokens_ahead(self) -> int:
        """Tokens to be computed before this call's own."""
        return self.pool.tokens_ahead(self.call.call_id)

    def final_usage(self) -> Usage:
        """Of the whole call.

        Prompts count once, however many parts computed or found them.
        """
        usage = self.usage
        if isinstance(self.call, ScoreCall):
            prompts = {g.index: len(g.prompt_ids) for g in self.call.groups}
            completions = sum(len(c.token_ids) for g in self.call.groups for c in g.completions)
        else:
            prompts = {task.index: len(task.prompt_ids) for task in self.call.prompts}
            completions = 0
        prompt_tokens = sum(prompts.values())
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completions,
            cached_tokens=min(usage.cached_tokens, prompt_tokens),
            computed_tokens=usage.computed_tokens,
            sampled_tokens=usage.sampled_tokens,
            head_rows=usage.head_rows,
            queue_seconds=self.queue_seconds or 0.0,
            compute_seconds=usage.compute_seconds,
        )

    def usage_so_far(self) -> Usage:
        """Of a call that ends unanswered: what was computed of it, and how long it waited for that.

        No prompt and no completion counts, since nobody knows which of them were done.
        """
        waited = self.queue_seconds
        return replace(
            self.final_usage(),
            prompt_tokens=0,
            completion_tokens=0,
            queue_seconds=time.monotonic() - self.began if waited is None else waited,
        )
