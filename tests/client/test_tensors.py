"""Tensors in both encodings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scoring_client import ProtocolError
from scoring_client.proto import tensor_pb2
from scoring_client.values.tensors import float32_array, int32_array, int32_tensor

shapes = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)


@given(array=hnp.arrays(np.int32, shapes))
def test_int32_there_and_back(array):
    tensor = int32_tensor(array)
    assert tensor.data == array.astype("<i4").tobytes()
    again = int32_array(tensor)
    assert again.dtype == np.int32
    np.testing.assert_array_equal(again, array)


@given(array=hnp.arrays(np.float32, shapes, elements=st.floats(width=32)), as_bytes=st.booleans())
def test_float32_in_both_encodings(array, as_bytes):
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=array.shape)
    if as_bytes:
        tensor.data = array.astype("<f4").tobytes()
    else:
        tensor.floats.extend(array.ravel().tolist())
    again = float32_array(tensor)
    assert again.dtype == np.float32
    # Infinities and NaN included.
    np.testing.assert_array_equal(again, array)


def test_bytes_are_not_copied():
    tensor = int32_tensor(np.arange(6, dtype=np.int32).reshape(2, 3))
    array = int32_array(tensor)
    assert not array.flags.owndata
    assert not array.flags.writeable
    assert array.base is not None


def test_order_does_not_matter():
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T
    np.testing.assert_array_equal(int32_array(int32_tensor(array)), array)


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        (tensor_pb2.Tensor(shape=[0]), "element type 0"),
        (
            tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_INT32, shape=[1], ints=[1]),
            "element type 1",
        ),
        (
            tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[2], floats=[1]),
            r"shape \[2\] has 1 elements",
        ),
        (
            tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[2, 2], data=b"1234" * 3),
            r"shape \[2, 2\] has 3 elements",
        ),
        (
            tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[1], data=b"12345"),
            "5 bytes",
        ),
    ],
)
def test_tensors_that_contradict_themselves(tensor, complaint):
    with pytest.raises(ProtocolError, match=complaint):
        float32_array(tensor)
