"""A trainer's tensors as bytes: little-endian, C order, without a copy where there need not be one.

torch is never imported: whoever hands in its tensors has imported it.
"""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from scoring_client.errors import InvalidRequestError

_PINNED_BYTES = 1 << 20
"""Smaller tensors of a GPU are not worth a pinned buffer."""


@dataclass(frozen=True, slots=True)
class HostTensor:
    """A tensor whose bytes can be sent."""

    name: str
    """Name of the parameter."""
    dtype: str
    """Element type as torch names it, such as ``bfloat16``."""
    shape: tuple[int, ...]
    """Extent of each dimension."""
    data: memoryview
    """The elements, in C order, little-endian."""
    volatile: bool = False
    """Whether ``data`` holds only until the next tensor is brought."""


class HostTensors:
    """Brings tensors to host memory, one after the other.

    Large tensors of a GPU pass through one pinned buffer, so each is valid only until the next.
    """

    def __init__(self) -> None:
        self._pinned: Any = None

    def bring(self, name: str, tensor: Any, dtype: str | None = None) -> HostTensor:
        """Return a tensor's bytes.

        Args:
            name: Its name.
            tensor: torch's, on any device, or anything that numpy takes for an array.
            dtype: Cast it to this element type first.

        Raises:
            InvalidRequestError: it has no bytes that could be sent.
        """
        if is_torch(tensor):
            return self._of_torch(name, tensor.detach(), dtype)
        if hasattr(tensor, "__array__"):
            return _of_numpy(name, np.asarray(tensor), dtype)
        raise InvalidRequestError(f"{name} is a {type(tensor).__name__}, not a tensor")

    def _of_torch(self, name: str, tensor: Any, dtype: str | None) -> HostTensor:
        torch = sys.modules["torch"]
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise InvalidRequestError(f"{name} is a {tensor.layout} tensor on {tensor.device}")
        if dtype is not None:
            tensor = tensor.to(getattr(torch, dtype))
        flat = byte_view(tensor)
        pinned = flat.is_cuda and flat.numel() >= _PINNED_BYTES
        host = self._through_pinned(flat) if pinned else flat.cpu()
        name_of_type = str(tensor.dtype).removeprefix("torch.")
        data = memoryview(host.numpy())
        return HostTensor(name, name_of_type, tuple(tensor.shape), data, volatile=pinned)

    def _through_pinned(self, flat: Any) -> Any:
        """Return a tensor of bytes in the pinned buffer, which grows to the largest."""
        if self._pinned is None or self._pinned.numel() < flat.numel():
            self._pinned = flat.new_empty(flat.numel(), device="cpu", pin_memory=True)
        target = self._pinned[: flat.numel()]
        # To pageable memory the driver would copy by way of a pinned buffer of its own.
        target.copy_(flat)
        return target


def is_torch(tensor: Any) -> bool:
    """Return whether it is a tensor of torch's."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)


def is_sharded(tensor: Any) -> bool:
    """Return whether every rank holds a part of it (DTensor)."""
    return hasattr(tensor, "full_tensor")


def gathered(tensor: Any) -> Any:
    """Return the whole of a sharded tensor; every rank has to call it. Others as they are."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def dtype_of(tensor: Any) -> str:
    """Return the name of a tensor's element type."""
    dtype = getattr(tensor, "dtype", None)
    return dtype.name if isinstance(dtype, np.dtype) else str(dtype).removeprefix("torch.")


def byte_view(tensor: Any) -> Any:
    """Return a torch tensor's elements as a flat uint8 tensor; without a copy if contiguous."""
    torch = sys.modules["torch"]
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else flat.new_empty(0, dtype=torch.uint8)


def same_memory(one: Any, other: Any) -> bool:
    """Return whether two tensors that exist at once are views of the same elements."""
    if one is other:
        return True
    if is_torch(one) and is_torch(other):
        return bool(_torch_place(one) == _torch_place(other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return bool(_numpy_place(one) == _numpy_place(other))
    return False


def _torch_place(tensor: Any) -> Any:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _numpy_place(array: Any) -> Any:
    return array.__array_interface__["data"], array.shape, array.strides, array.dtype


def _of_numpy(name: str, array: Any, dtype: str | None) -> HostTensor:
    # "V" is the kind of bfloat16 and the other types that ml_dtypes adds.
    if array.dtype.kind not in "fiubV" or array.dtype.names is not None:
        raise InvalidRequestError(f"{name} has elements of type {array.dtype}")
    if dtype == "bfloat16":
        return HostTensor(name, dtype, array.shape, _bfloat16(array).view(np.uint8).data)
    if dtype is not None:
        array = array.astype(np.dtype(dtype))
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    shape = array.shape
    flat = np.ascontiguousarray(array).reshape(-1)
    return HostTensor(name, array.dtype.name, shape, flat.view(np.uint8).data)


def _bfloat16(array: Any) -> Any:
    """Return the bits of an array's elements as bfloat16, flat, rounded to nearest even.

    By way of float32, as torch does it: numpy has no such type.
    """
    wide = np.ascontiguousarray(array, dtype="<f4").reshape(-1)
    bits = wide.view("<u4")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    # Rounding could carry a NaN on to infinity or 0.
    return np.where(np.isnan(wide), (bits >> 16) | 0x40, rounded).astype("<u2")
