"""How much memory is left."""

from __future__ import annotations

import torch

from scoring_service.engine.machine.host_memory import free_host_memory


def free_memory(device: torch.device) -> int:
    """Bytes that nobody has, or on a GPU nobody beside what torch keeps for its next tensors."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_host_memory()


def cached_memory(device: torch.device) -> int:
    """Bytes of a GPU that torch keeps for its next tensors, and gives back where others need them.

    Without what lies between tensors: that fits smaller ones only.
    """
    if device.type != "cuda":
        return 0
    between = int(torch.cuda.memory_stats(device).get("inactive_split_bytes.all.current", 0))
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, cached - between)


_WORKING_BYTES = 64 << 20
"""What a step takes at least, about."""


def is_refused_memory(error: BaseException) -> bool:
    """Whether an error says that memory was asked for and refused."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # On a CPU there is no exception of its own for that.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a step failed for want of memory.

    Libraries name it as they like (oneDNN: "could not create a primitive"). So where it is not
    named, it is tried.
    """
    if is_refused_memory(error):
        return True
    return isinstance(error, RuntimeError) and not _can_allocate(_WORKING_BYTES)


def is_lost(device: torch.device) -> bool:
    """Whether a GPU no longer answers this process.

    After an illegal access, a failed assertion or a fault of the card itself every further call
    fails, whatever it asks: only another process can use the device again.
    """
    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def _can_allocate(size: int) -> bool:
    try:
        torch.empty(size, dtype=torch.uint8)
    except RuntimeError:
        return False
    return True
