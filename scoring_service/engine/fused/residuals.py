"""Layers whose residuals are added by the products, or in one pass where they are wider, or in one
with the norm that follows.

A layer is recognised by trying, as in `fused`: with stand-ins for its attention and its MLP, the
fused form has to call them with the same arguments and to give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoring_service.engine.fused.norm import FusedNorm
from scoring_service.engine.fused.prepacked import adding, uses_kernel
from scoring_service.engine.fused.trials import OTHER_KIND, Trials, random_rows
from scoring_service.kernels.body import BodyKernels

_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
_ROWS = 5

Layer = Callable[..., Tensor]


def add_fused(
    layer: Any, trials: Trials, dtype: torch.dtype, residual_dtype: torch.dtype
) -> Layer | None:
    """The fused forward of a layer x + attention(norm(x)), then x + mlp(norm(x)); else None.

    Where x has the type of the products, they take the sums before they are rounded, which
    transformers does first.

    Args:
        layer: perhaps one, whose norms are fused already.
        trials: of the kernels.
        dtype: of the products.
        residual_dtype: of x.
    """
    if not all(isinstance(getattr(layer, name, None), torch.nn.Module) for name in _PARTS):
        return None
    last = getattr(layer.self_attn, "o_proj", None), getattr(layer.mlp, "down_proj", None)
    linears = [module for module in last if isinstance(module, torch.nn.Linear)]
    if len(linears) != len(last):
        return None
    norm = layer.post_attention_layernorm.__dict__.get("forward")
    if trials.kernels.adds_before_norms:
        if not isinstance(norm, FusedNorm) or not norm.adds(trials, residual_dtype):
            return None
        fused = partial(_forward_normed, norm, layer)
    elif residual_dtype != dtype:
        fused = partial(_forward_wide, trials.kernels, layer)
    elif all(map(uses_kernel, linears)):
        fused = partial(_forward, layer)
    else:
        return None
    return fused if _is_plain(layer, fused, residual_dtype) else None


def _forward(layer: Any, rows: Tensor, **asked: Any) -> Tensor:
    with adding(layer.self_attn.o_proj, rows):
        rows, _ = layer.self_attn(hidden_states=layer.input_layernorm(rows), **asked)
    with adding(layer.mlp.down_proj, rows):
        found: Tensor = layer.mlp(layer.post_attention_layernorm(rows))
    return found


def _forward_normed(norm: FusedNorm, layer: Any, rows: Tensor, **asked: Any) -> Tensor:
    product, _ = layer.self_attn(hidden_states=layer.input_layernorm(rows), **asked)
    rows, normed = norm.of_sum(rows, product)
    found: Tensor = rows + layer.mlp(normed)
    return found


def _forward_wide(kernels: BodyKernels, layer: Any, rows: Tensor, **asked: Any) -> Tensor:
    product, _ = layer.self_attn(hidden_states=layer.input_layernorm(rows), **asked)
    # A new tensor: what came in is the caller's.
    rows = kernels.add_rows(rows, product)
    product = layer.mlp(layer.post_attention_layernorm(rows))
    return kernels.add_rows(rows, product, into=rows)


class _StandIn(torch.nn.Module):
    """Something that ends with a product, and remembers how it was called."""

    def __init__(self, last: torch.nn.Linear, name: str, *, pair: bool) -> None:
        super().__init__()
        setattr(self, name, last)
        self._last = last
        self._pair = pair
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def forward(self, *args: Any, **asked: Any) -> Any:
        named = {name: value for name, value in asked.items() if name != "hidden_states"}
        self.calls.append((args[1:], named))
        rows: Tensor = asked["hidden_states"] if "hidden_states" in asked else args[0]
        wide = rows.new_zeros(*rows.shape[:-1], self._last.in_features)
        width = min(wide.shape[-1], rows.shape[-1])
        wide[..., :width] = rows[..., :width]
        found = self._last(wide)
        return (found, None) if self._pair else found


def _is_plain(layer: Any, fused: Layer, dtype: torch.dtype) -> bool:
    """Whether the layer is what the fused form takes it for."""
    width = layer.mlp.down_proj.out_features
    rows = random_rows((1, _ROWS, width), layer.mlp.down_proj.weight, dtype)
    asked = {
        "attention_mask": None,
        "position_ids": object(),
        "past_key_values": None,
        "use_cache": False,
        "position_embeddings": object(),
        "packing": object(),
    }
    with torch.inference_mode(), _stand_ins(layer) as (attention, mlp):
        try:
            expected = type(layer).forward(layer, rows, **asked)
        except OTHER_KIND:
            return False
        called = [attention.calls.copy(), mlp.calls.copy()]
        if [len(calls) for calls in called] != [1, 1] or not isinstance(expected, Tensor):
            return False
        found = fused(rows, **asked)
        same_calls = [attention.calls[1:], mlp.calls[1:]] == called
    error = (found.double() - expected.double()).norm()
    # Two roundings of a sum are one now.
    return same_calls and bool(error <= 2 * torch.finfo(dtype).eps * expected.double().norm())


@contextmanager
def _stand_ins(layer: Any) -> Iterator[tuple[_StandIn, _StandIn]]:
    own = layer.self_attn, layer.mlp
    attention = _StandIn(layer.self_attn.o_proj, "o_proj", pair=True)
    mlp = _StandIn(layer.mlp.down_proj, "down_proj", pair=False)
    layer.self_attn, layer.mlp = attention, mlp
    try:
        yield attention, mlp
    finally:
        layer.self_attn, layer.mlp = own
