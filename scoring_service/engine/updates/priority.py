"""Threads and processes that steps do not wait for."""

from __future__ import annotations

import contextlib
import os
import threading

_NICENESS = 5
"""Of threads that stage: a third of a core's time while steps want all of it."""


def lower_priority() -> None:
    """Lowers this thread's priority: where cores are few steps go first, so calls go on."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
