"""Norms, activations and rotary positions of a body in one pass each, instead of five to ten.

A module is recognised by trying: if the fused form of what its name promises gives what it gives
on random numbers, it takes its place; otherwise the module stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scoring_service.engine.residuals import add_fused
from scoring_service.kernels.cpu.ops import CpuKernels

_ROWS = 32
_GATED = ("gate_proj", "up_proj", "down_proj")
_ROTARY = "apply_rotary_pos_emb"
_Rotary = Callable[..., tuple[Tensor, Tensor]]


def fuse_layers(network: Any, kernels: CpuKernels, residual_dtype: torch.dtype) -> Rotary | None:
    """Lets norms and gated activations of a network use the kernels, for good.

    Args:
        network: transformers' own.
        kernels: that were loaded.
        residual_dtype: of what enters and leaves its layers.

    Returns:
        The rotary function of its layers, to be switched during a forward; None if there is none
        that the kernels can stand in for.
    """
    if not kernels.takes(network.dtype):
        return None
    for module in network.modules():
        fused = _fused_norm(module, kernels, residual_dtype) or _fused_gate(module, kernels)
        if fused is not None:
            module.__dict__["forward"] = fused
    for module in network.modules():
        fused_layer = add_fused(module, kernels, network.dtype, residual_dtype)
        if fused_layer is not None:
            module.__dict__["forward"] = fused_layer
    namespaces = {
        type(module).__module__
        for module in network.modules()
        if type(module).__name__.endswith("Attention")
    }
    if len(namespaces) != 1:
        return None
    namespace = sys.modules[namespaces.pop()]
    own = getattr(namespace, _ROTARY, None)
    if own is None or not _same_rotation(own, kernels, network.dtype):
        return None
    return Rotary(namespace, own, kernels)


class Rotary:
    """The function of a model's file that turns queries and keys, and its fused form."""

    def __init__(self, namespace: Any, own: _Rotary, kernels: CpuKernels) -> None:
        self._namespace = namespace
        self._own = own
        self._kernels = kernels

    @contextmanager
    def fused(self) -> Iterator[None]:
        """Puts the fused form in the function's place for a while.

        Layers find the function in their own file's namespace: there is no other place to put it.
        """
        setattr(self._namespace, _ROTARY, self._rotate)
        try:
            yield
        finally:
            setattr(self._namespace, _ROTARY, self._own)

    def _rotate(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        plain = not rest and not named and q.shape[0] == 1 and q.dtype == k.dtype == cos.dtype
        if not plain or cos.shape != (1, q.shape[2], q.shape[3]):
            return self._own(q, k, cos, sin, *rest, **named)
        return (
            self._kernels.rotate(q[0], cos[0], sin[0])[None],
            self._kernels.rotate(k[0], cos[0], sin[0])[None],
        )


def _fused_norm(
    module: Any, kernels: CpuKernels, residual_dtype: torch.dtype
) -> Callable[[Tensor], Tensor] | None:
    if not type(module).__name__.endswith("RMSNorm"):
        return None
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    if not kernels.takes(weight.dtype):
        return None
    taken = {weight.dtype, residual_dtype}
    own = module.forward
    for offset in (False, True):
        fused = partial(_norm, kernels, module, eps, offset, taken, own)
        if all(_agree(module, fused, dtype) for dtype in taken):
            return fused
    return None


def _norm(
    kernels: CpuKernels,
    module: Any,
    eps: float,
    offset: bool,
    taken: set[torch.dtype],
    own: Callable[[Tensor], Tensor],
    rows: Tensor,
) -> Tensor:
    if rows.dtype not in taken:
        return own(rows)
    return kernels.rms_norm(rows, module.weight, eps, offset)


def _fused_gate(module: Any, kernels: CpuKernels) -> Callable[[Tensor], Tensor] | None:
    gate, up, down = (getattr(module, name, None) for name in _GATED)
    if not (
        isinstance(gate, torch.nn.Linear)
        and isinstance(up, torch.nn.Linear)
        and isinstance(down, torch.nn.Linear)
    ):
        return None
    if "silu" not in type(getattr(module, "act_fn", None)).__name__.lower():
        return None
    if not kernels.takes(gate.weight.dtype):
        return None
    fused = partial(_gate, kernels, gate, up, down)
    return fused if _agree(module, fused, gate.weight.dtype) else None


def _gate(kernels: CpuKernels, gate: Any, up: Any, down: Any, rows: Tensor) -> Tensor:
    found: Tensor = down(kernels.silu_mul(gate(rows), up(rows)))
    return found


def _agree(module: Any, fused: Callable[[Tensor], Tensor], dtype: torch.dtype) -> bool:
    """Whether both give the same of random rows, but for the order of sums."""
    width = module.weight.shape[0] if hasattr(module, "weight") else module.gate_proj.in_features
    generator = torch.Generator().manual_seed(0)
    rows = (3 * torch.randn(1, _ROWS, width, generator=generator)).to(dtype)
    with torch.inference_mode():
        expected, found = module(rows), fused(rows)
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    return _close(found, expected)


def _same_rotation(own: _Rotary, kernels: CpuKernels, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 3, _ROWS, 64, generator=generator).to(dtype)
    k = torch.randn(1, 1, _ROWS, 64, generator=generator).to(dtype)
    angles = 6.3 * torch.rand(1, _ROWS, 32, generator=generator).repeat(1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    with torch.inference_mode():
        try:
            expected = own(q, k, cos, sin)
        except (TypeError, ValueError, RuntimeError, IndexError):
            return False  # another convention of arguments
        return all(
            _close(kernels.rotate(x[0], cos[0], sin[0])[None], y)
            for x, y in zip((q, k), expected, strict=True)
        )


def _close(found: Tensor, expected: Tensor) -> bool:
    """Equal but for a unit in the last place here and there."""
    last_place = 2 * torch.finfo(expected.dtype).eps
    error = (found.float() - expected.float()).norm()
    return bool(error <= last_place * expected.float().norm())
