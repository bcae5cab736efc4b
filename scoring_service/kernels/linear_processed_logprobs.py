"""The trainer's half: truncated log-probs of a linear head, differentiable, never all its logits.

Rows are computed a tile at a time: logits, support, log-prob; a row leaves two numbers that say
its support and one that says its mass. The backward pass makes each tile of logits again. Needs
torch alone; on CUDA the support comes from the Triton kernels, and so does the gradient of a tile.

Numerics: x in fp32 from fp32 sums, the support in exact arithmetic as the server decides it. The
support is a constant to the gradient, as it is to autograd on masked logits. Gradients of a tile of
logits are rounded to the weight's type before they are multiplied. All of it in the tensors' own
types, in and out of `torch.autocast`: products in bfloat16 would meet other supports than the
sampler's, and a backward pass outside the context others than the forward pass.

Legend: T rows, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoring_service.kernels import dispatch
from scoring_service.kernels.linear_logprobs import (
    LinearHead,
    check_ids,
    check_linear,
    computing_on,
    row_parts,
    weight_parts,
    x_of,
)
from scoring_service.kernels.prefix import (
    Prefix,
    RowTruncation,
    kept,
    prefixes,
    row_temperatures,
)


def linear_processed_logprobs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    keep_labels: bool = True,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor | None = None,
    top_p: float | Tensor | None = None,
    min_p: float | Tensor | None = None,
    multiplier: float = 1.0,
    soft_cap: float | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """Log-prob of each label after temperature and truncation.

    Differentiable in hidden states, weight and bias, once: a second derivative raises RuntimeError.
    So does a backward pass after any of these, labels or temperatures were changed in place.

    Args:
        hidden: [T, H], float32, bfloat16 or float16.
        weight: [V, H], of the same type.
        labels: int64 [T]; a negative one gives 0 and no gradient. One outside the vocabulary gives
            NaN and such gradients where it cannot be refused: see below.
        bias: [V].
        keep_labels: the label joins the support; else one outside has -inf.
        temperature: above 0; of all rows, or float32 [T].
        top_k: of all rows or integers [T]; None, 0, -1 and V or more = off.
        top_p: of all rows or [T]; None and 1 = off.
        min_p: of all rows or [T]; None and 0 = off.
        multiplier: of the logits; above 0.
        soft_cap: logits become cap * tanh(logits / cap), above 0; None = they do not.
        chunk_rows: rows of logits held at a time; None = what suits the device.

    Returns:
        float32 [T]. NaN of a row that is no distribution: NaN or infinity is among its logits, or
        no token is possible. So is its gradient.

    Raises:
        ValueError: shapes or types that do not fit, a top_k of fractions, a multiplier or soft_cap
            that is not above 0 and finite, chunk_rows below 1, or, where that can be seen without
            waiting for a GPU's kernels, a label outside the vocabulary, a temperature that is not
            above 0 and finite, a top_k below -1 or a share outside of [0, 1].
    """
    rows, vocab = len(hidden), len(weight)
    check_linear(hidden, LinearHead(weight, bias, multiplier, soft_cap), labels)
    if labels.device.type == "cpu":
        check_ids(labels, vocab)
    temperature_T = row_temperatures(temperature, rows, hidden.device)
    truncation = RowTruncation.of(top_k, top_p, min_p, rows, vocab, hidden.device)
    parts = row_parts(rows, vocab, hidden.device, chunk_rows)
    plan = _Plan(truncation, keep_labels, multiplier, soft_cap, parts)
    result: Tensor = _LinearProcessedLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, _Rows(labels, temperature_T), plan
    )
    return result


@dataclass(frozen=True, slots=True)
class _Rows:
    """What both passes read of the caller's rows beside their states, in the caller's memory."""

    labels_T: Tensor
    temperature_T: Tensor

    def of_part(self, part: slice) -> _Rows:
        """Those of a tile."""
        return _Rows(self.labels_T[part], self.temperature_T[part])

    def wanted(self, hidden_T_H: Tensor) -> Tensor:
        """States, 0 where nothing is wanted: NaN there would be NaN in every gradient."""
        return hidden_T_H.masked_fill((self.labels_T < 0)[:, None], 0.0)

    def to_save(self) -> list[Tensor]:
        """As autograd takes them, which refuses tensors that were made in inference mode."""
        tensors = (self.labels_T, self.temperature_T)
        return [tensor.clone() if tensor.is_inference() else tensor for tensor in tensors]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is no tensor that the backward pass reads."""

    truncation: RowTruncation
    keep_labels: bool
    multiplier: float
    soft_cap: float | None
    parts: list[slice]


