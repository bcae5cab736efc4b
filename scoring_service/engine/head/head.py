"""The head: hidden states of the wanted rows to logits, a tile at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from scoring_service.engine.head.product import HeadProduct, choose_product
from scoring_service.engine.head.tiles import ROW_MULTIPLE
from scoring_service.kernels.cpu.ops import CpuKernels

_MULTIPLIERS = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling",)


class RowHead(Protocol):
    """What turns states of rows into logits."""

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the product that makes logits."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of logits of a row."""
        ...

    @property
    def finishes_nothing(self) -> bool:
        """Whether logits are the product's own numbers."""
        ...

    def product(self, states: Tensor) -> Tensor:
        """What the head's product leaves, [T, V] in `dtype`: logits before `finish`."""
        ...

    def finish(self, product_T_V: Tensor) -> Tensor:
        """float32 [T, V]: logits of rows of a product. A block at a time stays in a cache."""
        ...

    def logits(self, states: Tensor) -> Tensor:
        """float32 [T, V]."""
        ...


@dataclass(frozen=True, slots=True)
class LinearHead:
    """hidden @ weight.T + bias, scaled and soft-capped as the model does it."""

    prepared: Tensor
    """The weight as `matmul` takes it."""
    bias_V: Tensor | None
    matmul: HeadProduct
    vocab_size: int
    """Rows of the weight."""
    multiplier: float = 1.0
    soft_cap: float | None = None
    row_multiple: int = ROW_MULTIPLE
    """Rows are padded to a multiple of this."""
    copied_bytes: int = 0
    """What `prepared` takes beside the model's own weight."""

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the product."""
        return self.matmul.dtype

    @property
    def finishes_nothing(self) -> bool:
        """Whether logits are the product's own numbers: neither scaled nor capped."""
        return self.multiplier == 1.0 and self.soft_cap is None

    def with_weight(
        self, weight_V_H: Tensor, bias_V: Tensor | None, spare: Tensor | None = None
    ) -> LinearHead:
        """The same head with another weight of the same shape and type.

        Args:
            weight_V_H: in the model's own type.
            bias_V: likewise.
            spare: `prepared` of a head that is dropped, to be overwritten.
        """
        prepared = self.matmul.prepared(weight_V_H, spare)
        copied = 0 if prepared is weight_V_H else weight_V_H.numel() * prepared.dtype.itemsize
        bias = None if bias_V is None else bias_V.to(self.dtype)
        return replace(self, prepared=prepared, bias_V=bias, copied_bytes=copied)

    def without_memory(self) -> LinearHead:
        """The same head without weights."""
        return replace(self, prepared=torch.empty(0), bias_V=None, copied_bytes=0)

    def product(self, states: Tensor) -> Tensor:
        """[T, V] of hidden states [T, H], neither scaled nor capped."""
        rows = states.shape[0]
        padding = -rows % self.row_multiple
        hidden_T_H = functional.pad(states, (0, 0, 0, padding)) if padding else states
        return self.matmul.multiply(hidden_T_H, self.prepared, self.bias_V)[:rows]

    def finish(self, product_T_V: Tensor) -> Tensor:
        """float32 [T, V], scaled and soft-capped."""
        logits_T_V = product_T_V.float()
        if self.multiplier != 1.0:
            logits_T_V = logits_T_V * self.multiplier
        if self.soft_cap is not None:
            logits_T_V = torch.tanh(logits_T_V / self.soft_cap) * self.soft_cap
        return logits_T_V

    def logits(self, states: Tensor) -> Tensor:
        """float32 [T, V] of hidden states [T, H]."""
        return self.finish(self.product(states))


@dataclass(frozen=True, slots=True)
class WholeLogits:
    """For models whose head is not a plain linear layer: the states already are logits."""

    vocab_size: int
    dtype: torch.dtype
    finishes_nothing: bool = True

    def product(self, states: Tensor) -> Tensor:
        """The states themselves, [T, V]."""
        return states

    def finish(self, product_T_V: Tensor) -> Tensor:
        """float32 [T, V]."""
        return product_T_V.float()

    def logits(self, states: Tensor) -> Tensor:
        """float32 [T, V] of logits [T, V]."""
        return states.float()


def linear_head(
    module: torch.nn.Linear, config: Any, dtype: torch.dtype, kernels: CpuKernels | None = None
) -> LinearHead:
    """The head of a model whose output embedding is a linear layer.

    Args:
        module: the output embedding.
        config: transformers' own.
        dtype: of logits before they are scaled or capped.
        kernels: the C++ kernels, where they are used.
    """
    multiplier = 1.0
    for name in _MULTIPLIERS:
        multiplier *= _number(config, name, 1.0)
    for name in _DIVISORS:
        multiplier /= _number(config, name, 1.0)
    soft_cap = _number(config, "final_logit_softcapping", 0.0)
    return make_head(
        module.weight.detach(),
        None if module.bias is None else module.bias.detach(),
        choose_product(module.weight, dtype, kernels),
        multiplier,
        soft_cap or None,
    )


def make_head(
    weight_V_H: Tensor,
    bias_V: Tensor | None,
    matmul: HeadProduct,
    multiplier: float = 1.0,
    soft_cap: float | None = None,
) -> LinearHead:
    """The head of a weight and a bias in the model's own type."""
    bare = LinearHead(weight_V_H, bias_V, matmul, weight_V_H.shape[0], multiplier, soft_cap)
    return bare.with_weight(weight_V_H, bias_V)


def _number(config: Any, name: str, default: float) -> float:
    """A setting that is a number; others (MPT's "inv_sqrt_d_model") are left to the probe."""
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) else default
