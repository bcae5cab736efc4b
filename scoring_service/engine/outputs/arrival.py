"""Numbers on their way from a device to the host."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def on_their_way(values: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Begins to bring tensors to the host. The call of what it returns waits for them, once.

    Args:
        values: by name, of one device, one at least. Those of a CPU are there already.
    """
    device = next(iter(values.values())).device
    if device.type == "cpu":
        return lambda: values
    copies = {}
    for name, value in values.items():
        # Page-locked memory, which a GPU writes by itself.
        copies[name] = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
        copies[name].copy_(value, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(device))

    def wait() -> dict[str, Tensor]:
        copied.synchronize()
        return copies

    return wait
