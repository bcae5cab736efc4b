"""What the pool asks of an executor: something that runs a worker and carries its messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from scoring_service.engine.events import Command, Event


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """The worker is gone; nothing more comes of it."""

    description: str
    """How it ended, such as "SIGKILL" or "exit code 1"."""
    from_outside: bool = False
    """Whether somebody ended it, rather than a fault of its own."""
    maybe_memory: bool = False
    """Killed, and the kernel does not say whether for want of memory."""
    started: bool = True
    """False: it could not even be started, for the reason that `description` gives."""

    def in_words(self, doing: str = "") -> str:
        """What happened, for people; `doing` says when, of one that died."""
        what = f"died{doing}" if self.started else "could not be started"
        return f"the worker {what} ({self.description})"


OnEvent = Callable[[Event | WorkerExited], None]


class Executor(Protocol):
    """One worker. `on_event` is called from any thread, in the order of the worker's events."""

    def start(self, on_event: OnEvent) -> None:
        """Starts the worker; its model loads in the background.

        Raises:
            OSError: the machine has no process, thread or file for it; nothing is left of it.
        """
        ...

    def send(self, command: Command) -> None:
        """Hands the worker a command; does nothing when it is gone."""
        ...

    def kill(self) -> None:
        """Ends the worker at once, where that is possible; WorkerExited follows once it is gone."""
        ...

    def stop(self, timeout: float) -> None:
        """Ends the worker, by force after `timeout` seconds.

        Blocks until it is gone, or has withstood force for some seconds.
        """
        ...
