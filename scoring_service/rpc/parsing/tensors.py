"""Tensor messages to numpy arrays and back."""

from __future__ import annotations

import math

import numpy as np

from scoring_client.proto import tensor_pb2
from scoring_service.errors import invalid
from scoring_service.types import Float32Array, Int32Array

_LITTLE_INT32 = np.dtype("<i4")
_LITTLE_FLOAT32 = np.dtype("<f4")
_MAX_AXES = 32


def read_int32(tensor: tensor_pb2.Tensor, path: str) -> Int32Array:
    """An int32 array from either payload.

    Raises:
        ServiceError: INVALID_FIELD under `path` for another dtype, a shape that no array has, or a
            payload that does not fill it.
    """
    if tensor.dtype != tensor_pb2.DATA_TYPE_INT32:
        raise invalid(f"{path}.dtype", "must be DATA_TYPE_INT32")
    shape = tuple(tensor.shape)
    if len(shape) > _MAX_AXES:
        raise invalid(f"{path}.shape", f"has {len(shape)} axes, more than {_MAX_AXES}")
    if any(extent < 0 for extent in shape):
        raise invalid(f"{path}.shape", f"{list(shape)} has a negative extent")
    if len(tensor.floats) or (tensor.data and len(tensor.ints)):
        raise invalid(path, "the elements stand in exactly one of data and ints")
    size = math.prod(shape)
    if tensor.data:
        if len(tensor.data) != 4 * size:
            found = f"{len(tensor.data)} bytes"
            raise invalid(f"{path}.data", f"{found} do not fill the shape {list(shape)}")
        array = np.frombuffer(tensor.data, dtype=_LITTLE_INT32).astype(np.int32)
    else:
        if len(tensor.ints) != size:
            found = f"{len(tensor.ints)} numbers"
            raise invalid(f"{path}.ints", f"{found} do not fill the shape {list(shape)}")
        array = np.array(tensor.ints, dtype=np.int32)
    try:
        return array.reshape(shape)
    except ValueError as error:  # of no elements, and extents whose product no array has
        raise invalid(f"{path}.shape", f"{list(shape)} is no array's") from error


def write_int32(array: Int32Array, as_bytes: bool) -> tensor_pb2.Tensor:
    """A DATA_TYPE_INT32 tensor."""
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_INT32, shape=array.shape)
    if as_bytes:
        tensor.data = np.ascontiguousarray(array, dtype=_LITTLE_INT32).tobytes()
    else:
        tensor.ints.extend(array.ravel().tolist())
    return tensor


def write_float32(array: Float32Array, as_bytes: bool) -> tensor_pb2.Tensor:
    """A DATA_TYPE_FLOAT32 tensor."""
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=array.shape)
    if as_bytes:
        tensor.data = np.ascontiguousarray(array, dtype=_LITTLE_FLOAT32).tobytes()
    else:
        tensor.floats.extend(array.ravel().tolist())
    return tensor
