"""A signal that ends the process, also where it is the first of a container."""

from __future__ import annotations

import os
import signal
from types import FrameType


def end_at_once(signum: int, _frame: FrameType | None) -> None:
    """Ends the process by a signal, as if nobody handled it.

    What a signal does by itself the kernel spares process 1 of a container, so there it is the exit
    code that tells of it.
    """
    signal.signal(signum, signal.SIG_DFL)
    signal.raise_signal(signal.Signals(signum))
    os._exit(128 + signum)
