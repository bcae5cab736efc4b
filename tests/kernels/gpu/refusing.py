"""On a CPU, what a CUDA graph could not record."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Refusing(TorchFunctionMode):
    """Raises where a stream that is recorded would: at the calls by which Python waits for it."""

    names = ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy", "cpu",
             "nonzero", "unique", "equal", "tensor", "masked_select")  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        by_mask = name == "__getitem__" and getattr(args[1], "dtype", None) == torch.bool
        if name in self.names or by_mask or (name == "where" and len(args) == 1):
            raise RuntimeError(f"{name} cannot be recorded")
        return func(*args, **(kwargs or {}))
