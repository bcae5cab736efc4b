"""Rows over their root mean square, times a weight; a residual is added before, where one is given.

A row is read once, by one program, whose block depends on the row's width alone: a row's bits are
the same in any company. Narrow rows, such as heads, share a program, and not their sums.

Numerics: fp32 inside, without fused multiply-adds, rounded where transformers rounds
(`kernels.body.NormForm`); sums of a residual are rounded to its type before anything else is made
of them. The sum of squares is taken in another order than torch's, and the reciprocal root is the
device's, as torch's is: nearly all numbers have the bits of torch's operators, not all.

Twin: `kernels.body.EagerBody.norm`, and a model's own norms at load.

Legend: N rows, H columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from scoring_service.kernels.body import NormForm
from scoring_service.kernels.gpu.layout import flat_rows
from scoring_service.kernels.gpu.rounding import rounded

WIDEST = 16_384
"""Columns of a row, at most: what the registers of a program hold."""

_MIN_ELEMENTS = 1024
"""Of a program: rows that are narrower share one."""

_ELEMENTS_OF_A_WARP = 512
_MAX_WARPS = 16


@triton.jit(do_not_specialize=["rows"])
def rms_norm_rows(
    x_ptr,
    added_ptr,
    weight_ptr,
    total_ptr,
    output_ptr,
    rows,
    x_stride,
    added_stride,
    eps,
    ADDED: tl.constexpr,
    ROUNDED: tl.constexpr,
    OFFSET: tl.constexpr,
    INTERPRETED: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Program n: ROWS rows; x + added goes to `total`, norms to `output`, both dense."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask=inside, other=0.0)
    x = x.to(tl.float32)
    if ADDED:
        added = tl.load(
            added_ptr + row[:, None] * added_stride + column[None, :], mask=inside, other=0.0
        )
        total = rounded(x + added.to(tl.float32), total_ptr.dtype.element_ty, INTERPRETED)
        tl.store(total_ptr + row[:, None] * WIDTH + column[None, :], total, mask=inside)
        x = total.to(tl.float32)
    # A product, as torch has it on a GPU, and no division.
    mean = tl.sum(x * x, axis=1) * (1.0 / WIDTH)
    x = x * tl.rsqrt(mean + eps)[:, None]
    weight = tl.load(weight_ptr + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    if OFFSET:
        weight = 1.0 + weight
    if ROUNDED:
        x = rounded(x, x_ptr.dtype.element_ty, INTERPRETED).to(tl.float32)
    tl.store(
        output_ptr + row[:, None] * WIDTH + column[None, :],
        rounded(weight[None, :] * x, output_ptr.dtype.element_ty, INTERPRETED),
        mask=inside,
    )


def rms_norm(
    form: NormForm, rows: Tensor, weight_H: Tensor, eps: float, added: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The rows, with another tensor added where one is given, and their norms.

    Args:
        form: of the norm.
        rows: [..., H].
        weight_H: of the type that norms are to have.
        eps: added to the mean of squares.
        added: [..., H], of any type.

    Returns:
        The rows themselves, or dense sums in their type; and dense norms in the weight's.

    Raises:
        ValueError: shapes that do not fit, or rows that are too wide.
    """
    width = rows.shape[-1]
    if weight_H.shape != (width,) or (added is not None and added.shape != rows.shape):
        raise ValueError(f"rows of {width}, what is added and the weight do not fit")
    if not 1 <= width <= WIDEST:
        raise ValueError(f"rows of 1 to {WIDEST} columns are normed, not of {width}")
    x_N_H = flat_rows(rows)
    added_N_H = x_N_H if added is None else flat_rows(added)
    dense = torch.empty(rows.shape, dtype=weight_H.dtype, device=rows.device)
    total = rows if added is None else torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
    if not len(x_N_H):
        return total, dense
    tile = tile_of(width)
    rms_norm_rows[(triton.cdiv(len(x_N_H), tile["ROWS"]),)](
        x_N_H,
        added_N_H,
        weight_H.contiguous(),
        total,
        dense,
        len(x_N_H),
        x_N_H.stride(0),
        added_N_H.stride(0),
        eps,
        ADDED=added is not None,
        ROUNDED=form is NormForm.ROUNDED,
        OFFSET=form is NormForm.OFFSET,
        INTERPRETED=not rows.is_cuda,
        **tile,
        num_warps=warps_of(tile),
        enable_fp_fusion=False,
    )
    return total, dense


def tile_of(width: int) -> dict[str, int]:
    """What the kernel is compiled for."""
    block = triton.next_power_of_2(width)
    return {"WIDTH": width, "BLOCK": block, "ROWS": max(1, min(16, _MIN_ELEMENTS // block))}


def warps_of(tile: dict[str, int]) -> int:
    """Threads of a program, by 32."""
    return max(1, min(_MAX_WARPS, tile["BLOCK"] * tile["ROWS"] // _ELEMENTS_OF_A_WARP))
