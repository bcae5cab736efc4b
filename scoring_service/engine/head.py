"""The head: hidden states of the wanted rows to logits, a tile at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from scoring_service.engine.prepacked import pack_weight, packed_linear
from scoring_service.engine.tiles import ROW_MULTIPLE

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

    weight_V_H: Tensor
    bias_V: Tensor | None
    multiplier: float
    soft_cap: float | None
    dtype: torch.dtype
    """Element type of the product; its sums are fp32 at least."""
    packed_weight: Tensor | None = None
    """`weight_V_H` in the layout of `prepacked`, where that is faster."""
    row_multiple: int = ROW_MULTIPLE
    """Rows are padded to a multiple of this."""

    @property
    def vocab_size(self) -> int:
        """Rows of the head."""
        return self.weight_V_H.shape[0]

    @property
    def finishes_nothing(self) -> bool:
        """Whether logits are the product's own numbers: neither scaled nor capped."""
        return self.multiplier == 1.0 and self.soft_cap is None

    def product(self, states: Tensor) -> Tensor:
        """[T, V] of hidden states [T, H], neither scaled nor capped."""
        rows = states.shape[0]
        padding = -rows % self.row_multiple
        hidden_T_H = functional.pad(states, (0, 0, 0, padding)) if padding else states
        if self.dtype != self.weight_V_H.dtype:
            # CUDA multiplies half-precision factors into fp32: no fp32 copy of the weight.
            logits_T_V = torch.mm(hidden_T_H, self.weight_V_H.t(), out_dtype=self.dtype)
            if self.bias_V is not None:
                logits_T_V += self.bias_V
        else:
            hidden_T_H = hidden_T_H.to(self.dtype)
            if self.packed_weight is not None:
                logits_T_V = packed_linear(hidden_T_H, self.packed_weight, self.bias_V)
            else:
                logits_T_V = functional.linear(hidden_T_H, self.weight_V_H, self.bias_V)
        return logits_T_V[:rows]

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


def linear_head(module: torch.nn.Module, config: Any, dtype: torch.dtype) -> LinearHead | None:
    """The head of a model whose output embedding is a linear layer, else None."""
    if not isinstance(module, torch.nn.Linear):
        return None
    own: Tensor = module.weight.detach()
    weight = converted(own, dtype)
    bias: Tensor | None = module.bias
    if bias is not None and weight is not own:
        bias = bias.to(dtype)
    multiplier = 1.0
    for name in _MULTIPLIERS:
        multiplier *= _number(config, name, 1.0)
    for name in _DIVISORS:
        multiplier /= _number(config, name, 1.0)
    soft_cap = _number(config, "final_logit_softcapping", 0.0)
    return LinearHead(weight, bias, multiplier, soft_cap or None, dtype, pack_weight(weight))


def converted(weight_V_H: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as the product in `dtype` takes it."""
    if weight_V_H.is_cuda and dtype == torch.float32:
        return weight_V_H  # CUDA multiplies half-precision factors into fp32
    return weight_V_H.to(dtype)


def _number(config: Any, name: str, default: float) -> float:
    """A setting that is a number; others (MPT's "inv_sqrt_d_model") are left to the probe."""
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) else default
