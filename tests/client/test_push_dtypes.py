"""Which side converts pushed tensors to the types of the model, and how it rounds."""

import math

import numpy as np
import pytest
import torch

from scoring_client import WeightProgress
from scoring_client.proto import weights_pb2
from tests.client.pushes import SPECS, assert_holds, raw, state
from tests.client.toy_weights import WeightsServer


def test_types_are_converted_here_as_the_server_would(admin):
    tensors = state()
    wide = {name: tensor.double() for name, tensor in tensors.items() if tensor.is_floating_point()}
    wide["model.norm.weight"] = exact = torch.randn(1000, dtype=torch.float32)
    wide["lm_head.weight"] = wide["model.embed_tokens.weight"]
    with WeightsServer(SPECS) as server:
        admin(server.target, "push_weights", tensors | wide, version=1, convert_dtypes=True)
        assert_holds(server, tensors | {"model.norm.weight": exact.to(torch.bfloat16)})


def wide_torch():
    return {"w": torch.arange(4.0), "n": torch.arange(3)}


def wide_numpy():
    return {name: tensor.numpy() for name, tensor in wide_torch().items()}


@pytest.mark.parametrize(
    ("dtype", "given", "asked"),
    [
        ("bfloat16", wide_torch, False),
        ("bfloat16", wide_numpy, False),
        ("bfloat16", lambda: iter(wide_torch().items()), False),
        ("float16", wide_numpy, False),
        ("float8_e4m3fn", wide_torch, False),
        # numpy has no such type, and of an iterator nobody knows what will come.
        ("float8_e4m3fn", wide_numpy, True),
        ("float8_e4m3fn", lambda: iter(wide_torch().items()), True),
    ],
)
def test_the_server_is_asked_to_convert_only_what_is_not_converted_here(admin, dtype, given, asked):
    """It could not hash while bytes arrive, and would want room for elements of eight bytes."""
    specs = {"w": (dtype, (4,), ""), "n": ("int64", (3,), "")}
    with WeightsServer(specs) as server:
        admin(server.target, "push_weights", given(), version=1, convert_dtypes=True)
        assert server.requests[0].begin.options.convert_dtypes is asked
        kinds = {chunk.name: chunk.dtype for r in server.requests for chunk in r.part.chunks}
    as_it_was = asked and given is wide_numpy
    sent = weights_pb2.WeightDataType.Name(kinds["w"])
    assert sent == f"WEIGHT_DATA_TYPE_{'FLOAT32' if as_it_was else dtype.upper()}"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_is_rounded_to_bfloat16_as_torch_does_it(admin, dtype):
    """All ties, ends and odd values; and progress counts what is sent."""
    bits = torch.arange(1 << 16, dtype=torch.int32) << 16
    edges = (bits[:, None] + torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001])).view(torch.float32)
    edges = edges[~edges.isnan()]
    with np.errstate(over="ignore"):
        given = edges.numpy().astype(dtype)
    expected = torch.from_numpy(given).to(torch.bfloat16)
    seen = []
    specs = {"w": ("bfloat16", given.shape, "")}
    with WeightsServer(specs) as server:
        admin(
            server.target,
            "push_weights",
            {"w": given},
            version=1,
            convert_dtypes=True,
            digest=True,
            on_progress=seen.append,
        )
        assert server.tensors["w"] == raw(expected)
        given = np.array([math.nan, -math.nan], dtype)
        specs["w"] = ("bfloat16", (2,), "")
        admin(server.target, "push_weights", {"w": given}, version=2, convert_dtypes=True)
        sent = np.frombuffer(server.tensors["w"], np.uint16).astype(np.uint32) << 16
        assert np.isnan(sent.view(np.float32)).all()
    total = 2 * expected.numel()
    assert seen[-1] == WeightProgress("committed", total, total)
