"""Turns the events of a call into the messages of its answer: bounded, coalesced, accounted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from scoring_client.proto import context_pb2
from scoring_service.engine.events import (
    CallFailed,
    CallFinished,
    CallStarted,
    ItemFailed,
    SampleSlice,
    ScoreSlice,
)
from scoring_service.errors import Fault, ServiceError
from scoring_service.pool.pool import CallStream
from scoring_service.types import Usage

MESSAGE_BYTES = 1 << 19
"""Results are joined into one message until it holds this much; one more slice may come on top."""

PROGRESS_SECONDS = 15.0
"""A call that waits gives a sign of life this often."""

Response = TypeVar("Response", bound=Message)


class Answer(Generic[Response]):
    """The answer to one call.

    Args:
        make_response: the response message's class.
        render: a slice to its result message.
        render_fault: (index, part, fault) of an item to its result message.
        items: items asked for.
    """

    def __init__(
        self,
        make_response: Callable[..., Response],
        render: Callable[[Any], Message],
        render_fault: Callable[[int, int | None, Fault], Message],
        items: int,
    ) -> None:
        self._make = make_response
        self._render = render
        self._render_fault = render_fault
        self._items = items
        self._ok = 0
        self._sent_bytes = 0

    def first(self, **fields: Any) -> Response:
        """The first message: provenance, processing, and the items that failed at once."""
        return self._counted(self._make(**fields))

    def faults(self, faults: list[tuple[int, int | None, Fault]]) -> list[Message]:
        """Result messages of items that cannot be computed."""
        return [self._render_fault(*fault) for fault in faults]

    async def messages(self, stream: CallStream) -> AsyncIterator[Response]:
        """Every message after the first, the summary included.

        Raises:
            ServiceError: the call failed as a whole.
        """
        started = False
        usage: Usage | None = None
        while usage is None:
            event = await stream.next(PROGRESS_SECONDS)
            if event is None:
                if not started:
                    progress = context_pb2.Progress(tokens_ahead=stream.tokens_ahead)
                    yield self._counted(self._make(progress=progress))
                continue
            results: list[Message] = []
            size = 0
            while event is not None:
                match event:
                    case CallStarted():
                        started = True
                    case ScoreSlice() | SampleSlice():
                        results.append(self._render(event))
                        self._ok += event.last
                        size += event.size
                    case ItemFailed(_, index, part, fault):
                        results.append(self._render_fault(index, part, fault))
                    case CallFinished(_, usage):
                        break
                    case CallFailed(_, fault):
                        raise ServiceError(fault)
                if size >= MESSAGE_BYTES:
                    break
                event = stream.next_nowait()
            if results:
                yield self._counted(self._make(results=results))
                # The transport took the message: as much again may be computed.
                stream.taken(size)
        yield self.summary(usage)

    def summary(self, usage: Usage) -> Response:
        """The last message."""
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
                    reply_bytes=self._sent_bytes,
                ),
                items_ok=self._ok,
                items_failed=self._items - self._ok,
            )
        )

    def _counted(self, response: Response) -> Response:
        self._sent_bytes += response.ByteSize()
        return response
