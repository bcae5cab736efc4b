"""The gradient of truncated log-probs with respect to a tile of logits, in one pass, in place.

Numerics: probabilities over the support in fp32 from the row's float64 log total.

Twin: `linear_processed_logprobs._gradient_of_logits`, and autograd on masked logits.

Legend: T rows, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scoring_service.kernels.gpu.layout import by_row
from scoring_service.kernels.gpu.race import kept
from scoring_service.kernels.gpu.rows import BLOCK_COLUMNS, ordered
from scoring_service.kernels.linear_logprobs import LinearHead
from scoring_service.kernels.prefix import Prefix


@triton.jit(do_not_specialize_on_alignment=["temperatures_ptr", "labels_ptr", "gradient_ptr"])
def truncated_gradient(
    finished_ptr,
    temperatures_ptr,
    labels_ptr,
    least_x_ptr,
    least_id_ptr,
    log_total_ptr,
    gradient_ptr,
    row_stride,
    vocab,
    multiplier,
    soft_cap,
    CAPPED: tl.constexpr,
    KEEP_LABELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (row, block): finished logits become the gradient of the head's product."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = columns < vocab
    start = finished_ptr + row * row_stride
    logits = tl.load(start + columns, mask=there, other=-float("inf"))
    temperature = tl.load(temperatures_ptr + row)
    x = tl.div_rn(logits, tl.zeros_like(logits) + temperature)
    least_key = ordered(tl.load(least_x_ptr + row))
    # An id past every column, as a row without filters has it, is no int32 to compare with.
    least_id = tl.minimum(tl.load(least_id_ptr + row), 0x7FFFFFFF).to(tl.int32)
    keep = kept(x, columns, there, least_key, least_id)
    label = tl.maximum(tl.load(labels_ptr + row), 0).to(tl.int32)
    is_label = columns == label
    if KEEP_LABELS:
        keep = keep | is_label
    # In two parts: one float32 loses digits of the total where logits are far from 0.
    log_total = tl.load(log_total_ptr + row)
    total = log_total.to(tl.float32)
    rest = (log_total - total.to(tl.float64)).to(tl.float32)
    p = tl.where(keep, tl.exp(tl.minimum(x - total - rest, 0.0)), 0.0)
    # A label outside the support has -inf, whose own x takes no part.
    value = tl.where(is_label & keep, 1.0 - p, -p)
    value = value * (tl.load(gradient_ptr + row) / temperature) * multiplier
    if CAPPED:
        share = logits / soft_cap
        value = value * (1.0 - share * share)
    tl.store(start + columns, value, mask=there)


def gradient_of_logits(
    finished_T_V: Tensor,
    head: LinearHead,
    temperature_T: Tensor,
    labels_T: Tensor,
    found: Prefix,
    gradient_T: Tensor,
    keep_labels: bool,
) -> Tensor:
    """Turns a tile of finished logits into their gradient before scale and soft-cap.

    Args:
        finished_T_V: float32, overwritten.
        head: its multiplier and soft-cap.
        temperature_T: float32.
        labels_T: int64.
        found: the support of each row.
        gradient_T: float32, of the log-probs.
        keep_labels: labels belong to the support.

    Raises:
        ValueError: columns of the tile are not side by side, or there is not one number a row.
    """
    if finished_T_V.stride(1) != 1:
        raise ValueError("the tile's columns are not side by side, and it is written to")
    rows, vocab = finished_T_V.shape
    truncated_gradient[(rows, triton.cdiv(vocab, BLOCK_COLUMNS))](
        finished_T_V,
        by_row(temperature_T, rows, torch.float32),
        by_row(labels_T, rows, torch.int64),
        by_row(found.least_x_T, rows, torch.float32),
        by_row(found.least_id_T, rows, torch.int64),
        by_row(found.log_total_T, rows, torch.float64),
        by_row(gradient_T, rows, torch.float32),
        finished_T_V.stride(0),
        vocab,
        head.multiplier,
        head.soft_cap or 0.0,
        CAPPED=head.soft_cap is not None,
        KEEP_LABELS=keep_labels,
        BLOCK=BLOCK_COLUMNS,
        num_warps=8,
    )
    return finished_T_V
