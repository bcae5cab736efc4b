"""A worker in a process of its own, so that the process that serves gRPC never imports torch."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field

import structlog

from scoring_service.engine.events import Command, Shutdown
from scoring_service.engine.worker.channel import Channel
from scoring_service.pool.workers.executor import OnEvent, WorkerExited
from scoring_service.pool.workers.oom_kills import oom_kills
from scoring_service.types import EngineConfig

log = structlog.get_logger(__name__)

WORKER_MODULE = "scoring_service.engine.worker.process"

_END = object()
"""Ends the thread that sends."""


@dataclass(slots=True)
class _Worker:
    """A running process and the way to it.

    Messages leave by a thread: a worker that takes none (it computes, it hangs) must not hold up
    the event loop that sends them.
    """

    process: subprocess.Popen[bytes]
    channel: Channel
    on_event: OnEvent
    oom_kills: int | None
    """See `oom_kills`, when the process was started."""
    outbox: queue.SimpleQueue[object] = field(default_factory=queue.SimpleQueue)
    broken: str | None = None
    """Why its messages go no further, and it was killed."""
    reader: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._receive, daemon=True)
        self.reader.start()
        threading.Thread(target=self._send, daemon=True).start()

    def send(self, message: object) -> None:
        self.outbox.put(message)

    def _send(self) -> None:
        try:
            while (message := self.outbox.get()) is not _END:
                self.channel.send(message)
        except OSError:
            pass  # its reader reports a worker that is gone
        except Exception as error:  # noqa: BLE001 - whatever it is, the worker waits for the rest
            self._give_up("sent", error)

    def _receive(self) -> None:
        try:
            while True:
                self.on_event(self.channel.receive())
        except (EOFError, OSError):
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, what was lost does not come again
            self._give_up("read", error)
        self.outbox.put(_END)
        ended = _how_it_ended(self.process.wait(), self.oom_kills)
        self.on_event(ended if self.broken is None else WorkerExited(self.broken))
        self.channel.close()

    def _give_up(self, done: str, error: Exception) -> None:
        """Without its messages, for want of memory say, a worker would be ready and of no use."""
        self.broken = f"a message could not be {done}: {type(error).__name__}"
        log.error("worker_channel_broken", pid=self.process.pid, exc_info=error)
        self.process.kill()


_FROM_OUTSIDE = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals, beside SIGKILL, that no program sends itself when it crashes."""


def _how_it_ended(code: int, kills_before: int | None) -> WorkerExited:
    try:
        signum = signal.Signals(-code)
    except ValueError:
        return WorkerExited(f"exit code {code}", from_outside=False)
    if signum is not signal.SIGKILL:
        return WorkerExited(signum.name, from_outside=signum in _FROM_OUTSIDE)
    kills = oom_kills()
    if kills is None or kills_before is None:
        return WorkerExited(signum.name, from_outside=True, maybe_memory=True)
    if kills > kills_before:
        return WorkerExited("SIGKILL, out of memory", from_outside=False)
    return WorkerExited(signum.name, from_outside=True)


def _environment() -> dict[str, str]:
    """The server's own environment and, where it does not say otherwise, what suits a worker."""
    # Threads of torch that wait for one another give up their core after about a millisecond: long
    # enough for the pause between two operations (giving up at once made decoding a third slower),
    # and short where something else needs the core too, this server for one.
    defaults = {"GOMP_SPINCOUNT": "100000"}
    if not sys.stderr.isatty():
        # Progress bars of libraries are for terminals; elsewhere they would fill the log.
        defaults["TQDM_DISABLE"] = "1"
    return {**defaults, **os.environ}


def _spawn(channel: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", WORKER_MODULE, "--fd", str(channel.fileno())],
        pass_fds=[channel.fileno()],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        # Ctrl-C in a terminal is for the server alone, which ends its worker itself.
        process_group=0,
    )


class ProcessExecutor:
    """Starts `python -m scoring_service.engine.worker.process` and talks to it over a socket pair.

    Both ends are this program's own, so messages are pickled; nothing from the network is.

    Args:
        config: of the worker.
        force_seconds: longest wait for the end of a process that was killed.
    """

    def __init__(self, config: EngineConfig, force_seconds: float = 5.0) -> None:
        self._config = config
        self._force_seconds = force_seconds
        self._worker: _Worker | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the worker, once started."""
        return None if self._worker is None else self._worker.process.pid

    def start(self, on_event: OnEvent) -> None:
        """Starts the process.

        Raises:
            OSError: there is no process, thread or file to be had.
        """
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            with theirs:
                process = _spawn(theirs)
            undo.callback(process.wait)
            undo.callback(process.kill)
            try:
                self._worker = _Worker(process, Channel(ours), on_event, oom_kills())
            except RuntimeError as error:  # what Python says when there is no thread to be had
                raise OSError(errno.EAGAIN, str(error)) from error
            undo.pop_all()
        self._worker.send(self._config)

    def send(self, command: Command) -> None:
        """Sends a command; a worker that is gone is reported by its reader."""
        if self._worker is not None:
            self._worker.send(command)

    def kill(self) -> None:
        """Ends the process at once, even one that is stopped; its end is reported as any other."""
        if self._worker is not None:
            self._worker.process.kill()

    def stop(self, timeout: float) -> None:
        """Asks the worker to end, and kills it after `timeout` seconds.

        One that waits in a driver is left behind: who waits for it would wait with it.
        """
        if self._worker is None:
            return
        process = self._worker.process
        self._worker.send(Shutdown())
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(self._force_seconds)
        self._worker.reader.join(self._force_seconds)
