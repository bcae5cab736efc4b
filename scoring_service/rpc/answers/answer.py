"""Turns the events of a call into the messages of its answer: bounded, coalesced, accounted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Generic

from google.protobuf.message import Message

from scoring_client.proto import context_pb2
from scoring_service.engine.events import (
    CallFailed,
    CallFinished,
    CallStarted,
    ItemFailed,
    SampleSlice,
    ScoreSlice,
    StreamEvent,
    WeightsChanged,
)
from scoring_service.errors import ServiceError
from scoring_service.pool.streams.stream import CallStream
from scoring_service.rpc.answers.rendering import Rendering, Response
from scoring_service.rpc.answers.results import bytes_beside
from scoring_service.rpc.handling.reply_bytes import ReplyBytes
from scoring_service.rpc.parsing.score import ItemFault
from scoring_service.types import EngineInfo, Usage

MESSAGE_BYTES = 1 << 19
"""Results are joined into one message until it holds this much; one more slice may come on top."""

AT_ONCE_BYTES = 1 << 14
"""Arrays that are written element by element where the event loop stands, until others have their
turn: a fifth of a millisecond. To write half a megabyte of them takes 5 ms and more, and the
strings that go with a sixth of that, 60 ms."""

RESULT_BYTES = 1 << 9
"""Of arrays, that take about as long to write as a result beside them: a message may hold thousands
of results of a few rows, or of faults."""


class Answer(Generic[Response]):
    """The answer to one call.

    Args:
        rendering: how its results become messages.
        items: items asked for.
        progress_seconds: how often a call that waits gives a sign of life.
        sent: what the caller was sent so far.
    """

    def __init__(
        self,
        rendering: Rendering[Response],
        items: int,
        progress_seconds: float,
        sent: ReplyBytes,
    ) -> None:
        self.usage = Usage()
        self.ok = 0
        """Items answered in full so far."""
        self.items = items
        self.sent_bytes = 0
        """Of the messages before the summary, once that was made."""
        self.started_ns: int | None = None
        """When the first computation began, in nanoseconds since the epoch."""
        self.finished_ns: int | None = None
        """When the last one ended."""
        self._make = rendering.response
        self._rendering = rendering
        self._progress_seconds = progress_seconds
        self._sent = sent
        self._changed: EngineInfo | None = None
        """What computes the results that come next, if the reader was not told yet."""
        self._at_once = 0
        """Bytes that were written since others had their turn."""

    async def opening(
        self,
        info: EngineInfo,
        processing: Sequence[Message],
        faults: Sequence[ItemFault],
    ) -> AsyncGenerator[Response, None]:
        """The first message, and the items that failed at once.

        Args:
            info: of the model that answers.
            processing: resolved values, as the results point to them.
            faults: of these items.
        """
        yield self._make(provenance=self._rendering.provenance(info), processing=processing)
        results: list[Message] = []
        size = 0
        for fault in faults:
            results.append(self._rendering.fault(fault.index, fault.part, fault.fault))
            size += results[-1].ByteSize()
            await self._give_way(RESULT_BYTES)
            if size >= MESSAGE_BYTES:
                yield self._make(results=results)
                results, size = [], 0
        if results:
            yield self._make(results=results)

    async def results(self, stream: CallStream) -> AsyncGenerator[Response, None]:
        """The messages between the opening and the summary.

        Raises:
            ServiceError: the call failed as a whole.
        """
        started = False
        while True:
            event = await stream.next(self._progress_seconds)
            if event is None:
                if not started:
                    progress = context_pb2.Progress(tokens_ahead=stream.tokens_ahead)
                    yield self._make(progress=progress)
                continue
            if not started and not isinstance(event, CallFailed):
                started, self.started_ns = True, time.time_ns()
            results, provenance, taken, end = await self._gather(event, stream)
            if results:
                yield self._make(results=results, provenance=provenance)
                # The transport took the message: as much again may be computed.
                stream.taken(taken)
            if isinstance(end, CallFailed):
                raise ServiceError(end.fault)
            if end is not None:
                self.finished_ns = time.time_ns()
                self.usage = end.usage
                return

    @property
    def bytes_so_far(self) -> int:
        """Of all messages that were sent."""
        return self._sent.total

    def summary(self) -> Response:
        """The last message; all others were sent."""
        usage, self.sent_bytes = self.usage, self._sent.total
        return self._make(
            summary=context_pb2.Summary(
                usage=context_pb2.Usage(
                    prompt_tokens=usage.prompt_tokens,
                    completion_tokens=usage.completion_tokens,
                    cached_tokens=usage.cached_tokens,
                    computed_tokens=usage.computed_tokens,
                    sampled_tokens=usage.sampled_tokens,
                    head_rows=usage.head_rows,
                    queue_seconds=usage.queue_seconds,
                    compute_seconds=usage.compute_seconds,
                    reply_bytes=self.sent_bytes,
                ),
                items_ok=self.ok,
                items_failed=self.items - self.ok,
            )
        )

    async def _gather(
        self, event: StreamEvent | None, stream: CallStream
    ) -> tuple[list[Message], context_pb2.Provenance | None, int, CallFinished | CallFailed | None]:
        """Results of this event and of those already there, up to a message's size.

        Returns:
            The result messages, their provenance if it changed, the bytes of their arrays, and the
            call's end if it came.
        """
        results: list[Message] = []
        taken = size = 0
        provenance = self._take_provenance()
        while event is not None:
            match event:
                case CallFinished() | CallFailed():
                    return results, provenance, taken, event
                case ScoreSlice() | SampleSlice():
                    results.append(await self._rendered(event))
                    size += event.size + bytes_beside(results[-1])
                    self.ok += event.last
                    taken += event.size
                case ItemFailed(_, index, part, fault):
                    results.append(self._rendering.fault(index, part, fault))
                    size += results[-1].ByteSize()
                    await self._give_way(RESULT_BYTES)
                case WeightsChanged(info):
                    self._changed = info
                    if results:  # they are the last of what was told before
                        break
                    provenance = self._take_provenance()
                case CallStarted():
                    pass
            if size >= MESSAGE_BYTES:
                break
            event = stream.next_nowait()
        return results, provenance, taken, None

    async def _rendered(self, piece: ScoreSlice | SampleSlice) -> Message:
        """A slice's result message; the event loop serves others while much is written."""
        render, written = self._rendering.piece, self._rendering.written(piece)
        if written > AT_ONCE_BYTES:
            return await asyncio.to_thread(render, piece)
        result = render(piece)
        await self._give_way(written + RESULT_BYTES)
        return result

    async def _give_way(self, written: int) -> None:
        """Lets others have their turn, once enough was written since they had it last."""
        self._at_once += written
        if self._at_once >= AT_ONCE_BYTES:
            self._at_once = 0
            await asyncio.sleep(0)

    def _take_provenance(self) -> context_pb2.Provenance | None:
        changed, self._changed = self._changed, None
        return None if changed is None else self._rendering.provenance(changed)
