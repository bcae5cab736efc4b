"""How much memory is left."""

from __future__ import annotations

from pathlib import Path

import torch


def free_memory(device: torch.device) -> int:
    """Bytes that this process could still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) << 10
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free)


_WORKING_BYTES = 64 << 20
"""What a step takes at least, about."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a step failed for want of memory.

    On a CPU there is no exception of its own for that, and libraries name it as they like (oneDNN:
    "could not create a primitive"). So where it is not named, it is tried.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return "can't allocate memory" in str(error) or not _can_allocate(_WORKING_BYTES)


def _can_allocate(size: int) -> bool:
    try:
        torch.empty(size, dtype=torch.uint8)
    except RuntimeError:
        return False
    return True
