"""The streams of a call: of one part, or of several at the same time. For the blocking client."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from scoring_client.calls.assembly import PartT
from scoring_client.calls.job import Job
from scoring_client.connection.closed import telling_closed_before
from scoring_client.connection.retry import Attempts

OpenCall = Callable[[Any, float | None], Any]
"""Sends a request with a timeout in seconds and returns the call."""

UNREAD = 16
"""Messages that wait for the caller. Beyond, streams are not read, and the server is held back."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt of a part ended."""

    error: Exception | None
    """None = well. What is no RpcError is the caller's to see."""

    @property
    def of_rpc(self) -> grpc.RpcError | None:
        """The error of the RPC, which may be worth another attempt; None = it ended well.

        Raises:
            Exception: it was another error.
        """
        if self.error is None or isinstance(self.error, grpc.RpcError):
            return self.error
        raise self.error


@dataclass(slots=True)
class _Stream:
    """A part, and its attempts."""

    part: Job[Any, Any, Any]
    attempts: Attempts


def run_alone(
    job: Job[PartT, Any, Any], attempts: Attempts, open_call: OpenCall
) -> Generator[PartT, None, None]:
    """Yield what the caller gets of a call that is one part."""
    delay: float | None = None
    while not job.done:
        with telling_closed_before():
            call = open_call(job.begin_attempt(), attempts.remaining())
        error: grpc.RpcError | None = None
        try:
            for message in call:
                yield from job.feed(message)
        except grpc.RpcError as raised:
            error = raised
        finally:
            call.cancel()
        delay = job.wait_after(error, attempts)
        if delay is not None:
            time.sleep(delay)


def run_together(
    parts: Sequence[Job[PartT, Any, Any]], attempts: Attempts, open_call: OpenCall, most: int
) -> Generator[PartT, None, None]:
    """Yield what the caller gets of all parts, as it comes, with at most ``most`` in flight.

    Threads only read: whatever a message changes is changed here, in the caller's thread. Closing
    the generator cancels what runs.

    Args:
        parts: Of one call.
        attempts: The call's; each part counts its own in the same time.
        open_call: Sends a part's request.
        most: Parts that run at once.

    Raises:
        ScoringError: a part failed for good; the others are cancelled.
    """
    waiting = deque(_Stream(part, attempts.of_part()) for part in parts)
    running = 0
    readers = _Readers(open_call)
    try:
        while waiting or running:
            while waiting and running < most:
                readers.start(waiting.popleft(), delay=0.0)
                running += 1
            stream, event = readers.next_event()
            if not isinstance(event, Ended):
                yield from stream.part.feed(event)
                continue
            delay = stream.part.wait_after(event.of_rpc, stream.attempts)
            if delay is None:
                running -= 1
            else:
                readers.start(stream, delay)
    finally:
        readers.stop()


class _Readers:
    """A thread for each attempt that runs."""

    def __init__(self, open_call: OpenCall) -> None:
        self._open_call = open_call
        self._events: queue.Queue[tuple[_Stream, Any]] = queue.Queue(UNREAD)
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._calls: set[Any] = set()
        self._threads: list[threading.Thread] = []

    def start(self, stream: _Stream, delay: float) -> None:
        """Begin an attempt, ``delay`` seconds from now."""
        request = stream.part.begin_attempt()
        thread = threading.Thread(target=self._read, args=(stream, request, delay), daemon=True)
        self._threads = [*filter(threading.Thread.is_alive, self._threads), thread]
        thread.start()

    def next_event(self) -> tuple[_Stream, Any]:
        """Wait for a message, or for the end of an attempt."""
        return self._events.get()

    def stop(self) -> None:
        """Cancel what runs and wait for the threads."""
        self._stopped.set()
        with self._lock:
            for call in self._calls:
                call.cancel()
        for thread in self._threads:
            while thread.is_alive():
                # Who waits for room is let go.
                while not self._events.empty():
                    self._events.get_nowait()
                thread.join(0.01)

    def _read(self, stream: _Stream, request: Any, delay: float) -> None:
        if self._stopped.wait(delay):
            return
        error: Exception | None = None
        try:
            for message in self._opened(request, stream.attempts):
                self._events.put((stream, message))
        except Exception as raised:  # noqa: BLE001 - raised again in the caller's thread
            error = raised
        self._events.put((stream, Ended(error)))

    def _opened(self, request: Any, attempts: Attempts) -> Generator[Any, None, None]:
        with telling_closed_before():
            call = self._open_call(request, attempts.remaining())
        with self._lock:
            self._calls.add(call)
        try:
            if not self._stopped.is_set():
                yield from call
        finally:
            call.cancel()
            with self._lock:
                self._calls.discard(call)
