"""Tensors that lie in an update's memory."""

from __future__ import annotations

import mmap
import warnings

import torch
from torch import Tensor

from scoring_service.engine.weight_memory import Region


def tensor_in(memory: mmap.mmap, region: Region) -> Tensor:
    """A tensor that lies in the memory, without a copy."""
    dtype: torch.dtype = getattr(torch, region.dtype)
    count = region.size // dtype.itemsize
    if count == 0:
        return torch.empty(region.spec.shape, dtype=dtype)
    with warnings.catch_warnings():
        # Nothing writes to weights; that the mapping refuses it is what it is for.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=region.offset)
    return flat.reshape(region.spec.shape)
