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
