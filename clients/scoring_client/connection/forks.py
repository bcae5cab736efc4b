"""What a fork leaves of gRPC: nothing that answers, where one of its threads was at work.

gRPC's locks are copied as they are and its threads are not, so a call in such a child hangs, beyond
its own timeout too. That is how a ``DataLoader`` whose workers are forked while the trainer asks
would stand still without a word. gRPC prepares for forks when ``GRPC_ENABLE_FORK_SUPPORT`` says so;
otherwise a child of an idle process works, and one of a busy process is told why it does not.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from scoring_client.errors import ScoringError

_SUPPORTED = os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "").lower() in ("1", "true", "yes", "on")


class _Process:
    """What of gRPC is at work in this process, as far as this package asked for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls = 0
        self.loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
        self.cut_off = False

    def forked(self) -> None:
        """Note, in a child, what its parent was doing."""
        busy = self.calls > 0 or any(loop.is_running() for loop in self.loops)
        self.cut_off = self.cut_off or (busy and not _SUPPORTED)
        self.lock = threading.Lock()
        self.calls = 0


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.forked)


@contextmanager
def running_call() -> Iterator[None]:
    """Run a call of a blocking client.

    Raises:
        ScoringError: see ``check_fork``.
    """
    check_fork()
    with _process.lock:
        _process.calls += 1
    try:
        yield
    finally:
        with _process.lock:
            _process.calls -= 1


def uses_grpc(loop: asyncio.AbstractEventLoop) -> None:
    """Note that a loop has a channel: gRPC has a thread for it, whether a call runs or not.

    Raises:
        ScoringError: see ``check_fork``.
    """
    check_fork()
    _process.loops.add(loop)


def check_fork() -> None:
    """Refuse to ask anything where nothing would answer.

    Raises:
        ScoringError: this process was forked from one that was asking.
    """
    if _process.cut_off:
        raise ScoringError(
            "this process was forked while its parent was asking, and gRPC hangs in it: start "
            "workers by spawn or forkserver (DataLoader(multiprocessing_context=…)), fork before "
            "the first call, or set GRPC_ENABLE_FORK_SUPPORT=1 before grpc is imported"
        )
