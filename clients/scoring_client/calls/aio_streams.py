"""The twin of ``scoring_client.calls.streams`` for the asynchronous client.

Not of generators: an event loop that ends closes all those it knows of at once, and a generator
inside another cannot be closed by both.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import grpc

from scoring_client.calls.assembly import PartT
from scoring_client.calls.job import Job
from scoring_client.calls.streams import UNREAD, Ended, OpenCall
from scoring_client.connection.aio_channel import telling_closed
from scoring_client.connection.closed import telling_closed_before
from scoring_client.connection.retry import Attempts


@dataclass(slots=True)
class _Stream:
    """A part, its attempts, and the task that reads the one that runs."""

    part: Job[Any, Any, Any]
    attempts: Attempts
    task: asyncio.Task[None] | None = None


class Alone(Generic[PartT]):
    """The stream of a call that is one part, attempt after attempt."""

    def __init__(self, job: Job[PartT, Any, Any], attempts: Attempts, open_call: OpenCall) -> None:
        self._job, self._attempts, self._open_call = job, attempts, open_call
        self._call: Any = None
        self._messages: AsyncIterator[Any]

    async def next_parts(self) -> Iterator[PartT] | None:
        """Wait for a message and return what the caller gets of it; None = the call has ended.

        Raises:
            ScoringError: it failed for good.
        """
        while self._call is not None or not self._job.done:
            if self._call is None:
                with telling_closed_before():
                    request = self._job.begin_attempt()
                    self._call = self._open_call(request, self._attempts.remaining())
                self._messages = aiter(self._call)
            error: grpc.RpcError | None = None
            try:
                with telling_closed():
                    return self._job.feed(await anext(self._messages))
            except StopAsyncIteration:
                pass
            except grpc.RpcError as raised:
                error = raised
            await self.close()
            delay = self._job.wait_after(error, self._attempts)
            if delay is not None:
                await asyncio.sleep(delay)
        return None

    async def close(self) -> None:
        """Cancel what runs."""
        if self._call is not None:
            self._call.cancel()
            self._call = None


class Together(Generic[PartT]):
    """The streams of a call's parts, at most ``most`` at once; see ``streams.run_together``."""

    def __init__(
        self,
        parts: Sequence[Job[PartT, Any, Any]],
        attempts: Attempts,
        open_call: OpenCall,
        most: int,
    ) -> None:
        self._open_call, self._most = open_call, most
        self._streams = [_Stream(part, attempts.of_part()) for part in parts]
        self._waiting = deque(self._streams)
        self._running = 0
        self._events: asyncio.Queue[tuple[_Stream, Any]] = asyncio.Queue()
        self._room = asyncio.Semaphore(UNREAD)

    async def next_parts(self) -> Iterator[PartT] | None:
        """Wait for a message and return what the caller gets of it; None = all parts have ended.

        Raises:
            ScoringError: a part failed for good; the others run until ``close``.
        """
        while self._waiting or self._running:
            while self._waiting and self._running < self._most:
                self._start(self._waiting.popleft(), delay=0.0)
                self._running += 1
            stream, event = await self._events.get()
            if not isinstance(event, Ended):
                self._room.release()
                return stream.part.feed(event)
            delay = stream.part.wait_after(event.of_rpc, stream.attempts)
            if delay is None:
                self._running -= 1
            else:
                self._start(stream, delay)
        return None

    async def close(self) -> None:
        """Cancel what runs."""
        tasks = [stream.task for stream in self._streams if stream.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, stream: _Stream, delay: float) -> None:
        request = stream.part.begin_attempt()
        stream.task = asyncio.create_task(self._read(stream, request, delay))

    async def _read(self, stream: _Stream, request: Any, delay: float) -> None:
        error: Exception | None = None
        try:
            await asyncio.sleep(delay)
            with telling_closed_before():
                call = self._open_call(request, stream.attempts.remaining())
            try:
                with telling_closed():
                    async for message in call:
                        await self._room.acquire()
                        self._events.put_nowait((stream, message))
            finally:
                call.cancel()
        except Exception as raised:  # noqa: BLE001 - raised again in next_parts
            error = raised
        self._events.put_nowait((stream, Ended(error)))
