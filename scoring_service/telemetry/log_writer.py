"""Lines of the log on their way out: whoever reads them late, or never, holds nobody up."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable

MOST_CHARACTERS = 8 << 20
"""Of lines that wait; further ones are lost until some were written."""

_BATCH_CHARACTERS = 1 << 16
"""Written at once, as soon as there is so much; else what there is."""

_PAUSE_SECONDS = 0.02
"""When all is written: to wake a thread for every line costs more than to write it."""


class LogWriter:
    """Writes lines to a file descriptor from a thread of its own.

    A pipe that nobody reads takes no more after 64 KiB, and who writes to it waits without end. It
    must not be the event loop: with it every call, health and SIGTERM would wait.

    Args:
        fd: where they go. Nothing else may rely on what Python buffers for it: when the process
            ends, a thread that waits there would hold the buffer.
        lost_line: the line that tells of so many that were lost.
        most: characters of lines that wait.
    """

    def __init__(
        self, fd: int, lost_line: Callable[[int], str], most: int = MOST_CHARACTERS
    ) -> None:
        self.lost = 0
        """Lines for which there was no room, from the beginning on."""
        self._fd = fd
        self._lost_line = lost_line
        self._most = most
        self._told = 0
        """Lost lines that the log tells of."""
        self._held = 0
        """Characters that wait, or are being written."""
        self._lock = threading.Lock()
        self._lines: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, line: str) -> None:
        """Leaves a line, with its end, to be written; loses it where too much waits."""
        with self._lock:
            if self._held + len(line) > self._most:
                self.lost += 1
                return
            self._held += len(line)
        self._lines.put(line)

    def flush(self, patience: float) -> bool:
        """Waits until what was left before is written, at most so many seconds; whether it is."""
        written = threading.Event()
        self._lines.put(written)
        return written.wait(patience)

    def _run(self) -> None:
        while True:
            batch: list[str] = []
            size, flushed = 0, None
            while size < _BATCH_CHARACTERS and not (batch and self._lines.empty()):
                line = self._lines.get()
                if isinstance(line, threading.Event):
                    flushed = line
                    break
                batch.append(line)
                size += len(line)
            self._write("".join(batch))
            with self._lock:
                self._held -= size
                lost = self.lost - self._told
                self._told = self.lost
            if lost:
                self._write(self._lost_line(lost))
            if flushed is not None:
                flushed.set()
            if self._lines.empty():
                time.sleep(_PAUSE_SECONDS)

    def _write(self, text: str) -> None:
        left = memoryview(text.encode(errors="backslashreplace"))
        # A full disk must not end the log: there may be room again.
        with contextlib.suppress(OSError):
            while left:
                left = left[os.write(self._fd, left) :]
