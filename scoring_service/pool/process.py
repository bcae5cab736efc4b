"""A worker in a process of its own, so that the process that serves gRPC never imports torch."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from scoring_service.engine.events import Command, Shutdown
from scoring_service.pool.executor import OnEvent, WorkerExited
from scoring_service.types import EngineConfig

WORKER_MODULE = "scoring_service.engine.worker"


@dataclass(slots=True)
class _Worker:
    """A running process and the way to it."""

    process: subprocess.Popen[bytes]
    connection: Connection
    on_event: OnEvent
    send_lock: threading.Lock = field(default_factory=threading.Lock)
    reader: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._receive, daemon=True)
        self.reader.start()

    def send(self, message: object) -> None:
        with self.send_lock, contextlib.suppress(OSError, ValueError):
            self.connection.send(message)

    def _receive(self) -> None:
        while True:
            try:
                event = self.connection.recv()
            except (EOFError, OSError):
                break
            self.on_event(event)
        self.on_event(WorkerExited(f"exit code {self.process.wait()}"))


def _environment() -> dict[str, str]:
    """Progress bars of libraries are for terminals; elsewhere they would fill the log."""
    return dict(os.environ) if sys.stderr.isatty() else {**os.environ, "TQDM_DISABLE": "1"}


class ProcessExecutor:
    """Starts `python -m scoring_service.engine.worker` and talks to it over a socket pair.

    Both ends are this program's own, so messages are pickled; nothing from the network is.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._worker: _Worker | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the worker, once started."""
        return None if self._worker is None else self._worker.process.pid

    def start(self, on_event: OnEvent) -> None:
        """Starts the process."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", WORKER_MODULE, "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
            )
        self._worker = _Worker(process, Connection(ours.detach()), on_event)
        self._worker.send(self._config)

    def send(self, command: Command) -> None:
        """Sends a command; a worker that is gone is reported by its reader."""
        if self._worker is not None:
            self._worker.send(command)

    def stop(self, timeout: float) -> None:
        """Asks the worker to end, and kills it after `timeout` seconds."""
        if self._worker is None:
            return
        process = self._worker.process
        self._worker.send(Shutdown())
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._worker.reader.join()
