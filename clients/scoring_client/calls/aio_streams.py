"""The twin of ``scoring_client.calls.streams`` for the asynchronous client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

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


async def run_alone(
    job: Job[PartT, Any, Any], attempts: Attempts, open_call: OpenCall
) -> AsyncGenerator[PartT, None]:
    """Yield what the caller gets of a call that is one part."""
    delay: float | None = None
    while not job.done:
        with telling_closed_before():
            call = open_call(job.begin_attempt(), attempts.remaining())
        error: grpc.RpcError | None = None
        try:
            with telling_closed():
                async for message in call:
                    for part in job.feed(message):
                        yield part
        except grpc.RpcError as raised:
            error = raised
        finally:
            call.cancel()
        delay = job.wait_after(error, attempts)
        if delay is not None:
            await asyncio.sleep(delay)


async def run_together(
    parts: Sequence[Job[PartT, Any, Any]], attempts: Attempts, open_call: OpenCall, most: int
) -> AsyncGenerator[PartT, None]:
    """Yield what the caller gets of all parts, as it comes; see ``streams.run_together``.

    Raises:
        ScoringError: a part failed for good; the others are cancelled.
    """
    streams = [_Stream(part, attempts.of_part()) for part in parts]
    events: asyncio.Queue[tuple[_Stream, Any]] = asyncio.Queue()
    room = asyncio.Semaphore(UNREAD)

    async def read(stream: _Stream, request: Any, delay: float) -> None:
        error: Exception | None = None
        try:
            await asyncio.sleep(delay)
            with telling_closed_before():
                call = open_call(request, stream.attempts.remaining())
            try:
                with telling_closed():
                    async for message in call:
                        await room.acquire()
                        events.put_nowait((stream, message))
            finally:
                call.cancel()
        except Exception as raised:  # noqa: BLE001 - raised again below
            error = raised
        events.put_nowait((stream, Ended(error)))

    def start(stream: _Stream, delay: float) -> None:
        request = stream.part.begin_attempt()
        stream.task = asyncio.create_task(read(stream, request, delay))

    waiting = deque(streams)
    running = 0
    try:
        while waiting or running:
            while waiting and running < most:
                start(waiting.popleft(), delay=0.0)
                running += 1
            stream, event = await events.get()
            if not isinstance(event, Ended):
                room.release()
                for part in stream.part.feed(event):
                    yield part
                continue
            delay = stream.part.wait_after(event.of_rpc, stream.attempts)
            if delay is None:
                running -= 1
            else:
                start(stream, delay)
    finally:
        tasks = [stream.task for stream in streams if stream.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
