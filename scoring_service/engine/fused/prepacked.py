"""Linear layers whose weights lie as the CPU's matrix kernel wants them.

For a product of half-precision factors torch reorders the weight in every call, which costs as
much as the product itself where rows are few. oneDNN's own layout, made once, gives the same bits;
torch's compiler uses the same two operators.

Where memory is too small for a second copy, the same operators take the weight as it lies: how much
was free when a worker started changes its speed, never its bits. Layers whose bits would change are
found out by trying, and keep their weights as they lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoring_service.engine.machine.memory import free_memory

_RESIDUAL = "_residual"

_HEIGHTS = (1, 2, 16, 33, 64, 256)
"""Of products whose bits are compared: libraries choose a way for few rows and one for many."""

_SHARE = 0.25
"""Weights are packed beside the originals only if they take less than this of what is free."""


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there are operators for packed weights of such a type."""
    return device.type == "cpu" and dtype == torch.bfloat16 and _is_available()


def packs_beside(elements: int) -> bool:
    """Whether memory allows packed copies of so many elements beside the originals."""
    return elements * 2 <= _SHARE * free_memory(torch.device("cpu"))


def packed_linear(inputs: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """inputs @ weight.T + bias of a weight that is `repacked`, or of one as it lies."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")
    return product


def pack_linears(network: Any) -> int:
    """Lets the linear layers of a body use the kernel's operators, if bits agree.

    Returns:
        How many layers do; with packed weights if memory allows.
    """
    output = network.get_output_embeddings() if hasattr(network, "get_output_embeddings") else None
    layers = [
        module
        for module in network.modules()
        if type(module) is torch.nn.Linear
        and module is not output
        and packs(module.weight.device, module.weight.dtype)
    ]
    fits = packs_beside(sum(layer.weight.numel() for layer in layers))
    keeps_bits: dict[tuple[Any, ...], tuple[bool, bool]] = {}
    """Of weights of a shape: once they are packed, and as they lie."""
    count = 0
    for layer in layers:
        packed = repacked(layer.weight) if fits else None
        shape = (*layer.weight.shape, layer.bias is None)
        if shape not in keeps_bits:
            keeps_bits[shape] = (
                packed is not None and same_bits(layer.weight, layer.bias, packed),
                same_bits(layer.weight, layer.bias, layer.weight),
            )
        packs_well, lies_well = keeps_bits[shape]
        if packs_well or lies_well:
            use_packed(layer, packed if packs_well else None)
            count += 1
    return count


def packed_layers(network: Any) -> dict[str, torch.nn.Linear]:
    """The layers that have packed weights, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if uses_kernel(module) and module.__dict__["forward"].args[0] is not None
    }


def packed_of(layer: torch.nn.Linear) -> Tensor:
    """The packed weight that a layer uses now."""
    packed: Tensor = layer.__dict__["forward"].args[0]
    return packed


def use_packed(layer: torch.nn.Linear, packed: Tensor | None) -> None:
    """Lets a layer use the operators, with a packed weight or with its own."""
    layer.__dict__["forward"] = partial(_forward, packed, layer)


def repacked(weight: Tensor) -> Tensor:
    """A copy of a bf16 weight [N, K] in the kernel's layout."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)
    return packed


def uses_kernel(layer: torch.nn.Module) -> bool:
    """Whether a layer uses the kernel's operators, with a packed weight or its own."""
    forward = layer.__dict__.get("forward")
    return isinstance(forward, partial) and forward.func is _forward


@contextmanager
def adding(layer: torch.nn.Linear, residual: Tensor) -> Iterator[None]:
    """Lets the next product of a layer of the kernel's be added to a residual before it is rounded.

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


def _forward(packed: Tensor | None, layer: torch.nn.Linear, inputs: Tensor) -> Tensor:
    weight = layer.weight if packed is None else packed
    residual = layer.__dict__.pop(_RESIDUAL, None)
    if residual is None:
        return packed_linear(inputs, weight, layer.bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
        inputs, residual, weight, layer.bias, "add"
    )
    return product


def same_bits(weight: Tensor, bias: Tensor | None, packed: Tensor) -> bool:
    """Whether products have the bits of torch's own, at each of several heights."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(_HEIGHTS[-1], weight.shape[1], generator=generator).to(weight.dtype)
    with torch.inference_mode():
        return all(
            torch.equal(
                packed_linear(rows[:height], packed, bias),
                torch.nn.functional.linear(rows[:height], weight, bias),
            )
            for height in _HEIGHTS
        )


def _is_available() -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