class _LinearProcessedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_T_H: Tensor,
        weight_V_H: Tensor,
        bias_V: Tensor | None,
        rows: _Rows,
        plan: _Plan,
    ) -> Tensor:
        with computing_on(hidden_T_H.device):
            return _forward(ctx, hidden_T_H, weight_V_H, bias_V, rows, plan)

    @staticmethod
    def backward(ctx: Any, gradient_T: Tensor) -> tuple[Tensor | None, ...]:
        found: tuple[Tensor | None, ...] = _Gradients.apply(  # type: ignore[no-untyped-call]
            ctx.plan, ctx.needs_input_grad[:3], gradient_T, *ctx.saved_tensors
        )
        return (*found, None, None)


class _Gradients(torch.autograd.Function):
    """Gradients that have none of their own: tiles are overwritten where autograd would read them.

    Not `once_differentiable`, which asks the incoming gradient alone whether there is a graph: the
    gradients of a sum would pass for constants, and a penalty on them would silently do nothing.
    """

    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, wants: Sequence[bool], gradient_T: Tensor, *saved: Tensor
    ) -> tuple[Tensor | None, ...]:
        with computing_on(gradient_T.device):
            return _backward(plan, wants, gradient_T, *saved)

    @staticmethod
    def backward(ctx: Any, *_gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "linear_processed_logprobs has no second derivatives: use autograd on whole logits"
        )


def _forward(
    ctx: Any,
    hidden_T_H: Tensor,
    weight_V_H: Tensor,
    bias_V: Tensor | None,
    rows: _Rows,
    plan: _Plan,
) -> Tensor:
    head = LinearHead(weight_V_H, bias_V, plan.multiplier, plan.soft_cap)
    count, device = len(hidden_T_H), hidden_T_H.device
    logprobs_T = torch.empty(count, device=device)
    least_x_T, least_id_T = torch.empty(count, device=device), torch.empty_like(rows.labels_T)
    log_total_T = torch.empty(count, dtype=torch.float64, device=device)
    for part in plan.parts:
        tile = rows.of_part(part)
        x_T_V = x_of(tile.wanted(hidden_T_H[part]), head).div_(tile.temperature_T[:, None])
        found = prefixes(x_T_V, plan.truncation.of_rows(part))
        label_T = tile.labels_T.clamp(0, x_T_V.shape[1] - 1)
        label_x_T = x_T_V.gather(1, label_T[:, None])[:, 0]
        inside_T = (label_x_T > found.least_x_T) | (
            (label_x_T == found.least_x_T) & (label_T >= found.least_id_T)
        )
        total_T = found.log_total_T
        if plan.keep_labels:
            joined_T = torch.logaddexp(total_T, label_x_T.double())
            total_T = torch.where(inside_T, total_T, joined_T)
            inside_T = torch.ones_like(inside_T)
        value_T = (label_x_T.double() - total_T).clamp(max=0.0).float()
        value_T = value_T.masked_fill(~inside_T, -math.inf)
        # A support is found among numbers: it passes over NaN, which only the maximum shows.
        # And a label past the vocabulary, which a GPU does not wait to see, is none.
        broken_T = ~x_T_V.amax(dim=1).isfinite() | (tile.labels_T >= x_T_V.shape[1])
        value_T = value_T.masked_fill(broken_T, math.nan)
        total_T = total_T.masked_fill(broken_T, math.nan)
        logprobs_T[part] = value_T.masked_fill(tile.labels_T < 0, 0.0)
        least_x_T[part], least_id_T[part] = found.least_x_T, found.least_id_T
        log_total_T[part] = total_T
    ctx.plan = plan
    ctx.save_for_backward(
        hidden_T_H, weight_V_H, bias_V, *rows.to_save(), least_x_T, least_id_T, log_total_T
    )
    return logprobs_T


