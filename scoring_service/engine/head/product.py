"""The head's matrix product: how a weight lies for it, and who multiplies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from scoring_service.engine.fused.prepacked import (
    packed_linear,
    packs,
    packs_beside,
    repacked,
    same_bits,
)
from scoring_service.kernels.cpu.ops import CpuKernels


class HeadProduct(Protocol):
    """Hidden states times the head's weight."""

    @property
    def dtype(self) -> torch.dtype:
        """Element type of what it leaves; its sums are fp32 at least."""
        ...

    @property
    def overwrites(self) -> bool:
        """Whether `prepared` makes use of what is spare."""
        ...

    def prepared(self, weight_V_H: Tensor, spare: Tensor | None = None) -> Tensor:
        """The model's weight as it is multiplied: itself, or a copy.

        Args:
            weight_V_H: in the model's own type.
            spare: what was copied of another weight of this shape, to be overwritten.
        """
        ...

    def multiply(self, states_T_H: Tensor, prepared: Tensor, bias_V: Tensor | None) -> Tensor:
        """[T, V] in `dtype`.

        Args:
            states_T_H: in the model's own type.
            prepared: of `prepared`.
            bias_V: in `dtype`, or none.
        """
        ...


@dataclass(frozen=True, slots=True)
class PlainProduct:
    """Both factors in the type of the result, by torch's own operator."""

    dtype: torch.dtype
    overwrites: bool = True

    def prepared(self, weight_V_H: Tensor, spare: Tensor | None = None) -> Tensor:
        """As `HeadProduct` has it."""
        return weight_V_H.to(self.dtype) if spare is None else spare.copy_(weight_V_H)

    def multiply(self, states_T_H: Tensor, prepared: Tensor, bias_V: Tensor | None) -> Tensor:
        """As `HeadProduct` has it."""
        return functional.linear(states_T_H.to(self.dtype), prepared, bias_V)


@dataclass(frozen=True, slots=True)
class PackedProduct:
    """bf16 on a CPU, as oneDNN wants it (`prepacked`)."""

    copies: bool
    """Whether memory allows a packed copy of the weight."""
    dtype: torch.dtype = torch.bfloat16
    overwrites: bool = False

    def prepared(self, weight_V_H: Tensor, spare: Tensor | None = None) -> Tensor:
        """As `HeadProduct` has it."""
        weight = weight_V_H.to(self.dtype)
        return repacked(weight) if self.copies else weight

    def multiply(self, states_T_H: Tensor, prepared: Tensor, bias_V: Tensor | None) -> Tensor:
        """As `HeadProduct` has it."""
        return packed_linear(states_T_H.to(self.dtype), prepared, bias_V)


@dataclass(frozen=True, slots=True)
class WideCpuProduct:
    """fp32 of bf16 factors by the C++ kernel: exact products, and no fp32 copy of the weight."""

    kernels: CpuKernels
    columns: int
    """V."""
    dtype: torch.dtype = torch.float32
    overwrites: bool = True

    def prepared(self, weight_V_H: Tensor, spare: Tensor | None = None) -> Tensor:
        """As `HeadProduct` has it."""
        return self.kernels.pack_linear(weight_V_H, spare)

    def multiply(self, states_T_H: Tensor, prepared: Tensor, bias_V: Tensor | None) -> Tensor:
        """As `HeadProduct` has it."""
        return _plus(self.kernels.linear(states_T_H, prepared, self.columns), bias_V)


@dataclass(frozen=True, slots=True)
class WideCudaProduct:
    """fp32 of half-precision factors, as CUDA multiplies them: no fp32 copy of the weight."""

    dtype: torch.dtype = torch.float32
    overwrites: bool = False

    def prepared(self, weight_V_H: Tensor, spare: Tensor | None = None) -> Tensor:
        """As `HeadProduct` has it."""
        return weight_V_H

    def multiply(self, states_T_H: Tensor, prepared: Tensor, bias_V: Tensor | None) -> Tensor:
        """As `HeadProduct` has it."""
        return _plus(torch.mm(states_T_H, prepared.t(), out_dtype=self.dtype), bias_V)


def choose_product(
    weight_V_H: Tensor, dtype: torch.dtype, kernels: CpuKernels | None
) -> HeadProduct:
    """The fastest that leaves numbers of a type.

    Args:
        weight_V_H: in the model's own type.
        dtype: of logits before they are scaled or capped.
        kernels: the C++ kernels, where they are used.
    """
    if dtype == torch.float32 != weight_V_H.dtype:
        if weight_V_H.is_cuda:
            return WideCudaProduct()
        if kernels is not None and kernels.multiplies_wide(weight_V_H):
            return WideCpuProduct(kernels, weight_V_H.shape[0])
    if packs(weight_V_H.device, dtype):
        weight = weight_V_H.to(dtype)
        fits = packs_beside(weight.numel())
        return PackedProduct(fits and same_bits(weight, None, repacked(weight)))
    return PlainProduct(dtype)


def _plus(logits_T_V: Tensor, bias_V: Tensor | None) -> Tensor:
    return logits_T_V if bias_V is None else logits_T_V.add_(bias_V)
