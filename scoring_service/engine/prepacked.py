"""Linear layers whose weights lie as the CPU's matrix kernel wants them.

For a product of half-precision factors torch reorders the weight in every call, which costs as
much as the product itself where rows are few. oneDNN's own layout, made once, gives the same bits;
torch's compiler uses the same two operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoring_service.engine.memory import free_memory

_RESIDUAL = "_residual"

_SHARE = 0.25
"""Weights are packed beside the originals only if they take less than this of what is free."""


def pack_weight(weight: Tensor) -> Tensor | None:
    """A copy of [N, K] in the kernel's layout; None where there is none or it does not pay."""
    if weight.is_cuda or weight.dtype != torch.bfloat16 or not _is_available():
        return None
    if not _fits(weight.numel() * 2):
        return None
    return repacked(weight)


def packed_linear(inputs: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """inputs @ weight.T + bias of a packed weight."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")
    return product


def pack_linears(network: Any) -> int:
    """Lets the linear layers of a body use packed weights, if memory allows and bits agree.

    Returns:
        How many layers do.
    """
    output = network.get_output_embeddings() if hasattr(network, "get_output_embeddings") else None
    layers = [
        module
        for module in network.modules()
        if type(module) is torch.nn.Linear
        and module is not output
        and module.weight.dtype == torch.bfloat16
        and not module.weight.is_cuda
    ]
    size = sum(layer.weight.numel() * 2 for layer in layers)
    if not layers or not _is_available() or not _fits(size):
        return 0
    packed = 0
    for layer in layers:
        weight = pack_weight(layer.weight)
        if weight is not None and _same_bits(layer, weight):
            layer.__dict__["forward"] = partial(_forward, weight, layer)
            packed += 1
    return packed


def packed_layers(network: Any) -> dict[str, torch.nn.Linear]:
    """The layers that use packed weights, by name."""
    return {name: module for name, module in network.named_modules() if is_packed(module)}


def packed_of(layer: torch.nn.Linear) -> Tensor:
    """The packed weight that a layer uses now."""
    packed: Tensor = layer.__dict__["forward"].args[0]
    return packed


def use_packed(layer: torch.nn.Linear, packed: Tensor) -> None:
    """Lets a layer use another packed weight."""
    layer.__dict__["forward"] = partial(_forward, packed, layer)


def repacked(weight: Tensor) -> Tensor:
    """The packed form of another weight of a layer whose weight is packed already."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
    return packed


def _fits(size: int) -> bool:
    return size <= _SHARE * free_memory(torch.device("cpu"))


def is_packed(layer: torch.nn.Module) -> bool:
    """Whether a layer uses a packed weight."""
    forward = layer.__dict__.get("forward")
    return isinstance(forward, partial) and forward.func is _forward


@contextmanager
def adding(layer: torch.nn.Linear, residual: Tensor) -> Iterator[None]:
    """Lets a packed layer's next product be added to a residual before it is rounded.

    Raises:
        RuntimeError: the layer was not called.
    """
    layer.__dict__[_RESIDUAL] = residual
    try:
        yield
    finally:
        # A step that failed before the product must not leave it to the next one.
        left = layer.__dict__.pop(_RESIDUAL, None)
    if left is not None:
        raise RuntimeError("a layer that should have added a residual was not called")


def _forward(packed: Tensor, layer: torch.nn.Linear, inputs: Tensor) -> Tensor:
    residual = layer.__dict__.pop(_RESIDUAL, None)
    if residual is None:
        return packed_linear(inputs, packed, layer.bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
        inputs, residual, packed, layer.bias, "add"
    )
    return product


def _same_bits(layer: torch.nn.Linear, packed: Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, layer.in_features, generator=generator).to(layer.weight.dtype)
    with torch.inference_mode():
        expected = torch.nn.functional.linear(inputs, layer.weight, layer.bias)
        return torch.equal(packed_linear(inputs, packed, layer.bias), expected)


def _is_available() -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
