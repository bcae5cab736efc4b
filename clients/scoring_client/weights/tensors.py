"""A trainer's tensors as bytes: little-endian, C order, without a copy where there need not be one.

torch is never imported: where a tensor is torch's, its methods are enough.
"""

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
    """Whether ``data`` holds only until the next tensor is asked for."""


class HostTensors:
    """Brings tensors to host memory, one after the other.

    Large tensors of a GPU pass through one pinned buffer, so each is valid only until the next.
    """

    def __init__(self, dtype: str | None = None) -> None:
        """Args: dtype: Cast floating-point tensors to this type, such as ``bfloat16``."""
        self._dtype = dtype
        self._pinned: Any = None

    def __call__(self, name: str, tensor: Any) -> HostTensor:
        """Return a tensor's bytes.

        Args:
            name: Its name.
            tensor: torch's (on any device; sharded ones are gathered), or anything that numpy takes
                for an array.

        Raises:
            InvalidRequestError: it has no bytes that could be sent.
        """
        if isinstance(tensor, (np.ndarray, np.generic)):
            return self._of_numpy(name, np.asarray(tensor))
        if hasattr(tensor, "data_ptr") and hasattr(tensor, "detach"):
            return self._of_torch(name, tensor)
        if hasattr(tensor, "__array__"):
            return self._of_numpy(name, np.asarray(tensor))
        raise InvalidRequestError(f"{name} is a {type(tensor).__name__}, not a tensor")

    def _of_numpy(self, name: str, array: np.ndarray[Any, Any]) -> HostTensor:
        if array.dtype.kind not in "fiubV" or array.dtype.names is not None or array.dtype == "V":
            raise InvalidRequestError(f"{name} has elements of type {array.dtype}")
        if self._dtype is not None and _is_floating(array.dtype):
            array = array.astype(_numpy_dtype(self._dtype), copy=False)
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        # Types that numpy does not know natively (bfloat16) have no buffer; their bytes have.
        data = memoryview(array.reshape(-1).view(np.uint8))
        return HostTensor(name, array.dtype.name, array.shape, data)

    def _of_torch(self, name: str, tensor: Any) -> HostTensor:
        whole = gathered(tensor).detach()
        if self._dtype is not None and whole.is_floating_point():
            whole = whole.to(_torch_dtype(whole, self._dtype))
        dtype = str(whole.dtype).removeprefix("torch.")
        shape = tuple(whole.shape)
        if whole.layout != _torch_of(whole).strided or whole.is_quantized or whole.is_meta:
            raise InvalidRequestError(f"{name} is a {whole.layout} tensor of {whole.dtype}")
        flat = _bytes_of(whole)
        volatile = flat.is_cuda and flat.numel() >= _PINNED_BYTES
        flat = self._through_pinned(flat) if volatile else flat.cpu()
        return HostTensor(name, dtype, shape, memoryview(flat.numpy()), volatile)

    def _through_pinned(self, flat: Any) -> Any:
        """Return a tensor of bytes in the pinned buffer, which grows to the largest."""
        if self._pinned is None or self._pinned.numel() < flat.numel():
            self._pinned = flat.new_empty(flat.numel(), device="cpu", pin_memory=True)
        target = self._pinned[: flat.numel()]
        # To pageable memory the driver would copy by way of a pinned buffer of its own.
        target.copy_(flat)
        return target


def gathered(tensor: Any) -> Any:
    """Return the whole of a sharded tensor (DTensor): every rank has to call it. Others as they are."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _bytes_of(tensor: Any) -> Any:
    """Return a torch tensor's elements as a flat uint8 tensor; a view where it is contiguous."""
    torch = _torch_of(tensor)
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.numel() else flat.new_empty(0, dtype=torch.uint8)


def _torch_of(tensor: Any) -> Any:
    """Return torch: whoever has a tensor has imported it."""
    import sys

    return sys.modules["torch"]


def _torch_dtype(tensor: Any, name: str) -> Any:
    dtype = getattr(_torch_of(tensor), name, None)
    if dtype is None:
        raise InvalidRequestError(f"torch has no element type {name!r}")
    return dtype


def _numpy_dtype(name: str) -> np.dtype[Any]:
    try:
        return np.dtype(name)
    except TypeError as error:
        raise InvalidRequestError(
            f"numpy has no element type {name!r} (ml_dtypes adds bfloat16; torch has it)"
        ) from error


def _is_floating(dtype: np.dtype[Any]) -> bool:
    # ml_dtypes' types have the kind of raw bytes.
    return dtype.kind in "fV"
