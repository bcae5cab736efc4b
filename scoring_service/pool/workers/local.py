"""A worker in a thread of this process, for tests. Alone in `pool` it imports torch."""

from __future__ import annotations

import queue
import threading

from scoring_service.engine.events import Command, Shutdown
from scoring_service.engine.worker.service_loop import run_worker
from scoring_service.pool.workers.executor import OnEvent, WorkerExited
from scoring_service.types import EngineConfig


class LocalExecutor:
    """Runs the worker's loop in a thread."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, on_event: OnEvent) -> None:
        """Starts the thread."""

        def run() -> None:
            try:
                run_worker(self._config, self._commands, on_event)
            finally:
                on_event(WorkerExited("the thread ended"))

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def send(self, command: Command) -> None:
        """Hands over a command."""
        self._commands.put(command)

    def kill(self) -> None:
        """Does nothing: a thread cannot be ended."""

    def stop(self, timeout: float) -> None:
        """Asks the thread to end and waits for it."""
        self.send(Shutdown())
        if self._thread is not None:
            self._thread.join(timeout)
