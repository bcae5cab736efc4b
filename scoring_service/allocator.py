"""What the C library does with memory that this process gives back."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_MAX_KEPT_BLOCK = 32 << 20
_MAX_KEPT = 64 << 20


def keep_freed_memory() -> bool:
    """Has up to 64 MiB of freed memory kept for the next results rather than given back.

    Results come in pieces of half a megabyte and leave as soon as they are sent. By default glibc
    gives such memory back to the kernel at once, and takes it again for the next piece: filling
    the new pages with zeros took three quarters of the time that it took to receive a result from
    a worker (`python -m benchmarks.transport`). See mallopt(3).

    Returns:
        Whether the C library could be told; only glibc can.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _MAX_KEPT_BLOCK) and mallopt(_M_TRIM_THRESHOLD, _MAX_KEPT)
    )
