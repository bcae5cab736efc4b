"""What replay and losses are given: tensors, or arrays as results have them. Needs torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Given = Tensor | npt.NDArray[Any]
"""A tensor, or an array of a result, which is taken to where it is needed."""


def as_tensor(name: str, value: Given, device: torch.device | None = None) -> Tensor:
    """Return a tensor as it is, and an array as a tensor.

    Args:
        name: Of the argument, for the error.
        value: What was given.
        device: Where an array goes.

    Raises:
        ValueError: it is neither.
    """
    found: Any = value
    if isinstance(found, Tensor):
        return found
    if isinstance(found, np.ndarray):
        return of_array(found, device)
    raise ValueError(f"{name} must be a tensor or a numpy array, got {type(found).__name__}")


def of_array(array: npt.NDArray[Any], device: torch.device | None = None) -> Tensor:
    """Return an array as a tensor, which shares its memory where that can be written to.

    What came through an object store, such as Ray's, cannot: torch would warn of it.
    """
    return torch.as_tensor(array if array.flags.writeable else array.copy(), device=device)
