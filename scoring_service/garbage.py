"""What Python's garbage collector looks at."""

from __future__ import annotations

import gc


def freeze_startup_objects() -> None:
    """Takes what exists now, which stays as long as the process, out of all later collections.

    A full collection walks everything, modules and classes too: 45 ms of processor time in the
    process that serves gRPC, during which nobody is answered. Of what calls leave behind it is
    done in well under a millisecond.
    """
    gc.collect()
    gc.freeze()


def collect_seldom() -> None:
    """Has full collections come after a million new objects rather than after each 70,000.

    A request of 65,536 groups is 260,000 objects once it was read, and 850 kB: on its way into the
    queue everything that was there was walked eleven times, each time for 10 to 50 ms in which
    nobody is answered, and for as much longer as cores were busy elsewhere. What calls leave behind
    that only a collection finds is found by the small ones.
    """
    gc.set_threshold(2000, 10, 50)
