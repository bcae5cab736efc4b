"""Masks, reductions and temperature of losses, the same for all. Needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from scoring_client.training.chunks import by_chunks
from scoring_client.training.given import Given, as_tensor
from scoring_client.training.truncation import RowValue, per_row

Reduction = Literal["none", "sum", "mean"]
"""Each row [N], 0 where masked; their sum; their sum over the number of rows not masked."""


def reduced(
    function: Callable[..., Tensor],
    logits: Tensor,
    others: Mapping[str, Tensor | None],
    temperature: RowValue,
    kept: Tensor | None,
    reduction: Reduction,
    chunk_rows: int | None,
) -> Tensor:
    """Return function(logits / temperature, **others) of the rows that are kept, reduced.

    Args:
        function: Of logits [n, V] and keyword tensors [n, …]; gives [n].
        logits: [N, V].
        others: Each [N, …] or None.
        temperature: A number or [N]; rounded to float32 first, as the teacher's is on the wire.
        kept: bool [N], the rows that count; None = all.
        reduction: See Reduction.
        chunk_rows: Rows at a time; None = all at once.

    Raises:
        ValueError: temperature <= 0 or not finite, or the reduction is unknown.
    """
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f'reduction must be "none", "sum" or "mean", got {reduction!r}')
    unread_N = None if kept is None else ~kept
    temperature_N = per_row("temperature", temperature, logits, torch.float32, unread_N)
    if not (temperature_N > 0).all() or not temperature_N.isfinite().all():
        wrong_N = temperature_N[~(temperature_N > 0) | ~temperature_N.isfinite()]
        raise ValueError(f"temperature must be above 0 and finite, got {float(wrong_N[0]):g}")
    temperature_N = temperature_N.to(working(logits))
    given = {**others, "temperature_N": temperature_N}

    def scaled(logits_N_V: Tensor, *, temperature_N: Tensor, **rest: Tensor) -> Tensor:
        x_N_V = logits_N_V.to(temperature_N.dtype) / temperature_N[:, None]
        return function(below_largest(x_N_V), **rest)

    values = by_chunks(scaled, logits, given, chunk_rows, kept)
    if reduction == "none":
        return values
    total = values.sum()
    if reduction == "sum":
        return total
    return total / (max(len(values), 1) if kept is None else kept.sum().clamp(min=1))


def below_largest(x_T_V: Tensor) -> Tensor:
    """Return x - max of each row: of the same log-softmax, with the same gradient.

    What all logits share costs float32 the digits that tell them apart: at a level of -100 and a
    temperature of 0.01 log-probs were off by 5e-4. Subtracted after the division, so that x is what
    the server has.
    """
    largest_T_1 = x_T_V.detach().amax(dim=1, keepdim=True)
    return x_T_V - largest_T_1.masked_fill(~largest_T_1.isfinite(), 0.0)


def kept_rows(mask: Given | None, logits: Tensor) -> Tensor | None:
    """Return which rows of logits [N, V] a mask [N] keeps, bool [N]; None without a mask.

    Raises:
        ValueError: the mask has another shape, or is neither a tensor nor an array.
    """
    if mask is None:
        return None
    mask = as_tensor("mask", mask)
    if mask.shape != logits.shape[:1]:
        raise ValueError(f"the mask has shape {list(mask.shape)}, expected [{len(logits)}]")
    return mask.to(logits.device).bool()


def matrix_shape(logits: Tensor) -> tuple[int, int]:
    """Return N and V of logits.

    Raises:
        ValueError: the logits are not [N, V].
    """
    if logits.ndim != 2:
        raise ValueError(f"logits must be [N, V], got {list(logits.shape)}")
    return logits.shape[0], logits.shape[1]


def working(logits: Tensor) -> torch.dtype:
    """Return the type to compute in: half-precision logits are computed in float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