def _backward(
    plan: _Plan,
    wants: Sequence[bool],
    gradient_T: Tensor,
    hidden_T_H: Tensor,
    weight_V_H: Tensor,
    bias_V: Tensor | None,
    labels_T: Tensor,
    temperature_T: Tensor,
    least_x_T: Tensor,
    least_id_T: Tensor,
    log_total_T: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of hidden states, weight and bias."""
    head = LinearHead(weight_V_H, bias_V, plan.multiplier, plan.soft_cap)
    rows = _Rows(labels_T, temperature_T)
    wants_hidden, wants_weight, wants_bias = wants
    hidden_gradient = torch.empty_like(hidden_T_H) if wants_hidden else None
    weight_gradient = _zeros_like(weight_V_H) if wants_weight else None
    bias_gradient = None if bias_V is None or not wants_bias else _zeros_like(bias_V)
    # Triton's minimum passes over NaN: of a broken row what comes from above carries it.
    gradient_T = gradient_T.float().masked_fill(log_total_T.isnan(), math.nan)
    gradient_T = gradient_T.masked_fill(labels_T < 0, 0.0)
    for part in plan.parts:
        found = Prefix(least_x_T[part], least_id_T[part], log_total_T[part])
        tile = rows.of_part(part)
        wanted_T_H = tile.wanted(hidden_T_H[part])
        tile_T_V = _gradient_of_logits(
            wanted_T_H, head, tile, found, gradient_T[part], plan.keep_labels
        )
        if bias_gradient is not None:
            bias_gradient += tile_T_V.sum(dim=0)
        tile_T_V = tile_T_V.to(weight_V_H.dtype)
        if hidden_gradient is not None:
            hidden_gradient[part] = tile_T_V @ weight_V_H
        if weight_gradient is not None:
            # In parts of the vocabulary: a product of all of it is another weight in memory.
            for ids in weight_parts(weight_V_H):
                weight_gradient[ids] += tile_T_V[:, ids].t() @ wanted_T_H
    return (
        hidden_gradient,
        None if weight_gradient is None else weight_gradient.to(weight_V_H.dtype),
        None if bias_V is None or bias_gradient is None else bias_gradient.to(bias_V.dtype),
    )


def _gradient_of_logits(
    hidden_T_H: Tensor,
    head: LinearHead,
    rows: _Rows,
    found: Prefix,
    gradient_T: Tensor,
    keep_labels: bool,
) -> Tensor:
    """Of the tile's logits before scale and soft-cap, float32 [T, V].

    d log p(label) / d x = [label] - p over the support, divided by the temperature, times the
    derivative of cap * tanh(z / cap), which is 1 - (x / cap)**2, times the multiplier.
    """
    temperature_T, labels_T = rows.temperature_T, rows.labels_T
    if dispatch.backend(hidden_T_H.device) == "triton":
        # Imported where a CUDA device is, and nowhere else.
        from scoring_service.kernels.gpu.gradient import gradient_of_logits

        return gradient_of_logits(
            x_of(hidden_T_H, head), head, temperature_T, labels_T, found, gradient_T, keep_labels
        )  # fmt: skip
    finished_T_V = x_of(hidden_T_H, head)
    x_T_V = finished_T_V / temperature_T[:, None]
    keep_T_V = kept(x_T_V, found)
    label_T_1 = labels_T.clamp(0, x_T_V.shape[1] - 1)[:, None]
    if keep_labels:
        keep_T_V.scatter_(1, label_T_1, True)
    # In two parts: one float32 loses digits of the total where logits are far from 0.
    total_T = found.log_total_T.float()
    rest_T = (found.log_total_T - total_T.double()).float()
    p_T_V = x_T_V.sub_(total_T[:, None]).sub_(rest_T[:, None]).exp_().mul_(keep_T_V)
    tile_T_V = p_T_V.neg_()
    # A label outside the support has -inf, whose own x takes no part.
    tile_T_V.scatter_add_(1, label_T_1, keep_T_V.gather(1, label_T_1).float())
    tile_T_V.mul_((gradient_T / temperature_T)[:, None])
    if head.soft_cap is not None:
        tile_T_V.mul_(finished_T_V.div_(head.soft_cap).square_().neg_().add_(1.0))
    return tile_T_V.mul_(head.multiplier)


def _zeros_like(tensor: Tensor) -> Tensor:
    """Sums of many tiles are fp32 at least."""
    dtype = torch.float32 if tensor.element_size() < 4 else tensor.dtype
    return torch.zeros_like(tensor, dtype=dtype)
