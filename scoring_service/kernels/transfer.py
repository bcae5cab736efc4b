"""Copies of a step's tables to its device, which the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device_async(host: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device.

    A copy from ordinary memory to a GPU waits until everything asked of it before is done, which
    leaves it idle while the host asks for more. From page-locked memory it takes its turn; torch
    gives that memory to nobody else before the copy is made.

    Args:
        host: on a CPU; nobody writes to it afterwards.
        device: a CPU gets the tensor itself.
    """
    if device.type != "cuda" or host.numel() == 0:
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def copy_async(host: Tensor, into: Tensor) -> None:
    """Writes a tensor of the host over one of a device, which the host does not wait for.

    Args:
        host: on a CPU; nobody writes to it afterwards.
        into: of its shape and type. What was asked of the device before still reads what it held.
    """
    if host.numel():
        into.copy_(host.pin_memory() if into.is_cuda else host, non_blocking=True)
