"""Tensors of the contract and numpy arrays."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from scoring_client.errors import ProtocolError
from scoring_client.proto import tensor_pb2
from scoring_client.values.arrays import Float32Array, Int32Array

_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")


def int32_tensor(array: Int32Array) -> tensor_pb2.Tensor:
    """Return an int32 tensor that carries ``array`` (any shape) as little-endian bytes."""
    return tensor_pb2.Tensor(
        dtype=tensor_pb2.DATA_TYPE_INT32,
        shape=array.shape,
        data=np.ascontiguousarray(array, dtype=_INT32).tobytes(),
    )


def int32_array(tensor: tensor_pb2.Tensor) -> Int32Array:
    """Return an int32 tensor's elements in its shape.

    Bytes are not copied: the array is then read-only.

    Raises:
        ProtocolError: another element type, or a payload that does not fit the shape.
    """
    array: Int32Array = _array(tensor, tensor_pb2.DATA_TYPE_INT32, _INT32, tensor.ints)
    return array


def float32_array(tensor: tensor_pb2.Tensor) -> Float32Array:
    """Return a float32 tensor's elements in its shape.

    Bytes are not copied: the array is then read-only.

    Raises:
        ProtocolError: another element type, or a payload that does not fit the shape.
    """
    array: Float32Array = _array(tensor, tensor_pb2.DATA_TYPE_FLOAT32, _FLOAT32, tensor.floats)
    return array


def _array(
    tensor: tensor_pb2.Tensor, wanted: int, dtype: np.dtype[Any], numbers: Iterable[Any]
) -> Any:
    if tensor.dtype != wanted:
        raise ProtocolError(f"a tensor has element type {tensor.dtype} instead of {wanted}")
    if len(tensor.data) % dtype.itemsize:
        raise ProtocolError(f"a tensor has {len(tensor.data)} bytes, not a multiple of 4")
    if tensor.data:
        flat = np.frombuffer(tensor.data, dtype=dtype)
    else:
        flat = np.array(list(numbers), dtype=dtype)
    shape = tuple(tensor.shape)
    if flat.size != np.prod(shape, dtype=np.int64):
        raise ProtocolError(f"a tensor of shape {list(shape)} has {flat.size} elements")
    # Native byte order costs a copy only where it is not little-endian.
    return flat.reshape(shape).astype(dtype.newbyteorder("="), copy=False)
