"""What the fused forms of a body ask of kernels, and the same in plain torch.

Legend: T tokens, D width of a head's rotated part, F width of a gated layer, H width of a norm.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

import torch
from torch import Tensor


class NormForm(Enum):
    """What becomes of x over its root mean square, in fp32 until it is rounded."""

    ROUNDED = "rms_norm"
    """Rounded to the type of x, times the weight, rounded again: Llama, Qwen, Mistral."""
    OFFSET = "rms_norm_offset"
    """Times 1 + weight, rounded: Gemma."""
    ONCE = "rms_norm_once"
    """Times the weight, rounded: OLMo 2, GPT-OSS."""


class GateForm(Enum):
    """What is made of a gate before it is rounded and multiplied."""

    SILU = "silu_mul"
    GELU_TANH = "gelu_tanh_mul"
    """By the hyperbolic tangent: Gemma."""


class BodyKernels(Protocol):
    """Kernels of what stands between a layer's matrix products."""

    @property
    def language(self) -> str:
        """That they are written in."""

    @property
    def norms(self) -> tuple[NormForm, ...]:
        """That they know."""

    @property
    def gates(self) -> tuple[GateForm, ...]:
        """That they know."""

    @property
    def equal_share(self) -> float:
        """Share of half-precision numbers that have the bits of torch's operators, at least."""

    @property
    def adds_before_norms(self) -> bool:
        """Whether `add_norm` is one pass."""

    def takes(self, dtype: torch.dtype) -> bool:
        """Whether they work on such numbers."""

    def norm(self, form: NormForm, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """rows [..., H] normed and times weight [H], in the weight's type."""

    def add_rows(self, residual: Tensor, rows: Tensor, into: Tensor | None = None) -> Tensor:
        """residual + rows, in a new tensor of the residual's type or in `into`."""

    def add_norm(
        self, form: NormForm, residual: Tensor, rows: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """residual + rows, in the residual's type, and the norm of that."""

    def gate(self, form: GateForm, gate: Tensor, up: Tensor) -> Tensor:
        """The activation of gate [..., F], rounded, times up [..., F]."""

    def rotate(
        self, q: Tensor, k: Tensor, cos_T_D: Tensor, sin_T_D: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x * cos + rotate_half(x) * sin of [heads, T, D] each, rounded after each operation."""


class EagerBody:
    """The twin: transformers' expressions, operator by operator."""

    language = "torch"
    norms = tuple(NormForm)
    gates = tuple(GateForm)
    equal_share = 1.0
    adds_before_norms = False

    def takes(self, dtype: torch.dtype) -> bool:
        """Any floating-point type."""
        return dtype.is_floating_point

    def norm(self, form: NormForm, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """As `BodyKernels` has it."""
        wide = rows.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        if form is NormForm.OFFSET:
            return (normed * (1.0 + weight.float())).to(weight.dtype)
        if form is NormForm.ROUNDED:
            normed = normed.to(rows.dtype)
        return (weight * normed).to(weight.dtype)

    def add_rows(self, residual: Tensor, rows: Tensor, into: Tensor | None = None) -> Tensor:
        """As `BodyKernels` has it."""
        return torch.add(residual, rows, out=into)

    def add_norm(
        self, form: NormForm, residual: Tensor, rows: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """As `BodyKernels` has it."""
        total = self.add_rows(residual, rows)
        return total, self.norm(form, total, weight, eps)

    def gate(self, form: GateForm, gate: Tensor, up: Tensor) -> Tensor:
        """As `BodyKernels` has it."""
        if form is GateForm.SILU:
            return torch.nn.functional.silu(gate) * up
        return torch.nn.functional.gelu(gate, approximate="tanh") * up

    def rotate(
        self, q: Tensor, k: Tensor, cos_T_D: Tensor, sin_T_D: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `BodyKernels` has it."""
        return _rotated(q, cos_T_D, sin_T_D), _rotated(k, cos_T_D, sin_T_D)


def _rotated(heads: Tensor, cos_T_D: Tensor, sin_T_D: Tensor) -> Tensor:
    low, high = heads.chunk(2, dim=-1)
    return heads * cos_T_D + torch.cat((-high, low), dim=-1) * sin_T_D
