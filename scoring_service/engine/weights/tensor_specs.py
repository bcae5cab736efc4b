"""Names, types and shapes of a model's tensors, and which of them are one under two names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from scoring_service.types import TensorSpec


def tensor_specs(state: Mapping[str, Tensor]) -> tuple[TensorSpec, ...]:
    """The tensors of a `state_dict`, in ascending order of names.

    Of tied tensors, which share their memory, the first name is the tensor's own.
    """
    first: dict[tuple[Any, ...], str] = {}
    found = []
    for name in sorted(state):
        tensor = state[name]
        # Tensors without elements have no address of their own.
        where = (tensor.data_ptr(), tensor.shape, tensor.dtype) if tensor.numel() else (name,)
        tied_to = first.setdefault(where, name)
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = tuple(tensor.shape)
        found.append(TensorSpec(name, dtype, shape, "" if tied_to == name else tied_to))
    return tuple(found)
